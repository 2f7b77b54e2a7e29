"""Files over HTTP: multipart and raw bodies, streamed with limits, and nothing left behind where one fails."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.app import DOOR
from gateway.auth import Principal
from gateway.errors import Unavailable
from gateway.handlers.received import Received
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.serving import FILES, Gateway, gateway_for

PDF = b"%PDF-1.7\n" + b"page\r\n--x\r\n" * 1000
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
AS_PDF = {"Content-Type": "application/pdf"}


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys."""
    async with gateway_for(store, tmp_path / "blobs", max_upload_bytes=2 * 1024 * 1024) as gateway:
        yield gateway


def multipart(*parts: tuple[str, bytes], boundary: str = "xyz", end: bool = True) -> dict[str, Any]:
    """Request options with a multipart body, made by hand: each part is its headers and its bytes."""
    body = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts)
    if end:
        body += f"--{boundary}--\r\n".encode()
    return {"data": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


def file_part(name: str = "scan.pdf", content_type: str = "application/pdf") -> str:
    """The headers of a file's part."""
    return f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: {content_type}'


def field_part(name: str) -> str:
    """The headers of a field's part."""
    return f'Content-Disposition: form-data; name="{name}"'


async def only_file(gateway: Gateway, answer: Any) -> tuple[dict[str, Any], bytes]:
    """The one file of the job that was answered: its entry in the document, and its bytes."""
    assert answer.status == 202, answer.body
    [file] = answer.json()["files"]
    return file, (await gateway.get(file["url"])).body


# --- raw bodies -----------------------------------------------------------------------------------------------------


async def test_a_raw_body_is_a_file(gateway: Gateway) -> None:
    """`curl --data-binary @scan.pdf -H 'Content-Type: application/pdf'`, its name from ?filename=."""
    answer = await gateway.post(
        "/v1/kinds/read/jobs",
        params={"filename": "scan 1.pdf", "input": '{"a": 1}', "options": '{"priority": "low"}'},
        data=PDF,
        headers=AS_PDF,
    )

    file, body = await only_file(gateway, answer)
    assert (file["name"], file["content_type"], file["size"]) == ("scan 1.pdf", "application/pdf", len(PDF))
    assert file["url"].endswith("/files/scan%201.pdf")
    assert body == PDF
    record = await gateway.store.job(answer.json()["id"])
    assert (await gateway.store.input_of(record.id), record.priority) == (b'{"a":1}', "low")


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="Überweisung.pdf"', "Überweisung.pdf"),
        ("attachment; filename*=UTF-8''%C3%9Cber.pdf", "Über.pdf"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\x\\\\y.pdf"', "y.pdf"),
        ("attachment", "file.pdf"),
        ("complete;;; nonsense=", "file.pdf"),
    ],
)
async def test_a_files_name_is_cleaned(gateway: Gateway, disposition: str, name: str) -> None:
    """From Content-Disposition, without paths; never a path itself."""
    headers = AS_PDF | {"Content-Disposition": disposition}
    answer = await gateway.post("/v1/kinds/read/jobs", data=PDF, headers=headers)

    file, body = await only_file(gateway, answer)
    assert file["name"] == name
    assert body == PDF


@pytest.mark.parametrize(("data", "content_type"), [(PDF, "application/pdf"), (PNG, "image/png")])
async def test_a_file_without_a_type_is_known_by_its_first_bytes(
    gateway: Gateway, data: bytes, content_type: str
) -> None:
    """application/octet-stream says nothing, and what curl says by default is wrong: so the bytes are asked."""
    for declared in ("application/octet-stream", "application/x-www-form-urlencoded"):
        answer = await gateway.post("/v1/kinds/read/jobs", data=data, headers={"Content-Type": declared})

        assert (await only_file(gateway, answer))[0]["content_type"] == content_type


async def test_a_file_that_comes_byte_by_byte_is_known_as_well(gateway: Gateway) -> None:
    """A slow line or a proxy may cut a body anywhere."""

    async def pieces() -> AsyncGenerator[bytes]:
        for place in range(len(PNG)):
            yield PNG[place : place + 1]

    async with Received(gateway.app, FILES, Principal("local"), key=None) as received:
        await received.store("", "application/octet-stream", pieces())

        [file] = received.files
    assert (file.stored.content_type, file.stored.size) == ("image/png", len(PNG))


