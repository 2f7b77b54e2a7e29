"""A hop that does to requests and answers what a test tells it to: `Meddler`, on raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

_HEAD_BYTES = 256 * 1024


def unchanged(data: bytes) -> bytes:
    """Does nothing."""
    return data


class Meddler:
    """`async with Meddler(url, ...) as hop: ... hop.url`: a relay of one request per connection.

    `on_request` gets a request's head, `on_answer` an answer's head after its request's; each returns another head, or
    None and a whole answer of its own. `on_piece` gets each piece of an answer's body, framing included. `route`
    chooses another server by the request's head.
    """

    def __init__(
        self,
        url: str,
        *,
        on_request: Callable[[bytes], bytes | tuple[None, bytes]] = unchanged,
        on_answer: Callable[[bytes, bytes], bytes | tuple[None, bytes]] = lambda request, answer: answer,
        on_piece: Callable[[bytes], bytes] = unchanged,
        route: Callable[[bytes], str] | None = None,
    ) -> None:
        self._route = route or (lambda head: url)
        self._on_request, self._on_answer, self._on_piece = on_request, on_answer, on_piece
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD_BYTES)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._relay(reader, writer)
        finally:
            self._links.discard(link)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        changed = self._on_request(request)
        if isinstance(changed, tuple):
            writer.write(changed[1])
            return
        target = urlsplit(self._route(request))
        upstream, to_upstream = await asyncio.open_connection(target.hostname, target.port, limit=_HEAD_BYTES)
        pump = asyncio.create_task(_pump(reader, to_upstream, unchanged))
        try:
            to_upstream.write(changed)
            head = self._on_answer(request, await upstream.readuntil(b"\r\n\r\n"))
            if isinstance(head, tuple):
                writer.write(head[1])
                return
            writer.write(head)
            await _pump(upstream, writer, self._on_piece)
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            to_upstream.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]) -> None:
    with suppress(OSError):
        while data := await source.read(_HEAD_BYTES):
            sink.write(change(data))
            await sink.drain()


def page(status: str, body: str, *headers: str) -> tuple[None, bytes]:
    """A whole answer with an HTML body."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: text/html", f"Content-Length: {len(body)}", "Connection: close"]
    return None, "\r\n".join([*lines, *headers, "", body]).encode()
