"""A slow HTTP application as people have it, and servers that break HTTP's rules; both on a port of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web


class SlowApp:
    """An origin behind the gateway. It counts what it is asked, and answers slow routes when `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting = 0
        """Requests that wait for `go`."""
        self.cancelled = 0
        """Requests whose caller went away while they waited."""
        self.seen: list[dict[str, object]] = []
        self.url = ""
        self.app = web.Application(client_max_size=1 << 30)
        self.app.router.add_route("*", "/slow", self._slow)
        self.app.router.add_route("*", "/echo{tail:.*}", self._echo)
        self.app.router.add_route("*", "/stream/{type}", self._stream)
        self.app.router.add_get("/bytes/{size}", self._bytes)
        self.app.router.add_get("/status/{status}", self._status)
        self.app.router.add_route("*", "/redirect", self._redirect)
        self.app.router.add_get("/flaky", self._flaky)

    @property
    def asked(self) -> int:
        """How many requests have come."""
        return len(self.seen)

    async def _note(self, request: web.Request) -> dict[str, object]:
        seen: dict[str, object] = {
            "method": request.method,
            "path": request.path_qs,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": (await request.read()).decode("latin-1"),
        }
        self.seen.append(seen)
        return seen

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1

    async def _slow(self, request: web.Request) -> web.Response:
        seen = await self._note(request)
        await self._wait()
        kind = request.query.get("type", "application/json")
        status = int(request.query.get("status", "200"))
        if kind != "application/json":
            return web.Response(status=status, body=b"plain \xff", headers={"Content-Type": kind, "X-From": "slow"})
        return web.json_response({"slow": True, "body": seen["body"]}, status=status, headers={"X-From": "slow"})

    async def _echo(self, request: web.Request) -> web.Response:
        return web.json_response(await self._note(request), headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        await self._note(request)
        kind = request.match_info["type"]
        response = web.StreamResponse()
        response.content_type = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}.get(kind, "text/plain")
        await response.prepare(request)
        pieces = {"sse": ["data: é\n\n", "data: two\n\n"], "ndjson": ['{"n":1}\n', '{"n":2}\n']}.get(kind, ["a", "b"])
        await response.write(pieces[0].encode()[:7])
        await response.write(pieces[0].encode()[7:])
        await self._wait()
        await response.write(pieces[1].encode())
        await response.write_eof()
        return response

    async def _bytes(self, request: web.Request) -> web.Response:
        await self._note(request)
        return web.Response(body=b"\x00\xff" * (int(request.match_info["size"]) // 2), content_type="image/png")

    async def _status(self, request: web.Request) -> web.Response:
        await self._note(request)
        return web.Response(status=int(request.match_info["status"]), text="as asked")

    async def _redirect(self, request: web.Request) -> web.Response:
        await self._note(request)
        return web.Response(status=int(request.query.get("status", 302)), headers={"Location": request.query["to"]})

    async def _flaky(self, request: web.Request) -> web.Response:
        await self._note(request)
        if self.asked < 3:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"asked": self.asked})


@asynccontextmanager
async def slow_app() -> AsyncIterator[SlowApp]:
    """A slow application for the length of the block."""
    app = SlowApp()
    runner = web.AppRunner(app.app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    app.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield app
    finally:
        app.go.set()
        await runner.cleanup()


@asynccontextmanager
async def raw_server(answer: bytes, *, at_once: bool = False) -> AsyncIterator[str]:
    """A server that answers every request with these bytes, or (`at_once`) whoever connects, and closes."""
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if not at_once:
                await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
