"""What a simulated hop passes on at once, and what it holds or changes on the way (rules 8 to 12)."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from itertools import pairwise

import pytest

from gateway.edge import Edge, load_profile
from gateway.edge.wire import Wire
from tests.edge_origin import SCALE, Origin, Seen, edge_for, raw_origin, see
from tests.faults import wait_until

pytestmark = pytest.mark.usefixtures("patient_clock")


def is_live(seen: Seen, count: int, every: float) -> bool:
    """Whether the events came as they were sent, `every` seconds apart."""
    times = [seen.when(b"data: %d\n\n" % number) for number in range(count)]
    return all(later - earlier > every / 2 for earlier, later in pairwise(times))


@pytest.mark.parametrize("type_", ["text/event-stream", "application/x-ndjson", "application/json", "text/plain"])
async def test_what_has_no_length_passes_piece_by_piece(origin: Origin, type_: str) -> None:
    """Whatever it is."""
    async with edge_for(origin.url) as edge:
        seen = await see(edge.url, f"GET /drip?n=4&every=40&type={type_} HTTP/1.1")

        assert is_live(seen, 4, 40)
        assert seen.all.endswith(b"0\r\n\r\n")


async def test_what_has_a_length_keeps_it_and_passes_as_it_comes() -> None:
    """A download is no stream, and is not held either."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nab")
        for part in (b"cd", b"ef"):
            await asyncio.sleep(50 * SCALE)
            writer.write(part)
        await reader.read()

    async with raw_origin(slow) as url, edge_for(url) as edge:
        seen = await see(edge.url, "GET / HTTP/1.1")

        assert b"Content-Length: 6\r\n" in seen.all
        assert seen.body == b"abcdef"
        assert seen.when(b"abcd") + 25 < seen.when(b"abcdef")


async def test_the_head_waits_for_the_first_byte(origin: Origin) -> None:
    """A stream that sends its head alone has sent nothing."""
    async with edge_for(origin.url) as edge:
        assert (await see(edge.url, "GET /drip?n=1&every=1&first=60 HTTP/1.1")).when(b"HTTP/1.1 200") >= 60
    async with edge_for(origin.url, response__hold_head=False) as edge:
        assert (await see(edge.url, "GET /drip?n=1&every=1&first=100 HTTP/1.1")).when(b"HTTP/1.1 200") < 60


async def test_a_prefix_is_held_until_there_is_enough_of_it(origin: Origin) -> None:
    """Nine bytes an event: the first three come together."""
    async with edge_for(origin.url, response__inspect_bytes=25) as edge:
        seen = await see(edge.url, "GET /drip?n=5&every=30 HTTP/1.1")

        assert seen.when(b"data: 0") == seen.when(b"data: 2") >= 60
        assert seen.when(b"data: 3") > seen.when(b"data: 2")


