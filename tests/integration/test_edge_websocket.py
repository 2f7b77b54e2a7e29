"""WebSockets through a simulated hop, restarts, faults and what the hop tells of itself (rules 21 to 25 and more)."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from gateway.edge import Edge, chain, load_profile
from gateway.errors import ConfigurationError
from tests.edge_origin import SCALE, Origin, edge_for, raw_origin, see
from tests.faults import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.usefixtures("patient_clock")


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession() as session:
        yield session


def handshake(path: str = "/echo") -> bytes:
    """An upgrade."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


async def test_a_websocket_passes_with_its_close_code(origin: Origin, session: aiohttp.ClientSession) -> None:
    """Both ways, large frames too."""
    async with edge_for(origin.url) as edge:
        async with session.ws_connect(edge.url + "/echo") as socket:
            for text in ("hello", "x" * 500_000):
                await socket.send_str(text)
                assert await socket.receive_str() == text
            await socket.send_str("bye")
            assert (await socket.receive()).type == WSMsgType.CLOSE
            assert socket.close_code == 4001
        async with session.ws_connect(edge.url + "/echo") as socket:
            await socket.close(code=4002)
        await wait_until(lambda: "echo 4002" in origin.finished)
        await wait_until(lambda: edge.requests[0].ended)
        first = edge.requests[0]

        assert (first.websocket, first.status) == (True, 101)
        # The text, and the frames around it.
        assert 500_005 < first.request_bytes < 500_100
        assert 500_005 < first.passed_bytes == first.response_bytes < 500_100


async def test_where_websockets_are_off_the_origin_sees_a_plain_get(origin: Origin) -> None:
    """As behind nginx without its upgrade lines."""
    async with edge_for(origin.url, websocket__enabled=False) as edge:
        seen = await see(edge.url, handshake(), until=b"}")

        assert seen.all.startswith(b"HTTP/1.1 200")
        assert seen.body == b'{"upgrade": null}'


async def test_a_refused_upgrade_is_an_answer_like_any_other(origin: Origin) -> None:
    """With the origin's status."""
    async with edge_for(origin.url) as edge:
        assert (await see(edge.url, handshake("/status/403"), until=b"}")).all.startswith(b"HTTP/1.1 403")


async def test_a_silent_websocket_is_cut_without_a_close_frame(origin: Origin, session: aiohttp.ClientSession) -> None:
    """After 100 s of silence, which the client sees as 1006."""
    async with edge_for(origin.url) as edge, session.ws_connect(edge.url + "/echo") as socket:
        message = await socket.receive(timeout=PATIENCE_SECONDS)

        assert message.type in {WSMsgType.CLOSED, WSMsgType.ERROR}
        assert socket.close_code == 1006
        await wait_until(lambda: edge.requests[0].ended == "websocket_idle")
        assert 100 <= (edge.requests[0].seconds or 0) < 200


@pytest.mark.parametrize("side", ["ping", "text"])
async def test_frames_of_either_kind_keep_a_websocket_open(
    origin: Origin, session: aiohttp.ClientSession, side: str
) -> None:
    """Control frames count, and need no answer."""
    # Three times as long as in life, for slow machines.
    limit: dict[str, Any] = {"websocket__idle_seconds": 300}
    async with edge_for(origin.url, **limit) as edge, session.ws_connect(edge.url + "/echo?noping") as socket:
        for _ in range(12):
            await (socket.ping() if side == "ping" else socket.send_str("here"))
            await asyncio.sleep(30 * SCALE)
        assert edge.requests[0].ended is None


async def test_the_idle_limit_may_be_drawn_or_absent(origin: Origin, session: aiohttp.ClientSession) -> None:
    """One observer saw 216 to 1788 s, another none at all."""
    drawn: dict[str, Any] = {"websocket__idle_seconds": 20, "websocket__idle_most_seconds": 150}
    async with edge_for(origin.url, **drawn) as edge:
        sockets = [await session.ws_connect(edge.url + "/echo") for _ in range(4)]
        await asyncio.gather(*(socket.receive(timeout=PATIENCE_SECONDS) for socket in sockets))
        await wait_until(lambda: all(record.ended for record in edge.requests))
        times = [record.seconds or 0 for record in edge.requests]
        for socket in sockets:
            await socket.close()

        assert all(20 <= seconds < 250 for seconds in times)
        assert max(times) - min(times) > 10
    never: dict[str, Any] = {"websocket__idle_seconds": 0, "websocket__idle_most_seconds": 0}
    async with edge_for(origin.url, **never) as edge, session.ws_connect(edge.url + "/echo") as socket:
        with pytest.raises(asyncio.TimeoutError):
            await socket.receive(timeout=200 * SCALE)


