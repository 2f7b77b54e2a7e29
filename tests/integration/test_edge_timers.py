"""The limits of time at a simulated hop, each at a fraction of its length (rules 1 to 7)."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.edge import Edge, load_profile
from gateway.edge.clock import Clock, Silence
from gateway.edge.profile import Timers
from tests.edge_origin import SCALE, Origin, edge_for, raw_origin, see
from tests.faults import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.usefixtures("patient_clock")
WRITE, CONNECT = (getattr(load_profile("cloudflare").timers, f"{name}_seconds") for name in ("write", "connect"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def pause(seconds: float) -> None:
    """Let simulated seconds pass: the origin's own doing, not a wait for luck."""
    await asyncio.sleep(seconds * SCALE)


async def last(edge: Edge) -> str:
    """How the last request ended."""
    how: str = await wait_until(lambda: edge.requests[-1].ended)
    return how


@pytest.mark.parametrize(
    ("profile", "limit", "status"),
    [
        ("cloudflare", 125, 524),
        ("cloudflare-2024", 100, 524),
        ("nginx-default", 60, 504),
        ("alb", 60, 504),
        ("heroku", 30, 503),
        ("api-gateway", 29, 504),
    ],
)
async def test_a_silent_origin_is_given_up_at_the_limit_and_finishes_its_work(
    origin: Origin, profile: str, limit: float, status: int
) -> None:
    """The client gets the hop's error after so many seconds; the origin's handler runs to its end."""
    async with edge_for(origin.url, profile) as edge:
        seen = await see(edge.url, f"GET /silent?s={limit * 1.5} HTTP/1.1")

        assert seen.all.startswith(b"HTTP/1.1 %d " % status)
        assert limit <= seen.when(b"HTTP/1.1") < limit * 1.5
        assert edge.requests[-1].ended in {"read_timeout", "total_timeout"}
        await wait_until(lambda: origin.finished)


async def test_an_answer_just_before_the_limit_gets_through(origin: Origin) -> None:
    """The control of the test above."""
    async with edge_for(origin.url) as edge:
        assert (await see(edge.url, "GET /silent?s=90 HTTP/1.1")).all.startswith(b"HTTP/1.1 200")


async def test_enterprise_waits_longer(origin: Origin) -> None:
    """Its limit is another number, not another rule."""
    async with edge_for(origin.url, "enterprise") as edge:
        assert (await see(edge.url, "GET /silent?s=250 HTTP/1.1")).all.startswith(b"HTTP/1.1 200")


