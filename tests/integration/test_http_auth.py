"""Who may ask: API keys, watch URLs, foreign origins and hosts, and pages of allowed origins."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from gateway.app import ROUTES
from gateway.auth import Failures
from gateway.store import Store
from gateway.tokens import JobToken, encode_token
from tests.serving import AS_ME, KEY, KEYS, Gateway, gateway_for

SITE = "https://app.example"


@pytest.fixture
async def keyed(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with two owners' keys."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS, allowed_origins=(SITE,)) as gateway:
        yield gateway


@pytest.fixture
async def open_gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys, which also serves one page of another origin."""
    async with gateway_for(store, tmp_path / "blobs", allowed_origins=(SITE,)) as gateway:
        yield gateway


async def test_every_v1_route_asks_for_a_key(keyed: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """401 with the scheme, on each route of the table, before anything else is looked at."""
    # There are more routes than one address may fail in a minute.
    monkeypatch.setattr(Failures, "MOST", 1000)
    known = {"kind": "echo", "index": "1", "name": "x", "path": "page.js"}
    for route in ROUTES:
        path = re.sub(r"\{(\w+)\}", lambda parameter: known.get(parameter[1], "a" * 26), route.path)
        answer = await keyed.ask(route.method, path)

        if route.path.startswith("/v1/"):
            # A worker elsewhere has a token of its attempt instead.
            code = "write_token" if "/worker/" in route.path else "unauthorized"
            assert (answer.status, answer.json()["code"]) == (401, code), route.path
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        elif route.path.startswith("/openai/v1/"):
            assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_api_key"), route.path
        elif route.path.startswith("/_probe/"):
            assert answer.status == 404, "probes are off, and nobody learns that there are any"
        elif route.path != "/metrics":
            assert answer.status == 200, route.path


@pytest.mark.parametrize("key", ["x" * 24, KEY + "x", KEY[:-1], "", "ü" * 24])
async def test_a_wrong_key_is_refused(keyed: Gateway, key: str) -> None:
    """401, whatever it looks like."""
    answer = await keyed.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})

    assert answer.status == 401


async def test_a_key_in_the_address_is_refused_with_the_right_way(keyed: Gateway) -> None:
    """400: addresses end up in logs."""
    answer = await keyed.get(f"/v1/jobs?api_key={KEY}")

    assert (answer.status, answer.json()["code"]) == (400, "key_in_query")
    assert "Authorization" in answer.json()["detail"]
    assert KEY not in answer.body.decode()


async def test_guessing_is_slowed_and_a_good_key_still_works(keyed: Gateway) -> None:
    """429 after thirty wrong keys in a minute; behind a proxy everybody else has the same address."""
    answers = [await keyed.get("/v1/jobs", headers={"Authorization": "Bearer wrong"}) for _ in range(32)]

    assert [answer.status for answer in answers] == [401] * 30 + [429] * 2
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert (await keyed.get("/v1/jobs", headers=AS_ME)).status == 200


async def test_a_watch_url_works_as_it_is_for_its_job_alone(keyed: Gateway) -> None:
    """No header needed, as an EventSource has none; it reads this job and changes nothing."""
    mine = (await keyed.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME)).json()
    other = (await keyed.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME)).json()
    await keyed.post(mine["urls"]["cancel"], headers=AS_ME)
    watch = mine["urls"]["watch"]
    token = urlsplit(watch).query

    stream = await keyed.get(watch)
    assert stream.status == 200
    assert b'"type":"cancelled"' in stream.body
    assert (await keyed.get(f"{mine['urls']['self']}?{token}")).status == 200
    assert (await keyed.get(f"{other['urls']['events']}?{token}")).status == 403
    assert (await keyed.post(f"{mine['urls']['cancel']}?{token}")).status == 403
    assert (await keyed.ask("DELETE", f"{mine['urls']['self']}?{token}")).status == 403
    assert (await keyed.get(f"/v1/jobs?{token}")).status == 401
    assert (await keyed.get(f"{mine['urls']['events']}?token=x{token[6:]}")).status == 401
    assert (await keyed.get(f"{mine['urls']['events']}?{token[:-1]}")).status == 401