async def test_a_restart_cuts_sockets_and_streams_and_takes_new_ones(
    origin: Origin, session: aiohttp.ClientSession
) -> None:
    """Without a close frame, and without the end of a body."""
    async with edge_for(origin.url) as edge, session.ws_connect(edge.url + "/echo") as socket:
        assert (await see(edge.url, "GET /headers HTTP/1.1")).all.startswith(b"HTTP/1.1 200")
        stream = await session.get(edge.url + "/drip?n=50&every=20")
        # One that waits for the next request.
        assert (await see(edge.url, "GET /headers HTTP/1.1")).all.startswith(b"HTTP/1.1 200")
        assert await stream.content.readline() == b"data: 0\n"
        async with session.post(edge.url + "/__edge/restart") as answer:
            assert answer.status == 200
            assert (await answer.json())["cut"] >= 2
        assert (await socket.receive(timeout=PATIENCE_SECONDS)).type in {WSMsgType.CLOSED, WSMsgType.ERROR}
        assert socket.close_code == 1006
        with pytest.raises(aiohttp.ClientError):
            await stream.read()
        assert (await see(edge.url, "GET /headers HTTP/1.1")).all.startswith(b"HTTP/1.1 200")

        assert edge.metrics.restarts == 1
        assert [record.ended for record in edge.requests] == ["restart", "complete", "restart", "complete", "complete"]
        # Nor is a connection to the origin kept.
        assert not edge.requests[-1].reused


async def test_restarts_may_come_by_themselves(origin: Origin) -> None:
    """Every so often, more or less."""
    async with edge_for(origin.url, timers__restart_every_seconds=60) as edge:
        seen = await see(edge.url, "GET /drip?n=50&every=20 HTTP/1.1")

        assert seen.all.endswith(b"<reset>")
        assert edge.requests[0].ended == "restart"


@pytest.mark.parametrize("kept", [True, False])
async def test_extensions_can_be_taken_away(origin: Origin, session: aiohttp.ClientSession, kept: bool) -> None:
    """Then nothing is compressed, whatever both sides could."""
    async with (
        edge_for(origin.url, websocket__extensions=kept) as edge,
        session.ws_connect(edge.url + "/echo", compress=15) as socket,
    ):
        await socket.send_str("compressed?")

        assert (await socket.receive_str() != "0") is kept


async def test_one_half_that_closes_takes_the_other_with_it() -> None:
    """A tunnel has no half-open state: what was sent before arrives, then both are closed."""
    over: asyncio.Event = asyncio.Event()

    async def upgrades(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nlast words")
        writer.write_eof()
        with suppress(ConnectionError):
            while await reader.read():
                pass
        over.set()

    async with raw_origin(upgrades) as url, edge_for(url) as edge:
        seen = await see(edge.url, handshake())

        assert seen.body == b"last words"
        async with asyncio.timeout(PATIENCE_SECONDS):
            await over.wait()


# --- faults -----------------------------------------------------------------------------------------------------------


async def fault(edge: Edge, session: aiohttp.ClientSession, **document: Any) -> int:
    """Ask for a fault over HTTP."""
    async with session.post(edge.url + "/__edge/fault", json=document) as answer:
        return answer.status


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("520", 520, 520),
        ("521", 521, 521),
        ("522", 522, 522),
        ("523", 523, 523),
        ("524_now", 524, 524),
        ("525", 525, 525),
        ("526", 526, 526),
        ("1015", 429, 1015),
        ("1016", 530, 1016),
        ("1033", 530, 1033),
    ],
)
async def test_an_error_on_demand_comes_once(
    origin: Origin, session: aiohttp.ClientSession, name: str, status: int, code: int
) -> None:
    """And the origin is not asked."""
    async with edge_for(origin.url) as edge:
        assert await fault(edge, session, fault=name) == 200
        async with session.get(edge.url + "/headers") as answer:
            assert answer.status == status
            assert await answer.text() == f"error code: {code}"
            assert answer.headers["cf-error-type"] == str(code)
        assert not origin.requests
        async with session.get(edge.url + "/headers") as answer:
            assert answer.status == 200


