"""A process that dies between two calls to Redis, at each such place: no job is lost, none runs twice.

Each place is a test with real processes. What the places are is read off the server (`MONITOR`), so that a new call
without its test fails here.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from gateway.blobs import Blobs
from gateway.requests import JobOptions
from gateway.store import Store
from gateway.store.scripts import _FOLDER, load
from tests.faults import wait_until
from tests.gateway_process import is_ready
from tests.integration.test_worker import working
from tests.jobs import submit
from tests.nodes import Node, node
from tests.ports import free_port
from tests.serving import Gateway, gateway_for
from tests.worker_jobs import end_of, log_of

pytestmark = pytest.mark.lease(0.6)
SUBMIT = ("reserve", "create", "enqueue", "list")
BEGIN = ("claim", "begin", "settle/running")
RETRY = ("append/retrying", "leave")
END = ("append/succeeded", "leave")
# A look at a job whose worker died, and at one that has ended.
LOOK = ("take", "judge", "settle/queue")
LAST_LOOK = ("take", "judge", "list", "bury", "settle/drop")
# A submit of a new job, and the note in the old one.
REDRIVE = (*SUBMIT, "redo")
# A look at a job that nobody listens to, though it was to be cancelled then.
LONELY_LOOK = ("judge", "cancel")
BODY = {"input": {"to": 3}}
KEYED = {"Idempotency-Key": "the-same"}


def settings_for(store: Store, folder: Path, **more: Any) -> dict[str, Any]:
    """The settings of a node beside the test's store."""
    return {
        "redis_url": store._url,
        "prefix": store._keys.prefix,
        "lease_seconds": store.lease_seconds,
        "data": folder,
        "blob_url": (folder / "blobs").as_uri(),
        "stop_grace_seconds": 0,
        "drain_seconds": 0,
    } | more


@asynccontextmanager
async def gateway_node(store: Store, folder: Path, halt: str) -> AsyncIterator[tuple[Node, str]]:
    """A gateway that halts, and its URL."""
    port = free_port()
    durability = "disk" if halt == "durable" else "redis"
    settings = settings_for(store, folder, port=port, durability=durability)
    async with node("gateway", "doomed", folder, settings, halt=halt) as doomed:
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session:
            await wait_until(lambda: is_ready(session, url), what="readiness")
        yield doomed, url