async def test_jitter_is_the_same_for_the_same_seed(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to so many seconds more, drawn from the seed; no 524 comes before they are over."""
    drawn: list[float] = []

    class Noted(Silence):
        def __init__(self, timers: Timers, clock: Clock, jitter_seconds: float) -> None:
            drawn.append(jitter_seconds)
            super().__init__(timers, clock, jitter_seconds)

    monkeypatch.setattr("gateway.edge.exchange.Silence", Noted)
    times = []
    for _ in range(2):
        async with edge_for(origin.url, timers__first_seconds=10, timers__jitter_seconds=100) as edge:
            seen = await see(edge.url, "GET /silent?s=300 HTTP/1.1")
            times.append((seen.when(b"HTTP/1.1 524"), edge.requests[-1].ray))

    assert times[0][1] == times[1][1]
    assert drawn[0] == drawn[1]
    assert 0 < drawn[0] <= 100
    assert all(came >= 10 + drawn[0] for came, _ in times)


async def test_half_a_head_ends_the_silence() -> None:
    """The timer is that of a read, not of a response."""

    async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for line in (b"HTTP/1.1 200 OK\r\n", b"X-One: 1\r\n", b"Content-Length: 2\r\n\r\nok"):
            await pause(80)
            writer.write(line)
        await writer.drain()
        await reader.read()

    async with raw_origin(slow_head) as url, edge_for(url) as edge:
        seen = await see(edge.url, "GET / HTTP/1.1")

        assert seen.all.startswith(b"HTTP/1.1 200")
        assert seen.when(b"ok") > 200


async def test_while_a_request_is_still_being_sent_the_origin_is_not_silent() -> None:
    """An upload of 210 s has the other limit, also where the origin begins to answer before it has all of it."""

    async def answers_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await reader.readexactly(3)
        writer.write(b"k")
        await reader.read()

    async with raw_origin(answers_early) as url, edge_for(url) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n")
        for _ in range(3):
            await pause(70)
            writer.write(b"x")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await reader.read()).endswith(b"\r\n\r\nok")
        writer.transport.abort()


async def test_a_head_without_a_body_is_cut_with_502() -> None:
    """The client has seen nothing of it, since the head is held."""

    async def head_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()

    async with raw_origin(head_only) as url, edge_for(url) as edge:
        seen = await see(edge.url, "GET / HTTP/1.1")

        assert seen.all.startswith(b"HTTP/1.1 502")
        assert 125 <= seen.when(b"502") < 200
        assert edge.requests[-1].status == 502
        assert edge.requests[-1].origin_status == 200


async def test_silence_after_the_first_bytes_breaks_the_connection_off(origin: Origin) -> None:
    """Nothing can be said any more: the end of the body is missing."""
    async with edge_for(origin.url) as edge:
        seen = await see(edge.url, "GET /drip?n=2&every=300 HTTP/1.1")

        assert b"data: 0" in seen.all
        assert b"data: 1" not in seen.all
        assert not seen.all.endswith(b"0\r\n\r\n")
        assert await last(edge) == "read_timeout"
        assert 125 <= (edge.requests[-1].last_gap_seconds or 0) < 200
        # HTTP/1.0 knows no other end of such a body than the connection's: a reset is no end.
        old = await see(edge.url, "GET /drip?n=2&every=300 HTTP/1.0")
        assert b"\r\n\r\ndata: 0\n\n" in old.all
        assert old.all.endswith(b"<reset>")


async def test_heroku_gives_more_time_once_something_has_come(origin: Origin) -> None:
    """30 s for the first byte, a longer rolling window after it: three times as long here, for slow machines."""
    assert load_profile("heroku").timers.gap_seconds == 55
    async with edge_for(origin.url, "heroku", timers__gap_seconds=165) as edge:
        assert (await see(edge.url, "GET /drip?n=3&every=70 HTTP/1.1")).all.endswith(b"0\r\n\r\n")
        assert not (await see(edge.url, "GET /drip?n=3&every=250 HTTP/1.1")).all.endswith(b"0\r\n\r\n")


async def test_a_total_limit_does_not_care_about_bytes(origin: Origin) -> None:
    """API Gateway wants the whole answer within 29 s."""
    async with edge_for(origin.url, "api-gateway") as edge:
        seen = await see(edge.url, "GET /drip?n=10&every=5 HTTP/1.1")

        assert seen.all.startswith(b"HTTP/1.1 504")
        assert await last(edge) == "total_timeout"


async def test_an_upload_that_stops_for_30_s_is_a_524(origin: Origin) -> None:
    """It is the client's fault, and looks like the origin's."""
    async with edge_for(origin.url, timers__write_seconds=WRITE) as edge:
        seen = await see(edge.url, b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")

        assert seen.all.startswith(b"HTTP/1.1 524")
        assert 30 <= seen.when(b"524") < 110
        assert await last(edge) == "write_stalled"


async def test_an_origin_that_does_not_read_an_upload_is_a_524() -> None:
    """The same limit from the other side."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        await asyncio.sleep(60)

    size = 24 * 1024 * 1024
    async with raw_origin(deaf, receive_bytes=4096) as url, edge_for(url, timers__write_seconds=WRITE) as edge:
        head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
        seen = await see(edge.url, head + b"x" * size)

        assert b"HTTP/1.1 524" in seen.all
        assert await last(edge) == "write_stalled"


async def test_an_origin_that_refuses_is_a_521_and_one_that_does_not_accept_a_522() -> None:
    """A full backlog drops the SYN, as a firewall does."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with edge_for(f"http://127.0.0.1:{closed.getsockname()[1]}") as edge:
            assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 521")
        for tunnel in ("quick-tunnel", "cloudflare-tunnel-old"):
            # There it is cloudflared that reaches nobody, and its answer loses its body at the edge.
            async with edge_for(f"http://127.0.0.1:{closed.getsockname()[1]}", tunnel) as edge:
                seen = await see(edge.url, "GET / HTTP/1.1")

                assert seen.all.startswith(b"HTTP/1.1 502")
                assert seen.body == b"error code: 502"
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            async with edge_for(f"http://127.0.0.1:{full.getsockname()[1]}", timers__connect_seconds=CONNECT) as edge:
                seen = await see(edge.url, "GET / HTTP/1.1")

                assert seen.all.startswith(b"HTTP/1.1 522")
                assert 19 <= seen.when(b"522") < 100


async def test_an_origin_whose_name_nobody_knows_is_told_from_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same status, since nobody is there either; a misspelt `--origin` is found in the metrics."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with edge_for("http://app:8000") as edge:
        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 521")
        assert await last(edge) == "unknown_name"


@pytest.mark.skipif(not hasattr(socket, "SO_RCVBUF"), reason="needs a small receive buffer")
async def test_a_request_that_is_not_acknowledged_is_a_522() -> None:
    """The origin's kernel takes no more: its buffer is full, and nobody reads it."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        await asyncio.sleep(60)

    async with raw_origin(deaf, receive_bytes=2048) as url, edge_for(url) as edge:
        seen = await see(edge.url, b"GET / HTTP/1.1\r\nHost: a\r\nX-Large: " + b"x" * 100_000 + b"\r\n\r\n")

        assert seen.all.startswith(b"HTTP/1.1 522")
        assert 90 <= seen.when(b"522") < 124
        assert await last(edge) == "not_acknowledged"


async def test_connections_to_the_origin_are_used_again_until_they_have_been_idle(origin: Origin) -> None:
    """900 s in production; a few here."""
    async with edge_for(origin.url, timers__origin_idle_seconds=100) as edge:
        for _ in range(3):
            await see(edge.url, "GET /headers HTTP/1.1")
        assert [record.reused for record in edge.requests] == [False, True, True]
        await pause(300)
        await see(edge.url, "GET /headers HTTP/1.1")

        assert len(origin.peers) == 2
        assert not edge.requests[-1].reused


@pytest.mark.parametrize(("race", "status"), [(True, 520), (False, 200)])
async def test_a_used_connection_that_has_ended_is_a_520_or_another_try(race: bool, status: int) -> None:
    """Both sides end idle connections; when they do at once, the request is lost."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()

    async with raw_origin(once) as url, edge_for(url, request__reuse_race=race) as edge:
        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 200")
        await pause(10)

        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 %d" % status)


async def test_a_stale_connection_is_tried_once_more_but_not_for_a_post() -> None:
    """What may have been done already is not done again; what is sent twice on purpose is, each time."""
    connections = 0

    async def silent_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")

    async with raw_origin(silent_second) as url, edge_for(url) as edge:
        await see(edge.url, "GET / HTTP/1.1")
        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 200")
        assert connections == 2
        seen = await see(edge.url, b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")

        assert seen.all.startswith(b"HTTP/1.1 520")
        assert await last(edge) == "reuse_race"
        await see(edge.url, "GET / HTTP/1.1")
        edge.fault("duplicate_request")
        assert (await see(edge.url, "GET / HTTP/1.1")).all.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("head", "more", "later"),
    [
        (b"Connection: close\r\n", b"", b""),
        (b"", b"and more", b""),
        (b"", b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"),
    ],
    ids=["told so", "more than its length", "an answer that nobody waits for"],
)
async def test_a_connection_that_can_t_be_trusted_serves_no_second_request(
    head: bytes, more: bytes, later: bytes
) -> None:
    """Its next bytes could be taken for another client's answer."""

    async def untidy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: 2\r\n\r\nok" + more)
            if later:
                await pause(1)
                writer.write(later)

    async with raw_origin(untidy) as url, edge_for(url) as edge:
        for _ in range(2):
            seen = await see(edge.url, "GET / HTTP/1.1")
            await pause(10)

            assert (seen.all[:12], seen.body) == (b"HTTP/1.1 200", b"ok")
        assert [record.reused for record in edge.requests] == [False, False]


async def test_a_body_that_nobody_read_ends_its_connections() -> None:
    """What is left of it would be taken for the next request, by the hop and by the origin."""

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)

    async with raw_origin(hasty) as url, edge_for(url) as edge:
        seen = await see(edge.url, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhi", until=b"ok")
        await see(edge.url, "GET / HTTP/1.1")

        assert b"Connection: close\r\n" in seen.all
        assert not edge.requests[1].reused


async def test_an_idle_client_is_let_go_after_its_limit(origin: Origin) -> None:
    """400 s, between two requests."""
    async with edge_for(origin.url, timers__client_idle_seconds=60) as edge:
        clock = asyncio.get_running_loop().time
        began = clock()
        seen = await see(edge.url, b"GET /headers HTTP/1.1\r\nHost: a\r\n\r\n")

        assert seen.all.startswith(b"HTTP/1.1 200")
        assert clock() - began >= 60 * SCALE


@pytest.mark.parametrize(
    ("interim", "status", "shown"), [("absolute", 524, True), ("reset", 200, True), ("drop", 524, False)]
)
async def test_102_and_103_do_not_help_by_default(interim: str, status: int, shown: bool) -> None:
    """Three readings of the documents; the default is what was observed."""

    async def processing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for said in (b"102 Processing", b"103 Early Hints") * 3:
            await pause(40)
            writer.write(b"HTTP/1.1 %b\r\n\r\n" % said)
            await writer.drain()
        writer.write(OK)
        await reader.read()

    async with raw_origin(processing) as url, edge_for(url, response__interim=interim) as edge:
        seen = await see(edge.url, "GET / HTTP/1.1")

        assert (b"HTTP/1.1 102 Processing" in seen.all) is shown
        assert (b"HTTP/1.1 103 Early Hints" in seen.all) is shown
        assert b"HTTP/1.1 %d" % status in seen.all


async def test_a_client_that_leaves_takes_the_request_with_it() -> None:
    """The origin sees its connection end at once."""
    left: asyncio.Event = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            assert await reader.read() == b""
        finally:
            left.set()

    async with raw_origin(waits) as url, edge_for(url, timers__first_seconds=0) as edge:
        with pytest.raises(TimeoutError):
            await see(edge.url, "GET / HTTP/1.1", seconds=0.05)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await left.wait()

        assert await last(edge) == "client_left"
