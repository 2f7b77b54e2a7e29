"""One connection that carries a job's events, over SSE or over a WebSocket. Both yield the same frames."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from aiohttp import WSMsgType
from pydantic_core import from_json, to_json

from gateway.client.connection import Connection, translated
from gateway.client.subscription import Advice, Alive, Ended, Frame, Moved, Opened
from gateway.errors import OutlastError, RequestError, Unreachable, error_from_answer
from gateway.protocol import Cursor, Event, read_event, should_come_back
from gateway.sse import MAX_MESSAGE_CHARS, Decoder

_NO_FRAME: Final = 1006


async def open_sse(
    connection: Connection, job: str, types: Sequence[str] | None, cursor: Cursor, *, snapshot: bool
) -> AsyncGenerator[Frame, None]:
    """The job's events as Server-Sent Events."""
    query = {"after": str(cursor)} if cursor.number else {}
    if snapshot:
        query["snapshot"] = "1"
    if types is not None:
        query["types"] = ",".join(types)
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
    async with connection.stream(f"/v1/jobs/{job}/events", query=query, headers=headers) as (status, chunks):
        if status == 204:
            yield Ended()
            return
        yield Opened()
        decoder = Decoder(query.get("after", ""))
        retry_ms = None
        async for chunk in chunks:
            place = decoder.last_event_id
            try:
                messages = decoder.feed(chunk)
            except ValueError as error:
                raise _unreadable(error) from None
            if decoder.retry_ms is not None and decoder.retry_ms != retry_ms:
                retry_ms = decoder.retry_ms
                yield Advice(retry_ms / 1000)
            for message in messages:
                yield _event(_json(message.data))
                place = message.id
            if decoder.last_event_id != place:
                # An id without data: events that `types` left out.
                yield Moved(_cursor(decoder.last_event_id))
            elif not messages and decoder.comments > 1:
                # The first comment only says that the stream was accepted.
                yield Alive()


async def open_websocket(
    connection: Connection, job: str, types: Sequence[str] | None, cursor: Cursor, *, snapshot: bool
) -> AsyncGenerator[Frame, None]:
    """The job's events over a WebSocket of its own."""
    subscribe: dict[str, Any] = {"op": "subscribe", "ref": "1", "job": job, "after": str(cursor), "snapshot": snapshot}
    if types is not None:
        subscribe["types"] = list(types)
    async with connection.websocket("/v1/ws", max_bytes=MAX_MESSAGE_CHARS) as socket:
        with translated():
            await socket.send_str(to_json(subscribe).decode())
        while True:
            with translated():
                message = await socket.receive()
            if message.type is not WSMsgType.TEXT:
                # aiohttp's own close code says 1000 also where the connection just broke off.
                code = message.data if message.type is WSMsgType.CLOSE and message.data else _NO_FRAME
                if should_come_back(code):
                    return
                raise _told_to_stay_away(code, message.extra)
            frame = _answer_or_event(message.data)
            yield frame
            if isinstance(frame, Ended):
                return


def _answer_or_event(text: str) -> Frame:
    raw = _json(text)
    match raw.get("op") if isinstance(raw, dict) else None:
        case None:
            return _event(raw)
        case "subscribed":
            return Ended() if raw.get("ended") else Opened()
        case "error":
            problem = raw.get("problem") or {}
            raise error_from_answer(int(problem.get("status") or 400), problem)
        case _:
            return Alive()


def _told_to_stay_away(code: int, reason: str | None) -> OutlastError:
    text = f"The gateway closed the connection and asks not to come back: {reason or code}."
    return RequestError(text, code=f"closed_{code}")


def _event(raw: object) -> Event:
    try:
        return read_event(raw)
    except ValueError as error:
        raise _unreadable(error) from None


def _json(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise _unreadable(error) from None


def _cursor(text: str) -> Cursor:
    try:
        return Cursor.parse(text)
    except OutlastError as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> Unreachable:
    return Unreachable(
        f"The stream holds something that is none of ours; it is read again from the last good event. ({error})"[:500],
        code="bad_stream",
    )