@pytest.mark.parametrize(
    ("kind", "content_type", "code"),
    [
        ("read", "image/svg+xml; charset=utf-8", None),
        ("read", "text/html", "unsupported_type"),
        ("read", "nonsense", "unsupported_type"),
        ("read", "application/x-www-form-urlencoded", "unsupported_type"),
        ("read", "multipart/mixed; boundary=x", "unsupported_type"),
        ("echo", "application/pdf", "file_not_allowed"),
    ],
)
async def test_only_what_the_kind_reads_is_taken(
    gateway: Gateway, kind: str, content_type: str, code: str | None
) -> None:
    """415 names what is read; nothing is stored."""
    answer = await gateway.post(f"/v1/kinds/{kind}/jobs", data=b"x", headers={"Content-Type": content_type})

    if code is None:
        assert answer.status == 202
    else:
        assert (answer.status, answer.json()["code"]) == (415, code)
        assert await gateway.blob_count() == 0


async def test_a_kind_that_needs_a_file_says_so(gateway: Gateway) -> None:
    """422 for JSON without one, and for a file without bytes."""
    none = await gateway.post("/v1/kinds/read/jobs", json={"input": {}})
    empty = await gateway.post("/v1/kinds/read/jobs", data=b"", headers=AS_PDF)

    assert (none.status, none.json()["code"]) == (422, "file_required")
    assert (empty.status, empty.json()["code"]) == (422, "file_empty")


async def test_compressed_bodies_are_refused(gateway: Gateway) -> None:
    """A small body that unpacks to a large one would get around every limit."""
    headers = AS_PDF | {"Content-Encoding": "gzip"}
    answer = await gateway.post("/v1/kinds/read/jobs", data=b"\x1f\x8b", headers=headers)

    assert answer.status == 415


@pytest.mark.parametrize("query", ["priority=high", "filename=x.pdf", "tags=a"])
async def test_an_option_in_the_wrong_place_is_not_ignored(gateway: Gateway, query: str) -> None:
    """422 says where it belongs."""
    answer = await gateway.post(f"/v1/kinds/echo/jobs?{query}", json={})

    assert answer.status == 422
    assert query.partition("=")[0] in answer.json()["detail"]


# --- multipart ------------------------------------------------------------------------------------------------------


async def test_a_form_holds_files_input_and_options(gateway: Gateway) -> None:
    """In any order; options in one part or in parts of their own; names made unique."""
    form = aiohttp.FormData()
    form.add_field("file", PDF, filename="a.pdf", content_type="application/pdf")
    form.add_field("input", '{"name": "x"}')
    form.add_field("options", '{"priority": "low"}')
    form.add_field("run_timeout_seconds", "30")
    form.add_field("tags", '["a", "b"]')
    form.add_field("more", PNG, filename="a.pdf", content_type="image/png")

    answer = await gateway.post("/v1/kinds/form/jobs", data=form)

    document = answer.json()
    assert answer.status == 202, document
    assert [(file["name"], file["content_type"]) for file in document["files"]] == [
        ("a.pdf", "application/pdf"),
        ("a-2.pdf", "image/png"),
    ]
    assert [(await gateway.get(file["url"])).body for file in document["files"]] == [PDF, PNG]
    record = await gateway.store.job(document["id"])
    assert (record.priority, record.tags, record.options.run_timeout_seconds) == ("low", ("a", "b"), 30)


