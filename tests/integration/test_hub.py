"""The hub: every listener gets every later event once, in order, whatever happens to the live feed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from gateway.documents import KindDocument
from gateway.hub import Frame, Hub, Listener, Place, Watch
from gateway.metrics import NoMetrics
from gateway.protocol import START, CloseCode, Cursor, EventType
from gateway.store import PAGE_EVENTS, JobRecord, LogPage, Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end, event, submit

pytestmark = pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True)
KIND = KindDocument(kind="echo")


class SlowTransport(asyncio.WriteTransport):
    """A transport whose reader takes nothing while `stopped`."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = False
        self.waiting = 0
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.stopped:
            self.waiting += len(data)

    def get_write_buffer_size(self) -> int:
        if not self.stopped:
            self.waiting = 0
        return self.waiting

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Collector(Listener):
    """Keeps what a client would have seen."""

    def __init__(self, hub: Hub) -> None:
        self.slow = SlowTransport()
        super().__init__(hub.pulse, self.slow, transport_name="sse")
        self.cursors: list[Cursor] = []
        self.types: list[str] = []
        self.unnumbered: list[tuple[str, bytes, Cursor | None]] = []
        self.heartbeats = 0
        self.writes = 0

    def encode(self, place: Place, frame: Frame) -> bytes:
        self.cursors.append(Cursor(frame.number, frame.time_ms))
        self.types.append(frame.type.decode())
        return frame.sse

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        self.unnumbered.append((type_, text, cursor))
        return text or b"x"

    def heartbeat(self) -> bytes:
        self.heartbeats += 1
        return b"h"

    def send(self, data: bytes) -> None:
        self.writes += 1
        self.transport.write(data)

    def finished(self, place: Place) -> None:
        self.close(None)

    @property
    def numbers(self) -> list[int]:
        return [cursor.number for cursor in self.cursors]


@pytest.fixture
def _positions_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.hub._POSITION_SECONDS", 0.05)


@pytest.fixture
async def hub(store: Store) -> AsyncIterator[Hub]:
    """A hub with a short heartbeat."""
    hub = Hub(
        store,
        heartbeat_seconds=0.5,
        write_stall_seconds=PATIENCE_SECONDS,
        write_buffer_bytes=256 * 1024,
        metrics=NoMetrics(),
    )
    running = asyncio.create_task(hub.run())
    yield hub
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def listen(hub: Hub, record: JobRecord, after: Cursor = START, **options: bool) -> Collector:
    """A listener that has replayed the log and hears the feed."""
    collector = Collector(hub)
    hub.open(collector)
    await hub.start(hub.place(collector, record, after), **options)
    return collector


async def until(hub: Hub, collector: Collector, number: int) -> None:
    """Wait until a listener has an event."""
    await wait_until(lambda: collector.cursors and collector.cursors[-1].number >= number)


async def test_a_listener_gets_the_log_and_then_what_comes(hub: Hub, store: Store) -> None:
    """Replay and live are one unbroken row of numbers, and the terminal event ends it."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": str(i)}) for i in range(5)])

    collector = await listen(hub, record)
    assert collector.numbers == [1, 2, 3, 4, 5, 6, 7]
    await store.append(lease, 2, [event("log", {"message": "live"})])
    await end(store, lease, batch=3)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await collector.closed
    assert collector.numbers == list(range(1, 10))
    assert collector.types[-1] == "succeeded"


async def test_listeners_that_join_while_events_are_written_miss_none(hub: Hub, store: Store) -> None:
    """The race between replay and live, a hundred times, from random cursors."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    rng = random.Random(7)

    async def write() -> None:
        for batch in range(1, 301):
            await store.append(lease, batch, [event("log", {"message": str(batch)})] * rng.randint(1, 3))
        await end(store, lease, batch=301)

    async def join() -> tuple[int, Collector]:
        await asyncio.sleep(rng.random() * 0.25)
        head = (await store.job(record.id)).last.number
        after = rng.randint(0, head)
        collector = await listen(hub, record, Cursor(after))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await collector.closed
        return after, collector

    writing = asyncio.create_task(write())
    listeners = await asyncio.gather(*(join() for _ in range(100)))
    await writing

    last = (await store.job(record.id)).last.number
    for after, collector in listeners:
        assert collector.numbers == list(range(after + 1, last + 1))


async def test_an_event_between_the_read_and_the_subscription_is_not_missed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subscribed first, then read: what is written right after the read comes over the feed, not with a heartbeat."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    read = store.events
    hub = Hub(store, heartbeat_seconds=60, write_stall_seconds=60, write_buffer_bytes=256 * 1024, metrics=NoMetrics())
    running = asyncio.create_task(hub.run())

    async def read_and_be_overtaken(job: str, after: Cursor, limit: int = PAGE_EVENTS) -> LogPage:
        page = await read(job, after, limit)
        monkeypatch.setattr(store, "events", read)
        await store.append(lease, 1, [event("log", {"message": "in between"})])
        return page

    monkeypatch.setattr(store, "events", read_and_be_overtaken)
    collector = await listen(hub, record)

    await until(hub, collector, 3)
    running.cancel()
    await asyncio.wait({running})


