"""The hub: brings each job's events to every listener of this gateway, in order, each once.

One live feed for the process; a listener replays the log and then hears the feed. Nothing here waits for a listener:
frames are built once per event, handed to the transport once per loop turn, and a listener that is slow falls back to
reading the log when it has room again. There is no queue, task or timer per listener: one clock walks all of them.

    feed -> Watch (one per job) -> Subscription (a listener's place in that job's log) -> Listener (a connection)
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final

from gateway.errors import Gone, NotFound, Unavailable
from gateway.fold import Fold
from gateway.metrics import Metrics
from gateway.protocol import (
    NEVER_HIDDEN,
    TERMINAL_TYPES,
    CloseCode,
    Cursor,
    EventType,
    State,
    encode_transient,
    format_time,
)
from gateway.store import JobRecord, LogEntry, Store

logger = logging.getLogger(__name__)

_CLOCK_SECONDS: Final = 0.5
_DRAIN_POLL_SECONDS: Final = 0.05
_POSITION_SECONDS: Final = 3.0
_QUIET_SECONDS: Final = 0.25
# Heads asked for in one pipeline.
_COMPARED: Final = 500
# Events of one job that are kept as built, for those who join or come back; a few hundred KB for a watched job.
_RECENT_FRAMES: Final = 512
# A listener with more than this in its socket buffer hears nothing live; below the second bound it reads on.
_CONGESTED_BYTES: Final = 128 * 1024
_ROOM_BYTES: Final = 32 * 1024
_TERMINAL: Final = frozenset(type_.encode() for type_ in TERMINAL_TYPES)
_ALWAYS: Final = frozenset(type_.encode() for type_ in NEVER_HIDDEN)
_STATE_AFTER: Final = {b"queued": State.QUEUED, b"started": State.RUNNING, b"retrying": State.QUEUED}


class Frame:
    """One event, and its bytes on each transport: each is built once, at first use, and shared by all listeners."""

    __slots__ = ("_sse", "_websocket", "number", "text", "time_ms", "type")

    def __init__(self, number: int, time_ms: int, type_: bytes, text: bytes) -> None:
        self.number = number
        self.time_ms = time_ms
        self.type = type_
        self.text = text
        self._sse: bytes | None = None
        self._websocket: bytes | None = None

    @property
    def sse(self) -> bytes:
        """The event as an SSE block. Its text has no line break (JSON), its id is digits: nothing can be injected."""
        if self._sse is None:
            self._sse = b"id: %d-%d\ndata: %b\n\n" % (self.number, self.time_ms, self.text)
        return self._sse

    @property
    def websocket(self) -> bytes:
        """The event as an unmasked, uncompressed WebSocket text frame (RFC 6455, section 5.2)."""
        if self._websocket is None:
            self._websocket = websocket_frame(self.text)
        return self._websocket


def websocket_frame(text: bytes) -> bytes:
    """A server's text frame around ready bytes."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2) + text
    return b"\x81\x7f" + size.to_bytes(8) + text


class Listener(ABC):
    """One connection that hears events. Subclasses know the transport; the hub knows when to write what."""

    def __init__(self, hub: Hub, transport: asyncio.WriteTransport, *, transport_name: str) -> None:
        self.hub = hub
        self.transport = transport
        self.transport_name = transport_name
        self.closed: asyncio.Future[CloseCode | None] = asyncio.get_running_loop().create_future()
        self.opened_at = self.written_at = self.moved_at = hub.clock()
        self.subscriptions: set[Subscription] = set()
        self.ends_at: float | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._buffered_before = 0

    @abstractmethod
    def encode(self, subscription: Subscription, frame: Frame) -> bytes:
        """An event's bytes on this transport."""

    @abstractmethod
    def encode_unnumbered(
        self, subscription: Subscription, text: bytes, type_: str, cursor: Cursor | None = None
    ) -> bytes:
        """The bytes of a transient event, a reset, or (with a cursor) a snapshot."""

    @abstractmethod
    def heartbeat(self) -> bytes:
        """What breaks the silence and is no event."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Hand bytes to the transport; never waits."""

    def finished(self, subscription: Subscription) -> None:  # noqa: B027 - a stream of one job ends with it; a socket goes on
        """The job's terminal event has been sent."""

    def push(self, data: bytes) -> None:
        """Send with everything else of this loop turn, in one write."""
        if not self._pending:
            self.hub.flush_soon(self)
        self._pending.append(data)
        self._pending_bytes += len(data)

    def flush(self) -> None:
        """Write what was pushed."""
        if not self._pending:
            return
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if self.closed.done() or self.transport.is_closing():
            return
        self.written_at = self.hub.clock()
        self.send(data)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that this listener has not taken yet."""
        return self._pending_bytes + self.transport.get_write_buffer_size()

    def close(self, code: CloseCode | None) -> None:
        """End the connection; None is the regular end."""
        if not self.closed.done():
            self.flush()
            self.closed.set_result(code)

    def tick(self, now: float) -> None:
        """Called by the hub's clock: heartbeat, stalled writes, planned end."""
        waiting = self.waiting_bytes
        if waiting == 0 or waiting < self._buffered_before:
            self.moved_at = now
        self._buffered_before = waiting
        if waiting and now - self.moved_at > self.hub.write_stall_seconds:
            self.hub.metrics.count("slow_closed")
            self.close(CloseCode.SLOW)
            # What is in the socket's buffer will never be read; waiting for it would keep the connection for ever.
            self.transport.abort()
        elif self.ends_at is not None and now >= self.ends_at:
            self.close(CloseCode.MAX_AGE)
        elif now - self.written_at >= self.hub.heartbeat_seconds and waiting < self.hub.write_buffer_bytes:
            for subscription in self.subscriptions:
                subscription.push_skipped()
            self.push(self.heartbeat())


