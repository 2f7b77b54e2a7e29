"""The kind `http` with a real slow application behind it: its answers, and everything that fails."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol

from gateway.blobs import Blobs
from gateway.event_text import decode_event
from gateway.protocol import START, Event
from gateway.requests import JobOptions
from gateway.store import JobRecord, NewJob, Store, StoredFile
from processors import upstream
from processors.http import http
from tests.faults import wait_until
from tests.slow_app import SlowApp, raw_server
from tests.worker_jobs import end_of, working

pytestmark = pytest.mark.usefixtures("early_looks")
LIMIT_BYTES = 300_000


class Calls:
    """Submits jobs of the kind `http` and follows them."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self.store = store
        self.blobs = blobs

    async def submit(self, url: str, *, file: bytes | None = None, **input_: Any) -> str:
        """Submit a job."""
        job = await self.store.job_id("me", None)
        files: tuple[StoredFile, ...] = ()
        if file is not None:
            key = self.blobs.key_for(job)
            size, _ = await self.blobs.put(key, file, max_bytes=None)
            files = (StoredFile("body", "application/octet-stream", size, key),)
        new = NewJob(http.document, "me", {"url": url} | input_, JobOptions(), "fingerprint", files)
        return (await self.store.submit(job, new, keyed=False)).record.id

    async def end(self, job: str) -> JobRecord:
        """The job when it has ended."""
        return await end_of(self.store, job)

    async def result(self, url: str, **options: Any) -> dict[str, Any]:
        """The result of a call that must succeed."""
        record = await self.end(await self.submit(url, **options))
        end = record.end_data()
        assert record.state == "succeeded", end
        result: dict[str, Any] = end["result"]
        return result

    async def problem(self, url: str, **options: Any) -> dict[str, Any]:
        """The problem of a call that must fail."""
        record = await self.end(await self.submit(url, **options))
        assert record.state == "failed", record.end_data()
        problem: dict[str, Any] = record.end_data()["problem"]
        return problem

    async def events(self, job: str) -> list[Event]:
        """All events of a job so far."""
        return [decode_event(entry.text) for entry in (await self.store.events(job, START)).entries]

    async def said(self, job: str) -> str:
        """The text of the channel `body` so far."""
        return "".join(event.data["text"] for event in await self.events(job) if event.type == "delta")


@pytest.fixture
async def calls(store: Store, app: SlowApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Calls]:
    """A worker that may call everything on 127.0.0.1, and `http://app`, whatever that is."""
    for name, value in {
        "OUTLAST_UPSTREAMS": f"{app.url},http://app:81,http://rebound.example:81",
        "OUTLAST_UPSTREAM_CONNECT_SECONDS": "0.5",
        "OUTLAST_MAX_UPSTREAM_BYTES": str(LIMIT_BYTES),
    }.items():
        monkeypatch.setenv(name, value)
    upstream.configured.cache_clear()
    folder = tmp_path / "blobs"
    folder.mkdir()
    blobs = Blobs.open(folder.as_uri())
    async with working(store, blobs, [http], concurrency=8):
        yield Calls(store, blobs)
    upstream.configured.cache_clear()


@asynccontextmanager
async def listed(monkeypatch: pytest.MonkeyPatch, url: str) -> AsyncIterator[None]:
    """The same worker with another upstream."""
    monkeypatch.setenv("OUTLAST_UPSTREAMS", url)
    upstream.configured.cache_clear()
    yield


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_the_result_is_the_upstreams_answer(calls: Calls, app: SlowApp) -> None:
    """Status, headers in order with repeated ones, and the body as the text that it was."""
    result = await calls.result(f"{app.url}/echo/a%2Fb?x=%20", method="POST", body="hé", headers={"X-Mine": "1"})

    assert (result["status"], result["url"]) == (200, f"{app.url}/echo/a%2Fb?x=%20")
    assert [value for name, value in result["headers"] if name == "set-cookie"] == ["a=1", "b=2"]
    assert result["size"] == len(result["text"].encode())
    assert result["body_url"] is None
    [seen] = app.seen
    assert (seen["method"], seen["path"]) == ("POST", "/echo/a%2Fb?x=%20")
    assert str(seen["body"]).encode("latin-1").decode() == "hé"


