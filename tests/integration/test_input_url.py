"""`input_url`: a file by its URL, checked by the gateway, fetched by the worker, under the same guard as all calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store import Store
from processors import Context, SyncContext, pipeline, processor, step, upstream
from tests.serving import Gateway, gateway_for
from tests.slow_app import SlowApp
from tests.worker_jobs import working


@processor("sizes", files="required", content_types=["image/*", "application/pdf"], max_attempts=2)
async def sizes(ctx: Context) -> list[dict[str, Any]]:
    """Tell what came along."""
    return [{"name": one.name, "type": one.content_type, "bytes": len(await one.read())} for one in ctx.files]


@processor("thread-sizes", files="optional")
def thread_sizes(ctx: SyncContext) -> list[int]:
    """The same in a thread."""
    return [len(one.read()) for one in ctx.files]


IN_A_STEP = pipeline("in-a-step", step(sizes), files="required")


@pytest.fixture
async def gateway(
    store: Store, app: SlowApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway and a worker that may call this server."""
    monkeypatch.setenv("OUTLAST_UPSTREAMS", app.url)
    monkeypatch.setenv("OUTLAST_MAX_UPSTREAM_BYTES", "10000")
    upstream.configured.cache_clear()
    async with (
        gateway_for(store, tmp_path / "blobs", upstreams=app.url) as gateway,
        working(store, gateway.blobs, (sizes, thread_sizes, IN_A_STEP), concurrency=2),
    ):
        yield gateway
    upstream.configured.cache_clear()


async def test_the_file_behind_a_url_is_the_jobs(gateway: Gateway, app: SlowApp) -> None:
    """With its name and its type, for a coroutine, a thread and a step, and behind a file that was sent."""
    url = f"{app.url}/bytes/1000"
    for kind in ("sizes", "in-a-step"):
        answer = await gateway.post(f"/v1/kinds/{kind}/run", json={"input_url": url})
        assert answer.json()["result"] == [{"name": "1000", "type": "image/png", "bytes": 1000}]
    threaded = await gateway.post("/v1/kinds/thread-sizes/run", json={"input_url": url})
    assert threaded.json()["result"] == [1000]
    both = await gateway.post(
        f'/v1/kinds/thread-sizes/run?options={{"input_url":"{url}"}}', data=b"12", headers={"Content-Type": "image/png"}
    )
    assert both.json()["result"] == [2, 1000]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/status/404", "input_url_failed"),
        ("/echo", "unsupported_type"),
        ("/bytes/20000", "upstream_too_large"),
        ("/redirect?to=http://10.0.0.1/", "upstream_redirected_private"),
    ],
)
async def test_a_file_that_cannot_be_had_fails_the_job(gateway: Gateway, app: SlowApp, path: str, code: str) -> None:
    """With what happened, and without another try."""
    answer = await gateway.post("/v1/kinds/sizes/run", json={"input_url": app.url + path})

    assert (answer.status, answer.json()["error"]["code"]) == (422, code)
    assert app.asked == 1


@pytest.mark.usefixtures("early_looks")
async def test_a_server_that_is_busy_is_asked_again(gateway: Gateway, app: SlowApp) -> None:
    """503 may pass; the kind's own limit of attempts holds."""
    answer = await gateway.post("/v1/kinds/sizes/run", json={"input_url": f"{app.url}/status/503"})

    assert answer.json()["error"]["cause"] == "input_url_failed"
    assert app.asked == 2


@pytest.mark.parametrize(
    ("kind", "url", "status"),
    [
        ("sizes", "http://elsewhere.example/a.pdf", 422),
        ("sizes", "file:///etc/passwd", 422),
        ("sizes", "http://169.254.169.254/latest", 422),
        ("echo", "{app}/bytes/10", 415),
    ],
)
async def test_what_may_not_be_fetched_is_refused_at_the_submit(
    gateway: Gateway, app: SlowApp, kind: str, url: str, status: int
) -> None:
    """No job is made, nobody is called, and the field is named."""
    answer = await gateway.post(f"/v1/kinds/{kind}/jobs", json={"input_url": url.format(app=app.url)})

    assert answer.status == status
    if status == 422:
        assert answer.json()["errors"][0]["field"] == "input_url"
    assert app.asked == 0
    assert (await gateway.get("/v1/jobs")).json()["jobs"] == []