async def test_a_watch_token_in_the_place_of_a_key_reads_its_job_alone(keyed: Gateway) -> None:
    """For a page that can send headers: all that can be read of the job, and nothing else."""
    mine = (await keyed.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME)).json()
    other = (await keyed.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME)).json()
    await keyed.post(mine["urls"]["cancel"], headers=AS_ME)
    token = parse_qs(urlsplit(mine["urls"]["watch"]).query)["token"][0]
    as_page = {"Authorization": f"Bearer {token}"}

    stream = await keyed.get(mine["urls"]["events"], headers=as_page)
    assert b'"type":"cancelled"' in stream.body
    assert (await keyed.get(mine["urls"]["self"], headers=as_page)).json()["state"] == "cancelled"
    assert (await keyed.get(mine["urls"]["outputs"], headers=as_page)).json() == {"outputs": [], "next": None}
    assert (await keyed.get(mine["urls"]["result"], headers=as_page)).json()["code"] == "job_cancelled"
    for method, path in (
        ("GET", other["urls"]["self"]),
        ("GET", "/v1/jobs"),
        ("POST", "/v1/kinds/echo/jobs"),
        ("POST", "/v1/tokens"),
        ("POST", mine["urls"]["cancel"]),
        ("POST", other["urls"]["cancel"]),
        ("DELETE", mine["urls"]["self"]),
    ):
        assert (await keyed.ask(method, path, headers=as_page)).status == 403, (method, path)


async def test_a_watch_url_is_not_the_key_of_another_owner(keyed: Gateway) -> None:
    """A token that an owner has signed for a guess of an id opens nobody else's job."""
    mine = (await keyed.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME)).json()

    token = encode_token(KEYS["other"], JobToken(mine["id"]))

    assert (await keyed.get(f"{mine['urls']['self']}?token={token}")).status == 404


async def test_a_browsers_socket_sends_its_key_as_a_subprotocol(keyed: Gateway) -> None:
    """It can't set headers; the gateway picks `outlast.v1`, or the browser would close the socket."""
    encoded = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
    protocols = ("outlast.v1", f"outlast.key.{encoded}")

    async with keyed.session.ws_connect(f"{keyed.url}/v1/ws", protocols=protocols) as socket:
        assert socket.protocol == "outlast.v1"
        await socket.send_json({"op": "submit", "ref": "1", "kind": "echo", "subscribe": False})
        answer = await socket.receive_json()
    assert answer["op"] == "submitted"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await keyed.session.ws_connect(f"{keyed.url}/v1/ws", protocols=("outlast.v1", "outlast.key.!!!"))
    assert refused.value.status == 401


async def test_no_secret_is_logged(keyed: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """One line per request: the path without its query, the owner's name, never a key or token."""
    caplog.set_level(logging.INFO)
    document = (await keyed.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME)).json()
    caplog.clear()

    await keyed.get(f"{document['urls']['self']}?{urlsplit(document['urls']['watch']).query}")
    await keyed.get(f"/v1/jobs?access_token={KEY}", headers={"X-Request-ID": "request-0001"})

    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.access"]
    assert len(lines) == 2
    assert lines[0].startswith(f"GET {document['urls']['self']} 200 ")
    assert "owner=me" in lines[0]
    assert "id=request-0001" in lines[1]
    assert KEY not in caplog.text
    assert "token=" not in caplog.text


# --- browsers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://app.example.evil"])
async def test_a_foreign_page_may_do_nothing(open_gateway: Gateway, origin: str) -> None:
    """403 on reads, submits and sockets, before 101; and no header that would let it read the answer."""
    headers = {"Origin": origin}
    for answer in (
        await open_gateway.get("/v1/jobs", headers=headers),
        await open_gateway.post("/v1/kinds/echo/jobs", json={}, headers=headers),
        await open_gateway.post("/v1/kinds/echo/jobs", data=b"{}", headers=headers | {"Content-Type": "text/plain"}),
    ):
        assert (answer.status, answer.json()["code"]) == (403, "foreign_origin")
        assert "Access-Control-Allow-Origin" not in answer.headers
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await open_gateway.session.ws_connect(f"{open_gateway.url}/v1/ws", origin=origin)
    assert refused.value.status == 403
    assert (await open_gateway.get("/v1/jobs")).json()["jobs"] == []


async def test_a_foreign_form_is_refused_also_without_its_origin(open_gateway: Gateway) -> None:
    """A browser says `cross-site` where it hides the origin."""
    headers = {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}
    answer = await open_gateway.post("/v1/kinds/echo/jobs", data=b"{}", headers=headers)

    assert answer.status == 403