async def test_bytes_that_look_like_the_boundary_stay_bytes(gateway: Gateway) -> None:
    """Only the boundary itself ends a part, wherever the network cuts."""
    data = b"--xy\r\n--xy-\n--xyz\r--xyz\r\n\r\n--" * 5000
    part = multipart((file_part(), PDF + data))
    body, headers = part["data"], part["headers"]

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 777):
            yield body[at : at + 777]

    answer = await gateway.post("/v1/kinds/read/jobs", data=pieces(), headers=headers)

    assert (await only_file(gateway, answer))[1] == PDF + data


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (multipart((file_part(), PDF), end=False), 400, "bad_multipart"),
        (multipart((file_part(), PDF)) | {"headers": {"Content-Type": "multipart/form-data"}}, 400, "bad_multipart"),
        (
            multipart((file_part(), PDF)) | {"headers": {"Content-Type": "multipart/form-data; boundary=other"}},
            400,
            "bad_multipart",
        ),
        (multipart(("Content-Type: application/pdf", PDF)), 400, "bad_multipart"),
        (multipart((file_part() + "\r\nContent-Transfer-Encoding: base64", PDF)), 400, "bad_multipart"),
        (multipart((file_part() + "\r\nContent-Encoding: gzip", PDF)), 400, "bad_multipart"),
        (multipart(("Content-Type: multipart/mixed; boundary=q", b"--q--\r\n")), 400, "bad_multipart"),
        (multipart((file_part("a\0b"), PDF)), 400, "bad_multipart"),
        (multipart(("--x--", PDF)), 400, "bad_multipart"),
        (multipart((field_part("input"), b"{}"), (field_part("input"), b"{}")), 400, "bad_multipart"),
        (multipart((field_part("input"), b"{nope")), 400, "bad_json"),
        (multipart((field_part("input"), b"[]")), 422, "invalid_input"),
        (multipart((field_part("priorty"), b"high"), (file_part(), PDF)), 422, "invalid_input"),
        (multipart((field_part("priority"), b"highest"), (file_part(), PDF)), 422, "invalid_input"),
        (multipart((field_part("_charset_"), b"x" * 100), (file_part(), PDF)), 400, "bad_multipart"),
        (multipart(*[(file_part(f"{n}.pdf"), b"%PDF-") for n in range(65)]), 413, "too_many_files"),
        (multipart((file_part(content_type="text/html"), b"<script>")), 415, "unsupported_type"),
        (multipart((file_part(), b"")), 422, "file_empty"),
        (multipart((field_part("input"), b'{"a": "' + b"x" * 400_000 + b'"}')), 413, "input_too_large"),
        ({"data": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "bad_multipart"),
    ],
)
async def test_a_broken_form_is_refused_and_leaves_nothing(
    gateway: Gateway, body: dict[str, Any], status: int, code: str
) -> None:
    """Whatever is wrong with it: a problem that says what, no job, no blob."""
    answer = await gateway.post("/v1/kinds/read/jobs", **body)

    assert (answer.status, answer.json()["code"]) == (status, code)
    assert await gateway.blob_count() == 0
    assert (await gateway.get("/v1/jobs")).json()["jobs"] == []


async def test_a_file_before_a_bad_field_is_taken_back(gateway: Gateway) -> None:
    """The file was stored already when the field turned out wrong."""
    body = multipart((file_part(), PDF), (field_part("options"), b'{"priority": 7}'))

    answer = await gateway.post("/v1/kinds/read/jobs", **body)

    assert answer.status == 422
    assert await gateway.blob_count() == 0


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_a_body_over_one_mebibyte_is_taken(gateway: Gateway) -> None:
    """The HTTP library's own small default must not bite."""
    data = PDF + b"\0" * (1024 * 1024 + 500_000)

    answer = await gateway.post("/v1/kinds/read/jobs", data=io.BytesIO(data), headers=AS_PDF)

    assert (await only_file(gateway, answer))[1] == data


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("form", [False, True])
async def test_a_body_over_the_limit_is_refused_while_it_comes(gateway: Gateway, chunked: bool, form: bool) -> None:
    """413 by its announced length, and by counting where there is none; nothing stays."""
    body: dict[str, Any] = {"data": b"%PDF-" + b"\0" * 3 * 1024 * 1024, "headers": AS_PDF}
    if form:
        body = multipart((file_part(), body["data"]))
    data: bytes = body["data"]
    body["data"] = io.BytesIO(data)
    if chunked:

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 65536):
                yield data[at : at + 65536]

        body["data"] = pieces()

    answer = await gateway.post("/v1/kinds/read/jobs", **body)

    assert (answer.status, answer.json()["code"]) == (413, "too_large")
    await wait_until(lambda: nothing_stored(gateway))


