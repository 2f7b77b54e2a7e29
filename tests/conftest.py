"""Fixtures for all tests: a real Valkey per test process, a random key prefix per test, a connected store."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.embedded import EmbeddedValkey

if TYPE_CHECKING:
    from gateway.store import Store


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey that all tests of this process share.

    It is watched by an event loop of its own, since each test has another loop.
    """
    folder = tmp_path_factory.mktemp("valkey")
    ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_keep_server(folder, ready)), name="the tests' Valkey")
    thread.start()
    url, loop, over = ready.result(60)
    yield url
    loop.call_soon_threadsafe(over.set)
    thread.join()


async def _keep_server(folder: Path, ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    over = asyncio.Event()
    try:
        async with EmbeddedValkey(folder, memory_bytes=512 * 1024 * 1024) as server:
            ready.set_result((server.url, asyncio.get_running_loop(), over))
            await over.wait()
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)


@pytest.fixture
def prefix() -> str:
    """A prefix of this test's own for the keys, so that tests share a server and see nothing of each other."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
async def store(valkey: str, prefix: str) -> AsyncIterator[Store]:
    """A store with a short lease, and with the kind `echo` known."""
    from gateway.documents import KindDocument
    from gateway.store import Store

    store = await Store.connect(valkey, prefix=prefix, lease_seconds=0.6)
    await store.register_kind(KindDocument(kind="echo"))
    yield store
    await store.close()
