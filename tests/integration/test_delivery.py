"""Delivery over several gateways: moved and killed, drained, and stormed after an outage."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import cycle, islice
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType
from pydantic_core import from_json

from gateway.client import Client
from gateway.client.client import Transport as ClientTransport
from gateway.documents import KindDocument
from gateway.handlers.context import HUB
from gateway.protocol import CLOSE_CODES, CloseCode
from gateway.sse import Decoder
from gateway.store import Lease, Store
from gateway.verify.streams import Transport
from gateway.verify.target import Target, own_work, sessions
from gateway.verify.trial import Hop, Trial
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.gateway_process import gateway_process, has_listeners
from tests.jobs import begin, end, event, submit
from tests.serving import Gateway, gateway_for

KIND = KindDocument(kind="echo")


async def write_slowly(store: Store, lease: Lease, batches: int, pause_seconds: float) -> None:
    """A worker that writes three events at a time, then the end."""
    for batch in range(1, batches + 1):
        await store.append(lease, batch, [event("log", {"message": f"{batch} {part} ü"}) for part in range(3)])
        await asyncio.sleep(pause_seconds)
    await end(store, lease, batch=batches + 1)


async def log_of(store: Store, job: str) -> list[str]:
    """The texts of a job's log, as Redis has them."""
    record = await store.job(job)
    return [
        entry.text.decode()
        for start in range(0, record.last.number, 200)
        for entry in (await store.events(job, type(record.last)(start), 200)).entries
    ]


async def test_a_listener_moves_between_three_gateways_and_four_transports(
    store: Store, valkey: str, prefix: str, tmp_path: Path
) -> None:
    """Each connection is at the next gateway, over the next transport, and cut after four events."""
    record = await submit(store, KIND, owner="local")
    lease = await begin(store, "echo")
    order: tuple[Transport, ...] = ("sse", "websocket", "ndjson", "poll")
    async with AsyncExitStack() as stack:
        starting = (stack.enter_async_context(gateway_process(valkey, prefix, tmp_path)) for _ in range(3))
        gateways = await asyncio.gather(*starting)
        plain, tight = await stack.enter_async_context(sessions())
        target = Target([gateway.url for gateway in gateways], own_work("echo", {}), plain, None)
        trial = Trial(target, tight, silence_seconds=15, run_quiet_seconds=20, patience_seconds=60, other_key=None)
        writing = asyncio.create_task(write_slowly(store, lease, 40, 0.02))

        followed = await trial.follow(record.id, [Hop(transport, most=4) for transport in islice(cycle(order), 24)])
        await writing

    assert followed.texts == await log_of(store, record.id)
    assert followed.transports == set(order)
    assert followed.connections > 12


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_a_gateway_that_is_killed_loses_nothing(
    store: Store, valkey: str, prefix: str, tmp_path: Path, transport: ClientTransport
) -> None:
    """`kill -9` in the middle of a stream: behind one address another gateway goes on at the next event."""
    record = await submit(store, KIND, owner="local")
    lease = await begin(store, "echo")
    numbers: list[int] = []
    async with (
        gateway_process(valkey, prefix, tmp_path) as first,
        gateway_process(valkey, prefix, tmp_path) as second,
        FaultProxy(first.url) as address,
        Client(address.url, transport=transport, backoff_seconds=0.05) as client,
    ):

        async def listen() -> None:
            async for one in client.events(record.id):
                numbers.extend([one.id] if one.id is not None else [])

        listening = asyncio.create_task(listen())
        writing = asyncio.create_task(write_slowly(store, lease, 40, 0.03))
        await wait_until(lambda: len(numbers) > 12)
        first.process.kill()
        address.lead_to(second.url)
        async with asyncio.timeout(30):
            await asyncio.gather(listening, writing)

    assert client.reconnects >= 1
    assert numbers == list(range(1, len(await log_of(store, record.id)) + 1))


