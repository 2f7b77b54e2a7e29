"""Slow, silent and greedy peers, over real sockets: they get their answer or their end, and cost nobody else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.app import DOOR
from gateway.handlers.context import HUB, STREAMS
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end
from tests.serving import AS_ME, AS_OTHER, KEYS, Gateway, gateway_for

GET = b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n"


pytestmark = pytest.mark.usefixtures("patient_clock")


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that is impatient with heads."""
    async with gateway_for(store, tmp_path / "blobs", header_timeout_seconds=0.3) as gateway:
        yield gateway


# --- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /v1/jo", GET, GET + b"X-A: "])
async def test_a_connection_without_a_whole_head_is_closed(gateway: Gateway, sent: bytes) -> None:
    """Silent from the start, or half a head: both end after the time for heads."""
    clock = asyncio.get_running_loop().time
    began = clock()

    assert await gateway.raw(sent) == b""

    # Unset, that is ten seconds.
    assert clock() - began < 8


async def test_a_head_that_drips_is_closed(gateway: Gateway) -> None:
    """A byte now and then keeps nothing open: the time counts from the first one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(GET)
    async with asyncio.timeout(PATIENCE_SECONDS):
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():
            writer.write(b"X-A: b\r\n")
            await asyncio.wait({ended}, timeout=0.05)

    writer.transport.abort()
    assert ended.exception() is not None or ended.result() == b""


async def test_an_idle_connection_is_kept_and_its_next_half_head_is_not(gateway: Gateway) -> None:
    """A proxy may keep its connection for long; a second head that stops in the middle may not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(GET + b"\r\n")
    await reader.readuntil(b'{"jobs":[],"cursor":null}')
    await asyncio.sleep(0.6)  # Twice the time for heads: being idle is no half head.
    writer.write(GET + b"\r\n")
    await reader.readuntil(b'{"jobs":[],"cursor":null}')

    writer.write(GET)
    async with asyncio.timeout(PATIENCE_SECONDS):
        [rest] = await asyncio.gather(reader.read(), return_exceptions=True)

    writer.transport.abort()
    assert isinstance(rest, ConnectionError) or rest == b""


async def test_a_stream_outlives_the_time_for_heads(gateway: Gateway) -> None:
    """Half a pipelined head behind it changes nothing either, as long as it runs."""
    document = (await gateway.post("/v1/kinds/echo/jobs", json={})).json()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(f"GET {document['urls']['events']} HTTP/1.1\r\nHost: localhost\r\n\r\nGET /half".encode())
    await reader.readuntil(b'"type":"queued"')
    await asyncio.sleep(0.8)  # Longer than the time for heads, and than a turn of the clock.
    await end(gateway.store, await begin(gateway.store, "echo"), batch=1)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await reader.readuntil(b'"type":"succeeded"')
    writer.transport.abort()


@pytest.mark.parametrize(
    "request_",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        GET + b"Host: other\r\n\r\n",
        GET + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        GET + b"Transfer-Encoding: xchunked\r\n\r\n",
        GET + b"X-A: a\r\n folded\r\n\r\n",
        GET + b"X-A: a\x00b\r\n\r\n",
        GET + b"X-Long: " + b"a" * 10_000 + b"\r\n\r\n",
        GET + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_a_malformed_request_gets_a_problem_and_its_end(gateway: Gateway, request_: bytes) -> None:
    """400 as a problem document, and the connection is closed: nothing behind it is read as a request."""
    answer = await gateway.raw(request_ + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in head.split(b"\r\n")[0], head
    assert b"application/problem+json" in head
    assert body.startswith(b"{")
    assert body.count(b'"code"') == 1
    assert b'"status":"ok"' not in body
    assert b"Traceback" not in body


async def test_a_socket_with_a_body_hides_no_second_request(gateway: Gateway) -> None:
    """An upgrade with a body is refused, and what was in it is never served."""
    answer = await gateway.raw(
        b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-Length: 46\r\n\r\n"
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n    "
    )

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"status":"ok"' not in answer


async def test_many_pipelined_requests_are_served_in_order(gateway: Gateway) -> None:
    """Bounded memory, one after the other."""
    count = 300
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * (count - 1)

    answer = await gateway.raw(
        request + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", read_seconds=20
    )

    assert answer.count(b'{"status":"ok"}') == count


# --- how many -------------------------------------------------------------------------------------------------------


async def test_a_full_gateway_refuses_the_new_and_keeps_the_old(store: Store, tmp_path: Path) -> None:
    """503 with a jittered Retry-After; health checks still pass; a place that is freed serves again."""
    async with gateway_for(store, tmp_path / "b", max_connections=3) as gateway:
        inside = [await asyncio.open_connection("127.0.0.1", gateway.server.port) for _ in range(3)]
        await wait_until(lambda: len(gateway.app[DOOR].connections) == 3)

        refused = [await gateway.raw(GET + b"\r\n") for _ in range(5)]
        health = await gateway.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        for reader, writer in inside:
            writer.write(GET + b"\r\n")
            await reader.readuntil(b'{"jobs":[],"cursor":null}')
        inside[0][1].transport.abort()
        await wait_until(lambda: len(gateway.app[DOOR].connections) == 2)
        served = await gateway.raw(GET + b"Connection: close\r\n\r\n")

        for answer in refused:
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: " in answer
            assert b'"code":"too_many_connections"' in answer
        assert health.startswith(b"HTTP/1.1 200 ")
        assert served.startswith(b"HTTP/1.1 200 ")
        for _, writer in inside:
            writer.transport.abort()


async def test_an_owner_has_so_many_streams_and_others_theirs(store: Store, tmp_path: Path) -> None:
    """429 for one more stream or wait of the same owner, before there is a job; an ended one makes room."""
    async with gateway_for(store, tmp_path / "b", api_keys=KEYS, max_streams_per_owner=2) as gateway:
        mine = (await gateway.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME)).json()
        theirs = (await gateway.post("/v1/kinds/echo/jobs", json={}, headers=AS_OTHER)).json()
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(gateway.get(mine["urls"]["events"], headers=AS_ME)) for _ in range(2)]
            await wait_until(lambda: len(gateway.app[STREAMS]) == 2)

            one_more = await gateway.get(mine["urls"]["events"], headers=AS_ME)
            wait = await gateway.get(mine["urls"]["self"] + "?wait=5", headers=AS_ME)
            ways: list[dict[str, str]] = [{"Accept": "text/event-stream"}, {"Prefer": "wait=5"}]
            posts = [await gateway.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME | way) for way in ways]
            other = group.create_task(gateway.get(theirs["urls"]["self"] + "?wait=5", headers=AS_OTHER))
            await wait_until(lambda: len(gateway.app[STREAMS]) == 3)
            for job, key in ((mine, AS_ME), (theirs, AS_OTHER)):
                await gateway.post(job["urls"]["cancel"], headers=key)

        for answer in (one_more, wait, *posts):
            assert (answer.status, answer.json()["code"]) == (429, "too_many_streams")
            assert int(answer.headers["Retry-After"]) >= 1
        assert other.result().json()["terminal"] is True
        assert all(b'"terminal":true' in stream.result().body for stream in streams)
        assert len(gateway.app[STREAMS]) == 0
        listed = (await gateway.get("/v1/jobs", headers=AS_ME)).json()["jobs"]
        assert [one["id"] for one in listed] == [mine["id"]]


