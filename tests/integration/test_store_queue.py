"""Queues, leases and looks: every job ends, whoever dies; no worker has more than it can begin."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from pydantic_core import from_json

from gateway.documents import KindDocument
from gateway.protocol import START, State
from gateway.requests import JobOptions
from gateway.store import JobRecord, Store
from tests.faults import PATIENCE_SECONDS
from tests.jobs import begin, end, event, look_later, new_job, submit

pytestmark = [
    pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True),
    pytest.mark.lease(0.6),
]
KIND = KindDocument(kind="echo")


async def look_until(store: Store, job: str, *states: State, seconds: float = PATIENCE_SECONDS) -> JobRecord:
    """Look again and again until a job is in one of these states."""
    async with asyncio.timeout(seconds):
        while (record := await store.job(job)).state not in states:
            await store.look(["echo"])
            await asyncio.sleep(0.02)
        return record


async def types_of(store: Store, job: str) -> list[str]:
    """The types of a job's events."""
    return [entry.type.decode() for entry in (await store.events(job, START)).entries]


async def test_a_claim_takes_only_as_many_as_were_asked_for(store: Store) -> None:
    """A worker with one free place never hoards."""
    for _ in range(3):
        await submit(store, KIND)

    assert len(await store.claim("echo", "w", 1)) == 1
    assert await store.depths(["echo"]) == {"echo": (2, 1)}
    assert len(await store.claim("echo", "w", 5)) == 2


async def test_two_workers_never_get_the_same_job(store: Store) -> None:
    """Claims are one script in one slot."""
    jobs = {(await submit(store, KIND)).id for _ in range(40)}

    claims = await asyncio.gather(*(store.claim("echo", f"w{i}", 3) for i in range(20)))

    taken = [claim.job for mine in claims for claim in mine]
    assert len(taken) == len(set(taken)) == 40
    assert set(taken) == jobs


async def test_a_bell_wakes_an_idle_worker(store: Store) -> None:
    """Nobody polls to hear of a job soon."""
    waiting = asyncio.create_task(store.wait_for_work(["echo"], 100))
    await asyncio.sleep(0)

    await submit(store, KIND)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting


async def test_a_dead_workers_job_is_taken_over_after_its_lease(store: Store) -> None:
    """The look counts the failure, says so in the log, and puts the job back."""
    record = await submit(store, KIND)
    await begin(store, "echo", "dead")

    again = await look_until(store, record.id, State.QUEUED)

    assert again.failures == 1
    lease = await begin(store, "echo", "next")
    assert lease.attempt == 2
    await end(store, lease, batch=1)
    assert await types_of(store, record.id) == ["queued", "started", "retrying", "started", "succeeded"]


async def test_one_look_is_enough_for_all_that_a_worker_leaves(store: Store) -> None:
    """However many attempts fall with it: the last of them is taken over as soon as the first."""
    jobs = [record.id for record in await asyncio.gather(*(submit(store, KIND) for _ in range(150)))]
    await store._client.zadd(store._keys.kind("echo")[1], dict.fromkeys(jobs, 0))

    assert await store.look(["echo"]) == len(jobs)


@pytest.mark.parametrize("left", ["output", "delta", None])
async def test_a_job_that_kills_every_worker_is_given_up(store: Store, left: str | None) -> None:
    """The attempts limit ends a poison job with its cause, and its end says whether it has left something."""
    kind = KindDocument(kind="echo", max_attempts=2)
    await store.register_kind(kind)
    record = await submit(store, kind)

    lease = await begin(store, "echo")
    if left is not None:
        await store.append(lease, 1, [event(left, {"index": "1", "text": "x"}, "1")])
    await look_until(store, record.id, State.QUEUED)
    await begin(store, "echo")
    ended = await look_until(store, record.id, State.FAILED)

    problem = ended.end_data()["problem"]
    assert (problem["code"], problem["cause"]) == ("retries_exhausted", "worker_lost")
    assert ended.end_data()["partial"] is (left is not None)


async def test_a_renewed_lease_is_not_taken_away(store: Store) -> None:
    """A worker that shows itself keeps its job for longer than one lease."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    renewer = store.renewer("worker")
    try:
        until = asyncio.get_running_loop().time() + 2.5 * store.lease_seconds
        while asyncio.get_running_loop().time() < until:
            assert not (await asyncio.to_thread(renewer.renew, [lease]))[record.id].lost
            await store.look(["echo"])
            await asyncio.sleep(store.lease_seconds / 5)
    finally:
        renewer.close()

    assert (await store.job(record.id)).state is State.RUNNING
    await end(store, lease, batch=1)


async def test_a_lost_lease_is_not_renewed(store: Store) -> None:
    """A worker that wakes up too late hears that its job is gone."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await look_until(store, record.id, State.QUEUED)
    renewer = store.renewer("worker")
    try:
        assert (await asyncio.to_thread(renewer.renew, [lease]))[record.id].lost
    finally:
        renewer.close()


