"""Server-Sent Events: what goes on the wire and what comes off it, to the text of WHATWG HTML, section 9.2.

The encoder refuses what could inject a field or a second event. The decoder takes bytes however they were cut.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, NamedTuple

from gateway.protocol import Cursor

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_TEXT_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_BREAKS: Final = re.compile(r"[\r\n\0]")

# What may wait for its line or message to end. The server keeps an event under 256 KiB and a snapshot under a few MiB;
# anything near this is no stream of ours, and would otherwise grow without bound.
MAX_MESSAGE_CHARS: Final = 16 * 1024 * 1024
# Longer advice is taken for this: a number of any length must not cost its square.
_MAX_RETRY_DIGITS: Final = 9


def encode_event(text: bytes, cursor: Cursor | None = None, name: str | None = None) -> bytes:
    """One block: `id:` and `event:` where given, and `data:` for every line of the text.

    CR, LF and CRLF in the text all end a line, and are read back as LF: the format can't carry the difference.
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
    """Advice on how long to wait before reconnecting. Raises `ValueError` for less than nothing."""
    if milliseconds < 0:
        raise ValueError(f"{milliseconds} ms lie in the past; advise 0 or more")
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

    `last_event_id` is what to come back with: it moves at a blank line only, so a message that was cut in the middle
    doesn't count. `retry_ms` is the server's latest advice, None before any. `comments` counts signs of life.
    A new connection needs a new decoder, which is given the id that the last one had.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self.comments = 0
        # [spec] "Streams must be decoded using the UTF-8 decode algorithm", which replaces what is no UTF-8.
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._at_start = True
        self._after_cr = False
        self._line: list[str] = []
        self._line_chars = 0
        self._data_chars = 0
        self._id_buffer = last_event_id
        self._event = ""
        self._data: list[str] = []

    def feed(self, received: bytes | str) -> list[Message]:
        """Take some bytes, or text that was decoded elsewhere; an incomplete last message waits for the rest.

        Raises `ValueError` where a message grows over `MAX_MESSAGE_CHARS`.

        [spec] "Once the end of the file is reached, any pending data must be discarded. (If the file ends in the
        middle of an event, before the final empty line, the incomplete event is not dispatched.)": so there is
        nothing to call at the end.
        """
        text = received if isinstance(received, str) else self._decode(received)
        if not text:
            return []
        start = 0
        if self._at_start:
            # [spec] "The UTF-8 decode algorithm strips one leading UTF-8 Byte Order Mark (BOM), if any."
            self._at_start = False
            if text[0] == "\ufeff":
                start = 1
        elif self._after_cr and text[0] == "\n":
            # [spec] "end-of-line = ( cr lf / cr / lf )": the CR at the end of the last piece and this LF are one.
            start = 1
        messages: list[Message] = []
        self._after_cr = text[-1] == "\r"
        text = text[start:]
        # Nearly every stream ends its lines with LF alone, which splits in a fraction of the time.
        lines = _TEXT_LINE_END.split(text) if "\r" in text else text.split("\n")
        rest = lines.pop()
        if lines and self._line:
            self._line.append(lines[0])
            lines[0] = "".join(self._line)
            self._line.clear()
            self._line_chars = 0
        for line in lines:
            self._take_line(line, messages)
        if rest:
            # Only what is new was searched and copied: a long line that comes in many pieces doesn't cost its square.
            self._line.append(rest)
            self._line_chars += len(rest)
            self._check_size()
        return messages

    def _take_line(self, line: str, messages: list[Message]) -> None:
        # [spec] "If the line is empty (a blank line): Dispatch the event".
        if not line:
            self._dispatch(messages)
            return
        # [spec] "If the line starts with a U+003A COLON character (:): Ignore the line."
        if line[0] == ":":
            self.comments += 1
            return
        # [spec] "Collect the characters on the line before the first U+003A COLON character (:), and let field be that
        # string. Collect the characters on the line after [it], and let value be that string. If value starts with a
        # U+0020 SPACE character, remove it from value." and "Otherwise [...] using the whole line as the field name,
        # and the empty string as the field value."
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                self._event = value
            case "data":
                # [spec] "Append the field value to the data buffer, then append a single U+000A LINE FEED (LF)".
                self._data.append(value)
                self._data_chars += len(value)
                self._check_size()
            case "id" if "\0" not in value:
                # [spec] "If the field value does not contain U+0000 NULL, then set the last event ID buffer to the
                # field value. Otherwise, ignore the field."
                self._id_buffer = value
            case "retry" if value.isascii() and value.isdigit():
                # [spec] "If the field value consists of only ASCII digits, then interpret the field value as an integer
                # in base ten [...]. Otherwise, ignore the field."
                self.retry_ms = int(value) if len(value) <= _MAX_RETRY_DIGITS else 10**_MAX_RETRY_DIGITS
            # [spec] "Otherwise: The field is ignored."

    def _dispatch(self, messages: list[Message]) -> None:
        # [spec] "Set the last event ID string of the event source to the value of the last event ID buffer. The buffer
        # does not get reset, so the last event ID string of the event source remains set to this value until the next
        # time it is set by the server."
        self.last_event_id = self._id_buffer
        # [spec] "If the data buffer is an empty string, set the data buffer and the event type buffer to the empty
        # string and return." One `data` line without a value makes it a line feed, which is not empty.
        if self._data:
            # [spec] "If the data buffer's last character is a U+000A LINE FEED (LF) character, then remove the last
            # character from the data buffer."
            messages.append(Message(self._event or "message", "\n".join(self._data), self.last_event_id))
            self._data.clear()
            self._data_chars = 0
        self._event = ""

    def _check_size(self) -> None:
        if self._line_chars + self._data_chars > MAX_MESSAGE_CHARS:
            raise ValueError(f"a message of more than {MAX_MESSAGE_CHARS} characters: this is no stream of ours")
