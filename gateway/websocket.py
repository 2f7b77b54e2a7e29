"""One WebSocket, many jobs: submit, subscribe with a cursor, unsubscribe, cancel.

Events are the same bytes as on any other transport; answers have `op` and the request's `ref`. Everything that is sent
goes through the listener, so answers and events keep their order. No compression: with it an idle socket costs 100 KB
and more, and shared secrets beside foreign text in one compressed stream can be guessed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from aiohttp import WSMsgType, web
from pydantic import ValidationError
from pydantic_core import to_json

from gateway.auth import SUBPROTOCOL
from gateway.errors import BadRequest, OutlastError, TooMany
from gateway.handlers.context import HUB, SETTINGS, STORE, known_kind, owned, principal
from gateway.handlers.documents import job_document
from gateway.handlers.problems import REQUEST_ID, for_client, problem_document
from gateway.handlers.received import Received
from gateway.handlers.routes import NO_BODY, Answer, Route
from gateway.handlers.streams import check_cursor, end_with_token, requested_cut
from gateway.handlers.strict_json import read_json
from gateway.handlers.submission import checked_key
from gateway.hub import CONGESTED_BYTES, Frame, Listener, Place, Subscription, websocket_frame
from gateway.protocol import CLOSE_CODES, START, CloseCode, Cursor
from gateway.requests import (
    CLIENT_FRAME,
    MAX_FRAME_BYTES,
    MAX_SUBSCRIPTIONS,
    CancelFrame,
    JobRequest,
    SubmitFrame,
    SubscribeFrame,
    UnsubscribeFrame,
)
from gateway.store import JobRecord

logger = logging.getLogger(__name__)

_PING: Final = b"\x89\x00"
# A socket that asks for nothing is closed after this: connections are counted.
_FIRST_FRAME_SECONDS: Final = 10.0
_ADVICE: Final = {
    CloseCode.SLOW: "reads too slowly; come back with your cursors",
    CloseCode.DRAINING: "this gateway is stopping; come back with your cursors",
    CloseCode.MAX_AGE: "planned end; come back with your cursors",
    CloseCode.STORE_LOST: "the job store is away; come back with your cursors",
    CloseCode.TOKEN_EXPIRED: "the token has expired; come back with a fresh one and your cursors",
    CloseCode.CUT: "cut as asked; come back with your cursors",
    CloseCode.BAD_FRAME: "not a frame of this protocol; see /docs#websocket",
    CloseCode.IDLE: "nothing was asked for",
}


class SocketListener(Listener):
    """A WebSocket's side that hears events. `on_finished` is told of each job whose end has been sent."""

    on_finished: Callable[[str], None] | None = None

    def encode(self, place: Place, frame: Frame) -> bytes:
        return frame.websocket

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        return websocket_frame(text) if text else b""

    def heartbeat(self) -> bytes:
        return _PING

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def finished(self, place: Place) -> None:
        if self.on_finished is not None:
            self.on_finished(place.job)


