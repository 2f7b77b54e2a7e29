"""A listener's place in a job's event log: one connection after the other, each event once, in order, to the end.

Knows nothing of HTTP: a transport opens a connection at a cursor and yields frames; this comes back after a cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, Literal, NamedTuple, Protocol

from gateway.client.backoff import Backoff
from gateway.errors import OutlastError, Timeout, TooMany, Unavailable, Unreachable
from gateway.protocol import START, TERMINAL, UNNUMBERED, Cursor, Event, EventType

# A log that shows the same hole, or the same unreadable event, again and again is broken: going on would hide it, and
# going round would never end.
_MAX_FRUITLESS: Final = 3
# A connection that stood this long worked, even if there was nothing to say: its end is no reason for a long pause.
_PROVEN_SECONDS: Final = 5.0


class Opened(NamedTuple):
    """The gateway accepted the connection."""


class Alive(NamedTuple):
    """A heartbeat."""


class Ended(NamedTuple):
    """The log holds nothing beyond the cursor, and never will.

    A connection that just stops has no such frame, and means "come back".
    """


class Advice(NamedTuple):
    """How long to wait before reconnecting, from now on."""

    retry_seconds: float


class Moved(NamedTuple):
    """Events up to here were left out on purpose (`types`)."""

    cursor: Cursor


Frame = Opened | Alive | Ended | Advice | Moved | Event


class Opener(Protocol):
    """Opens one connection and yields its frames. Raises our errors only."""

    def __call__(self, cursor: Cursor, *, snapshot: bool) -> AsyncGenerator[Frame, None]:
        """Go on after the cursor; with a snapshot first, if asked for."""


class Subscription:
    """`async for event in subscription:` every event once, in order, until the job has ended.

    Connections that break are made anew, from the last event that was handed on; the counters tell how it went. Read
    it once. Cancelling the reading, or leaving the loop, closes the connection and leaves the job alone.

    Raises `Unauthorized`, `NotFound`, `Gone` and whatever else coming back can't mend; `Unreachable` where nothing was
    heard for as long as the client's patience lasts.
    """

    def __init__(
        self,
        job: str,
        open_connection: Opener,
        *,
        after: Cursor = START,
        snapshot: bool = False,
        contiguous: bool = True,
        backoff: Backoff | None = None,
        patience_seconds: float | None = None,
        on_reconnect: Callable[[Subscription], None] | None = None,
    ) -> None:
        self.job = job
        self.cursor = after
        """What the next connection resumes from."""
        self.state: Literal["idle", "connecting", "open", "waiting", "ended"] = "idle"
        self.last_error: OutlastError | None = None
        """What ended the last connection, until the next one is open."""
        self.next_try_at: float | None = None
        """When the next connection is tried (`time.monotonic()`), while `state` is `waiting`."""
        self.reconnects = 0
        """Connections that were opened after the first one."""
        self.received = 0
        """Numbered events that were handed on."""
        self.repeated = 0
        """Numbered events that came although they had been handed on; they are dropped."""
        self.holes = 0
        """Numbers that a connection jumped over; the events are fetched before anything else is handed on."""
        self.missed = 0
        """Events that are gone for good: the gateway said so (`reset`), and a snapshot took their place."""
        self._open = open_connection
        self._snapshot = snapshot
        self._contiguous = contiguous
        self._backoff = backoff or Backoff()
        self._patience_seconds = patience_seconds
        self._on_reconnect = on_reconnect
        self._connections = 0
        self._fruitless = 0
        self._failing_since: float | None = None
        self._opened_at: float | None = None
        self._wish_seconds: float | None = None
        self._started = False

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        """The events."""
        if self._started:
            raise RuntimeError("a subscription is read once; ask the client for another one")
        self._started = True
        try:
            while True:
                self.state = "connecting"
                self._wish_seconds = None
                try:
                    async with aclosing(self._open(self.cursor, snapshot=self._snapshot)) as frames:
                        async for frame in frames:
                            if isinstance(frame, Ended):
                                return
                            event = self._take(frame)
                            if event is not None:
                                yield event
                                if is_last(event):
                                    return
                    self._failed(None)
                except OutlastError as error:
                    if not may_pass(error):
                        raise
                    self._failed(error)
                await self._pause()
        finally:
            self.state = "ended"

    def _take(self, frame: Opened | Alive | Advice | Moved | Event) -> Event | None:
        """Keep the place; returns the event if it is to be handed on."""
        match frame:
            case Opened():
                self._connected()
            case Alive():
                self._progressed()
            case Advice(retry_seconds):
                self._backoff.base_seconds = retry_seconds
            case Moved(cursor):
                self.cursor = cursor
                self._progressed()
            case _:
                return self._take_event(frame)
        return None

    def _take_event(self, event: Event) -> Event | None:
        if event.type == EventType.CLOSING:
            self._wish_seconds = _seconds(event.data.get("retry_seconds"))
        elif event.type == EventType.RESET:
            self.missed += _count_missing(event.data)
        cursor = _cursor_of(event)
        if cursor is None:
            if event.type not in {EventType.CLOSING, EventType.RESET}:
                self._progressed()
            return event
        if event.type not in UNNUMBERED:
            expected = self.cursor.number + 1
            if cursor.number < expected:
                self.repeated += 1
                return None
            if cursor.number > expected and self._contiguous:
                self._refuse_hole(expected, cursor.number)
            self.received += 1
        self._snapshot = False
        self.cursor = cursor
        self._progressed()
        return event

    def _refuse_hole(self, expected: int, number: int) -> None:
        self.holes += number - expected
        raise Unreachable(
            f"Event {number} came where event {expected} belongs; the log is read again from there.", code="bad_stream"
        )

    def _connected(self) -> None:
        self.state = "open"
        self.last_error = None
        # The gateway can be reached: patience is for when it can't.
        self._failing_since = None
        self._opened_at = time.monotonic()
        self._connections += 1
        if self._connections > 1:
            self.reconnects += 1
            if self._on_reconnect is not None:
                self._on_reconnect(self)

    def _progressed(self) -> None:
        """The connection is served, not only accepted."""
        self._backoff.reset()
        self._fruitless = 0

    def _failed(self, error: OutlastError | None) -> None:
        """A connection ended before the job did. Raises what is to be raised if it is time to give up."""
        self.last_error = error
        if error is not None and error.code == "bad_stream":
            self._fruitless += 1
            if self._fruitless >= _MAX_FRUITLESS:
                raise error
        now = time.monotonic()
        if self._opened_at is not None and now - self._opened_at > _PROVEN_SECONDS:
            self._backoff.reset()
        self._opened_at = None
        if error is None:
            return
        if self._failing_since is None:
            self._failing_since = now
        if self._patience_seconds is not None and now - self._failing_since >= self._patience_seconds:
            raise error

    async def _pause(self) -> None:
        wish = self._wish_seconds
        if wish is None and self.last_error is not None:
            wish = self.last_error.retry_after_seconds
        seconds = self._backoff.next_seconds(wish)
        self.state = "waiting"
        self.next_try_at = time.monotonic() + seconds
        await asyncio.sleep(seconds)
        self.next_try_at = None


def may_pass(error: OutlastError) -> bool:
    """Whether the same request can work later."""
    return isinstance(error, (Unavailable, TooMany, Timeout)) and error.code != "tls_failed"


def is_last(event: Event) -> bool:
    """Whether the job has ended with this event, or with one that this snapshot covers."""
    return event.terminal or (event.type == EventType.SNAPSHOT and event.data.get("state") in TERMINAL)


def _cursor_of(event: Event) -> Cursor | None:
    try:
        return event.cursor
    except (ValueError, OutlastError):
        raise Unreachable(
            f"The {event.type} event has a time or a cursor that is none; it is read again.", code="bad_stream"
        ) from None


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value >= 0 else None


def _count_missing(data: dict[str, Any]) -> int:
    first, last = data.get("missing_from"), data.get("missing_to")
    return max(0, last - first + 1) if isinstance(first, int) and isinstance(last, int) else 0
