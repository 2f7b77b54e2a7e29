"""Resumable uploads over HTTP: the tus protocol, cuts in the middle of a part, and submits that name an upload."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import obstore
import pytest
from obstore.store import MemoryStore

from gateway.app import DOOR, make_app, make_hub, serving
from gateway.blobs import Blobs
from gateway.collector import collect
from gateway.config import Settings
from gateway.metrics import Registry
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.serving import AS_ME, AS_OTHER, FILES, KEYS, Answer, Gateway, gateway_for

TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream"}
PDF = b"%PDF-1.7\n" + secrets.token_bytes(300_000)


@pytest.fixture(params=["folder", "object store"])
async def gateway(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys, over a local folder, and over a store that has no folder."""
    settings: dict[str, Any] = {"max_upload_bytes": 2_000_000}
    if request.param == "folder":
        async with gateway_for(store, tmp_path / "blobs", **settings) as gateway:
            yield gateway
        return
    await store.register_kind(FILES)
    chosen = Settings(port=0, drain_seconds=0, data=tmp_path, **settings)
    blobs = Blobs(MemoryStore())
    app = make_app(chosen, store, blobs, make_hub(chosen, store, Registry()))
    async with serving(app, chosen) as server, aiohttp.ClientSession() as session:
        yield Gateway(app, server, session, store, blobs)


def metadata(**values: str) -> dict[str, str]:
    """The header Upload-Metadata."""
    pairs = [f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items()]
    return {"Upload-Metadata": ",".join(pairs)}


async def begin(gateway: Gateway, length: int | None = len(PDF), headers: Mapping[str, str] | None = None) -> str:
    """Begin an upload; its path."""
    said = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    answer = await gateway.post("/v1/uploads", headers=TUS | said | dict(headers or {}))
    assert answer.status == 201, answer.body
    assert answer.headers["Location"] == f"/v1/uploads/{answer.json()['id']}"
    return answer.headers["Location"]


async def send(gateway: Gateway, path: str, offset: int, data: Any, **headers: str) -> Answer:
    """Send a part."""
    return await gateway.ask("PATCH", path, data=data, headers=PART | {"Upload-Offset": str(offset)} | headers)


async def offset_of(gateway: Gateway, path: str) -> int:
    """Where an upload stands."""
    answer = await gateway.ask("HEAD", path, headers=TUS)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    return int(answer.headers["Upload-Offset"])


async def submit(gateway: Gateway, *paths: str, **headers: str) -> Answer:
    """Submit a job that names uploads."""
    files = [{"upload": path.rpartition("/")[2]} for path in paths]
    return await gateway.post("/v1/kinds/read/jobs", json={"files": files}, headers=headers)


# --- the way of a file ------------------------------------------------------------------------------------------------


async def test_parts_become_a_job_s_file(gateway: Gateway) -> None:
    """Begin, three parts, ask in between, submit: the job has the file with its name, its type and all its bytes."""
    path = await begin(gateway, headers=metadata(filename="Bericht.pdf", filetype="application/pdf"))
    for start in (0, 100_000, 200_000):
        assert await offset_of(gateway, path) == start
        end = len(PDF) if start == 200_000 else start + 100_000
        answer = await send(gateway, path, start, PDF[start:end])
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(end))
        assert answer.headers["Tus-Resumable"] == "1.0.0"
        assert "GMT" in answer.headers["Upload-Expires"]

    answer = await submit(gateway, path)

    assert answer.status == 202, answer.body
    [file] = answer.json()["files"]
    assert (file["name"], file["content_type"], file["size"]) == ("Bericht.pdf", "application/pdf", len(PDF))
    assert (await gateway.get(file["url"])).body == PDF
    document = (await gateway.get(path)).json()
    assert (document["complete"], document["offset"], document["length"]) == (True, len(PDF), len(PDF))


async def test_a_type_that_nobody_said_is_known_by_the_first_bytes(gateway: Gateway) -> None:
    """Without metadata the file gets a name and the type that its bytes say."""
    path = await begin(gateway)
    await send(gateway, path, 0, PDF)

    [file] = (await submit(gateway, path)).json()["files"]

    assert (file["name"], file["content_type"]) == ("file.pdf", "application/pdf")


