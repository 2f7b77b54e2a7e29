"""A job's events in another protocol: what the two streaming routes of the door have in common.

An event is translated when it is written, from its bytes, without a task or a queue per listener: a token's JSON string
is cut out of the event and put into a chunk as it stands. The bytes are kept with the event, so that a hundred
listeners cost one translation.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any, Final

from aiohttp import web
from pydantic_core import from_json, to_json

from gateway.errors import FOR_CLIENTS, OutlastError, Unavailable
from gateway.event_text import decode_event
from gateway.handlers.context import HUB, STORE, owned, principal
from gateway.handlers.documents import job_headers
from gateway.handlers.listeners import StreamListener
from gateway.handlers.streams import STREAM_HEADERS, Wishes, listen, requested_cut
from gateway.hub import Frame, Place, Pulse
from gateway.protocol import START, Cursor, EventType, State
from gateway.sse import comment
from gateway.store import JobRecord, Submitted

# What `encode_event_tail` and the append script make of a delta; nothing that a user chose stands before it.
_DELTA: Final = b'"type":"delta","data":{"channel":"'
_TEXT: Final = b'","text":'
_HEARTBEAT: Final = comment("")
# Channels whose text alone says all; a tool call's does not say which function it is for.
_PLAIN: Final = frozenset({"text", "reasoning", "refusal"})


def delta_of(text: bytes) -> tuple[bytes, bytes]:
    """A delta's channel, and its text as the JSON string that it is in the event."""
    _, _, rest = text.partition(_DELTA)
    channel, found, string = rest.partition(_TEXT)
    if found and string.startswith(b'"') and string.endswith(b'"}}'):
        return channel, string[:-2]
    # Another writer's order of the two.
    data = decode_event(text).data
    return str(data.get("channel", "")).encode(), to_json(str(data.get("text", "")))


class Translator(StreamListener):
    """A listener that hears one job's events and speaks OpenAI's protocol.

    Only the newest attempt is told: where another one begins after something has been said, the stream ends with an
    error, since what a client has read can't be taken back in this protocol.
    """

    def __init__(self, pulse: Pulse, transport: asyncio.WriteTransport, record: JobRecord, *, chunked: bool) -> None:
        super().__init__(pulse, transport, transport_name="openai", chunked=chunked)
        self.record = record
        self.problem: OutlastError | None = None
        """Why the stream must end before the job does."""
        waits_again = record.state is State.QUEUED and record.attempt > 0
        self._first_attempt = record.attempt + 1 if waits_again else max(1, record.attempt)
        self._hears = False
        self._has_spoken = False

    @abstractmethod
    def delta(self, frame: Frame) -> bytes:
        """The bytes of some text."""

    @abstractmethod
    def tool_call(self, frame: Frame) -> bytes:
        """The bytes of a tool call's begin."""

    @abstractmethod
    def snapshot(self, cursor: Cursor, text: dict[str, str]) -> bytes:
        """The bytes of all text so far, by channel, where the log's begin is gone."""

    @abstractmethod
    def error(self, error: OutlastError) -> bytes:
        """The bytes of an error."""

    def queued(self, frame: Frame) -> bytes:
        """The bytes of the job's begin."""
        return b""

    def started(self, frame: Frame) -> bytes:
        """The bytes of the begin of the attempt that is told."""
        return b""

    def encode(self, place: Place, frame: Frame) -> bytes:
        match frame.type:
            case b"delta":
                if not self._hears:
                    return self.passed_over(frame)
                self._has_spoken = True
                return self.delta(frame)
            case b"started":
                return self._begin(frame)
            case b"llm.tool_call" if self._hears:
                self._has_spoken = True
                return self.tool_call(frame)
            case b"queued":
                return self.queued(frame)
        # The end is told by whoever serves the stream, from the job's record: a result can be a file.
        return b""

    def passed_over(self, frame: Frame) -> bytes:
        """Text of an attempt that is over."""
        return b""

    def _begin(self, frame: Frame) -> bytes:
        if (decode_event(frame.text).attempt or 0) < self._first_attempt:
            return b""
        if self._has_spoken:
            self.break_off()
            return b""
        begins, self._hears = not self._hears, True
        return self.started(frame) if begins else b""

    def break_off(self) -> None:
        """End the stream: what was told doesn't hold any more."""
        self.problem = Unavailable(
            "The worker was lost in the midst of this answer, and another one answers anew. Ask again with the same"
            " Idempotency-Key, or fetch the response: that gives the new answer.",
            code="worker_lost",
        )
        self.close(None)

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        if type_ != EventType.SNAPSHOT or cursor is None or cursor.number == 0:
            return b""
        data: dict[str, Any] = from_json(text)["data"]
        if self._has_spoken or data["attempt"] < self._first_attempt or data["text"].keys() - _PLAIN:
            self.problem = Unavailable(
                "This stream's begin is not kept any more. Fetch the response when it has ended.", code="cursor_lost"
            )
            self.close(None)
            return b""
        self._hears = self._has_spoken = True
        return self.snapshot(cursor, data["text"])

    def heartbeat(self) -> bytes:
        return _HEARTBEAT

    def say(self, data: bytes) -> None:
        """Send at once, in order with what was pushed."""
        if data and not self.transport.is_closing():
            self.send(data)


async def begin_stream(request: web.Request, submitted: Submitted) -> web.StreamResponse:
    """Send the head of a stream."""
    response = web.StreamResponse(headers=STREAM_HEADERS | job_headers(submitted))
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    await response.prepare(request)
    return response


async def ended(request: web.Request, listener: Translator) -> JobRecord | OutlastError:
    """Serve a stream until the job's end: its record then, or why the stream has to end before."""
    hub, record = request.app[HUB], listener.record
    # Two frames at once, as in our own streams: some middleboxes hold the first until there is a second.
    listener.say(comment("ok"))
    listener.say(_HEARTBEAT)
    wishes = Wishes(cut_seconds=requested_cut(request))
    code = await listen(request, listener, [hub.place(listener, record, START)], wishes)
    if listener.problem is not None:
        return listener.problem
    if code is not None:
        return Unavailable(
            "This gateway ends the stream; the answer goes on. Ask again with the same Idempotency-Key, or go on with"
            " the response's stream.",
            code="draining",
        )
    try:
        return await owned(request.app[STORE], record.id, principal(request))
    except FOR_CLIENTS as error:
        return error
