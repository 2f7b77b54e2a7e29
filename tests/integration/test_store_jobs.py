"""Submitting, reading, listing and cancelling jobs, against a real server."""

from __future__ import annotations

import asyncio

import pytest

from gateway.documents import KindDocument
from gateway.errors import Gone, KeyReused, NotFound, TooMany, Unavailable
from gateway.protocol import State
from gateway.requests import JobOptions
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS
from tests.jobs import begin, end, new_job, submit

pytestmark = pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True)
KIND = KindDocument(kind="echo")


async def test_a_submitted_job_is_queued_and_its_log_starts_with_one(store: Store) -> None:
    """After a submit the record, the log and the queue say the same."""
    record = await submit(store, KIND)

    assert record.state is State.QUEUED
    assert record.last.number == 1
    page = await store.events(record.id, record.last._replace(number=0, time_ms=None))
    assert [entry.type for entry in page.entries] == [b"queued"]
    assert await store.positions([record]) == [(1, None)]


async def test_the_same_key_and_body_is_the_same_job(store: Store) -> None:
    """A repeated submit is replayed and puts nothing into the queue twice."""
    job = await store.job_id("me", "key")
    first = await store.submit(job, new_job(KIND), keyed=True)
    assert await store.job_id("me", "key") == job

    second = await store.submit(job, new_job(KIND), keyed=True)

    assert not first.replayed
    assert second.replayed
    assert second.record.id == first.record.id
    assert await store.depths(["echo"]) == {"echo": (1, 0)}


async def test_the_same_key_of_another_owner_is_another_job(store: Store) -> None:
    """Keys belong to owners, also where their texts run together."""
    assert await store.job_id("a", "bc") != await store.job_id("ab", "c")


async def test_the_same_key_with_another_body_is_refused(store: Store) -> None:
    """A key names one request for ever."""
    job = await store.job_id("me", "key")
    await store.submit(job, new_job(KIND), keyed=True)

    with pytest.raises(KeyReused):
        await store.submit(job, new_job(KIND, fingerprint="other"), keyed=True)


async def test_fifty_submits_with_one_key_at_once_make_one_job(store: Store) -> None:
    """However many gateways get the retry, one of them makes the job."""
    job = await store.job_id("me", "key")

    answers = await asyncio.gather(*(store.submit(job, new_job(KIND), keyed=True) for _ in range(50)))

    assert sum(not answer.replayed for answer in answers) == 1
    assert await store.depths(["echo"]) == {"echo": (1, 0)}


async def test_a_full_queue_refuses_new_jobs_and_replays_accepted_ones(store: Store) -> None:
    """Bounds are for what is new: a job that was accepted is never answered with 429."""
    kind = KindDocument(kind="echo", max_waiting=3, max_waiting_per_owner=2)
    await store.register_kind(kind)
    keyed = await store.job_id("me", "key")
    await store.submit(keyed, new_job(kind), keyed=True)
    await submit(store, kind)

    with pytest.raises(TooMany) as refused:
        await submit(store, kind)
    assert refused.value.code == "owner_queue_full"
    assert (await store.submit(keyed, new_job(kind), keyed=True)).replayed

    await submit(store, kind, owner="other")
    with pytest.raises(Unavailable) as full:
        await submit(store, kind, owner="third")
    assert full.value.code == "queue_full"
    assert full.value.retry_after_seconds


async def test_the_users_of_one_key_have_no_more_places_than_an_owner(store: Store) -> None:
    """Whoever mints tokens names as many users as he likes: together they must not fill a queue that is everybody's."""
    kind = KindDocument(kind="echo", max_waiting_per_owner=2)
    await store.register_kind(kind)
    for user in ("me/anna", "me/boris"):
        await submit(store, kind, owner=user)

    with pytest.raises(TooMany, match="together") as refused:
        await submit(store, kind, owner="me/cleo")
    assert refused.value.code == "owner_queue_full"
    for another in ("me", "other/anna", "mee/anna"):
        await submit(store, kind, owner=another)
    while not (await begin_any(store, kind)).startswith("me/"):
        pass
    await submit(store, kind, owner="me/cleo")


async def begin_any(store: Store, kind: KindDocument) -> str:
    """Takes the next job of a kind; returns whose it is."""
    return (await store.job((await begin(store, kind.kind)).job)).owner


async def test_an_unknown_job_is_not_found(store: Store) -> None:
    """No record and no tombstone: 404."""
    with pytest.raises(NotFound):
        await store.job("a" * 26)


async def test_an_expired_job_is_gone_and_says_whose_it_was(store: Store) -> None:
    """After the retention time the tombstone answers, for reads and for the same key."""
    kind = KindDocument(kind="echo", retention_seconds=0.2)
    await store.register_kind(kind)
    job = await store.job_id("me", "key")
    record = (await store.submit(job, new_job(kind), keyed=True)).record
    await store.cancel(record.id, "me", "not needed")

    async def expired() -> Gone:
        while True:
            try:
                await store.job(job)
            except Gone as gone:
                return gone

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await expired()).owner == "me"
    with pytest.raises(Gone):
        await store.submit(job, new_job(kind), keyed=True)
    with pytest.raises(Gone):
        await store.events(job, record.last)


