"""The multipart body of a submit: every byte, from every source, and as a server reads it."""

from __future__ import annotations

import io
import os
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from gateway.client.upload import Body, File, Meter, as_files, prepare
from gateway.errors import InvalidInput

CONTENT = b"%PDF-1.7 " + bytes(range(256)) * 3000


async def send(body: Body) -> bytes:
    """All of the body's bytes."""
    return b"".join([bytes(chunk) async for chunk in body.chunks()])


def parts_of(body: Body, raw: bytes) -> list[tuple[str | None, str | None, str, bytes]]:
    """Name, file name, type and content of each part, as another library reads them."""
    message = message_from_bytes(b"Content-Type: " + body.content_type.encode() + b"\r\n\r\n" + raw)
    parts = []
    for part in message.get_payload():
        assert not isinstance(part, str)
        name = part.get_param("name", header="content-disposition")
        parts.append((str(name), part.get_filename(), part.get_content_type(), part.get_payload(decode=True)))
    return parts  # type: ignore[return-value]


def sources(folder: Path) -> dict[str, Any]:
    """The same content in every form that can be given."""
    path = folder / "scan.pdf"
    path.write_bytes(CONTENT)
    return {
        "path": path,
        "text path": str(path),
        "bytes": CONTENT,
        "bytearray": bytearray(CONTENT),
        "memoryview": memoryview(CONTENT),
        "file object": io.BytesIO(CONTENT),
    }


@pytest.mark.parametrize("form", ["path", "text path", "bytes", "bytearray", "memoryview", "file object"])
async def test_every_source_arrives_whole_with_its_size_known(form: str, tmp_path: Path) -> None:
    """And can be sent a second time, after a lost answer."""
    body = Body([("input", b'{"a":1}')], prepare([File(sources(tmp_path)[form], name="scan.pdf")]))

    first, second = await send(body), await send(body)

    assert first == second
    assert len(first) == body.size
    assert parts_of(body, first) == [
        ("input", None, "text/plain", b'{"a":1}'),
        ("file", "scan.pdf", "application/pdf", CONTENT),
    ]


async def test_an_open_file_is_sent_from_where_it_stands(tmp_path: Path) -> None:
    """Its own name is the file's name; a second sending begins at the same place."""
    path = tmp_path / "page.png"
    path.write_bytes(b"skipped" + CONTENT)
    with path.open("rb") as file:
        file.seek(7)
        body = Body([], prepare(as_files(file)))

        assert parts_of(body, await send(body)) == [("file", "page.png", "image/png", CONTENT)]
        assert parts_of(body, await send(body))[0][3] == CONTENT


async def test_a_pipe_is_sent_once_and_has_no_size() -> None:
    """`cat scan.pdf | outlast submit ocr -`."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as writer:
        writer.write(CONTENT[:1000])
    with os.fdopen(read_end, "rb") as pipe:
        body = Body([], prepare([File(pipe, name="-", content_type="application/pdf")]))

        assert body.size is None
        assert parts_of(body, await send(body)) == [("file", "-", "application/pdf", CONTENT[:1000])]


async def test_progress_counts_every_byte_of_the_files_once() -> None:
    """The last report says that all has gone; a second sending reports nothing that has been reported."""
    reports: list[tuple[int, int | None]] = []
    body = Body([("input", b"{}")], prepare([File(CONTENT, name="a.bin"), File(b"x", name="b.bin")]))
    meter = Meter(lambda sent, total: reports.append((sent, total)), len(CONTENT) + 1)

    for _ in range(2):
        assert [bytes(chunk) async for chunk in body.chunks(meter)]

    assert reports[-1] == (len(CONTENT) + 1, len(CONTENT) + 1)
    assert [sent for sent, _ in reports] == sorted({sent for sent, _ in reports})
    assert len(reports) == 4


async def test_a_name_cannot_break_out_of_its_header() -> None:
    """A file's name is the user's; it is escaped as browsers do."""
    body = Body([], prepare([File(b"x", name='a"b\r\nContent-Type: evil/evil\r\n\r\n.pdf')]))

    raw = await send(body)

    assert b'filename="a%22b%0D%0AContent-Type: evil/evil%0D%0A%0D%0A.pdf"' in raw
    assert len(parts_of(body, raw)) == 1
    with pytest.raises(InvalidInput, match="line break"):
        Body([], prepare([File(b"x", content_type="a/b\r\nx: y")]))


async def test_a_name_beyond_ascii_is_sent_as_utf8() -> None:
    """As browsers do, and as the gateway reads it."""
    assert 'filename="Gr\u00fc\u00dfe \u6f22.pdf"'.encode() in await send(
        Body([], prepare([File(b"x", name="Gr\u00fc\u00dfe \u6f22.pdf")]))
    )


async def test_files_without_a_name_get_one() -> None:
    """A part without a file name would be taken for a field."""
    body = Body([], prepare(as_files([b"a", io.BytesIO(b"b")])))

    assert [name for _, name, _, _ in parts_of(body, await send(body))] == ["file-1", "file-2"]


async def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    """Its length has been promised; the gateway would wait for the rest."""
    path = tmp_path / "log.txt"
    path.write_bytes(CONTENT)
    body = Body([], prepare(as_files(path)))
    path.write_bytes(b"short")
    stream = io.BytesIO(CONTENT)
    streamed = Body([], prepare([File(stream, name="s")]))
    stream.truncate(3)

    with pytest.raises(InvalidInput, match="became shorter"):
        await send(body)
    with pytest.raises(InvalidInput, match="became shorter"):
        await send(streamed)


async def test_a_file_that_grew_is_sent_as_it_was(tmp_path: Path) -> None:
    """More than the promised length would be taken for the next request."""
    path = tmp_path / "log.txt"
    path.write_bytes(b"before")
    body = Body([], prepare(as_files(path)))
    path.write_bytes(b"before and after")

    assert len(await send(body)) == body.size


async def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Not as an error of the network, which would be tried again."""
    with pytest.raises(InvalidInput, match="No such file"):
        Body([], prepare(as_files(tmp_path / "missing.pdf")))
    path = tmp_path / "gone.pdf"
    path.write_bytes(b"x")
    body = Body([], prepare(as_files(path)))
    path.unlink()
    with pytest.raises(InvalidInput, match=r"gone\.pdf can't be read"):
        await send(body)
    with pytest.raises(InvalidInput, match="Is a directory"):
        await send(Body([], prepare(as_files(tmp_path))))


async def test_a_file_opened_as_text_is_named() -> None:
    """Its bytes would depend on the machine's encoding."""
    text: Any = io.StringIO("abc")

    with pytest.raises(InvalidInput, match="binary mode"):
        await send(Body([], prepare([File(text, name="t")])))
