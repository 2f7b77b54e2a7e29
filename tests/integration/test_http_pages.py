"""What is not the API itself: the page, its modules, the docs, health, readiness, metrics, kinds; and every problem."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from gateway.app import ROUTES
from gateway.blobs import Blobs
from gateway.errors import Unavailable
from gateway.handlers.context import READINESS
from gateway.handlers.problem_codes import PROBLEM_CODES
from gateway.store import Store
from tests.faults import FaultProxy
from tests.serving import AS_ME, KEYS, Gateway, gateway_for


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


# --- pages ----------------------------------------------------------------------------------------------------------


async def test_the_page_loads_only_what_the_gateway_serves(gateway: Gateway) -> None:
    """Every address in it and in its modules' imports answers 200 with a type that a browser takes as such."""
    page = await gateway.get("/")
    seen = set(re.findall(r'(?:src|href)="(/client/[^"]+)"', page.body.decode()))
    todo = list(seen)
    while todo:
        address = todo.pop()
        answer = await gateway.get(address)
        assert answer.status == 200, address
        if address.endswith(".js"):
            assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
            for name in re.findall(r'(?:from|import) "\./([^"]+)"', answer.body.decode()):
                if f"/client/{name}" not in seen:
                    seen.add(f"/client/{name}")
                    todo.append(f"/client/{name}")

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert len(seen) > 10
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


async def test_a_module_is_asked_for_again_and_not_sent_again(gateway: Gateway) -> None:
    """After an upgrade all modules must be of one release; unchanged ones cost 304."""
    first = await gateway.get("/client/index.js")

    again = await gateway.get("/client/index.js", headers={"If-None-Match": first.headers["ETag"]})

    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["..%2fpyproject.toml", "package.json", ".npmrc", "tests", "%2e%2e%2fREADME.md", "no.js", "%00.js", "index.html"],
)
async def test_nothing_else_is_served_from_the_clients_folder(gateway: Gateway, path: str) -> None:
    """404 for what is no part of the client."""
    answer = await gateway.get(f"/client/{path}")

    assert (answer.status, answer.json()["code"]) == (404, "not_found")


async def test_the_docs_need_nothing_from_elsewhere(gateway: Gateway) -> None:
    """No script, no foreign address; each problem's `type` is a place on the page."""
    page = (await gateway.get("/docs")).body.decode()

    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    for code in PROBLEM_CODES:
        assert f'id="problem-{code}"' in page
    for route in ROUTES:
        assert route.hidden or f"<code>{route.path}</code>" in page
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page
    assert (await gateway.get("/docs.css")).headers["Content-Type"].startswith("text/css")


async def test_head_is_served_where_get_is(gateway: Gateway) -> None:
    """The same headers, no body; a stream has no HEAD."""
    for path in ("/", "/healthz", "/v1/kinds", "/v1/jobs", "/openapi.json", "/docs"):
        head = await gateway.ask("HEAD", path)
        get = await gateway.get(path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(get.body))
    document = (await gateway.post("/v1/kinds/echo/jobs", json={})).json()
    assert (await gateway.ask("HEAD", document["urls"]["events"])).status == 405


# --- kinds ----------------------------------------------------------------------------------------------------------


async def test_kinds_show_their_schema_and_who_serves_them(gateway: Gateway) -> None:
    """Also a kind that nobody serves now."""
    await gateway.store.present("w1", ["echo"], 2)
    await gateway.store.present("w2", ["echo", "form"], 2)

    listed = (await gateway.get("/v1/kinds")).json()["kinds"]
    one = (await gateway.get("/v1/kinds/form")).json()
    unknown = await gateway.get("/v1/kinds/nope")

    assert [(kind["kind"], kind["workers"]) for kind in listed] == [("echo", 2), ("form", 1), ("read", 0)]
    assert one["input_schema"]["required"] == ["name"]
    assert (unknown.status, unknown.json()["code"]) == (404, "unknown_kind")


# --- health, metrics ------------------------------------------------------------------------------------------------


async def test_health_does_not_depend_on_redis_and_readiness_does(valkey: str, prefix: str, tmp_path: Path) -> None:
    """While Redis is away: alive, not ready, 503 with Retry-After on jobs; back again without a restart."""
    async with FaultProxy(valkey) as proxy:
        store = await Store.connect(proxy.url, prefix=prefix, lease_seconds=0.6)
        try:
            async with gateway_for(store, tmp_path / "b") as gateway:
                assert (await gateway.get("/readyz")).status == 200
                proxy.refuse()
                proxy.cut()

                alive = await gateway.get("/healthz")
                ready = await gateway.get("/readyz")
                jobs = await gateway.get("/v1/jobs")
                metrics = await gateway.get("/metrics")
                proxy.refuse(False)
                back = await gateway.get("/readyz")

                assert alive.status == 200
                assert (ready.status, ready.json()["store"]) == (503, "no answer")
                assert (jobs.status, jobs.json()["code"]) == (503, "store_unavailable")
                assert "Retry-After" in jobs.headers
                assert b"outlast_store_up 0" in metrics.body
                assert back.status == 200
        finally:
            await store.close()


