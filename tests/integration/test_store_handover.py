"""Handing an attempt over: one adopter, the same fence, and a takeover when nobody comes or the adopter dies."""

from __future__ import annotations

import time

import pytest

from gateway.documents import KindDocument
from gateway.errors import LeaseLost, Unauthorized
from gateway.protocol import START, State
from gateway.store import Lease, Store, read_token
from gateway.store.write_token import check_token, encode_token
from tests.faults import wait_until
from tests.jobs import begin, event, submit

KIND = KindDocument(kind="echo")


async def log_of(store: Store, job: str) -> list[str]:
    """The types in a job's log."""
    page = await store.events(job, START)
    return [entry.type.decode() for entry in page.entries]


async def test_the_adopter_writes_and_the_worker_no_more(store: Store) -> None:
    """The token gives a new lease; the old one is over from then on."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    token = await store.hand_over(lease, 60, "worker")

    begun, _ = await store.adopt((await store.check_write_token(token)).lease, "task")

    assert begun.lease is not None
    await store.append(begun.lease, 1, [event("log", {"message": "from elsewhere"})])
    with pytest.raises(LeaseLost):
        await store.append(lease, 1, [event("log", {"message": "from the worker"})])
    assert await log_of(store, lease.job) == ["queued", "started", "log"]


async def test_a_token_adopts_once(store: Store) -> None:
    """A queue that delivers a message twice starts no second writer."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    token = await store.hand_over(lease, 60, "worker")
    await store.adopt(read_token(token).lease, "first")

    with pytest.raises(LeaseLost):
        await store.adopt(read_token(token).lease, "second")


async def test_a_handed_over_job_outlives_the_usual_lease_and_not_the_hand_over(store: Store) -> None:
    """Nobody renews it while it waits in another queue, and yet it is not for ever."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.hand_over(lease, 1.5, "worker")
    began = time.monotonic()

    async def taken_away() -> bool:
        await store.look(["echo"])
        return (await store.job(lease.job)).state is State.QUEUED

    await wait_until(taken_away, 10)

    assert time.monotonic() - began > 1.4
    assert (await log_of(store, lease.job))[-1] == "retrying"


async def test_a_dead_adopters_job_is_taken_over_after_the_usual_lease(store: Store) -> None:
    """However long the hand-over might have taken."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    token = await store.hand_over(lease, 3600, "worker")
    begun, _ = await store.adopt(read_token(token).lease, "task")
    assert begun.lease is not None

    async def taken_away() -> bool:
        await store.look(["echo"])
        return (await store.job(lease.job)).state is State.QUEUED

    await wait_until(taken_away, 10)

    with pytest.raises(LeaseLost):
        await store.append(begun.lease, 1, [event("log", {"message": "too late"})])


async def test_a_job_cancelled_on_its_way_ends_when_it_is_adopted(store: Store) -> None:
    """There is nothing to stop, so nothing is started."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    token = await store.hand_over(lease, 60, "worker")
    await store.cancel(lease.job, "me", "changed my mind")

    with pytest.raises(LeaseLost):
        await store.adopt(read_token(token).lease, "task")

    assert (await store.job(lease.job)).state is State.CANCELLED
    assert (await log_of(store, lease.job))[-2:] == ["cancel_requested", "cancelled"]


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
        with pytest.raises(Unauthorized):
            check_token(secret, text, now)