@pytest.fixture
async def healthy(store: Store, blobs: Blobs, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that lives."""
    for kind in ("count", "failing", "gated"):
        await store.register_kind(_kind(kind))
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


def _kind(name: str) -> Any:
    from tests.integration.test_worker import KINDS

    return KINDS[name].document


async def jobs_in_redis(store: Store) -> list[str]:
    """Every job that there is, whether anybody knows of it or not."""
    names = [name async for name in store._client.scan_iter(f"{store._keys.prefix}:{{*}}:job", count=1000)]
    return [store._keys.job_of(name.decode()) for name in names]


async def look_at_once(store: Store, kind: str) -> None:
    """Let 30 s pass for the entries of half-done submits: they are due now."""
    keys = store._keys.kind(kind)
    for job in await store._client.zrange(keys[1], 0, -1):
        await store._client.zadd(keys[1], {job: 0})


async def grow_old(store: Store, job: str) -> None:
    """Let the time pass after which an ended job is looked at for the last time."""
    record = await store.job(job)
    await store._client.hincrby(store._keys.record(job), "ended", -20_000)
    await look_at_once(store, record.kind)


async def submit_over(gateway: Gateway, kind: str, input_: dict[str, Any]) -> str:
    """A keyed submit; returns the job's id."""
    answer = await gateway.post(f"/v1/kinds/{kind}/jobs", json={"input": input_}, headers=KEYED)
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


async def check_end(store: Store, job: str, *, attempts: int) -> None:
    """One job, one end, a whole log, and no more attempts than these."""
    await end_of(store, job)
    events = await log_of(store, job)
    assert [event.terminal for event in events].count(True) == 1
    assert events[-1].terminal
    assert [event.type for event in events].count("started") <= attempts
    assert await jobs_in_redis(store) == [job]


# --- submit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*SUBMIT, "durable"])
async def test_a_gateway_that_dies_in_a_submit_makes_one_job_or_none(
    store: Store, blobs: Blobs, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """The client's retry with the same key finds the job or makes it; it runs once."""
    async with gateway_node(store, tmp_path, place) as (doomed, url), aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{url}/v1/kinds/count/jobs", json=BODY, headers=KEYED)
        assert await doomed.ended() == -signal.SIGKILL

    assert len(await jobs_in_redis(store)) == (place != "reserve")
    async with working(store, blobs, "count"):
        job = await submit_over(healthy, "count", BODY["input"])
        await check_end(store, job, attempts=1)
        assert await submit_over(healthy, "count", BODY["input"]) == job
        await check_end(store, job, attempts=1)


@pytest.mark.parametrize("place", ["create", "enqueue"])
async def test_a_job_whose_submit_was_never_finished_ends_all_the_same(
    store: Store, blobs: Blobs, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """Nobody comes back for it: a look finishes the submit."""
    async with gateway_node(store, tmp_path, place) as (doomed, url), aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{url}/v1/kinds/count/jobs", json=BODY)
        await doomed.ended()

    [job] = await jobs_in_redis(store)
    await look_at_once(store, "count")
    async with working(store, blobs, "count"):
        await check_end(store, job, attempts=1)


# --- begin, retry, end --------------------------------------------------------------------------------------------


async def run_with_a_death(healthy: Gateway, folder: Path, place: str, kind: str, input_: dict[str, Any]) -> str:
    """Submit a job, let a worker take it that halts at the place, then let a good one work; returns the job."""
    job = await submit_over(healthy, kind, input_)
    settings = settings_for(healthy.store, folder)
    async with node("tests.worker_kinds", "doomed", folder, settings, halt=place) as doomed:
        assert await doomed.ended() == -signal.SIGKILL
    return job


@pytest.mark.parametrize(
    ("place", "attempts"), [*((place, 2) for place in BEGIN), *((place, 1) for place in END)], ids=[*BEGIN, *END]
)
async def test_a_worker_that_dies_in_begin_or_end_leaves_one_end(
    healthy: Gateway, tmp_path: Path, place: str, attempts: int
) -> None:
    """Before the end another attempt takes over; after it nothing runs again, whatever pointers are left."""
    store, blobs = healthy.store, healthy.blobs
    # It goes on for longer than it takes to note the attempt in the kind's slot.
    gate = tmp_path / "gate"
    kind, input_ = ("gated", {"gate": str(gate)}) if place == "settle/running" else ("count", BODY["input"])
    job = await run_with_a_death(healthy, tmp_path, place, kind, input_)
    gate.touch()

    async with working(store, blobs, kind):
        await check_end(store, job, attempts=attempts)
        assert await submit_over(healthy, kind, input_) == job
        await look_at_once(store, kind)
        await wait_until(lambda: _nothing_in_hand(store, kind))
        await check_end(store, job, attempts=attempts)


@pytest.mark.parametrize("place", RETRY)
async def test_a_worker_that_dies_in_a_retry_costs_no_further_attempt(
    store: Store, blobs: Blobs, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """`retrying` is in the log: the job waits for its second attempt, and that one is the last."""
    input_ = {"how": "retry", "then": "succeed"}
    job = await run_with_a_death(healthy, tmp_path, place, "failing", input_)
    assert (await store.job(job)).failures == 1

    async with working(store, blobs, "failing"):
        assert await submit_over(healthy, "failing", input_) == job
        await check_end(store, job, attempts=2)
    record = await store.job(job)
    assert (record.state, record.attempt, record.failures) == ("succeeded", 2, 1)


@pytest.mark.parametrize("place", ["claim", "begin", "append/succeeded"])
async def test_a_worker_that_stops_there_and_wakes_up_late_changes_nothing(
    store: Store, blobs: Blobs, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """Its reply arrives after the job has gone on without it."""
    job = await submit_over(healthy, "count", BODY["input"])
    settings = settings_for(store, tmp_path)
    async with node("tests.worker_kinds", "sleeper", tmp_path, settings, halt=f"{place}:1:STOP") as sleeper:
        await sleeper.halted()
        async with working(store, blobs, "count"):
            await check_end(store, job, attempts=2)
            ended = await log_of(store, job)
        sleeper.signal(signal.SIGCONT)
        # It has heard what became of the job when it takes another one.
        other = await _submit_another(healthy)
        await end_of(store, other)
        sleeper.signal(signal.SIGTERM)
        assert await sleeper.ended() == 0

    assert await log_of(store, job) == ended


async def _submit_another(gateway: Gateway) -> str:
    answer = await gateway.post("/v1/kinds/count/jobs", json=BODY)
    return str(answer.json()["id"])


async def _nothing_in_hand(store: Store, kind: str) -> bool:
    return (await store.depths([kind]))[kind] == (0, 0)


# --- look ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", LOOK)
async def test_a_looker_that_dies_in_a_takeover_is_replaced(
    store: Store, blobs: Blobs, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """Whatever it has done of a look, the next look does the rest, and counts the failure once."""
    job = await submit_over(healthy, "count", BODY["input"])
    [claim] = await store.claim("count", "dead", 1)
    await store.begin(claim, "dead")
    await look_at_once(store, "count")
    async with gateway_node(store, tmp_path, place) as (doomed, _):
        assert await doomed.ended() == -signal.SIGKILL

    async with working(store, blobs, "count"):
        await check_end(store, job, attempts=2)
    assert (await store.job(job)).failures == 1


@pytest.mark.parametrize("place", LAST_LOOK)
async def test_a_looker_that_dies_over_an_ended_job_leaves_it_to_the_next(
    store: Store, blobs: Blobs, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """The last look is done by whoever comes next: then nothing points to the job any more."""
    async with working(store, blobs, "failing"):
        job = await submit_over(healthy, "failing", {"how": "retry"})
        await end_of(store, job)
    await grow_old(store, job)
    async with gateway_node(store, tmp_path, place) as (doomed, _):
        assert await doomed.ended() == -signal.SIGKILL

    await look_at_once(store, "failing")
    await store.look(["failing"])
    assert await _forgotten(store, "failing")
    assert await store._client.zcard(store._keys.dead("failing")) == 1
    await check_end(store, job, attempts=2)


@pytest.mark.parametrize("place", LONELY_LOOK)
async def test_a_looker_that_dies_over_a_lonely_job_leaves_it_cancelled_once(
    store: Store, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """The next one finds it asked to stop, or asks."""
    options = JobOptions(on_disconnect="cancel", disconnect_grace_seconds=0.1)
    record = await submit(store, _kind("count"), owner="local", options=options)
    async with gateway_node(store, tmp_path, place) as (doomed, _):
        assert await doomed.ended() == -signal.SIGKILL

    async def cancelled() -> bool:
        await look_at_once(store, "count")
        await store.look(["count"])
        return (await store.job(record.id)).terminal

    await wait_until(cancelled)
    assert [event.type for event in await log_of(store, record.id)] == ["queued", "cancelled"]


# --- redrive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", REDRIVE)
async def test_a_gateway_that_dies_in_a_redrive_makes_one_new_job(
    store: Store, blobs: Blobs, healthy: Gateway, tmp_path: Path, place: str
) -> None:
    """The same request again finds the new job or makes it, and the old one knows it."""
    async with working(store, blobs, "count"):
        old = await submit_over(healthy, "count", BODY["input"])
        await end_of(store, old)
        again = {"Idempotency-Key": "again"}
        async with gateway_node(store, tmp_path, place) as (doomed, url), aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(f"{url}/v1/jobs/{old}/retry", headers=again)
            assert await doomed.ended() == -signal.SIGKILL
        answers = [await healthy.post(f"/v1/jobs/{old}/retry", headers=again) for _ in range(2)]
        new = answers[0].json()["id"]
        record = await end_of(store, new)

    assert [(answer.status, answer.json()["id"]) for answer in answers] == [(202, new), (202, new)]
    assert sorted(await jobs_in_redis(store)) == sorted([old, new])
    assert (record.attempt, record.retry_of) == (1, old)
    assert (await store.job(old)).redone_as == new


# --- the list of places is complete -------------------------------------------------------------------------------


@asynccontextmanager
async def monitored(store: Store) -> AsyncIterator[set[str]]:
    """What Redis is asked to do in the block: names of scripts, and `list`."""
    names = {load(path.stem).sha: path.stem for path in _FOLDER.glob("*.lua") if not path.stem.startswith("lib_")}
    called: set[str] = set()

    async def listen(monitor: Any) -> None:
        while True:
            words = str((await monitor.next_command())["command"]).split(maxsplit=2)
            if words[0] == "EVALSHA":
                called.add(names[words[1]])
            elif words[0] == "ZADD" and ":jobs:" in words[1]:
                called.add("list")

    async with redis.asyncio.Redis.from_url(store._url) as client, client.monitor() as monitor:
        listening = asyncio.create_task(listen(monitor))
        try:
            yield called
        finally:
            listening.cancel()
            await asyncio.wait({listening})


async def test_every_call_of_a_jobs_life_has_its_place_here(store: Store, blobs: Blobs, healthy: Gateway) -> None:
    """From the submit to the last look and a redrive, Redis hears nothing that no test above halts after."""
    async with working(store, blobs, "failing"), monitored(store) as called:
        job = await submit_over(healthy, "failing", {"how": "retry"})
        await end_of(store, job)
        await grow_old(store, job)
        await wait_until(lambda: _forgotten(store, "failing"))
        answer = await healthy.post(f"/v1/jobs/{job}/retry")
        await end_of(store, answer.json()["id"])

    places = {place.partition("/")[0] for place in (*SUBMIT, *BEGIN, *RETRY, *END, *LOOK, *LAST_LOOK, *REDRIVE)}
    # A renewal and a worker's sign of life are one call each, and repeated by themselves.
    assert called - {"renew", "present"} == places


async def _forgotten(store: Store, kind: str) -> bool:
    return not await store._client.zcard(store._keys.kind(kind)[1])