class Session:
    """One client's socket: reads its frames, and owns what each of them started."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, listener: SocketListener) -> None:
        self._app = request.app
        self._principal = principal(request)
        self._request_id = request[REQUEST_ID]
        self._hub = request.app[HUB]
        self._store = request.app[STORE]
        self._settings = request.app[SETTINGS]
        self._socket = socket
        self._listener = listener
        self._jobs: dict[str, Subscription | None] = {}
        self._asked = False
        listener.on_finished = self._forget

    async def run(self) -> None:
        """Serve frames until the client goes, the listener is closed, or a frame is none of this protocol."""
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(group))
            idle = asyncio.get_running_loop().call_later(_FIRST_FRAME_SECONDS, self._close_if_idle)
            try:
                ends: set[asyncio.Future[Any]] = {reader, self._listener.closed}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                idle.cancel()
            if self._listener.closed.done() and not self._socket.closed:
                code = self._listener.closed.result()
                await self._socket.close(
                    code=CLOSE_CODES[code] if code else 1000, message=_ADVICE[code].encode() if code else b""
                )
            self._listener.close(None)
            # What is still under way (a catch-up, a submit's answer) has nobody left to hear it.
            raise _SessionOver

    def _close_if_idle(self) -> None:
        if not self._asked:
            self._listener.close(CloseCode.IDLE)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                self._listener.close(CloseCode.BAD_FRAME)
                return
            self._asked = True
            if self._listener.waiting_bytes > CONGESTED_BYTES:
                # Who doesn't read its answers asks for no more of them.
                await self._hub.pulse.wait_for_room(self._listener)
            try:
                raw = read_json(message.data.encode(), "The frame")
            except BadRequest:
                self._listener.close(CloseCode.BAD_FRAME)
                return
            if not isinstance(raw, dict):
                self._listener.close(CloseCode.BAD_FRAME)
                return
            try:
                frame = CLIENT_FRAME.validate_python(raw)
            except ValidationError as error:
                self._refuse(raw.get("ref"), _bad_fields(error))
                continue
            await self._serve(frame, group)

    async def _serve(
        self, frame: SubscribeFrame | UnsubscribeFrame | SubmitFrame | CancelFrame, group: asyncio.TaskGroup
    ) -> None:
        try:
            match frame:
                case SubscribeFrame():
                    await self._subscribe(frame, group)
                case UnsubscribeFrame():
                    self._unsubscribe(frame)
                case SubmitFrame():
                    await self._submit(frame, group)
                case CancelFrame():
                    self._principal.check("cancel")
                    record = await owned(self._store, frame.job, self._principal)
                    record = await self._store.cancel(record.id, self._principal.owner, frame.reason)
                    self._answer("cancelling", frame.ref, **self._document(record))
        except Exception as raised:
            # One broken request must not end the socket's other jobs.
            error = for_client(raised)
            if error.code == "internal":
                logger.exception("a frame on the socket of request %s failed", self._request_id)
            self._refuse(frame.ref, error)

    async def _subscribe(self, frame: SubscribeFrame, group: asyncio.TaskGroup) -> None:
        after = Cursor.parse(frame.after) if frame.after else START
        record = await owned(self._store, frame.job, self._principal)
        check_cursor(record, after)
        self._start(frame.ref, record, after, group, snapshot=frame.snapshot, types=frame.types)

    def _start(
        self,
        ref: str | None,
        record: JobRecord,
        after: Cursor,
        group: asyncio.TaskGroup,
        *,
        snapshot: bool = False,
        types: list[str] | None = None,
    ) -> None:
        if record.id in self._jobs:
            raise BadRequest(
                f"This socket hears job {record.id} already; unsubscribe first.", code="already_subscribed"
            )
        if len(self._jobs) >= MAX_SUBSCRIPTIONS:
            raise TooMany(
                f"A socket hears at most {MAX_SUBSCRIPTIONS} jobs; unsubscribe some, or open another.",
                code="too_many_subscriptions",
            )
        self._jobs[record.id] = None
        # What 204 says on SSE: no event will come, and the client must not wait for one.
        ended = {"ended": True} if record.ends_at(after) else {}
        self._answer("subscribed", ref, job=record.id, after=str(after), **ended)
        replay = self._follow(record, after, snapshot=snapshot, types=types)
        try:
            group.create_task(replay)
        except RuntimeError:
            # The socket went while the store was asked, and its group takes no new tasks.
            replay.close()

    async def _follow(self, record: JobRecord, after: Cursor, *, snapshot: bool, types: list[str] | None) -> None:
        """Replay in a task of its own: a long log must not keep the socket's other frames waiting."""
        if record.id not in self._jobs:
            return  # Unsubscribed before this began.
        subscription = self._jobs[record.id] = self._hub.place(self._listener, record, after, types=types)
        await self._hub.start(subscription, snapshot=snapshot)

    def _unsubscribe(self, frame: UnsubscribeFrame) -> None:
        self._forget(frame.job)
        self._answer("unsubscribed", frame.ref, job=frame.job)

    def _forget(self, job: str) -> None:
        subscription = self._jobs.pop(job, None)
        if subscription is not None:
            self._hub.unsubscribe(subscription)

    async def _submit(self, frame: SubmitFrame, group: asyncio.TaskGroup) -> None:
        body = JobRequest.model_validate(frame.model_dump(include=set(JobRequest.model_fields), exclude_unset=True))
        self._principal.check("submit", kind=frame.kind)
        kind = await known_kind(self._store, frame.kind)
        async with Received(self._app, kind, self._principal, checked_key(frame.idempotency_key), body) as received:
            submitted = await received.submit()
        document = self._document(submitted.record)
        self._answer("submitted", frame.ref, replayed=submitted.replayed, **document)
        if frame.subscribe and submitted.record.id not in self._jobs:
            self._start(frame.ref, submitted.record, START, group)

    def _document(self, record: JobRecord) -> dict[str, Any]:
        return {"job": job_document(record, self._settings, until=self._principal.expires).model_dump(mode="json")}

    def _answer(self, op: str, ref: str | None, **fields: Any) -> None:
        answer = {"op": op} | ({"ref": ref} if ref is not None else {}) | fields
        self._listener.push(websocket_frame(to_json(answer)))

    def _refuse(self, ref: object, error: OutlastError) -> None:
        problem = problem_document(error, self._request_id)
        self._answer("error", ref if isinstance(ref, str) else None, problem=problem)