async def test_a_challenge_is_a_403_with_its_header(origin: Origin, session: aiohttp.ClientSession) -> None:
    """What an API client gets from a bot check."""
    async with edge_for(origin.url) as edge:
        await fault(edge, session, fault="challenge")
        async with session.get(edge.url + "/headers") as answer:
            assert answer.status == 403
            assert answer.headers["cf-mitigated"] == "challenge"
            assert "text/html" in answer.headers["Content-Type"]


async def test_a_response_can_be_cut_after_so_many_bytes(origin: Origin) -> None:
    """With a length and without one."""
    async with edge_for(origin.url) as edge:
        for path in ("/text?n=1000", "/drip?n=3&every=1"):
            edge.fault("drop_after_bytes", bytes=13)
            seen = await see(edge.url, f"GET {path} HTTP/1.1")

            assert edge.requests[-1].passed_bytes == 13
            assert not seen.all.endswith(b"0\r\n\r\n")
            assert b"<reset>" not in seen.all


async def test_a_response_can_drip(origin: Origin) -> None:
    """A hundred bytes at two a second."""
    async with edge_for(origin.url) as edge:
        edge.fault("slow_drip", bytes_per_second=2)
        seen = await see(edge.url, "GET /text?n=100 HTTP/1.1")

        assert seen.body == b"x" * 100
        assert seen.pieces[-1][0] > 49


async def test_a_request_can_be_sent_twice(origin: Origin) -> None:
    """As by a client that got no answer and tries again; the body arrives whole both times."""
    async with edge_for(origin.url) as edge:
        edge.fault("duplicate_request", method="POST")
        seen = await see(
            edge.url, b"POST /upload HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
        )

        assert seen.body == b'{"bytes": 3}'
        assert origin.bodies == [b"abc", b"abc"]


async def test_faults_are_for_the_requests_that_they_name(origin: Origin, session: aiohttp.ClientSession) -> None:
    """By method and path, so many times, until they are cleared."""
    async with edge_for(origin.url) as edge:
        edge.fault("520", times=2, path="/headers", method="GET")
        edge.fault("521", times=0, path="/text")
        async with session.post(edge.url + "/headers") as answer:
            assert answer.status == 200
        statuses = []
        for path in ("/status/404", "/headers", "/headers", "/headers", "/text", "/text"):
            async with session.get(edge.url + path) as answer:
                statuses.append(answer.status)
        assert statuses == [404, 520, 520, 200, 521, 521]
        async with session.delete(edge.url + "/__edge/fault") as answer:
            assert answer.status == 200
        async with session.get(edge.url + "/text") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"fault": "no such"},
        {"fault": "520", "times": -1},
        {"fault": "520", "times": True},
        {"fault": "520", "tiems": 1},
        {"fault": "slow_drip", "bytes_per_second": 0},
        {"fault": 520},
    ],
)
async def test_a_wrong_fault_is_told_so(origin: Origin, session: aiohttp.ClientSession, document: object) -> None:
    """A test with a misspelt fault would pass for the wrong reason."""
    async with edge_for(origin.url) as edge:
        async with session.post(edge.url + "/__edge/fault", json=document) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]
        async with session.post(edge.url + "/__edge/fault", data=b"{") as answer:
            assert answer.status == 400


async def test_only_so_many_faults_wait(origin: Origin) -> None:
    """A test that adds one for each request would never see them."""
    async with edge_for(origin.url) as edge:
        for _ in range(100):
            edge.fault("520")
        with pytest.raises(ValueError, match="100 faults wait already"):
            edge.fault("520")


