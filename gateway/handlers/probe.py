"""`/_probe/...`: the far end of `outlast doctor`, which measures what a chain of proxies does to an answer.

Off (404) unless `OUTLAST_PROBE_TOKEN` is set. Everything here is bounded: in time, in bytes, and in how many run at
once. `docs/doctor.md` lists the routes; they are no part of the API, so `/openapi.json` does not.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from functools import wraps
from typing import Any, Final, Literal

from aiohttp import WSMsgType, hdrs, web
from aiohttp.typedefs import Handler
from pydantic_core import to_json

from gateway.errors import BadRequest, NotFound, ProbeTokenNeeded, TooLarge
from gateway.handlers.context import SETTINGS
from gateway.handlers.routes import Route
from gateway.handlers.streams import STREAM_HEADERS
from gateway.limits import StreamLimit

TOKEN_HEADER: Final = "X-Outlast-Probe"

# One doctor runs its whole matrix at once, which takes about 30, and 40 with HTTP/2: room for three of them.
MOST_AT_ONCE: Final = 128
# Twice the longest silence that a proxy allows by default, the 125 s of Cloudflare, and a little.
MOST_SECONDS: Final = 300.0
MOST_FRAMES: Final = 1000
MOST_PADDING_BYTES: Final = 16 * 1024
MOST_STREAM_BYTES: Final = 2 * 1024 * 1024
MOST_UPLOAD_BYTES: Final = 16 * 1024 * 1024
# A doctor's own text frame is at most this; anything longer is somebody who wants the bandwidth.
_MOST_FRAME_BYTES: Final = 128 * 1024
# Requests by the id that the doctor gave them, to see whether a hop repeats what it was sent once.
_REMEMBERED_VISITS: Final = 1000
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ID: Final = re.compile(r"[A-Za-z0-9_-]{8,64}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,8}(?:\.[0-9]{1,6})?", re.ASCII)
# Their presence is told, their content is not: an edge adds such headers, and a report is passed on.
_SECRET_HEADER: Final = re.compile(
    r"authorization|cookie|token|secret|key|jwt|assertion|x-outlast-probe", re.IGNORECASE
)


# What stands around a frame, by content type: before all of them, before each, between them, after each, after all.
_FRAMINGS: Final[dict[str, tuple[bytes, bytes, bytes, bytes, bytes]]] = {
    "text/event-stream; charset=utf-8": (b"", b"data: ", b"", b"\n\n", b""),
    "application/x-ndjson": (b"", b"", b"", b"\n", b""),
    "text/plain; charset=utf-8": (b"", b"", b"", b"\n", b""),
    "application/json": (b"[\n", b"", b",", b"\n", b"]\n"),
}


class Probes:
    """What the probes of one gateway share: the places that they may take, and who came how often."""

    def __init__(self) -> None:
        self.places = StreamLimit(MOST_AT_ONCE)
        self._visits: OrderedDict[str, int] = OrderedDict()

    def visit(self, id_: str) -> int:
        """Count a visit; returns how many there have been."""
        self._visits[id_] = self.visits(id_) + 1
        if len(self._visits) > _REMEMBERED_VISITS:
            self._visits.popitem(last=False)
        return self.visits(id_)

    def visits(self, id_: str) -> int:
        """How often this id has come."""
        return self._visits.get(id_, 0)


PROBES: Final = web.AppKey("probes", Probes)


# --- the door ---------------------------------------------------------------------------------------------------------


def _guarded(handler: Handler) -> Handler:
    """A probe's handler: for those who have the token, and only so many at once."""

    @wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        token = request.app[SETTINGS].probe_token.get_secret_value()
        if not token:
            raise NotFound(f"There is nothing at {request.path[:200]}; see /docs for the routes.")
        given = request.headers.get(TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
            raise ProbeTokenNeeded(f"Send the gateway's OUTLAST_PROBE_TOKEN in the header {TOKEN_HEADER}.")
        with request.app[PROBES].places.place("probe"):
            return await handler(request)

    return guarded


def _number(request: web.Request, name: str, default: float, most: float, least: float = 0) -> float:
    """A number of the query. Raises `BadRequest` outside its bounds: one that is only cut short would measure lies."""
    text = request.query.get(name)
    if text is None:
        return default
    if _NUMBER.fullmatch(text) is None or not least <= float(text) <= most:
        raise BadRequest(f"?{name}= takes a number from {least:g} to {most:g}, not {text[:20]!r}.")
    return float(text)


def _refuse_unknown(request: web.Request, *known: str) -> None:
    if unknown := sorted(request.query.keys() - set(known)):
        good = " and ".join(f"?{name}=" for name in known) or "nothing else"
        raise BadRequest(f"?{unknown[0][:40]}= is not read here, but {good}.")


def _document(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=to_json(content),
        content_type="application/json",
        headers={"Cache-Control": STREAM_HEADERS["Cache-Control"]},
    )


# --- answers that take their time -------------------------------------------------------------------------------------


async def probe_silent(request: web.Request) -> web.StreamResponse:
    """`GET /_probe/silent?seconds=N`: not a byte for N seconds, then a JSON document: what a synchronous route does."""
    _refuse_unknown(request, "seconds")
    seconds = _number(request, "seconds", 10, MOST_SECONDS)
    await asyncio.sleep(seconds)
    return _document({"probe": "silent", "silent_seconds": seconds})


def _stream(content_type: str) -> Handler:
    """A handler that sends `frames` frames, one `every` so many seconds, the first after `hold` seconds."""

    async def stream(request: web.Request) -> web.StreamResponse:
        _refuse_unknown(request, "frames", "every", "bytes", "hold")
        frames = int(_number(request, "frames", 6, MOST_FRAMES, 1))
        every = _number(request, "every", 1, MOST_SECONDS)
        padding = "." * int(_number(request, "bytes", 0, MOST_PADDING_BYTES))
        hold = _number(request, "hold", 0, MOST_SECONDS)
        if hold + every * (frames - 1) > MOST_SECONDS or frames * len(padding) > MOST_STREAM_BYTES:
            raise BadRequest(
                f"A probe's stream takes at most {MOST_SECONDS:g} s and {MOST_STREAM_BYTES} bytes; ask for less."
            )
        first, before, between, after, last = _FRAMINGS[content_type]
        response = web.StreamResponse(headers=STREAM_HEADERS | {"Content-Type": content_type})
        await response.prepare(request)
        clock = asyncio.get_running_loop().time
        began = clock()
        await asyncio.sleep(hold)
        # A busy machine may be late with the first one. Two that are sent together would hide a hop that holds it.
        first_at = clock()
        for number in range(1, frames + 1):
            # Against the first one, not against the last: the frames must not drift.
            await asyncio.sleep(max(0.0, first_at + (number - 1) * every - clock()))
            frame = {"n": number, "sent_seconds": round(clock() - began, 4), "time_ms": time.time_ns() // 1_000_000}
            text = before + to_json(frame | {"padding": padding} if padding else frame) + after
            await response.write((first if number == 1 else between) + text + (last if number == frames else b""))
        await response.write_eof()
        return response

    return stream


# --- what a hop does to a request, a status, an upgrade ---------------------------------------------------------------


async def probe_headers(request: web.Request) -> web.StreamResponse:
    """`/_probe/echo-headers`: the request as it arrived here, what is secret in it left out."""
    _refuse_unknown(request)
    shown = [
        [name, f"({len(value)} characters)" if _SECRET_HEADER.search(name) else value[:500]]
        for name, value in request.headers.items()
    ]
    return _document(
        {
            "probe": "echo-headers",
            "method": request.method,
            "path": request.path,
            "http_version": f"{request.version.major}.{request.version.minor}",
            "headers": shown,
            # A cache on the way would answer a second request with the first one's time.
            "time_ns": str(time.time_ns()),
        }
    )


async def probe_status(request: web.Request) -> web.StreamResponse:
    """`GET /_probe/status?code=N`: that status with a JSON document; `interim` sends 102 or 103 before it."""
    _refuse_unknown(request, "code", "interim")
    code = int(_number(request, "code", 200, 599, 200))
    interim = request.query.get("interim")
    if interim not in {None, "102", "103"}:
        raise BadRequest("?interim= takes 102 or 103.")
    if code in {204, 205, 304}:
        raise BadRequest(f"{code} has no body to look at; ask for another code.")
    if interim is not None and request.transport is not None:
        # aiohttp writes final answers only; an interim one is a head of its own before it.
        phrase = "Processing" if interim == "102" else "Early Hints\r\nLink: </_probe/status>; rel=self"
        request.transport.write(f"HTTP/1.1 {interim} {phrase}\r\n\r\n".encode())
        await asyncio.sleep(0.05)
    return _document({"probe": "status", "status": code}, code)


async def probe_upload(request: web.Request) -> web.StreamResponse:
    """`POST /_probe/upload?id=X`: how much came, in what time, and how often this id has come."""
    count = request.app[PROBES].visit(_visitor(request))
    if (request.content_length or 0) > MOST_UPLOAD_BYTES:
        raise _upload_too_large()
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(_CONTINUE)
    clock = asyncio.get_running_loop().time
    began = last = clock()
    size, gap = 0, 0.0
    async for chunk in request.content.iter_any():
        now = clock()
        size, gap, last = size + len(chunk), max(gap, now - last), now
        if size > MOST_UPLOAD_BYTES:
            raise _upload_too_large()
    return _document(
        {
            "probe": "upload",
            "bytes": size,
            "seconds": round(clock() - began, 4),
            "largest_gap_seconds": round(gap, 4),
            "visits": count,
        }
    )


async def probe_visits(request: web.Request) -> web.StreamResponse:
    """`GET /_probe/upload?id=X`: how often that upload has come here."""
    return _document({"probe": "upload", "visits": request.app[PROBES].visits(_visitor(request))})


def _visitor(request: web.Request) -> str:
    _refuse_unknown(request, "id")
    id_ = request.query.get("id", "")
    if _ID.fullmatch(id_) is None:
        raise BadRequest("?id= takes 8 to 64 letters, digits, - and _.")
    return id_


def _upload_too_large() -> TooLarge:
    return TooLarge(f"A probe's upload is at most {MOST_UPLOAD_BYTES} bytes; this one got as far as the gateway.")


async def probe_socket(request: web.Request) -> web.StreamResponse:
    """`GET /_probe/ws`: says hello, then sends back each text frame with its number and the time."""
    _refuse_unknown(request)
    socket = web.WebSocketResponse(compress=False, max_msg_size=_MOST_FRAME_BYTES, timeout=5.0)
    if not socket.can_prepare(request).ok:
        raise BadRequest("This address speaks WebSocket only; open it with ws:// or wss://.", code="websocket_expected")
    await socket.prepare(request)
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            await socket.send_str('{"probe":"ws","n":0}')
            for number in range(1, MOST_FRAMES + 1):
                message = await socket.receive()
                if message.type is not WSMsgType.TEXT:
                    break
                sent = round(clock() - began, 4)
                await socket.send_str(to_json({"n": number, "sent_seconds": sent, "echo": message.data}).decode())
    except TimeoutError:
        pass
    except ConnectionError:
        return socket
    await socket.close()
    return socket


def _routes() -> Iterator[Route]:
    def route(method: Literal["GET", "POST"], name: str, handler: Handler, summary: str) -> Route:
        # Public: the token is asked for here, and the doctor comes by any name that leads here.
        return Route(method, f"/_probe/{name}", _guarded(handler), summary, public=True, hidden=True)

    yield route("GET", "silent", probe_silent, "No byte for `seconds`, then a JSON document")
    methods: tuple[Literal["GET", "POST"], ...] = ("GET", "POST")
    for name, content_type in zip(("sse", "ndjson", "drip", "json"), _FRAMINGS, strict=True):
        for method in methods:
            # The same stream over both: some hops hold what a GET asked for, and let through what a POST did.
            yield route(method, name, _stream(content_type), f"`frames` numbered frames as {content_type}")
    for method in methods:
        yield route(method, "echo-headers", probe_headers, "The request as it arrived")
    yield route("GET", "status", probe_status, "An answer with the status `code`, perhaps after an `interim` one")
    yield route("POST", "upload", probe_upload, "How much came in what time")
    yield route("GET", "upload", probe_visits, "How often the upload `id` came")
    yield route("GET", "ws", probe_socket, "A WebSocket that sends back what it is sent")


routes: Final = list(_routes())
