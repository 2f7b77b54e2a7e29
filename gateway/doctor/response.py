"""An HTTP/1.1 response from its bytes, as they come. No I/O, no clock.

Client libraries hide what the doctor is after: interim answers, an answer that breaks off, when which piece came, and
how the body was framed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Framing = Literal["none", "length", "chunked", "close"]

MOST_HEAD_BYTES: Final = 256 * 1024
_STATUS_LINE: Final = re.compile(rb"HTTP/(\d\.\d) (\d{3})(?: ([^\r\n]*))?\r?\n?")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?")


class Garbled(Exception):
    """These bytes are no HTTP/1.1 response; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Head:
    """A status line and its headers; interim (1xx) ones come before the final one."""

    status: int
    reason: str
    version: str
    headers: tuple[tuple[str, str], ...]

    @property
    def interim(self) -> bool:
        """Whether another head follows."""
        return 100 <= self.status < 200 and self.status != 101

    def get(self, name: str, default: str = "") -> str:
        """A header's value, of several of one name all, joined by commas."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else default


class Response:
    """Feed it bytes; it yields heads and pieces of the body, and knows whether it is whole."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._held = b""
        self._state: Literal["head", "length", "chunk", "data", "after", "trailer", "close", "done"] = "head"
        self._left = 0
        self.framing: Framing = "none"

    @property
    def done(self) -> bool:
        """Whether the response has come to its end."""
        return self._state == "done"

    def feed(self, data: bytes) -> list[Head | bytes]:
        """What these bytes complete. Raises `Garbled`."""
        self._held += data
        found: list[Head | bytes] = []
        while (part := self._next()) is not None:
            if part:
                found.append(part)
        return found

    def end(self) -> bool:
        """The peer has closed; returns whether the response is whole."""
        if self._state == "close":
            self._state = "done"
        return self.done

    def _next(self) -> Head | bytes | None:
        """The next head or piece; b"" for a step without one; None when more bytes are needed."""
        match self._state:
            case "head":
                return self._head()
            case "close":
                piece, self._held = self._held, b""
                return piece or None
            case "length" | "data":
                return self._piece()
            case "chunk":
                return self._chunk_size()
            case "after":
                if len(self._held) < 2:
                    return None
                if self._held[:2] != b"\r\n":
                    raise Garbled("a chunk is longer than it said")
                self._held, self._state = self._held[2:], "chunk"
                return b""
            case "trailer":
                line = self._line()
                if line == b"":
                    self._state = "done"
                return None if line is None else b""
            case "done":
                return None

    def _head(self) -> Head | None:
        end = re.search(rb"\r?\n\r?\n", self._held)
        if end is None:
            if len(self._held) > MOST_HEAD_BYTES:
                raise Garbled(f"the head is longer than {MOST_HEAD_BYTES} bytes")
            if len(self._held) >= 5 and not self._held.startswith(b"HTTP/"):
                raise Garbled(f"the answer begins with {self._held[:20]!r}, not with HTTP/")
            return None
        head, self._held = _parse_head(self._held[: end.start()]), self._held[end.end() :]
        if not head.interim:
            self._begin_body(head)
        return head

    def _begin_body(self, head: Head) -> None:
        if head.status == 101 or self._method == "HEAD" or head.status in {204, 304}:
            self._state = "done"
        elif "chunked" in head.get("transfer-encoding").lower():
            self.framing, self._state = "chunked", "chunk"
        elif (length := head.get("content-length").split(",")[0].strip()).isdecimal():
            self.framing, self._left = "length", int(length)
            self._state = "length" if self._left else "done"
        else:
            self.framing, self._state = "close", "close"

    def _piece(self) -> bytes | None:
        if not self._held:
            return None
        piece, self._held = self._held[: self._left], self._held[self._left :]
        self._left -= len(piece)
        if self._left == 0:
            self._state = "done" if self._state == "length" else "after"
        return piece

    def _chunk_size(self) -> bytes | None:
        line = self._line()
        if line is None:
            return None
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise Garbled(f"{line[:20]!r} is no chunk's size")
        self._left = int(match[1], 16)
        self._state = "data" if self._left else "trailer"
        return b""

    def _line(self) -> bytes | None:
        line, newline, rest = self._held.partition(b"\n")
        if not newline:
            if len(line) > MOST_HEAD_BYTES:
                raise Garbled("a line never ends")
            return None
        self._held = rest
        return line.removesuffix(b"\r")


def _parse_head(data: bytes) -> Head:
    first, *lines = re.split(rb"\r?\n", data)
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise Garbled(f"{first[:60]!r} is no status line")
    headers = []
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name.strip():
            raise Garbled(f"{line[:60]!r} is no header")
        headers.append((name.strip(), value.strip()))
    return Head(int(match[2]), (match[3] or b"").decode("latin-1"), match[1].decode(), tuple(headers))
