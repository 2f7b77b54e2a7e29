"""`/openai/v1/responses`: answers that are fetched later, followed again after a cut, and cancelled."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from gateway.errors import FOR_CLIENTS, BadRequest, NotFound, OutlastError
from gateway.handlers.context import HUB, STORE, STREAMS, ended_within, owned, principal
from gateway.handlers.openai.asking import (
    ANSWERS,
    DISCONNECT,
    ERROR,
    IDEMPOTENCY,
    LLM,
    ask,
    flag,
    held_result,
    read_object,
)
from gateway.handlers.openai.response_document import Asked, partial_items, response_document
from gateway.handlers.openai.response_events import PARTS, ResponseEvents
from gateway.handlers.openai.response_request import KEPT, chat_request
from gateway.handlers.openai.translation import begin_stream, ended
from gateway.handlers.results import result_of
from gateway.handlers.routes import Answer, Parameter, Route
from gateway.store import JobRecord, Submitted

# What a response says again stands in the job's record; long instructions and tools need not.
_MAX_KEPT_BYTES: Final = 32 * 1024
# A worker that asks a model is told at once and stops within a moment.
_CANCEL_SECONDS: Final = 5.0


async def create_response(request: web.Request) -> web.StreamResponse:
    """`POST /openai/v1/responses`."""
    body = await read_object(request)
    streams, background = flag(body, "stream"), flag(body, "background")
    flag(body, "store")
    body.pop("stream_options", None)
    chat = chat_request(body)
    kept = {name: body[name] for name in KEPT if body.get(name) is not None} | {"background": background}
    if len(to_json(kept)) > _MAX_KEPT_BYTES:
        kept = {name: value for name, value in kept.items() if name not in {"instructions", "tools", "text"}}
    submitted = await ask(request, chat, kept)
    asked = Asked(str(chat.get("model", "")), kept)
    # Images are tens of megabytes, and the answer may take an hour.
    del body, chat
    if streams:
        return await _stream(request, submitted, asked, -1)
    if background:
        return await _document(request, submitted.record, asked)

    async def document(record: JobRecord, result: dict[str, Any] | None, error: OutlastError | None) -> dict[str, Any]:
        return await _whole(request.app, record, asked, result, error)

    return await held_result(request, submitted, document, tells_failure=True)


async def fetch_response(request: web.Request) -> web.StreamResponse:
    """`GET /openai/v1/responses/{response}`."""
    record, asked = await _owned_response(request)
    after, streams = request.query.get("starting_after"), request.query.get("stream", "false").lower() == "true"
    if not streams:
        if after is not None:
            raise BadRequest("starting_after is for streams: add stream=true.")
        return await _document(request, record, asked)
    with request.app[STREAMS].place(principal(request).owner):
        return await _stream(request, Submitted(record, False), asked, _sequence_number(after, record))


async def cancel_response(request: web.Request) -> web.StreamResponse:
    """`POST /openai/v1/responses/{response}/cancel`."""
    record, asked = await _owned_response(request)
    record = await request.app[STORE].cancel(record.id, principal(request).owner, "cancelled by the client")
    return await _document(request, await ended_within(request, record, _CANCEL_SECONDS), asked)


async def _owned_response(request: web.Request) -> tuple[JobRecord, Asked]:
    name, store = request.match_info["response"], request.app[STORE]
    record = await owned(store, name.removeprefix("resp_"), principal(request))
    if record.kind != LLM or not name.startswith("resp_"):
        raise NotFound(f"There is no response {name[:40]!r}.", code="job_not_found")
    return record, Asked.read(await store.input_of(record.id))


def _sequence_number(text: str | None, record: JobRecord) -> int:
    if text is None:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise BadRequest("starting_after is the sequence_number of an event that you have.", code="bad_cursor")
    if int(text) >= record.last.number * PARTS and not record.terminal:
        raise BadRequest(
            f"starting_after={text} is beyond the response's last event; use a sequence_number that you have.",
            code="bad_cursor",
        )
    return int(text)


async def _stream(request: web.Request, submitted: Submitted, asked: Asked, after: int) -> web.StreamResponse:
    record = submitted.record
    response = await begin_stream(request, submitted)
    if (transport := request.transport) is None:
        return response
    chunked = bool(response.chunked) or request.version >= (1, 1)
    listener = ResponseEvents(request.app[HUB].pulse, transport, record, asked, after=after, chunked=chunked)
    end = await ended(request, listener)
    try:
        if isinstance(end, OutlastError):
            raise end
        result, error = await _outcome(request.app, end)
        listener.say(listener.end(end, result, await _whole(request.app, end, asked, result, error)))
    except FOR_CLIENTS as raised:
        listener.say(listener.error(raised))
    await response.write_eof()
    return response


async def _outcome(app: web.Application, record: JobRecord) -> tuple[dict[str, Any] | None, OutlastError | None]:
    """An ended job's result, or why it has none."""
    try:
        return await result_of(app, record), None
    except FOR_CLIENTS as error:
        if record.result_blob is not None:
            # There is one; it can't be had now.
            raise
        return None, error


async def _document(request: web.Request, record: JobRecord, asked: Asked) -> web.Response:
    """The response as it is now."""
    result, error = await _outcome(request.app, record) if record.terminal else (None, None)
    document = await _whole(request.app, record, asked, result, error)
    headers = {"Cache-Control": "no-store", "X-Job-Id": record.id}
    return web.Response(body=to_json(document), content_type="application/json", headers=headers)


async def _whole(
    app: web.Application,
    record: JobRecord,
    asked: Asked,
    result: dict[str, Any] | None,
    error: OutlastError | None,
) -> dict[str, Any]:
    partial = await partial_items(app, record) if record.terminal and result is None else None
    return response_document(record, asked, result=result, error=error, partial=partial)


routes: Final = (
    Route(
        "POST",
        "/openai/v1/responses",
        create_response,
        "Ask a model, as in OpenAI's Responses API",
        "`background` answers at once and the response is fetched later; `stream` sends its events as they come;"
        " without either the answer is held and white space comes before it.",
        responses=ANSWERS,
        parameters=(IDEMPOTENCY, DISCONNECT),
        held=True,
    ),
    Route(
        "GET",
        "/openai/v1/responses/{response}",
        fetch_response,
        "Read or follow a response",
        "With `stream=true` its events, from the begin or after `starting_after`.",
        responses=ANSWERS,
        parameters=(
            Parameter("stream", "`true`: its events, as they come.", {"type": "boolean"}),
            Parameter("starting_after", "Only those after this `sequence_number`.", {"type": "integer", "minimum": 0}),
        ),
    ),
    Route(
        "POST",
        "/openai/v1/responses/{response}/cancel",
        cancel_response,
        "Cancel a response",
        "The model server's stream is closed. What was said by then stays.",
        responses={200: Answer("The response.")} | ERROR,
    ),
)