async def test_a_quick_tunnel_holds_get_and_streams_post(origin: Origin) -> None:
    """Also of an event stream."""
    async with edge_for(origin.url, "quick-tunnel") as edge:
        held = await see(edge.url, "GET /drip?n=4&every=30 HTTP/1.1")
        live = await see(edge.url, b"POST /drip?n=4&every=30 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

        assert held.when(b"data: 0") == held.when(b"data: 3") > 90
        assert edge.requests[0].most_held_bytes == 36
        assert is_live(live, 4, 30)


async def test_a_quick_tunnel_takes_only_so_many_requests(origin: Origin) -> None:
    """200 in flight; two here."""
    assert load_profile("quick-tunnel").request.max_in_flight == 200
    async with edge_for(origin.url, "quick-tunnel", request__max_in_flight=2) as edge:
        answers = await asyncio.gather(*(see(edge.url, "GET /silent?s=80 HTTP/1.1") for _ in range(3)))

        assert sorted(answer.all[9:12] for answer in answers) == [b"200", b"200", b"429"]


async def test_an_old_tunnel_hides_heartbeats_that_are_not_sse(origin: Origin) -> None:
    """They never reach the edge, whose timer runs on; an event stream is passed on at once."""
    async with edge_for(origin.url, "cloudflare-tunnel-old") as edge:
        lost = await see(edge.url, "GET /drip?n=10&every=20&type=application/x-ndjson HTTP/1.1")
        live = await see(edge.url, "GET /drip?n=10&every=20 HTTP/1.1")

        assert lost.all.startswith(b"HTTP/1.1 524")
        assert is_live(live, 10, 20)


async def test_an_antivirus_holds_each_event_until_the_next_one(origin: Origin) -> None:
    """And everything else not at all."""
    async with edge_for(origin.url, "antivirus") as edge:
        seen = await see(edge.url, "GET /drip?n=4&every=30 HTTP/1.1")
        other = await see(edge.url, "GET /drip?n=3&every=30&type=text/plain HTTP/1.1")

        assert seen.when(b"data: 0") >= 30
        assert seen.when(b"data: 1") >= 60
        assert seen.when(b"data: 3") >= 110
        assert is_live(other, 3, 30)


async def test_an_antivirus_may_hold_everything(origin: Origin) -> None:
    """Until the end, or two megabytes; what is said to nginx is nothing to it."""
    async with edge_for(origin.url, "antivirus-until-close") as edge:
        seen = await see(edge.url, "GET /drip?n=3&every=30&accel HTTP/1.1")

        assert seen.when(b"HTTP/1.1 200") >= 85


async def test_nginx_fills_its_buffer_unless_the_response_asks_it_not_to(origin: Origin) -> None:
    """`X-Accel-Buffering: no` is for nginx, and goes no further."""
    async with edge_for(origin.url, "nginx-default") as edge:
        held = await see(edge.url, "GET /drip?n=4&every=20 HTTP/1.1")
        live = await see(edge.url, "GET /drip?n=4&every=20&accel HTTP/1.1")

        assert held.when(b"data: 0") == held.when(b"data: 3") > 60
        assert is_live(live, 4, 20)
        assert b"accel" not in live.all.lower().partition(b"\r\n\r\n")[0]


async def gzipped(edge: Edge, query: str, accept: str = "gzip") -> Seen:
    """The answer to a client that accepts so."""
    return await see(
        edge.url, f"GET {query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept-Encoding: {accept}\r\n\r\n".encode()
    )


async def test_what_is_in_the_list_is_compressed(origin: Origin) -> None:
    """By type, status and size, for clients that want it."""
    async with edge_for(origin.url) as edge:
        seen = await gzipped(edge, "/text?n=5000")
        head, _, body = seen.all.partition(b"\r\n\r\n")

        assert b"Content-Encoding: gzip" in head
        assert b"Vary: Accept-Encoding" in head
        # They would name and cut other bytes.
        assert b"ETag" not in head
        assert b"Accept-Ranges" not in head
        assert len(body) < 200
        size, _, rest = body.partition(b"\r\n")
        assert zlib.decompressobj(31).decompress(rest[: int(size, 16)]) == b"x" * 5000


@pytest.mark.parametrize(
    ("query", "accept"),
    [
        ("/text?n=47", "gzip"),
        ("/text?status=500", "gzip"),
        ("/text?type=text/event-stream", "gzip"),
        ("/text?type=application/x-ndjson", "gzip"),
        ("/text?type=image/png", "gzip"),
        ("/text?still", "gzip"),
        ("/text", "br"),
        ("/text", "gzip;q=0"),
    ],
)
async def test_everything_else_is_not_compressed(origin: Origin, query: str, accept: str) -> None:
    """No-transform, streams, small bodies, errors, and clients that don't take it."""
    async with edge_for(origin.url) as edge:
        seen = await gzipped(edge, query, accept)

        assert b"Content-Encoding" not in seen.all
        assert b'ETag: "x"\r\n' in seen.all


@pytest.mark.parametrize("holds", [False, True])
async def test_compressed_pieces_can_be_read_as_they_come_unless_the_compressor_holds(
    origin: Origin, holds: bool
) -> None:
    """A heartbeat in a compressor is no heartbeat."""
    async with edge_for(origin.url, response__compress_holds=holds) as edge:
        seen = await gzipped(edge, "/drip?n=4&every=30&type=application/json")
        early = b"".join(piece for seconds, piece in seen.pieces if seconds < 75)
        unpacker = zlib.decompressobj(31)
        body = early.partition(b"\r\n\r\n")[2]
        while body:
            size, _, rest = body.partition(b"\r\n")
            unpacker.decompress(rest[: int(size, 16)])
            body = rest[int(size, 16) + 2 :]

        assert b"gzip" in seen.all
        # The compressor's ten bytes of its own header are no content.
        assert (len(early.partition(b"\r\n\r\n")[2]) > 30) is not holds


async def test_what_the_origin_compressed_is_unpacked_for_a_client_that_did_not_ask(origin: Origin) -> None:
    """The hop always asks for it."""
    async with edge_for(origin.url) as edge:
        plain = await see(edge.url, "GET /text?gzip&n=90000 HTTP/1.1")
        packed = await gzipped(edge, "/text?gzip&n=90000")

        assert b"x" * 90_000 in plain.all
        assert gzip.decompress(packed.body) == b"x" * 90_000


async def test_what_nobody_reads_is_left_with_its_sender() -> None:
    """A connection holds a bounded number of bytes; all of them come in the end."""
    wires: list[Wire] = []
    server = await asyncio.get_running_loop().create_server(lambda: Wire(wires.append), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"x" * 4_000_000)
    wire: Wire = (await wait_until(lambda: wires))[0]
    await wait_until(lambda: len(wire._buffer) > 256 * 1024)
    for _ in range(20):
        await asyncio.sleep(0)

    # asyncio reads 256 KiB at once.
    assert len(wire._buffer) <= 512 * 1024
    count = 0
    while count < 4_000_000:
        count += len(await wire.read())
    writer.close()
    wire.abort()
    server.close()