async def test_an_upload_begins_with_its_first_part(gateway: Gateway) -> None:
    """creation-with-upload: a body of the POST is the first part; a length that comes later ends it."""
    answer = await gateway.post("/v1/uploads", headers=PART | {"Upload-Defer-Length": "1"}, data=PDF[:1000])
    assert (answer.status, answer.headers["Upload-Offset"]) == (201, "1000")
    path = answer.headers["Location"]
    head = await gateway.ask("HEAD", path, headers=TUS)
    assert head.headers["Upload-Defer-Length"] == "1"
    assert (await submit(gateway, path)).json()["code"] == "upload_incomplete"

    await send(gateway, path, 1000, PDF[1000:])
    assert (await gateway.get(path)).json()["complete"] is False
    answer = await send(gateway, path, len(PDF), b"", **{"Upload-Length": str(len(PDF))})

    assert answer.status == 204
    assert (await submit(gateway, path)).status == 202


async def test_the_same_content_is_the_same_request(gateway: Gateway) -> None:
    """An Idempotency-Key finds its job again by the file's digest: same upload, second upload, whole body."""
    paths = []
    for middle in (100_000, 7):
        path = await begin(gateway, headers=metadata(filename="a.pdf", filetype="application/pdf"))
        await send(gateway, path, 0, PDF[:middle])
        await send(gateway, path, middle, PDF[middle:])
        paths.append(path)
    first = await submit(gateway, paths[0], **{"Idempotency-Key": "k"})

    again = [await submit(gateway, path, **{"Idempotency-Key": "k"}) for path in paths]
    whole = {"Content-Type": "application/pdf", "Idempotency-Key": "k"}
    again.append(await gateway.post("/v1/kinds/read/jobs?filename=a.pdf", data=PDF, headers=whole))

    assert [answer.json()["id"] for answer in again] == [first.json()["id"]] * 3
    assert all(answer.headers["Idempotency-Replayed"] == "true" for answer in again)
    other = await begin(gateway, 3, metadata(filename="a.pdf", filetype="application/pdf"))
    await send(gateway, other, 0, b"abc")
    assert (await submit(gateway, other, **{"Idempotency-Key": "k"})).json()["code"] == "idempotency_key_reused"


async def test_a_job_keeps_its_file_when_the_upload_is_deleted(gateway: Gateway) -> None:
    """The upload goes with all its blobs, the file of the job that took it stays."""
    path = await begin(gateway)
    await send(gateway, path, 0, PDF)
    [file] = (await submit(gateway, path)).json()["files"]

    assert (await gateway.ask("DELETE", path, headers=TUS)).status == 204

    assert (await gateway.get(path)).json()["code"] == "upload_not_found"
    assert (await gateway.get(file["url"])).body == PDF
    assert await gateway.blobs.newest("uploads") == {}


async def test_two_submits_at_once_join_the_parts_once_for_both(gateway: Gateway) -> None:
    """Both jobs have the whole file, and one joined blob is left."""
    path = await begin(gateway)
    await send(gateway, path, 0, PDF[:1000])
    await send(gateway, path, 1000, PDF[1000:])

    answers = await asyncio.gather(submit(gateway, path), submit(gateway, path))

    for answer in answers:
        [file] = answer.json()["files"]
        assert (await gateway.get(file["url"])).body == PDF
    upload = await gateway.store.upload(path.rpartition("/")[2])
    assert upload.sha256 == hashlib.sha256(PDF).hexdigest()
    kept = [blob for page in obstore.list(gateway.blobs._store, f"uploads/{upload.id}") for blob in page]
    assert len(kept) == 1


