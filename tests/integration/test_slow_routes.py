"""Slow routes, whole: an unchanged client, the gateway, a worker, and a slow application behind them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from examples.requests_adapter import OutlastAdapter
from gateway.client import Client
from gateway.client.httpx import OutlastTransport
from gateway.errors import JobBroke
from gateway.handlers.context import HUB, STREAMS
from gateway.store import Store
from gateway.tokens import SubmitToken, encode_token
from processors import upstream
from processors.http import http
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.serving import KEY, KEYS, Gateway, gateway_for
from tests.slow_app import SlowApp
from tests.worker_jobs import working

pytestmark = pytest.mark.usefixtures("early_looks")
ROUTES = """
[[route]]
path = "/hold"
upstream = "{app}/slow"
timeout = "1m"
methods = ["GET", "HEAD", "POST"]

[[route]]
path = "/bytes"
upstream = "{app}/slow"
json = false

[[route]]
path = "/later"
upstream = "{app}/slow"
mode = "async"

[[route]]
path = "/watch/*"
upstream = "{app}/stream/*"
mode = "sse"
methods = ["GET", "POST"]

[[route]]
path = "/open"
upstream = "{app}/echo"
key = false

[[route]]
path = "/public/*"
upstream = "{app}/stream/*"
mode = "sse"
key = false

[[route]]
path = "/flaky"
upstream = "{app}/flaky"

[[route]]
path = "/all/*"
upstream = "{app}/echo/*"

[[route]]
path = "/down"
upstream = "http://127.0.0.1:1/"
retries = 0

[[route]]
path = "/short"
upstream = "{app}/slow"
timeout = "0.3s"

[[route]]
path = "/mine"
upstream = "{app}/slow"
on_disconnect = "cancel"

[[route]]
path = "/my-own/*"
upstream = "{app}/stream/*"
mode = "sse"
on_disconnect = "cancel"
"""


@asynccontextmanager
async def routed(
    store: Store, app: SlowApp, tmp_path: Path, patch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway with the routes, and a worker that calls what they name."""
    file = tmp_path / "routes.toml"
    file.write_text(ROUTES.format(app=app.url))
    patch.setenv("OUTLAST_ROUTES", str(file))
    upstream.configured.cache_clear()
    try:
        async with (
            gateway_for(store, tmp_path / "blobs", routes=file, **settings) as gateway,
            working(store, gateway.blobs, [http], concurrency=8),
        ):
            yield gateway
    finally:
        upstream.configured.cache_clear()