class Subscription:
    """One listener's place in one job's event log."""

    __slots__ = ("_behind", "_reading", "listener", "live", "number", "skipped", "time_ms", "types", "watch")

    def __init__(self, watch: Watch, listener: Listener, after: Cursor, types: frozenset[bytes] | None) -> None:
        self.watch = watch
        self.listener = listener
        self.number = after.number
        self.time_ms = after.time_ms
        self.types = types
        self.live = False
        self.skipped = False
        self._reading = False
        self._behind = False

    @property
    def cursor(self) -> Cursor:
        """The last event that this listener was given."""
        return Cursor(self.number, self.time_ms)

    def deliver(self, frames: list[Frame]) -> None:
        """Take live events; one that doesn't follow on means reading the log again."""
        listener = self.listener
        if listener.waiting_bytes > _CONGESTED_BYTES:
            self.fall_behind()
            return
        for frame in frames:
            if frame.number <= self.number:
                continue
            if frame.number != self.number + 1:
                self.fall_behind()
                return
            self._pass_on(frame)

    def _pass_on(self, frame: Frame) -> None:
        self.number = frame.number
        self.time_ms = frame.time_ms
        if self.types is None or frame.type in self.types or frame.type in _ALWAYS:
            self.skipped = False
            self.listener.push(self.listener.encode(self, frame))
            if frame.type in _TERMINAL:
                self.live = False
                self.listener.flush()
                self.listener.finished(self)
        else:
            self.skipped = True

    def push_transient(self, type_: EventType, text: bytes) -> None:
        """Send an event that has no number, unless it is filtered out."""
        if self.live and (self.types is None or type_.encode() in self.types):
            self.listener.push(self.listener.encode_unnumbered(self, text, type_))

    def push_skipped(self) -> None:
        """Move the client's cursor past events that its filter hid."""
        if self.skipped:
            self.skipped = False
            self.listener.push(self.listener.encode_unnumbered(self, b"", "", self.cursor))

    def fall_behind(self) -> None:
        """Hear nothing live until the log has been read up to its head."""
        self.live = False
        if not self._reading and not self._behind:
            self._behind = True
            self.watch.hub.spawn(self.catch_up())

    async def catch_up(self) -> None:
        """Read the log up to its head, page by page as the listener has room, then hear the feed.

        An outage of Redis is waited for; the connection's heartbeats go on meanwhile.
        """
        self._behind = False
        if self._reading:
            return
        self._reading = True
        try:
            await self._read_on()
        finally:
            self._reading = False

    async def _read_on(self) -> None:
        hub, watch = self.watch.hub, self.watch
        while not self.listener.closed.done() and self in self.listener.subscriptions:
            await hub.wait_for_room(self.listener)
            gaps = watch.gaps
            try:
                # Subscribed first, then read: what is published from here on is heard, what was before is in the log.
                await hub.store.feed.follow(watch.job, watch)
                page = await hub.store.events(watch.job, self.cursor)
                if page.broken:
                    await self._start_over(page.broken, page.head)
                    continue
            except Unavailable:
                await asyncio.sleep(random.uniform(0.3, 1.0))
                continue
            except (NotFound, Gone):
                # Expired while somebody listened: the next request of this client hears 410.
                self.listener.close(CloseCode.MAX_AGE)
                return
            for frame in watch.frames(page.entries):
                self._pass_on(frame)
            self.listener.flush()
            if page.terminal and not page.entries:
                # The client had the end already.
                self.listener.finished(self)
            if page.terminal and self.number >= page.head.number:
                return
            # Nothing was awaited since the page came, so nobody has been told of a later event but by `watch.head`.
            watch.head = max(watch.head, page.head.number)
            if self.number >= watch.head and gaps == watch.gaps:
                self.live = True
                return

    async def _start_over(self, reason: str, head: Cursor) -> None:
        """Tell the listener that history is gone or was rewritten: `reset`, then a snapshot to build on."""
        hub, job = self.watch.hub, self.watch.job
        stored = await hub.store.fold(job)
        missing_to = stored[0].number if stored else head.number
        data = {"reason": reason, "missing_from": self.number + 1, "missing_to": max(missing_to, self.number)}
        text = encode_transient(EventType.RESET, job, hub.now_ms(), data)
        self.listener.push(self.listener.encode_unnumbered(self, text, EventType.RESET))
        hub.metrics.count("resumes", result="reset")
        self.push_snapshot(stored)

    def push_snapshot(self, stored: tuple[Cursor, bytes] | None) -> None:
        """Send the stored fold as it is, and go on from its cursor; without one, start from nothing."""
        cursor, fold = stored or (Cursor(0, 0), Fold.empty(self.watch.job).encode())
        text = b'{"id":%d,"time":"%b","job":"%b","type":"snapshot","data":%b}' % (
            cursor.number,
            format_time(cursor.time_ms or self.watch.created_ms).encode(),
            self.watch.job.encode(),
            fold,
        )
        self.listener.push(self.listener.encode_unnumbered(self, text, EventType.SNAPSHOT, cursor))
        self.number, self.time_ms = cursor.number, cursor.time_ms or None


