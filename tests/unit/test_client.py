"""The Python client against a gateway that does what the test says, down to the byte at which it stops."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.client import Client, File, Subscription
from gateway.client.client import Transport
from gateway.errors import (
    BadRequest,
    ConfigurationError,
    Gone,
    InvalidInput,
    JobFailed,
    NotFound,
    OutlastError,
    RequestError,
    TokenExpired,
    TooLarge,
    TooMany,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from gateway.hub import websocket_frame
from gateway.protocol import CLOSE_CODES, CloseCode, Cursor, Event, State
from gateway.sse import comment
from tests.faults import PATIENCE_SECONDS
from tests.scripted_gateway import (
    JOB,
    LOG,
    Asked,
    Handler,
    ScriptedGateway,
    Wire,
    cursor_of,
    document,
    event_stream,
    event_text,
    frames,
    sse,
    transient_text,
)


@asynccontextmanager
async def opened(handler: Handler, **options: Any) -> AsyncIterator[tuple[Client, ScriptedGateway]]:
    """A client of a scripted gateway that hardly pauses and soon gives up."""
    options = {"backoff_seconds": 0.001, "patience_seconds": 2.0, "silence_seconds": 5.0} | options
    async with ScriptedGateway(handler) as gateway, Client(gateway.url, **options) as client:
        yield client, gateway


def answers(*script: Callable[[Asked, Wire], Any]) -> Handler:
    """Each request gets the next answer; the last one is given again and again."""
    left = list(script)

    async def handler(asked: Asked, wire: Wire) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(asked, wire)

    return handler


def status(code: int, body: bytes | dict[str, Any] = b"<html>", **headers: str) -> Callable[[Asked, Wire], Any]:
    """An answer with this status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda asked, wire: wire.answer(code, body, named)


def problem(kind: type[OutlastError], **more: Any) -> Callable[[Asked, Wire], Any]:
    """A problem document of ours."""
    error = kind("do this next", **more)
    return status(error.status, error.problem())


def document_answer(state: str = "queued", code: int = 202, **more: Any) -> Callable[[Asked, Wire], Any]:
    """A job document."""
    return status(code, document(state, **more))


async def vanish(asked: Asked, wire: Wire) -> None:
    """The connection is lost before there is an answer."""


async def serve_log(asked: Asked, wire: Wire) -> None:
    """The whole log from the asked cursor, over either transport."""
    if asked.path == "/v1/ws":
        await wire.accept_socket(asked)
        await wire.send(frames(LOG, after=asked.after))
        await wire.closed()
    else:
        await wire.stream(sse(LOG, after=asked.after))


def types_of(events: list[Event]) -> list[str]:
    """What happened."""
    return [event.type for event in events]


WHOLE = ["queued", "started", "progress", "output", "succeeded"]
TRANSPORTS = pytest.mark.parametrize("transport", ["sse", "websocket"])


# --- events ---------------------------------------------------------------------------------------------------------


@TRANSPORTS
async def test_the_whole_log_arrives(transport: Transport) -> None:
    """One connection, each event once, the loop ends with the job."""
    async with opened(serve_log) as (client, gateway):
        events = [event async for event in client.events(JOB, transport=transport)]

    assert types_of(events) == WHOLE
    assert events[-1].data == {"result": {"pages": 2}}
    assert len(gateway.asked) == 1


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_stream_that_is_cut_at_any_byte_loses_and_repeats_nothing(chunked: bool) -> None:
    """Inside the answer's head, a chunk's length, a line end, a character of several bytes, an id."""
    whole = event_stream(sse(LOG), chunked=chunked)
    cuts: list[int] = []

    async def handler(asked: Asked, wire: Wire) -> None:
        await wire.stream(sse(LOG, after=asked.after), chunked=chunked, most=cuts.pop() if cuts else None)

    async with opened(handler) as (client, _):
        for most in range(len(whole)):
            cuts.append(most)
            subscription = client.events(JOB)
            assert types_of([event async for event in subscription]) == WHOLE, f"cut at {most}"
            assert (subscription.missed, subscription.holes, subscription.repeated) == (0, 0, 0)


async def test_a_socket_that_is_cut_at_any_byte_loses_and_repeats_nothing() -> None:
    """Inside a frame's length or its text; no close frame says so."""
    whole = frames(LOG)
    cuts: list[int] = []

    async def handler(asked: Asked, wire: Wire) -> None:
        await wire.accept_socket(asked)
        most = cuts.pop() if cuts else None
        await wire.send(frames(LOG, after=asked.after)[:most])
        if most is None:
            await wire.closed()

    async with opened(handler, transport="websocket") as (client, _):
        for most in range(len(whole)):
            cuts.append(most)
            subscription = client.events(JOB)
            assert types_of([event async for event in subscription]) == WHOLE, f"cut at {most}"
            assert (subscription.missed, subscription.holes, subscription.repeated) == (0, 0, 0)