# --- slow readers ---------------------------------------------------------------------------------------------------


async def test_a_download_that_nobody_reads_is_ended(store: Store, tmp_path: Path) -> None:
    """A client that stops reading holds neither its handler nor its connection."""
    settings: dict[str, Any] = {"write_stall_seconds": 0.3, "max_upload_bytes": 64 * 1024 * 1024}
    async with gateway_for(store, tmp_path / "b", **settings) as gateway:

        async def large() -> AsyncIterator[bytes]:
            yield b"%PDF-"
            for _ in range(32):
                yield b"\0" * (1024 * 1024)

        headers = {"Content-Type": "application/pdf"}
        job = (await gateway.post("/v1/kinds/read/jobs", data=large(), headers=headers)).json()
        await gateway.session.close()
        await wait_until(lambda: not gateway.app[DOOR].connections)
        with socket.create_connection(("127.0.0.1", gateway.server.port)) as client:
            client.sendall(f"GET {job['files'][0]['url']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await wait_until(lambda: gateway.app[DOOR].connections)

            await wait_until(lambda: not gateway.app[DOOR].connections)


async def test_a_slow_download_that_goes_on_is_let_be(store: Store, tmp_path: Path) -> None:
    """Only standing still ends it."""
    async with gateway_for(store, tmp_path / "b", write_stall_seconds=0.3) as gateway:

        async def large() -> AsyncIterator[bytes]:
            yield b"%PDF-"
            for _ in range(12):
                yield b"\0" * (1024 * 1024)

        headers = {"Content-Type": "application/pdf"}
        job = (await gateway.post("/v1/kinds/read/jobs", data=large(), headers=headers)).json()
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port, limit=65536)
        writer.write(f"GET {job['files'][0]['url']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        got = len(await reader.readuntil(b"%PDF-"))
        while got < 12 * 1024 * 1024:
            got += len(await reader.readexactly(256 * 1024))
            await asyncio.sleep(0.05)
        writer.transport.abort()

    assert got >= 12 * 1024 * 1024


async def test_a_client_that_leaves_its_stream_is_forgotten(gateway: Gateway) -> None:
    """Its handler, its place in the log and its place in the limit go with it."""
    document = (await gateway.post("/v1/kinds/echo/jobs", json={})).json()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(f"GET {document['urls']['events']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b'"type":"queued"')
    assert gateway.app[HUB].listeners

    writer.transport.abort()

    await wait_until(lambda: not gateway.app[HUB].listeners)
    assert len(gateway.app[STREAMS]) == 0


async def test_a_million_tiny_chunks_end(gateway: Gateway) -> None:
    """A chunked body of single bytes is read or refused in bounded time, not a task each."""
    body = b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"
    head = b"POST /v1/kinds/form/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"

    answer = await gateway.raw(
        head + b"Content-Type: application/pdf\r\nTransfer-Encoding: chunked\r\n\r\n" + body, read_seconds=30
    )

    # The kind wants a name in its input; all of the body had to be read to say so.
    assert answer.startswith(b"HTTP/1.1 422 ")