async def test_our_own_page_may_do_everything(open_gateway: Gateway) -> None:
    """Same origin, by Host, or by what the browser says where a proxy has changed Host."""
    port = open_gateway.server.port
    for headers in (
        {"Origin": f"http://127.0.0.1:{port}"},
        {"Origin": "https://jobs.example", "Sec-Fetch-Site": "same-origin"},
    ):
        assert (await open_gateway.post("/v1/kinds/echo/jobs", json={}, headers=headers)).status == 202


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[::2]", "[x"])
async def test_a_name_that_was_made_to_point_here_is_refused(open_gateway: Gateway, host: str) -> None:
    """DNS rebinding: for the browser such a page is of our origin, so Host has to give it away."""
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    answer = await open_gateway.get("/v1/jobs", headers=headers)

    assert (answer.status, answer.json()["code"]) == (403, "foreign_host")
    assert "OUTLAST_API_KEYS" in answer.json()["detail"]


async def test_a_request_without_a_host_asks_no_name_server(
    open_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP/1.0 needs none; looking one up would hold up everybody."""

    def look_up(*_: object) -> str:
        raise AssertionError("a name server was asked")

    monkeypatch.setattr("socket.getfqdn", look_up)
    answer = await open_gateway.raw(b"GET /v1/jobs HTTP/1.0\r\n\r\n")

    assert b" 403 " in answer[:20]


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1", "[::1]:8080", "app.example", "x.localhost"])
async def test_this_machines_names_and_allowed_origins_are_answered(open_gateway: Gateway, host: str) -> None:
    """A proxy that passes the public name on needs that name as an allowed origin, or keys."""
    assert (await open_gateway.get("/v1/jobs", headers={"Host": host})).status == 200


async def test_with_keys_any_host_is_answered(keyed: Gateway) -> None:
    """A page can't send the key, so no name can do harm."""
    assert (await keyed.get("/v1/jobs", headers=AS_ME | {"Host": "jobs.example"})).status == 200


async def test_an_allowed_page_reads_answers_and_problems(keyed: Gateway) -> None:
    """The exact origin is echoed, never a star; the preflight names what may be sent; others get nothing."""
    asked = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
    preflight = await keyed.ask("OPTIONS", "/v1/kinds/echo/jobs", headers=asked)
    foreign = await keyed.ask("OPTIONS", "/v1/kinds/echo/jobs", headers=asked | {"Origin": "https://evil.example"})
    answer = await keyed.post("/v1/kinds/echo/jobs", json={}, headers=AS_ME | {"Origin": SITE})
    problem = await keyed.get("/v1/jobs", headers={"Origin": SITE})
    stream = await keyed.get(answer.json()["urls"]["events"] + "?cut=0", headers={"Origin": "https://evil.example"})

    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == SITE
    assert {"Authorization", "Idempotency-Key", "If-Range", "Last-Event-ID", "Range"} <= set(
        preflight.headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert (foreign.status, foreign.json()["code"]) == (403, "foreign_origin")
    assert "Access-Control-Allow-Origin" not in foreign.headers
    for allowed in (answer, problem):
        assert allowed.headers["Access-Control-Allow-Origin"] == SITE
        assert "Origin" in allowed.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in allowed.headers
    shown = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert {"Content-Range", "ETag", "Idempotency-Replayed", "X-Upstream-Status"} <= shown
    assert problem.status == 401
    assert stream.status == 403


async def test_a_foreign_page_is_logged_once(keyed: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """Its author sees a failed connection and no more, since the browser hides the answer; so the gateway says it."""
    for origin in ("http://localhost:5173", "http://localhost:5173", "https://evil.example"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        await keyed.ask("OPTIONS", "/v1/kinds/echo/jobs", headers=headers)

    told = [record.getMessage() for record in caplog.records if "OUTLAST_ALLOWED_ORIGINS" in record.getMessage()]
    assert [line.split()[6].strip(";") for line in told] == ["http://localhost:5173", "https://evil.example"]


async def test_a_picture_on_a_foreign_page_shows_nothing(open_gateway: Gateway) -> None:
    """Such a GET has no Origin; the answer forbids its use, its sniffing and its caching."""
    answer = await open_gateway.get("/v1/jobs", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})

    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