@pytest.mark.usefixtures("patient_clock")
async def test_a_drain_spreads_its_listeners_over_the_window(store: Store, tmp_path: Path) -> None:
    """Nobody new is let in, all are told to come back, at different times and after different pauses."""
    record = await submit(store, KIND, owner="local")
    window, count = 1.5, 20
    left: list[float] = []
    pauses: list[float] = []
    codes: list[int | None] = []

    clock = asyncio.get_running_loop().time

    async def stream(gateway: Gateway) -> None:
        decoder = Decoder()
        async with gateway.session.get(f"{gateway.url}/v1/jobs/{record.id}/events") as response:
            messages = [one async for chunk in response.content.iter_any() for one in decoder.feed(chunk)]
        left.append(clock())
        last = from_json(messages[-1].data)
        assert (last["type"], last["data"]["reason"]) == ("closing", "draining")
        pauses.append(last["data"]["retry_seconds"])

    async def socket(gateway: Gateway) -> None:
        async with gateway.session.ws_connect(f"{gateway.url}/v1/ws") as connection:
            await connection.send_json({"op": "subscribe", "job": record.id})
            while (await connection.receive()).type is WSMsgType.TEXT:
                pass
            left.append(clock())
            codes.append(connection.close_code)

    async with gateway_for(store, tmp_path, drain_seconds=window) as gateway:
        listeners = [asyncio.create_task(one(gateway)) for one in (stream, socket) for _ in range(count)]
        await wait_until(lambda: len(gateway.app[HUB].listeners) == 2 * count)
        began = clock()
        draining = asyncio.create_task(gateway.server.drain())
        await wait_until(lambda: refuses(gateway), what="no new connections")
        assert len(left) < 2 * count
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*listeners, draining)
        took = clock() - began

    assert codes == [CLOSE_CODES[CloseCode.DRAINING]] * count
    assert max(left) - min(left) > window / 2
    # No tenth of the window sees a third of them: a restart is no storm.
    tenths = [int((at - min(left)) / (max(left) - min(left)) * 9.99) for at in left]
    assert max(tenths.count(tenth) for tenth in range(10)) < 2 * count / 3
    assert len(set(pauses)) > count / 2
    assert took < window + 1


async def refuses(gateway: Gateway) -> bool:
    """Whether a gateway takes no new connections."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    except OSError:
        return True
    writer.close()
    return False


@pytest.mark.alone
async def test_a_storm_of_a_thousand_that_come_back_starves_nobody(
    store: Store, valkey: str, prefix: str, tmp_path: Path
) -> None:
    """Each has missed a hundred events and gets all of them, over a constant number of connections to Redis."""
    storm, missed = 1000, 100
    record = await submit(store, KIND, owner="local")
    lease = await begin(store, "echo")
    cursor = (await store.job(record.id)).last
    for batch in range(1, 5):
        await store.append(lease, batch, [event("log", {"message": f"{batch} {part}"}) for part in range(missed // 4)])
    retries: set[int | None] = set()

    async def come_back(session: aiohttp.ClientSession, url: str) -> list[int]:
        decoder, numbers = Decoder(str(cursor)), list[int]()
        headers = {"Last-Event-ID": str(cursor)}
        async with session.get(f"{url}/v1/jobs/{record.id}/events", headers=headers) as response:
            assert response.status == 200
            async for chunk in response.content.iter_any():
                for message in decoder.feed(chunk):
                    one = from_json(message.data)
                    if "id" in one:
                        numbers.append(one["id"])
        retries.add(decoder.retry_ms)
        return numbers

    async with (
        gateway_process(valkey, prefix, tmp_path) as gateway,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        before = (await store._client.info("clients"))["connected_clients"]
        coming = [asyncio.create_task(come_back(session, gateway.url)) for _ in range(storm)]
        await wait_until(lambda: has_listeners(session, gateway.url, storm), 40)
        during = (await store._client.info("clients"))["connected_clients"]
        # Live and replayed events are one row for everybody.
        await end(store, lease, batch=5)
        async with asyncio.timeout(40):
            rows = await asyncio.gather(*coming)

    assert all(row == list(range(cursor.number + 1, cursor.number + missed + 2)) for row in rows)
    assert during - before <= 16
    # The advice on when to come back is spread too: the next storm comes apart by itself.
    assert len(retries) > storm / 4
