"""A processor that hands its attempt over: its worker lets go, and whoever has the token goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.blobs import Blobs
from gateway.errors import LeaseLost
from gateway.event_text import decode_event
from gateway.protocol import START, State
from gateway.store import Store, read_token
from processors import Context, Processor, SyncContext, processor
from processors.worker import Worker
from tests.faults import wait_until
from tests.jobs import end, submit
from tests.worker_jobs import end_of, working

# The other queue, which belongs to no event loop.
TOKENS: list[str] = []


@processor("passed_on")
async def passed_on(ctx: Context) -> None:
    """Hand over to whoever reads the queue."""
    await ctx.log("passing it on")
    TOKENS.append(await ctx.hand_over(60))


@processor("passed_on_from_a_thread")
def passed_on_from_a_thread(ctx: SyncContext) -> None:
    """The same from a thread."""
    TOKENS.append(ctx.hand_over(60))


@processor("nobody_takes_it", max_attempts=1)
async def nobody_takes_it(ctx: Context) -> None:
    """The other queue is down."""
    await ctx.hand_over(60)
    raise ConnectionError("no broker")


@processor("lingers", cancel_grace_seconds=0.2)
async def lingers(ctx: Context) -> None:
    """Hands over and doesn't return."""
    TOKENS.append(await ctx.hand_over(60))
    await asyncio.Event().wait()


@processor("not_wanted_any_more", max_attempts=1)
async def not_wanted_any_more(ctx: Context) -> None:
    """Somebody cancels the job a moment before it is handed over."""
    await ctx._store.cancel(ctx.job_id, "me", "changed my mind")
    TOKENS.append(await ctx.hand_over(60))


@pytest.fixture(autouse=True)
async def worker(store: Store, blobs: Blobs) -> AsyncIterator[Worker]:
    """A worker with one place, for all kinds of this file."""
    TOKENS.clear()
    kinds = (passed_on, passed_on_from_a_thread, nobody_takes_it, lingers, not_wanted_any_more)
    async with working(store, blobs, kinds) as worker:
        yield worker


async def types_of(store: Store, job: str) -> list[str]:
    """The types in a job's log."""
    return [decode_event(entry.text).type for entry in (await store.events(job, START)).entries]


@pytest.mark.parametrize("kind", [passed_on, passed_on_from_a_thread], ids=lambda kind: kind.kind)
@pytest.mark.lease(0.6)
async def test_the_worker_lets_go_and_the_adopter_ends_the_job(store: Store, kind: Processor) -> None:
    """Its place is free for the next job while the first one runs elsewhere, for longer than a lease."""
    first, second = [await submit(store, kind.document) for _ in range(2)]
    tokens: list[str] = await wait_until(lambda: len(TOKENS) == 2 and TOKENS)
    leases = [read_token(token).lease for token in tokens]
    assert {lease.job for lease in leases} == {first.id, second.id}
    await asyncio.sleep(store.lease_seconds + 0.2)

    for lease in leases:
        begun, _ = await store.adopt(lease, "elsewhere")
        assert begun.lease is not None
        await end(store, begun.lease, batch=1)

    for job in (first.id, second.id):
        assert (await store.job(job)).state is State.SUCCEEDED
        assert [type_ for type_ in await types_of(store, job) if type_ != "log"] == ["queued", "started", "succeeded"]


async def test_an_attempt_that_is_to_stop_hands_nothing_over(store: Store) -> None:
    """The cancel came before the token was made, so nobody gets one, and the worker ends the job."""
    job = (await submit(store, not_wanted_any_more.document)).id

    assert (await end_of(store, job)).state is State.CANCELLED

    assert TOKENS == []
    assert (await types_of(store, job))[-2:] == ["cancel_requested", "cancelled"]


async def test_a_job_that_is_cancelled_on_its_way_ends_at_once(store: Store) -> None:
    """Its worker has let go and nobody has come for it yet."""
    job = (await submit(store, passed_on.document)).id
    await wait_until(lambda: TOKENS)

    await store.cancel(job, "me", "changed my mind")

    assert (await types_of(store, job))[-1] == "cancelled"
    with pytest.raises(LeaseLost, match="has ended"):
        await store.adopt(read_token(TOKENS[0]).lease, "elsewhere")


async def test_a_worker_that_lingers_leaves_a_cancel_to_whoever_uses_the_token(store: Store) -> None:
    """The work is done elsewhere, so it is over when it has stopped there."""
    job = (await submit(store, lingers.document)).id
    await wait_until(lambda: TOKENS)
    lease = read_token(TOKENS[0]).lease
    await store.renew(lease)

    assert (await store.cancel(job, "me", "changed my mind")).state is State.RUNNING

    following = await submit(store, passed_on.document)
    await wait_until(lambda: len(TOKENS) == 2, what="the worker's place")
    assert (await types_of(store, job))[-1] == "cancel_requested"
    await end(store, lease, batch=1, type_="cancelled", data={"reason": "stopped", "by": "me"})
    await store.cancel(following.id, "me", "enough")


async def test_a_worker_that_stops_while_it_hands_over_gives_the_job_back(store: Store, worker: Worker) -> None:
    """Whether the token went anywhere isn't known, so nobody waits for its time to be over."""
    job = (await submit(store, lingers.document)).id
    await wait_until(lambda: TOKENS)

    worker.stop()

    async def given_back() -> bool:
        return (await store.job(job)).state is State.QUEUED

    await wait_until(given_back)
    with pytest.raises(LeaseLost):
        await store.adopt(read_token(TOKENS[0]).lease, "elsewhere")
    await store.cancel(job, "me", "enough")


async def test_a_hand_over_that_fails_is_a_failed_attempt(store: Store) -> None:
    """The function raised after it had the token, and nobody had adopted it."""
    job = (await submit(store, nobody_takes_it.document)).id

    record = await end_of(store, job)

    assert record.end_data()["problem"]["cause"] == "processor_error"
