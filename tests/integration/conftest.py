"""What every integration test is held to besides: nothing stays in Redis for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.protocol import TERMINAL
from gateway.store.deployment import Deployment
from gateway.store.masters import Masters
from tests.edge_origin import Origin, origin_server
from tests.faults import FaultProxy
from tests.slow_app import SlowApp, slow_app
from tests.token_source import TokenSource, token_source

_ENDED = {state.value.encode() for state in TERMINAL}


@pytest.fixture(autouse=True)
def _no_key_stays_for_ever(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a key of an ended job without a time to live.

    As an autouse fixture it is set up before a test's own, and so looks after these are gone.
    """
    names = request.fixturenames
    server = next((name for name in ("redis_url", "valkey") if name in names), "")
    watched = bool(server) and "prefix" in names
    url, prefix = (request.getfixturevalue(server), request.getfixturevalue("prefix")) if watched else ("", "")
    yield
    if watched and (kept := _keys_kept_for_ever(url, prefix)):
        pytest.fail(f"keys of ended jobs have no time to live: {kept}")


@pytest.fixture
async def source() -> AsyncIterator[TokenSource]:
    """A model server."""
    async with token_source() as source:
        yield source


@pytest.fixture
async def app() -> AsyncIterator[SlowApp]:
    """A slow application."""
    async with slow_app() as app:
        yield app


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """What is behind a simulated edge."""
    async with origin_server() as origin:
        yield origin


@pytest.fixture
async def proxy(valkey: str) -> AsyncIterator[FaultProxy]:
    """A proxy before Valkey."""
    async with FaultProxy(valkey) as proxy:
        yield proxy


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
