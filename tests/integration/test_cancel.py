"""A cancel reaches a processor at once, and whatever it races with, a job ends exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from gateway.blobs import Blobs
from gateway.documents import KindDocument
from gateway.errors import LeaseLost, Unavailable
from gateway.event_text import decode_event
from gateway.protocol import START, TERMINAL_TYPES, State
from gateway.store import Lease, Store
from tests.integration.test_worker import seen, working
from tests.integration.test_worker import submit as submit_to_worker
from tests.jobs import begin, event, submit
from tests.worker_jobs import end_of, log_of

KIND = KindDocument(kind="echo")
REACHES_SECONDS = 0.2


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["gated", "polite"])
async def test_a_cancel_reaches_a_processor_within_200_ms(
    valkey: str, prefix: str, blobs: Blobs, tmp_path: Path, kind: str
) -> None:
    """From the request to the proof that it has stopped; most times, since a test's machine may be busy elsewhere."""
    # A renewal could not bring it in this time.
    store = await Store.connect(valkey, prefix=prefix, lease_seconds=30)
    took = []
    async with working(store, blobs, kind):
        for _ in range(9):
            job = await submit_to_worker(store, kind, {"gate": str(tmp_path / "never")})
            await seen(store, job, "output")
            await store.cancel(job, "me", "enough")
            await end_of(store, job)
            asked, stopped = (await log_of(store, job))[-2:]
            assert (asked.type, stopped.type) == ("cancel_requested", "cancelled")
            assert asked.cursor is not None
            assert stopped.cursor is not None
            took.append(((stopped.cursor.time_ms or 0) - (asked.cursor.time_ms or 0)) / 1000)
    await store.close()

    assert median(took) < REACHES_SECONDS, took


@pytest.mark.parametrize("ending", ["succeeded", "failed", "retrying"])
async def test_a_cancel_that_races_the_end_leaves_one_end(store: Store, ending: str) -> None:
    """A hundred times, both sent at once over different connections; the log and the record agree on who was first."""
    outcomes: Counter[str] = Counter()
    for head_start in [0, 1, 2, 3] * 25:
        record = await submit(store, KIND)
        lease = await begin(store, "echo")

        await asyncio.gather(_end(store, lease, ending), _cancel(store, record.id, head_start))

        events = [decode_event(entry.text) for entry in (await store.events(record.id, START)).entries]
        ends = [one for one in events if one.type in TERMINAL_TYPES]
        now = await store.job(record.id)
        if ending == "retrying" and not ends:
            # Asked while it ran, put back with the wish: the next to look or to begin ends it.
            outcomes["later"] += 1
            await store.leave(lease, record, retry_after_seconds=0)
            [claim] = await store.claim("echo", "w", 1)
            assert (await store.begin(claim, "w")).outcome == "ended"
            assert (await store.job(record.id)).state is State.CANCELLED
            continue
        assert len(ends) == 1
        assert events[-1] is ends[0]
        assert now.state == ends[0].type
        assert now.end_data() == ends[0].data
        outcomes["cancel first" if events[-2].type == "cancel_requested" else "end first"] += 1
        await store.leave(lease, now)

    assert set(outcomes) == {"later" if ending == "retrying" else "cancel first", "end first"}


async def _cancel(store: Store, job: str, head_start: int) -> None:
    # An end has a step or two of the event loop more to go before it is sent.
    for _ in range(head_start):
        await asyncio.sleep(0)
    await store.cancel(job, "me", "enough")


async def _end(store: Store, lease: Lease, ending: str) -> None:
    if ending == "retrying":
        await store.retry(lease, 1, [], {"code": "x"}, 0, counts=True)
    else:
        data = {"result": 1} if ending == "succeeded" else {"problem": {"code": "x"}, "partial": False}
        await store.append(lease, 1, [event(ending, data)])


async def test_cancels_at_any_moment_of_short_jobs_leave_one_end_each(store: Store, blobs: Blobs) -> None:
    """Queued, claimed, begun, ending or ended: sixty jobs, each cancelled at a random time of its short life."""
    chance = random.Random(7)
    async with working(store, blobs, "echo", concurrency=8):

        async def one() -> State:
            job = await submit_to_worker(store, "echo")
            await asyncio.sleep(chance.uniform(0, 0.02))
            await store.cancel(job, "me", "enough")
            record = await end_of(store, job)
            events = await log_of(store, job)
            assert events[-1].type == record.state
            return record.state

        states = Counter(await asyncio.gather(*(one() for _ in range(60))))

    assert states.keys() <= {State.SUCCEEDED, State.CANCELLED}


async def test_a_cancel_of_an_ended_job_changes_nothing(store: Store) -> None:
    """It answers with the job as it ended: a repeat after a lost answer is no mistake."""
    record = await submit(store, KIND)
    first = await store.cancel(record.id, "me", "enough")
    log = (await store.events(record.id, START)).entries

    again = await store.cancel(record.id, "somebody else", "again")

    assert again == first
    assert (await store.events(record.id, START)).entries == log


async def test_nothing_is_reported_after_a_cancel_ended_the_job(store: Store) -> None:
    """Neither by an attempt that was never told, nor by one that has begun meanwhile."""
    record = await submit(store, KIND)
    [claim] = await store.claim("echo", "w", 1)
    await store.cancel(record.id, "me", "enough")
    log = (await store.events(record.id, START)).entries

    begun = await store.begin(claim, "w")
    with pytest.raises(LeaseLost):
        await store.append(Lease(record.id, "echo", 1, "nonce"), 1, [event("log", {"message": "late"})])

    assert begun.outcome == "ended"
    assert (await store.events(record.id, START)).entries == log


async def test_a_cancel_that_ends_a_job_waits_for_a_replica_as_any_end_does(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was told that a job is cancelled must not see it run after a failover; this server has no replica."""
    record = await submit(store, KIND)
    monkeypatch.setattr("gateway.store.connection.SOCKET_TIMEOUT_SECONDS", 0.6)
    monkeypatch.setattr(store, "_durability", "replica")

    with pytest.raises(Unavailable, match="on a replica"):
        await store.cancel(record.id, "me", "changed my mind")
