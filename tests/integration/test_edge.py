"""A simulated hop in front of a real origin: the rules of time, each at a hundredth of its length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from gateway.edge import Edge, load_profile
from tests.faults import wait_until

SCALE = 0.004
"""125 s pass in half a second."""


class Origin:
    """What the tests' routes did."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.cancelled: list[str] = []


ORIGIN = web.AppKey("origin", Origin)


async def silent(request: web.Request) -> web.Response:
    """Answer after `?s=` simulated seconds."""
    origin = request.app[ORIGIN]
    try:
        await asyncio.sleep(float(request.query["s"]) * SCALE)
    except asyncio.CancelledError:
        origin.cancelled.append(request.path)
        raise
    origin.finished.append(request.path)
    return web.json_response({"ok": True})


async def drip(request: web.Request) -> web.StreamResponse:
    """`?n=` pieces, one every `?every=` simulated seconds, of `?type=`."""
    response = web.StreamResponse()
    response.content_type = request.query.get("type", "text/event-stream")
    await response.prepare(request)
    for number in range(int(request.query["n"])):
        await response.write(b": %d\n\n" % number)
        await asyncio.sleep(float(request.query["every"]) * SCALE)
    return response


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Echo until `bye`, then close with 4001."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.data == "bye":
            await socket.close(code=4001, message=b"so long")
        else:
            await socket.send_str(message.data)
    return socket


@pytest.fixture
async def origin() -> AsyncIterator[BaseTestServer]:
    """A server with the routes above."""
    app = web.Application()
    app[ORIGIN] = Origin()
    app.router.add_route("*", "/silent", silent)
    app.router.add_route("*", "/drip", drip)
    app.router.add_get("/echo", echo)
    async with TestServer(app) as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def edge(origin: BaseTestServer) -> AsyncIterator[Edge]:
    """The hop `cloudflare` in front of the origin."""
    async with Edge(load_profile("cloudflare"), str(origin.make_url("")).rstrip("/"), time_scale=SCALE) as edge:
        yield edge


async def test_a_silent_origin_is_answered_for_with_524(edge: Edge, session: aiohttp.ClientSession) -> None:
    """After 125 s, not before."""
    async with session.get(edge.url + "/silent?s=110") as answer:
        assert answer.status == 200
    async with session.get(edge.url + "/silent?s=250", headers={"Accept": "application/json"}) as answer:
        document = await answer.json()

        assert answer.status == 524
        assert document["error_name"] == "origin_response_timeout"
    assert edge.requests[-1].ended == "read_timeout"
    assert 125 <= (edge.requests[-1].seconds or 0) <= 140


async def test_a_heartbeat_keeps_a_stream_open_and_each_piece_passes_at_once(
    edge: Edge, session: aiohttp.ClientSession
) -> None:
    """300 s with a comment every 15 s."""
    async with session.get(edge.url + "/drip?n=20&every=15") as answer:
        pieces = [piece async for piece in answer.content.iter_any()]

    assert len(pieces) == 20
    assert edge.requests[-1].largest_gap_seconds < 40


async def test_a_websocket_passes_with_its_close_code(edge: Edge, session: aiohttp.ClientSession) -> None:
    """Both ways."""
    async with session.ws_connect(edge.url + "/echo") as socket:
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
        await socket.send_str("bye")
        assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4001
    await wait_until(lambda: edge.requests[-1].ended)