@pytest.fixture
async def gateway(
    store: Store, app: SlowApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway that is quiet for long."""
    async with routed(store, app, tmp_path, monkeypatch) as gateway:
        yield gateway


@pytest.fixture
async def hasty(store: Store, app: SlowApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway that sends white space almost at once."""
    async with routed(
        store, app, tmp_path, monkeypatch, run_quiet_seconds=0.1, heartbeat_seconds=0.2, write_stall_seconds=5
    ) as gateway:
        yield gateway


async def speaking(gateway: Gateway) -> None:
    """Wait until a held request has sent its head."""
    await wait_until(lambda: any(not listener.silent for listener in gateway.app[HUB].listeners))  # type: ignore[attr-defined]


# --- hold -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 404, 500])
async def test_a_held_answer_is_the_upstreams_own(gateway: Gateway, app: SlowApp, status: int) -> None:
    """Status, headers and body, as if the gateway were not there; the upstream saw what the client sent."""
    app.go.set()
    headers = {"X-Mine": "1", "Authorization": "Bearer of-the-upstream", "X-Forwarded-For": "1.2.3.4"}
    answer = await gateway.post(f"/hold?status={status}&x=%20", data=b'{"a":1}', headers=headers)

    assert (answer.status, answer.headers["X-From"]) == (status, "slow")
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.json() == {"slow": True, "body": '{"a":1}'}
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    [seen] = app.seen
    sent = seen["headers"]
    assert isinstance(sent, dict)
    assert seen["path"] == f"/slow?status={status}&x=%20"
    assert (sent["x-mine"], sent["authorization"]) == ("1", "Bearer of-the-upstream")
    assert sent["host"] == app.url.removeprefix("http://")
    assert sent["x-forwarded-for"] == "1.2.3.4, 127.0.0.1"


@pytest.mark.parametrize("body", [b"\x00\xff" * 500, b"x" * 300_000])
async def test_any_body_gets_there_and_any_answer_comes_back(gateway: Gateway, app: SlowApp, body: bytes) -> None:
    """Bytes and large bodies go through the blob store, both ways."""
    app.go.set()
    answer = await gateway.post("/hold", data=body)
    assert answer.json()["body"] == body.decode("latin-1")

    other = await gateway.get("/bytes?type=image/png")
    assert (other.status, other.headers["Content-Type"], other.body) == (200, "image/png", b"plain \xff")


async def test_a_late_answer_comes_after_white_space(hasty: Gateway, app: SlowApp) -> None:
    """The body is the upstream's, to the byte, behind white space that JSON doesn't count."""
    holding = asyncio.create_task(hasty.post("/hold", data=b"x"))
    await speaking(hasty)
    app.go.set()
    answer = await holding

    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.body.lstrip(b" ") == b'{"slow": true, "body": "x"}'
    assert answer.body.startswith(b" ")


@pytest.mark.parametrize(("query", "status"), [("status=404", 404), ("type=text/html", 200), ("status=500", 500)])
async def test_a_late_answer_that_is_no_json_success_says_so(
    hasty: Gateway, app: SlowApp, query: str, status: int
) -> None:
    """`error` names the status that it would have been, and where the answer is as it came."""
    holding = asyncio.create_task(hasty.get(f"/hold?{query}"))
    await speaking(hasty)
    app.go.set()
    document = (await holding).json()

    assert (document["error"]["code"], document["error"]["status"]) == ("upstream_status", status)
    assert ("body" in document) == ("status" in query)
    original = await hasty.get(document["response_url"])
    assert (original.status, original.headers["X-From"]) == (status, "slow")


async def test_what_is_no_json_is_answered_later_if_it_takes_long(hasty: Gateway, app: SlowApp) -> None:
    """Nothing may come before it, so the client gets an address instead of a 524."""
    accepted = await hasty.get("/bytes?type=image/png")
    assert accepted.status == 202
    app.go.set()
    answer = await hasty.get(accepted.headers["Location"] + "?wait=10")
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "image/png", b"plain \xff")