async def test_a_header_holds_nothing_that_can_not_be_passed_on(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters become spaces: whoever fetches the answer gets it, and not a broken connection."""
    answer = b"HTTP/1.1 200 OK\r\nX-From: a\x01b\x7fc\t\xc3\xa9\r\nContent-Length: 0\r\n\r\n"
    async with raw_server(answer) as url, listed(monkeypatch, url):
        result = await calls.result(url)

    assert ["x-from", "a b c\t\u00e9"] in result["headers"]


async def test_only_what_was_asked_for_is_sent(calls: Calls, app: SlowApp) -> None:
    """No header of ours but those that say how the connection works; none that concerns another connection."""
    headers = {"X-Mine": "1", "Connection": "close, X-Hop", "X-Hop": "1", "TE": "gzip", "Host": "evil", "Cookie": "a=b"}
    await calls.result(f"{app.url}/echo", headers=headers)

    sent = app.seen[0]["headers"]
    assert isinstance(sent, dict)
    assert sent == {
        "host": app.url.removeprefix("http://"),
        "x-mine": "1",
        "cookie": "a=b",
        "accept-encoding": "identity",
        "connection": "close",
    }


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that gives up a silent upstream soon."""
    monkeypatch.setenv("OUTLAST_UPSTREAM_IDLE_SECONDS", "0.3")


@pytest.mark.lease(0.6)
@pytest.mark.usefixtures("impatient")
async def test_an_upstream_is_waited_for_as_long_as_it_takes(calls: Calls, app: SlowApp, store: Store) -> None:
    """The lease is renewed many times, and the upstream is called once; only in its answer silence is limited."""
    job = await calls.submit(f"{app.url}/slow")
    await wait_until(lambda: app.waiting == 1)
    await asyncio.sleep(3 * store.lease_seconds)
    app.go.set()

    assert (await calls.end(job)).state == "succeeded"
    assert app.asked == 1


@pytest.mark.parametrize("status", [201, 204, 304, 404, 500, 503])
async def test_every_status_is_an_answer(calls: Calls, app: SlowApp, status: int) -> None:
    """The job succeeds: the upstream has answered, and what that means is the caller's to say."""
    result = await calls.result(f"{app.url}/status/{status}")

    assert result["status"] == status
    assert (result["text"] == "") == (status in {204, 304})


async def test_bytes_and_large_bodies_are_outputs(calls: Calls, app: SlowApp) -> None:
    """With the upstream's content type; what is large is streamed to the blob store."""
    for size in (10, 200_000):
        job = await calls.submit(f"{app.url}/bytes/{size}")
        result = (await calls.end(job)).end_data()["result"]
        assert (result["text"], result["body_url"]) == (None, f"/v1/jobs/{job}/outputs/body")
        assert result["size"] == size
        text = await calls.store.output(job, "body")
        assert text is not None
        assert decode_event(text).data["content_type"] == "image/png"
        assert await calls.blobs.get(f"jobs/{job}/outputs/1-body") == b"\x00\xff" * (size // 2)


async def test_a_file_is_the_requests_body(calls: Calls, app: SlowApp) -> None:
    """Bytes of any kind get there as they are, with their length."""
    await calls.result(f"{app.url}/echo", method="PUT", file=b"\x00\xff\n" * 1000)

    assert app.seen[0]["body"] == "\x00\xff\n" * 1000
    sent = app.seen[0]["headers"]
    assert isinstance(sent, dict)
    assert sent["content-length"] == "3000"


@pytest.mark.parametrize(
    ("kind", "first", "whole"),
    [
        ("sse", "data: é\n\n", "data: é\n\ndata: two\n\n"),
        ("ndjson", '{"n":1}\n', '{"n":1}\n{"n":2}\n'),
        ("text", "a", "ab"),
    ],
)
async def test_a_stream_is_relayed_as_it_comes(calls: Calls, app: SlowApp, kind: str, first: str, whole: str) -> None:
    """Listeners have the status, the headers and the first piece while the upstream still works; the result has all."""
    job = await calls.submit(f"{app.url}/stream/{kind}")

    async def heard() -> bool:
        return await calls.said(job) == first

    await wait_until(heard)
    responses = [event for event in await calls.events(job) if event.type == "http.response"]
    assert [event.data["status"] for event in responses] == [200]
    assert not (await calls.store.job(job)).terminal
    app.go.set()
    result = (await calls.end(job)).end_data()["result"]

    assert await calls.said(job) == whole
    assert result["text"] == whole


async def test_redirects_are_followed_where_they_stay(calls: Calls, app: SlowApp) -> None:
    """Within the origin: a POST becomes a GET where browsers do that, and stays one where the status says so."""
    there = await calls.result(f"{app.url}/redirect?to=/echo/there", method="POST", body="x")
    assert there["url"] == f"{app.url}/echo/there"
    assert (app.seen[-1]["method"], app.seen[-1]["body"]) == ("GET", "")

    await calls.result(f"{app.url}/redirect?status=307&to={app.url}/echo/there", method="POST", file=b"x" * 10)
    assert (app.seen[-1]["method"], app.seen[-1]["body"]) == ("POST", "x" * 10)


async def test_a_cancel_closes_the_upstream_call(calls: Calls, app: SlowApp) -> None:
    """The upstream hears at once that nobody waits any more."""
    job = await calls.submit(f"{app.url}/slow", method="POST")
    await wait_until(lambda: app.waiting == 1)
    await calls.store.cancel(job, "me", "enough")

    assert (await calls.end(job)).state == "cancelled"
    await wait_until(lambda: app.cancelled == 1)


# --- what is safe to repeat -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"headers": {"Idempotency-Key": "k"}}, {"idempotent": True}])
async def test_what_is_safe_is_tried_again(calls: Calls, app: SlowApp, how: dict[str, Any]) -> None:
    """By its method, by a key that the upstream gets too, or because the caller says so."""
    result = await calls.result(f"{app.url}/flaky", **how)

    assert result["text"] == '{"asked": 3}'
    if "headers" in how:
        assert {request["headers"]["idempotency-key"] for request in app.seen} == {"k"}  # type: ignore[index]


async def test_what_is_not_safe_is_never_sent_twice(calls: Calls, app: SlowApp) -> None:
    """A POST that may have got there fails with what happened, at once."""
    async with raw_server(b"") as url:
        with pytest.MonkeyPatch.context() as patch:
            async with listed(patch, f"{url},{app.url}"):
                problem = await calls.problem(url, method="POST")
                again = await calls.problem(f"{app.url}/flaky", idempotent=False)
    assert problem["code"] == again["code"] == "upstream_broke_off"
    assert app.asked == 1


@pytest.mark.lease(0.6)
async def test_a_post_whose_worker_died_is_not_sent_again(calls: Calls, app: SlowApp) -> None:
    """Whether it was done is not known, and the job says so; a GET is simply done again."""
    post = await calls.submit(f"{app.url}/slow", method="POST")
    get = await calls.submit(f"{app.url}/slow")
    await wait_until(lambda: app.waiting == 2)
    async with working(calls.store, calls.blobs, [http], concurrency=8) as other:
        for worker in [task for task in asyncio.all_tasks() if "attempt" in task.get_name()]:
            worker.cancel()
        ended = await calls.end(post)
        app.go.set()
        assert (await calls.end(get)).state == "succeeded"
        assert other.ready.is_set()

    problem = ended.end_data()["problem"]
    assert (problem["code"], problem["status"]) == ("upstream_unknown", 500)
    assert [request["method"] for request in app.seen].count("POST") == 1


# --- what fails -------------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "upstream_broke_off"),
        (b"HTTP/1.1 200 OK\r\nContent-Ty", "upstream_broke_off"),
        (HEAD + b"Content-Length: 10\r\n\r\nabc", "upstream_wrong_length"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "upstream_broke_off"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", "upstream_garbage"),
        (b"\x16\x03\x01 SSH-2.0 this is not HTTP\r\n\r\n", "upstream_garbage"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "upstream_garbage"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "upstream_garbage"),
        (b"HTTP/1.1 099 Less\r\nContent-Length: 0\r\n\r\n", "upstream_garbage"),
        (b"HTTP/1.1 600 More\r\nContent-Length: 0\r\n\r\n", "upstream_garbage"),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "upstream_garbage"),
        (HEAD + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n", "upstream_garbage"),
        (HEAD + b"Content-Length: 1000000\r\n\r\n", "upstream_too_large"),
        (HEAD + b"\r\n" + b"x" * (LIMIT_BYTES + 1), "upstream_too_large"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n", "upstream_redirected_private"),
        (b"HTTP/1.1 302 Found\r\nLocation: //169.254.169.254/latest\r\n\r\n", "upstream_redirected_private"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[::ffff:10.0.0.1]/\r\n\r\n", "upstream_redirected_private"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\n\r\n", "upstream_redirected_private"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://db.internal:5432/\r\n\r\n", "upstream_redirected_private"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://93.184.216.34/\r\n\r\n", "upstream_redirected"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://rebound.example/\r\n\r\n", "upstream_redirected"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://app:81/\r\n\r\n", "upstream_redirected"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "upstream_redirected"),
        (b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", "upstream_redirected"),
    ],
)
async def test_each_way_to_break_has_its_own_word(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, answer: bytes, code: str
) -> None:
    """Nothing hangs, nothing is taken for an answer, and nothing of half a body is kept."""
    async with raw_server(answer) as url, listed(monkeypatch, f"{url},http://app:81"):
        problem = await calls.problem(url, retries=0)

    assert problem["code"] == code
    assert problem["status"] == 500
    assert problem["detail"].endswith(".") or code == "upstream_garbage"


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_falls_silent_is_given_up(calls: Calls, app: SlowApp) -> None:
    """Without a closed connection nobody else would say so; what is safe to repeat is repeated."""
    kept = await calls.submit(f"{app.url}/stream/sse", method="POST")
    repeated = await calls.submit(f"{app.url}/stream/sse")

    assert (await calls.end(kept)).end_data()["problem"]["code"] == "upstream_silent"
    assert await calls.said(kept) == "data: é\n\n"

    async def given_up() -> list[str]:
        events = await calls.events(repeated)
        return [event.data["problem"]["code"] for event in events if event.type == "retrying"]

    assert (await wait_until(given_up))[0] == "upstream_silent"
    app.go.set()
    assert (await calls.end(repeated)).state == "succeeded"


async def test_a_process_that_stood_still_blames_no_upstream_for_it() -> None:
    """A machine that slept finds what came meanwhile and the timer that is over at the same moment."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    body = aiohttp.StreamReader(protocol, 1024, loop=loop)
    silence = upstream._Silence(body, 0.05)
    waiting = asyncio.create_task(silence.next())
    await asyncio.sleep(0)

    loop.call_later(0.02, body.feed_data, b"what came")
    loop.call_soon(time.sleep, 0.1)

    assert await waiting == b"what came"
    body.feed_eof()
    assert await silence.next() == b""
    silence.end()


async def test_an_upstream_that_is_down_is_told_from_one_that_does_not_answer(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port where nobody listens, a name that nobody knows, a queue of connections that is full, a TLS port."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as other:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        other.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{other.getsockname()[1]}"
        async with (
            raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n", at_once=True) as plain,
            listed(
                monkeypatch, f"http://127.0.0.1:{port},{down},http://nobody.invalid,{plain.replace('http', 'https')}"
            ),
        ):
            assert (await calls.problem(f"http://127.0.0.1:{port}", retries=0))["code"] == "upstream_connect_timeout"
            assert (await calls.problem(down, retries=0))["code"] == "upstream_unreachable"
            assert (await calls.problem("http://nobody.invalid", retries=0))["code"] == "upstream_unreachable"
            assert (await calls.problem(plain.replace("http", "https"), retries=0))["code"] == "upstream_tls"
        for one in waiting:
            one.close()


async def test_an_upstream_that_comes_up_meanwhile_is_reached(calls: Calls, app: SlowApp) -> None:
    """Also by a POST: what never got there is safe to send; the log says why it takes longer."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        async with listed(patch, f"http://127.0.0.1:{port}"):
            job = await calls.submit(f"http://127.0.0.1:{port}/", method="POST", retries=4)

            async def complained() -> bool:
                return any(event.type == "log" for event in await calls.events(job))

            await wait_until(complained)
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", port)
            record = await calls.end(job)
            server.close()
    assert record.state == "succeeded", record.end_data()
    assert record.attempt == 1


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://elsewhere.example/", "upstream_not_allowed"),
        ("file:///etc/passwd", "upstream_not_http"),
        ("ftp://app/x", "upstream_not_http"),
        ("http://127.1/", "upstream_bad_url"),
    ],
)
async def test_what_is_not_listed_is_never_called(calls: Calls, url: str, code: str) -> None:
    """The worker asks again, whoever let the job through."""
    problem = await calls.problem(url)

    assert (problem["code"], problem["status"]) == (code, 422)


@pytest.mark.parametrize(
    ("host", "answers", "code"),
    [
        ("rebound.example", ["127.0.0.1"], "upstream_private"),
        ("rebound.example", ["93.184.216.34", "10.0.0.1"], "upstream_private"),
        ("rebound.example", ["::ffff:10.0.0.1"], "upstream_private"),
        ("app", ["169.254.169.254"], "upstream_private"),
        ("app", ["127.0.0.1"], "upstream_unreachable"),
    ],
)
async def test_a_name_is_judged_by_all_that_it_stands_for_when_it_is_connected_to(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, host: str, answers: list[str], code: str
) -> None:
    """A public name that leads inside is not connected to, though another answer is public; a local one may."""
    asked: list[str] = []

    async def resolve(self: object, name: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        asked.append(name)
        return [
            {"hostname": name, "host": one, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for one in answers
        ]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    problem = await calls.problem(f"http://{host}:81/", retries=0)

    assert problem["code"] == code
    assert asked == [host]


async def test_a_name_is_judged_again_after_a_redirect(
    calls: Calls, app: SlowApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was public at the first connection, and leads inside at the second, is not connected to."""
    port = int(app.url.rpartition(":")[2])
    answers = ["127.0.0.1", "169.254.169.254"]

    async def resolve(self: object, name: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        host = answers.pop(0)
        return [{"hostname": name, "host": host, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    async with listed(monkeypatch, f"http://app:{port}"):
        problem = await calls.problem(f"http://app:{port}/redirect?to=/echo", retries=0)

    assert problem["code"] == "upstream_private"
    assert [seen["path"] for seen in app.seen] == ["/redirect?to=/echo"]


async def test_a_post_that_was_redirected_is_not_sent_again(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream has done it and says where its answer is; that nobody answers there does not undo it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        server.close()
        writer.write(b"HTTP/1.1 303 See Other\r\nLocation: /done\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with listed(monkeypatch, url):
        job = await calls.submit(url, method="POST")
        record = await calls.end(job)

    assert record.end_data()["problem"]["code"] == "upstream_unreachable"
    # Another try would have been announced.
    assert [event.type for event in await calls.events(job)] == ["queued", "started", "failed"]
