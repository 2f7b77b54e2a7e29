"""One POST, one JSON at the end: what is sent when, and that clients that know nothing of it read it unchanged."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.handlers.context import HUB, STREAMS
from gateway.protocol import CloseCode, State
from gateway.store import JobRecord, Store
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.jobs import begin, end, event
from tests.processes import program
from tests.serving import Answer, Gateway, gateway_for

RUN = "/v1/kinds/echo/run"


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that is quiet for long: what ends at once is answered as it is."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


@pytest.fixture
async def hasty(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that sends white space almost at once, and often."""
    async with gateway_for(store, tmp_path / "hasty", run_quiet_seconds=0.1, heartbeat_seconds=0.2) as gateway:
        yield gateway


async def queued(store: Store) -> None:
    """Wait for a job in the queue."""
    await wait_until(lambda: _waiting(store), what="a job in the queue")


async def _waiting(store: Store) -> int:
    return (await store.depths(["echo"]))["echo"][0]


async def end_next(store: Store, type_: str = "succeeded", data: dict[str, Any] | None = None) -> JobRecord:
    """End the next job of the kind `echo`, once there is one."""
    await queued(store)
    return await end(store, await begin(store, "echo"), batch=1, type_=type_, data=data)


async def run_and_end(gateway: Gateway, type_: str, data: dict[str, Any], **options: Any) -> Answer:
    """POST, and end the job that it makes."""
    running = asyncio.create_task(gateway.post(RUN, **{"json": {}} | options))
    await end_next(gateway.store, type_, data)
    return await running


class Line:
    """A POST on a connection of its own, read as it comes; times are those of the event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = b""

    @classmethod
    async def open(cls, port: int, headers: str = "", *, version: str = "1.1") -> Line:
        """Send the request; nothing is read yet."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {RUN} HTTP/{version}\r\nHost: 127.0.0.1\r\n{headers}Content-Length: 0\r\n\r\n".encode())
        return cls(reader, writer)

    async def read_head(self) -> str:
        """The status line and the headers."""
        self.head = await self.reader.readuntil(b"\r\n\r\n")
        return self.head.decode()

    async def read_chunk(self) -> bytes:
        """One chunk; empty at the end."""
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def read_body(self) -> bytes:
        """All chunks."""
        body = b""
        while chunk := await self.read_chunk():
            body += chunk
        return body


# --- before the first byte ------------------------------------------------------------------------------------------


async def test_a_job_that_ends_soon_is_answered_as_any_json(gateway: Gateway) -> None:
    """No white space, a length, and the result where a client looks for it; no trace of an error."""
    answer = await run_and_end(gateway, "succeeded", {"result": {"text": "done"}})

    document = answer.json()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert answer.body.startswith(b'{"id":')
    assert (document["state"], document["result"]) == ("succeeded", {"text": "done"})
    assert "error" not in document
    assert answer.headers["X-Job-Id"] == document["id"]
    assert answer.headers["Location"] == f"/v1/jobs/{document['id']}"


