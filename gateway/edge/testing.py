"""Simulated hops for tests: the pytest fixture `outlast_edge`, and the same as a context manager.

The hops run in a thread with an event loop of their own, so that tests of any framework can use them, and code that
blocks is tested as it is. pytest finds the fixture by itself where Outlast is installed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Protocol, TypeVar

import pytest

from gateway.edge.metrics import Record
from gateway.edge.profile import Profile, load_profile
from gateway.edge.server import Edge, chain

# A hop starts in milliseconds; this is for a machine that does something else.
_START_SECONDS: Final = 30


T = TypeVar("T")


class RunningEdge:
    """One hop that runs in another thread. All of it may be called from any thread."""

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self._edge = edge
        self._loop = loop
        self.url = edge.url

    @property
    def requests(self) -> list[Record]:
        """What happened to the last requests, oldest first, in simulated seconds."""
        return self._call(lambda: self._edge.requests)

    def fault(self, name: str, **options: object) -> None:
        """Let a fault wait for the next request that it fits: `fault("524_now", path="/api")`. Raises `ValueError`."""
        self._call(lambda: self._edge.fault(name, **options))

    def restart(self) -> int:
        """Cut all connections; returns how many."""
        return self._call(self._edge.restart)

    def _call(self, call: Callable[[], T]) -> T:
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except Exception as error:  # noqa: BLE001 - it is raised where the caller waits
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return answer.result(_START_SECONDS)


@contextmanager
def running_edges(
    origin: str, *profiles: str | Profile, time_scale: float = 0.01, seed: int = 0, marked: bool = True
) -> Iterator[list[RunningEdge]]:
    """Hops in front of an origin for the length of the block, the clients' one first. Raises `ConfigurationError`."""
    chosen = [load_profile(one) if isinstance(one, str) else one for one in profiles or ("cloudflare",)]
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, list[Edge]]] = Future()

    async def serve() -> None:
        over = asyncio.Event()
        try:
            async with chain(chosen, origin, time_scale=time_scale, seed=seed, marked=marked) as hops:
                ready.set_result((asyncio.get_running_loop(), over, hops))
                await over.wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="outlast edge", daemon=True)
    thread.start()
    loop, over, hops = ready.result(_START_SECONDS)
    try:
        yield [RunningEdge(hop, loop) for hop in hops]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


class EdgeFactory(Protocol):
    """What the fixture is: call it with an origin and profiles, the clients' hop first; it returns that hop."""

    def __call__(self, origin: str, *profiles: str | Profile, **options: Any) -> RunningEdge:
        """Start the hops; they end with the test."""


@pytest.fixture
def outlast_edge() -> Iterator[EdgeFactory]:
    """Start simulated hops: `edge = outlast_edge("http://127.0.0.1:8000", "cloudflare", time_scale=0.01)`."""
    with ExitStack() as stack:

        def start(origin: str, *profiles: str | Profile, **options: Any) -> RunningEdge:
            return stack.enter_context(running_edges(origin, *profiles, **options))[0]

        yield start
