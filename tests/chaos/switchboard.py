"""The proxies of a deployment, in a process of their own: their load is not the test's, and they stay up."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Mapping
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from tests.faults import FaultProxy

_CONTEXT: Final = multiprocessing.get_context("forkserver")


class Switchboard:
    """`async with Switchboard({"name": url_behind}) as board: board.urls["name"]; await board.turn("name", "cut")`."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._targets = dict(targets)
        self._asking = asyncio.Lock()
        self.urls: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._here, there = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_operate, args=(there, self._targets), name="proxies", daemon=True)
        self._process.start()
        there.close()
        self.urls = await asyncio.to_thread(self._here.recv)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._here.close()
        await asyncio.to_thread(self._process.join, 5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    async def turn(self, name: str, switch: str, *values: Any) -> Any:
        """Call one of `FaultProxy`'s switches, or set its `delay_seconds` or `bytes_per_second`."""
        async with self._asking:
            self._here.send((name, switch, values))
            return await asyncio.to_thread(self._here.recv)


def _operate(connection: Connection, targets: dict[str, str]) -> None:
    asyncio.run(_serve(connection, targets))


async def _serve(connection: Connection, targets: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        proxies = {name: await stack.enter_async_context(FaultProxy(url)) for name, url in targets.items()}
        connection.send({name: proxy.url for name, proxy in proxies.items()})
        asked = asyncio.Event()
        asyncio.get_running_loop().add_reader(connection.fileno(), asked.set)
        while True:
            await asked.wait()
            asked.clear()
            try:
                while connection.poll():
                    name, switch, values = connection.recv()
                    connection.send(_turn(proxies[name], switch, values))
            except (EOFError, OSError):
                return


def _turn(proxy: FaultProxy, switch: str, values: tuple[Any, ...]) -> Any:
    if switch in {"delay_seconds", "bytes_per_second"}:
        return setattr(proxy, switch, values[0])
    return getattr(proxy, switch)(*values)
