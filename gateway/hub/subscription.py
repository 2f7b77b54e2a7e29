"""A listener's place in one job's event log: first what the log has, then what comes, in order, each event once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import Gone, NotFound, Unavailable
from gateway.event_text import encode_snapshot_data, encode_transient
from gateway.fold import Fold
from gateway.hub.frame import Frame
from gateway.hub.listener import CONGESTED_BYTES, Listener
from gateway.hub.tail import Tail
from gateway.protocol import NEVER_HIDDEN, TERMINAL_TYPES, CloseCode, Cursor, EventType, format_time
from gateway.store import Follower, Store

_TERMINAL: Final = frozenset(type_.encode() for type_ in TERMINAL_TYPES)
_ALWAYS: Final = frozenset(type_.encode() for type_ in NEVER_HIDDEN)


@dataclass(frozen=True, slots=True)
class Source:
    """Where one job's events come from; shared by all of its subscriptions."""

    store: Store
    follower: Follower
    tail: Tail
    created_ms: int
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    """Runs a catch-up beside its handler."""


class Subscription:
    """One listener's place in one job's event log."""

    __slots__ = ("_behind", "_reading", "_source", "listener", "live", "number", "skipped", "time_ms", "types")

    def __init__(self, source: Source, listener: Listener, after: Cursor, types: frozenset[bytes] | None) -> None:
        self._source = source
        self.listener = listener
        self.number = after.number
        self.time_ms = after.time_ms
        self.types = types
        self.live = False
        self.skipped = False
        self._reading = False
        self._behind = False

    @property
    def job(self) -> str:
        """The job's id."""
        return self._source.tail.job

    @property
    def cursor(self) -> Cursor:
        """The last event that this listener was given."""
        return Cursor(self.number, self.time_ms)

    def deliver(self, frames: list[Frame]) -> None:
        """Take live events; one that doesn't follow on means reading the log again."""
        listener = self.listener
        if listener.waiting_bytes > CONGESTED_BYTES:
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
            self._source.spawn(self.catch_up())

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
        store, tail, pulse = self._source.store, self._source.tail, self.listener.pulse
        while not self.listener.closed.done() and self in self.listener.places:
            await pulse.wait_for_room(self.listener)
            gaps = tail.gaps
            try:
                # Subscribed first, then read: what is published from here on is heard, what was before is in the log.
                await store.feed.follow(tail.job, self._source.follower)
                page = await store.events(tail.job, self.cursor)
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
            for frame in tail.frames(page.entries):
                self._pass_on(frame)
            self.listener.flush()
            if page.terminal and not page.entries:
                # The client had the end already.
                self.listener.finished(self)
            if page.terminal and self.number >= page.head.number:
                return
            # Nothing was awaited since the page came, so nobody has been told of a later event but by `tail.head`.
            tail.head = max(tail.head, page.head.number)
            if self.number >= tail.head and gaps == tail.gaps:
                self.live = True
                return

    async def _start_over(self, reason: str, head: Cursor) -> None:
        """Tell the listener that history is gone or was rewritten: `reset`, then a snapshot to build on."""
        pulse = self.listener.pulse
        stored = await self._source.store.fold(self.job)
        missing_to = stored[0].number if stored else head.number
        data = {"reason": reason, "missing_from": self.number + 1, "missing_to": max(missing_to, self.number)}
        text = encode_transient(EventType.RESET, self.job, pulse.now_ms(), data)
        self.listener.push(self.listener.encode_unnumbered(self, text, EventType.RESET))
        pulse.metrics.count("resumes", result="reset")
        self.push_snapshot(stored)

    def push_snapshot(self, stored: tuple[Cursor, bytes] | None) -> None:
        """Send the stored fold as it is, and go on from its cursor; without one, start from nothing."""
        cursor, fold = stored or (Cursor(0, 0), encode_snapshot_data(Fold(self.job)))
        text = b'{"id":%d,"time":"%b","job":"%b","type":"snapshot","data":%b}' % (
            cursor.number,
            format_time(cursor.time_ms or self._source.created_ms).encode(),
            self.job.encode(),
            fold,
        )
        self.listener.push(self.listener.encode_unnumbered(self, text, EventType.SNAPSHOT, cursor))
        self.number, self.time_ms = cursor.number, cursor.time_ms or None