class _SessionOver(Exception):
    """Ends a session's task group with all that is in it."""


def _bad_fields(error: ValidationError) -> BadRequest:
    errors = [
        {"field": ".".join(str(part) for part in problem["loc"]), "message": problem["msg"]}
        for problem in error.errors()
    ]
    return BadRequest("This frame is not valid; `errors` names the fields.", code="bad_frame", errors=errors)


async def websocket(request: web.Request) -> web.StreamResponse:
    """`GET /v1/ws`."""
    settings, hub = request.app[SETTINGS], request.app[HUB]
    cut = requested_cut(request)
    # A browser that offers subprotocols (the key is in one) fails a connection on which none is chosen.
    socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,), compress=False, max_msg_size=MAX_FRAME_BYTES, timeout=5.0)
    if not socket.can_prepare(request).ok:
        raise BadRequest("This address speaks WebSocket only; open it with ws:// or wss://.", code="websocket_expected")
    if request.body_exists:
        # A body on an upgrade has been used to smuggle a second request past proxies (CVE-2026-69243).
        raise BadRequest("A WebSocket handshake has no body.", code="websocket_expected")
    await socket.prepare(request)
    transport = request.transport
    if transport is None:
        return socket
    listener = SocketListener(hub.pulse, transport, transport_name="websocket")
    listener.end_in(settings.stream_max_age_seconds * random.uniform(0.8, 1.2), CloseCode.MAX_AGE)
    end_with_token(request, listener)
    cutter = asyncio.get_running_loop().call_later(cut, transport.abort) if cut is not None else None
    hub.open(listener)
    try:
        await Session(request, socket, listener).run()
    except* _SessionOver:
        pass
    finally:
        if cutter is not None:
            cutter.cancel()
        code = listener.closed.result() if listener.closed.done() and not listener.closed.cancelled() else None
        hub.close(listener, code.value if code else "gone")
        with suppress(ConnectionError):
            await socket.close()
    return socket


routes: Final = [
    Route(
        "GET",
        "/v1/ws",
        websocket,
        "Many jobs over one WebSocket",
        "Submit, subscribe with a cursor, unsubscribe, cancel; see the protocol's page for the frames.",
        responses={101: Answer("Switching to WebSocket.", content_types=NO_BODY)},
        held=True,
        right="read",
    )
]
