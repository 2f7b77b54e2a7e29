"""What every integration test is held to: nothing stays behind, neither in Redis nor in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.protocol import TERMINAL
from gateway.store.deployment import Deployment
from gateway.store.masters import Masters
from tests.faults import FaultProxy, wait_until
from tests.token_source import TokenSource, token_source

_ENDED = {state.value.encode() for state in TERMINAL}


@pytest.fixture(autouse=True)
async def _nothing_left_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail a test that leaves a task or a connection behind, or a key of an ended job without a time to live.

    As an autouse fixture it is set up before all others, and so looks after all others are gone.
    """
    names = request.fixturenames
    server = next((name for name in ("redis_url", "valkey") if name in names), "")
    watched = bool(server) and "prefix" in names
    url, prefix = (request.getfixturevalue(server), request.getfixturevalue("prefix")) if watched else ("", "")
    yield
    try:
        await wait_until(lambda: not _other_tasks(), 10, what="the end of all tasks")
    except AssertionError:
        pytest.fail(f"tasks are left over: {sorted(task.get_name() for task in _other_tasks())}")
    try:
        await wait_until(lambda: not _open_transports(), 10, what="the end of all connections")
    except AssertionError:
        pytest.fail(f"connections are left over: {_open_transports()}")
    if watched and (kept := _keys_kept_for_ever(url, prefix)):
        pytest.fail(f"keys of ended jobs have no time to live: {kept}")


@pytest.fixture
async def source() -> AsyncIterator[TokenSource]:
    """A model server."""
    async with token_source() as source:
        yield source


@pytest.fixture
async def proxy(valkey: str) -> AsyncIterator[FaultProxy]:
    """A proxy before Valkey."""
    async with FaultProxy(valkey) as proxy:
        yield proxy


def _other_tasks() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def _open_transports() -> list[asyncio.BaseTransport]:
    """The connections and pipes that the loop would still read from or write to."""
    keys = asyncio.get_running_loop()._selector.get_map().values()  # type: ignore[attr-defined]
    owners = [getattr(handle._callback, "__self__", None) for key in keys for handle in key.data if handle]
    return [owner for owner in owners if isinstance(owner, asyncio.BaseTransport)]


def _keys_kept_for_ever(url: str, prefix: str) -> list[str]:
    """The keys of ended jobs that would stay in Redis for ever."""
    kept: list[str] = []
    masters = Masters(Deployment.parse(url), 10)
    try:
        for address in masters.all():
            client = masters.client(address)
            for job in client.scan_iter(match=f"{prefix}:{{*}}:job", count=1000):
                if client.hget(job, "state") not in _ENDED:
                    continue
                tag = job.rsplit(b":", 1)[0].decode()
                # All keys of a job are in one slot, and so at one master.
                kept += [
                    key.decode() for key in client.scan_iter(match=f"{tag}:*", count=1000) if client.ttl(key) == -1
                ]
    finally:
        masters.close()
    return sorted(kept)
