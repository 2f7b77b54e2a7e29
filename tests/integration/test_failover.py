"""Masters that die, hang or hand over under load: what was accepted ends once, and nobody's row of numbers is spliced.

Each test has servers of its own. Submits and ends wait for a replica (`durability=replica`): what a replica has, a
failover keeps. Events between are acknowledged by the master alone and may be lost with it; then listeners are told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.blobs import Blobs
from gateway.errors import Unavailable
from gateway.hub import Frame, Hub, Place
from gateway.metrics import NoMetrics
from gateway.protocol import START, Cursor
from gateway.requests import JobOptions
from gateway.store import NewJob, Store
from gateway.store.connection import Durability
from processors import Context
from processors.processor import processor
from processors.worker import Worker
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.integration.test_hub import Collector
from tests.ports import free_port
from tests.redis_servers import RedisCluster, RedisProcess, SentinelTrio
from tests.worker_jobs import log_of

STEPS = 12
# A failover takes its time, and a job that lost its tail begins anew when its lease is over.
END_SECONDS = 40


@processor("paced", max_attempts=20)
async def paced(ctx: Context, input: dict[str, int]) -> AsyncIterator[dict[str, int]]:
    """Yield numbers, not all at once."""
    for i in range(input["to"]):
        await asyncio.sleep(0.03)
        yield {"number": i}


class Listening(Collector):
    """Keeps the rows of numbers that a client saw: after a `reset` another one begins."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.rows: list[list[int]] = [[0]]

    def encode(self, place: Place, frame: Frame) -> bytes:
        self.rows[-1].append(frame.number)
        return super().encode(place, frame)

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        if type_ == "snapshot" and cursor is not None:
            self.rows.append([cursor.number])
        return super().encode_unnumbered(place, text, type_, cursor)


class Load:
    """Jobs that are submitted, worked on and listened to, all the time."""

    def __init__(self, stores: list[Store], hub: Hub) -> None:
        self.stores = stores
        self.store = stores[0]
        self._hub = hub
        self.accepted: dict[str, Listening] = {}
        self.refused = 0
        self.enough = asyncio.Event()

    async def submit_on(self) -> None:
        """Submit one job after another, each with a key, and listen to it, until it is enough."""
        number = 0
        while not self.enough.is_set():
            number += 1
            job = await self.store.job_id("me", f"key {number}")
            new = NewJob(paced.document, "me", {"to": STEPS}, JobOptions(), "fingerprint", ())
            while True:
                try:
                    record = (await self.store.submit(job, new, keyed=True)).record
                    break
                except Unavailable:
                    # As a client does: the same key again.
                    self.refused += 1
                    await asyncio.sleep(0.1)
            listener = self.accepted[job] = Listening(self._hub)
            self._hub.open(listener)
            await self._hub.start(self._hub.place(listener, record, START))
            await asyncio.sleep(0.05)

    async def busy(self, more: int) -> None:
        """Wait until so many more jobs were accepted, and some events were heard."""
        wanted = len(self.accepted) + more
        await wait_until(lambda: len(self.accepted) >= wanted, 30, what=f"{wanted} accepted jobs")
        await wait_until(lambda: any(len(one.numbers) > 4 for one in self.accepted.values()), 30)

    async def check(self) -> None:
        """Accepted = ended, once each; every log is whole; each listener saw it, or was told what is missing."""
        for job, listener in self.accepted.items():
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await listener.closed
            events = await log_of(self.store, job)
            assert events[-1].type == "succeeded", (job, [event.type for event in events])
            for row in listener.rows:
                assert row == list(range(row[0], row[0] + len(row))), (job, listener.rows)
            assert listener.rows[-1][-1] == events[-1].id, (job, listener.rows, len(events))
            resets = [type_ for type_, _, _ in listener.unnumbered if type_ == "reset"]
            assert len(resets) == len(listener.rows) - 1

    @property
    def untouched(self) -> int:
        """How many listeners saw one unbroken row."""
        return sum(len(listener.rows) == 1 for listener in self.accepted.values())


@asynccontextmanager
async def load(url: str, prefix: str, blobs: Blobs, *, durability: Durability = "replica") -> AsyncIterator[Load]:
    """Two workers, a gateway's hub and a submitter for the length of the block."""
    stores = [
        await Store.connect(url, prefix=prefix, durability=durability, lease_seconds=LEASE_SECONDS) for _ in range(3)
    ]
    workers = [
        Worker(store, blobs, {"paced": paced}, concurrency=4, stop_grace_seconds=0.0, max_inline_bytes=64 * 1024)
        for store in stores[1:]
    ]
    hub = Hub(
        stores[0], heartbeat_seconds=1, write_stall_seconds=20, write_buffer_bytes=256 * 1024, metrics=NoMetrics()
    )
    running = [asyncio.create_task(worker.run()) for worker in workers]
    tasks = [asyncio.create_task(hub.run())]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(worker.ready.wait() for worker in workers))
        under = Load(stores, hub)
        submitting = asyncio.create_task(under.submit_on())
        tasks.append(submitting)
        yield under
        under.enough.set()
        async with asyncio.timeout(END_SECONDS):
            await submitting
        await under.check()
    finally:
        for worker in workers:
            worker.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*running)
        for store in stores:
            await store.close()


