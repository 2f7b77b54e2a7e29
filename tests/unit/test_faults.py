"""The proxy that tests break connections with does what its switches say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers each line with itself, and the lines that it got."""
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            got.append(line)
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", got
    server.close()


class Line:
    """A client's connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, proxy: FaultProxy) -> Line:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self, text: bytes, timeout_seconds: float = PATIENCE_SECONDS) -> bytes:
        self.writer.write(text + b"\n")
        async with asyncio.timeout(timeout_seconds):
            return (await self._reader.readline()).rstrip()

    def close(self) -> None:
        self.writer.close()


async def test_what_is_not_broken_gets_through(echo: tuple[str, list[bytes]]) -> None:
    """Without a switch it is a plain proxy, and it knows how many use it."""
    async with FaultProxy(echo[0]) as proxy:
        line = await Line.open(proxy)
        assert await line.ask(b"hello") == b"hello"
        assert proxy.connections == 1

        line.close()
        await wait_until(lambda: proxy.connections == 0)


async def test_a_cut_resets_what_is_open_and_nothing_later(echo: tuple[str, list[bytes]]) -> None:
    """The client sees a reset; a new connection works."""
    async with FaultProxy(echo[0]) as proxy:
        line = await Line.open(proxy)
        await line.ask(b"1")

        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await line.ask(b"2")

        again = await Line.open(proxy)
        assert await again.ask(b"3") == b"3"
        again.close()


async def test_a_stall_holds_back_and_loses_nothing(echo: tuple[str, list[bytes]]) -> None:
    """Nothing arrives while it lasts, everything after it."""
    async with FaultProxy(echo[0]) as proxy:
        line = await Line.open(proxy)
        await line.ask(b"1")
        proxy.stall()

        with pytest.raises(TimeoutError):
            await line.ask(b"2", 0.1)
        proxy.resume()

        assert await line.ask(b"3") == b"2"
        line.close()


async def test_a_refused_connection_is_reset_and_counted(echo: tuple[str, list[bytes]]) -> None:
    """New connections fail while it lasts; open ones go on."""
    async with FaultProxy(echo[0]) as proxy:
        line = await Line.open(proxy)
        await line.ask(b"1")
        proxy.refuse()

        with pytest.raises(ConnectionResetError):
            await (await Line.open(proxy)).ask(b"2")
        assert proxy.refused == 1
        assert await line.ask(b"3") == b"3"

        proxy.refuse(False)
        again = await Line.open(proxy)
        assert await again.ask(b"4") == b"4"
        again.close()
        line.close()


async def test_a_dropped_reply_belongs_to_a_request_that_got_through(echo: tuple[str, list[bytes]]) -> None:
    """The server has the named request, the client no answer to it but a cut; other requests are answered."""
    url, got = echo
    async with FaultProxy(url) as proxy:
        line = await Line.open(proxy)
        proxy.drop_reply(after=b"second")
        assert await line.ask(b"first") == b"first"

        with pytest.raises(ConnectionResetError):
            await line.ask(b"second")

        assert proxy.dropped.is_set()
        assert got == [b"first\n", b"second\n"]


async def test_delay_and_rate_slow_each_direction(echo: tuple[str, list[bytes]]) -> None:
    """An answer takes at least as long as the switches say, both ways together."""
    async with FaultProxy(echo[0]) as proxy:
        line = await Line.open(proxy)
        proxy.delay_seconds = 0.05
        started = time.monotonic()
        await line.ask(b"1")
        assert time.monotonic() - started >= 0.1

        proxy.delay_seconds = 0
        proxy.bytes_per_second = 1000
        started = time.monotonic()
        await line.ask(b"x" * 99)
        assert time.monotonic() - started >= 0.2
        line.close()


async def test_waiting_ends_with_a_failure_that_names_what_was_missed() -> None:
    """A condition that does not come fails the test in words."""
    with pytest.raises(AssertionError, match=r"the moon did not come true within 0\.05 s"):
        await wait_until(lambda: False, 0.05, what="the moon")


async def test_a_black_hole_takes_what_is_sent_and_ends_in_a_reset(echo: tuple[str, list[bytes]]) -> None:
    """Nothing gets through and nothing is refused; whoever lost bytes in it can't go on, the others can."""
    url, got = echo
    async with FaultProxy(url) as proxy:
        line, quiet = await Line.open(proxy), await Line.open(proxy)
        await line.ask(b"1")
        await quiet.ask(b"2")
        proxy.black_hole()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await line.ask(b"lost")

        proxy.resume()

        with pytest.raises(ConnectionResetError):
            await line.ask(b"3")
        assert await quiet.ask(b"4") == b"4"
        assert b"lost\n" not in got
        quiet.close()


async def test_a_share_of_the_connections_can_be_cut(echo: tuple[str, list[bytes]]) -> None:
    """Half of them is half of them."""
    async with FaultProxy(echo[0]) as proxy:
        lines = [await Line.open(proxy) for _ in range(4)]
        for line in lines:
            await line.ask(b"1")

        assert proxy.cut(0.5) == 2

        await wait_until(lambda: proxy.connections == 2)
        for line in lines:
            line.close()


async def test_a_proxy_that_ends_before_its_server_has_answered_resets_the_client(
    echo: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that went nowhere yet is ended like the others."""
    reached, connect = asyncio.Event(), asyncio.open_connection

    async def answer_never(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", answer_never)
    async with FaultProxy(echo[0]) as proxy:
        reader, writer = await connect("127.0.0.1", proxy.port)
        await reached.wait()

    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader.read()
    writer.close()