async def test_a_late_answer_to_head_is_no_begin_of_the_next_one(hasty: Gateway) -> None:
    """It has no body, so no white space either: on a kept connection that would stand before another's answer."""
    asked = b"HEAD /hold HTTP/1.1\r\nHost: localhost\r\n\r\n"
    next_asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    head, next_head, body = (await hasty.raw(asked + next_asked)).split(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 202 ")
    assert b"/response" in head
    assert next_head.startswith(b"HTTP/1.1 200 ")
    assert body == b'{"status":"ok"}'


async def test_an_upstream_that_fails_is_a_problem_with_its_code(gateway: Gateway, hasty: Gateway) -> None:
    """Early with a status that no edge replaces, late as `error`; a time-out is told from a refused connection."""
    down = await gateway.get("/down")
    assert (down.status, down.json()["code"]) == (500, "upstream_unreachable")

    late = await hasty.get("/short")
    document = late.json()
    assert (document.get("error") or document)["code"] == "run_timeout"


@pytest.mark.parametrize("path", ["/hold", "/bytes", "/later"])
@pytest.mark.parametrize("status", [502, 504])
async def test_what_an_edge_would_replace_has_another_status(
    gateway: Gateway, app: SlowApp, path: str, status: int
) -> None:
    """The body comes as it was, and the upstream's own status is in a header."""
    app.go.set()
    answer = await gateway.post(f"{path}?status={status}", data=b"x")
    if path == "/later":
        place = answer.headers["Location"]
        answer = await gateway.get(place + "?wait=10")
        async with Client(gateway.url) as client, asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(JobBroke, match=f"The upstream answered {status}"):
                await client.fetch(place)

    assert (answer.status, answer.headers["X-Upstream-Status"]) == (503, str(status))
    assert answer.json() == {"slow": True, "body": "x"}


async def test_a_call_can_be_made_again(gateway: Gateway, app: SlowApp) -> None:
    """Though no list but its route's has its upstream."""
    app.go.set()
    first = await gateway.post("/hold?status=500", data=b"x")
    again = await gateway.post(f"/v1/jobs/{first.headers['X-Job-Id']}/retry")
    assert again.status == 202, again.body
    answer = await gateway.get(again.headers["Location"] + "/response?wait=10")

    assert (answer.status, answer.json()) == (500, {"slow": True, "body": "x"})
    assert app.asked == 2


# --- async ------------------------------------------------------------------------------------------------------------


async def test_an_answer_can_be_fetched_later(gateway: Gateway, app: SlowApp) -> None:
    """202 and an address, which says 202 until there is the upstream's own answer."""
    accepted = await gateway.post("/later?status=404", data=b"x", headers={"Idempotency-Key": "k"})
    where = accepted.headers["Location"]
    assert (accepted.status, where) == (202, f"/v1/jobs/{accepted.json()['id']}/response")
    assert (await gateway.get(where)).status == 202
    app.go.set()
    answer = await gateway.get(where + "?wait=10")
    again = await gateway.post("/later?status=404", data=b"x", headers={"Idempotency-Key": "k"})

    for one in (answer, again):
        assert (one.status, one.headers["X-From"]) == (404, "slow")
        assert one.json() == {"slow": True, "body": "x"}
    assert app.asked == 1


async def test_an_upstream_does_not_speak_for_our_origin(gateway: Gateway, app: SlowApp) -> None:
    """At an address of ours it sets no cookie, and nothing of it runs; on its own route it is itself."""
    own = await gateway.get("/all/x")
    stored = await gateway.get(f"/v1/jobs/{own.headers['X-Job-Id']}/response")

    assert own.headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert "Set-Cookie" not in stored.headers
    assert "sandbox" in stored.headers["Content-Security-Policy"]


# --- sse --------------------------------------------------------------------------------------------------------------


async def test_a_watched_route_relays_the_upstreams_pieces(gateway: Gateway, app: SlowApp) -> None:
    """The client has the first piece while the upstream works; the same key goes on where it was.

    What the query asks for is the upstream's business, though our own streams have such words too.
    """
    url, key = f"{gateway.url}/watch/sse?types=PDF,Excel&snapshot=1", {"Idempotency-Key": "w"}
    heard = b""
    async with gateway.session.post(url, headers=key) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while '"text":"data: é'.encode() not in heard:
                piece = await response.content.readany()
                assert piece
                heard += piece
    cursor = [line for line in heard.splitlines() if line.startswith(b"id: ")][-1][4:].decode()
    app.go.set()
    async with gateway.session.post(url, headers=key | {"Last-Event-ID": cursor}) as response:
        rest = await response.read()

    assert b"data: two" in rest
    assert b'"terminal":true' in rest
    assert b'"type":"queued"' not in rest
    assert app.asked == 1
    lost = await gateway.get("/watch/sse", headers={"Last-Event-ID": "3"})
    assert (lost.status, app.asked) == (204, 1)


# --- who may, and how often -------------------------------------------------------------------------------------------


async def test_a_request_that_is_repeated_is_done_once(gateway: Gateway, app: SlowApp) -> None:
    """The key counts with method, address, body and who asks; another of these is another request."""
    app.go.set()
    key = {"Idempotency-Key": "k", "X-Trace": "1"}
    first = await gateway.post("/hold", data=b"x", headers=key)
    again = await gateway.post("/hold", data=b"x", headers=key | {"X-Trace": "2"})
    assert first.body == again.body
    assert again.headers["Idempotency-Replayed"] == "true"
    assert app.asked == 1
    for data, more in ((b"y", {}), (b"x", {"Authorization": "Bearer other"})):
        answer = await gateway.post("/hold", data=data, headers=key | more)
        assert (answer.status, answer.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("library", ["httpx", "requests"])
async def test_the_clients_call_a_route_at_the_gateway(gateway: Gateway, app: SlowApp, library: str) -> None:
    """By the route's own address, with its query; it is nobody's upstream but the route's."""

    def call() -> tuple[int, str, str | None]:
        answer: httpx.Response | requests.Response
        if library == "httpx":
            with httpx.Client(transport=OutlastTransport(gateway.url), base_url=gateway.url) as client:
                answer = client.put("/later?status=418&a=%2F", content=b"hi", headers={"Authorization": "Basic bWU6"})
        else:
            with requests.Session() as session:
                session.mount(gateway.url + "/", OutlastAdapter(gateway.url))
                headers = {"Authorization": "Basic bWU6"}
                answer = session.put(gateway.url + "/later?status=418&a=%2F", data=b"hi", headers=headers)
        return answer.status_code, str(answer.url), answer.headers.get("X-From")

    app.go.set()

    assert await asyncio.to_thread(call) == (418, gateway.url + "/later?status=418&a=%2F", "slow")
    [seen] = app.seen
    assert (seen["method"], seen["path"], seen["body"]) == ("PUT", "/slow?status=418&a=%2F", "hi")
    assert isinstance(headers := seen["headers"], dict)
    assert headers["authorization"] == "Basic bWU6"


async def test_a_call_by_a_route_s_path_is_made_as_the_route_says(gateway: Gateway, store: Store, app: SlowApp) -> None:
    """Its time-out and what its client's leaving means, unless the call says otherwise."""
    for path, wish, expected in (
        ("/mine", {}, (86_400, "cancel")),
        ("/hold", {}, (60, "continue")),
        ("/hold", {"run_timeout_seconds": 9, "on_disconnect": "cancel"}, (9, "cancel")),
    ):
        body = {"input": {"url": path, "method": "POST", "body": "x"}, **wish}
        job = (await gateway.post("/v1/kinds/http/jobs", json=body)).json()
        record = await store.job(job["id"])

        assert (record.options.run_timeout_seconds, record.options.on_disconnect) == expected


NO_ROUTES = (
    ("GET", "/none", "upstream_not_allowed"),
    ("GET", "/v1/kinds", "upstream_not_allowed"),
    ("PUT", "/hold", "upstream_not_allowed"),
    ("GET", "/all/../slow", "upstream_bad_url"),
    ("GET", "/all/%2e%2e/slow", "upstream_bad_url"),
    ("GET", "//127.0.0.1:1/", "upstream_not_allowed"),
    ("GET", "{app}/slow", "upstream_not_allowed"),
)


async def test_a_path_that_is_no_route_leads_nowhere(gateway: Gateway, app: SlowApp) -> None:
    """And the route's upstream by its own address neither: only the route is listed."""
    for method, url, code in NO_ROUTES:
        body = {"input": {"url": url.format(app=app.url), "method": method}}
        answer = await gateway.post("/v1/kinds/http/jobs", json=body)

        assert (answer.status, answer.json()["code"]) == (422, code), url
        assert answer.json()["errors"][0]["field"] == "input.url"
    assert app.asked == 0


@pytest.mark.parametrize("path", ["/hold", "/later", "/watch/sse"])
async def test_a_client_that_leaves_leaves_the_upstream_at_work(gateway: Gateway, app: SlowApp, path: str) -> None:
    """For good: the job ends all the same, and the answer is there for who comes back with the same key."""
    key = {"Idempotency-Key": "gone"}
    with suppress(TimeoutError):
        # `async` answers at once, and nobody asks again.
        await gateway.post(path, headers=key, timeout=aiohttp.ClientTimeout(total=0.3))
    await wait_until(lambda: len(gateway.app[STREAMS]) == 0)
    await wait_until(lambda: app.waiting == 1)
    app.go.set()

    async def succeeded() -> bool:
        [job] = (await gateway.get("/v1/jobs")).json()["jobs"]
        return bool(job["state"] == "succeeded")

    await wait_until(succeeded)
    again = await gateway.post(path, headers=key)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert (app.asked, app.cancelled) == (1, 0)


async def test_a_key_is_asked_for_and_never_passed_on(
    store: Store, app: SlowApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys set, a route is as closed as the rest; one without `key` leaves the asking to its upstream."""
    app.go.set()
    # As the owner is called where there are no keys.
    local = "l" * 24
    async with routed(store, app, tmp_path, monkeypatch, api_keys=KEYS | {"local": local}) as gateway:
        assert (await gateway.post("/hold")).status == 401
        token = encode_token(KEY, SubmitToken("http", "anna", 100, int(time.time()) + 60))
        assert (await gateway.post("/hold", headers={"Authorization": f"Bearer {token}"})).status == 403
        for key in (KEY, local):
            assert (await gateway.post("/hold", headers={"Authorization": f"Bearer {key}"})).status == 200
            assert "authorization" not in app.seen[-1]["headers"]  # type: ignore[operator]
        offered = f"outlast.v1, outlast.key.{base64.urlsafe_b64encode(KEY.encode()).decode()}"
        assert (await gateway.post("/hold", headers={"Sec-WebSocket-Protocol": offered})).status == 200
        assert "sec-websocket-protocol" not in app.seen[-1]["headers"]  # type: ignore[operator]
        assert (await gateway.get("/open", headers={"Authorization": "Bearer theirs"})).status == 200
        assert app.seen[-1]["headers"]["authorization"] == "Bearer theirs"  # type: ignore[index]
        foreign = await gateway.get("/open", headers={"Origin": "https://evil.example"})
        assert foreign.status == 200
        assert "Access-Control-Allow-Origin" not in foreign.headers


async def test_a_stream_that_only_its_upstream_guards_is_resumed_by_who_asked_for_it(
    store: Store, app: SlowApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Idempotency-Key can be guessed; the upstream would have asked for the credentials again."""
    app.go.set()
    again = {"Idempotency-Key": "order-1", "Last-Event-ID": "0"}
    async with routed(store, app, tmp_path, monkeypatch, api_keys=KEYS) as gateway:
        mine = {"Authorization": "Bearer theirs", "Cookie": "a=1"}
        assert (await gateway.get("/public/sse", headers=mine | {"Idempotency-Key": "order-1"})).status == 200

        for other in ({}, {"Authorization": "Bearer theirs"}, mine | {"Cookie": "a=2"}):
            refused = await gateway.get("/public/sse", headers=other | again)
            assert (refused.status, refused.json()["code"]) == (404, "job_not_found")
        assert b"data: two" in (await gateway.get("/public/sse", headers=mine | again)).body
    assert app.asked == 1


async def test_a_route_is_no_way_around_the_guards(gateway: Gateway, app: SlowApp) -> None:
    """Not out of its upstream, not as the kind `http`, not from a foreign page."""
    up = await gateway.raw(b"GET /all/%2e%2e/admin HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert b"upstream_bad_url" in up
    direct = await gateway.post("/v1/kinds/http/jobs", json={"input": {"url": f"{app.url}/slow"}})
    assert (direct.status, direct.json()["code"]) == (422, "upstream_not_allowed")
    other = await gateway.post("/v1/kinds/http/jobs", json={"input": {"url": "ftp://app.example/slow"}})
    assert (other.status, other.json()["code"]) == (422, "upstream_not_http")
    foreign = await gateway.get("/hold", headers={"Origin": "https://evil.example"})
    assert foreign.status == 403
    assert (await gateway.ask("DELETE", "/watch/sse")).status == 405
    assert app.asked == 0


@pytest.mark.parametrize("path", ["/mine", "/my-own/sse"])
async def test_a_route_can_give_up_with_its_client(
    gateway: Gateway, app: SlowApp, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """`on_disconnect = "cancel"`: whoever stays is served, and the call of one who has left for good is closed."""
    monkeypatch.setattr("gateway.requests.DEFAULT_GRACE_SECONDS", 0.5)
    staying = asyncio.create_task(gateway.post(path))
    await wait_until(lambda: app.waiting == 1)
    with suppress(TimeoutError):
        await gateway.post(path, timeout=aiohttp.ClientTimeout(total=0.3))
    await wait_until(lambda: app.waiting == 2)
    await wait_until(lambda: (app.waiting, app.cancelled) == (1, 1))
    app.go.set()

    assert (await staying).status == 200
    states = [job["state"] for job in (await gateway.get("/v1/jobs")).json()["jobs"]]
    assert sorted(states) == ["cancelled", "succeeded"]
