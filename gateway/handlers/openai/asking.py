"""A request at the door becomes a job of the kind `llm`; an ended job becomes its result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from gateway.documents import KindDocument
from gateway.errors import FOR_CLIENTS, InvalidInput, NotFound, OutlastError, TooLarge, Unavailable
from gateway.handlers.body import body_chunks
from gateway.handlers.context import SETTINGS, STORE, known_kind, principal
from gateway.handlers.held import Held
from gateway.handlers.openai.errors import error_body, error_headers, error_status
from gateway.handlers.received import Received
from gateway.handlers.results import result_of
from gateway.handlers.routes import Answer, Parameter
from gateway.handlers.strict_json import read_json
from gateway.handlers.submission import requested_key
from gateway.handlers.validation import validated, wrong_field
from gateway.requests import JobRequest
from gateway.store import JobRecord, Submitted

# An ended job's document, from its result or from why it has none.
Document = Callable[[JobRecord, dict[str, Any] | None, OutlastError | None], Awaitable[dict[str, Any]]]

LLM: Final = "llm"
# For clients of a chat that is read once: nobody wants the rest of an answer whose reader has left.
ON_DISCONNECT: Final = "Outlast-On-Disconnect"
_INLINE_SPARE_BYTES: Final = 4096
_IN_LOOP_BYTES: Final = 64 * 1024
# A context of a million tokens has some 80,000 commas.
_MOST_VALUES: Final = 300_000

IDEMPOTENCY: Final = Parameter(
    "Idempotency-Key", "The same key, the same answer: nothing is generated or paid for twice.", place="header"
)
DISCONNECT: Final = Parameter(
    ON_DISCONNECT, "`cancel` ends the answer when nobody has listened to it for a minute.", place="header"
)
ERROR: Final = {
    status: Answer("An error in OpenAI's form; its packages raise an exception of their own for it.")
    for status in (400, 401, 404, 429, 500, 503)
}
ANSWERS: Final = {
    200: Answer("The answer, or its stream.", content_types=("application/json", "text/event-stream"))
} | ERROR


async def read_object(request: web.Request) -> dict[str, Any]:
    """The request's body. Raises `BadRequest`, `InvalidInput` and `TooLarge`."""
    body = bytearray()
    async for chunk in body_chunks(request, request.app[SETTINGS].max_upload_bytes):
        body += chunk
    value = await _read(body)
    if not isinstance(value, dict):
        raise wrong_field("body", "not an object")
    return value


async def _read(body: bytearray) -> Any:
    """Read what may be tens of megabytes, without holding up the streams of everybody else."""
    if len(body) <= _IN_LOOP_BYTES:
        return read_json(body, "The body")
    # Two characters make a value, and a value takes a microsecond: images are large, and few.
    if (values := sum(body.count(mark) for mark in b",[{")) > _MOST_VALUES:
        raise TooLarge(
            f"The body has {values} values, or commas in its texts; at most {_MOST_VALUES} are read.",
            code="input_too_large",
        )
    return await asyncio.to_thread(read_json, body, "The body")


def flag(body: dict[str, Any], name: str) -> bool:
    """A boolean of the body's, which is no parameter of the model. Raises `InvalidInput`."""
    value = body.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise wrong_field(name, "true or false")
    return bool(value)


async def llm_kind(app: web.Application, name: str = LLM) -> KindDocument:
    """The kind that answers. Raises `Unavailable` where no worker has ever offered it."""
    try:
        return await known_kind(app[STORE], name)
    except NotFound:
        raise Unavailable(
            "No worker that asks a model has been here yet; `OUTLAST_LLM_URL=... outlast up` starts one.",
            code="no_worker",
        ) from None


async def ask(request: web.Request, asked: dict[str, Any], kept: dict[str, Any] | None = None) -> Submitted:
    """Make the job of a request, or find the one that its Idempotency-Key has made before.

    `kept` is what the job's input holds for our own answers. What is too large for an input goes along as a file.
    Raises what a submit does.
    """
    app, key = request.app, requested_key(request)
    kind = await llm_kind(app)
    own = {} if kept is None else {"responses": kept}
    options = {"on_disconnect": request.headers.get(ON_DISCONNECT, "continue")}
    async with Received(app, kind, principal(request), key, validated(JobRequest, options)) as received:
        input_ = asked | own
        if len(to_json(input_)) > app[SETTINGS].max_inline_bytes - _INLINE_SPARE_BYTES:
            # Sorted, so that the same request has the same digest.
            await received.store("request.json", "application/json", _once(json.dumps(asked, sort_keys=True).encode()))
            input_ = {"model": asked.get("model")} | own
        received.request = received.request.model_copy(update={"input": input_})
        try:
            return await received.submit()
        except InvalidInput as error:
            # The caller's fields are the input's.
            for one in error.errors:
                one["field"] = one["field"].removeprefix("input.")
            raise


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def check_messages(asked: dict[str, Any]) -> None:
    """Raises `InvalidInput` for what would only fail as a job: the rest is for the kind's schema to say."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong_field("messages", "needed, a list")


async def held_result(
    request: web.Request, submitted: Submitted, document: Document, *, tells_failure: bool = False
) -> web.StreamResponse:
    """Hold the request until the job has ended, and answer with its document.

    `tells_failure`: the document itself can say that there is no result, where the status can't any more.
    """
    async with Held(request, submitted, "application/json") as held:
        record, result, error = submitted.record, None, None
        try:
            record = await held.end()
            result = await result_of(request.app, record)
        except FOR_CLIENTS as raised:
            error = raised
        if error is None or (tells_failure and held.begun and record.terminal):
            return await held.answer(200, to_json(await document(record, result, error)))
        return await held.answer(error_status(error), error_body(error), headers=error_headers(error).items())