LEASE_SECONDS = 2.0


@pytest.fixture
async def own_cluster(tmp_path: Path) -> AsyncIterator[RedisCluster]:
    """A cluster of this test's own."""
    async with RedisCluster(tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
async def own_sentinel(tmp_path: Path) -> AsyncIterator[SentinelTrio]:
    """Sentinels of this test's own."""
    async with SentinelTrio(tmp_path / "sentinel") as trio:
        yield trio


async def test_a_killed_sentinel_master_loses_no_accepted_job(
    own_sentinel: SentinelTrio, prefix: str, blobs: Blobs
) -> None:
    """The Sentinels make its replica the master, and everybody goes there."""
    async with load(own_sentinel.url, prefix, blobs) as under:
        await under.busy(8)
        old = await own_sentinel.master()

        await old.kill()
        await wait_until(lambda: _is_new(own_sentinel, old), what="a new master")
        # Without a replica no submit is durable. It would be made one by the Sentinels, ten seconds later.
        await old.start()
        await old.ask("REPLICAOF", "127.0.0.1", (await own_sentinel.master()).port)
        await under.busy(8)

        assert under.refused
        assert under.store.feed.connected
        [address] = under.store._topology.masters
        assert address.port == (await own_sentinel.master()).port != old.port


@pytest.mark.slow
async def test_a_sentinel_master_that_hangs_is_left(own_sentinel: SentinelTrio, prefix: str, blobs: Blobs) -> None:
    """Its connections stand and would wait for ever; when it comes back, nobody writes to it."""
    async with load(own_sentinel.url, prefix, blobs) as under:
        await under.busy(4)
        old = await own_sentinel.master()

        old.stop()
        try:
            await wait_until(lambda: _is_new(own_sentinel, old), what="a new master")
            # Until they have heard of it, nothing tells them that the old one isn't the master any more.
            await wait_until(lambda: all(_knows_another(store, old) for store in under.stores))
        finally:
            old.go_on()
        await under.busy(8)


def _knows_another(store: Store, old: RedisProcess) -> bool:
    return old.port not in {address.port for address in store._topology.masters}


async def _is_new(trio: SentinelTrio, old: RedisProcess) -> bool:
    return await trio.master() is not old


async def test_a_killed_cluster_master_loses_no_accepted_job(
    own_cluster: RedisCluster, prefix: str, blobs: Blobs
) -> None:
    """The master of the kind's queue dies: its replica takes over, pointers that it lacks are found by a sweep."""
    async with load(own_cluster.url, prefix, blobs) as under:
        await under.busy(8)
        key = under.store._keys.kind("paced")[0]
        old = await own_cluster.master_of(key)

        await old.kill()
        await wait_until(lambda: _moved(own_cluster, key, old), what="a new master of the slot")
        await old.start()
        await under.busy(8)

        await wait_until(lambda: under.store.feed.connected)
        assert _knows_another(under.store, old)


async def test_a_planned_failover_of_a_cluster_master_is_hardly_noticed(
    own_cluster: RedisCluster, prefix: str, blobs: Blobs
) -> None:
    """`CLUSTER FAILOVER` loses nothing at all: no listener needs a reset."""
    async with load(own_cluster.url, prefix, blobs) as under:
        await under.busy(8)
        key = under.store._keys.kind("paced")[0]
        old = await own_cluster.master_of(key)

        await (await own_cluster.replica_of(old)).ask("CLUSTER", "FAILOVER")
        await wait_until(lambda: _moved(own_cluster, key, old), what="a new master of the slot")
        await under.busy(8)

    assert under.untouched == len(under.accepted)


async def _moved(cluster: RedisCluster, key: str, old: RedisProcess) -> bool:
    roles = await cluster.roles()
    if old in roles["master"]:
        return False
    try:
        return await cluster.master_of(key) is not old
    except AssertionError:
        return False


async def test_a_killed_server_with_an_append_only_file_comes_back_with_everything(
    tmp_path: Path, prefix: str, blobs: Blobs
) -> None:
    """Each write is in the file before it is acknowledged, so no listener needs a reset either."""
    server = RedisProcess(tmp_path / "server", free_port(), {"appendonly": "yes", "appendfsync": "always"})
    await server.start()
    try:
        async with load(f"redis://127.0.0.1:{server.port}/0", prefix, blobs, durability="redis") as under:
            for _ in range(2):
                await under.busy(6)
                await server.kill()
                await server.start()
            await under.busy(6)

        assert under.untouched == len(under.accepted)
    finally:
        await server.close()
