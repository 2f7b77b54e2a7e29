"""The way to Redis: what is cancelled ends, and what is lost on it is told."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as redis

from gateway.errors import Unavailable
from gateway.protocol import START
from gateway.store import Feed, Store
from gateway.store.clients import open_server
from gateway.store.deployment import Deployment
from gateway.store.wire import Wire
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.jobs import Ear


@pytest.mark.parametrize("redis_url", ["valkey", "cluster", "sentinel"], indirect=True)
async def test_a_cancelled_command_always_ends_its_caller(store: Store) -> None:
    """At whatever point of a command the cancel comes, it is not taken for an answer."""

    async def ask_for_ever() -> None:
        while True:
            await store.heads(["a"])

    for turns in range(200):
        task = asyncio.create_task(ask_for_ever())
        for _ in range(turns % 23):
            await asyncio.sleep(0)

        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_SECONDS)

        assert done, f"the cancel after {turns % 23} turns of the loop was swallowed"


def test_a_connection_that_was_lost_under_uvloop_is_an_outage_and_no_defect(valkey: str) -> None:
    """uvloop says so with a `RuntimeError`: the command is sent again on another connection, as on any other loop."""
    uvloop = pytest.importorskip("uvloop")

    async def ask_over_a_lost_connection() -> None:
        deployment = Deployment.parse(valkey)
        connection = open_server(deployment, deployment.seeds[0], retries=0).connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        connection._writer.transport.abort()
        await wait_until(connection._reader.at_eof)
        with pytest.raises(redis.ConnectionError):
            await connection.send_command("PING")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask_over_a_lost_connection())


def test_a_command_on_a_feed_that_is_ending_goes_nowhere(valkey: str) -> None:
    """A listener comes or goes in the moment between the loss of the connection and its being noticed: no defect."""
    uvloop = pytest.importorskip("uvloop")

    async def send_on_an_ending_connection() -> None:
        deployment = Deployment.parse(valkey)
        wire = await Wire.open(deployment, deployment.seeds[0], lambda _: None, "test")
        wire.abort()
        await wire.lost
        wire.send(b"PING")
        wire.send_all([("PING",)])

    for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(send_on_an_ending_connection())


async def test_who_waited_for_its_subscription_in_vain_is_told_to_read_the_log(
    proxy: FaultProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows all the same, and must not believe that it has heard everything since it asked."""
    monkeypatch.setattr("gateway.store.feed._CONFIRM_SECONDS", 0.1)
    store = await Store.connect(proxy.url, prefix=prefix)
    try:
        await wait_until(lambda: store.feed.connected)
        ear = Ear()
        proxy.stall()
        with pytest.raises(Unavailable):
            await store.feed.follow("a" * 26, ear)

        proxy.resume()

        await wait_until(lambda: ear.gaps)
    finally:
        await store.close()


async def test_who_reads_while_the_store_is_closed_is_told_and_not_cancelled(proxy: FaultProxy, prefix: str) -> None:
    """A cancel would be taken for one of the reader's own."""
    store = await Store.connect(proxy.url, prefix=prefix)
    proxy.stall()
    reading = asyncio.create_task(store.events("a" * 26, START))
    await asyncio.sleep(0)
    await wait_until(lambda: not store._wanted)

    await store.close()

    with pytest.raises(Unavailable):
        await reading


async def test_a_defect_in_what_the_store_keeps_going_is_told_at_once(
    valkey: str, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says it, and closing goes on to the last connection."""

    async def broken(_: Feed) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Feed, "run", broken)
    store = await Store.connect(valkey, prefix=prefix)

    await wait_until(lambda: "store keeps the live feed: it has failed" in caplog.text)
    await store.close()
