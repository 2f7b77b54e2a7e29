"""One WebSocket, many jobs: frames, answers, cursors, close codes with advice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest
from pydantic_core import from_json, to_json

from gateway.documents import KindDocument
from gateway.errors import ConfigurationError
from gateway.handlers.context import HUB
from gateway.hub import CONGESTED_BYTES
from gateway.protocol import CLOSE_CODES, CloseCode, should_come_back
from gateway.requests import MAX_FRAME_BYTES
from gateway.store import JobRecord, Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end, event, submit
from tests.serving import AS_ME, KEYS, Gateway, gateway_for

KIND = KindDocument(kind="echo")


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with quick heartbeats, in development mode."""
    async with gateway_for(store, tmp_path / "blobs", heartbeat_seconds=0.3, dev=True) as gateway:
        yield gateway


class Socket:
    """A client's socket that tells answers from events."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.pings = 0

    async def send(self, **frame: Any) -> None:
        """Send one frame."""
        await self.socket.send_str(to_json(frame).decode())

    async def receive(self) -> dict[str, Any]:
        """The next text frame; pings are answered and counted."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                message = await self.socket.receive()
                if message.type is aiohttp.WSMsgType.PING:
                    self.pings += 1
                    await self.socket.pong(message.data)
                    continue
                assert message.type is aiohttp.WSMsgType.TEXT, message
                return dict(from_json(message.data))

    async def until(self, type_: str) -> list[dict[str, Any]]:
        """Frames up to an event of a type; transient events are left out."""
        found = []
        while True:
            frame = await self.receive()
            if frame.get("type") not in {"liveness", "position"}:
                found.append(frame)
            if frame.get("type") == type_:
                return found

    async def closed(self) -> int:
        """Read until the socket is closed; the close code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.socket.closed:
                await self.socket.receive()
        return self.socket.close_code or 0


@pytest.fixture
async def socket(gateway: Gateway) -> AsyncIterator[Socket]:
    """An open socket."""
    async with gateway.session.ws_connect(f"{gateway.url}/v1/ws", autoping=False) as opened:
        yield Socket(opened)


async def job(store: Store) -> JobRecord:
    """A job of the owner of a gateway without keys."""
    return await submit(store, KIND, owner="local")


async def test_a_submit_is_answered_and_its_events_follow(socket: Socket, store: Store) -> None:
    """One frame does it all: the answer carries the request's ref, the events are the log's own texts."""
    await socket.send(op="submit", ref="1", kind="echo", input={"a": 1}, idempotency_key="key")
    submitted = await socket.receive()
    subscribed = await socket.receive()
    lease = await begin(store, "echo")
    await end(store, lease, batch=1)
    events = await socket.until("succeeded")

    assert (submitted["op"], submitted["ref"], submitted["replayed"]) == ("submitted", "1", False)
    assert subscribed["op"] == "subscribed"
    assert submitted["job"]["id"] == lease.job
    assert [one["id"] for one in events] == [1, 2, 3]

    await socket.send(op="submit", ref="2", kind="echo", input={"a": 1}, idempotency_key="key", subscribe=False)
    again = await socket.receive()
    assert (again["replayed"], again["job"]["id"]) == (True, lease.job)


async def test_many_jobs_share_a_socket_each_from_its_own_cursor(socket: Socket, store: Store) -> None:
    """Subscriptions are independent; an end leaves the socket open for the others."""
    jobs = [await job(store) for _ in range(5)]
    for place, one in enumerate(jobs):
        await socket.send(op="subscribe", ref=str(place), job=one.id, after="1" if place % 2 else None)
    for _ in jobs:
        lease = await begin(store, "echo")
        await end(store, lease, batch=1)

    numbers: dict[str, list[int]] = {one.id: [] for one in jobs}
    while sum(3 in seen for seen in numbers.values()) < len(jobs):
        frame = await socket.receive()
        if "id" in frame:
            numbers[frame["job"]].append(frame["id"])
    assert [numbers[one.id] for one in jobs] == [[1, 2, 3], [2, 3], [1, 2, 3], [2, 3], [1, 2, 3]]


async def test_an_unsubscribed_job_is_silent(socket: Socket, store: Store) -> None:
    """After the answer nothing of it comes any more, and it can be subscribed again."""
    record = await job(store)
    await socket.send(op="subscribe", job=record.id)
    await socket.until("queued")
    await socket.send(op="unsubscribe", ref="u", job=record.id)
    assert (await socket.receive())["op"] == "unsubscribed"
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": "unheard"})])

    await socket.send(op="subscribe", ref="s", job=record.id, after="2")
    frames = await socket.until("log")

    assert [frame.get("op") or frame["id"] for frame in frames] == ["subscribed", 3]
    await end(store, lease, batch=2)


async def test_a_cancel_reaches_the_job(socket: Socket, store: Store) -> None:
    """The answer has the job as it is now."""
    record = await job(store)
    await socket.send(op="cancel", ref="c", job=record.id)
    answer = await socket.receive()
    assert (answer["op"], answer["ref"], answer["job"]["state"]) == ("cancelling", "c", "cancelled")


async def test_a_cancel_keeps_its_reason(socket: Socket, store: Store) -> None:
    """As over HTTP: others read it in the job's end."""
    record = await job(store)
    await socket.send(op="cancel", job=record.id, reason="the page was wrong")
    await socket.receive()

    assert (await store.job(record.id)).end_data()["reason"] == "the page was wrong"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"op": "subscribe", "job": "a" * 26}, "job_not_found"),
        ({"op": "subscribe", "job": "nonsense"}, "bad_frame"),
        ({"op": "cancel", "job": "a" * 26}, "job_not_found"),
        ({"op": "submit", "kind": "nobody"}, "unknown_kind"),
        ({"op": "submit", "kind": "form", "input": {"name": "far too long a name"}}, "invalid_input"),
        ({"op": "submit", "kind": "echo", "surprise": 1}, "bad_frame"),
        ({"op": "dance"}, "bad_frame"),
        ({}, "bad_frame"),
    ],
)
async def test_what_cant_be_done_is_answered_with_a_problem(socket: Socket, frame: dict[str, Any], code: str) -> None:
    """The socket stays open: one wrong request is not the others' fault."""
    await socket.send(ref="r", **frame)
    answer = await socket.receive()
    assert (answer["op"], answer["ref"], answer["problem"]["code"]) == ("error", "r", code)
    assert answer["problem"]["detail"]

    await socket.send(op="unsubscribe", ref="still there", job="a" * 26)
    assert (await socket.receive())["ref"] == "still there"