async def test_a_join_goes_on_without_the_submit_that_began_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one takes longer than a hop lets a request be silent: the next submit finds it done, not begun anew."""
    monkeypatch.setattr("gateway.handlers.joining.PATIENCE_SECONDS", 0.2)
    go, begun, put = asyncio.Event(), 0, gateway.blobs.put

    async def slow(key: str, data: Any, **options: Any) -> Any:
        nonlocal begun
        begun += 1
        await go.wait()
        return await put(key, data, **options)

    path = await begin(gateway)
    await send(gateway, path, 0, PDF)
    monkeypatch.setattr(gateway.blobs, "put", slow)
    left = asyncio.create_task(submit(gateway, path))
    await wait_until(lambda: begun == 1)
    left.cancel()
    later = await submit(gateway, path)
    go.set()

    async def accepted() -> Answer | None:
        answer = await submit(gateway, path)
        return answer if answer.status == 202 else None

    [file] = (await wait_until(accepted)).json()["files"]
    assert (later.status, later.json()["code"]) == (503, "upload_joining")
    assert int(later.headers["Retry-After"]) > 0
    assert (await gateway.get(file["url"])).body == PDF
    assert begun == 1


async def test_a_websocket_s_submit_names_uploads(gateway: Gateway) -> None:
    """Frames are too small for files; an upload brings one to a job that is submitted over a socket."""
    path = await begin(gateway)
    await send(gateway, path, 0, PDF)

    async with gateway.session.ws_connect(gateway.url + "/v1/ws") as socket:
        files = [{"upload": path.rpartition("/")[2]}]
        await socket.send_json({"op": "submit", "kind": "read", "files": files, "subscribe": False})
        answer = await socket.receive_json(timeout=PATIENCE_SECONDS)

    assert answer["op"] == "submitted", answer
    assert (await gateway.get(answer["job"]["files"][0]["url"])).body == PDF


# --- cuts -------------------------------------------------------------------------------------------------------------


async def test_what_came_before_a_cut_is_kept(gateway: Gateway) -> None:
    """A connection that is reset within a part leaves its bytes; the rest goes on from there."""
    path = await begin(gateway)
    more = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield PDF[:150_000]
        await more.wait()

    async with FaultProxy(gateway.url) as proxy, aiohttp.ClientSession() as session:
        sending = asyncio.create_task(
            session.patch(proxy.url + path, data=half(), headers=PART | {"Upload-Offset": "0"}).__aenter__()
        )
        await wait_until(lambda: received(gateway), what="the first bytes")
        proxy.cut()
        with pytest.raises(aiohttp.ClientError):
            await sending
    await wait_until(lambda: has_offset(gateway, path, 150_000), what="the bytes from before the cut")

    assert (await send(gateway, path, 150_000, PDF[150_000:])).status == 204
    [file] = (await submit(gateway, path)).json()["files"]
    assert (await gateway.get(file["url"])).body == PDF


def received(gateway: Gateway) -> bool:
    """Whether a body is being waited for whose first bytes the handler has taken: a reset drops what it has not."""
    requests = [connection._current_request for connection in gateway.app[DOOR].connections]
    contents = [request.content for request in requests if request is not None]
    return any(content.total_bytes >= 150_000 and content._size == 0 for content in contents)


async def has_offset(gateway: Gateway, path: str, offset: int) -> bool:
    """Whether an upload stands there."""
    return await offset_of(gateway, path) == offset


async def test_of_two_parts_for_the_same_place_one_counts(gateway: Gateway) -> None:
    """A client that came back while its old connection still sends: one part is taken, the other answered 409."""
    path = await begin(gateway)

    answers = await asyncio.gather(send(gateway, path, 0, PDF[:1000]), send(gateway, path, 0, PDF[:2000]))

    assert sorted(answer.status for answer in answers) == [204, 409]
    refused = next(answer for answer in answers if answer.status == 409)
    offset = refused.json()["offset"]
    assert (refused.json()["code"], offset) == ("wrong_offset", await offset_of(gateway, path))
    await send(gateway, path, offset, PDF[offset:])
    [file] = (await submit(gateway, path)).json()["files"]
    assert (await gateway.get(file["url"])).body == PDF


async def test_a_lost_reply_of_redis_takes_a_part_once(store: Store) -> None:
    """The script that is sent again after a lost reply answers as it did the first time."""
    upload = await store.create_upload("me", name="", content_type="", length=100)

    first = await store.extend_upload(upload.id, 0, 10, "blob")
    again = await store.extend_upload(upload.id, 0, 10, "blob")

    assert (first, again) == (10, 10)
    assert await store.upload_parts(upload.id) == ["blob"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 412, "tus_version"),
        (TUS, 400, "bad_request"),
        (TUS | {"Upload-Length": "1", "Upload-Defer-Length": "1"}, 400, "bad_request"),
        (TUS | {"Upload-Length": "-1"}, 400, "bad_request"),
        (TUS | {"Upload-Length": "2000001"}, 413, "too_large"),
        (TUS | {"Upload-Length": "1", "Upload-Metadata": "filename ###"}, 400, "bad_request"),
        (TUS | {"Upload-Length": "1"} | metadata(filetype="nonsense"), 415, "unsupported_type"),
    ],
)
async def test_a_begin_that_is_wrong_is_refused(
    gateway: Gateway, headers: dict[str, str], status: int, code: str
) -> None:
    """Each with its own code, and with the protocol's version in the answer."""
    answer = await gateway.post("/v1/uploads", headers=headers)

    assert (answer.status, answer.json()["code"]) == (status, code)
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert (answer.headers.get("Tus-Version") == "1.0.0") is (status == 412)


