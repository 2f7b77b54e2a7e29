"""The gateway behind a simulated Cloudflare: cuts, retries, and streams that last for half an hour."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway import hub
from gateway.client import Client
from gateway.edge import Edge
from gateway.store import Lease, Store
from tests.edge_matrix import HUB_CLOCK_SECONDS
from tests.edge_origin import SCALE, edge_for, see
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end, event
from tests.processes import program, ran
from tests.serving import Gateway, gateway_for

pytestmark = pytest.mark.usefixtures("patient_clock")


@pytest.fixture
async def gateway(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway whose heartbeat is scaled as the hop is, and the clock that sends it."""
    monkeypatch.setattr(hub, "_CLOCK_SECONDS", HUB_CLOCK_SECONDS)
    async with gateway_for(store, tmp_path, heartbeat_seconds=15 * SCALE, retry_seconds=0.1) as gateway:
        yield gateway


@pytest.fixture
async def edge(gateway: Gateway) -> AsyncIterator[Edge]:
    """Cloudflare in front of it."""
    async with edge_for(gateway.url) as edge:
        yield edge


async def test_a_stream_of_heartbeats_stays_open_for_half_an_hour(edge: Edge, gateway: Gateway) -> None:
    """1800 s of a job that says nothing, at 125 s of patience."""
    job = (await gateway.post("/v1/kinds/echo/jobs", json={"input": {}})).json()["id"]

    with pytest.raises(TimeoutError):
        await see(edge.url, f"GET /v1/jobs/{job}/events HTTP/1.1", seconds=1800 * SCALE)

    [record] = edge.requests
    await wait_until(lambda: record.ended)
    assert (record.ended, record.status) == ("client_left", 200)
    assert (record.seconds or 0) >= 1790
    assert record.largest_gap_seconds < 125
    assert record.passed_bytes == record.response_bytes > 100


async def test_a_client_misses_nothing_when_the_edge_restarts(edge: Edge, store: Store) -> None:
    """Twice in the middle of a job: every event once, in order."""
    async with Client(edge.url) as client:
        job = await client.submit("echo", {})
        lease = await begin(store, "echo")
        numbers: list[int] = []

        async def follow() -> None:
            async for one in client.events(job.id):
                numbers.extend([] if one.id is None else [one.id])

        following = asyncio.create_task(follow())
        for batch in range(1, 7):
            await store.append(lease, batch, [event("log", {"message": "x"})])
            await wait_until(lambda seen=2 + batch: len(numbers) >= seen)  # type: ignore[misc]
            if batch % 2 == 0:
                assert edge.restart() >= 1
        await end(store, lease, batch=7)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await following

    assert numbers == list(range(1, 10))
    assert edge.metrics.restarts == 3
    assert "restart" in {record.ended for record in edge.requests}


async def test_a_post_that_arrives_twice_is_one_job(edge: Edge, gateway: Gateway, store: Store) -> None:
    """With the same Idempotency-Key; without one, nobody can know."""
    async with aiohttp.ClientSession() as session:
        for key, jobs in (({"Idempotency-Key": "one"}, 1), ({}, 3)):
            edge.fault("duplicate_request", method="POST")
            async with session.post(edge.url + "/v1/kinds/echo/jobs", json={"input": {}}, headers=key) as answer:
                assert answer.status == 202
                assert ("Idempotency-Replayed" in answer.headers) is bool(key)

            assert len((await gateway.get("/v1/jobs")).json()["jobs"]) == jobs


async def test_a_silent_websocket_stays_open_by_its_pings(edge: Edge, store: Store) -> None:
    """The gateway's pings keep it open past the 100 s, and the hop counts them; events pass after it."""
    async with aiohttp.ClientSession() as session, session.ws_connect(edge.url + "/v1/ws") as socket:
        await socket.send_json({"op": "submit", "ref": "1", "kind": "echo", "input": {}})
        lease = await wait_until(lambda: _begun(store))
        await asyncio.sleep(500 * SCALE)
        assert edge.requests[0].ended is None
        await end(store, lease, batch=1)
        types = [json.loads(message.data).get("type") async for message in _until_the_end(socket)]

        assert types[-1] == "succeeded"


async def _begun(store: Store) -> Lease | None:
    claims = await store.claim("echo", "worker", 1)
    return (await store.begin(claims[0], "worker")).lease if claims else None


async def _until_the_end(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[aiohttp.WSMessage]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for message in socket:
            yield message
            if '"terminal":true' in message.data:
                return


async def test_the_command_serves_until_it_is_stopped(gateway: Gateway) -> None:
    """A chain, its addresses on stdout, and an end without an error."""
    edges = ("--chain", "cloudflare, nginx-default", "--origin", gateway.url, "--time-scale", "0.01", "--port", "0")
    async with (
        program(sys.executable, "-m", "gateway.cli", "edge", *edges) as process,
        asyncio.timeout(PATIENCE_SECONDS),
    ):
        assert process.stdout is not None
        addresses = [(await process.stdout.readline()).decode().split()[0] for _ in range(2)]
        seen = await see(addresses[0], "GET /healthz HTTP/1.1")
        process.send_signal(signal.SIGTERM)
        said, errors = await process.communicate()

    assert seen.all.startswith(b"HTTP/1.1 200")
    assert b"Server: cloudflare" in seen.all
    assert b"100 times as fast" in said
    assert (process.returncode, errors) == (0, b"")


async def test_the_command_says_what_is_wrong(gateway: Gateway) -> None:
    """With the exit code of a wrong request."""
    for options, said in (
        (["--profile", "cloudfare", "--origin", gateway.url], "There is no edge profile 'cloudfare'"),
        (["--origin", "ftp://x"], "The origin is http://HOST:PORT"),
        (["--origin", gateway.url, "--time-scale", "7"], "The time scale is above 0 and at most 1"),
    ):
        code, _, errors = await ran(sys.executable, "-m", "gateway.cli", "edge", "--port", "0", *options)

        assert code == 2
        assert said in errors
        assert "Traceback" not in errors