async def test_a_stream_that_is_cut_on_every_connection_arrives() -> None:
    """However often it breaks: as long as something comes each time, the end is reached."""

    async def handler(asked: Asked, wire: Wire) -> None:
        head = len(event_stream([], end=False))
        await wire.stream(sse(LOG, after=asked.after), most=head + 270)

    async with opened(handler) as (client, gateway):
        subscription = client.events(JOB)
        events = [event async for event in subscription]

    assert types_of(events) == WHOLE
    assert subscription.reconnects == client.reconnects == len(gateway.asked) - 1 >= 3
    assert [asked.after for asked in gateway.asked] == sorted(asked.after for asked in gateway.asked)


@TRANSPORTS
async def test_a_listener_comes_with_its_own_cursor(transport: Transport) -> None:
    """`after` is the last event that it has, as text or as a cursor."""
    async with opened(serve_log, transport=transport) as (client, gateway):
        by_text = [event async for event in client.events(JOB, cursor_of(3))]
        by_cursor = [event async for event in client.events(JOB, Cursor(3))]

    assert types_of(by_text) == types_of(by_cursor) == WHOLE[3:]
    assert [asked.after for asked in gateway.asked] == [3, 3]


async def test_a_bad_cursor_is_refused_without_asking() -> None:
    """The mistake is the caller's, and shows at the call."""
    async with opened(serve_log) as (client, gateway):
        with pytest.raises(BadRequest, match="cursor"):
            client.events(JOB, "seventeen")
    assert gateway.asked == []


@TRANSPORTS
async def test_the_request_says_what_is_wanted(transport: Transport) -> None:
    """Snapshot, types and the key reach the gateway."""
    async with opened(serve_log, api_key="secret", transport=transport) as (client, gateway):
        async for _ in client.events(JOB, snapshot=True, types=["progress", "a.b"]):
            pass

    [asked] = gateway.asked
    assert asked.headers["authorization"] == "Bearer secret"
    if transport == "sse":
        assert asked.headers["accept"] == "text/event-stream"
        assert asked.query == {"snapshot": "1", "types": "progress,a.b"}
    else:
        [subscribe] = asked.frames
        assert (subscribe["op"], subscribe["snapshot"], subscribe["types"]) == ("subscribe", True, ["progress", "a.b"])


@pytest.mark.parametrize("code", [408, 429, 502, 503, 504, 520, 522, 524, 530])
async def test_an_edge_or_a_busy_gateway_is_waited_for(code: int) -> None:
    """Nothing of it says anything about the job."""
    async with opened(answers(status(code), status(code), serve_log)) as (client, gateway):
        events = [event async for event in client.events(JOB)]

    assert types_of(events) == WHOLE
    assert len(gateway.asked) == 3
    assert client.reconnects == 0


@pytest.mark.parametrize(
    ("kind", "code"), [(Unauthorized, 401), (NotFound, 404), (Gone, 410), (BadRequest, 400), (OutlastError, 500)]
)
@TRANSPORTS
async def test_what_the_gateway_refuses_is_raised(transport: Transport, kind: type[OutlastError], code: int) -> None:
    """Coming back would not mend it."""
    async with opened(problem(kind, code="why"), transport=transport) as (client, gateway):
        with pytest.raises(kind) as raised:
            [event async for event in client.events(JOB)]

    assert raised.value.code == ("why" if transport == "sse" else f"http_{code}")
    assert len(gateway.asked) == 1


async def test_the_key_is_asked_for_before_each_connection() -> None:
    """A short-lived one can be renewed while the stream lives."""
    keys = iter(["first", "second"])

    async def api_key() -> str:
        return next(keys)

    async def cut(asked: Asked, wire: Wire) -> None:
        await wire.stream(sse(LOG[:2]))

    async with opened(answers(cut, serve_log), api_key=api_key) as (client, gateway):
        [event async for event in client.events(JOB)]

    assert [asked.headers["authorization"] for asked in gateway.asked] == ["Bearer first", "Bearer second"]


class Mint:
    """A server of one's own that gives tokens with a number."""

    def __init__(self, expires_seconds: float = 900) -> None:
        self.expires_seconds = expires_seconds
        self.asked = 0

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        return {"token": f"t{self.asked}", "expires_seconds": self.expires_seconds}


