"""The drop-in for clients that expect one POST and one JSON: submit a job, and answer with it when it has ended."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from pydantic import Field
from pydantic_core import to_json

from gateway.documents import JobDocument, Problem
from gateway.errors import OutlastError
from gateway.handlers.context import BLOBS
from gateway.handlers.documents import failure, shown_job
from gateway.handlers.held import HELD_ERRORS, Held
from gateway.handlers.jobs import JOB_HEADERS, KEY_HEADER, SUBMIT_QUERY, accept, repeated_job
from gateway.handlers.routes import Answer, Route
from gateway.requests import JobRequest
from gateway.store import JobRecord


class RunDocument(JobDocument):
    """An ended job with its result, however large. `error` is there if, and only if, there is no result."""

    error: Problem | None = Field(None, description="Why there is no result; absent where there is one.")


async def run(request: web.Request) -> web.StreamResponse:
    """`POST /v1/kinds/{kind}/run`."""
    submitted = await (repeated_job if "Last-Event-ID" in request.headers else accept)(request)
    async with Held(request, submitted, "application/json") as held:
        record, error = submitted.record, None
        try:
            record = await held.end()
            error = failure(record)
        except HELD_ERRORS as raised:
            error = raised
        return await _answer(request, held, record, error)


async def _answer(
    request: web.Request, held: Held, record: JobRecord, error: OutlastError | None
) -> web.StreamResponse:
    """The job's document, with `error` or with the result: that comes last, since it may be large and a blob."""
    document = shown_job(request, record)
    known = document.model_dump_json(exclude={"result"}).encode()[:-1]
    blob = record.result_blob if error is None else None
    size = 1
    if blob is not None:
        try:
            size += await request.app[BLOBS].size(blob)
        except HELD_ERRORS as raised:
            error, blob = raised, None
    headers = {}
    if error is not None:
        first = b'%b,"error":%b' % (known, to_json(error.problem()))
        if error.retry_after_seconds is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    else:
        first = b'%b,"result":%b' % (known, b"" if blob is not None else to_json(document.result))
    status = 200 if error is None else error.status
    return await held.answer(status, _pieces(request, first, blob), size + len(first), headers.items())


async def _pieces(request: web.Request, first: bytes, blob: str | None) -> AsyncIterator[bytes]:
    yield first
    if blob is not None:
        async for piece in request.app[BLOBS].stream(blob):
            yield piece
    yield b"}"


routes: Final = (
    Route(
        "POST",
        "/v1/kinds/{kind}/run",
        run,
        "Do a job and answer with its result",
        "For clients that expect one POST and one JSON, however long it takes. The body is that of a submit. Everything"
        " is checked before the first byte. A job that ends within OUTLAST_RUN_QUIET_SECONDS is answered with its true"
        " status; after that the status is 200 and white space comes before the JSON, so look at `error`: it is there"
        " if, and only if, there is no result.",
        request=JobRequest,
        other_bodies=("multipart/form-data", "application/octet-stream"),
        responses={
            200: Answer(
                "The job has ended; `error` says so if it did not succeed.",
                RunDocument,
                headers=JOB_HEADERS,
            ),
            422: Answer("The job ended early: it was refused or cancelled.", RunDocument),
            500: Answer("The job ended early: it failed.", RunDocument),
            503: Answer("This gateway stops; the job goes on.", RunDocument),
        },
        parameters=(KEY_HEADER, *SUBMIT_QUERY),
        held=True,
        right="submit",
    ),
)
