"""Origins for the tests of the edge simulator, and clients that see each byte's time."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from gateway.edge import Edge, Profile, load_profile
from tests.faults import PATIENCE_SECONDS

SCALE = 0.004
"""125 s pass in half a second."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Origin:
    """A running origin, and what its routes have seen."""

    url: str = ""
    requests: list[web.Request] = field(default_factory=list)
    peers: set[object] = field(default_factory=set)
    """The other ends of the connections that requests came over."""
    finished: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


_ORIGIN = web.AppKey("origin", Origin)


async def _silent(request: web.Request) -> web.Response:
    """Answer after `?s=` simulated seconds."""
    await asyncio.sleep(float(request.query["s"]) * SCALE)
    request.app[_ORIGIN].finished.append(request.path)
    return web.json_response({"ok": True})


async def _drip(request: web.Request) -> web.StreamResponse:
    """`?n=` events, one every `?every=` simulated seconds, of `?type=`; `?first=` seconds before the first."""
    headers = {"X-Accel-Buffering": "no"} if "accel" in request.query else {}
    response = web.StreamResponse(headers=headers)
    response.content_type = request.query.get("type", "text/event-stream")
    await response.prepare(request)
    await asyncio.sleep(float(request.query.get("first", 0)) * SCALE)
    for number in range(int(request.query["n"])):
        await response.write(b"data: %d\n\n" % number)
        await asyncio.sleep(float(request.query["every"]) * SCALE)
    return response


async def _status(request: web.Request) -> web.Response:
    """JSON with a status."""
    return web.json_response({"from": "origin"}, status=int(request.match_info["status"]))


async def _headers(request: web.Request) -> web.Response:
    """The request's headers as they came."""
    return web.json_response(
        list(request.headers.items()), headers={"X-Accel-Expires": "1", "Keep-Alive": "timeout=5", "X-Kept": "yes"}
    )


async def _upload(request: web.Request) -> web.Response:
    """Take a body."""
    request.app[_ORIGIN].bodies.append(await request.read())
    return web.json_response({"bytes": len(request.app[_ORIGIN].bodies[-1])})


async def _text(request: web.Request) -> web.Response:
    """`?n=` bytes of `?type=`, as the query wants them."""
    query = request.query
    body = b"x" * int(query.get("n", 1000))
    headers = {"Content-Type": query.get("type", "application/json"), "ETag": '"x"', "Accept-Ranges": "bytes"}
    if "still" in query:
        headers["Cache-Control"] = "no-transform"
    if "gzip" in query:
        headers["Content-Encoding"], body = "gzip", gzip.compress(body)
    return web.Response(body=body, headers=headers, status=int(query.get("status", 200)))


async def _echo(request: web.Request) -> web.StreamResponse:
    """Echo until `bye`, then close with 4001. A plain GET is told so."""
    if not web.WebSocketResponse().can_prepare(request):
        return web.json_response({"upgrade": request.headers.get("Upgrade")})
    socket = web.WebSocketResponse(autoping="noping" not in request.query)
    await socket.prepare(request)
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            continue
        if message.data == "bye":
            await socket.close(code=4001, message=b"so long")
        elif message.data == "compressed?":
            await socket.send_str(str(socket.compress))
        else:
            await socket.send_str(message.data)
    request.app[_ORIGIN].finished.append(f"echo {socket.close_code}")
    return socket


@asynccontextmanager
async def origin_server() -> AsyncIterator[Origin]:
    """A server with the routes above, whose handlers run on after their client has gone, as aiohttp's do."""
    origin = Origin()

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        origin.requests.append(request)
        if request.transport is not None:
            origin.peers.add(request.transport.get_extra_info("peername"))
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application(middlewares=[note], client_max_size=2**30)
    app[_ORIGIN] = origin
    app.router.add_route("*", "/silent", _silent)
    app.router.add_route("*", "/drip", _drip)
    app.router.add_route("*", "/status/{status}", _status)
    app.router.add_route("*", "/headers", _headers)
    app.router.add_get("/text", _text)
    app.router.add_post("/upload", _upload)
    app.router.add_get("/echo", _echo)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    origin.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield origin
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_origin(handler: Handler, *, receive_bytes: int = 0) -> AsyncIterator[str]:
    """A server that does with each connection what the handler does; yields its URL."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, start_serving=False)
    if receive_bytes:
        import socket

        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await server.start_serving()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def edge_for(origin: str, profile: str | Profile = "cloudflare", *, marked: bool = True, **changes: Any) -> Edge:
    """A hop in front of an origin; `changes` as in `Profile.changed`.

    Its limits for a connection and a write are a tenth of a second when scaled, which a busy machine may take: they are
    there only for the tests that give them.
    """
    chosen = load_profile(profile) if isinstance(profile, str) else profile
    changes = {"timers__connect_seconds": 0.0, "timers__write_seconds": 0.0} | changes
    return Edge(chosen.changed(**changes), origin, time_scale=SCALE, marked=marked)


@dataclass
class Seen:
    """What a raw client got: the pieces with their simulated seconds, and all of it."""

    pieces: list[tuple[float, bytes]]

    @property
    def all(self) -> bytes:
        """Every byte."""
        return b"".join(piece for _, piece in self.pieces)

    @property
    def body(self) -> bytes:
        """What came after the head, chunk sizes included."""
        return self.all.partition(b"\r\n\r\n")[2]

    def when(self, part: bytes) -> float:
        """The simulated seconds at which a text had come."""
        so_far = b""
        for seconds, piece in self.pieces:
            so_far += piece
            if part in so_far:
                return seconds
        raise AssertionError(f"{part!r} did not come: {so_far!r}")


async def see(url: str, request: str | bytes, *, until: bytes | None = None, seconds: float = PATIENCE_SECONDS) -> Seen:
    """Send a request on a connection of its own and watch what comes, until the connection's end or a text.

    A text without line ends is a request line; `seconds` are real ones.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    if isinstance(request, str):
        lines = request if "\r\n" in request else f"{request}\r\n"
        request = f"{lines}Host: {host}\r\nConnection: close\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    clock = asyncio.get_running_loop().time
    start, seen = clock(), Seen([])
    try:
        writer.write(request)
        async with asyncio.timeout(seconds):
            while data := await reader.read(65536):
                seen.pieces.append(((clock() - start) / SCALE, data))
                if until is not None and until in seen.all:
                    break
    except ConnectionError:
        seen.pieces.append(((clock() - start) / SCALE, b"<reset>"))
    finally:
        writer.transport.abort()
    return seen