class Watch:
    """A job that somebody here listens to: the follower of its live channel, and what is known of its worker."""

    def __init__(self, hub: Hub, record: JobRecord) -> None:
        self.hub = hub
        self.record = record
        self.job = record.id
        self.created_ms = record.created_ms
        self.head = 0
        self.state = record.state
        self.worker = record.worker or ""
        self.seen_at = hub.clock() - max(0.0, (hub.now_ms() - (record.seen_ms or hub.now_ms())) / 1000)
        self.heard_at = hub.clock()
        self.liveness_at = float("-inf")
        self.warned = False
        self.position: int | None = -1
        self.subscriptions: set[Subscription] = set()
        self.gaps = 0
        self._state_number = record.last.number
        self._recent: dict[int, Frame] = {}

    def frames(self, entries: list[LogEntry]) -> list[Frame]:
        """Frames of log entries. A thousand listeners that come back together share what one of them has built."""
        return [self._frame(*entry) for entry in entries]

    def _frame(self, number: int, time_ms: int, type_: bytes, text: bytes) -> Frame:
        known = self._recent.get(number)
        if known is not None and known.time_ms == time_ms:
            return known
        if len(self._recent) >= _RECENT_FRAMES:
            self._recent.clear()
        frame = self._recent[number] = Frame(number, time_ms, type_, text)
        if number > self._state_number and (state := _STATE_AFTER.get(type_)) is not None:
            self.state = state
            self.position = -1
            self._state_number = number
        return frame

    def on_message(self, payload: bytes) -> None:
        """A message of the live channel: `N-T type text` lines, or `seen ms worker`."""
        self.seen_at = self.hub.clock()
        self.warned = False
        if payload.startswith(b"seen "):
            self.worker = payload.split(b" ", 2)[2].decode()
            return
        frames = []
        for line in payload.split(b"\n"):
            cursor, type_, text = line.split(b" ", 2)
            number, _, time_ms = cursor.partition(b"-")
            known = self._recent.get(int(number))
            if known is not None and known.time_ms == int(time_ms):
                # Somebody has read it from the log already; others may still need it live.
                frames.append(known)
                continue
            if int(number) <= self.head:
                # A number that was used for something else: Redis lost its tail. Everybody's cursor must be checked.
                self.on_gap()
                return
            frames.append(self._frame(int(number), int(time_ms), type_, text))
        self.head = max(self.head, frames[-1].number)
        self.heard_at = self.seen_at
        for subscription in tuple(self.subscriptions):
            if subscription.live:
                subscription.deliver(frames)

    def compare(self, head: Cursor | None) -> None:
        """Hold what was heard against the log's head: a lost last message shows by nothing else."""
        if head is None or self.head == 0:
            return
        known = self._recent.get(head.number)
        if head.number != self.head or (known is not None and known.time_ms != head.time_ms):
            self.on_gap()

    def on_gap(self) -> None:
        """Messages may have been lost: every listener reads the log again, which also checks its cursor."""
        self.gaps += 1
        self.head = 0
        for subscription in tuple(self.subscriptions):
            subscription.fall_behind()

    def push_liveness(self, now: float) -> None:
        """Tell listeners how long the worker has been silent: with each heartbeat, and once when it gets late."""
        silent = now - self.seen_at
        late = silent > self.hub.store.lease_seconds / 2 and not self.warned
        if self.state is not State.RUNNING or (now - self.liveness_at < self.hub.heartbeat_seconds and not late):
            return
        self.liveness_at = now
        self.warned = self.warned or late
        data = {
            "worker": self.worker,
            "seen_at": format_time(self.hub.now_ms() - int(silent * 1000)),
            "silent_seconds": round(silent, 1),
        }
        self._push_transient(EventType.LIVENESS, data)

    def push_position(self, position: int | None) -> None:
        """Tell listeners the job's place in the queue, if it has changed."""
        if position != self.position and self.state is State.QUEUED:
            self.position = position
            self._push_transient(EventType.POSITION, {"position": position, "eta_seconds": None})

    def _push_transient(self, type_: EventType, data: dict[str, Any]) -> None:
        text = encode_transient(type_, self.job, self.hub.now_ms(), data)
        for subscription in tuple(self.subscriptions):
            subscription.push_transient(type_, text)


