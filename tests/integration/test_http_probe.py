"""The probe routes: closed without the token, bounded with it, and honest about when they sent what."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway.app import ROUTES
from gateway.handlers import probe
from gateway.handlers.probe import MOST_AT_ONCE, PROBES
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.serving import KEYS, Gateway, gateway_for

TOKEN = "p" * 24
OPEN = {"X-Outlast-Probe": TOKEN}
PATHS = sorted({route.path for route in probe.routes})


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with keys, whose probes are open to those who have the token."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS, probe_token=TOKEN) as gateway:
        yield gateway


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_token_there_are_no_probes(store: Store, tmp_path: Path, path: str) -> None:
    """The default: 404 whatever is sent, also an empty token."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        method = "POST" if path.endswith("upload") else "GET"
        for headers in ({}, {"X-Outlast-Probe": ""}, OPEN):
            answer = await gateway.ask(method, path, headers=headers)
            assert (answer.status, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", PATHS)
async def test_only_the_token_opens_them(gateway: Gateway, path: str) -> None:
    """Neither an API key nor a token that begins or ends like it."""
    for given in (None, "", TOKEN[:-1], TOKEN + "p", KEYS["me"], "é"):
        headers = {"Authorization": f"Bearer {KEYS['me']}"} | ({} if given is None else {"X-Outlast-Probe": given})
        answer = await gateway.get(path, headers=headers)
        assert (answer.status, answer.json()["code"]) == (401, "probe_token")


def test_the_probes_are_no_part_of_the_api() -> None:
    """They are served, and not described as something to build on."""
    assert all(route.hidden and route.public for route in probe.routes)
    assert all(route in ROUTES for route in probe.routes)


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("sse", "text/event-stream; charset=utf-8"),
        ("ndjson", "application/x-ndjson"),
        ("json", "application/json"),
        ("drip", "text/plain; charset=utf-8"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_frames_say_their_number_and_when_they_were_sent(
    gateway: Gateway, name: str, content_type: str, method: str
) -> None:
    """In the content type that was asked for, with the headers of a real stream, and never early."""
    address = f"/_probe/{name}?frames=4&every=0.05&bytes=10&hold=0.05"
    answer = await gateway.ask(method, address, headers=OPEN | {"Accept-Encoding": "gzip"})

    text = answer.body.decode()
    lines = [line.removeprefix("data: ") for line in text.split("\n") if "{" in line]
    frames = json.loads(text) if name == "json" else [json.loads(line) for line in lines]
    assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
    assert answer.headers["Cache-Control"] == "no-cache, no-store, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert "Content-Encoding" not in answer.headers
    assert [frame["n"] for frame in frames] == [1, 2, 3, 4]
    assert all(frame["padding"] == "." * 10 for frame in frames)
    assert all(frame["sent_seconds"] >= 0.05 * frame["n"] - 0.005 for frame in frames)


async def test_a_first_frame_that_is_late_keeps_its_distance_to_the_second(gateway: Gateway) -> None:
    """Of two that are sent together nobody sees that a hop held the first one for the second."""
    address = f"{gateway.url}/_probe/ndjson?frames=2&every=0.1&hold=0.1"
    async with gateway.session.get(address, headers=OPEN) as response:
        # The gateway is on this event loop, and as busy.
        time.sleep(0.25)  # noqa: ASYNC251
        first, second = [json.loads(line)["sent_seconds"] async for line in response.content]

    assert second - first >= 0.1 - 0.005


@pytest.mark.parametrize(
    "query",
    [
        "sse?frames=1001",
        "sse?every=301",
        "sse?frames=400&every=1",
        "sse?hold=300&frames=2",
        "sse?frames=1000&bytes=16000",
        "sse?bytes=16385",
        "sse?frames=0",
        "sse?frames=-1",
        "sse?frames=1e9",
        "sse?every=inf",
        "silent?seconds=301",
        "silent?seconds=",
        "status?code=99",
        "status?code=600",
        "status?code=304",
        "status?code=200&interim=101",
        "sse?evry=1",
        "upload?id=short",
        "ws?x=1",
    ],
)
async def test_a_probe_beyond_its_bounds_is_refused(gateway: Gateway, query: str) -> None:
    """A bound that were only cut short would have the doctor measure something else than it asked for."""
    answer = await gateway.get(f"/_probe/{query}", headers=OPEN)

    assert (answer.status, answer.json()["code"]) == (400, "bad_request")


async def test_so_many_probes_at_once_and_no_more(gateway: Gateway) -> None:
    """The next one hears 429; a place is free again when a client has gone."""
    session = gateway.session
    streams = [
        await session.get(f"{gateway.url}/_probe/sse?frames=2&every=60", headers=OPEN) for _ in range(MOST_AT_ONCE)
    ]

    refused = await gateway.get("/_probe/status", headers=OPEN)
    streams.pop().close()
    await wait_until(lambda: len(gateway.app[PROBES].places) < MOST_AT_ONCE, what="a free place")
    allowed = await gateway.get("/_probe/status", headers=OPEN)

    assert (refused.status, allowed.status) == (429, 200)
    for stream in streams:
        stream.close()
    await wait_until(lambda: len(gateway.app[PROBES].places) == 0, what="the end of all probes")


async def test_silence_is_silent(gateway: Gateway) -> None:
    """Not even a head before the time is over."""
    asked = asyncio.ensure_future(gateway.get("/_probe/silent?seconds=0.3", headers=OPEN))
    began = asyncio.get_running_loop().time()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(
        f"GET /_probe/silent?seconds=0.3 HTTP/1.1\r\nHost: localhost\r\nX-Outlast-Probe: {TOKEN}\r\n\r\n".encode()
    )

    first = await asyncio.wait_for(reader.read(1), PATIENCE_SECONDS)

    assert asyncio.get_running_loop().time() - began >= 0.29
    assert first == b"H"
    assert (await asked).json() == {"probe": "silent", "silent_seconds": 0.3}
    writer.transport.abort()


async def test_the_echo_keeps_secrets(gateway: Gateway) -> None:
    """What arrived is shown; of a secret only how long it is."""
    headers = OPEN | {"X-Plain": "seen", "Authorization": "Bearer abc", "Cookie": "a=bc", "CF-Access-Jwt": "j" * 9}

    echoed = (await gateway.post("/_probe/echo-headers", headers=headers, data=b"x")).json()

    shown = dict(echoed["headers"])
    assert (echoed["method"], echoed["path"]) == ("POST", "/_probe/echo-headers")
    assert shown["X-Plain"] == "seen"
    assert shown["Authorization"] == "(10 characters)"
    assert shown["Cookie"] == "(4 characters)"
    assert shown["CF-Access-Jwt"] == "(9 characters)"
    assert TOKEN not in json.dumps(echoed)


@pytest.mark.parametrize("code", [200, 403, 500, 502, 503, 504, 524])
async def test_a_status_is_answered_as_asked(gateway: Gateway, code: int) -> None:
    """With a document by which one can tell that it came from here; 502 and 504 too, here alone."""
    answer = await gateway.get(f"/_probe/status?code={code}", headers=OPEN)

    assert (answer.status, answer.json()) == (code, {"probe": "status", "status": code})


@pytest.mark.parametrize(("interim", "phrase"), [(102, b"Processing"), (103, b"Early Hints")])
async def test_an_interim_answer_comes_before_the_final_one(gateway: Gateway, interim: int, phrase: bytes) -> None:
    """On the wire."""
    request = f"GET /_probe/status?interim={interim} HTTP/1.1\r\nHost: localhost\r\nX-Outlast-Probe: {TOKEN}\r\n"

    answer = await gateway.raw(f"{request}Connection: close\r\n\r\n".encode())

    first, _, rest = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 %d %b" % (interim, phrase))
    assert rest.startswith(b"HTTP/1.1 200 ")


async def test_an_upload_is_counted(gateway: Gateway) -> None:
    """Its bytes, and how often its id came."""
    for visit in (1, 2):
        got = (await gateway.post("/_probe/upload?id=abcdefgh", headers=OPEN, data=b"x" * 70_000)).json()
        assert (got["bytes"], got["visits"]) == (70_000, visit)

    assert (await gateway.get("/_probe/upload?id=abcdefgh", headers=OPEN)).json()["visits"] == 2
    assert (await gateway.get("/_probe/upload?id=unheard-of", headers=OPEN)).json()["visits"] == 0


@pytest.mark.parametrize("framing", ["Content-Length: 104857600\r\nExpect: 100-continue", "Content-Length: 17000000"])
async def test_an_upload_that_is_too_large_is_refused_before_it_is_sent(gateway: Gateway, framing: str) -> None:
    """By its announced length: the doctor finds an edge's limit for bodies without sending one."""
    head = (
        f"POST /_probe/upload?id=abcdefgh HTTP/1.1\r\nHost: localhost\r\nX-Outlast-Probe: {TOKEN}\r\n{framing}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(head.encode())

    answer = await asyncio.wait_for(reader.readuntil(b"too_large"), PATIENCE_SECONDS)

    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.transport.abort()


async def test_a_body_without_a_length_is_counted_while_it_comes(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound holds for chunked bodies too."""
    monkeypatch.setattr(probe, "MOST_UPLOAD_BYTES", 1000)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    answer = await gateway.post("/_probe/upload?id=abcdefgh", headers=OPEN, data=pieces())

    assert answer.status == 413


async def test_the_socket_sends_back_what_it_is_sent(gateway: Gateway) -> None:
    """After a hello; a plain request hears that this address speaks WebSocket."""
    async with gateway.session.ws_connect(f"{gateway.url}/_probe/ws", headers=OPEN) as socket:
        hello = await socket.receive_json()
        await socket.send_str("x" * 65_536)
        echoed = await socket.receive_json()
        await socket.send_bytes(b"binary is no part of it")
        closed = await socket.receive()

    assert hello == {"probe": "ws", "n": 0}
    assert (echoed["n"], echoed["echo"]) == (1, "x" * 65_536)
    assert closed.type is aiohttp.WSMsgType.CLOSE
    plain = await gateway.get("/_probe/ws", headers=OPEN)
    assert (plain.status, plain.json()["code"]) == (400, "websocket_expected")
