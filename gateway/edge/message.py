"""HTTP/1.1 as bytes: heads, and the framing of bodies. No I/O here.

Strict where two hops could read one message in two ways (RFC 9112, section 11.2): what is ambiguous is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from gateway.edge.failures import Garbled

# No body's chunk has a longer size line, extensions included.
_MAX_CHUNK_LINE: Final = 1024
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE: Final = re.compile(rb"([A-Z][A-Z-]*) (\S+) HTTP/(1\.[01])")
_STATUS_LINE: Final = re.compile(rb"HTTP/(1\.[01]) (\d{3})(?: (.*))?")
# RFC 9110, section 7.6.1: these belong to one connection and end with it.
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)


class Headers:
    """A head's fields in their order; names are compared without regard to case."""

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self.items: list[tuple[str, str]] = list(items)

    def get(self, name: str) -> str | None:
        """All values of a field, joined as a list, or None."""
        values = [value for key, value in self.items if key.lower() == name]
        return ", ".join(values) if values else None

    def tokens(self, name: str) -> set[str]:
        """The elements of a list field, in small letters."""
        return {part.strip().lower() for part in (self.get(name) or "").split(",") if part.strip()}

    def set(self, name: str, value: str) -> None:
        """Put one field in the place of all with that name."""
        self.drop(name)
        self.items.append((name, value))

    def drop(self, *names: str) -> None:
        """Remove fields."""
        gone = {name.lower() for name in names}
        self.items = [(key, value) for key, value in self.items if key.lower() not in gone]

    def drop_hop_by_hop(self) -> None:
        """Remove what belongs to this connection only."""
        self.drop(*_HOP_BY_HOP, *self.tokens("connection"))

    def encode(self) -> bytes:
        """The lines, each with its end."""
        return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in self.items)


@dataclass(slots=True)
class RequestHead:
    """A request without its body."""

    method: str
    target: str
    version: str
    headers: Headers

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to send another one."""
        tokens = self.headers.tokens("connection")
        return "close" not in tokens and (self.version == "1.1" or "keep-alive" in tokens)

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a WebSocket."""
        return "upgrade" in self.headers.tokens("connection") and "websocket" in self.headers.tokens("upgrade")

    def encode(self, version: str) -> bytes:
        """The bytes for the next hop."""
        return f"{self.method} {self.target} HTTP/{version}\r\n".encode("latin-1") + self.headers.encode() + b"\r\n"


@dataclass(slots=True)
class ResponseHead:
    """A response without its body."""

    status: int
    reason: str
    version: str
    headers: Headers

    @property
    def interim(self) -> bool:
        """Whether another head follows."""
        return 100 <= self.status < 200 and self.status != 101

    @property
    def keeps_alive(self) -> bool:
        """Whether the origin waits for another request."""
        tokens = self.headers.tokens("connection")
        return "close" not in tokens and (self.version == "1.1" or "keep-alive" in tokens)

    def encode(self) -> bytes:
        """The bytes for the client."""
        line = f"HTTP/1.1 {self.status} {self.reason}\r\n".encode("latin-1")
        return line + self.headers.encode() + b"\r\n"


def split_head(data: bytes) -> tuple[bytes, bytes] | None:
    """A head without its empty line, and what follows; None while it is not complete."""
    end = data.find(b"\r\n\r\n")
    return None if end < 0 else (data[:end], data[end + 4 :])


def parse_request(head: bytes) -> RequestHead:
    """Raises `Garbled`."""
    line, _, rest = head.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Garbled("the request line")
    method, target, version = (part.decode("latin-1") for part in match.groups())
    return RequestHead(method, target, version, _parse_fields(rest))


def parse_response(head: bytes) -> ResponseHead:
    """Raises `Garbled`."""
    line, _, rest = head.partition(b"\r\n")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Garbled("the status line")
    version, status, reason = match.groups()
    return ResponseHead(int(status), (reason or b"").decode("latin-1"), version.decode(), _parse_fields(rest))


def _parse_fields(block: bytes) -> Headers:
    headers = Headers()
    for line in block.split(b"\r\n") if block else ():
        name, colon, value = line.partition(b":")
        # A name with a space before its colon, or a folded line, is read differently by different parsers.
        if not colon or not _TOKEN.fullmatch(name) or any(byte in value for byte in (0, 10, 13)):
            raise Garbled("a header line")
        headers.items.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))
    return headers


Framing = Literal["none", "length", "chunked", "close"]


def request_framing(head: RequestHead) -> tuple[Framing, int]:
    """How a request's body ends, and its length if that is known. Raises `Garbled`."""
    framing, length = _framing(head.headers)
    if framing == "close":
        return "none", 0
    return framing, length


def response_framing(head: ResponseHead, method: str) -> tuple[Framing, int]:
    """How a response's body ends, and its length if that is known. Raises `Garbled`."""
    if method == "HEAD" or head.status in {204, 304} or head.status < 200:
        return "none", 0
    return _framing(head.headers)


def _framing(headers: Headers) -> tuple[Framing, int]:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise Garbled("the body's framing")
        return "chunked", 0
    if length is None:
        return "close", 0
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise Garbled("Content-Length")
    return ("length", int(length)) if int(length) else ("none", 0)


class Body:
    """Takes a message's bytes after the head, gives the body's own."""

    def __init__(self, framing: Framing, length: int) -> None:
        self.framing = framing
        self.length = length
        """As it was told; 0 where it was not."""
        self._left = length
        self._buffer = b""
        self._state: Literal["size", "data", "end of data", "trailers"] = "size"
        self.complete = framing == "none"
        self.leftover = b""
        """What came after the end."""

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in these. Raises `Garbled`."""
        if self.framing == "close":
            return data
        if self.framing == "chunked":
            return self._feed_chunked(data)
        piece = data[: self._left]
        self._left -= len(piece)
        if self._left == 0:
            self.complete = True
            self.leftover += data[len(piece) :]
        return piece

    def end(self) -> bool:
        """The connection has ended; whether the body is whole."""
        if self.framing == "close":
            self.complete = True
        return self.complete

    def _feed_chunked(self, data: bytes) -> bytes:
        pieces = []
        buffer, at = self._buffer + data, 0
        while at < len(buffer) and not self.complete:
            if self._state == "data":
                piece = buffer[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                pieces.append(piece)
                if self._left == 0:
                    self._state = "end of data"
                continue
            end = buffer.find(b"\r\n", at)
            if end < 0:
                if len(buffer) - at > _MAX_CHUNK_LINE:
                    raise Garbled("a chunk's size")
                break
            line, at = buffer[at:end], end + 2
            self._take_line(line)
        self._buffer = buffer[at:]
        if self.complete:
            self.leftover, self._buffer = self._buffer, b""
        return b"".join(pieces)

    def _take_line(self, line: bytes) -> None:
        if self._state == "end of data":
            if line:
                raise Garbled("a chunk's end")
            self._state = "size"
        elif self._state == "trailers":
            # Trailers are dropped: the next hop was told of none.
            self.complete = not line
        else:
            size = line.partition(b";")[0].strip(b" \t")
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
                raise Garbled("a chunk's size")
            self._left = int(size, 16)
            self._state = "data" if self._left else "trailers"


def chunk(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK: Final = b"0\r\n\r\n"
