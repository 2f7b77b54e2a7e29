"""Server-Sent Events: what goes on the wire and what comes off it, to the text of WHATWG HTML, section 9.2.

The encoder refuses what could inject a field or a second event. The decoder takes bytes however they were cut.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, NamedTuple

from gateway.protocol import Cursor

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BREAKS: Final = re.compile(r"[\r\n\0]")


def encode_event(text: bytes, cursor: Cursor | None = None, name: str | None = None) -> bytes:
    """One block: `id:` and `event:` where given, and `data:` for every line of the text.

    Raises `ValueError` for a name that could inject a field. A cursor is digits, so it can't.
    """
    head = b"" if cursor is None else b"id: %b\n" % str(cursor).encode()
    if name is not None:
        head += b"event: %b\n" % _checked(name)
    data = b"".join(b"data: %b\n" % line for line in _LINE_END.split(text))
    return head + data + b"\n"


def id_only(cursor: Cursor) -> bytes:
    """A block that moves the client's cursor and dispatches no event.

    [spec] "If the data buffer is an empty string, set the data buffer and the event type buffer to the empty string
    and return", after "set the last event ID string of the event source to the value of the last event ID buffer".
    """
    return b"id: %b\n\n" % str(cursor).encode()


def comment(text: str) -> bytes:
    """A comment: bytes on the wire that are no event. Raises `ValueError` for a text with a line break or NUL."""
    return b": %b\n\n" % _checked(text) if text else b":\n\n"


def retry(milliseconds: int) -> bytes:
    """Advice on how long to wait before reconnecting."""
    return b"retry: %d\n\n" % milliseconds


def _checked(text: str) -> bytes:
    if _BREAKS.search(text):
        raise ValueError(f"{text!r} has a line break or NUL, which would end the field")
    return text.encode()


class Message(NamedTuple):
    """A dispatched event: its type (`message` by default), its data, and the last event id at its time."""

    event: str
    data: str
    id: str


class Decoder:
    """Feed it what was received, in any pieces; it returns the messages that are complete.

    `last_event_id` is what to come back with, and `retry_ms` the server's latest advice; None before any.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        # [spec] "Streams must be decoded using the UTF-8 decode algorithm", which replaces what is no UTF-8.
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._first = True
        self._after_cr = False
        self._line: list[str] = []
        self._id_buffer = ""
        self._event = ""
        self._data: list[str] = []

    def feed(self, received: bytes | str) -> list[Message]:
        """Take some bytes, or text that was decoded elsewhere; an incomplete last event waits for the rest."""
        text = received if isinstance(received, str) else self._decode(received)
        if self._first and text:
            # [spec] "The UTF-8 decode algorithm strips one leading UTF-8 Byte Order Mark (BOM), if any."
            self._first = False
            text = text.removeprefix("\ufeff")
        messages: list[Message] = []
        start = 0
        for match in re.finditer(r"\r\n|\r|\n", text):
            if match.start() == 0 and self._after_cr and text[0] == "\n":
                # The CR at the end of the last piece and this LF are one line end.
                self._after_cr = False
                start = 1
                continue
            self._line.append(text[start : match.start()])
            start = match.end()
            self._take_line("".join(self._line), messages)
            self._line.clear()
        if text:
            self._after_cr = text[-1] == "\r"
        if start < len(text):
            self._line.append(text[start:])
        return messages

    def _take_line(self, line: str, messages: list[Message]) -> None:
        if not line:
            self._dispatch(messages)
            return
        if line[0] == ":":
            self.comments += 1
            return
        # [spec] "If value starts with a U+0020 SPACE character, remove it from value."
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                # [spec] "If the field value does not contain U+0000 NULL, then set the last event ID buffer to the
                # field value. Otherwise, ignore the field."
                self._id_buffer = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)

    def _dispatch(self, messages: list[Message]) -> None:
        # [spec] "Set the last event ID string of the event source to the value of the last event ID buffer. The buffer
        # does not get reset".
        self.last_event_id = self._id_buffer
        if self._data:
            messages.append(Message(self._event or "message", "\n".join(self._data), self.last_event_id))
        self._data.clear()
        self._event = ""
