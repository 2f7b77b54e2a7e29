"""What a simulated hop does to requests and responses: headers, sizes, error pages (rules 13 to 20)."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest

from gateway.edge import Edge
from tests.edge_origin import Origin, Seen, edge_for, raw_origin, see
from tests.faults import wait_until

pytestmark = pytest.mark.usefixtures("patient_clock")


def body_of(seen: Seen) -> Any:
    """The body, which has a length, as JSON."""
    return json.loads(seen.body)


async def arrived(url: str, *lines: str) -> list[list[str]]:
    """The headers with which a request arrives at the origin."""
    head = "\r\n".join(["GET /headers HTTP/1.1", "Host: app.test", *lines, "Connection: close", "", ""])
    headers: list[list[str]] = body_of(await see(url, head.encode()))
    return headers


async def test_cloudflare_adds_and_overwrites_headers(origin: Origin) -> None:
    """What it does to each request by its documentation."""
    async with edge_for(origin.url) as edge:
        headers = await arrived(
            edge.url,
            "Accept-Encoding: identity",
            "X-Forwarded-For: 192.0.2.1",
            "X-Forwarded-Proto: gopher",
            "CF-Connecting-IP: 192.0.2.9",
            "X.Dotted: gone",
            "X-Kept: yes",
            "Keep-Alive: 5",
            "X-Mine: hop",
            "Connection: X-Mine",
        )
    found = dict(headers)

    assert found["Host"] == "app.test"
    assert found["Accept-Encoding"] == "br, gzip"
    assert found["X-Forwarded-For"] == "192.0.2.1, 127.0.0.1"
    assert found["X-Forwarded-Proto"] == "http"
    assert found["CF-Connecting-IP"] == "127.0.0.1"
    assert found["CF-Ray"].endswith("-SIM")
    assert len(found["CF-Ray"]) == 20
    assert json.loads(found["CF-Visitor"]) == {"scheme": "http"}
    assert found["CF-IPCountry"] == "XX"
    assert found["CDN-Loop"] == "cloudflare"
    assert found["Connection"] == "Keep-Alive"
    assert found["X-Kept"] == "yes"
    assert not {"X.Dotted", "Keep-Alive", "X-Mine"} & found.keys()
    assert len(found) == len(headers)


async def test_nginx_speaks_http_1_0_under_the_origins_name(origin: Origin) -> None:
    """What it does without any proxy_set_header."""
    async with edge_for(origin.url, "nginx-default") as edge:
        found = dict(await arrived(edge.url))

        assert found["Host"] == origin.url.removeprefix("http://")
        assert found["Connection"] == "close"
        assert origin.requests[0].version == (1, 0)
        assert not edge.requests[0].reused


async def test_cloudflare_marks_its_responses_and_takes_away_nginx_switches(origin: Origin) -> None:
    """The signature by which a doctor knows it."""
    async with edge_for(origin.url) as edge:
        head = (await see(edge.url, "GET /headers HTTP/1.1")).all.partition(b"\r\n\r\n")[0].decode()
    lines = head.split("\r\n")

    assert "Server: cloudflare" in lines
    assert "cf-cache-status: DYNAMIC" in lines
    assert 'alt-svc: h3=":443"; ma=86400' in lines
    assert "X-Simulated-Edge: cloudflare" in lines
    assert any(line.startswith("CF-RAY: ") and line.endswith("-SIM") for line in lines)
    assert "x-accel" not in head.lower()
    # What belongs to the connection behind the hop ends there.
    assert "Keep-Alive" not in head
    assert "X-Kept: yes" in lines


async def test_the_marks_of_the_simulation_can_be_turned_off(origin: Origin) -> None:
    """Nothing is left that the real thing would not say, in pages neither."""
    async with edge_for(origin.url, marked=False) as edge:
        texts = [(await see(edge.url, "GET /headers HTTP/1.1")).all.lower()]
        for accept in ("text/html", "application/json", "*/*"):
            edge.fault("524_now")
            request = f"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
            texts.append((await see(edge.url, request.encode())).all.lower())

    assert all(b"simul" not in text and b"-sim" not in text for text in texts)
    assert all(b"cf-ray: " in text for text in texts)


async def test_a_loop_ends_after_a_few_rounds() -> None:
    """A hop whose origin is itself."""
    async with raw_origin(_never) as url, edge_for(url) as last, edge_for(last.url) as first:
        last._hop.origin._port = first.port
        seen = await see(first.url, "GET / HTTP/1.1")

        assert seen.all.startswith(b"HTTP/1.1 403")
        assert seen.body == b"error code: 1000"
        assert len(first.requests) + len(last.requests) == 5


async def _never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise AssertionError("nobody asks this origin")


async def test_many_clients_share_few_connections_to_the_origin(origin: Origin) -> None:
    """One is enough for clients that come one after the other."""
    async with edge_for(origin.url) as edge:
        for _ in range(10):
            await see(edge.url, "GET /headers HTTP/1.1")

    assert len(origin.requests) == 10
    assert len(origin.peers) == 1


async def test_a_body_over_the_limit_is_a_413_before_the_origin_is_asked(origin: Origin) -> None:
    """By its length; 100 MB."""
    async with edge_for(origin.url) as edge:
        head = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nhi"
        seen = await see(edge.url, head % (101 * 1024 * 1024))

        assert seen.all.startswith(b"HTTP/1.1 413")
        assert b"<center>cloudflare</center>" in seen.all
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(head % (101 * 1024 * 1024))
        assert b"413" in await reader.read()
        # A client that is still sending must not lose the answer to a reset.
        for _ in range(3):
            writer.write(b"x" * 10_000)
            await asyncio.sleep(0.02)
            assert not writer.is_closing()
        writer.transport.abort()
        assert not origin.requests


async def test_a_body_without_a_length_is_a_413_when_it_has_grown_too_large(origin: Origin) -> None:
    """While it streams."""
    async with edge_for(origin.url, request__max_body_bytes=1000) as edge:
        head = b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        seen = await see(edge.url, head + b"258\r\n" + b"x" * 600 + b"\r\n258\r\n" + b"x" * 600 + b"\r\n0\r\n\r\n")

        assert seen.all.startswith(b"HTTP/1.1 413")
        assert not origin.bodies


async def test_a_long_url_and_a_large_head_are_refused(origin: Origin) -> None:
    """16 KB and 128 KB, before the origin is asked."""
    async with edge_for(origin.url) as edge:
        assert (await see(edge.url, f"GET /{'x' * 16_385} HTTP/1.1")).all.startswith(b"HTTP/1.1 414")
        large = f"GET / HTTP/1.1\r\nHost: a\r\nX-Large: {'x' * 131_072}\r\n\r\n"
        assert (await see(edge.url, large.encode())).all.startswith(b"HTTP/1.1 431")
        endless = f"GET / HTTP/1.1\r\nHost: a\r\nX-Large: {'x' * 200_000}"
        assert (await see(edge.url, endless.encode())).all.startswith(b"HTTP/1.1 431")
    async with edge_for(origin.url, "api-gateway") as edge:
        large = f"GET / HTTP/1.1\r\nHost: a\r\nX-Large: {'x' * 10_240}\r\n\r\n"
        assert (await see(edge.url, large.encode())).all.startswith(b"HTTP/1.1 431")
    assert not origin.requests


@pytest.mark.parametrize(
    ("buffering", "inspect", "asked_after"), [("none", 0, 1), ("standard", 150, 2), ("full", 0, 3)]
)
async def test_the_origin_is_asked_when_enough_of_the_body_is_there(
    origin: Origin, buffering: str, inspect: int, asked_after: int
) -> None:
    """At once, after a prefix, or after all of it."""
    changes: dict[str, Any] = {
        "request__body_buffering": buffering,
        "request__inspect_bytes": inspect,
        "timers__write_seconds": 0,
    }
    async with edge_for(origin.url, **changes) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n")
        for part in range(1, 4):
            writer.write(b"x" * 100)
            await wait_until(lambda: edge.requests)
            await wait_until(partial(_has_taken, edge, 100 * part))
            if part < asked_after:
                assert not edge._hop.origin._idle
                assert not origin.requests
            else:
                await wait_until(lambda: origin.requests)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
    assert origin.bodies == [b"x" * 300]


def _has_taken(edge: Edge, count: int) -> bool:
    return edge.requests[0].request_bytes == count


async def test_a_chunked_body_arrives_whole(origin: Origin) -> None:
    """Framed anew, also for an origin that is spoken to in HTTP/1.0."""
    hops: tuple[tuple[str, dict[str, Any]], ...] = (
        ("cloudflare", {}),
        ("nginx-default", {}),
        ("nginx-default", {"request__body_buffering": "none"}),
    )
    for profile, changes in hops:
        async with edge_for(origin.url, profile, **changes) as edge:
            head = b"POST /upload HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            seen = await see(edge.url, head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n")

            assert body_of(seen) == {"bytes": 5}
            # HTTP/1.0 knows no chunks.
            assert origin.requests[-1].headers.get("Content-Length") == (None if profile == "cloudflare" else "5")
    assert origin.bodies == [b"abcde"] * 3


async def test_100_continue_is_answered_by_the_hop(origin: Origin) -> None:
    """curl waits for it before it sends a large body."""
    async with edge_for(origin.url) as edge:
        head = b"POST /upload HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n"
        seen = await see(edge.url, head + b"Content-Length: 2\r\n\r\nhi")

        assert seen.all.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


@pytest.mark.parametrize("status", [400, 403, 404, 424, 429, 500, 503])
async def test_the_origins_own_errors_get_through(origin: Origin, status: int) -> None:
    """Status and body."""
    async with edge_for(origin.url) as edge:
        seen = await see(edge.url, f"GET /status/{status} HTTP/1.1")

        assert seen.all.startswith(b"HTTP/1.1 %d" % status)
        assert body_of(seen) == {"from": "origin"}


@pytest.mark.parametrize("status", [502, 504])
async def test_502_and_504_lose_their_body(origin: Origin, status: int) -> None:
    """So nobody behind this edge should answer with them."""
    async with edge_for(origin.url) as edge:
        seen = await see(edge.url, f"GET /status/{status} HTTP/1.1")

        assert seen.body == b"error code: %d" % status
        assert b"cf-error-type" not in seen.all
        head = b"GET /status/%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept: application/json\r\n\r\n"
        assert (await see(edge.url, head % status)).body == b"error code: %d" % status
    async with edge_for(origin.url, "alb") as other:
        assert body_of(await see(other.url, f"GET /status/{status} HTTP/1.1")) == {"from": "origin"}


async def test_head_and_range_get_through(origin: Origin) -> None:
    """HEAD has a length and no body, and a 204 neither; Range and its answer are passed on as they are."""

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await reader.read()

    async def part_of_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert b"Range: bytes=2-3\r\n" in request
        writer.write(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-3/9\r\nContent-Length: 2\r\n\r\ncd")
        await reader.read()

    async with edge_for(origin.url) as edge:
        seen = await see(edge.url, "HEAD /text?n=1000 HTTP/1.1")

        assert b"Content-Length: 1000" in seen.all
        assert seen.body == b""
        edge.fault("524_now")
        seen = await see(edge.url, "HEAD / HTTP/1.1")
        assert b"Content-Length: 15\r\n" in seen.all
        assert seen.body == b""
    async with raw_origin(nothing) as url, edge_for(url) as edge:
        seen = await see(edge.url, "GET / HTTP/1.1")

        assert seen.all.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert b"Transfer-Encoding" not in seen.all
        assert seen.body == b""
    async with raw_origin(part_of_it) as url, edge_for(url) as edge:
        seen = await see(edge.url, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nRange: bytes=2-3\r\n\r\n")

        assert seen.all.startswith(b"HTTP/1.1 206 Partial Content")
        assert b"Content-Range: bytes 2-3/9" in seen.all
        assert seen.body == b"cd"


async def test_a_52x_has_no_reason_phrase() -> None:
    """Its own and the origin's."""

    async def says_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 522 Connection Timed Out\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with raw_origin(says_more) as url, edge_for(url) as edge:
        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 522 \r\n")
        edge.fault("524_now")
        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 524 \r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"hello",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"",
        pytest.param(b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 0\r\n\r\n" % (b"x" * 131_072), id="large head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: %b" % (b"x" * 300_000), id="endless head"),
    ],
)
async def test_an_answer_that_is_no_http_is_a_520(answer: bytes) -> None:
    """Empty, garbled, contradictory, not whole, or with more than 128 KB of headers."""

    async def garbles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with raw_origin(garbles) as url, edge_for(url) as edge:
        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 520")


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX : 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: 1\r\n folded\r\n\r\n",
    ],
)
async def test_an_ambiguous_request_goes_no_further(origin: Origin, request_: bytes) -> None:
    """What two hops could read in two ways is how requests are smuggled."""
    async with edge_for(origin.url) as edge:
        assert (await see(edge.url, request_)).all.startswith(b"HTTP/1.1 400")
        assert not origin.requests


async def test_pipelined_requests_are_answered_in_order(origin: Origin) -> None:
    """Two heads in one write, one of them with a body."""
    async with edge_for(origin.url) as edge:
        first = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        second = b"GET /status/404 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        seen = await see(edge.url, first + second)

        assert seen.all.index(b'{"bytes": 3}') < seen.all.index(b"HTTP/1.1 404")
