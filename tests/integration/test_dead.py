"""Dead letters: jobs that used up their attempts are kept, listed, and done again once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import Exit, main
from gateway.client import Client
from gateway.documents import KindDocument
from gateway.errors import Conflict
from gateway.protocol import START, State
from gateway.requests import JobOptions
from gateway.store import Store
from gateway.store.dead import MAX_DEAD
from tests.jobs import begin, end, look_later, submit, use_up
from tests.serving import AS_ME, AS_OTHER, KEYS, Gateway, gateway_for

pytestmark = pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True)

KIND = KindDocument(kind="echo")
DAY_MS = 86_400_000


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys: everybody is the owner `local`."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """A client of the gateway."""
    async with Client(gateway.url, patience_seconds=5) as client:
        yield client


# --- in the store ---------------------------------------------------------------------------------------------------


async def test_only_a_job_that_used_up_its_attempts_is_a_dead_letter(store: Store) -> None:
    """Another failure, a cancel and a success are ends like any other."""
    dead = await use_up(store, KIND)
    ends: list[tuple[str, dict[str, Any]]] = [
        ("succeeded", {"result": {"problem": {"code": "retries_exhausted"}}}),
        ("failed", {"problem": {"code": "rejected", "detail": "retries_exhausted"}, "partial": False}),
        ("cancelled", {"reason": "retries_exhausted", "by": "me"}),
    ]
    for type_, data in ends:
        await submit(store, KIND)
        await look_later(store, await end(store, await begin(store, "echo"), batch=1, type_=type_, data=data))

    found, cursor = await store.dead_jobs("echo", "me")

    assert [job.id for job in found] == [dead.id]
    assert cursor is None
    assert await store.count_dead(["echo"]) == {"echo": 1}


@pytest.mark.parametrize(("asked", "days"), [(None, 14), (3600.0, 1 / 24), (20 * 86_400.0, 20)])
async def test_a_dead_letter_is_kept_for_two_weeks_unless_its_job_says_otherwise(
    store: Store, asked: float | None, days: float
) -> None:
    """Who asked for the data to be gone sooner is obeyed."""
    dead = await use_up(store, KIND, options=JobOptions(retention_seconds=asked))

    assert dead.expires_ms is not None
    # The test has made the end 20 s older than it is.
    assert dead.ended_ms is not None
    assert dead.expires_ms - (dead.ended_ms + 20_000) == days * DAY_MS
    ttl = await store._client.pttl(store._keys.events(dead.id))
    assert days * DAY_MS - 10_000 < ttl <= days * DAY_MS
    [(_, score)] = await store._client.zrange(store._keys.dead("echo"), 0, -1, withscores=True)
    assert abs(score - dead.expires_ms) < 5_000


async def test_dead_letters_are_paged_by_owner(store: Store) -> None:
    """Each job once, whatever others have."""
    mine = [(await use_up(store, KIND)).id for _ in range(5)]
    for owner in ("you", "not|me", "e"):
        await use_up(store, KIND, owner=owner)

    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = await store.dead_jobs("echo", "me", cursor=cursor, limit=2)
        seen += [job.id for job in page]
        if cursor is None:
            break

    assert sorted(seen) == sorted(mine)
    assert [job.owner for job in (await store.dead_jobs("echo", "not|me"))[0]] == ["not|me"]


async def test_the_oldest_dead_letters_make_room(store: Store) -> None:
    """A kind whose every job fails must not fill Redis; what has expired goes first."""
    key = store._keys.dead("echo")
    later = {f"{i:026d}|me": 4e12 + i for i in range(MAX_DEAD)}
    await store._client.zadd(key, later | {"expired|me": 1})

    await use_up(store, KIND)

    assert await store._client.zcard(key) == MAX_DEAD
    assert await store._client.zscore(key, "expired|me") is None


async def test_a_second_last_look_changes_nothing(store: Store) -> None:
    """A looker may die between its last things and the drop."""
    dead = await use_up(store, KIND)

    await look_later(store, dead, seconds=0)

    assert await store.count_dead(["echo"]) == {"echo": 1}
    assert await store._client.zcard(store._keys.kind("echo")[1]) == 0


# --- over HTTP ------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_listed_for_its_owner_only(store: Store, tmp_path: Path) -> None:
    """And under its own kind only."""
    async with gateway_for(store, tmp_path / "b", api_keys=KEYS) as gateway:
        dead = await use_up(store, KIND, owner="me")
        mine = await gateway.get("/v1/kinds/echo/dead", headers=AS_ME)
        theirs = await gateway.get("/v1/kinds/echo/dead", headers=AS_OTHER)
        other_kind = await gateway.get("/v1/kinds/form/dead", headers=AS_ME)
        unknown = await gateway.get("/v1/kinds/nope/dead", headers=AS_ME)
        wrong = await gateway.get("/v1/kinds/echo/dead?limit=0", headers=AS_ME)

    assert [job["id"] for job in mine.json()["jobs"]] == [dead.id]
    assert mine.json()["jobs"][0]["problem"]["cause"] == "model_busy"
    assert theirs.json() == other_kind.json() == {"jobs": [], "cursor": None}
    assert (unknown.status, unknown.json()["code"]) == (404, "unknown_kind")
    assert wrong.status == 400


async def test_a_dead_letter_that_is_done_again_is_off_the_list(gateway: Gateway) -> None:
    """Also where the last look at it comes only afterwards; the job itself stays as it is."""
    dead = await use_up(gateway.store, KIND, owner="local")
    assert (await gateway.post(f"/v1/jobs/{dead.id}/retry")).status == 202

    await look_later(gateway.store, dead)

    assert (await gateway.get("/v1/kinds/echo/dead")).json()["jobs"] == []
    assert (await gateway.get(f"/v1/jobs/{dead.id}")).json()["problem"]["code"] == "retries_exhausted"


async def test_a_dead_letter_that_is_deleted_is_off_the_list(gateway: Gateway) -> None:
    """The record decides, not the pointer."""
    dead = await use_up(gateway.store, KIND, owner="local")

    assert (await gateway.ask("DELETE", f"/v1/jobs/{dead.id}")).status == 204

    assert (await gateway.get("/v1/kinds/echo/dead")).json()["jobs"] == []


async def test_a_retry_of_an_expired_job_leaves_no_record_behind(store: Store) -> None:
    """Between the read and the note its time may be over."""
    dead = await use_up(store, KIND)
    await store.delete(dead)

    await store.redone(dead, "a" * 26)

    assert await store._client.exists(store._keys.record(dead.id)) == 0


# --- the client and the command -------------------------------------------------------------------------------------


async def test_the_client_does_a_dead_letter_again(client: Client, store: Store) -> None:
    """Found, done again as a new job under a key, and gone from the list."""
    dead = await use_up(store, KIND, owner="local", input_={"a": 1})
    [found] = [job async for job in client.dead("echo")]

    new = await found.retry(idempotency_key="once")
    again = await client.retry(dead.id, idempotency_key="once")

    assert found.id == dead.id
    assert new.document.retry_of == dead.id
    assert (again.id, again.replayed, new.replayed) == (new.id, True, False)
    assert await store.input_of(new.id) == b'{"a":1}'
    assert [job async for job in client.dead("echo")] == []


async def test_a_living_job_is_not_done_again(client: Client, store: Store) -> None:
    """409, and nothing has changed: neither its log nor the queue."""
    job = await client.submit("echo")
    await begin(store, "echo")
    before = [entry.text for entry in (await store.events(job.id, START)).entries]

    with pytest.raises(Conflict) as refused:
        await job.retry()

    assert refused.value.code == "still_open"
    assert [entry.text for entry in (await store.events(job.id, START)).entries] == before
    assert await store.depths(["echo"]) == {"echo": (0, 1)}
    await client.cancel(job)


async def outlast(gateway: Gateway, *words: str) -> int:
    """Run a command in this process, as the shell would."""
    return await asyncio.to_thread(main, [*words, "--url", gateway.url])


async def test_the_command_lists_shows_and_redrives(
    gateway: Gateway, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often a redrive is repeated, a job is done again once."""
    first, second = [await use_up(store, KIND, owner="local") for _ in range(2)]

    assert await outlast(gateway, "dead", "list") == Exit.SUCCEEDED
    listed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert await outlast(gateway, "dead", "show", first.id) == Exit.SUCCEEDED
    shown = capsys.readouterr().out
    assert await outlast(gateway, "dead", "redrive", first.id) == Exit.SUCCEEDED
    assert await outlast(gateway, "dead", "redrive", first.id) == Exit.SUCCEEDED
    redriven = capsys.readouterr().out.splitlines()
    assert await outlast(gateway, "dead", "redrive", "--kind", "echo") == Exit.SUCCEEDED
    rest = capsys.readouterr().out.splitlines()
    assert await outlast(gateway, "dead", "list", "--kind", "echo") == Exit.SUCCEEDED

    assert {row[0] for row in listed} == {first.id, second.id}
    assert listed[0][1:3] == ["echo", "model_busy"]
    assert shown.startswith(f"{first.id}  echo  failed\n")
    assert redriven[1] == redriven[0] + " (as before)"
    assert [line.split()[0] for line in rest] == [second.id]
    assert capsys.readouterr().out == ""
    queued = [job for job in (await store.jobs("local"))[0] if job.state is State.QUEUED]
    assert sorted(str(job.retry_of) for job in queued) == sorted([first.id, second.id])