async def test_a_release_costs_no_attempt_and_a_failure_does(store: Store) -> None:
    """`attempt` always grows; `failures` counts towards the limit."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.retry(lease, 1, [event("log", {"message": "flushed"})], {"code": "worker_stopping"}, 0, counts=False)
    await store.leave(lease, record, retry_after_seconds=0)
    lease = await begin(store, "echo")
    await store.retry(lease, 1, [], {"code": "processor_error"}, 0, counts=True)
    await store.leave(lease, record, retry_after_seconds=0)

    now = await store.job(record.id)

    assert (now.attempt, now.failures, now.state) == (2, 1, State.QUEUED)


async def test_a_retry_waits_for_its_delay(store: Store) -> None:
    """Until then the job is in no queue; then a look puts it there."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.retry(lease, 1, [], {"code": "processor_error"}, 0.4, counts=True)
    await store.leave(lease, record, retry_after_seconds=0.4)
    assert await store.claim("echo", "w", 1) == []

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (claims := await store.claim("echo", "w", 1)):
            await store.look(["echo"])
            await asyncio.sleep(0.02)

    begun = await store.begin(claims[0], "w")
    assert begun.record is not None
    assert begun.record.attempt == 2
    texts = [from_json(entry.text) for entry in (await store.events(record.id, START)).entries]
    retrying = next(text for text in texts if text["type"] == "retrying")
    assert retrying["data"]["delay_seconds"] == 0.4


async def test_a_paused_kind_is_not_claimed(store: Store) -> None:
    """Until it is resumed; what waits is still there."""
    record = await submit(store, KIND)
    await store.pause("echo", True)
    assert await store.claim("echo", "w", 5) == []

    await store.pause("echo", False)

    assert [claim.job for claim in await store.claim("echo", "w", 5)] == [record.id]


async def test_a_job_for_later_waits_for_its_start(store: Store) -> None:
    """`start_at` keeps a job out of the queue until then."""
    start = datetime.now(UTC) + timedelta(seconds=0.5)
    record = await submit(store, KIND, options=JobOptions(start_at=start))
    assert await store.claim("echo", "w", 1) == []

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await store.claim("echo", "w", 1):
            await store.look(["echo"])
            await asyncio.sleep(0.02)

    assert datetime.now(UTC) >= start
    assert (await store.job(record.id)).state is State.QUEUED


@pytest.mark.parametrize("waits_for", ["its next attempt", "a child"])
async def test_a_repeated_submit_queues_nothing_that_waits(store: Store, waits_for: str) -> None:
    """Such a job has had its turn: queued once more, it would be claimed too early, and charged for twice."""
    job = await store.job_id("me", "key")
    record = (await store.submit(job, new_job(KIND), keyed=True)).record
    lease = await begin(store, "echo")
    if waits_for == "a child":
        await store.wait_for_child(lease, record, "c" * 26)
    else:
        await store.retry(lease, 1, [], {"code": "x"}, 60, counts=True)
        await store.leave(lease, record, retry_after_seconds=60)

    again = await store.submit(job, new_job(KIND), keyed=True)

    assert again.replayed
    assert await store.depths(["echo"]) == {"echo": (0, 0)}


async def test_a_job_that_nobody_begins_fails_at_its_start_deadline(store: Store) -> None:
    """Also with no worker at all: a look is enough."""
    record = await submit(store, KIND, options=JobOptions(start_deadline_seconds=0.3))

    ended = await look_until(store, record.id, State.FAILED)

    assert ended.end_data()["problem"]["code"] == "start_deadline"
    assert await store.depths(["echo"]) == {"echo": (0, 0)}


async def test_a_job_that_was_cancelled_while_its_worker_was_dead_ends_as_cancelled(store: Store) -> None:
    """The wish outlives the worker."""
    record = await submit(store, KIND)
    await begin(store, "echo", "dead")
    await store.cancel(record.id, "me", "enough")

    ended = await look_until(store, record.id, State.CANCELLED, State.QUEUED)

    assert ended.state is State.CANCELLED


