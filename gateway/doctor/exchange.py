"""One exchange over a raw connection, HTTP/1.1 or 2, with a clock on everything that comes.

Redirects are not followed, cookies not kept, and a failure is a result, not an exception: how it failed is what the
doctor wants to know.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Final
from urllib.parse import urlsplit

from gateway.doctor.http2 import Http2Response
from gateway.doctor.response import Framing, Garbled, Head, Response

# What is kept of a body: an error page or the frames of a probe are far smaller.
MOST_BODY_BYTES: Final = 4 * 1024 * 1024
_CONNECT_SECONDS: Final = 10
_READ_BYTES: Final = 64 * 1024
_UPLOAD_BYTES: Final = 16 * 1024


class Ended(StrEnum):
    """How an exchange ended."""

    WHOLE = "whole"
    CUT = "cut"
    """Closed or reset before the answer was whole."""
    PATIENCE = "patience"
    """Nothing more came within the time that was allowed."""
    GARBLED = "garbled"
    NO_NAME = "no_name"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TLS = "tls"


@dataclass(frozen=True, slots=True)
class Tls:
    """What was agreed on with the peer."""

    version: str
    issuer: str
    alpn: str


@dataclass(slots=True)
class Exchange:
    """What happened. Times are seconds since the request began, before the name was looked up."""

    method: str
    url: str
    ended: Ended = Ended.PATIENCE
    detail: str = ""
    addresses: tuple[str, ...] = ()
    tls: Tls | None = None
    interim: list[tuple[float, Head]] = field(default_factory=list)
    head: Head | None = None
    framing: Framing = "none"
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    size: int = 0
    connected_seconds: float | None = None
    sent_seconds: float | None = None
    """When the whole request had been written."""
    head_seconds: float | None = None
    ended_seconds: float = 0.0

    @property
    def status(self) -> int | None:
        """The final status, None where no answer came."""
        return self.head.status if self.head else None

    @property
    def body(self) -> bytes:
        """What was kept of the body."""
        return b"".join(piece for _, piece in self.pieces)

    @property
    def first_byte_seconds(self) -> float | None:
        """When the first byte of the body came."""
        return self.pieces[0][0] if self.pieces else None

    @property
    def largest_gap_seconds(self) -> float:
        """The longest time between two signs of life, the last of them the end."""
        times = [self.sent_seconds or 0.0, *([self.head_seconds] if self.head_seconds else [])]
        times += [*(at for at, _ in self.pieces), self.ended_seconds]
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)

    @property
    def last_gap_seconds(self) -> float:
        """The silence before the end."""
        before = self.pieces[-1][0] if self.pieces else self.head_seconds
        return self.ended_seconds - (before if before is not None else self.sent_seconds or 0.0)


async def exchange(
    method: str,
    url: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    patience_seconds: float,
    announce_bytes: int | None = None,
    bytes_per_second: float | None = None,
    trust: bool = False,
    http2: bool = False,
) -> Exchange:
    """Send one request and take its answer to the end, or until `patience_seconds` after the connection was made.

    Args:
        http2: speak HTTP/2, and nothing else, to an https address; then no body can be sent.
        announce_bytes: a `Content-Length` to announce without sending a body.
        bytes_per_second: how fast the body is sent; as fast as it goes where it is None.
        trust: take any certificate; else those of private addresses only, whose names no authority signs.
    """
    result = Exchange(method, url)
    clock = asyncio.get_running_loop().time
    began = clock()
    connection = None
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await _connect(result, url, trust=trust, alpn="h2" if http2 else "http/1.1")
    except TimeoutError:
        result.ended, result.detail = Ended.UNREACHABLE, f"no connection within {_CONNECT_SECONDS} s"
    result.ended_seconds = clock() - began
    if connection is None:
        return result
    result.connected_seconds = result.ended_seconds
    response: Response | Http2Response = Response(method)
    if http2:
        response = Http2Response(method, url, _request_headers(method, url, dict(headers or {}), 0))
        head = response.outgoing()
    else:
        length = len(body) if announce_bytes is None else announce_bytes
        head = _request_head(method, url, _request_headers(method, url, dict(headers or {}), length))
    reader, writer = connection
    sending = asyncio.create_task(_send(writer, head, body, bytes_per_second), name="doctor's request")
    try:
        await _take_answer(result, response, reader, writer, began=began, patience_seconds=patience_seconds)
    finally:
        result.ended_seconds = clock() - began
        if sending.done() and (sent := sending.result()) is not None:
            result.sent_seconds = sent - began
        # First: whatever comes between, such as another cancel, must not leave the connection open.
        writer.transport.abort()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        with suppress(OSError):
            await writer.wait_closed()
    return result


async def _take_answer(
    result: Exchange,
    response: Response | Http2Response,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    began: float,
    patience_seconds: float,
) -> None:
    """Take an answer until it ends, and note how it did."""
    try:
        async with asyncio.timeout(patience_seconds):
            await _receive(result, response, reader, writer, began)
    except TimeoutError:
        result.ended = Ended.PATIENCE
    except OSError as error:
        result.ended, result.detail = Ended.CUT, error.strerror or type(error).__name__
    except Garbled as error:
        result.ended, result.detail = Ended.GARBLED, str(error)


async def _connect(
    result: Exchange, url: str, *, trust: bool, alpn: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Open the connection. A failure is noted in the result."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        result.ended, result.detail = Ended.NO_NAME, f"{host}: {getattr(error, 'strerror', None) or error}"
        return None
    result.addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    context = tls_context(alpn, trust=trust or is_private(host)) if secure else None
    try:
        reader, writer = await _open_first(
            result.addresses, port, context, host if secure else None, _CONNECT_SECONDS / len(result.addresses)
        )
    except ssl.SSLError as error:
        verify = getattr(error, "verify_message", "")
        result.ended, result.detail = Ended.TLS, verify or error.reason or "the handshake failed"
    except ConnectionRefusedError:
        result.ended, result.detail = Ended.REFUSED, f"nothing listens on port {port}"
    except ConnectionResetError:
        ended = Ended.TLS if secure else Ended.CUT
        result.ended, result.detail = ended, "the connection was reset while it was opened"
    except OSError as error:
        result.ended, result.detail = Ended.UNREACHABLE, error.strerror or str(error) or "no connection in time"
    else:
        if secure:
            result.tls = _tls_facts(writer)
        if alpn != "h2" or (result.tls is not None and result.tls.alpn == "h2"):
            return reader, writer
        writer.transport.abort()
        result.ended, result.detail = Ended.GARBLED, f"no HTTP/2 is spoken on port {port}"
    return None


async def _open_first(
    addresses: tuple[str, ...], port: int, context: ssl.SSLContext | None, name: str | None, each_seconds: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first address that takes one.

    One after the other: asyncio's race between addresses leaves sockets open where it is cancelled (Python 3.11).
    """
    last: OSError = TimeoutError("no connection in time")
    for address in addresses:
        try:
            async with asyncio.timeout(each_seconds):
                return await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
        except ssl.SSLError:
            raise
        except OSError as error:
            last = error
    raise last