async def test_show_tells_what_each_attempt_failed_of(
    gateway: Gateway, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words of the log."""
    record = await submit(store, KIND, owner="local")
    lease = await begin(store, "echo")
    await store.retry(lease, 1, [], {"code": "model_busy", "detail": "The model is\n\x1b[31mbusy."}, 0, counts=True)
    await store.leave(lease, record, retry_after_seconds=0)
    lease = await begin(store, "echo")
    problem = {"code": "retries_exhausted", "cause": "worker_lost", "detail": "No more."}
    await end(store, lease, batch=1, type_="failed", data={"problem": problem, "partial": False})

    assert await outlast(gateway, "dead", "show", record.id) == Exit.SUCCEEDED

    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("  attempt 1, ")
    assert lines[-2].endswith("model_busy: The model is  [31mbusy.")
    assert lines[-1].endswith("retries_exhausted: No more.")


@pytest.mark.parametrize("words", [["dead", "redrive"], ["dead", "redrive", "a", "--kind", "echo"]])
async def test_a_redrive_of_nothing_or_of_two_things_says_what_to_name(
    gateway: Gateway, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and nothing is done."""
    assert await outlast(gateway, *words) == Exit.USAGE
    assert "Name the jobs" in capsys.readouterr().err


async def test_a_redrive_of_a_living_job_is_refused_in_words(
    gateway: Gateway, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with what to do first."""
    record = await submit(store, KIND, owner="local")

    assert await outlast(gateway, "dead", "redrive", record.id) == Exit.USAGE

    assert "has not ended" in capsys.readouterr().err
    assert len((await store.jobs("local"))[0]) == 1
