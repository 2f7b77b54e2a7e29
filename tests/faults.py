"""Faults for tests: a proxy with switches between a client and a server, and waiting for a condition."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

# How long a test waits for what must come: so long that on a machine which is busy with all others it does come. What
# comes too late is another claim, of a test that says so and is marked `alone`.
PATIENCE_SECONDS: Final = 30.0
_CHUNK_BYTES = 64 * 1024


async def wait_until(
    predicate: Callable[[], Any | Awaitable[Any]],
    timeout_seconds: float = PATIENCE_SECONDS,
    *,
    what: str = "the condition",
) -> Any:
    """Wait until the predicate, a plain or an async function, returns something true; returns that.

    Fails the test after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = predicate()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_seconds:g} s; last answer: {answer!r}")
        await asyncio.sleep(0.005)


class FaultProxy:
    """`async with FaultProxy(url) as proxy: ... proxy.url`: a proxy on 127.0.0.1 whose connections can go wrong.

    `url` is that of the server behind it: `redis://host:port/0`, `http://host:port` or `unix:///path`. Set
    `delay_seconds` and `bytes_per_second` at any time; they hold for each direction of each connection.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.delay_seconds = 0.0
        self.bytes_per_second: float | None = None
        self.refused = 0
        """How many connections were turned away while `refuse` was on."""
        self._refusing = False
        self._swallowing = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._links: set[_Link] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._drop_after: bytes | None = None
        self._turns: Iterator[SplitResult] = itertools.repeat(self._target)
        self._rewritten: tuple[bytes, bytes] | None = None
        self.dropped = asyncio.Event()
        """Set when `drop_reply` has thrown a reply away."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        # Also those that were accepted just now and whose handlers have not begun.
        self._refusing = True
        self.cut()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    @property
    def url(self) -> str:
        """The server's URL with the proxy's address in it; a unix socket becomes `redis://`."""
        if self._target.scheme == "unix":
            return f"redis://127.0.0.1:{self.port}/0"
        return self._target._replace(netloc=f"127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """How many connections go through it now."""
        return len(self._links)

    # --- the switches -------------------------------------------------------------------------------------------

    def cut(self, share: float = 1.0) -> int:
        """Reset all connections or a share of them, as a crashed peer or a broken line does; returns how many."""
        links = list(self._links)
        links = random.sample(links, round(share * len(links)))
        for link in links:
            link.reset()
        return len(links)

    def stall(self) -> None:
        """Keep the connections open, but let nothing through, in either direction."""
        self._flowing.clear()

    def black_hole(self) -> None:
        """Take everything that is sent, in either direction, and pass nothing on, as a line whose far end is gone."""
        self._swallowing = True

    def resume(self) -> None:
        """End a stall: what was sent during it arrives now. End a black hole: who lost bytes in it is reset."""
        self._flowing.set()
        self._swallowing = False
        for link in list(self._links):
            if link.holed:
                link.reset()

    def refuse(self, on: bool = True) -> None:
        """Reset new connections at once; those that stand go on."""
        self._refusing = on

    def drop_reply(self, after: bytes = b"") -> None:
        """Lose one reply: the next request that contains `after` gets through, its answer doesn't.

        The connection is cut where the answer should have come.
        """
        self.dropped.clear()
        self._drop_after = after

    def lead_to(self, url: str) -> None:
        """Lead new connections to another server from now on."""
        self._turns = itertools.repeat(urlsplit(url))

    def alternate_with(self, url: str) -> None:
        """Lead every second new connection to another server, as a wrong load balancer does."""
        self._turns = itertools.cycle([urlsplit(url), self._target])

    def rewrite(self, words: bytes, others: bytes) -> None:
        """Let the server say other words of the same length."""
        assert len(words) == len(others)
        self._rewritten = words, others

    # --- the connections ----------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            # asyncio's own callback for this task would report the cancellation as an error.
            pass
        finally:
            self._handlers.discard(handler)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        try:
            if self._refusing:
                self.refused += 1
                return
            target = next(self._turns)
            with suppress(OSError):
                if target.scheme == "unix":
                    server_reader, link.server = await asyncio.open_unix_connection(unquote(target.path))
                else:
                    server_reader, link.server = await asyncio.open_connection(target.hostname, target.port)
                self._links.add(link)
                await self._pass(link, reader, server_reader)
        finally:
            # However it ends, also where it is cancelled before the server has answered.
            self._links.discard(link)
            link.reset()

    async def _pass(self, link: _Link, reader: asyncio.StreamReader, server_reader: asyncio.StreamReader) -> None:
        assert link.server is not None
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, reader, link.server, to_server=True))
                pumps.create_task(self._pump(link, server_reader, link.client, to_server=False))
        except* OSError:
            pass

    async def _pump(
        self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        while data := await source.read(_CHUNK_BYTES):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.bytes_per_second:
                await asyncio.sleep(len(data) / self.bytes_per_second)
            await self._flowing.wait()
            if self._swallowing or link.holed:
                link.holed = True
                continue
            if to_server and self._drop_after is not None and self._drop_after in data:
                self._drop_after = None
                link.drops_next_reply = True
            elif not to_server and link.drops_next_reply:
                self.dropped.set()
                link.reset()
                return
            if not to_server and self._rewritten is not None:
                data = data.replace(*self._rewritten)
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            with suppress(OSError):
                sink.write_eof()


class _Link:
    """One connection through the proxy: the client's side, and the server's once it is there."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.drops_next_reply = False
        self.holed = False
        """Whether bytes of it were swallowed: nothing that follows would make sense."""

    def reset(self) -> None:
        """End both sides without ceremony: the peers see a reset, not an orderly end."""
        for side in (self.client, self.server):
            if side is None:
                continue
            raw: socket.socket | None = side.get_extra_info("socket")
            if raw is not None and raw.family != socket.AF_UNIX:
                with suppress(OSError):
                    # Linger of zero seconds: close sends RST.
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            side.transport.abort()