def is_private(host: str) -> bool:
    """Whether a host is this machine or has a private address as its name."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def tls_context(alpn: str, *, trust: bool) -> ssl.SSLContext:
    """A context that offers one protocol, and takes any certificate if it is told to."""
    context = ssl.create_default_context()
    context.set_alpn_protocols([alpn])
    if trust:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _tls_facts(writer: asyncio.StreamWriter) -> Tls | None:
    facts = writer.get_extra_info("ssl_object")
    if facts is None:
        return None
    issuer = {name: value for part in (facts.getpeercert() or {}).get("issuer", ()) for name, value in part}
    named = issuer.get("organizationName") or issuer.get("commonName") or "not verified"
    return Tls(facts.version() or "", named, facts.selected_alpn_protocol() or "")


def _request_headers(method: str, url: str, headers: dict[str, str], length: int) -> list[tuple[str, str]]:
    given = {name.lower() for name in headers}
    defaults = {
        "Host": urlsplit(url).netloc.rpartition("@")[2],
        "User-Agent": "outlast-doctor",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    lines = [(name, value) for name, value in defaults.items() if name.lower() not in given] + list(headers.items())
    if (length or method in {"POST", "PUT", "PATCH"}) and "content-length" not in given:
        lines.append(("Content-Length", str(length)))
    return [(name, value.replace("\r", "").replace("\n", "")) for name, value in lines]


def _request_head(method: str, url: str, headers: list[tuple[str, str]]) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "".join(line + "\r\n" for line in lines).encode("latin-1") + b"\r\n"


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes, bytes_per_second: float | None) -> float | None:
    """Send a request; returns when it was out, None where the peer wanted no more of it."""
    clock = asyncio.get_running_loop().time
    try:
        writer.write(head)
        began = clock()
        for start in range(0, len(body), _UPLOAD_BYTES):
            piece = body[start : start + _UPLOAD_BYTES]
            writer.write(piece)
            await writer.drain()
            if bytes_per_second is not None:
                # By the clock: pauses that are each a little late would add up to another rate.
                await asyncio.sleep(began + (start + len(piece)) / bytes_per_second - clock())
        await writer.drain()
    except OSError:
        # Who answers before the body is over, such as with 413, may close: the answer says why.
        return None
    return clock()


async def _receive(
    result: Exchange,
    response: Response | Http2Response,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    began: float,
) -> None:
    clock = asyncio.get_running_loop().time
    while not response.done:
        data = await reader.read(_READ_BYTES)
        now = clock() - began
        if not data:
            result.ended = Ended.WHOLE if isinstance(response, Response) and response.end() else Ended.CUT
            if result.ended is Ended.CUT:
                result.detail = "closed before the answer was whole" if result.head else "closed without an answer"
            return
        for part in response.feed(data):
            if isinstance(part, bytes):
                result.size += len(part)
                if result.size <= MOST_BODY_BYTES:
                    result.pieces.append((now, part))
            elif part.interim:
                result.interim.append((now, part))
            else:
                result.head, result.head_seconds = part, now
        result.framing = response.framing
        if isinstance(response, Http2Response):
            # Small, and the peer reads them: acknowledgements, and how much more it may send.
            writer.write(response.outgoing())
            if response.cut:
                result.ended, result.detail = Ended.CUT, response.cut
                return
    result.ended = Ended.WHOLE
