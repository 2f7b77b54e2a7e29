"""What a hop keeps of a response before it passes it on: the ways of holding, each bounded. No I/O here."""

from __future__ import annotations

import re
import zlib
from typing import Final, Protocol

from gateway.edge.message import Headers, ResponseHead
from gateway.edge.profile import ResponseRules

# What is held until the end of a response passes on when there is more than this: a simulator must not fill memory.
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
_BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n")


class Hold(Protocol):
    """Takes pieces as they come from the origin, gives what passes on now."""

    def feed(self, piece: bytes) -> bytes:
        """What passes on because of this piece."""
        ...

    def end(self) -> bytes:
        """The rest."""
        ...

    @property
    def held(self) -> int:
        """How many bytes wait."""
        ...


class Passing:
    """Everything at once."""

    held = 0

    def feed(self, piece: bytes) -> bytes:
        return piece

    def end(self) -> bytes:
        return b""


class UntilFull:
    """Whole buffers only, as nginx does with `proxy_buffering on`; with the largest size: until the end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = bytearray()

    @property
    def held(self) -> int:
        return len(self._buffer)

    def feed(self, piece: bytes) -> bytes:
        self._buffer += piece
        full = len(self._buffer) - len(self._buffer) % self._size
        passed = bytes(self._buffer[:full])
        del self._buffer[:full]
        return passed

    def end(self) -> bytes:
        passed = bytes(self._buffer)
        self._buffer.clear()
        return passed


class UntilNext:
    """Each message waits for the next one, as a scanner does that looks at whole messages.

    A message of an event stream ends with an empty line; elsewhere it is what arrived together.
    """

    def __init__(self, *, events: bool) -> None:
        self._events = events
        self._message = b""
        """The last whole message."""
        self._begun = b""
        """The beginning of the next one."""

    @property
    def held(self) -> int:
        return len(self._message) + len(self._begun)

    def feed(self, piece: bytes) -> bytes:
        if not self._events:
            passed, self._message = self._message, piece
            return passed
        self._begun += piece
        ends = [match.end() for match in _BLANK_LINE.finditer(self._begun)]
        if not ends:
            return self._overflow()
        start = ends[-2] if len(ends) > 1 else 0
        passed = self._message + self._begun[:start]
        self._message, self._begun = self._begun[start : ends[-1]], self._begun[ends[-1] :]
        return passed

    def _overflow(self) -> bytes:
        return self.end() if self.held > MAX_HELD_BYTES else b""

    def end(self) -> bytes:
        passed, self._message, self._begun = self._message + self._begun, b"", b""
        return passed


class Prefix:
    """The first bytes wait until there are enough of them to look at; then everything passes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = b""
        self._done = False

    @property
    def held(self) -> int:
        return len(self._buffer)

    def feed(self, piece: bytes) -> bytes:
        if self._done:
            return piece
        self._buffer += piece
        return self.end() if len(self._buffer) >= self._size else b""

    def end(self) -> bytes:
        self._done = True
        passed, self._buffer = self._buffer, b""
        return passed


def choose_hold(rules: ResponseRules, method: str, head: ResponseHead) -> Hold:
    """How this response is held."""
    type_ = (head.headers.get("content-type") or "").strip().lower()
    if _is_held(rules, method, head, type_):
        match rules.buffering:
            case "size":
                return UntilFull(max(1, rules.buffer_bytes))
            case "message":
                return UntilNext(events=type_.startswith("text/event-stream"))
            case "close":
                return UntilFull(MAX_HELD_BYTES)
    return Prefix(rules.inspect_bytes) if rules.inspect_bytes else Passing()


def _is_held(rules: ResponseRules, method: str, head: ResponseHead, type_: str) -> bool:
    if rules.buffering == "none" or method in rules.streamed_methods or type_.startswith(rules.streamed_types):
        return False
    if rules.x_accel and (head.headers.get("x-accel-buffering") or "").lower() == "no":
        return False
    return not rules.buffered_types or type_.startswith(rules.buffered_types)


class Coding(Protocol):
    """Changes a body's content coding, piece by piece."""

    def feed(self, piece: bytes) -> bytes:
        """What these bytes become."""
        ...

    def end(self) -> bytes:
        """The rest."""
        ...


class Gzip:
    """Compresses for a client that takes it; each piece can be read as it arrives, unless the compressor holds."""

    def __init__(self, *, holds: bool) -> None:
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._holds = holds

    def feed(self, piece: bytes) -> bytes:
        data = self._compressor.compress(piece)
        return data if self._holds else data + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._compressor.flush()


class Gunzip:
    """Unpacks for a client that did not ask for what the hop asked the origin for."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(31)

    def feed(self, piece: bytes) -> bytes:
        return self._decompressor.decompress(piece)

    def end(self) -> bytes:
        return self._decompressor.flush()


def choose_coding(rules: ResponseRules, accepts: set[str], head: ResponseHead) -> Coding | None:
    """How the body's coding changes, if it does; the head is changed to tell so."""
    headers = head.headers
    coding = (headers.get("content-encoding") or "").lower()
    if coding == "gzip" and rules.compressed_types and "gzip" not in accepts:
        headers.drop("Content-Encoding", "Content-Length")
        return Gunzip()
    if coding or "gzip" not in accepts or not _is_compressed(rules, head):
        return None
    headers.drop("Content-Length", "ETag", "Accept-Ranges")
    headers.set("Content-Encoding", "gzip")
    _vary(headers)
    return Gzip(holds=rules.compress_holds)


def _is_compressed(rules: ResponseRules, head: ResponseHead) -> bool:
    type_ = (head.headers.get("content-type") or "").partition(";")[0].strip().lower()
    length = head.headers.get("content-length")
    return (
        type_ in rules.compressed_types
        and head.status in rules.compressed_statuses
        and "no-transform" not in head.headers.tokens("cache-control")
        and (length is None or int(length) >= rules.compress_from_bytes)
    )


def _vary(headers: Headers) -> None:
    vary = headers.get("vary")
    if "accept-encoding" not in headers.tokens("vary"):
        headers.set("Vary", f"{vary}, Accept-Encoding" if vary else "Accept-Encoding")