async def test_what_is_an_operators_to_know_is_logged_and_not_sent(
    socket: Socket, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As over HTTP: the client gets the id under which the log tells what is wrong with a setting."""

    async def misconfigured(_: object) -> NoReturn:
        raise ConfigurationError("OUTLAST_REDIS_URL: Redis refuses the credentials")

    monkeypatch.setattr(store, "find_jobs", misconfigured)
    await socket.send(op="cancel", ref="r", job="a" * 26)
    problem = (await socket.receive())["problem"]

    assert (problem["code"], problem["status"]) == ("internal", 500)
    assert "OUTLAST" not in problem["detail"]
    [logged] = [record for record in caplog.records if record.exc_info]
    assert problem["request_id"] in logged.getMessage()
    assert "refuses the credentials" in caplog.text
    await socket.send(op="unsubscribe", ref="still there", job="a" * 26)
    assert (await socket.receive())["ref"] == "still there"


async def test_wrong_cursors_are_answered_with_a_problem(socket: Socket, store: Store) -> None:
    """In the future, or no cursor at all."""
    record = await job(store)
    for after in ("99", "-1", "x"):
        await socket.send(op="subscribe", ref=after, job=record.id, after=after)
        answer = await socket.receive()
        assert (answer["op"], answer["problem"]["code"]) == ("error", "bad_cursor")


async def test_a_second_subscription_to_the_same_job_is_refused(socket: Socket, store: Store) -> None:
    """Two places in one log on one socket could not be told apart."""
    record = await job(store)
    await socket.send(op="subscribe", job=record.id)
    await socket.until("queued")
    await socket.send(op="subscribe", ref="2", job=record.id)
    assert (await socket.receive())["problem"]["code"] == "already_subscribed"


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[1,2]",
        '"text"',
        "{",
        # What two readers could read differently, as everywhere.
        '{"op":"submit","kind":"echo","input":{"a":NaN}}',
        '{"op":"submit","kind":"echo","input":{"a":1e400}}',
        '{"op":"submit","kind":"echo","input":{"a":1,"a":2}}',
        '{"op":"submit","kind":"echo","input":{"a":' + "9" * 1000 + "}}",
    ],
)
async def test_what_is_no_frame_closes_the_socket_for_good(socket: Socket, text: str) -> None:
    """The close code says: don't come back like this."""
    await socket.socket.send_str(text)
    code = await socket.closed()
    assert code == CLOSE_CODES[CloseCode.BAD_FRAME]
    assert not should_come_back(code)


async def test_a_frame_over_the_limit_closes_the_socket(socket: Socket) -> None:
    """64 KiB are enough for any request."""
    await socket.socket.send_str('{"op":"' + "x" * MAX_FRAME_BYTES + '"}')
    assert await socket.closed() == 1009


async def test_silence_is_broken_by_pings(socket: Socket, store: Store) -> None:
    """Protocol pings, not events: no proxy sees silence."""
    record = await job(store)
    await socket.send(op="subscribe", job=record.id)
    await socket.until("queued")
    message = await socket.socket.receive(timeout=PATIENCE_SECONDS)
    assert message.type is aiohttp.WSMsgType.PING


async def test_a_drain_closes_with_a_code_that_means_come_back(gateway: Gateway, socket: Socket, store: Store) -> None:
    """A restart of the gateway is no end of the job."""
    record = await job(store)
    await socket.send(op="subscribe", job=record.id)
    await socket.until("queued")

    await gateway.app[HUB].drain(0)

    code = await socket.closed()
    assert code == CLOSE_CODES[CloseCode.DRAINING]
    assert should_come_back(code)


async def test_events_of_a_resume_over_websocket_are_those_of_sse(
    gateway: Gateway, socket: Socket, store: Store
) -> None:
    """The same bytes on both, so a client may change its transport in the middle."""
    record = await job(store)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": str(i)}) for i in range(5)])
    await end(store, lease, batch=2)
    sse = await gateway.get(f"/v1/jobs/{record.id}/events?after=3")

    await socket.send(op="subscribe", job=record.id, after="3")
    await socket.receive()
    texts = [(await socket.socket.receive()).data for _ in range(5)]

    assert [line.removeprefix("data: ") for line in sse.body.decode().splitlines() if line.startswith("data")] == texts


async def test_a_client_that_vanishes_frees_its_subscriptions(gateway: Gateway, store: Store) -> None:
    """Also while a subscription's log is being read."""
    record = await job(store)
    socket = await gateway.session.ws_connect(f"{gateway.url}/v1/ws")
    await socket.send_str(to_json({"op": "subscribe", "job": record.id}).decode())
    hub = gateway.app[HUB]
    await wait_until(lambda: any(listener.places for listener in hub.listeners))

    await socket.close()

    await wait_until(lambda: not hub.listeners)


async def test_a_foreign_page_may_not_open_a_socket(gateway: Gateway) -> None:
    """Browsers send cookies and reach localhost for any page: the origin decides before the upgrade."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.session.ws_connect(f"{gateway.url}/v1/ws", headers={"Origin": "https://evil.example"})
    assert refused.value.status == 403


async def test_a_socket_needs_a_key_where_keys_are_set(store: Store, tmp_path: Path) -> None:
    """And sees only its owner's jobs."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=dict(KEYS)) as gateway:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await gateway.session.ws_connect(f"{gateway.url}/v1/ws")
        assert refused.value.status == 401
        mine, theirs = await submit(store, KIND, owner="me"), await submit(store, KIND, owner="other")
        async with gateway.session.ws_connect(f"{gateway.url}/v1/ws", headers=AS_ME) as opened:
            socket = Socket(opened)
            await socket.send(op="subscribe", ref="t", job=theirs.id)
            assert (await socket.receive())["problem"]["code"] == "job_not_found"
            await socket.send(op="subscribe", ref="m", job=mine.id)
            assert (await socket.receive())["op"] == "subscribed"


async def test_a_plain_request_is_told_what_this_address_speaks(gateway: Gateway) -> None:
    """Somebody opens it in a browser's tab."""
    answer = await gateway.get("/v1/ws")
    assert (answer.status, answer.json()["code"]) == (400, "websocket_expected")


# --- clients that want too much -------------------------------------------------------------------------------------


async def test_a_socket_hears_so_many_jobs_and_no_more(
    socket: Socket, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is refused, those that are heard are kept, and one that is given up makes room."""
    monkeypatch.setattr("gateway.websocket.MAX_SUBSCRIPTIONS", 2)
    jobs = [(await job(store)).id for _ in range(3)]
    for each in jobs[:2]:
        await socket.send(op="subscribe", job=each)
        await socket.until("queued")

    await socket.send(op="subscribe", ref="third", job=jobs[2])
    refused = await socket.receive()
    await socket.send(op="unsubscribe", job=jobs[0])
    await socket.receive()
    await socket.send(op="subscribe", ref="again", job=jobs[2])

    assert (refused["ref"], refused["problem"]["code"]) == ("third", "too_many_subscriptions")
    assert (await socket.receive())["op"] == "subscribed"


async def test_a_socket_that_asks_for_nothing_is_closed(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets are counted, and this one is of no use to anybody."""
    monkeypatch.setattr("gateway.websocket._FIRST_FRAME_SECONDS", 0.2)
    async with gateway.session.ws_connect(f"{gateway.url}/v1/ws") as opened:
        assert await Socket(opened).closed() == CLOSE_CODES[CloseCode.IDLE]


async def test_compression_is_declined(gateway: Gateway) -> None:
    """It costs a hundred kilobytes for each socket."""
    async with gateway.session.ws_connect(f"{gateway.url}/v1/ws", compress=15) as opened:
        assert opened.compress == 0


async def test_a_client_that_asks_on_and_never_reads_is_bounded_and_closed(store: Store, tmp_path: Path) -> None:
    """Its frames are left unread when its answers are; nothing piles up here."""
    request = b'{"op":"dance","ref":"%b"}' % (b"r" * 64)
    frame = b"\x81" + bytes([0x80 | len(request)]) + b"\0\0\0\0" + request
    most = 0
    async with gateway_for(store, tmp_path / "blobs", write_stall_seconds=1) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port, limit=1024)
        writer.write(
            b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        [listener] = gateway.app[HUB].listeners
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not listener.closed.done():
                if writer.transport.get_write_buffer_size() == 0:
                    writer.write(frame * 500)
                most = max(most, listener.waiting_bytes)
                await asyncio.sleep(0)
        writer.transport.abort()

        assert listener.closed.result() is CloseCode.SLOW
    assert CONGESTED_BYTES < most < 2 * CONGESTED_BYTES