@pytest.mark.parametrize(
    ("type_", "data", "status", "code"),
    [
        ("failed", {"problem": {"code": "no_such_page", "detail": "x", "pages": 3}}, 422, "no_such_page"),
        ("failed", {"problem": {"code": "retries_exhausted", "detail": "x", "cause": "y"}}, 500, "retries_exhausted"),
        ("cancelled", {"reason": "not wanted", "by": "me"}, 422, "job_cancelled"),
    ],
)
async def test_a_job_that_fails_soon_has_its_true_status(
    gateway: Gateway, type_: str, data: dict[str, Any], status: int, code: str
) -> None:
    """What the input is to blame for is 422, what it isn't is 500; `error` says why, with the problem's own members."""
    answer = await run_and_end(gateway, type_, data)

    error = answer.json()["error"]
    assert (answer.status, error["status"], error["code"]) == (status, status, code)
    assert "result" not in answer.json()
    assert (data.get("problem", {}).keys() - {"status"}) <= error.keys()


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/v1/kinds/nope/run", {"json": {}}, 404, "unknown_kind"),
        ("/v1/kinds/form/run", {"json": {"input": {}}}, 422, "invalid_input"),
        (RUN, {"json": {"nope": 1}}, 422, "invalid_input"),
        (RUN, {"data": b"{", "headers": {"Content-Type": "application/json"}}, 400, "bad_json"),
        (RUN, {"data": b"x", "headers": {"Content-Type": "image/png"}}, 415, "file_not_allowed"),
        (RUN, {"json": {}, "headers": {"Idempotency-Key": ""}}, 400, "bad_idempotency_key"),
        (RUN, {"json": {}, "headers": {"Last-Event-ID": "3"}}, 409, "resubmitted_stream"),
    ],
)
async def test_everything_is_checked_before_the_first_byte(
    hasty: Gateway, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """A request that is wrong is a problem document with its status, as on any route; no job is made."""
    answer = await hasty.post(path, **options)

    assert (answer.status, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (await hasty.get("/v1/jobs")).json()["jobs"] == []


# --- after it -------------------------------------------------------------------------------------------------------


async def test_white_space_comes_after_a_while_and_then_the_json(hasty: Gateway) -> None:
    """The head names the job before there is a result; one space each time, the JSON in one piece at the end."""
    line = await Line.open(hasty.server.port)
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = await line.read_head()
        spaces = [await line.read_chunk() for _ in range(3)]
        record = await end_next(hasty.store, "succeeded", {"result": [1]})
        body = await line.read_body()
    line.writer.transport.abort()

    assert head.startswith("HTTP/1.1 200 ")
    assert f"X-Job-Id: {record.id}\r\n" in head
    assert f"Location: /v1/jobs/{record.id}\r\n" in head
    assert "Content-Type: application/json\r\n" in head
    assert "Cache-Control: no-cache, no-store, no-transform\r\n" in head
    assert "Content-Length" not in head
    assert spaces == [b" "] * 3
    assert json.loads(body)["result"] == [1]


async def test_nothing_is_sent_while_it_is_quiet(store: Store, tmp_path: Path) -> None:
    """Strict clients refuse a body that begins with a space: not one byte before `run_quiet_seconds`."""
    async with gateway_for(store, tmp_path / "b", run_quiet_seconds=1, heartbeat_seconds=0.1) as gateway:
        loop = asyncio.get_running_loop()
        began = loop.time()
        line = await Line.open(gateway.server.port)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await line.read_head()
        line.writer.transport.abort()

    assert loop.time() - began >= 1


@pytest.mark.parametrize(
    ("type_", "data", "code"),
    [
        ("failed", {"problem": {"code": "no_such_page", "detail": "x"}}, "no_such_page"),
        ("cancelled", {"reason": "not wanted", "by": "me"}, "job_cancelled"),
    ],
)
async def test_a_late_failure_cannot_be_taken_for_a_result(
    hasty: Gateway, type_: str, data: dict[str, Any], code: str
) -> None:
    """The status is 200 by then; the JSON has `error`, with the status that it would have been, and no `result`."""
    line = await Line.open(hasty.server.port)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await line.read_head()).startswith("HTTP/1.1 200 ")
        await end_next(hasty.store, type_, data)
        document = json.loads(await line.read_body())
    line.writer.transport.abort()

    assert (document["error"]["code"], document["error"]["status"]) == (code, 422)
    assert "result" not in document


async def test_events_in_between_do_not_hold_up_the_white_space(hasty: Gateway) -> None:
    """A job that reports all the time says nothing to this client; it still gets its heartbeats, and only these."""
    line = await Line.open(hasty.server.port)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await line.read_head()
        await queued(hasty.store)
        lease = await begin(hasty.store, "echo")
        batch, spaces = 0, asyncio.create_task(_read_chunks(line, 3))
        while not spaces.done() or batch < 10:
            batch += 1
            await hasty.store.append(lease, batch, [event("delta", {"channel": "text", "text": "a"})])
            await asyncio.sleep(0.02)
        await end(hasty.store, lease, batch=batch + 1, data={"result": 1})
        body = await line.read_body()
    line.writer.transport.abort()

    assert await spaces == [b" "] * 3
    assert json.loads(body)["result"] == 1


async def _read_chunks(line: Line, count: int) -> list[bytes]:
    return [await line.read_chunk() for _ in range(count)]


async def test_an_old_client_without_chunks_is_served_too(hasty: Gateway) -> None:
    """HTTP/1.0: the body ends with the connection."""
    line = await Line.open(hasty.server.port, version="1.0")
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = await line.read_head()
        await end_next(hasty.store, "succeeded", {"result": 7})
        body = await line.reader.read()
    line.writer.transport.abort()

    assert "Transfer-Encoding" not in head
    assert body.startswith(b" {")
    assert json.loads(body)["result"] == 7


@pytest.mark.parametrize("quiet_seconds", [30, 0.1])
async def test_a_result_of_any_size_stands_in_the_json(store: Store, tmp_path: Path, quiet_seconds: float) -> None:
    """A blob is joined into the document as it is read, early with its length and late without."""
    text = "x" * 3_000_000
    late = quiet_seconds < 1
    async with gateway_for(store, tmp_path / "b", run_quiet_seconds=quiet_seconds) as gateway:
        running = asyncio.create_task(gateway.post(RUN, json={}))
        await queued(store)
        [listener] = await wait_until(lambda: list(gateway.app[HUB].listeners))
        await wait_until(lambda: not late or not listener.silent)
        lease = await begin(store, "echo")
        blob = f"jobs/{lease.job}/result-1"
        await gateway.blobs.put(blob, json.dumps({"text": text}).encode(), max_bytes=None)
        done = event("succeeded", {"result_url": f"/v1/jobs/{lease.job}/result"})
        await store.append(lease, 1, [done], result_blob=blob)
        await store.leave(lease, await store.job(lease.job))
        answer = await running

    assert answer.json()["result"] == {"text": text}
    assert ("Content-Length" in answer.headers) == (not late)


# --- once, and only once --------------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_job_however_often_it_is_sent(gateway: Gateway) -> None:
    """At once, later, and after the end: one job, one result."""
    key = {"Idempotency-Key": "one"}
    both = [asyncio.create_task(gateway.post(RUN, json={"input": {"a": 1}}, headers=key)) for _ in range(2)]
    await end_next(gateway.store, "succeeded", {"result": 1})
    answers = [await one for one in both] + [await gateway.post(RUN, json={"input": {"a": 1}}, headers=key)]
    again = await gateway.post(RUN, headers=key | {"Last-Event-ID": "1-1"})
    other = await gateway.post(RUN, json={"input": {"a": 2}}, headers=key)

    assert len({answer.headers["X-Job-Id"] for answer in [*answers, again]}) == 1
    assert all(answer.json()["result"] == 1 for answer in [*answers, again])
    assert answers[-1].headers["Idempotency-Replayed"] == "true"
    assert (other.status, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_client_that_leaves_frees_its_place_and_leaves_the_job(hasty: Gateway) -> None:
    """Before the first byte or after: nobody has cancelled anything, and the same key finds the result."""
    for name, speaks in (("silent", False), ("speaking", True)):
        line = await Line.open(hasty.server.port, f"Idempotency-Key: {name}\r\n")
        await wait_until(lambda: len(hasty.app[STREAMS]) == 1 and hasty.app[HUB].listeners)
        if speaks:
            await line.read_head()
        line.writer.transport.abort()
        await wait_until(lambda: len(hasty.app[STREAMS]) == 0 and not hasty.app[HUB].listeners)
        record = await end_next(hasty.store, "succeeded", {"result": name})
        assert record.state is State.SUCCEEDED
        answer = await hasty.post(RUN, headers={"Idempotency-Key": name})
        assert answer.json()["result"] == name


@pytest.mark.parametrize("late", [False, True])
async def test_a_gateway_that_stops_says_where_the_job_is(store: Store, tmp_path: Path, late: bool) -> None:
    """A whole JSON with `error` and the job's address, never half an answer; early the status says 503."""
    quiet = 0.1 if late else 30
    async with gateway_for(store, tmp_path / "b", run_quiet_seconds=quiet) as gateway:
        running = asyncio.create_task(gateway.post(RUN, json={}))
        await queued(store)
        [listener] = await wait_until(lambda: list(gateway.app[HUB].listeners))
        if late:
            await wait_until(lambda: not listener.silent)
        await gateway.server.drain()
        answer = await running

        document = answer.json()
        assert answer.status == (200 if late else 503)
        assert (document["error"]["code"], document["error"]["status"]) == ("draining", 503)
        assert document["terminal"] is False
        assert ("Retry-After" in answer.headers) == (not late)
        assert (await store.job(document["id"])).state is State.QUEUED


async def test_a_wait_that_broke_off_for_a_job_that_is_there_says_so(store: Store, gateway: Gateway) -> None:
    """As where a failover lost the job for a moment: the listener hears nothing any more, and must not wait on."""
    running = asyncio.create_task(gateway.post(RUN, json={}))
    await queued(store)
    [listener] = await wait_until(lambda: list(gateway.app[HUB].listeners))

    listener.close(CloseCode.MAX_AGE)
    answer = await running

    assert (answer.status, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert f"/v1/jobs/{answer.json()['id']}?wait" in answer.json()["error"]["detail"]


# --- whatever else happens ------------------------------------------------------------------------------------------


async def test_redis_may_be_away_for_as_long_as_it_likes(store: Store, prefix: str, tmp_path: Path) -> None:
    """White space goes on meanwhile, and the answer comes when Redis is back."""
    async with FaultProxy(store._url) as proxy:
        behind = await Store.connect(proxy.url, prefix=prefix, lease_seconds=0.6)
        try:
            async with gateway_for(behind, tmp_path / "b", run_quiet_seconds=0.1, heartbeat_seconds=0.2) as gateway:
                line = await Line.open(gateway.server.port)
                async with asyncio.timeout(30):
                    await line.read_head()
                    proxy.stall()
                    await end_next(store, "succeeded", {"result": "late"})
                    assert [await line.read_chunk() for _ in range(6)] == [b" "] * 6
                    proxy.resume()
                    body = await line.read_body()
                line.writer.transport.abort()
        finally:
            proxy.resume()
            await behind.close()

    assert json.loads(body)["result"] == "late"


# --- clients that know nothing of it --------------------------------------------------------------------------------

_PYTHON = {
    "requests": """
        import requests
        answer = requests.post(url, json={"input": {"a": 1}})
        status, document = answer.status_code, answer.json()
    """,
    "urllib": """
        import urllib.request
        body = json.dumps({"input": {"a": 1}}).encode()
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            status, document = answer.status, json.load(answer)
    """,
    "httpx": """
        import httpx
        answer = httpx.post(url, json={"input": {"a": 1}}, timeout=30)
        status, document = answer.status_code, answer.json()
    """,
    "aiohttp": """
        import aiohttp, asyncio
        async def main():
            async with aiohttp.ClientSession() as session:
                async with session.post(url, json={"input": {"a": 1}}) as answer:
                    return answer.status, await answer.json()
        status, document = asyncio.run(main())
    """,
}
_NODE = """
const answer = await fetch(process.argv[1], {
  method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({input: {a: 1}}),
})
const document = await answer.json()
console.log(JSON.stringify([answer.status, document.result, document.error?.code ?? null]))
"""
_CURL = (
    "curl -sS {url} -H 'Content-Type: application/json' -d '{{\"input\":{{\"a\":1}}}}'"
    " | jq -c '[200, .result, .error.code]'"
)


def command(client: str, url: str) -> list[str]:
    """A program that POSTs and prints the status, the result and the error's code as one JSON array."""
    if client in _PYTHON:
        lines = [line.strip("\n") for line in _PYTHON[client].split("\n")]
        body = "\n".join(line[8:] for line in lines)
        program = f"import json, sys\nurl = sys.argv[1]\n{body}\n" + (
            "print(json.dumps([status, document.get('result'), document.get('error', {}).get('code')]))"
        )
        return [sys.executable, "-c", program, url]
    if client == "fetch":
        return ["node", "--input-type=module", "-e", _NODE, url]
    return ["sh", "-c", _CURL.format(url=shlex.quote(url))]


@pytest.mark.parametrize("client", [*_PYTHON, "fetch", "curl"])
@pytest.mark.parametrize("ending", ["succeeded", "failed"])
async def test_an_unchanged_client_reads_the_answer(hasty: Gateway, client: str, ending: str) -> None:
    """The program as anybody writes it, in a process of its own: white space before the JSON is nothing to it."""
    data = {"result": {"text": "done"}} if ending == "succeeded" else {"problem": {"code": "nope", "detail": "x"}}
    async with program(*command(client, hasty.url + RUN)) as process, asyncio.timeout(PATIENCE_SECONDS):
        [listener] = await wait_until(lambda: list(hasty.app[HUB].listeners))
        await wait_until(lambda: not listener.silent)
        await end_next(hasty.store, ending, data)
        printed, said = await process.communicate()

    assert process.returncode == 0, said.decode()
    assert json.loads(printed) == ([200, {"text": "done"}, None] if ending == "succeeded" else [200, None, "nope"])