async def test_pages_of_other_sites_have_no_say(origin: Origin, session: aiohttp.ClientSession) -> None:
    """A developer's browser visits more than one site."""
    async with edge_for(origin.url) as edge:
        for site in ("cross-site", "same-site"):
            async with session.post(edge.url + "/__edge/restart", headers={"Sec-Fetch-Site": site}) as answer:
                assert answer.status == 403
        async with session.get(edge.url + "/__edge/nothing") as answer:
            assert answer.status == 404
        assert edge.metrics.restarts == 0


async def test_the_metrics_tell_what_happened_to_each_request(origin: Origin, session: aiohttp.ClientSession) -> None:
    """In simulated seconds, as JSON; the hop's own routes are not among them."""
    async with edge_for(origin.url, "quick-tunnel") as edge:
        await see(edge.url, "GET /drip?n=3&every=40&first=20 HTTP/1.1")
        async with session.get(edge.url + "/__edge/metrics") as answer:
            document = await answer.json()
        await see(edge.url, "GET /silent?s=40 HTTP/1.1")
        assert 40 <= (edge.requests[-1].first_header_seconds or 0) <= (edge.requests[-1].first_byte_seconds or 0) < 125
        for _ in range(1000):
            edge.metrics.end(edge.metrics.begin("ray", "GET", "/"), "complete")
        assert len(edge.requests) == 1000
    [request] = document["requests"]

    assert document["profile"] == "quick-tunnel"
    assert document["in_flight"] == 0
    assert request["path"] == "/drip"
    assert request["status"] == request["origin_status"] == 200
    assert request["first_header_seconds"] < request["first_byte_seconds"]
    assert request["first_byte_seconds"] >= 20
    assert request["passed_first_byte_seconds"] >= 130
    assert request["most_held_bytes"] == request["response_bytes"] == request["passed_bytes"] == 27
    assert 40 <= request["largest_gap_seconds"] < 100
    assert request["ended"] == "complete"


# --- hops -------------------------------------------------------------------------------------------------------------


async def test_a_chain_is_as_patient_as_its_least_patient_hop(origin: Origin) -> None:
    """Each hop listens by itself, and the error of the inner one goes through the rules of the outer one."""
    profiles = [load_profile("cloudflare"), load_profile("nginx-default")]
    async with chain(profiles, origin.url, time_scale=SCALE) as [outer, inner]:
        seen = await see(outer.url, "GET /silent?s=200 HTTP/1.1")

        assert inner.requests[0].status == 504
        # nginx's page is lost on the way out.
        assert seen.body == b"error code: 504"
        assert 60 <= seen.when(b"504") < 125
        assert (await see(inner.url, "GET /headers HTTP/1.1")).all.startswith(b"HTTP/1.1 200")


async def test_what_is_left_open_ends_with_the_hop(origin: Origin) -> None:
    """No connection or task stays behind."""
    async with edge_for(origin.url) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(b"GET /drip?n=100&every=20 HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"data: 0")
    with suppress(ConnectionError):
        await reader.read()
    writer.transport.abort()

    assert edge.requests[0].ended == "cancelled"


@pytest.mark.parametrize(
    "origin_url",
    [
        *("https://example.test", "example.test", "http://", "http://a/path", "http://a..b", "http://a:99999"),
        *("http://a:0", "http://[::1", "http://me@a"),
    ],
)
async def test_an_origin_that_is_none_is_refused_at_the_start(origin_url: str) -> None:
    """With what it should be."""
    with pytest.raises(ConfigurationError, match="http://HOST:PORT"):
        async with edge_for(origin_url):
            pass


async def test_a_port_in_use_and_a_wrong_scale_are_told(origin: Origin) -> None:
    """With what to do."""
    port = int(origin.url.rsplit(":", 1)[1])
    with pytest.raises(ConfigurationError, match="--port"):
        async with Edge(load_profile("direct"), origin.url, port=port):
            pass
    with pytest.raises(ConfigurationError, match="time scale"):
        Edge(load_profile("direct"), origin.url, time_scale=0)
    with pytest.raises(ConfigurationError, match="at least one"):
        async with chain([], origin.url):
            pass