def shown(gateway: ScriptedGateway) -> list[str]:
    """What the requests came with."""
    return [asked.headers["authorization"].removeprefix("Bearer ") for asked in gateway.asked]


@TRANSPORTS
async def test_a_token_whose_time_is_over_is_fetched_anew(transport: Transport) -> None:
    """The events go on where they were; a token that is still good is shown again."""
    mint = Mint()

    async def cut(asked: Asked, wire: Wire) -> None:
        if transport == "sse":
            await wire.stream(sse(LOG[:2]))
        else:
            await wire.accept_socket(asked)
            await wire.send(frames(LOG[:2]))
            await wire.close_socket(CLOSE_CODES[CloseCode.TOKEN_EXPIRED])

    expired = problem(TokenExpired)
    async with opened(answers(cut, expired, serve_log), token=mint, transport=transport) as (client, gateway):
        events = [event async for event in client.events(JOB)]

    assert types_of(events) == WHOLE
    assert shown(gateway) == ["t1", "t1", "t2"]


async def test_many_requests_wait_for_one_token_and_a_fresh_one_that_is_refused_is_an_error() -> None:
    """So is one that was given as a text: there is no better one to show."""
    mint = Mint()
    async with opened(status(200, {"kinds": []}), token=mint) as (client, gateway):
        await asyncio.gather(*(client.kinds() for _ in range(5)))
        assert shown(gateway) == ["t1"] * 5
    for token in (Mint(), "t1"):
        async with opened(problem(TokenExpired), token=token) as (client, gateway):
            with pytest.raises(TokenExpired):
                await client.kinds()
            assert shown(gateway) == ["t1"]


async def test_a_token_of_which_most_of_the_time_is_over_is_not_shown_any_more() -> None:
    """Nor is anything shown where there is none; a key and a token are one too many."""
    async with opened(status(200, {"kinds": []}), token=Mint(expires_seconds=0)) as (client, gateway):
        await client.kinds()
        await client.kinds()
        assert shown(gateway) == ["t1", "t2"]
    async with opened(status(200, {"kinds": []}), token=lambda: {"detail": "log in first"}) as (client, gateway):
        with pytest.raises(ConfigurationError, match="holds no token"):
            await client.kinds()
        assert gateway.asked == []
    async with opened(status(200, {"kinds": []}), token=lambda: None) as (client, gateway):
        await client.kinds()
        assert "authorization" not in gateway.asked[0].headers
    with pytest.raises(ConfigurationError):
        Client("http://127.0.0.1:1", api_key="k", token="t")


async def test_204_after_the_end_ends_the_loop() -> None:
    """The cut came between the terminal event's bytes and their receipt, or the listener had them already."""
    async with opened(status(204)) as (client, _):
        assert [event async for event in client.events(JOB, cursor_of(5))] == []


async def test_an_ended_subscription_ends_the_loop() -> None:
    """The same over a WebSocket."""

    async def handler(asked: Asked, wire: Wire) -> None:
        await wire.accept_socket(asked)
        await wire.send(websocket_frame(b'{"op":"subscribed","ref":"1","ended":true}'))
        await wire.closed()

    async with opened(handler, transport="websocket") as (client, _):
        assert [event async for event in client.events(JOB, cursor_of(5))] == []


@TRANSPORTS
async def test_a_reset_and_its_snapshot_are_handed_on(transport: Transport) -> None:
    """A part of the log is gone: said, counted, and gone on from."""
    data = {"cursor": cursor_of(3), "state": "running", "attempt": 1, "progress": None, "text": {}, "outputs": 0}
    texts = [
        transient_text("reset", {"reason": "trimmed", "missing_from": 1, "missing_to": 3}),
        event_text(3, "snapshot", data),
        *LOG[3:],
    ]

    async def handler(asked: Asked, wire: Wire) -> None:
        if transport == "websocket":
            await wire.accept_socket(asked)
            await wire.send(frames(texts))
            await wire.closed()
        else:
            await wire.stream(sse(texts))

    async with opened(handler, transport=transport) as (client, _):
        subscription = client.events(JOB)
        events = [event async for event in subscription]

    assert types_of(events) == ["reset", "snapshot", "output", "succeeded"]
    assert (subscription.missed, subscription.received) == (3, 2)


async def test_ids_without_data_move_the_cursor() -> None:
    """What `types` left out is not asked for again."""

    async def first(asked: Asked, wire: Wire) -> None:
        await wire.stream([*sse(LOG[:1]), f"id: {cursor_of(4)}\n\n".encode()])

    async with opened(answers(first, serve_log)) as (client, gateway):
        events = [event async for event in client.events(JOB, types=["queued"])]

    assert types_of(events) == ["queued", "succeeded"]
    assert gateway.asked[1].query["after"] == cursor_of(4)


@TRANSPORTS
async def test_a_planned_end_is_followed_by_a_new_connection(transport: Transport) -> None:
    """`closing` is handed on; the job goes on."""
    closing = transient_text("closing", {"reason": "max_age", "retry_seconds": 0.01})

    async def first(asked: Asked, wire: Wire) -> None:
        if transport == "websocket":
            await wire.accept_socket(asked)
            await wire.send(frames([*LOG[:2], closing]))
            await wire.close_socket(CLOSE_CODES[CloseCode.MAX_AGE])
        else:
            await wire.stream(sse([*LOG[:2], closing]))

    async with opened(answers(first, serve_log), transport=transport) as (client, _):
        events = [event async for event in client.events(JOB)]

    assert types_of(events) == [*WHOLE[:2], "closing", *WHOLE[2:]]


@pytest.mark.parametrize("code", [1000, 1002, 1009, 4500, 4999])
async def test_a_socket_that_says_stay_away_is_believed(code: int) -> None:
    """The range decides, also for a code that is not known."""

    async def handler(asked: Asked, wire: Wire) -> None:
        await wire.accept_socket(asked)
        await wire.close_socket(code, b"because")

    async with opened(handler, transport="websocket") as (client, gateway):
        with pytest.raises(RequestError, match="because") as raised:
            [event async for event in client.events(JOB)]

    assert raised.value.code == f"closed_{code}"
    assert len(gateway.asked) == 1


@pytest.mark.parametrize("code", [1001, 1012, 4000, 4003, 4499])
async def test_a_socket_that_says_come_back_is_come_back_to(code: int) -> None:
    """The range decides here too."""

    async def first(asked: Asked, wire: Wire) -> None:
        await wire.accept_socket(asked)
        await wire.close_socket(code)

    async with opened(answers(first, serve_log), transport="websocket") as (client, _):
        assert types_of([event async for event in client.events(JOB)]) == WHOLE


async def test_an_error_frame_is_the_error_that_it_holds() -> None:
    """A subscribe that is refused does not end the socket; it ends the subscription."""

    async def handler(asked: Asked, wire: Wire) -> None:
        await wire.accept_socket(asked)
        await wire.send(
            websocket_frame(json.dumps({"op": "error", "ref": "1", "problem": Gone("x").problem()}).encode())
        )
        await wire.closed()

    async with opened(handler, transport="websocket") as (client, _):
        with pytest.raises(Gone):
            [event async for event in client.events(JOB)]


async def test_something_that_lets_no_websocket_pass_is_named() -> None:
    """An old proxy answers the upgrade like any other request."""
    async with opened(status(200), transport="websocket", patience_seconds=0.05) as (client, _):
        with pytest.raises(Unreachable, match='transport="sse"'):
            [event async for event in client.events(JOB)]


@TRANSPORTS
async def test_silence_is_taken_for_a_dead_connection(transport: Transport) -> None:
    """A half-open connection yields no error by itself, for hours."""

    async def silent(asked: Asked, wire: Wire) -> None:
        if transport == "websocket":
            await wire.accept_socket(asked)
            await wire.send(frames(LOG[:2]))
            await wire.closed()
        else:
            await wire.stream(sse(LOG[:2]), end=False)

    async with opened(answers(silent, serve_log), silence_seconds=1, transport=transport) as (client, gateway):
        events = [event async for event in client.events(JOB)]

    assert types_of(events) == WHOLE
    assert [asked.after for asked in gateway.asked] == [0, 2]


async def test_a_gateway_that_answers_nothing_at_all_is_given_up() -> None:
    """It accepts the connection, and that is all."""

    async def nothing(asked: Asked, wire: Wire) -> None:
        await wire.closed()

    async with opened(nothing, silence_seconds=0.05, patience_seconds=0.1) as (client, _):
        with pytest.raises(Unreachable, match="Nothing came"):
            [event async for event in client.events(JOB)]
        with pytest.raises(Unreachable, match="Nothing came"):
            await client.job(JOB)


@TRANSPORTS
async def test_heartbeats_keep_a_quiet_connection(transport: Transport) -> None:
    """A job that says nothing for long is not a dead connection."""

    async def quiet(asked: Asked, wire: Wire) -> None:
        beat = b"\x89\x00" if transport == "websocket" else b"3\r\n%b\r\n" % comment("")
        if transport == "websocket":
            await wire.accept_socket(asked)
            await wire.send(frames(LOG[:1]))
        else:
            await wire.send(event_stream(sse(LOG[:1]), end=False))
        for _ in range(8):
            await asyncio.sleep(0.2)
            await wire.send(beat)
        last = LOG[1:]
        if transport == "websocket":
            await wire.send(b"".join(websocket_frame(text) for text in last))
            await wire.closed()
        else:
            blocks = b"".join(sse(last)[2:])
            await wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(blocks), blocks))

    async with opened(quiet, silence_seconds=1.4, transport=transport) as (client, gateway):
        events = [event async for event in client.events(JOB)]

    assert types_of(events) == WHOLE
    assert len(gateway.asked) == 1


@pytest.mark.parametrize(
    "body", [b"data: {broken\n\n", b"data: []\n\n", b"id: x\n\n", b"data: " + b"x" * 100 + b"\n\n"]
)
async def test_a_stream_that_is_none_of_ours_is_given_up(body: bytes) -> None:
    """Read again twice, since a proxy may have broken it once."""

    async def handler(asked: Asked, wire: Wire) -> None:
        await wire.stream([*sse([]), body])

    async with opened(handler) as (client, gateway):
        with pytest.raises(Unreachable) as raised:
            [event async for event in client.events(JOB)]

    assert raised.value.code == "bad_stream"
    assert len(gateway.asked) == 3


async def test_a_page_in_the_place_of_a_stream_is_no_stream() -> None:
    """A captive portal answers 200 to everything."""
    async with opened(answers(status(200, b"<html>log in"), serve_log)) as (client, _):
        assert types_of([event async for event in client.events(JOB)]) == WHOLE
    async with opened(status(200, b"<html>log in"), patience_seconds=0.05) as (client, _):
        with pytest.raises(Unreachable, match="in the gateway's place"):
            [event async for event in client.events(JOB)]
        with pytest.raises(Unreachable, match="check the address"):
            await client.job(JOB)


async def test_the_hook_can_tell_how_it_went() -> None:
    """ "reconnected once, missed 0"."""
    said: list[str] = []

    def hook(subscription: Subscription) -> None:
        said.append(f"{subscription.job == JOB} {subscription.reconnects} {subscription.missed}")

    async def cut(asked: Asked, wire: Wire) -> None:
        await wire.stream(sse(LOG[:2]))

    async with opened(answers(cut, serve_log), on_reconnect=hook) as (client, _):
        [event async for event in client.events(JOB)]

    assert said == ["True 1 0"]
    assert client.reconnects == 1


async def test_cancelling_the_loop_closes_the_connection_and_nothing_else() -> None:
    """The job goes on: the gateway is asked for nothing more."""
    gone = asyncio.Event()

    async def handler(asked: Asked, wire: Wire) -> None:
        await wire.stream(sse(LOG[:2]), end=False)
        gone.set()

    async with opened(handler) as (client, gateway):
        heard = asyncio.Event()

        async def listen() -> None:
            async for _ in client.events(JOB):
                heard.set()

        task = asyncio.create_task(listen())
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)

        assert [asked.method for asked in gateway.asked] == ["GET"]


# --- submit ---------------------------------------------------------------------------------------------------------


class Words(BaseModel):
    """An input as a user may have it."""

    text: str
    path: Path = Path("a/b")


async def test_a_submit_is_one_json_body() -> None:
    """Input, options and a key of its own."""
    async with opened(document_answer()) as (client, gateway):
        job = await client.submit("ocr", {"languages": ["de"]}, priority="high", tags=["a"], start_at=None)
        await client.submit("ocr", Words(text="x"))

    first, second = gateway.asked
    assert (first.method, first.path) == ("POST", "/v1/kinds/ocr/jobs")
    assert json.loads(first.body) == {"input": {"languages": ["de"]}, "priority": "high", "tags": ["a"]}
    assert first.headers["content-type"] == "application/json"
    assert json.loads(second.body) == {"input": {"text": "x", "path": "a/b"}}
    assert len({asked.headers["idempotency-key"] for asked in gateway.asked}) == 2
    assert (job.id, job.kind, job.state, job.terminal, job.replayed) == (JOB, "ocr", State.QUEUED, False, False)
    assert JOB in repr(job)


@pytest.mark.parametrize("failure", [vanish, *map(status, (502, 503, 504, *range(520, 528)))])
async def test_a_submit_whose_answer_was_lost_is_repeated_under_the_same_key(failure: Any) -> None:
    """So it runs once, whatever happened to the answers."""

    async def last(asked: Asked, wire: Wire) -> None:
        await wire.answer(202, document(), {"Idempotency-Replayed": "true"})

    async with opened(answers(failure, failure, last)) as (client, gateway):
        job = await client.submit("ocr", idempotency_key="my-key")

    assert job.replayed
    assert [asked.headers["idempotency-key"] for asked in gateway.asked] == ["my-key"] * 3
    assert len({asked.body for asked in gateway.asked}) == 1


async def test_an_edges_own_json_says_nothing_about_the_job_either() -> None:
    """Some edges answer in JSON, with a `code` of their own; the status counts."""
    own = {"code": "bad_gateway", "detail": "the origin gave no answer"}
    async with opened(answers(status(502, own), status(524, own), document_answer())) as (client, gateway):
        await client.submit("ocr")

    assert len({asked.headers["idempotency-key"] for asked in gateway.asked}) == 1
    assert len(gateway.asked) == 3


async def test_a_gateway_that_says_later_is_asked_later() -> None:
    """`Retry-After` is the least pause."""
    async with opened(answers(status(429, TooMany("x").problem(), Retry_After="1"), document_answer())) as (client, _):
        began = asyncio.get_running_loop().time()
        await client.submit("ocr")

        assert asyncio.get_running_loop().time() - began >= 1


@pytest.mark.parametrize("kind", [BadRequest, Unauthorized, NotFound, TooLarge, InvalidInput, Gone])
async def test_a_submit_that_is_refused_is_not_repeated(kind: type[OutlastError]) -> None:
    """The error is the gateway's, with the fields that are wrong."""
    errors = [{"field": "input.pages", "message": "too many"}]
    async with opened(problem(kind, errors=errors)) as (client, gateway):
        with pytest.raises(kind) as raised:
            await client.submit("ocr")

    assert (raised.value.detail, raised.value.errors) == ("do this next", errors)
    assert len(gateway.asked) == 1


async def test_a_gateway_that_is_not_there_is_unreachable_when_patience_ends() -> None:
    """The message says where to look; a submit can have less patience than the client."""
    async with ScriptedGateway(vanish) as gateway:
        url = gateway.url
    async with Client(url, backoff_seconds=0.01, patience_seconds=60) as client:
        with pytest.raises(Unreachable, match="Is it running"):
            await client.submit("ocr", patience_seconds=0.1)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "", "redis://localhost"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    """Before anything waits for it."""
    with pytest.raises(ConfigurationError, match="no address of a gateway"):
        Client(url)


async def test_a_redirect_is_named_and_not_followed() -> None:
    """A POST would become a GET on its way, and the key would go to a stranger."""
    async with opened(status(301, Location="https://elsewhere.example/")) as (client, _):
        with pytest.raises(ConfigurationError, match=r"https://elsewhere\.example/"):
            await client.submit("ocr")


async def test_files_are_streamed_with_their_size_and_progress(tmp_path: Path) -> None:
    """A multipart body with the input, the options and the files."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(b"%PDF" + bytes(3_000_000))
    reports: list[tuple[int, int | None]] = []

    async with opened(document_answer()) as (client, gateway):
        await client.submit(
            "ocr",
            {"text": "never"},
            files=[path, File(b"x", name="page.png")],
            on_upload=lambda sent, total: reports.append((sent, total)),
            priority="low",
        )

    [asked] = gateway.asked
    assert asked.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert asked.headers["content-length"] == str(len(asked.body))
    assert "transfer-encoding" not in asked.headers
    assert asked.headers["expect"] == "100-continue"
    assert b'name="input"\r\n\r\n{"text":"never"}\r\n' in asked.body
    assert b'name="options"\r\n\r\n{"priority":"low"}\r\n' in asked.body
    assert asked.body.count(b'name="file"; filename=') == 2
    assert bytes(3_000_000) in asked.body
    assert reports[-1] == (3_000_005, 3_000_005)


async def test_a_small_upload_whose_answer_was_lost_is_sent_again_whole(tmp_path: Path) -> None:
    """From its first byte, also where the connection broke in its middle; parts would be no smaller."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(bytes(200_000))

    async with opened(answers(vanish, document_answer())) as (client, gateway):
        await client.submit("ocr", files=path)

    assert [len(asked.body) for asked in gateway.asked] == [len(gateway.asked[0].body)] * 2


async def test_a_file_that_cannot_be_read_is_no_error_of_the_network(tmp_path: Path) -> None:
    """It is named at once, not tried again."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(bytes(2_000_000))

    def lose(sent: int, total: int | None) -> None:
        path.write_bytes(b"")

    async with opened(document_answer()) as (client, _):
        with pytest.raises(InvalidInput, match="became shorter"):
            await client.submit("ocr", files=path, on_upload=lose)


async def test_a_refused_upload_is_heard_before_it_is_sent(tmp_path: Path) -> None:
    """100 MB need not travel to learn that they are too many."""
    path = tmp_path / "large.pdf"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    sent: list[int] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(TooLarge("at most 100 MB").problem()).encode()
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(TooLarge, match="at most 100 MB"):
            await client.submit("ocr", files=path, on_upload=lambda done, total: sent.append(done))

    assert sum(sent[-1:]) < 50_000_000


# --- results and the rest -------------------------------------------------------------------------------------------


async def test_a_result_is_waited_for() -> None:
    """Long polls that end in time for every edge, until the job has ended."""
    script = answers(
        document_answer("queued", 200),
        document_answer("running", 200),
        document_answer("succeeded", 200, result={"a": 1}),
    )
    async with opened(script) as (client, gateway):
        assert await client.result(JOB) == {"a": 1}

    assert all(0 < float(asked.query["wait"]) < 100 for asked in gateway.asked)


async def test_a_large_result_is_fetched() -> None:
    """It is not in the document, which has its address."""

    async def handler(asked: Asked, wire: Wire) -> None:
        if asked.path.endswith("/result"):
            await wire.answer(200, b"[1,2]", {"Content-Type": "application/json"})
        else:
            await wire.answer(200, document("succeeded", result_url=f"/v1/jobs/{JOB}/result"))

    async with opened(handler) as (client, _):
        assert await client.result(JOB) == [1, 2]


@pytest.mark.parametrize(
    ("content_type", "body", "value"),
    [
        ("text/plain; charset=utf-8", "Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe"),
        ("application/pdf", b"%PDF", b"%PDF"),
        ("application/json", b"null", None),
    ],
)
async def test_a_result_comes_in_the_form_that_was_asked_for(content_type: str, body: bytes, value: object) -> None:
    """Text as text, anything else as bytes."""

    async def handler(asked: Asked, wire: Wire) -> None:
        if asked.path.endswith("/result"):
            assert asked.headers["accept"] == "x/y"
            await wire.answer(200, body, {"Content-Type": content_type})
        else:
            await wire.answer(200, document("succeeded", result=1))

    async with opened(handler) as (client, _):
        assert await client.result(JOB, accept="x/y") == value


async def test_a_failed_job_is_an_error_with_its_problem() -> None:
    """The caller learns why, and by a stable code."""
    why = {"type": "/docs#problem-rejected", "title": "Rejected", "code": "rejected", "detail": "The PDF is encrypted."}
    async with opened(document_answer("failed", 200, problem=why)) as (client, _):
        with pytest.raises(JobFailed, match="The PDF is encrypted") as raised:
            await client.run("ocr")

    assert raised.value.code == "job_failed"
    assert raised.value.job_problem["code"] == "rejected"


async def test_a_cancelled_job_is_an_error_of_its_own_code() -> None:
    """Nobody failed, but there is no result."""
    async with opened(document_answer("cancelled", 200, reason="not needed")) as (client, _):
        with pytest.raises(JobFailed, match="not needed") as raised:
            await client.result(JOB)

    assert raised.value.code == "job_cancelled"


async def test_run_submits_and_waits() -> None:
    """The whole thing in one call."""
    async with opened(answers(document_answer(), document_answer("succeeded", 200, result=7))) as (client, gateway):
        assert await client.run("ocr", {"a": 1}, priority="low") == 7

    assert [asked.method for asked in gateway.asked] == ["POST", "GET"]


async def test_cancel_asks_and_may_wait_for_the_end() -> None:
    """A running job ends when its processor notices."""
    script = answers(document_answer("running"), document_answer("running"), document_answer("cancelled", 200))
    async with opened(script) as (client, gateway):
        asked_for = await client.cancel(JOB, reason="not needed")
        ended = await client.cancel(JOB, wait=True)

    assert (asked_for.state, ended.state) == (State.RUNNING, State.CANCELLED)
    first, second, third = gateway.asked
    assert (first.method, first.path, json.loads(first.body)) == (
        "POST",
        f"/v1/jobs/{JOB}/cancel",
        {"reason": "not needed"},
    )
    assert "prefer" not in first.headers
    assert second.headers["prefer"].startswith("wait=")
    assert third.method == "GET"


async def test_jobs_are_listed_page_by_page() -> None:
    """One loop over all of them; a limit ends it early."""

    async def handler(asked: Asked, wire: Wire) -> None:
        number = int(asked.query.get("cursor", "0"))
        jobs = [document(id=f"{number}{place}".rjust(26, "a")) for place in range(int(asked.query["limit"]) and 3)]
        await wire.answer(200, {"jobs": jobs, "cursor": str(number + 1) if number < 2 else None})

    async with opened(handler) as (client, gateway):
        everything = [job.id[-2:] async for job in client.jobs(state=State.RUNNING, kind="ocr", tag="t")]
        six = [job.id[-2:] async for job in client.jobs(limit=6)]

    assert everything == ["00", "01", "02", "10", "11", "12", "20", "21", "22"]
    assert six == everything[:6]
    assert len(gateway.asked) == 3 + 2
    assert gateway.asked[0].query == {"state": "running", "kind": "ocr", "tag": "t", "limit": "100"}


async def test_outputs_are_listed_page_by_page() -> None:
    """A snapshot only counts them."""

    async def handler(asked: Asked, wire: Wire) -> None:
        after = int(asked.query["after"])
        output = json.loads(event_text(after + 4, "output", {"index": str(after)}))
        await wire.answer(200, {"outputs": [output], "next": after + 1 if after < 2 else None})

    async with opened(handler) as (client, _):
        assert [event.data["index"] async for event in client.outputs(JOB)] == ["0", "1", "2"]


async def test_the_fold_is_the_state_so_far() -> None:
    """A snapshot and what came after it, up to the newest event; then the stream is left."""
    data = {"cursor": cursor_of(2), "state": "running", "attempt": 1, "progress": None, "text": {}, "outputs": 0}
    texts = [event_text(2, "snapshot", data), *LOG[2:4]]

    async def handler(asked: Asked, wire: Wire) -> None:
        if asked.path.endswith("/events"):
            await wire.stream(sse(texts), end=False)
        else:
            await wire.answer(200, document("running", last_event_id=cursor_of(4)))

    async with opened(handler) as (client, gateway):
        fold = await client.fold(JOB)

    assert (fold.state, fold.progress, fold.outputs) == (State.RUNNING, {"current": 1, "total": 2}, 1)
    assert gateway.asked[1].query["snapshot"] == "1"


async def test_kinds_are_listed() -> None:
    """What this gateway can do."""
    async with opened(status(200, {"kinds": [{"kind": "ocr", "files": "required", "later": 1}]})) as (client, _):
        [kind] = await client.kinds()

    assert (kind.kind, kind.files) == ("ocr", "required")


async def test_only_the_gateways_own_addresses_are_fetched() -> None:
    """The key must not go to an address that a processor chose."""
    async with opened(status(200, b"bytes")) as (client, gateway):
        assert await client.fetch(f"/v1/jobs/{JOB}/outputs/0") == b"bytes"
        for url in ("http://evil.example/", "//evil.example/", "evil"):
            with pytest.raises(ConfigurationError, match="no path"):
                await client.fetch(url)
    assert len(gateway.asked) == 1


async def test_a_jobs_own_methods_are_the_clients() -> None:
    """The handle saves carrying the id around."""
    async with opened(answers(document_answer(), serve_log, document_answer("succeeded", 200, result=3))) as (
        client,
        _,
    ):
        job = await client.submit("ocr")

        assert types_of([event async for event in job.events()]) == WHOLE
        assert await job.result() == 3
        assert (await job.refresh()).terminal
        assert (await job.cancel()).state is State.SUCCEEDED


async def test_a_gateway_below_a_path_is_reached() -> None:
    """Behind a proxy that serves it as a part of a site."""
    async with ScriptedGateway(document_answer(code=200)) as gateway, Client(f"{gateway.url}/outlast/") as client:
        await client.job(JOB)

    assert gateway.asked[0].path == f"/outlast/v1/jobs/{JOB}"


async def test_a_client_that_is_not_open_says_so() -> None:
    """The mistake of leaving out `async with`."""
    with pytest.raises(RuntimeError, match="async with"):
        await Client().job(JOB)


async def test_later_is_not_for_ever() -> None:
    """The last answer is the error, when patience ends."""
    async with opened(problem(Unavailable, code="draining"), patience_seconds=0.05) as (client, gateway):
        with pytest.raises(Unavailable) as raised:
            await client.job(JOB)

    assert raised.value.code == "draining"
    assert len(gateway.asked) > 1


def test_importing_the_client_imports_neither_aiohttp_nor_anything_of_pydantic() -> None:
    """It takes longer than all else; the import time itself is measured in benchmarks."""
    heavy = "{'aiohttp', 'pydantic', 'pydantic_core', 'redis', 'rich'}"
    code = f"import sys, gateway.client; print(sorted(sys.modules.keys() & {heavy}))"

    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert shown.stdout.strip() == "[]"
