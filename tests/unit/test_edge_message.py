"""HTTP as bytes: bodies cut anywhere, headers in any case, and how held bytes come out."""

from __future__ import annotations

import zlib

import pytest

from gateway.edge.failures import Garbled
from gateway.edge.hold import MAX_HELD_BYTES, Gunzip, Gzip, Prefix, UntilFull, UntilNext
from gateway.edge.message import Body, Framing, Headers, parse_request, parse_response

CHUNKED = b"4\r\nWiki\r\n6;name=value\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "length", "wire", "body"),
    [
        ("chunked", 0, CHUNKED, b"Wikipedia in \r\n\r\nchunks."),
        ("length", 11, b"hello world", b"hello world"),
    ],
)
def test_a_body_is_the_same_wherever_it_is_cut(framing: Framing, length: int, wire: bytes, body: bytes) -> None:
    """And what follows it is left over."""
    for first in range(len(wire) + 1):
        for second in range(first, len(wire) + 1):
            decoder = Body(framing, length)
            pieces = [decoder.feed(part) for part in (wire[:first], wire[first:second], wire[second:] + b"NEXT")]

            assert b"".join(pieces) == body
            assert decoder.complete
            assert decoder.leftover == b"NEXT"


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    """One with a length doesn't."""
    until_close = Body("close", 0)
    assert until_close.feed(b"abc") == b"abc"
    assert not until_close.complete
    assert until_close.end()
    assert not Body("length", 3).end()


@pytest.mark.parametrize("wire", [b"x\r\n", b"-1\r\n", b"1\r\nab\r\n", b"0x1\r\n", b"1" * 2000])
def test_a_chunk_that_is_none_is_refused(wire: bytes) -> None:
    """Two readers would see two bodies."""
    with pytest.raises(Garbled):
        Body("chunked", 0).feed(wire)


def test_headers_are_found_in_any_case_and_lists_are_joined() -> None:
    """As the standard has it."""
    head = parse_request(
        b"GET /a HTTP/1.1\r\nConnection: close, X-One\r\nconnection: Keep-Alive\r\nX-One: 1\r\nX-Two: 2"
    )

    assert head.headers.tokens("connection") == {"close", "x-one", "keep-alive"}
    head.headers.drop_hop_by_hop()
    assert head.headers.items == [("X-Two", "2")]
    head.headers.set("x-two", "3")
    assert head.headers.encode() == b"x-two: 3\r\n"


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "Keep-Alive", True)],
)
def test_a_connection_is_kept_as_the_version_says(version: str, connection: str, keeps: bool) -> None:
    """Both ways."""
    line = f"HTTP/{version} 200 OK\r\nConnection: {connection}"

    assert parse_response(line.encode()).keeps_alive is keeps
    assert parse_request(f"GET / HTTP/{version}\r\nConnection: {connection}".encode()).keeps_alive is keeps


def test_bytes_of_a_header_come_out_as_they_went_in() -> None:
    """Whatever their encoding was."""
    head = parse_response(b"HTTP/1.1 200 Gr\xc3\xbc\xc3\x9fe\r\nX: \xff\x80")

    assert head.encode() == b"HTTP/1.1 200 Gr\xc3\xbc\xc3\x9fe\r\nX: \xff\x80\r\n\r\n"
    assert Headers([("a", "b")]).get("A".lower()) == "b"


def test_a_full_buffer_passes_on_and_the_rest_at_the_end() -> None:
    """Whole buffers only."""
    hold = UntilFull(4)

    assert [hold.feed(piece) for piece in (b"abc", b"de", b"fghij")] == [b"", b"abcd", b"efgh"]
    assert hold.held == 2
    assert hold.end() == b"ij"


def test_a_message_waits_for_the_next_one() -> None:
    """However the bytes are cut."""
    text = b"data: 1\n\ndata: 2\r\n\r\n: beat\n\n"
    for cut in range(len(text)):
        hold = UntilNext(events=True)
        passed = hold.feed(text[:cut]) + hold.feed(text[cut:])

        assert passed == b"data: 1\n\ndata: 2\r\n\r\n"
        assert hold.held == len(b": beat\n\n")
        assert hold.end() == b": beat\n\n"


def test_a_message_without_an_end_is_not_held_for_ever() -> None:
    """Memory has a bound."""
    assert len(UntilNext(events=True).feed(b"x" * (MAX_HELD_BYTES + 1))) == MAX_HELD_BYTES + 1


def test_a_prefix_is_held_once() -> None:
    """Then everything passes."""
    hold = Prefix(3)

    assert [hold.feed(piece) for piece in (b"ab", b"cd", b"e")] == [b"", b"abcd", b"e"]
    assert hold.end() == b""


def test_gzip_and_back() -> None:
    """Each piece can be read before the next one is there."""
    packer, unpacker = Gzip(holds=False), Gunzip()

    assert [unpacker.feed(packer.feed(piece)) for piece in (b"one", b"two")] == [b"one", b"two"]
    assert unpacker.feed(packer.end()) + unpacker.end() == b""
    assert zlib.decompress(Gzip(holds=True).end(), 31) == b""