async def test_a_part_that_is_wrong_is_refused_and_takes_nothing(gateway: Gateway) -> None:
    """A wrong place, a wrong type, no version, no offset, more than was said: the upload stands where it stood."""
    path = await begin(gateway, 1000)
    await send(gateway, path, 0, PDF[:500])

    answers = {
        "place": await send(gateway, path, 400, PDF[400:600]),
        "type": await send(gateway, path, 500, b"x", **{"Content-Type": "text/plain"}),
        "version": await send(gateway, path, 500, b"x", **{"Tus-Resumable": "0.2.2"}),
        "offset": await gateway.ask("PATCH", path, data=b"x", headers=PART),
        "length": await send(gateway, path, 500, b"x" * 501),
        "other length": await send(gateway, path, 500, b"x", **{"Upload-Length": "900"}),
    }

    assert {name: (answer.status, answer.json()["code"]) for name, answer in answers.items()} == {
        "place": (409, "wrong_offset"),
        "type": (415, "unsupported_type"),
        "version": (412, "tus_version"),
        "offset": (400, "bad_request"),
        "length": (413, "too_large"),
        "other length": (413, "too_large"),
    }
    assert await offset_of(gateway, path) == 500
    assert (await submit(gateway, path)).json()["code"] == "upload_incomplete"


async def test_a_type_that_the_kind_does_not_read_is_refused(gateway: Gateway) -> None:
    """At the submit, as for other files; an empty upload too."""
    for length, code in ((5, "unsupported_type"), (0, "file_empty")):
        kind = "text/plain" if length else "application/pdf"
        path = await begin(gateway, length, metadata(filetype=kind))
        if length:
            await send(gateway, path, 0, b"hello")
        assert (await submit(gateway, path)).json()["code"] == code


async def test_a_proxy_that_lets_no_patch_pass_is_gone_around(gateway: Gateway) -> None:
    """POST with X-HTTP-Method-Override does what PATCH and DELETE do, and nothing else."""
    path = await begin(gateway, 3)

    patched = await gateway.post(
        path, data=b"abc", headers=PART | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    )
    plain = await gateway.post(path, headers=TUS)
    deleted = await gateway.post(path, headers=TUS | {"X-HTTP-Method-Override": "DELETE"})

    assert [patched.status, plain.status, deleted.status] == [204, 400, 204]
    options = await gateway.ask("OPTIONS", "/v1/uploads")
    assert (options.status, options.headers["Tus-Version"], options.headers["Tus-Max-Size"]) == (
        204,
        "1.0.0",
        "2000000",
    )
    assert "creation" in options.headers["Tus-Extension"]


async def test_an_upload_is_its_owner_s_alone(store: Store, tmp_path: Path) -> None:
    """Another key's owner can neither see, nor extend, nor submit, nor delete it: 404, as if it had never been."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway:
        answer = await gateway.post("/v1/uploads", headers=TUS | AS_ME | {"Upload-Length": "3"})
        path = answer.headers["Location"]

        others = [
            await gateway.ask("HEAD", path, headers=TUS | AS_OTHER),
            await send(gateway, path, 0, b"abc", **AS_OTHER),
            await submit(gateway, path, **AS_OTHER),
            await gateway.ask("DELETE", path, headers=TUS | AS_OTHER),
        ]

        assert [answer.status for answer in others] == [404] * 4
        assert (await gateway.get(path, headers=AS_ME)).json()["offset"] == 0
        assert (await gateway.get(path)).status == 401


# --- what is left -----------------------------------------------------------------------------------------------------


async def test_the_blobs_of_an_expired_upload_are_collected(gateway: Gateway, prefix: str, valkey: str) -> None:
    """While its record is there nothing is touched; when it has expired, the parts go."""
    import redis

    path = await begin(gateway)
    await send(gateway, path, 0, PDF[:1000])
    upload = path.rpartition("/")[2]
    assert await collect(gateway.store, gateway.blobs) == 0
    assert await offset_of(gateway, path) == 1000

    with redis.Redis.from_url(valkey) as client:
        for part in ("upload", "parts"):
            ttl = client.ttl(f"{prefix}:{{{upload}}}:{part}")
            assert 86_000 < ttl <= 86_400
            client.delete(f"{prefix}:{{{upload}}}:{part}")

    assert await collect(gateway.store, gateway.blobs) == 1
    assert await gateway.blobs.newest("uploads") == {}


async def test_an_owner_has_so_many_uploads_open_and_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is refused with 429; a deleted one makes room."""
    from gateway.errors import TooMany
    from gateway.store import uploads

    monkeypatch.setattr(uploads, "MAX_OPEN_UPLOADS", 2)
    first = await store.create_upload("me", name="", content_type="", length=1)
    await store.create_upload("me", name="", content_type="", length=1)

    with pytest.raises(TooMany) as refused:
        await store.create_upload("me", name="", content_type="", length=1)
    assert refused.value.code == "too_many_uploads"
    await store.create_upload("you", name="", content_type="", length=1)
    await store.delete_upload(first)
    await store.create_upload("me", name="", content_type="", length=1)