async def test_a_submit_that_died_after_the_record_was_made_is_finished(store: Store) -> None:
    """The due entry was there first, so a look puts the job into the queue."""
    record = await submit(store, KIND)
    keys = store._keys.kind("echo")
    await store._client.delete(keys[0], keys[6])
    await store._client.zadd(keys[1], {record.id: 0})

    await store.look(["echo"])

    assert (await store.claim("echo", "w", 1))[0].job == record.id


async def test_a_sweep_finds_open_jobs_that_lost_their_due_entry(store: Store) -> None:
    """A failover may lose the pointers of a kind altogether."""
    record = await submit(store, KIND)
    await store._client.delete(*store._keys.kind("echo"))

    assert await store.sweep() == 1

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (claims := await store.claim("echo", "w", 1)):
            await store.look(["echo"])
    assert claims[0].job == record.id


async def test_high_priority_goes_first_and_low_is_not_starved(store: Store) -> None:
    """Of two owners' backlogs, high goes sixteen times as often as low: low's first turn shares its score with the
    sixteenth of high.
    """
    for _ in range(20):
        await submit(store, KIND, owner="slow", options=JobOptions(priority="low"))
    for _ in range(40):
        await submit(store, KIND, owner="fast", options=JobOptions(priority="high"))

    order = []
    while claims := await store.claim("echo", "w", 1):
        order.append((await store.job(claims[0].job)).priority)

    assert order[:15] == ["high"] * 15
    assert order[:34].count("low") == 2


async def test_owners_with_one_job_at_a_time_starve_nobody(store: Store) -> None:
    """Who always has nothing waiting goes first, but not for ever: each turn of theirs brings the others' nearer."""
    patient = await submit(store, KIND, owner="patient", options=JobOptions(priority="low"))
    turns = 0
    while True:
        await submit(store, KIND, owner=f"quick{turns}", options=JobOptions(priority="high"))
        turns += 1
        if (await store.claim("echo", "w", 1))[0].job == patient.id:
            break

    assert 16 <= turns <= 33


async def test_the_wait_is_estimated_from_how_long_attempts_took(store: Store) -> None:
    """A turn comes after the usual time of an attempt, divided by those that run; the newest count most."""
    running = [await submit(store, KIND) for _ in range(3)]
    leases = [await begin(store, "echo") for _ in running]
    waiting = [await submit(store, KIND) for _ in range(4)]

    async def estimates() -> list[float | None]:
        return [place and place.eta_seconds for place in await store.positions(waiting)]

    async def leave(seconds: float) -> None:
        lease = leases.pop()
        await store.leave(lease, await store.job(lease.job), ran_seconds=seconds)

    await store.present("w", ["echo"], 2)
    assert await estimates() == [None] * 4
    await leave(10)
    assert sorted(await estimates(), key=str) == [10.0, 15.0, 20.0, 5.0]
    await leave(35)
    assert max(await estimates(), key=lambda eta: eta or 0) == 4 * 15.0
    # An attempt that was broken off tells nothing.
    await leave(0)
    assert max(await estimates(), key=lambda eta: eta or 0) == 4 * 15.0

    await store.absent("w", ["echo"], 2)
    assert await estimates() == [None] * 4


async def test_a_repeated_leave_counts_once(store: Store) -> None:
    """A lost reply makes the worker send it again."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    for seconds in (10, 100):
        await store.leave(lease, record, ran_seconds=seconds)
    waiting = await submit(store, KIND)
    await store.present("w", ["echo"], 1)

    assert [place and place.eta_seconds for place in await store.positions([waiting])] == [10.0]


async def test_a_cap_per_kind_holds_over_all_workers(store: Store) -> None:
    """`max_running` counts what is in hand anywhere."""
    kind = KindDocument(kind="echo", max_running=2)
    await store.register_kind(kind)
    for _ in range(5):
        await submit(store, kind)

    first = await store.claim("echo", "a", 5)
    assert len(first) == 2
    assert await store.claim("echo", "b", 5) == []
    begun = await store.begin(first[0], "a")
    assert begun.lease is not None
    await end(store, begun.lease, batch=1)

    assert len(await store.claim("echo", "b", 5)) == 1


async def test_an_ended_job_leaves_no_pointer_behind(store: Store) -> None:
    """After the last look nothing points to it any more."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await end(store, lease, batch=1)

    # The end is looked at once more, ten seconds later.
    await look_later(store, record)

    assert await store._client.zcard(store._keys.kind("echo")[1]) == 0
    assert await store.depths(["echo"]) == {"echo": (0, 0)}