async def test_dropped_live_messages_are_read_from_the_log(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pub/sub is only the fast path: a hole is seen by its number and filled."""
    rng = random.Random(3)
    heard = Watch.on_message

    def lossy(self: Watch, payload: bytes) -> None:
        if rng.random() < 0.7:
            heard(self, payload)

    monkeypatch.setattr(Watch, "on_message", lossy)
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    collector = await listen(hub, record)
    for batch in range(1, 200):
        await store.append(lease, batch, [event("log", {"message": str(batch)})])
    monkeypatch.setattr(Watch, "on_message", heard)
    await end(store, lease, batch=200)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await collector.closed
    assert collector.numbers == list(range(1, 203))


async def test_a_lost_tail_of_messages_is_noticed_without_another_event(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the last message of all is dropped, no later number shows the hole: the hub compares with the log."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    collector = await listen(hub, record)
    monkeypatch.setattr(Watch, "on_message", lambda self, payload: None)

    await end(store, lease, batch=1)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await collector.closed
    assert collector.numbers == [1, 2, 3]


async def test_a_killed_feed_connection_loses_nothing(hub: Hub, store: Store) -> None:
    """The feed reconnects by itself, and every listener reads on from its own place."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    collector = await listen(hub, record)

    for batch in range(1, 121):
        if batch % 40 == 0:
            for server in store._client.servers():
                await server.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
        await store.append(lease, batch, [event("log", {"message": str(batch)})])
    await end(store, lease, batch=121)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await collector.closed
    assert collector.numbers == list(range(1, 124))
    assert store.feed.reconnects >= 1


async def test_a_slow_listener_is_not_waited_for_and_reads_on_when_it_can(hub: Hub, store: Store) -> None:
    """Its buffer stays bounded; the fast listener beside it hears everything at once."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    slow, fast = await listen(hub, record), await listen(hub, record)
    slow.slow.stopped = True

    last = 2
    for batch in range(1, 101):
        last = (await store.append(lease, batch, [event("log", {"message": "x" * 10_000})])).last.number
    await until(hub, fast, last)
    assert slow.waiting_bytes < 256 * 1024
    assert len(slow.numbers) < last
    slow.slow.stopped = False
    await until(hub, slow, last)

    assert fast.numbers == slow.numbers == list(range(1, last + 1))


async def test_a_listener_that_never_reads_is_closed_as_slow(hub: Hub, store: Store) -> None:
    """Past the stall time its connection ends, with advice to come back."""
    record = await submit(store, KIND)
    await begin(store, "echo")
    collector = await listen(hub, record)
    collector.slow.stopped = True
    hub.pulse.write_stall_seconds = 0.3

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await collector.closed is CloseCode.SLOW
    assert collector.slow.aborted


async def test_silence_is_broken_by_heartbeats(hub: Hub, store: Store) -> None:
    """A queued job says nothing for minutes; its stream doesn't."""
    record = await submit(store, KIND)
    collector = await listen(hub, record)

    await wait_until(lambda: collector.heartbeats >= 2)
    assert collector.numbers == [1]


async def test_a_running_jobs_listener_hears_whether_its_worker_lives(hub: Hub, store: Store) -> None:
    """The gateway composes liveness from the last renewal, so that a dead worker shows as well."""
    record = await submit(store, KIND)
    await begin(store, "echo", "worker-7")
    collector = await listen(hub, await store.job(record.id))

    def silences() -> list[float]:
        return [
            float(text.split(b'"silent_seconds":')[1].split(b"}")[0])
            for type_, text, _ in collector.unnumbered
            if type_ == EventType.LIVENESS and b"worker-7" in text
        ]

    await wait_until(lambda: len(silences()) >= 3)
    assert silences() == sorted(silences())
    assert silences()[-1] > 0.5


async def test_the_first_liveness_of_an_attempt_names_its_worker(hub: Hub, store: Store) -> None:
    """Also for a listener that came while the job was queued."""
    record = await submit(store, KIND)
    collector = await listen(hub, record)
    await begin(store, "echo", "worker-8")

    def liveness() -> list[bytes]:
        return [text for type_, text, _ in collector.unnumbered if type_ == EventType.LIVENESS]

    await wait_until(liveness)
    assert all(b"worker-8" in text for text in liveness())


async def test_a_job_that_began_before_its_feed_was_followed_has_liveness(hub: Hub, store: Store) -> None:
    """Its `started` is read from the log then, and says as much as if it had been heard."""
    record = await submit(store, KIND)
    await begin(store, "echo", "worker-9")
    collector = await listen(hub, record)

    def liveness() -> list[bytes]:
        return [text for type_, text, _ in collector.unnumbered if type_ == EventType.LIVENESS]

    await wait_until(liveness)
    assert all(b"worker-9" in text for text in liveness())


@pytest.mark.usefixtures("_positions_come_soon")
async def test_a_queued_jobs_listener_hears_its_position(hub: Hub, store: Store) -> None:
    """The place in the queue comes as a transient event when it changes, and when there is an estimate or none."""
    first = await submit(store, KIND)
    record = await submit(store, KIND)
    collector = await listen(hub, record)

    async def hears(data: bytes) -> None:
        await wait_until(lambda: data in collector.unnumbered[-1][1] if collector.unnumbered else False)

    await hears(b'"data":{"position":2,"eta_seconds":null}')
    await store.present("w", ["echo"], 1)
    lease = await begin(store, "echo")
    await hears(b'"data":{"position":1,"eta_seconds":null}')
    await store.leave(lease, first, ran_seconds=7)
    await hears(b'"data":{"position":1,"eta_seconds":7.0}')
    await store.pause("echo", True)
    await hears(b'"data":{"position":1,"eta_seconds":null}')


async def test_a_rewritten_history_is_announced_and_never_spliced(hub: Hub, store: Store) -> None:
    """A cursor that another history has at its place gets `reset` and a snapshot, then the log from there."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": "b"})])

    collector = await listen(hub, record, Cursor(2, 12345))

    assert [type_ for type_, _, _ in collector.unnumbered][:2] == ["reset", "snapshot"]
    assert collector.numbers == [1, 2, 3]


async def test_a_snapshot_is_the_stored_fold_and_the_log_goes_on_after_it(hub: Hub, store: Store) -> None:
    """A new listener of a long job needs not read it all."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    appended = await store.append(lease, 1, [event("log", {"message": str(i)}) for i in range(50)])
    fold = b'{"cursor":"%s"}' % str(appended.last).encode()
    await store.append(lease, 2, [event("log", {"message": "after"})], fold=fold, fold_cursor=appended.last)

    collector = await listen(hub, record, snapshot=True)

    [(type_, text, cursor)] = collector.unnumbered[:1]
    assert (type_, cursor) == ("snapshot", appended.last)
    assert b'"data":' + fold in text
    assert collector.numbers == [appended.last.number + 1]


async def test_a_thousand_listeners_share_one_redis_connection(hub: Hub, store: Store) -> None:
    """Listeners cost sockets to clients, not to Redis."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")

    async def connections() -> int:
        clients = [await server.info("clients") for server in store._client.servers()]
        return sum(int(one["connected_clients"]) for one in clients)

    before = await connections()
    collectors = await asyncio.gather(*(listen(hub, record) for _ in range(1000)))
    await store.append(lease, 1, [event("log", {"message": "hello"})])
    await asyncio.gather(*(until(hub, collector, 3) for collector in collectors))

    assert await connections() - before <= 16
    assert all(collector.numbers == [1, 2, 3] for collector in collectors)


async def test_events_of_one_turn_are_one_write(hub: Hub, store: Store) -> None:
    """A batch of forty events costs each listener one write."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    collector = await listen(hub, record)
    writes = collector.writes

    await store.append(lease, 1, [event("delta", {"channel": "text", "text": "a"})] * 40)
    await until(hub, collector, 42)

    assert collector.writes - writes <= 2


async def test_the_last_listener_to_go_ends_the_jobs_feed(hub: Hub, store: Store) -> None:
    """A gateway subscribes only to jobs that it serves."""
    record = await submit(store, KIND)
    one, two = await listen(hub, record), await listen(hub, record)
    channel = store._keys.live(record.id)

    async def subscribers() -> int:
        counts = [await server.execute_command("PUBSUB", "SHARDNUMSUB", channel) for server in store._client.servers()]
        return sum(int(count[1]) for count in counts)

    async def nobody() -> bool:
        return await subscribers() == 0

    hub.close(one, "gone")
    assert await subscribers() == 1
    hub.close(two, "gone")

    await wait_until(nobody)


async def test_draining_tells_every_listener_to_come_back(hub: Hub, store: Store) -> None:
    """A stopping gateway closes its streams spread over a time."""
    record = await submit(store, KIND)
    collectors = [await listen(hub, record) for _ in range(10)]

    await hub.drain(0.2)

    assert [collector.closed.result() for collector in collectors] == [CloseCode.DRAINING] * 10


async def test_waiting_for_an_end_returns_with_it(hub: Hub, store: Store) -> None:
    """`?wait=` costs no polling."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    waiting = asyncio.create_task(hub.wait_for_end(await store.job(record.id), 100))
    await asyncio.sleep(0)

    await end(store, lease, batch=1)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting
