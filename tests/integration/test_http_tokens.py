"""Tokens for pages: what one opens, what it never opens, and when it ends."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from pydantic_core import from_json

from gateway import limits
from gateway.app import ROUTES
from gateway.auth import Failures
from gateway.documents import KindDocument
from gateway.handlers.context import HUB
from gateway.protocol import CLOSE_CODES, CloseCode, parse_time
from gateway.store import NewJob, Store
from gateway.store.uploads import MAX_USER_UPLOADS
from gateway.tokens import JobToken, SubmitToken, Token, encode_token, read_token, signing_key
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end, event, new_job, submit, use_up
from tests.serving import AS_ME, AS_OTHER, KEY, KEYS, Answer, Gateway, gateway_for

ECHO, OTHER_KIND = KindDocument(kind="echo"), KindDocument(kind="read")
LATER = int(time.time()) + 3600
# What each route asks of a token. A route that is missing here asks for an API key.
RIGHTS = {
    "POST /v1/kinds/{kind}/jobs": "submit",
    "POST /v1/kinds/{kind}/run": "submit",
    "GET /v1/jobs/{job}": "read",
    "POST /v1/jobs/{job}/cancel": "cancel",
    "POST /v1/jobs/{job}/retry": "submit",
    "GET /v1/jobs/{job}/events": "read",
    "GET /v1/jobs/{job}/result": "read",
    "GET /v1/jobs/{job}/outputs": "read",
    "GET /v1/jobs/{job}/outputs/{index}": "read",
    "GET /v1/jobs/{job}/files/{name}": "read",
    "GET /v1/jobs/{job}/response": "read",
    "GET /v1/events": "read",
    "GET /v1/ws": "read",
    "OPTIONS /v1/uploads": "submit",
    "POST /v1/uploads": "submit",
    "GET /v1/uploads/{upload}": "submit",
    "PATCH /v1/uploads/{upload}": "submit",
    "DELETE /v1/uploads/{upload}": "submit",
    "POST /v1/uploads/{upload}": "submit",
}


@pytest.fixture
async def keyed(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with two owners' keys."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway:
        yield gateway


def bearing(token: Token | str, secret: str = KEY) -> dict[str, str]:
    """The header that a page sends."""
    text = token if isinstance(token, str) else encode_token(secret, token)
    return {"Authorization": f"Bearer {text}"}


def user(name: str = "anna", kind: str = "echo", *, max_waiting: int = 100, expires: int = LATER) -> dict[str, str]:
    """The header of a page of this user."""
    return bearing(SubmitToken(kind, name, max_waiting, expires))


async def mint(gateway: Gateway, **asked: Any) -> dict[str, Any]:
    """A token's document, as an owner's server gets it."""
    answer = await gateway.post("/v1/tokens", json=asked, headers=AS_ME)
    assert answer.status == 200, answer.body
    return dict(answer.json())


async def submitted(gateway: Gateway, headers: dict[str, str], **body: Any) -> dict[str, Any]:
    """A job's document."""
    answer = await gateway.post("/v1/kinds/echo/jobs", json=body, headers=headers)
    assert answer.status == 202, answer.body
    return dict(answer.json())


def refused(answer: Answer) -> tuple[int, str]:
    """Status and code of a refusal."""
    return answer.status, answer.json()["code"]


@asynccontextmanager
async def socket_of(gateway: Gateway, token: Token | str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A browser's socket, which sends the token as a subprotocol."""
    text = token if isinstance(token, str) else encode_token(KEY, token)
    encoded = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    protocols = ("outlast.v1", f"outlast.key.{encoded}")
    async with gateway.session.ws_connect(f"{gateway.url}/v1/ws", protocols=protocols) as socket:
        yield socket


async def said(socket: aiohttp.ClientWebSocketResponse, **frame: Any) -> dict[str, Any]:
    """What a frame is answered with; events in between are left out."""
    await socket.send_json(frame)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "op" not in (answer := await socket.receive_json()):
            pass
    return dict(answer)


# --- what a token never opens -----------------------------------------------------------------------------------------


def test_each_route_asks_for_the_right_that_it_is_meant_to() -> None:
    """A new route is closed to tokens until somebody says otherwise, here too."""
    assert {f"{route.method} {route.path}": route.right for route in ROUTES if route.right is not None} == RIGHTS


@pytest.mark.parametrize(
    "token",
    [JobToken("b" * 26, expires=LATER), JobToken("b" * 26, True, LATER), SubmitToken("read", "anna", 100, LATER)],
    ids=["read a job", "cancel a job", "submit"],
)
async def test_a_token_opens_no_route_to_what_is_not_its_own(
    keyed: Gateway, store: Store, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every route that asks for a key: an owner's job, another user's, another kind, lists, operators, models."""
    monkeypatch.setattr(Failures, "MOST", 1000)
    mine, anothers = await submit(store, ECHO), await submit(store, ECHO, owner="me/boris")
    for job in (mine.id, anothers.id):
        known = {"job": job, "kind": "echo", "response": f"resp_{job}"}
        for route in ROUTES:
            if route.public or not route.path.startswith(("/v1/", "/openai/")) or route.path.startswith("/v1/uploads"):
                continue
            path = re.sub(r"\{(\w+)\}", lambda parameter: known.get(parameter[1], "1"), route.path)  # noqa: B023
            path += f"?jobs={job}" if route.path == "/v1/events" else ""
            answer = await keyed.ask(route.method, path, headers=bearing(token))

            # A socket may be opened; what it does is looked at frame by frame.
            assert answer.status in ({403, 404} if route.path != "/v1/ws" else {400}), (route.method, route.path)
    assert (await store.job(mine.id)).last.number == 1
    assert (await store.job(anothers.id)).last.number == 1


async def test_a_users_idempotency_keys_find_no_jobs_but_the_users(keyed: Gateway) -> None:
    """A job's id derives from owner and key: a page that guesses a key must not find what the owner did with it."""
    key = {"Idempotency-Key": "invoice-2026"}
    mine = await submitted(keyed, AS_ME | key, input={"a": 1})
    annas = await submitted(keyed, user() | key, input={"a": 1})
    boris = await submitted(keyed, user("boris") | key, input={"a": 1})
    again = await keyed.post("/v1/kinds/echo/jobs", json={"input": {"a": 1}}, headers=user() | key)
    resumed = await keyed.post("/v1/kinds/echo/jobs", headers=user("cleo") | key | {"Last-Event-ID": "0"})
    other_kind = await keyed.post(
        "/v1/kinds/read/jobs", headers=user(kind="read") | key | {"Last-Event-ID": "0", "Accept": "application/json"}
    )

    assert len({mine["id"], annas["id"], boris["id"]}) == 3
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (annas["id"], "true")
    assert refused(resumed) == (404, "job_not_found")
    assert refused(other_kind) == (403, "forbidden"), "the same user's, but not this token's kind"


async def test_a_token_that_is_none_or_over_says_so(keyed: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up, of a key that went, changed in any part; over is another code, and no guess at a key."""
    job = (await submitted(keyed, AS_ME))["urls"]["self"]
    over = [bearing(JobToken(job[-26:], expires=LATER - 7200)), user(expires=LATER - 7200), user(expires=0)]
    good = encode_token(KEY, JobToken(job[-26:], expires=LATER))
    forged = [good.replace("read", "cancel"), good.replace(str(LATER), str(LATER + 1)), "t1~", good[:-1], good + "~"]
    forged += [encode_token("x" * 24, JobToken(job[-26:], expires=LATER)), encode_token("", JobToken(job[-26:]))]

    assert (await keyed.get(job, headers=bearing(good))).status == 200
    for headers in over:
        assert refused(await keyed.get(job, headers=headers)) == (401, "token_expired")
    for text in forged:
        assert refused(await keyed.get(job, headers=bearing(text))) == (401, "unauthorized"), text
    monkeypatch.setattr(Failures, "MOST", 1)
    assert refused(await keyed.get(job, headers=bearing("t1~"))) == (429, "too_many_failures")
    assert refused(await keyed.get(job, headers=over[0])) == (401, "token_expired")


async def test_in_an_address_a_token_only_reads_one_job(keyed: Gateway) -> None:
    """Addresses are logged: what submits or cancels doesn't stand in one."""
    job = await submitted(keyed, user())
    reads, cancels = (encode_token(KEY, JobToken(job["id"], cancel, LATER)) for cancel in (False, True))
    submits = user()["Authorization"].removeprefix("Bearer ")

    assert (await keyed.get(f"{job['urls']['self']}?token={reads}")).status == 200
    assert refused(await keyed.post(f"{job['urls']['cancel']}?token={cancels}")) == (403, "forbidden")
    assert refused(await keyed.get(f"{job['urls']['self']}?token={submits}")) == (403, "forbidden")
    assert (await keyed.post("/v1/kinds/echo/jobs?token=" + submits)).status == 401


async def test_what_a_token_opens_it_opens_for_no_longer_than_it_lasts(keyed: Gateway) -> None:
    """A job's document has a watch URL: for a page it ends with the token by which the page got it."""
    mine = await submitted(keyed, AS_ME)
    annas = await submitted(keyed, user())
    read = await keyed.get(mine["urls"]["self"], headers=bearing(JobToken(mine["id"], expires=LATER)))
    async with socket_of(keyed, SubmitToken("echo", "anna", 100, LATER)) as socket:
        over_socket = (await said(socket, op="submit", kind="echo", subscribe=False))["job"]

    for job, expires in ((mine, None), (annas, LATER), (read.json(), LATER), (over_socket, LATER)):
        [watch] = parse_qs(urlsplit(job["urls"]["watch"]).query)["token"]
        assert read_token(watch, [(signing_key(KEY), "me")]) == ("me", JobToken(job["id"], expires=expires))
        assert (await keyed.get(f"{job['urls']['self']}?token={watch}")).status == 200


# --- what a token opens -----------------------------------------------------------------------------------------------


async def test_a_token_for_a_job_reads_it_and_cancels_it_if_it_may(keyed: Gateway) -> None:
    """Made by the owner's server, for a job that there is and that is its own."""
    job = await submitted(keyed, AS_ME)
    theirs = await submitted(keyed, AS_OTHER)
    before = time.time()
    reads, cancels = await mint(keyed, job=job["id"], expires_seconds=60), await mint(keyed, job=job["id"], cancel=True)
    after = time.time()

    for document, seconds in ((reads, 60), (cancels, 900)):
        assert document["expires_seconds"] == seconds
        assert before + seconds <= end_of(document) <= after + seconds + 1
        assert parse_time(document["expires_at"]) == end_of(document) * 1000
    assert (await keyed.get(job["urls"]["self"], headers=bearing(reads["token"]))).json()["id"] == job["id"]
    assert refused(await keyed.post(job["urls"]["cancel"], headers=bearing(reads["token"]))) == (403, "forbidden")
    assert (await keyed.post(job["urls"]["cancel"], headers=bearing(cancels["token"]))).json()["state"] == "cancelled"
    stream = await keyed.get(job["urls"]["events"], headers=bearing(reads["token"]))
    assert b'"type":"cancelled"' in stream.body
    for asked in ({"job": theirs["id"]}, {"job": "b" * 26}, {"kind": "nothing", "user": "anna"}):
        assert (await keyed.post("/v1/tokens", json=asked, headers=AS_ME)).status == 404
    assert refused(await keyed.post("/v1/tokens", json={"kind": "echo"}, headers=AS_ME)) == (422, "invalid_input")


def end_of(document: dict[str, Any]) -> int:
    """When a token ends, in seconds since 1970."""
    read = read_token(document["token"], [(signing_key(KEY), "me")])
    assert read is not None
    assert read[1].expires is not None
    return read[1].expires


async def test_a_page_submits_and_goes_on_with_a_later_token_of_the_same_user(keyed: Gateway, store: Store) -> None:
    """Submit, read, follow, do again, end; what is done with one token is there for the next."""
    first = bearing((await mint(keyed, kind="echo", user="anna"))["token"])
    job = await submitted(keyed, first, input={"a": 1})
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("output", {"index": "1", "value": 5}, "1")])
    await end(store, lease, batch=2, data={"result": 42})
    later = bearing((await mint(keyed, kind="echo", user="anna"))["token"])

    assert job["user"] == "anna"
    for path, expected in (("self", b'"succeeded"'), ("events", b'"type":"succeeded"'), ("result", b"42")):
        answer = await keyed.get(job["urls"][path], headers=later)
        assert (answer.status, expected in answer.body) == (200, True), path
    assert (await keyed.get(job["urls"]["outputs"] + "/1", headers=later)).body == b"5"
    assert b"succeeded" in (await keyed.get(f"/v1/events?jobs={job['id']}", headers=later)).body
    assert refused(await keyed.get(job["urls"]["self"], headers=user("boris"))) == (404, "job_not_found")
    run = asyncio.create_task(keyed.post("/v1/kinds/echo/run", json={}, headers=later))
    await wait_until(lambda: waiting(store), PATIENCE_SECONDS, what="a job")
    await end(store, await begin(store, "echo"), batch=1, data={"result": 43})
    assert (await run).json()["result"] == 43
    again = (await keyed.post(f"{job['urls']['self']}/retry", headers=later)).json()
    assert (again["retry_of"], again["user"]) == (job["id"], "anna")
    assert (await keyed.post(again["urls"]["cancel"], headers=later)).json()["state"] == "cancelled"


async def waiting(store: Store) -> int:
    """How many jobs wait."""
    return (await store.depths(["echo"]))["echo"][0]


async def test_a_pipelines_steps_are_read_with_the_token_of_the_whole(keyed: Gateway, store: Store) -> None:
    """A step has a kind of its own; that of the job which was submitted counts, however deep the step is."""
    whole = await submitted(keyed, user())
    step = await submit_step(store, OTHER_KIND, whole["id"])
    deeper = await submit_step(store, OTHER_KIND, step)
    foreign = await submit_step(store, ECHO, (await submit(store, OTHER_KIND, owner="me/anna")).id)

    assert [(await keyed.get(f"/v1/jobs/{job}", headers=user())).status for job in (step, deeper)] == [200, 200]
    assert (await keyed.get(f"/v1/jobs/{foreign}", headers=user())).status == 403
    assert (await keyed.get(f"/v1/jobs/{step}", headers=user(kind="read"))).status == 403


async def submit_step(store: Store, kind: KindDocument, parent: str) -> str:
    """A job that is another one's step."""
    step = NewJob(kind, "me/anna", {}, new_job(kind).options, "step", parent=parent)
    return (await store.submit(await store.job_id("me/anna", None), step, keyed=False)).record.id


async def test_over_a_socket_a_token_opens_the_same(keyed: Gateway) -> None:
    """A watch URL's token reads its job, one for a kind submits, follows and cancels; other frames are refused."""
    mine, other = await submitted(keyed, AS_ME), await submitted(keyed, AS_ME)
    [watch] = parse_qs(urlsplit(mine["urls"]["watch"]).query)["token"]

    async with socket_of(keyed, watch) as socket:
        assert (await said(socket, op="subscribe", job=mine["id"]))["op"] == "subscribed"
        for frame in (
            {"op": "subscribe", "job": other["id"]},
            {"op": "cancel", "job": mine["id"]},
            {"op": "submit", "kind": "echo"},
        ):
            assert (await said(socket, **frame))["problem"]["code"] == "forbidden", frame
    async with socket_of(keyed, JobToken(mine["id"], True, LATER)) as socket:
        assert (await said(socket, op="cancel", job=mine["id"]))["job"]["state"] == "cancelled"
    async with socket_of(keyed, SubmitToken("echo", "anna", 100, LATER)) as socket:
        job = (await said(socket, op="submit", kind="echo", subscribe=False, idempotency_key="k"))["job"]
        assert (await said(socket, op="subscribe", job=job["id"]))["op"] == "subscribed"
        assert (await said(socket, op="cancel", job=job["id"]))["job"]["state"] == "cancelled"
        for frame, code in (
            ({"op": "submit", "kind": "read"}, "forbidden"),
            ({"op": "submit", "kind": "echo", "priority": "high"}, "forbidden"),
            ({"op": "subscribe", "job": other["id"]}, "job_not_found"),
            ({"op": "cancel", "job": other["id"]}, "job_not_found"),
        ):
            assert (await said(socket, **frame))["problem"]["code"] == code, frame
    with pytest.raises(aiohttp.WSServerHandshakeError) as over:
        async with socket_of(keyed, JobToken(mine["id"], expires=LATER - 7200)):
            pass
    assert over.value.status == 401


async def test_an_upload_is_its_users_own(keyed: Gateway, store: Store) -> None:
    """A page's large file comes in parts; no other user can read it or make a job of it, and nobody fills the disk."""
    await store.register_kind(KindDocument(kind="echo", files="optional"))
    tus = {"Tus-Resumable": "1.0.0"}
    part = tus | {"Content-Type": "application/offset+octet-stream", "Upload-Length": "4"}
    upload = await keyed.post("/v1/uploads", headers=user() | part, data=b"%PDF")
    path = upload.headers["Location"]
    named = {"files": [{"upload": path[-26:]}]}
    other_kind = tus | {"Upload-Length": "4", "Upload-Metadata": f"kind {base64.b64encode(b'read').decode()}"}

    for headers in (user("boris"), AS_ME, AS_OTHER):
        assert (await keyed.get(path, headers=headers)).status == 404
        assert refused(await keyed.post("/v1/kinds/echo/jobs", json=named, headers=headers)) == (
            404,
            "upload_not_found",
        )
    job = await submitted(keyed, user(), **named)
    assert (await keyed.get(job["files"][0]["url"], headers=user())).body == b"%PDF"
    assert (await keyed.get(job["files"][0]["url"], headers=user("boris"))).status == 404
    assert refused(await keyed.post("/v1/uploads", headers=user() | other_kind)) == (403, "forbidden")
    begun = [await keyed.post("/v1/uploads", headers=user() | part, data=b"%PDF") for _ in range(MAX_USER_UPLOADS)]
    assert [answer.status for answer in begun] == [201] * (MAX_USER_UPLOADS - 1) + [429]
    assert (await keyed.ask("DELETE", path, headers=user() | tus)).status == 204


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_a_token_takes_no_more_than_its_owner_gave(keyed: Gateway, store: Store) -> None:
    """So many jobs wait at most, of this user alone; and no job gets more than its kind gives by itself."""
    few = user(max_waiting=2)
    for _ in range(2):
        await submitted(keyed, few)

    full = await keyed.post("/v1/kinds/echo/jobs", json={}, headers=few)
    assert refused(full) == (429, "owner_queue_full")
    await begin(store, "echo")
    job = await submitted(keyed, few)
    await keyed.post(job["urls"]["cancel"], headers=few)
    await store.look(["echo"])
    await submitted(keyed, user("boris", max_waiting=1))
    await submitted(keyed, AS_ME)
    await submitted(keyed, few, priority="low", retention_seconds=60, run_timeout_seconds=60)
    await store.register_kind(ECHO.model_copy(update={"files": "optional", "start_deadline_seconds": 60}))
    for more in (
        {"priority": "high"},
        {"retention_seconds": 2_000_000},
        {"run_timeout_seconds": 80_000},
        {"start_deadline_seconds": 61},
        {"start_at": "2031-01-01T00:00:00Z"},
        {"input_url": "http://127.0.0.1:9/listed"},
    ):
        answer = await keyed.post("/v1/kinds/echo/jobs", json=more, headers=user())
        assert refused(answer) == (403, "forbidden")
        assert answer.json()["detail"].startswith(next(iter(more)))


async def test_watch_urls_take_their_users_places_and_not_the_keys(
    keyed: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page has one of each of its jobs: with them it must not take all the streams that its owner's server has."""
    monkeypatch.setattr(limits, "USER_STREAMS", 1)
    annas, other = await submitted(keyed, user()), await submitted(keyed, user())
    mine = await submitted(keyed, AS_ME)
    cancels = JobToken(annas["id"], True, LATER)

    async def opened(path: str, headers: dict[str, str] | None = None) -> int:
        async with keyed.session.get(keyed.url + path, headers=headers) as stream:
            return stream.status

    async with keyed.session.get(keyed.url + annas["urls"]["watch"]) as stream:
        assert stream.status == 200
        assert await opened(other["urls"]["watch"]) == 429
        assert await opened(annas["urls"]["self"] + "?wait=1", bearing(cancels)) == 429
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            async with socket_of(keyed, cancels):
                pass
        assert await opened(annas["urls"]["events"], AS_ME) == 200
        assert await opened(mine["urls"]["watch"]) == 200


async def test_a_users_backlog_holds_up_no_other_user(keyed: Gateway, store: Store) -> None:
    """Each is an owner to the queue: who comes after ten jobs of another is next but one."""
    ten = [await submitted(keyed, user()) for _ in range(10)]
    late = await submitted(keyed, user("boris"))

    taken = [claim.job for claim in await store.claim("echo", "worker", 3)]

    assert late["id"] in taken[:2]
    assert ten[0]["id"] in taken[:2]


# --- the owner's side -------------------------------------------------------------------------------------------------


async def test_the_owner_has_all_that_its_users_submitted(keyed: Gateway, store: Store) -> None:
    """Lists it, by user too; reads it, ends it, does it again for the user; another owner sees nothing of it."""
    dead = await use_up(store, ECHO, owner="me/anna")
    mine, annas = await submitted(keyed, AS_ME), await submitted(keyed, user())
    boris = await submitted(keyed, user("boris"))

    async def listed(query: str, headers: dict[str, str]) -> list[str]:
        return [job["id"] for job in (await keyed.get(f"/v1/jobs{query}", headers=headers)).json()["jobs"]]

    assert sorted(await listed("", AS_ME)) == sorted([mine["id"], annas["id"], boris["id"], dead.id])
    assert sorted(await listed("?user=anna", AS_ME)) == sorted([annas["id"], dead.id])
    assert await listed("", AS_OTHER) == []
    assert (await keyed.get(annas["urls"]["self"], headers=AS_OTHER)).status == 404
    assert (await keyed.post(annas["urls"]["cancel"], headers=AS_ME)).json()["by"] == "me"
    redrive = AS_ME | {"Idempotency-Key": f"redrive {annas['id']}"}
    await keyed.post("/v1/kinds/echo/jobs", json={"priority": "low"}, headers=redrive | user())
    again, twice = [(await keyed.post(f"{annas['urls']['self']}/retry", headers=redrive)).json() for _ in range(2)]
    assert again["id"] == twice["id"], "a key that the user has used first is another one"
    assert (await keyed.get(again["urls"]["self"], headers=user())).status == 200
    await keyed.post(again["urls"]["cancel"], headers=AS_ME)
    await keyed.post(mine["urls"]["cancel"], headers=AS_ME)
    await keyed.post(boris["urls"]["cancel"], headers=user("boris"))
    letters = (await keyed.get("/v1/kinds/echo/dead", headers=AS_ME)).json()["jobs"]
    assert [letter["id"] for letter in letters] == [dead.id]
    assert (await keyed.get("/v1/kinds/echo/dead", headers=AS_OTHER)).json()["jobs"] == []
    assert (await keyed.ask("DELETE", annas["urls"]["self"], headers=AS_ME)).status == 204
    for headers, status in ((AS_ME, 410), (user(), 410), (user("boris"), 404), (AS_OTHER, 404)):
        assert (await keyed.get(annas["urls"]["self"], headers=headers)).status == status


async def test_without_keys_a_token_limits_its_page_as_it_will_elsewhere(store: Store, tmp_path: Path) -> None:
    """It guards nothing there, but a page that is written beside such a gateway meets what it will meet later."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        answer = await gateway.post("/v1/tokens", json={"kind": "echo", "user": "anna"})
        page = bearing(answer.json()["token"])
        over = bearing(SubmitToken("echo", "anna", 100, LATER - 7200), "")

        job = await submitted(gateway, page)

        assert job["user"] == "anna"
        assert (await gateway.get(job["urls"]["watch"], headers=page | {"Accept": "application/json"})).status == 200
        assert (await gateway.get("/v1/jobs", headers=page)).status == 403
        assert refused(await gateway.get(job["urls"]["self"], headers=over)) == (401, "token_expired")
        assert (await gateway.get("/v1/jobs")).json()["jobs"][0]["id"] == job["id"]


# --- the end of a token -----------------------------------------------------------------------------------------------


async def test_a_stream_ends_with_its_token_and_says_why(keyed: Gateway) -> None:
    """A page comes back with a fresh token; whoever has only the old one hears no more."""
    job = await submitted(keyed, user())
    soon = int(time.time()) + 300
    events = f"{keyed.url}{job['urls']['events']}"
    async with (
        keyed.session.get(events, headers=user(expires=soon)) as stream,
        keyed.session.get(events, headers=AS_ME),
        socket_of(keyed, JobToken(job["id"], expires=soon)) as socket,
        keyed.session.post(
            f"{keyed.url}/v1/kinds/echo/jobs", json={}, headers=user(expires=soon) | {"Accept": "text/event-stream"}
        ),
    ):
        await said(socket, op="subscribe", job=job["id"])
        pass_time(keyed, 310)
        async with asyncio.timeout(PATIENCE_SECONDS):
            ended = await stream.content.read()
            while not socket.closed:
                await socket.receive()
        still_open = [listener for listener in keyed.app[HUB].listeners if not listener.closed.done()]

    closing = [from_json(line[6:]) for line in ended.splitlines() if b'"closing"' in line]
    assert [event["data"]["reason"] for event in closing] == ["token_expired"]
    assert socket.close_code == CLOSE_CODES[CloseCode.TOKEN_EXPIRED]
    assert len(still_open) == 2, "a key has no end, and a POST's answer is what it asked for"


def pass_time(gateway: Gateway, seconds: float) -> None:
    """Let the clock that walks the streams be so much later, but not so much that a planned end comes."""
    hub = gateway.app[HUB]
    clock = hub.pulse.clock
    hub.pulse.clock = lambda: clock() + seconds
    for listener in hub.listeners:
        # Nobody has been reading too slowly all that time.
        listener.moved_at += seconds