class Hub:
    """All listeners of this gateway, and the one clock that walks them."""

    def __init__(
        self,
        store: Store,
        *,
        heartbeat_seconds: float,
        write_stall_seconds: float,
        write_buffer_bytes: int,
        metrics: Metrics,
    ) -> None:
        self.store = store
        self.heartbeat_seconds = heartbeat_seconds
        self.write_stall_seconds = write_stall_seconds
        self.write_buffer_bytes = write_buffer_bytes
        self.metrics = metrics
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time
        self.listeners: set[Listener] = set()
        self._watches: dict[str, Watch] = {}
        self._dirty: list[Listener] = []
        self._waiting_for_room: list[tuple[Listener, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def now_ms() -> int:
        """This gateway's own clock; only for transient events, which nobody resumes from."""
        return int(time.time() * 1000)

    async def run(self) -> None:
        """Walk all listeners twice a second; never returns. What it started is ended with it."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._clock_loop(), name="hub clock")
                group.create_task(self._position_loop(), name="hub positions")
                group.create_task(self._compare_loop(), name="hub compares heads")
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a listener's catch-up beside its handler; owned by the hub, ended with it."""
        task = self._loop.create_task(work, name="hub catch-up")
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a listener's catch-up failed", exc_info=error)

    def open(self, listener: Listener) -> None:
        """Take a connection into the clock's walk: from now on it has heartbeats and deadlines."""
        self.listeners.add(listener)
        self.metrics.count("connections_opened", transport=listener.transport_name)

    def place(
        self, listener: Listener, record: JobRecord, after: Cursor, *, types: Iterable[str] | None = None
    ) -> Subscription:
        """Give a listener a place in a job's log; nothing is sent before `start`."""
        watch = self._watches.get(record.id)
        if watch is None:
            watch = self._watches[record.id] = Watch(self, record)
        wanted = None if types is None else frozenset(type_.encode() for type_ in types)
        subscription = Subscription(watch, listener, after, wanted)
        watch.subscriptions.add(subscription)
        listener.subscriptions.add(subscription)
        if after.number:
            self.metrics.count("resumes", result="exact" if after == record.last else "replayed")
        return subscription

    async def start(self, subscription: Subscription, *, snapshot: bool = False) -> None:
        """Send a listener what the log has after its cursor, then live events; a snapshot first, if asked for.

        Returns when the log has been read to its head. Cancelling it ends the reading; `close` the listener then.
        """
        if snapshot:
            stored = None
            with suppress(Unavailable):
                stored = await self.store.fold(subscription.watch.job)
            if subscription.number == 0 or (stored is not None and stored[0].number > subscription.number):
                subscription.push_snapshot(stored)
        await subscription.catch_up()

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a listener's place in a job's log; the last one to go ends the job's live feed here."""
        watch = subscription.watch
        if subscription not in watch.subscriptions:
            return
        subscription.live = False
        watch.subscriptions.discard(subscription)
        subscription.listener.subscriptions.discard(subscription)
        if not watch.subscriptions and self._watches.get(watch.job) is watch:
            del self._watches[watch.job]
            self.store.feed.unfollow(watch.job)

    def close(self, listener: Listener, reason: str) -> None:
        """Forget a connection and all its subscriptions."""
        if listener not in self.listeners:
            return
        self.listeners.discard(listener)
        for subscription in tuple(listener.subscriptions):
            self.unsubscribe(subscription)
        if not listener.closed.done():
            listener.closed.set_result(None)
        self.metrics.count("connections_closed", transport=listener.transport_name, reason=reason)

    async def wait_for_end(self, record: JobRecord, seconds: float) -> None:
        """Return when the job has ended, or after some seconds. Costs the job's live feed, no polling."""
        listener = _Waiter(self)
        self.open(listener)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.start(self.place(listener, record, record.last))
                    await listener.closed
        finally:
            self.close(listener, "done")

    async def drain(self, seconds: float) -> None:
        """Close all streams, spread over a time, each told to come back: a restart must not look like a storm."""
        leaving = list(self.listeners)
        random.shuffle(leaving)
        for left, listener in enumerate(leaving):
            listener.close(CloseCode.DRAINING)
            if left + 1 < len(leaving):
                await asyncio.sleep(seconds / len(leaving))

    def flush_soon(self, listener: Listener) -> None:
        """Write a listener's events at the end of this loop turn."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(listener)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for listener in dirty:
            try:
                listener.flush()
            except Exception:
                # One broken connection must not keep the others waiting.
                logger.exception("writing to a listener failed")
                listener.close(CloseCode.SLOW)

    async def wait_for_room(self, listener: Listener) -> None:
        """Return when a listener has taken most of what was written to it, or is closed."""
        if listener.waiting_bytes < _ROOM_BYTES or listener.closed.done():
            return
        room: asyncio.Future[None] = self._loop.create_future()
        if not self._waiting_for_room:
            self._loop.call_later(_DRAIN_POLL_SECONDS, self._check_room)
        self._waiting_for_room.append((listener, room))
        await room

    def _check_room(self) -> None:
        still = []
        for listener, room in self._waiting_for_room:
            if room.done():
                continue
            if listener.waiting_bytes < _ROOM_BYTES or listener.closed.done() or listener.transport.is_closing():
                room.set_result(None)
            else:
                still.append((listener, room))
        self._waiting_for_room = still
        if still:
            self._loop.call_later(_DRAIN_POLL_SECONDS, self._check_room)

    async def _clock_loop(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_SECONDS)
            now = self.clock()
            for watch in tuple(self._watches.values()):
                watch.push_liveness(now)
            for listener in tuple(self.listeners):
                listener.tick(now)

    async def _compare_loop(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_seconds)
            # A busy job's hole shows by its next number; only a quiet one has to be asked.
            quiet = [watch for watch in self._watches.values() if self.clock() - watch.heard_at > _QUIET_SECONDS]
            for start in range(0, len(quiet), _COMPARED):
                some = quiet[start : start + _COMPARED]
                with suppress(Unavailable):
                    heads = await self.store.heads([watch.job for watch in some])
                    for watch, head in zip(some, heads, strict=True):
                        watch.compare(head)

    async def _position_loop(self) -> None:
        while True:
            await asyncio.sleep(_POSITION_SECONDS)
            queued = [watch for watch in self._watches.values() if watch.state is State.QUEUED]
            if not queued:
                continue
            with suppress(Unavailable):
                positions = await self.store.positions([watch.record for watch in queued])
                for watch, position in zip(queued, positions, strict=True):
                    watch.push_position(position)


class _Waiter(Listener):
    """Hears a job's events only to know when it has ended."""

    class _Nowhere(asyncio.WriteTransport):
        def get_write_buffer_size(self) -> int:
            return 0

        def is_closing(self) -> bool:
            return False

        def abort(self) -> None:
            pass

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub, self._Nowhere(), transport_name="wait")

    def encode(self, subscription: Subscription, frame: Frame) -> bytes:
        return b""

    def encode_unnumbered(
        self, subscription: Subscription, text: bytes, type_: str, cursor: Cursor | None = None
    ) -> bytes:
        return b""

    def heartbeat(self) -> bytes:
        return b""

    def send(self, data: bytes) -> None:
        pass

    def finished(self, subscription: Subscription) -> None:
        self.close(None)
