"""A connection that hears events, and what all connections share: one clock, and one write per loop turn."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from gateway.hub.frame import Frame
from gateway.metrics import Metrics
from gateway.protocol import CloseCode, Cursor

logger = logging.getLogger(__name__)

_DRAIN_POLL_SECONDS: Final = 0.05
# A listener with more than the first in its socket's buffer hears nothing live; below the second it reads on.
CONGESTED_BYTES: Final = 128 * 1024
_ROOM_BYTES: Final = 32 * 1024


class Place(Protocol):
    """A listener's place in one job's event log, as its transport sees it."""

    @property
    def job(self) -> str:
        """The job's id."""

    number: int
    """The last event that was given."""

    def push_skipped(self) -> None:
        """Move the client's cursor past events that its filter hid."""


class Pulse:
    """What the connections of one gateway share; none of them has a task or a timer of its own."""

    def __init__(
        self, *, heartbeat_seconds: float, write_stall_seconds: float, write_buffer_bytes: int, metrics: Metrics
    ) -> None:
        self.heartbeat_seconds = heartbeat_seconds
        self.write_stall_seconds = write_stall_seconds
        self.write_buffer_bytes = write_buffer_bytes
        self.metrics = metrics
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time
        self._dirty: list[Listener] = []
        self._waiting_for_room: list[tuple[Listener, asyncio.Future[None]]] = []

    @staticmethod
    def now_ms() -> int:
        """This gateway's own clock; only for transient events, which nobody resumes from."""
        return int(time.time() * 1000)

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


class Listener(ABC):
    """One connection that hears events. Subclasses know the transport; the hub knows when to write what."""

    returns = True
    """Whether its cursor is a client's that came back; a wait begins at the head and is no resume."""

    def __init__(self, pulse: Pulse, transport: asyncio.WriteTransport, *, transport_name: str) -> None:
        self.pulse = pulse
        self.transport = transport
        self.transport_name = transport_name
        self.closed: asyncio.Future[CloseCode | None] = asyncio.get_running_loop().create_future()
        self.opened_at = self.written_at = self.moved_at = pulse.clock()
        self.places: set[Place] = set()
        self._ends: tuple[float, CloseCode] | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._buffered_before = 0

    @abstractmethod
    def encode(self, place: Place, frame: Frame) -> bytes:
        """An event's bytes on this transport."""

    @abstractmethod
    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        """The bytes of a transient event, a reset, or (with a cursor) a snapshot."""

    @abstractmethod
    def heartbeat(self) -> bytes:
        """What breaks the silence and is no event."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Hand bytes to the transport; never waits."""

    def finished(self, place: Place) -> None:  # noqa: B027 - a stream of one job ends with it; a socket goes on
        """The job's terminal event has been sent."""

    def push(self, data: bytes) -> None:
        """Send with everything else of this loop turn, in one write. Nothing is sent for what has no bytes here."""
        if not data:
            return
        if not self._pending:
            self.pulse.flush_soon(self)
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
        self.written_at = self.pulse.clock()
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

    def end_in(self, seconds: float, code: CloseCode) -> None:
        """Close it after so long, for this reason. Of several ends the soonest counts."""
        at = self.pulse.clock() + seconds
        if self._ends is None or at < self._ends[0]:
            self._ends = at, code

    def tick(self, now: float) -> None:
        """Called by the hub's clock: heartbeat, stalled writes, planned end."""
        waiting = self.waiting_bytes
        if waiting == 0 or waiting < self._buffered_before:
            self.moved_at = now
        self._buffered_before = waiting
        if waiting and now - self.moved_at > self.pulse.write_stall_seconds:
            self.pulse.metrics.count("slow_closed")
            self.close(CloseCode.SLOW)
            # What is in the socket's buffer will never be read; waiting for it would keep the connection for ever.
            self.transport.abort()
        elif self._ends is not None and now >= self._ends[0]:
            self.close(self._ends[1])
        elif now - self.written_at >= self.pulse.heartbeat_seconds and waiting < self.pulse.write_buffer_bytes:
            for place in self.places:
                place.push_skipped()
            self.push(self.heartbeat())
