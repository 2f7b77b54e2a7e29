"""Scripts with httpx and requests whose slow route goes through the gateway: one line is another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import requests

from examples.requests_adapter import OutlastAdapter
from gateway.client.httpx import AsyncOutlastTransport, JobError, OutlastTransport
from gateway.store import Store
from processors import upstream
from processors.http import http
from tests.edge_origin import edge_for
from tests.faults import FaultProxy, wait_until
from tests.serving import Gateway, gateway_for
from tests.slow_app import SlowApp
from tests.worker_jobs import working


@pytest.fixture
async def gateway(
    store: Store, app: SlowApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway and a worker that may call the application, with white space almost at once."""
    monkeypatch.setenv("OUTLAST_UPSTREAMS", app.url)
    upstream.configured.cache_clear()
    quick = {"run_quiet_seconds": 0.1, "heartbeat_seconds": 0.2}
    async with (
        gateway_for(store, tmp_path / "blobs", upstreams=(app.url,), **quick) as gateway,
        working(store, gateway.blobs, [http], concurrency=8),
    ):
        yield gateway
    upstream.configured.cache_clear()


Call = Callable[..., tuple[int, bytes, str | None]]


@contextmanager
def caller(library: str, url: str) -> Iterator[Call]:
    """A function that calls a route with a library: its status, its body, and the header X-From."""
    if library == "requests":
        with requests.Session() as session:
            session.mount("http://", OutlastAdapter(url))

            def call(method: str, to: str, content: bytes = b"", **headers: str) -> tuple[int, bytes, str | None]:
                answer = session.request(method, to, data=content, headers=headers)
                return answer.status_code, answer.content, answer.headers.get("X-From")

            yield call
        return
    with httpx.Client(transport=OutlastTransport(url)) as client:

        def call_httpx(method: str, to: str, content: bytes = b"", **headers: str) -> tuple[int, bytes, str | None]:
            answer = client.request(method, to, content=content, headers=headers)
            return answer.status_code, answer.content, answer.headers.get("X-From")

        yield call_httpx


def client_of(url: str, patience_seconds: float = 60) -> httpx.AsyncClient:
    """An async client of httpx whose calls go through a gateway."""
    return httpx.AsyncClient(transport=AsyncOutlastTransport(url, patience_seconds=patience_seconds))


LIBRARIES = pytest.mark.parametrize("library", ["httpx", "requests"])


@LIBRARIES
@pytest.mark.parametrize("body", ["é".encode() * 10, b"\xff\x00" * 50_000], ids=["text", "bytes"])
async def test_a_request_arrives_as_it_was(gateway: Gateway, app: SlowApp, library: str, body: bytes) -> None:
    """Method, headers and body; the status, a header and the body of the answer come back."""
    app.go.set()

    with caller(library, gateway.url) as call:
        status, content, header = await asyncio.to_thread(
            call, "PUT", f"{app.url}/slow?status=418", body, **{"X-Mine": "1", "Content-Type": "text/plain"}
        )

    assert (status, header) == (418, "slow")
    assert b'"slow": true' in content
    [seen] = app.seen
    assert (seen["method"], str(seen["body"]).encode("latin-1")) == ("PUT", body)
    assert isinstance(headers := seen["headers"], dict)
    assert (headers["x-mine"], headers["content-type"]) == ("1", "text/plain")


@LIBRARIES
async def test_a_large_answer_comes_whole(gateway: Gateway, app: SlowApp, library: str) -> None:
    """It is no part of the held answer; it is fetched."""
    with caller(library, gateway.url) as call:
        status, content, _ = await asyncio.to_thread(call, "GET", f"{app.url}/bytes/300000")

    assert (status, content) == (200, b"\x00\xff" * 150_000)


@LIBRARIES
async def test_cuts_on_the_way_call_the_route_once(gateway: Gateway, app: SlowApp, library: str) -> None:
    """Three resets while the route is slow."""
    async with FaultProxy(gateway.url) as proxy:
        with caller(library, proxy.url) as call:
            calling = asyncio.create_task(asyncio.to_thread(call, "POST", f"{app.url}/slow", b"once"))
            for _ in range(3):
                await wait_until(lambda: app.waiting == 1 and proxy.connections == 1, what="a held request")
                proxy.cut()
                await wait_until(lambda: proxy.connections == 0, what="the cut")
            await wait_until(lambda: proxy.connections == 1, what="the last try")
            app.go.set()
            status, content, _ = await calling

    assert (status, b"once" in content, app.asked) == (200, True, 1)


@LIBRARIES
async def test_what_may_not_be_called_is_the_library_s_error(gateway: Gateway, library: str) -> None:
    """With the gateway's code: no answer that could be taken for the route's."""
    with caller(library, gateway.url) as call, pytest.raises(Exception, match=r"127\.0\.0\.1:1") as refused:
        await asyncio.to_thread(call, "GET", "http://127.0.0.1:1/")

    assert isinstance(refused.value, (JobError, requests.ConnectionError))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_download_that_is_cut_goes_on_where_it_stopped(
    gateway: Gateway, app: SlowApp, asynchronous: bool
) -> None:
    """Cut twice by an edge, each byte comes once."""
    url = f"{app.url}/bytes/300000"
    async with edge_for(gateway.url, "direct") as edge:
        edge.fault("drop_after_bytes", times=2, method="GET", path="/v1/jobs/", bytes=100_000)
        if asynchronous:
            async with client_of(edge.url) as client:
                content = (await client.get(url)).content
        else:
            with caller("httpx", edge.url) as call:
                _, content, _ = await asyncio.to_thread(call, "GET", url)
        parts = [record for record in edge.requests if record.method == "GET"]

    assert content == b"\x00\xff" * 150_000
    assert [(part.status, part.passed_bytes) for part in parts] == [(200, 100_000), (206, 100_000), (206, 100_000)]
    assert app.asked == 1


async def test_the_async_client_does_the_same(gateway: Gateway, app: SlowApp) -> None:
    """Through a cut; JSON and the address of the route are there as always."""
    async with (
        FaultProxy(gateway.url) as proxy,
        httpx.AsyncClient(transport=AsyncOutlastTransport(proxy.url)) as client,
    ):
        calling = asyncio.create_task(client.post(f"{app.url}/slow", json={"a": 1}))
        await wait_until(lambda: app.waiting == 1, what="the call")
        proxy.cut()
        await wait_until(lambda: proxy.connections == 0, what="the cut")
        app.go.set()
        answer = await calling

    assert answer.json() == {"slow": True, "body": '{"a":1}'}
    assert str(answer.url) == f"{app.url}/slow"
    assert app.asked == 1


async def test_a_key_finds_the_call_again(gateway: Gateway, app: SlowApp) -> None:
    """A script that was started again gets the answer of the call that it made before."""
    app.go.set()
    async with client_of(gateway.url) as client:
        key = {"idempotency_key": "report-2026"}
        answers = [await client.post(f"{app.url}/slow", content=b"x", extensions=key) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert app.asked == 1


async def test_a_gateway_that_is_away_is_an_error_of_the_connection(app: SlowApp) -> None:
    """After the patience, as httpx's own class."""
    async with client_of("http://127.0.0.1:1", patience_seconds=0.2) as client:
        with pytest.raises(httpx.ConnectError, match="can't be reached"):
            await client.get(f"{app.url}/slow")
