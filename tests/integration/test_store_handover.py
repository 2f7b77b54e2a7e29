"""Handing an attempt over: one adopter, the same fence, and a takeover when nobody comes or the adopter dies."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.documents import KindDocument
from gateway.errors import LeaseLost, WriteTokenNeeded
from gateway.protocol import START, State
from gateway.store import Lease, Store, read_token
from gateway.store.write_token import check_token, encode_token
from tests.faults import wait_until
from tests.jobs import begin, end, event, hand_over, submit

KIND = KindDocument(kind="echo")


async def log_of(store: Store, job: str) -> list[str]:
    """The types in a job's log."""
    page = await store.events(job, START)
    return [entry.type.decode() for entry in page.entries]


async def test_the_adopter_writes_and_the_worker_no_more(store: Store) -> None:
    """The token gives a new lease; the old one is over from then on."""
    await submit(store, KIND)
    lease, token = await hand_over(store, "echo")

    begun, _ = await store.adopt((await store.check_write_token(token)).lease, "task")

    assert begun.lease is not None
    await store.append(begun.lease, 1, [event("log", {"message": "from elsewhere"})])
    with pytest.raises(LeaseLost):
        await store.append(lease, 1, [event("log", {"message": "from the worker"})])
    assert await log_of(store, lease.job) == ["queued", "started", "log"]


async def test_a_token_adopts_once(store: Store) -> None:
    """A queue that delivers a message twice starts no second writer."""
    await submit(store, KIND)
    _, token = await hand_over(store, "echo")
    await store.adopt(read_token(token).lease, "first")

    with pytest.raises(LeaseLost):
        await store.adopt(read_token(token).lease, "second")


@pytest.mark.lease(0.6)
async def test_a_handed_over_job_outlives_the_usual_lease_and_not_the_hand_over(store: Store) -> None:
    """Nobody renews it while it waits in another queue, and yet it is not for ever."""
    await submit(store, KIND)
    lease, _ = await hand_over(store, "echo", seconds=1.5)
    began = time.monotonic()

    async def taken_away() -> bool:
        await store.look(["echo"])
        return (await store.job(lease.job)).state is State.QUEUED

    await wait_until(taken_away)

    assert time.monotonic() - began > 1.4
    assert (await log_of(store, lease.job))[-1] == "retrying"


@pytest.mark.lease(0.6)
async def test_a_dead_adopters_job_is_taken_over_after_the_usual_lease(store: Store) -> None:
    """However long the hand-over might have taken."""
    await submit(store, KIND)
    lease, token = await hand_over(store, "echo", seconds=3600)
    begun, _ = await store.adopt(read_token(token).lease, "task")
    assert begun.lease is not None

    async def taken_away() -> bool:
        await store.look(["echo"])
        return (await store.job(lease.job)).state is State.QUEUED

    await wait_until(taken_away)

    with pytest.raises(LeaseLost):
        await store.append(begun.lease, 1, [event("log", {"message": "too late"})])


async def test_a_handed_over_job_counts_under_its_kinds_cap_until_it_ends(store: Store) -> None:
    """On its way, and wherever it is done."""
    kind = KIND.model_copy(update={"max_running": 1})
    await store.register_kind(kind)
    for _ in range(2):
        await submit(store, kind)
    lease, _ = await hand_over(store, "echo")

    assert await store.claim("echo", "worker", 1) == []
    adopted = (await store.adopt(lease, "task"))[0].lease
    assert adopted is not None
    assert await store.claim("echo", "worker", 1) == []

    await end(store, adopted, batch=1)
    assert len(await store.claim("echo", "worker", 1)) == 1


async def test_a_job_cancelled_on_its_way_ends_at_once_and_frees_its_place(store: Store) -> None:
    """Nobody has it in hand, so there is nobody to wait for; who comes for it hears why there is nothing to do."""
    await submit(store, KIND)
    lease, token = await hand_over(store, "echo")
    # A renewal that was on its way meanwhile says nothing of who has it in hand.
    await asyncio.to_thread(store.renewer("worker").renew, [lease])

    assert (await store.cancel(lease.job, "me", "changed my mind")).state is State.CANCELLED

    assert await log_of(store, lease.job) == ["queued", "started", "cancelled"]
    with pytest.raises(LeaseLost, match="has ended: it is cancelled"):
        await store.adopt(read_token(token).lease, "task")
    with pytest.raises(LeaseLost):
        await store.append(lease, 1, [event("log", {"message": "the worker goes on"})])
    await store.look(["echo"])
    assert await store.depths(["echo"]) == {"echo": (0, 0)}


async def test_an_attempt_that_is_to_stop_is_not_handed_over(store: Store) -> None:
    """Its worker hears of the cancel a moment later, and ends the job itself."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.cancel(lease.job, "me", "changed my mind")

    assert await store.hand_over(lease, 60, "worker") is None

    assert (await store.cancel(lease.job, "me", "again")).state is State.RUNNING
    assert await store.append(lease, 1, [event("cancelled", {"reason": "changed my mind", "by": "me"})])


@pytest.mark.parametrize("use", ["adopt", "renew", "append"])
async def test_whoever_uses_the_token_has_the_job_in_hand_and_is_told_of_a_cancel(store: Store, use: str) -> None:
    """From the first use on, whichever it is; a job ends when its work has really stopped."""
    await submit(store, KIND)
    lease, _ = await hand_over(store, "echo")
    if use == "adopt":
        lease = (await store.adopt(lease, "task"))[0].lease or lease
    elif use == "renew":
        await store.renew(lease)
    else:
        await store.append(lease, None, [event("log", {"message": "at work"})])

    assert (await store.cancel(lease.job, "me", "changed my mind")).state is State.RUNNING

    assert (await log_of(store, lease.job))[-1] == "cancel_requested"
    assert await store.renew(lease) == "me"
    await store.append(lease, None, [event("cancelled", {"reason": "changed my mind", "by": "me"})])


async def test_a_cancel_and_an_adoption_at_once_leave_one_of_two_stories(store: Store) -> None:
    """Either the job ended and the adopter is refused, or the adopter has it and is told."""
    for _ in range(8):
        await submit(store, KIND)
        lease, _ = await hand_over(store, "echo")
        cancelled, adopted = await asyncio.gather(
            store.cancel(lease.job, "me", "changed my mind"), store.adopt(lease, "task"), return_exceptions=True
        )

        if isinstance(adopted, LeaseLost):
            assert (await log_of(store, lease.job))[-1] == "cancelled"
        else:
            assert not isinstance(adopted, BaseException)
            assert not isinstance(cancelled, BaseException)
            assert (await log_of(store, lease.job))[-1] == "cancel_requested"
            assert adopted[0].lease is not None
            assert await store.renew(adopted[0].lease) == "me"
            await store.append(adopted[0].lease, 1, [event("cancelled", {"reason": "stopped", "by": "me"})])


async def test_a_token_that_is_made_up_or_too_old_is_refused(store: Store) -> None:
    """A gateway needs no Redis to tell."""
    secret, lease = await store.secret(), Lease("a" * 26, "my.kind-2", 3, "0123456789abcdef")
    good = encode_token(secret, lease, 2_000)

    assert check_token(secret, good, 1_999) == (lease, 2_000)
    for text, now in [
        (good, 2_000),
        (good[:-1] + ("A" if good[-1] != "A" else "B"), 0),
        (good.replace("~3~", "~4~"), 0),
        (encode_token(b"other", lease, 2_000), 0),
        (good + "\n", 0),
        ("", 0),
    ]:
        with pytest.raises(WriteTokenNeeded):
            check_token(secret, text, now)
