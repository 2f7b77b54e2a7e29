"""A cluster whose slots move while jobs run: commands follow them, and so do the live feed and the renewals."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from gateway.documents import KindDocument
from gateway.errors import Unavailable
from gateway.protocol import START, State
from gateway.store import JobRecord, LogPage, Store
from gateway.store.deployment import Address
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import Ear, begin, end, event, new_job, submit
from tests.redis_servers import HOST, RedisCluster, RedisProcess
from tests.serving import gateway_for

T = TypeVar("T")
KIND = KindDocument(kind="echo")


@pytest.fixture
async def own_cluster(tmp_path: Path) -> AsyncIterator[RedisCluster]:
    """Two masters without replicas."""
    async with RedisCluster(tmp_path / "cluster", masters=2, replicas=False) as cluster:
        yield cluster


@pytest.fixture
async def store(own_cluster: RedisCluster, prefix: str) -> AsyncIterator[Store]:
    """A store in that cluster."""
    store = await Store.connect(own_cluster.url, prefix=prefix, lease_seconds=60)
    await store.register_kind(KIND)
    yield store
    await store.close()


class Move:
    """A slot's way from one master to another, step by step, as a resharding tool takes it."""

    def __init__(self, cluster: RedisCluster, slot: int, source: RedisProcess) -> None:
        self._slot = slot
        self._nodes = cluster.nodes
        self.source = source
        self.target = next(node for node in cluster.nodes if node is not source)

    async def _set_slot(self, node: RedisProcess, state: str, other: RedisProcess) -> None:
        name = (await other.ask("CLUSTER", "MYID")).decode()
        await node.ask("CLUSTER", "SETSLOT", self._slot, state, name)

    async def begin(self) -> None:
        """Both know that it is on its way: what isn't at the source any more is asked for at the target."""
        await self._set_slot(self.target, "IMPORTING", self.source)
        await self._set_slot(self.source, "MIGRATING", self.target)

    async def carry(self) -> int:
        """Carry all keys over; returns how many."""
        keys = await self.source.ask("CLUSTER", "GETKEYSINSLOT", self._slot, 100)
        if keys:
            await self.source.ask("MIGRATE", HOST, self.target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    async def finish(self) -> None:
        """The target is the slot's master."""
        for node in (self.target, self.source):
            await self._set_slot(node, "NODE", self.target)


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do something as a worker and a client do it: again while the store does not answer."""
    while True:
        try:
            return await work()
        except Unavailable:
            await asyncio.sleep(0.1)


async def _move_of(cluster: RedisCluster, key: str) -> Move:
    source = await cluster.master_of(key)
    return Move(cluster, await source.ask("CLUSTER", "KEYSLOT", key), source)


async def test_a_running_jobs_slot_moves_and_nothing_is_missed(own_cluster: RedisCluster, store: Store) -> None:
    """Written, read, renewed and heard before, while and after its keys go to another master."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    renewer = store.renewer("worker")
    ear = Ear()
    await store.feed.follow(record.id, ear)
    move = await _move_of(own_cluster, store._keys.record(record.id))
    try:
        await store.append(lease, 1, [event("log", {"message": "before"})])
        await wait_until(lambda: len(ear.events) == 1)
        await move.begin()
        assert await move.carry() >= 2
        # A script of several keys has to wait: the server says TRYAGAIN while it can't know whether it has them all.
        late = asyncio.create_task(patiently(lambda: store.append(lease, 2, [event("log", {"message": "on its way"})])))
        assert len((await store.events(record.id, START)).entries) == 3
        assert (await store.job(record.id)).last.number == 3

        await move.finish()
        assert (await late).last.number == 4
        await wait_until(lambda: ear.gaps, what="the new subscription")
        assert not (await asyncio.to_thread(renewer.renew, [lease]))[record.id].lost
        await store.append(lease, 3, [event("log", {"message": "moved"})])
        await wait_until(lambda: any(b"moved" in line for line in ear.events), what="a message from the new master")

        await end(store, lease, batch=4)
        assert [entry.number for entry in (await store.events(record.id, START)).entries] == [1, 2, 3, 4, 5, 6]
    finally:
        store.feed.unfollow(record.id, ear)
        renewer.close()


async def test_a_kinds_slot_moves_and_its_queue_goes_on(own_cluster: RedisCluster, store: Store) -> None:
    """Submits, claims and an idle worker's bell find the queue where it is."""
    first = await submit(store, KIND)
    move = await _move_of(own_cluster, store._keys.kind("echo")[0])
    await move.begin()
    await move.carry()

    submitting = asyncio.create_task(patiently(lambda: submit(store, KIND)))
    claiming = asyncio.create_task(patiently(lambda: store.claim("echo", "worker", 1)))
    assert (await store.depths(["echo"]))["echo"][0] == 1
    await move.finish()
    [claim] = await claiming
    assert claim.job == first.id
    second = await submitting
    assert [claim.job for claim in await store.claim("echo", "worker", 5)] == [second.id]
    waiting = asyncio.create_task(store.wait_for_work(["echo", "other", "third"], 100))
    await submit(store, KIND)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting


async def test_a_durable_submit_and_an_upload_follow_a_slot(
    own_cluster: RedisCluster, store: Store, prefix: str
) -> None:
    """Waiting for the disk happens at the server that wrote; a transaction waits until the slot has arrived."""
    durable = await Store.connect(own_cluster.url, prefix=prefix, durability="disk")
    try:
        record = await submit(durable, KIND)
        lease = await begin(durable, "echo")
        move = await _move_of(own_cluster, durable._keys.record(record.id))
        await move.begin()
        await move.carry()
        ending = asyncio.create_task(patiently(lambda: end(durable, lease, batch=1)))
        await asyncio.sleep(0)
        await move.finish()
        assert (await ending).terminal

        upload = await durable.create_upload("me", name="x", content_type="text/plain", length=3)
        move = await _move_of(own_cluster, durable._keys.upload(upload.id)[0])
        await move.begin()
        await move.carry()
        reading = asyncio.create_task(durable.upload(upload.id))
        await asyncio.sleep(0)
        await move.finish()
        assert (await reading).name == "x"
        assert await durable.extend_upload(upload.id, 0, 3, "blob") == 3
    finally:
        await durable.close()


async def test_a_sweep_looks_at_every_master(own_cluster: RedisCluster, store: Store) -> None:
    """Open jobs without a due entry are found wherever their records are."""
    jobs = {(await submit(store, KIND)).id for _ in range(12)}
    holders = {(await own_cluster.master_of(store._keys.record(job))).port for job in jobs}
    await store._client.delete(*store._keys.kind("echo"))

    assert len(holders) == 2
    assert await store.sweep() == len(jobs)


async def test_a_killed_master_keeps_nobody_from_the_logs_of_others(own_cluster: RedisCluster, store: Store) -> None:
    """Many logs are read at once, and of those only the ones whose keys it has can't be."""
    jobs: dict[int, str] = {}
    while len(jobs) < 2:
        record = await submit(store, KIND)
        jobs[(await own_cluster.master_of(store._keys.record(record.id))).port] = record.id
    killed = await own_cluster.master_of(store._keys.record(record.id))

    await killed.kill()
    read = await asyncio.gather(*(store.events(job, START) for job in jobs.values()), return_exceptions=True)
    heads = dict(zip(jobs, await store.heads(list(jobs.values())), strict=True))
    await killed.start()

    pages = dict(zip(jobs, read, strict=True))
    assert isinstance(pages.pop(killed.port), Unavailable)
    [page] = pages.values()
    assert isinstance(page, LogPage), page
    assert [entry.number for entry in page.entries] == [1]
    assert heads.pop(killed.port) is None
    assert list(heads.values()) == [page.head]


async def test_a_look_judges_no_job_of_a_master_that_is_away(cluster: str, prefix: str) -> None:
    """Its workers can't renew their leases either, and must have had the time to before anybody judges them."""
    store = await Store.connect(cluster, prefix=prefix)
    try:
        await store.register_kind(KIND)
        home = store._topology.owner(store._keys.kind("echo")[0])
        jobs: dict[bool, str] = {}
        while len(jobs) < 2:
            record = await submit(store, KIND)
            jobs.setdefault(store._topology.owner(store._keys.record(record.id)) == home, record.id)
        there = store._topology.owner(store._keys.record(jobs[False]))
        assert there is not None

        async def look(away: set[Address]) -> dict[bool, State]:
            for job in jobs.values():
                await store._client.hset(store._keys.record(job), "lease_until", 0)
                await store._client.zadd(store._keys.kind("echo")[1], {job: 0})
            await store.look(["echo"], away)
            return {at_home: (await store.job(job)).state for at_home, job in jobs.items()}

        while {(await store.job(job)).state for job in jobs.values()} != {State.RUNNING}:
            await begin(store, "echo")

        assert await look({there}) == {True: State.QUEUED, False: State.RUNNING}
        assert (await look(set()))[False] is State.QUEUED
    finally:
        await store.close()


async def test_who_hangs_is_not_tried_as_often_as_who_refuses(
    cluster: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try at a machine that is gone takes its whole time-out; meanwhile its caller does nothing else."""
    monkeypatch.setattr("gateway.store.cluster._LONGEST_SECONDS", 0.0)
    store = await Store.connect(cluster, prefix=prefix)
    tries = 0

    async def time_out(_: Any) -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.001)
        raise redis.TimeoutError

    try:
        with pytest.raises(redis.TimeoutError):
            await store._client.at(store._keys.record("a" * 26), time_out)
    finally:
        await store.close()
    assert tries == 1


@pytest.fixture
async def lasting_cluster(tmp_path: Path) -> AsyncIterator[RedisCluster]:
    """Three masters without replicas, which go on where one of them is away."""
    async with RedisCluster(tmp_path / "cluster", replicas=False) as cluster:
        for node in cluster.nodes:
            await node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield cluster


async def test_a_master_that_stays_away_stops_nothing_of_the_others(
    lasting_cluster: RedisCluster, prefix: str, tmp_path: Path
) -> None:
    """It has the list of kinds, too, and the owner's; looks, submits, places, readiness and starts go on."""
    store = await Store.connect(lasting_cluster.url, prefix=prefix, lease_seconds=0.5)
    away = await lasting_cluster.master_of(store._keys.kinds)

    def elsewhere(key: str) -> bool:
        owner = store._topology.owner(key)
        assert owner is not None
        return owner.port != away.port

    def named(here: bool, key_of: Callable[[str], str]) -> str:
        return next(name for name in (f"n{i}" for i in itertools.count()) if elsewhere(key_of(name)) is here)

    async def submitted(kind: KindDocument, here: bool = True) -> JobRecord:
        while elsewhere(store._keys.record(job := await store.job_id(owner, None))) is not here:
            pass
        return (await store.submit(job, new_job(kind, owner=owner), keyed=False)).record

    there, lost = (KindDocument(kind=named(here, lambda name: store._keys.kind(name)[0])) for here in (True, False))
    owner = named(False, store._keys.owner)
    looking = asyncio.create_task(store.look_loop(), name="looks")
    try:
        async with gateway_for(store, tmp_path / "blobs") as gateway:
            for kind in (there, lost):
                await store.register_kind(kind)
            waiting = await submitted(lost)
            at_the_lost = await submitted(there, here=False)
            await begin(store, there.kind)
            await wait_until(lambda: store.feed.connected)
            assert {there.kind, lost.kind} <= (await store.kinds()).keys()

            await away.kill()
            await patiently(lambda: submitted(there))
            held = await patiently(lambda: begin(store, there.kind))

            async def is_queued() -> bool:
                return (await store.job(held.job)).state is State.QUEUED

            await wait_until(lambda: patiently(is_queued), what="the look that takes the job from its silent worker")
            newest = await patiently(lambda: submitted(there))
            place, unknown = await patiently(lambda: store.positions([newest, waiting]))
            assert place is not None
            assert (place.position or 0) >= 1
            assert unknown is None
            await (await patiently(lambda: Store.connect(lasting_cluster.url, prefix=prefix))).close()

            async def is_ready() -> bool:
                ready = await gateway.get("/readyz")
                said = ready.json().get("warnings", [])
                return ready.status == 200 and any("1 of 3 masters do not answer" in warning for warning in said)

            await wait_until(is_ready, what="a gateway that is ready, and says what is away")

            await away.start()

            async def is_taken() -> bool:
                return (await store.job(at_the_lost.id)).state is State.QUEUED

            await wait_until(lambda: patiently(is_taken), what="the look at the job of the master that was away")
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await store.close()


async def test_the_feed_of_a_killed_master_does_not_disturb_the_others(own_cluster: RedisCluster, store: Store) -> None:
    """One connection per master, each with its own way back."""
    ears: dict[str, tuple[Ear, RedisProcess]] = {}
    while len({node.port for _, node in ears.values()}) < 2:
        record = await submit(store, KIND)
        ears[record.id] = Ear(), await own_cluster.master_of(store._keys.record(record.id))
        await store.feed.follow(record.id, ears[record.id][0])
    killed = next(iter(ears.values()))[1]

    await killed.kill()
    await wait_until(lambda: not store.feed.connected)
    await killed.start()
    await wait_until(lambda: all(ear.gaps for ear, node in ears.values() if node is killed))

    assert all(not ear.gaps for ear, node in ears.values() if node is not killed)
    for job, (ear, _) in ears.items():
        store.feed.unfollow(job, ear)