async def test_readiness_sees_the_blob_store(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that can't store files should get no requests."""

    async def away(_: Blobs) -> str:
        raise Unavailable("away", code="blobs_unavailable")

    monkeypatch.setattr(Blobs, "marker", away)
    answer = await gateway.get("/readyz")

    assert (answer.status, answer.json()["blobs"], answer.json()["store"]) == (503, "no answer", "ok")


async def test_a_draining_gateway_is_not_ready_and_still_serves(gateway: Gateway) -> None:
    """And asks its clients to use another connection next time; once it closes, new requests go elsewhere."""
    readiness = gateway.app[READINESS]
    readiness.draining = True
    ready, served = await gateway.get("/readyz"), await gateway.get("/v1/jobs")
    readiness.closing = True
    refused, alive = await gateway.get("/v1/jobs"), await gateway.get("/healthz")

    assert (ready.status, ready.json()) == (503, {"status": "draining"})
    assert (served.status, served.headers["Connection"]) == (200, "close")
    assert (refused.status, refused.json()["code"]) == (503, "draining")
    assert alive.status == 200


async def test_metrics_are_prometheus_text(gateway: Gateway) -> None:
    """Counters of what was done, gauges of what is; every line is well formed."""
    for _ in range(2):
        await gateway.post("/v1/kinds/echo/jobs", json={}, headers={"Idempotency-Key": "a"})
    await gateway.get("/v1/jobs/nope")

    text = (await gateway.get("/metrics")).body.decode()

    assert 'outlast_jobs_submitted_total{kind="echo",outcome="new"} 1' in text
    assert 'outlast_jobs_submitted_total{kind="echo",outcome="replayed"} 1' in text
    assert 'outlast_requests_total{route="/v1/jobs/{job}",method="GET",status="404"} 1' in text
    assert 'outlast_problems_total{code="job_not_found"} 1' in text
    assert 'outlast_queue_depth{kind="echo"} 1' in text
    assert "outlast_store_up 1" in text
    assert 'outlast_request_seconds_bucket{route="/v1/kinds/{kind}/jobs",le="+Inf"} 2' in text
    line = re.compile(
        r'^(# (HELP|TYPE) .+|[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? (\d+(\.\d+)?(e-\d+)?|\+Inf))$'
    )
    assert all(line.match(entry) for entry in text.splitlines()), [e for e in text.splitlines() if not line.match(e)]


async def test_metrics_ask_for_a_key_where_keys_are_set(store: Store, tmp_path: Path) -> None:
    """They say how busy whose gateway is; health checks need none."""
    async with gateway_for(store, tmp_path / "b", api_keys=KEYS) as gateway:
        assert (await gateway.get("/metrics")).status == 401
        assert (await gateway.get("/metrics", headers=AS_ME)).status == 200
        assert (await gateway.get("/readyz")).status == 200


# --- problems -------------------------------------------------------------------------------------------------------


async def test_the_libraries_own_errors_are_problems_too(gateway: Gateway) -> None:
    """404 and 405 with the methods that are allowed."""
    missing = await gateway.get("/v2/nothing?x=1")
    method = await gateway.ask("PATCH", "/v1/jobs")

    for answer in (missing, method):
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status
        assert answer.json()["type"] == f"/docs#problem-{answer.json()['code']}"
    assert (missing.status, missing.json()["code"]) == (404, "not_found")
    assert (method.status, method.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in method.headers["Allow"]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("secret path /etc"), TimeoutError(), KeyError("secret"), ExceptionGroup("g", [ValueError("secret")])],
)
async def test_a_defect_is_a_bare_500_with_a_request_id(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """What happened is logged under the id, and never sent; a time-out inside is no 504."""

    async def broken(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(gateway.store, "jobs", broken)
    answer = await gateway.get("/v1/jobs")

    problem = answer.json()
    assert (answer.status, problem["code"]) == (500, "internal")
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert b"secret" not in answer.body
    logged = [record for record in caplog.records if problem["request_id"] in record.getMessage() and record.exc_info]
    assert len(logged) == 1


async def test_a_defect_in_the_middle_of_an_answer_cuts_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second answer inside the first would be read as a part of it."""
    headers = {"Content-Type": "application/pdf"}
    document = (await gateway.post("/v1/kinds/read/jobs", data=b"%PDF-" + b"x" * 1000, headers=headers)).json()

    async def broken(*_: object) -> AsyncIterator[bytes]:
        yield b"%PDF-"
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(gateway.blobs, "stream", broken)
    path = document["files"][0]["url"]
    answer = await gateway.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    assert b"500" not in answer
    assert b"problem" not in answer
    assert answer.endswith(b"%PDF-") or answer == b""
    assert any(record.exc_info for record in caplog.records)


async def test_a_request_id_is_echoed_only_if_it_is_one(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """A client's own id joins its log with ours; what could break a log line is replaced."""
    caplog.set_level(logging.INFO)
    good = await gateway.get("/healthz", headers={"X-Request-ID": "trace-0123456789"})
    bad = await gateway.get("/healthz", headers={"X-Request-ID": "a b\tc"})

    assert good.headers["X-Request-ID"] == "trace-0123456789"
    assert re.fullmatch(r"[0-9a-f]{16}", bad.headers["X-Request-ID"])
    assert all("\n" not in record.getMessage() for record in caplog.records)


async def test_the_description_is_that_of_the_routes(gateway: Gateway) -> None:
    """OpenAPI 3.1; what it says of a path is served."""
    document = json.loads((await gateway.get("/openapi.json")).body)

    served = {
        (route.method, resource.canonical)
        for resource in gateway.app.router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert document["openapi"].startswith("3.1")
    assert described <= served
    assert served - described == {(route.method, route.path) for route in ROUTES if route.hidden}
    assert isinstance(gateway.app, web.Application)
