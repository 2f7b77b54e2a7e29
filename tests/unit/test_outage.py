"""What the log says of an outage of Redis: enough to see it, and not more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any, ClassVar, cast

import pytest

from gateway.store.clients import Identity
from gateway.store.deployment import Address, Deployment
from gateway.store.outage import Outage
from gateway.store.topology import ClusterSlots
from gateway.store.wire import kept
from tests.faults import wait_until


class Clock:
    """A clock that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Loading(asyncio.Protocol):
    """A Redis that loads its data."""

    connections: ClassVar[set[asyncio.BaseTransport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.connections.add(transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"-LOADING Redis is loading the dataset in memory\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self.transport)


def test_an_outage_is_told_when_it_begins_now_and_then_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """Two failures a second for a minute and a half make three lines, and nothing of them is lost at DEBUG."""
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    outage = Outage(clock)
    for _ in range(180):
        outage.failed(ConnectionError("refused"))
        clock.now += 0.5
    for _ in range(20):
        outage.answered()
        clock.now += 0.5

    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        "Redis does not answer: ConnectionError: refused",
        "Redis has not answered for 30 s (61 calls failed, the last with ConnectionError: refused)",
        "Redis has not answered for 60 s (121 calls failed, the last with ConnectionError: refused)",
        "Redis answers again: 180 calls had failed in 90 s",
    ]
    assert len(caplog.records) == 181


def test_one_master_s_answers_are_not_taken_for_anothers_return(caplog: pytest.LogCaptureFixture) -> None:
    """In a cluster most calls succeed while one master is away."""
    clock = Clock()
    outage = Outage(clock)
    for _ in range(10):
        outage.failed(TimeoutError("no answer"))
        for _ in range(4):
            clock.now += 0.5
            outage.answered()

    assert len(caplog.records) == 1


async def test_a_connection_that_is_refused_again_and_again_is_told_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that loads its data takes each connection, and refuses what it is asked: about once a second."""
    clock = Clock()
    monkeypatch.setattr("gateway.store.wire.OUTAGE", Outage(clock))

    def refuse(reply: Any) -> None:
        clock.now += 10
        raise ConnectionError(str(reply))

    server = await asyncio.get_running_loop().create_server(Loading, "127.0.0.1", 0)
    address = Address(*server.sockets[0].getsockname())
    topology = ClusterSlots(Deployment.parse(f"redis+cluster://{address}"))
    wires = kept(topology, Identity("mark", lambda: False), address, refuse, "live feed")
    async with server, aclosing(wires):
        for _ in range(5):
            wire = await anext(wires)
            wire.send(b"PING")
            await wire.lost
    await wait_until(lambda: not Loading.connections)

    refused = "ConnectionError: live feed: LOADING Redis is loading the dataset in memory"
    assert [record.getMessage() for record in caplog.records] == [
        f"Redis does not answer: {refused}",
        f"Redis has not answered for 30 s (4 calls failed, the last with {refused})",
    ]


def test_each_outage_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The second begins with a line of its own."""
    clock = Clock()
    outage = Outage(clock)
    for _ in range(2):
        outage.failed(ConnectionError("refused"))
        clock.now += 10
        outage.answered()

    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "Redis does not answer",
        "Redis answers again",
    ] * 2
