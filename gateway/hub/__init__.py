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
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final

from gateway.errors import Unavailable
from gateway.hub.frame import Frame, websocket_frame
from gateway.hub.listener import CONGESTED_BYTES, Listener, Place, Pulse
from gateway.hub.subscription import Subscription
from gateway.hub.watch import Watch
from gateway.metrics import Metrics
from gateway.protocol import CloseCode, Cursor, State
from gateway.store import MARK_SECONDS, JobRecord, Store

__all__ = ["CONGESTED_BYTES", "Frame", "Hub", "Listener", "Place", "Pulse", "Subscription", "Watch", "websocket_frame"]

logger = logging.getLogger(__name__)

_CLOCK_SECONDS: Final = 0.5
_POSITION_SECONDS: Final = 3.0
_QUIET_SECONDS: Final = 0.25
# Jobs marked at once; the others wait their turn rather than for a connection.
_MARKED: Final = 16
# Heads asked for in one pipeline.
_COMPARED: Final = 500


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
        self.metrics = metrics
        self.pulse = Pulse(
            heartbeat_seconds=heartbeat_seconds,
            write_stall_seconds=write_stall_seconds,
            write_buffer_bytes=write_buffer_bytes,
            metrics=metrics,
        )
        self.listeners: set[Listener] = set()
        self._watches: dict[str, Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Walk all listeners twice a second; never returns. What it started is ended with it."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._clock_loop(), name="hub clock")
                group.create_task(self._position_loop(), name="hub positions")
                group.create_task(self._compare_loop(), name="hub compares heads")
                group.create_task(self._mark_loop(), name="hub marks jobs")
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a listener's catch-up beside its handler; owned by the hub, ended with it."""
        task = asyncio.get_running_loop().create_task(work, name="hub catch-up")
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
            watch = self._watches[record.id] = Watch(self.store, self.pulse, record, self._spawn)
        wanted = None if types is None else frozenset(type_.encode() for type_ in types)
        subscription = Subscription(watch.source, listener, after, wanted)
        watch.subscriptions.add(subscription)
        listener.places.add(subscription)
        if after.number and listener.returns:
            self.metrics.count("resumes", result="exact" if after == record.last else "replayed")
        return subscription

    async def start(self, subscription: Subscription, *, snapshot: bool = False) -> None:
        """Send a listener what the log has after its cursor, then live events; a snapshot first, if asked for.

        Returns when the log has been read to its head. Cancelling it ends the reading; `close` the listener then.
        """
        watch = self._watches.get(subscription.job)
        if watch is not None and watch.mark is not None:
            await self._mark(watch)
        if snapshot:
            stored = None
            with suppress(Unavailable):
                stored = await self.store.fold(subscription.job)
            if subscription.number == 0 or (stored is not None and stored[0].number > subscription.number):
                subscription.push_snapshot(stored)
        await subscription.catch_up()

    def start_soon(self, subscription: Subscription) -> None:
        """`start` beside the caller, who has something else to wait for; without a snapshot."""
        watch = self._watches.get(subscription.job)
        if watch is not None and watch.mark is not None:
            self._spawn(self._mark(watch))
        subscription.fall_behind()

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a listener's place in a job's log; the last one to go ends the job's live feed here."""
        subscription.live = False
        subscription.listener.places.discard(subscription)
        watch = self._watches.get(subscription.job)
        if watch is None or subscription not in watch.subscriptions:
            return
        watch.subscriptions.discard(subscription)
        if not watch.subscriptions:
            del self._watches[watch.job]
            if watch.mark is not None:
                self._spawn(self._mark(watch, 0))
            self.store.feed.unfollow(watch.job, watch)

    def close(self, listener: Listener, reason: str) -> None:
        """Forget a connection and all its subscriptions."""
        if listener not in self.listeners:
            return
        self.listeners.discard(listener)
        for place in tuple(listener.places):
            if isinstance(place, Subscription):
                self.unsubscribe(place)
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

    async def _clock_loop(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_SECONDS)
            now = self.pulse.clock()
            for watch in tuple(self._watches.values()):
                watch.push_liveness(now)
            for listener in tuple(self.listeners):
                listener.tick(now)

    async def _mark(self, watch: Watch, seconds: float = MARK_SECONDS) -> None:
        """Say that somebody listens here, for so long or (0) no longer. If it fails, the mark ends by itself."""
        if watch.mark is not None:
            with suppress(Unavailable):
                await self.store.mark(watch.job, watch.mark, seconds)

    async def _mark_loop(self) -> None:
        while True:
            await asyncio.sleep(MARK_SECONDS / 5)
            marked = [watch for watch in self._watches.values() if watch.mark is not None]
            for start in range(0, len(marked), _MARKED):
                await asyncio.gather(*(self._mark(watch) for watch in marked[start : start + _MARKED]))

    async def _compare_loop(self) -> None:
        while True:
            await asyncio.sleep(self.pulse.heartbeat_seconds)
            # A busy job's hole shows by its next number; only a quiet one has to be asked.
            quiet = [watch for watch in self._watches.values() if self.pulse.clock() - watch.heard_at > _QUIET_SECONDS]
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
                    if position is not None:
                        watch.push_position(position)


class _Waiter(Listener):
    """Hears a job's events only to know when it has ended."""

    returns = False

    class _Nowhere(asyncio.WriteTransport):
        def get_write_buffer_size(self) -> int:
            return 0

        def is_closing(self) -> bool:
            return False

        def abort(self) -> None:
            pass

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub.pulse, self._Nowhere(), transport_name="wait")

    def encode(self, place: Place, frame: Frame) -> bytes:
        return b""

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        return b""

    def heartbeat(self) -> bytes:
        return b""

    def send(self, data: bytes) -> None:
        pass

    def finished(self, place: Place) -> None:
        self.close(None)
