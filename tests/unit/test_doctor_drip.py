"""Bytes to heads and pieces, pieces to frames, frames to a shape: without a network."""

from __future__ import annotations

import gzip
import zlib

import pytest

from gateway.doctor.drip import Frame, Shape, lags_of, read_frames, shape_of
from gateway.doctor.response import Garbled, Head, Response

EVERY = 1.0


def frames(*came: float) -> list[Frame]:
    """Frames sent at 0, 1, 2, ... that came at these times."""
    return [Frame(number, number - 1.0, at) for number, at in enumerate(came, 1)]


@pytest.mark.parametrize(
    ("shape", "came"),
    [
        (Shape.PACED, (0.1, 1.1, 2.1, 3.1, 4.1, 5.1)),
        (Shape.PACED, (9.1, 10.2, 11.1, 12.4, 13.1, 14.1)),
        (Shape.HELD, (5.2, 5.2, 5.2, 5.2, 5.2, 5.3)),
        (Shape.BEHIND, (1.1, 2.1, 3.1, 4.1, 5.1, 5.1)),
        (Shape.BEHIND, (1.1, 1.1, 3.1, 3.1, 5.1, 5.1)),
        (Shape.FIRST_HELD, (1.1, 1.1, 2.1, 3.1, 4.1, 5.1)),
        (Shape.BATCHED, (2.1, 2.1, 2.1, 5.1, 5.1, 5.1)),
        (Shape.BATCHED, (3.1, 3.1, 3.1, 3.1, 5.1, 5.1)),
        (Shape.UNEVEN, (0.1, 1.1, 2.9, 3.3, 4.9, 5.3)),
    ],
)
def test_each_way_of_coming_has_its_shape(shape: Shape, came: tuple[float, ...]) -> None:
    """Whatever the two clocks say: only differences count."""
    assert shape_of(frames(*came), 6, EVERY, whole=True) is shape
    moved = [Frame(frame.number, frame.sent + 1000, frame.came - 7) for frame in frames(*came)]
    assert shape_of(moved, 6, EVERY, whole=True) is shape


def test_what_did_not_come_whole_has_a_shape_too() -> None:
    """Broken off, or changed on the way."""
    six = frames(0.1, 1.1, 2.1, 3.1, 4.1, 5.1)

    assert shape_of(six[:3], 6, EVERY, whole=False) is Shape.CUT
    assert shape_of(six[:3], 6, EVERY, whole=True) is Shape.ALTERED
    assert shape_of([*six[:3], *six[2:]], 6, EVERY, whole=True) is Shape.ALTERED
    assert shape_of([], 6, EVERY, whole=True) is Shape.ALTERED
    assert lags_of([]) == []


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_frame_came_when_its_last_byte_did(size: int, encoding: str) -> None:
    """However the body is cut into pieces, compressed or not."""
    texts = [b'data: {"n":%d,"sent_seconds":%d.5,"time_ms":1,"padding":".."}\n\n' % (n, n) for n in (1, 2, 3)]
    if encoding:
        deflate = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
        coded = [deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH) for text in texts]
    else:
        coded = texts
    pieces = [
        (float(number), whole[start : start + size])
        for number, whole in enumerate(coded, 1)
        for start in range(0, len(whole), size)
    ]

    found = read_frames(pieces, encoding)

    assert found == [Frame(number, number + 0.5, float(number)) for number in (1, 2, 3)]


def test_a_body_that_is_no_gzip_has_no_frames() -> None:
    """A broken compressor is a finding, not an exception."""
    assert read_frames([(1.0, gzip.compress(b"x")[:5] + b"\xff" * 50)], "gzip") == []


# --- responses --------------------------------------------------------------------------------------------------------

CHUNKED = (
    b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: a\r\nx: b\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: t\r\n\r\n"
)
PLAIN = b"HTTP/1.1 200\r\nContent-Length: 11\r\n\r\nhello world"
CLOSING = b"HTTP/1.0 200 OK\nServer: old\n\nhello world"


@pytest.mark.parametrize(("data", "framing"), [(CHUNKED, "chunked"), (PLAIN, "length"), (CLOSING, "close")])
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_a_response_is_read_however_it_is_cut(data: bytes, framing: str, size: int) -> None:
    """Heads, body and end."""
    response = Response("GET")
    parts = [part for start in range(0, len(data), size) for part in response.feed(data[start : start + size])]

    heads = [part for part in parts if isinstance(part, Head)]
    assert b"".join(part for part in parts if isinstance(part, bytes)) == b"hello world"
    assert heads[-1].status == 200
    assert response.framing == framing
    assert response.done is (framing != "close")
    assert response.end()
    if framing == "chunked":
        assert (heads[0].status, heads[0].interim, heads[1].get("X")) == (103, True, "a, b")


@pytest.mark.parametrize("cut", [10, 40, len(CHUNKED) - 3])
def test_half_a_response_is_not_whole(cut: int) -> None:
    """A chunked body without its last chunk was cut."""
    response = Response("GET")
    response.feed(CHUNKED[:cut])

    assert not response.done
    assert not response.end()


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 101)])
def test_some_answers_have_no_body(method: str, status: int) -> None:
    """Whatever their length says."""
    response = Response(method)
    response.feed(b"HTTP/1.1 %d x\r\nContent-Length: 5\r\n\r\n" % status)

    assert response.done


@pytest.mark.parametrize(
    "data",
    [
        b"220 mail ESMTP\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
    ],
)
def test_what_is_no_response_says_so(data: bytes) -> None:
    """Other protocols and broken framing."""
    with pytest.raises(Garbled):
        Response("GET").feed(data)
