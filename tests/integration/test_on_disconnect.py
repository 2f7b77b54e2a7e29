"""`on_disconnect: cancel`: a job that nobody listens to any more, on any gateway, is cancelled after a grace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.documents import KindDocument
from gateway.handlers.context import HUB
from gateway.hub import Hub
from gateway.protocol import START, State
from gateway.requests import JobOptions
from gateway.store import JobRecord, Store
from tests.faults import FaultProxy, wait_until
from tests.jobs import begin, end, new_job, submit
from tests.serving import Gateway, gateway_for
from tests.worker_jobs import end_of

KIND = KindDocument(kind="echo")
GRACE = 0.5
LONELY = JobOptions(on_disconnect="cancel", disconnect_grace_seconds=GRACE)


@pytest.fixture
async def looking(store: Store) -> AsyncIterator[None]:
    """Somebody looks, all the time."""

    async def look() -> None:
        while True:
            await store.look(["echo"])
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look(), name="looks")
    yield
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


@pytest.fixture
async def gateways(store: Store, tmp_path: Path) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Two gateways on one store."""
    async with gateway_for(store, tmp_path / "b") as one, gateway_for(store, tmp_path / "b") as other:
        yield one, other


@asynccontextmanager
async def listening(gateway: Gateway, job: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream of the job's events for the length of the block."""
    async with gateway.session.get(f"{gateway.url}/v1/jobs/{job}/events") as response:
        assert response.status == 200
        yield response


async def lonely_job(store: Store) -> JobRecord:
    """A job of everybody's that is cancelled when nobody listens."""
    return await submit(store, KIND, owner="local", options=LONELY)


async def still_open(store: Store, job: str, seconds: float) -> None:
    """Make sure that the job stays open for some time: that nothing happens is what is tested."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert not (await store.job(job)).terminal
        await asyncio.sleep(0.05)


async def test_a_job_that_nobody_ever_listened_to_is_cancelled(store: Store, looking: None) -> None:
    """The grace starts at the submit; another job beside it goes on."""
    other = await submit(store, KIND)
    job = await lonely_job(store)

    record = await end_of(store, job.id)

    assert record.state is State.CANCELLED
    assert record.end_data()["by"] == "outlast"
    assert record.ended_ms is not None
    assert record.ended_ms - record.created_ms >= GRACE * 1000
    assert (await store.job(other.id)).state is State.QUEUED


async def test_a_job_for_later_is_not_kept_until_its_start(store: Store, looking: None) -> None:
    """Its grace starts at the submit as well, and a repeat of the submit puts nothing off."""
    options = LONELY.model_copy(update={"start_at": datetime.now(UTC) + timedelta(hours=1)})
    job = await store.job_id("me", "key")
    for _ in range(2):
        await store.submit(job, new_job(KIND, options=options), keyed=True)

    assert (await end_of(store, job)).state is State.CANCELLED


async def test_a_listener_keeps_the_job_and_its_leaving_starts_the_grace(
    store: Store, looking: None, gateways: tuple[Gateway, Gateway]
) -> None:
    """A queued job, a stream that is cut."""
    job = await lonely_job(store)
    async with listening(gateways[0], job.id):
        await still_open(store, job.id, 3 * GRACE)
    left_ms = time.time() * 1000

    record = await end_of(store, job.id)

    assert record.ended_ms is not None
    assert record.ended_ms - left_ms >= GRACE * 1000 - 50


async def test_a_job_that_is_lost_under_a_look_keeps_no_other_from_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may lose it in a failover, or its owner delete it, after it was found to be alone."""
    lost, other = await lonely_job(store), await lonely_job(store)
    due, cancel = store._keys.kind("echo")[1], store.cancel

    async def cancel_too_late(job: str, by: str, reason: str) -> JobRecord:
        if job == lost.id:
            await store._client.delete(*store._keys.job(job)[:5])
        return await cancel(job, by, reason)

    monkeypatch.setattr(store, "cancel", cancel_too_late)

    async def looked_at() -> bool:
        await store.look(["echo"])
        return (await store.job(other.id)).terminal and await store._client.zscore(due, lost.id) is None

    await wait_until(looked_at)

    assert (await store.job(other.id)).state is State.CANCELLED


async def test_a_mark_counts_however_old_the_job_is(store: Store) -> None:
    """Whoever looks finds that somebody listens; without the mark the same look ends the job."""
    for marked in (True, False):
        job = await lonely_job(store)
        if marked:
            await store.mark(job.id, "a gateway", 5)
        await store._client.hset(store._keys.record(job.id), "created", 1)
        await store._client.zadd(store._keys.kind("echo")[1], {job.id: 0})
        await store.look(["echo"])

        assert (await store.job(job.id)).terminal is not marked


async def test_an_outage_of_redis_is_no_absence_of_listeners(prefix: str, proxy: FaultProxy) -> None:
    """Nobody could come back, or say that he had never left: the grace begins anew when Redis is there again."""
    store = await Store.connect(proxy.url, prefix=prefix, lease_seconds=0.1)
    await store.register_kind(KIND)
    looking = asyncio.create_task(store.look_loop(), name="looks")
    try:
        job = await submit(store, KIND, options=JobOptions(on_disconnect="cancel", disconnect_grace_seconds=1))
        proxy.refuse()
        proxy.cut()
        # Until the grace is over: nothing else can be waited for.
        await asyncio.sleep(1.2)
        there_again_ms = time.time() * 1000
        proxy.refuse(False)
        record = await end_of(store, job.id)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await store.close()

    assert record.state is State.CANCELLED
    assert record.ended_ms is not None
    assert record.ended_ms - there_again_ms >= 1000


async def test_listeners_count_across_gateways(store: Store, looking: None, gateways: tuple[Gateway, Gateway]) -> None:
    """Who leaves one gateway and comes to another in time has never been away."""
    job = await lonely_job(store)
    async with listening(gateways[0], job.id):
        async with listening(gateways[1], job.id):
            await still_open(store, job.id, GRACE / 2)
        await still_open(store, job.id, 2 * GRACE)
    async with listening(gateways[1], job.id):
        await still_open(store, job.id, 2 * GRACE)

    assert (await end_of(store, job.id)).state is State.CANCELLED


async def test_a_gateway_that_dies_stops_counting(
    store: Store, looking: None, gateways: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't say that its listeners are gone, but its mark ends."""
    monkeypatch.setattr("gateway.hub.MARK_SECONDS", 0.5)
    monkeypatch.setattr(Hub._mark, "__defaults__", (0.5,))
    job = await lonely_job(store)
    async with listening(gateways[0], job.id):
        await wait_until(lambda: gateways[0].app[HUB].listeners)
        # From here on nothing of it gets through.
        monkeypatch.setattr(Hub, "_mark", _silent)
        record = await end_of(store, job.id)

    assert record.ended_ms is not None
    assert record.ended_ms - record.created_ms >= 1000


async def _silent(*_: Any) -> None:
    """What a dead gateway says."""


@pytest.fixture
def short_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks that soon end, and are renewed as often by gateways that start after this."""
    monkeypatch.setattr("gateway.hub.MARK_SECONDS", 0.3)
    monkeypatch.setattr(Hub._mark, "__defaults__", (0.3,))


async def test_marks_are_renewed(
    store: Store, looking: None, short_marks: None, gateways: tuple[Gateway, Gateway]
) -> None:
    """A listener that stays for many times a mark's length keeps its job."""
    job = await lonely_job(store)
    async with listening(gateways[0], job.id):
        await still_open(store, job.id, 2 * (0.3 + GRACE))


@pytest.mark.lease(0.6)
async def test_a_running_jobs_worker_is_asked_to_stop(store: Store, looking: None) -> None:
    """Like anybody's cancel; the end is still the worker's to write."""
    job = await lonely_job(store)
    lease = await begin(store, "echo")
    renewer = store.renewer("worker")
    try:

        async def asked() -> str | None:
            return (await asyncio.to_thread(renewer.renew, [lease]))[job.id].cancel_by

        assert await wait_until(asked) == "outlast"
    finally:
        renewer.close()

    await end(store, lease, batch=1, type_="cancelled", data={"by": "outlast", "reason": "x"})
    types = [entry.type for entry in (await store.events(job.id, START)).entries]
    assert types == [b"queued", b"started", b"cancel_requested", b"cancelled"]


async def test_who_asks_again_and_again_listens_too(
    store: Store, looking: None, gateways: tuple[Gateway, Gateway]
) -> None:
    """A client that polls has no connection to lose."""
    job = await lonely_job(store)
    until = time.monotonic() + 3 * GRACE
    while time.monotonic() < until:
        assert (await gateways[0].get(f"/v1/jobs/{job.id}")).json()["terminal"] is False
        await asyncio.sleep(0.05)

    assert (await end_of(store, job.id)).state is State.CANCELLED


async def test_other_jobs_keep_no_marks(store: Store, gateways: tuple[Gateway, Gateway]) -> None:
    """A mark costs a round trip; only who asked for it pays. A mark after the end makes no key."""
    job = await submit(store, KIND, owner="local")
    lonely = await lonely_job(store)
    await store.cancel(lonely.id, "me", "enough")
    async with listening(gateways[0], job.id):
        await gateways[0].get(f"/v1/jobs/{job.id}")
        await store.mark(job.id, "x")
        await store.mark(lonely.id, "x")

    for one in (job, lonely):
        assert await store._client.exists(store._keys.job(one.id)[4]) == 0


async def test_the_option_travels_over_http(gateways: tuple[Gateway, Gateway]) -> None:
    """A grace without the option is refused, by its name."""
    body = {"on_disconnect": "cancel", "disconnect_grace_seconds": 5}
    accepted = await gateways[0].post("/v1/kinds/echo/jobs", json=body)
    refused = await gateways[0].post("/v1/kinds/echo/jobs", json={"disconnect_grace_seconds": 5})

    assert accepted.status == 202
    assert (await gateways[0].store.job(accepted.json()["id"])).options.grace_seconds == 5
    assert JobOptions(on_disconnect="cancel").grace_seconds == 60
    assert (refused.status, refused.json()["errors"][0]["field"]) == (422, "disconnect_grace_seconds")