async def nothing_stored(gateway: Gateway) -> bool:
    """Whether no blob is there, nor a half of one."""
    return await gateway.blob_count() == 0


async def test_a_silent_upload_is_ended_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    """408 after the pause, a closed connection, no blob."""
    async with gateway_for(store, tmp_path / "b", upload_idle_seconds=0.3) as gateway:
        head = b"POST /v1/kinds/read/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pdf\r\n"
        for framing in (b"Content-Length: 100000\r\n\r\n" + PDF, b"Transfer-Encoding: chunked\r\n\r\n5\r\n%PDF-\r\n"):
            answer = await gateway.raw(head + framing)

            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"code":"request_timeout"' in answer
            assert b"Connection: close" in answer
            assert await nothing_stored(gateway)
        assert not gateway.app[DOOR].connections


async def test_a_silent_form_is_ended_too(store: Store, tmp_path: Path) -> None:
    """Also where the pause falls between the parts."""
    async with gateway_for(store, tmp_path / "b", upload_idle_seconds=0.3) as gateway:
        body = multipart((file_part(), PDF), end=False)
        head = (
            f"POST /v1/kinds/read/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {body['headers']['Content-Type']}"
        )

        answer = await gateway.raw(f"{head}\r\nContent-Length: 99999\r\n\r\n".encode() + body["data"])

        assert answer.startswith(b"HTTP/1.1 408 ")
        assert await nothing_stored(gateway)


async def test_a_dripping_upload_is_ended(store: Store, tmp_path: Path) -> None:
    """A byte now and then is no upload: below a rate it is refused, though it is never silent."""
    async with gateway_for(store, tmp_path / "b", upload_idle_seconds=0.5) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
        writer.write(
            b"POST /v1/kinds/read/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pdf\r\n"
            b"Content-Length: 100000\r\n\r\n%PDF-"
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = asyncio.ensure_future(reader.read())
            while not answer.done():
                writer.write(b"x")
                await asyncio.wait({answer}, timeout=0.05)
        writer.transport.abort()

        assert answer.result().startswith(b"HTTP/1.1 408 ")
        assert await nothing_stored(gateway)


async def test_an_upload_whose_client_vanishes_leaves_nothing(gateway: Gateway) -> None:
    """The handler ends with its client, and takes the half blob with it."""
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(
        b"POST /v1/kinds/read/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pdf\r\n"
        b"Content-Length: 2000000\r\n\r\n%PDF-" + b"x" * 1_500_000
    )
    await wait_until(gateway.blob_count)

    writer.transport.abort()

    await wait_until(lambda: nothing_stored(gateway))
    assert (await gateway.get("/v1/jobs")).json()["jobs"] == []


async def test_a_body_that_breaks_off_is_no_job(gateway: Gateway) -> None:
    """A chunked body with a broken frame is refused."""
    head = b"POST /v1/kinds/read/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pdf\r\n"

    answer = await gateway.raw(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%PDF-\r\nnonsense\r\n")

    assert b" 400 Bad Request\r\n" in answer[:30]
    assert await nothing_stored(gateway)


async def test_a_client_that_waits_to_be_asked_is_asked_only_for_what_is_taken(gateway: Gateway) -> None:
    """`Expect: 100-continue`: refused without the body where it can be, else asked for it."""
    head = "POST /v1/kinds/{}/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n"
    body = f"Content-Type: application/pdf\r\nContent-Length: {len(PDF)}\r\n\r\n"

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write((head.format("echo") + body).encode())
    refused = await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write((head.format("read") + body).encode())
    asked = await reader.readuntil(b"\r\n\r\n")
    writer.write(PDF)
    taken = await reader.read()
    writer.transport.abort()

    assert refused.startswith(b"HTTP/1.1 415 ")
    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert taken.startswith(b"HTTP/1.1 202 ")


async def test_the_files_stay_where_the_job_may_have_been_made(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit whose answer was lost in Redis may have been accepted: its file must not be deleted."""

    async def lost(*_: object, **__: object) -> object:
        raise Unavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(gateway.store, "submit", lost)
        answer = await gateway.post("/v1/kinds/read/jobs", data=PDF, headers=AS_PDF)

    assert answer.status == 503
    assert await gateway.blob_count() == 1
