"""A worker whose way to Redis breaks: nothing is written twice, nothing is lost, no job runs twice for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.blobs import Blobs
from gateway.protocol import State
from gateway.store import Store
from gateway.store.scripts import load
from tests.faults import FaultProxy, wait_until
from tests.integration.test_worker import seen, submit, working
from tests.worker_jobs import end_of, log_of

# Three of them are longer than what the store's client retries by itself (about 2 s), as with any real lease.
LEASE_SECONDS = 1.2
pytestmark = pytest.mark.lease(0.6)


@pytest.fixture
async def shaky_store(proxy: FaultProxy, prefix: str) -> AsyncIterator[Store]:
    """A worker's store, which reaches Valkey through the proxy."""
    shaky = await Store.connect(proxy.url, prefix=prefix, lease_seconds=LEASE_SECONDS)
    yield shaky
    await shaky.close()


@pytest.fixture
async def other_shaky_store(proxy: FaultProxy, prefix: str) -> AsyncIterator[Store]:
    """The store of a second worker behind the same proxy."""
    shaky = await Store.connect(proxy.url, prefix=prefix, lease_seconds=LEASE_SECONDS)
    yield shaky
    await shaky.close()


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(load("claim").sha.encode(), id="claim"),
        pytest.param(b'"type":"started"', id="begin"),
        pytest.param(b'"type":"output"', id="append"),
        pytest.param(b'"type":"succeeded"', id="end"),
        pytest.param(load("leave").sha.encode(), id="leave"),
    ],
)
async def test_a_lost_reply_leaves_a_log_like_any_other(
    store: Store, shaky_store: Store, proxy: FaultProxy, blobs: Blobs, request_: bytes
) -> None:
    """Redis did it, the worker doesn't know, and asks again."""
    async with working(shaky_store, blobs, "count"):
        # The scripts are known to the server after this: the next requests name them by their digests.
        await end_of(store, await submit(store, "count", {"to": 3}))
        proxy.drop_reply(request_)
        job = await submit(store, "count", {"to": 3})
        record = await end_of(store, job)
        await wait_until(proxy.dropped.is_set)

    events = await log_of(store, job)
    assert record.attempt == 1
    assert [event.type for event in events] == ["queued", "started", *["progress", "output"] * 3, "succeeded"]


async def test_a_lost_reply_to_a_retry_costs_one_attempt_only(
    store: Store, shaky_store: Store, proxy: FaultProxy, blobs: Blobs
) -> None:
    """`retrying` is a batch like any other."""
    async with working(shaky_store, blobs, "failing"):
        proxy.drop_reply(b'"type":"retrying"')
        job = await submit(store, "failing", {"how": "retry", "then": "succeed"})
        record = await end_of(store, job)
        assert proxy.dropped.is_set()

    assert (record.attempt, record.failures) == (2, 1)
    assert [event.type for event in await log_of(store, job)].count("retrying") == 1


async def test_redis_away_for_three_leases_starts_no_job_twice(
    shaky_store: Store, other_shaky_store: Store, proxy: FaultProxy, blobs: Blobs, tmp_path: Path
) -> None:
    """When it is back, leases are renewed before anybody judges them; the processor has noticed nothing."""
    gate = tmp_path / "gate"
    async with working(shaky_store, blobs, "gated"), working(other_shaky_store, blobs, "gated"):
        job = await submit(shaky_store, "gated", {"gate": str(gate)})
        await seen(shaky_store, job, "output")
        proxy.refuse()
        proxy.cut()
        # The length of the outage is what is tested.
        await asyncio.sleep(3 * LEASE_SECONDS)
        proxy.refuse(False)
        await asyncio.sleep(2 * LEASE_SECONDS)
        gate.touch()
        record = await end_of(shaky_store, job)

    assert record.attempt == 1
    assert record.end_data() == {"result": {"attempt": 1, "found": []}}


async def test_what_is_reported_during_an_outage_arrives_after_it(
    store: Store, shaky_store: Store, proxy: FaultProxy, blobs: Blobs
) -> None:
    """In order, once; the function waits where too much would wait."""
    async with working(shaky_store, blobs, "chatty"):
        job = await submit(store, "chatty", {"lines": 2_000})
        await seen(store, job, "output")
        for _ in range(5):
            proxy.cut()
            proxy.refuse()
            await asyncio.sleep(0.05)
            proxy.refuse(False)
            await asyncio.sleep(0.05)
        record = await end_of(store, job)

    events = await log_of(store, job)
    assert record.attempt == 1
    assert [event.data["value"] for event in events if event.type == "output"] == list(range(2_000))


async def test_a_worker_leaves_although_redis_is_away(
    store: Store, shaky_store: Store, proxy: FaultProxy, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it can't hand back is taken over when its lease is over."""
    monkeypatch.setattr("processors.worker.HAND_BACK_SECONDS", 0.3)
    async with working(shaky_store, blobs, "polite"):
        job = await submit(store, "polite")
        await seen(store, job, "output")
        proxy.refuse()
        proxy.cut()

    proxy.refuse(False)
    assert (await store.job(job)).state is State.RUNNING
    async with working(store, blobs, "polite"):
        retrying = await seen(store, job, "retrying")
    assert retrying.data["problem"]["code"] == "worker_lost"


async def test_a_defect_in_what_an_attempt_can_do_without_is_told(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs the job nothing, and must not stay hidden for it."""

    async def broken(*_: object, **__: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(store, "hold", broken)
    async with working(store, blobs, "slow"):
        record = await end_of(store, await submit(store, "slow"))

    assert record.end_data()["problem"]["code"] == "run_timeout"
    assert "joining the jobs in hand failed" in caplog.text
