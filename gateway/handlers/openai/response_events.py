"""A job's events as the events of OpenAI's Responses API.

A sequence number is made of the number that the event has in the job's log, so it is the same on every connection and
every gateway: part `k` of event `N` is `4 * (N - 1) + k`. They grow, and have holes. To go on after one, the log is
read from its begin, which tells what began when, and sent from there on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

from pydantic_core import to_json

from gateway.errors import OutlastError, Unavailable
from gateway.event_text import decode_event
from gateway.handlers.openai.errors import error_document
from gateway.handlers.openai.response_document import Asked, item, item_id, items, part, response_document
from gateway.handlers.openai.translation import Translator, delta_of
from gateway.hub import Frame, Pulse
from gateway.protocol import Cursor
from gateway.store import JobRecord

# An event's parts: an item, its content, its first text. One is left for an error, after which there is none.
PARTS: Final = 4
_FORM: Final = "openai.responses"
_TOOL_CALL: Final = "tool_call."
# By channel: what its text is called, and the field of `done` that holds it whole.
_KINDS: Final = {
    "text": ("response.output_text", "text"),
    "reasoning": ("response.reasoning_text", "text"),
    "refusal": ("response.refusal", "refusal"),
}
_ARGUMENTS: Final = ("response.function_call_arguments", "arguments")

Told = tuple[str, bytes]
"""An event's type, and its JSON object."""


class ResponseEvents(Translator):
    """Sends a response's events; `after` is the sequence number of the last one that the client has, -1 for none."""

    def __init__(
        self,
        pulse: Pulse,
        transport: asyncio.WriteTransport,
        record: JobRecord,
        asked: Asked,
        *,
        after: int,
        chunked: bool,
    ) -> None:
        super().__init__(pulse, transport, record, chunked=chunked)
        self.after = after
        self._asked = asked
        self._indexes: dict[str, int] = {}
        self._told_other_attempt = False
        self._number = 0

    def queued(self, frame: Frame) -> bytes:
        status = "queued" if self._asked.background else "in_progress"
        return self._bytes(frame, [self._state("response.created", status)])

    def started(self, frame: Frame) -> bytes:
        if self._told_other_attempt and self._is_new(frame.number):
            self.break_off()
            return b""
        return self._bytes(frame, [self._state("response.in_progress", "in_progress")])

    def passed_over(self, frame: Frame) -> bytes:
        # Text that the client may have, and that doesn't hold any more.
        self._told_other_attempt |= not self._is_new(frame.number)
        return b""

    def delta(self, frame: Frame) -> bytes:
        channel, text = delta_of(frame.text)
        name = channel.decode()
        if name not in self._indexes:
            if name not in _KINDS:
                return b""
            return self._bytes(frame, [*self._opened(name), self._text(name, text)])
        if not self._is_new(frame.number):
            return b""
        self._number = frame.number
        return frame.form(_FORM, lambda frame: _block((frame.number - 1) * PARTS, self._text(name, text)))

    def tool_call(self, frame: Frame) -> bytes:
        call = decode_event(frame.text).data
        channel = f"{_TOOL_CALL}{call['index']}"
        index = self._indexes[channel] = len(self._indexes)
        opened = item(self.record.id, channel, "", call, "in_progress")
        return self._bytes(frame, [_told("response.output_item.added", output_index=index, item=opened)])

    def snapshot(self, cursor: Cursor, text: dict[str, str]) -> bytes:
        told = [
            self._state("response.created", "in_progress"),
            self._state("response.in_progress", "in_progress"),
        ]
        for channel, said in text.items():
            told += [*self._opened(channel), self._text(channel, to_json(said))]
        if self.after < 0:
            # Numbers of events that are not kept any more, so nothing else has them.
            return b"".join(_block(number, one) for number, one in enumerate(told))
        if self._is_new(cursor.number):
            self.problem = Unavailable(
                "What follows this sequence number is not kept any more. Fetch the response when it has ended.",
                code="cursor_lost",
            )
            self.close(None)
        return b""

    def error(self, error: OutlastError) -> bytes:
        said = error_document(error)
        # `error` besides, which the packages raise: an event of its own would be passed on, and the end be silent.
        return _block(
            max(self.after, self._number * PARTS - 1, 0),
            _told("error", code=said["code"], message=said["message"], param=None, error=said),
        )

    def end(self, record: JobRecord, result: dict[str, Any] | None, document: dict[str, Any]) -> bytes:
        """The bytes of all that is told at the job's end, but what the client has already."""
        told = [*(_closed(record, result) if result is not None else ()), _last(document)]
        return self._parts(record.last.number, told)

    def _is_new(self, number: int) -> bool:
        """Whether the client has nothing of an event yet."""
        return (number - 1) * PARTS > self.after

    def _bytes(self, frame: Frame, told: list[Told]) -> bytes:
        self._number = frame.number
        return self._parts(frame.number, told)

    def _parts(self, event: int, told: list[Told]) -> bytes:
        """An event's parts that the client doesn't have."""
        first = (event - 1) * PARTS
        return b"".join(_block(number, one) for number, one in enumerate(told, first) if number > self.after)

    def _state(self, type_: str, status: str) -> Told:
        return _told(type_, response=response_document(self.record, self._asked, status=status))

    def _opened(self, channel: str) -> Iterator[Told]:
        job = self.record.id
        index = self._indexes[channel] = len(self._indexes)
        opened = item(job, channel, "", None, "in_progress")
        yield _told("response.output_item.added", output_index=index, item=opened)
        yield _told(
            "response.content_part.added",
            item_id=opened["id"],
            output_index=index,
            content_index=0,
            part=part(channel, ""),
        )

    def _text(self, channel: str, text: bytes) -> Told:
        """A piece of text, which is a JSON string already."""
        type_, _ = _KINDS.get(channel, _ARGUMENTS)
        place = b"" if channel not in _KINDS else b',"content_index":0'
        if channel == "text":
            place += b',"logprobs":[]'
        index = self._indexes[channel]
        head = to_json({"item_id": item_id(self.record.id, channel), "output_index": index})[:-1]
        return f"{type_}.delta", b'%b%b,"delta":%b}' % (head, place, text)


def _closed(record: JobRecord, result: dict[str, Any]) -> Iterator[Told]:
    """The end of each item."""
    for index, (channel, done) in enumerate(zip(result["channels"], items(record, result), strict=True)):
        where = {"item_id": done["id"], "output_index": index}
        type_, field = _KINDS.get(channel, _ARGUMENTS)
        if channel not in _KINDS:
            yield _told(f"{type_}.done", **where, name=done["name"], arguments=done["arguments"])
        else:
            [content] = done["content"]
            text = content.get("text", content.get("refusal"))
            more: dict[str, Any] = {"logprobs": []} if channel == "text" else {}
            yield _told(f"{type_}.done", **where, content_index=0, **{field: text}, **more)
            yield _told("response.content_part.done", **where, content_index=0, part=content)
        yield _told("response.output_item.done", output_index=index, item=done)


def _last(document: dict[str, Any]) -> Told:
    # A cancelled response has no event of its own: it is incomplete, and its status says why.
    ends = {"completed": "completed", "failed": "failed"}
    return _told(f"response.{ends.get(document['status'], 'incomplete')}", response=document)


def _told(type_: str, **fields: Any) -> Told:
    return type_, to_json(fields)


def _block(number: int, told: Told) -> bytes:
    type_, body = told[0].encode(), told[1]
    return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b\n\n' % (type_, type_, number, body[1:])