async def test_cancelling_a_queued_job_ends_it_at_once(store: Store) -> None:
    """Nobody has begun it, so nobody has to stop."""
    record = await submit(store, KIND)

    cancelled = await store.cancel(record.id, "me", "changed my mind")

    assert cancelled.state is State.CANCELLED
    assert cancelled.end_data() == {"reason": "changed my mind", "by": "me"}
    assert (await store.cancel(record.id, "me", "again")).last == cancelled.last


async def test_cancelling_a_running_job_is_a_request_that_its_writer_hears(store: Store) -> None:
    """The end is the attempt's: it alone knows when it has stopped."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")

    asked = await store.cancel(record.id, "me", "enough")
    await store.cancel(record.id, "me", "enough, I said")

    assert asked.state is State.RUNNING
    assert asked.cancel_by == "me"
    assert (await store.append(lease, 1, [])).cancel_by == "me"
    ended = await end(store, lease, batch=2, type_="cancelled", data={"reason": "enough", "by": "me"})
    assert ended.state is State.CANCELLED
    types = [entry.type for entry in (await store.events(record.id, record.last)).entries]
    assert types == [b"started", b"cancel_requested", b"cancelled"]


async def test_jobs_are_listed_newest_first_in_pages_and_filtered(store: Store) -> None:
    """An owner sees all of their own jobs, once, and nobody else's."""
    made = []
    for i in range(7):
        made.append((await submit(store, KIND, options=JobOptions(tags=["odd" if i % 2 else "even"]))).id)
        await asyncio.sleep(0.002)  # Jobs of one millisecond share a page.
    await submit(store, KIND, owner="other")
    await store.cancel(made[0], "me", "")

    seen: list[str] = []
    cursor = None
    while True:
        records, cursor = await store.jobs("me", limit=3, cursor=cursor)
        seen += [record.id for record in records]
        if cursor is None:
            break

    assert seen == made[::-1]
    assert [record.id for record in (await store.jobs("me", tag="odd"))[0]] == made[5::-2]
    assert [record.id for record in (await store.jobs("me", state=State.CANCELLED))[0]] == made[:1]
    assert (await store.jobs("me", kind="other"))[0] == []


async def test_a_filter_that_nothing_passes_reads_a_bounded_number_of_jobs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is empty, and its cursor goes on: one request must not read ten thousand jobs and their results."""
    monkeypatch.setattr("gateway.store.jobs._READ_JOBS", 2)
    monkeypatch.setattr("gateway.store.jobs._MOST_READ", 4)
    oldest = (await submit(store, KIND, options=JobOptions(tags=["rare"]))).id
    for _ in range(9):
        await asyncio.sleep(0.002)  # Jobs of one millisecond are read together.
        await submit(store, KIND)

    pages: list[list[str]] = []
    cursor = None
    while not pages or cursor is not None:
        records, cursor = await store.jobs("me", tag="rare", cursor=cursor)
        pages.append([record.id for record in records])

    assert pages == [[], [], [oldest]]


async def test_large_results_are_spread_over_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is sent as a whole, so it has a size, whatever number was asked for."""
    monkeypatch.setattr("gateway.store.jobs._PAGE_BYTES", 1000)
    made = []
    for _ in range(5):
        made.append((await submit(store, KIND)).id)
        await end(store, await begin(store, "echo"), batch=1, data={"result": "x" * 600})
        await asyncio.sleep(0.002)  # Jobs of one millisecond share a page.

    pages: list[list[str]] = []
    cursor = None
    while not pages or cursor is not None:
        records, cursor = await store.jobs("me", limit=200, cursor=cursor)
        pages.append([record.id for record in records])

    assert pages == [made[:2:-1], made[2:0:-1], made[:1]]


async def test_names_that_users_choose_stay_inside_their_key(store: Store) -> None:
    """An owner full of separators owns exactly their own jobs."""
    evil = "a}:b{|*\n"
    record = await submit(store, KIND, owner=evil)

    assert (await store.job(record.id)).owner == evil
    assert await store.positions([await store.job(record.id)]) == [(1, None)]
    lease = await begin(store, "echo")
    assert lease.job == record.id
    assert await store.depths(["echo"]) == {"echo": (0, 1)}


async def test_an_ended_job_keeps_no_key_without_a_ttl(store: Store) -> None:
    """A terminal event puts every key of its job on the way out."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await end(store, lease, batch=1)

    client, keys = store._client, store._keys.job(record.id)
    ttls = {key: await client.pttl(key) for key in keys if await client.exists(key)}

    assert ttls
    assert all(ttl > 0 for ttl in ttls.values()), ttls


async def test_jobs_of_one_millisecond_are_all_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the list is read in pieces that end in the middle of it."""
    monkeypatch.setattr("gateway.store.jobs._READ_JOBS", 2)
    submitted = {(await submit(store, KIND)).id for _ in range(7)}
    same = dict.fromkeys(submitted, 1_700_000_000_000)
    await store._client.zadd(store._keys.owner("me"), same)

    records, _ = await store.jobs("me")

    assert {record.id for record in records} == submitted
    assert len(records) == 7
