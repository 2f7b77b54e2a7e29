"""How a job's events go out over HTTP: each listener's bytes for an event, for what has no number and for a heartbeat.

Ready-made bytes go straight to the transport, because `StreamResponse.write` per event costs twice the CPU of the event
itself (benchmarks/fanout.py).
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.errors import OutlastError, encodable
from gateway.event_text import encode_transient
from gateway.hub import Frame, Listener, Place, Pulse, Subscription
from gateway.protocol import Cursor, EventType
from gateway.sse import comment, encode_event, id_only

# In a cursor of several jobs: its client has been told that this one can't be followed.
TOLD: Final = "x"
_HEARTBEAT: Final = comment("")


class StreamListener(Listener):
    """An HTTP response that goes on: bytes are framed as chunks here (RFC 9112, section 7.1) and never wait."""

    def __init__(self, pulse: Pulse, transport: asyncio.WriteTransport, *, transport_name: str, chunked: bool) -> None:
        super().__init__(pulse, transport, transport_name=transport_name)
        self._chunked = chunked

    def send(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def finished(self, place: Place) -> None:
        self.close(None)


class SseListener(StreamListener):
    """Server-Sent Events; `names` adds an `event:` line for those who use `addEventListener`."""

    names = False

    def encode(self, place: Place, frame: Frame) -> bytes:
        return b"event: %b\n%b" % (frame.type, frame.sse) if self.names else frame.sse

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        if not text:
            return id_only(cursor) if cursor else b""
        return encode_event(text, cursor, name=type_ if self.names else None)

    def heartbeat(self) -> bytes:
        return _HEARTBEAT


class ManyListener(SseListener):
    """Server-Sent Events of several jobs: the cursor is their numbers in the order of the query, joined by dots.

    In the place of a job that can't be followed stands the number that the client came with, and an `x` once it has
    been told so.
    """

    def __init__(self, pulse: Pulse, transport: asyncio.WriteTransport, *, chunked: bool) -> None:
        super().__init__(pulse, transport, transport_name="sse", chunked=chunked)
        self._order: list[Subscription | Cursor | None] = []
        self._open: set[Place] = set()

    def begin(self, order: list[Subscription | Cursor | None]) -> None:
        """Take the jobs' places in the order of the query; None for what was told to be missing before."""
        self._order = order
        self._open = {place for place in order if isinstance(place, Subscription)}

    def push_missing(self, at: int, job: str, error: OutlastError) -> None:
        """Say of the job at this place of the query that it can't be followed, and why."""
        self._order[at] = None
        text = encode_transient(EventType.MISSING, encodable(job), Pulse.now_ms(), {"problem": error.problem()})
        self.push(b"id: %b\n%b" % (self._cursor(), encode_event(text)))

    def encode(self, place: Place, frame: Frame) -> bytes:
        return b"id: %b\ndata: %b\n\n" % (self._cursor(), frame.text)

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        if cursor is None:
            return encode_event(text)
        return b"id: %b\n" % self._cursor() + (b"data: %b\n\n" % text if text else b"\n")

    def _cursor(self) -> bytes:
        return ".".join(TOLD if place is None else str(place.number) for place in self._order).encode()

    def finished(self, place: Place) -> None:
        # Said again of a job whose log is read again after a gap.
        self._open.discard(place)
        if not self._open:
            self.close(None)


class NdjsonListener(StreamListener):
    """One event a line. The heartbeat is a space: a blank line breaks parsers, leading white space doesn't."""

    def encode(self, place: Place, frame: Frame) -> bytes:
        return frame.text + b"\n"

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        return text + b"\n" if text else b""

    def heartbeat(self) -> bytes:
        return b" "


class FirstEvent(NdjsonListener):
    """Hears one event and is done: the wait of a long poll."""

    returns = False

    def encode(self, place: Place, frame: Frame) -> bytes:
        self.close(None)
        return b""

    def send(self, data: bytes) -> None:
        pass
