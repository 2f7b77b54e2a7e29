"""The door for workers that are not ours: whoever has an attempt's write token reports its events over HTTP.

The token is the attempt's lease, so no API key is asked for; every write is checked in the store as any worker's.
"""

from __future__ import annotations

import re
from typing import Any, Final, NoReturn

from aiohttp import web
from pydantic import BaseModel, Field
from pydantic_core import from_json

from gateway.blobs import Blobs
from gateway.documents import JobDocument
from gateway.errors import BadRequest, Conflict, EventsLost, LeaseLost, NotFound, TooLarge, WriteTokenNeeded
from gateway.event_text import encode_event_tail
from gateway.handlers.body import body_chunks, small_json
from gateway.handlers.context import BLOBS, SETTINGS, STORE
from gateway.handlers.documents import answer_with, job_document
from gateway.handlers.routes import Answer, Parameter, Route
from gateway.handlers.submission import requested_key
from gateway.handlers.validation import validated
from gateway.handlers.worker_events import CLOSING, ReportRequest, Retrying, checked_events, problem_of
from gateway.protocol import INDEX_PATTERN, TERMINAL_TYPES, EventType
from gateway.store import Appended, JobRecord, Lease, Store, WriterEvent

_INDEX: Final = re.compile(INDEX_PATTERN, re.ASCII)
# 64 events of 256 KiB are more than anybody gathers; a larger report is sent in two.
_MAX_BODY: Final = 1024 * 1024
_LONG_REPORT: Final = f"A report has at most {_MAX_BODY} bytes; send its events in several."
# A worker of ours folds its log and has it trimmed at 4 MiB. One elsewhere doesn't, and must not fill Redis.
_MAX_LOG_BYTES: Final = 64 * 1024 * 1024


class Adopted(BaseModel):
    """An attempt that is yours now: report with this token, and at least every third of the lease."""

    token: str = Field(description="For all further requests; the one that you came with is used up.")
    lease_seconds: float
    input: Any = Field(description="The job's input.")
    job: JobDocument


class Reported(BaseModel):
    """What became of a report."""

    first: int | None = Field(None, description="The number of the first event; null for a renewal.")
    last: str = Field("", description="The cursor of the last event.")
    cancel_requested_by: str | None = Field(None, description="Somebody asked for the job's end: stop, and say so.")
    lease_seconds: float = Field(description="Report again within a third of it.")


class StoredOutput(BaseModel):
    """Where an output's bytes are: report it as the data of an `output` event."""

    index: str
    content_type: str
    url: str
    size: int


async def adopt(request: web.Request) -> web.Response:
    """`POST /v1/worker/jobs/{job}/adopt`."""
    lease = await _lease(request)
    store = request.app[STORE]
    try:
        begun, token = await store.adopt(lease, f"http {request.remote or ''}".strip(), key=requested_key(request))
    except LeaseLost as error:
        _refuse(error)
    assert begun.record is not None
    document = job_document(begun.record, request.app[SETTINGS])
    input_ = from_json(await _input(request, begun.record, begun.input))
    return answer_with(Adopted(token=token, lease_seconds=store.lease_seconds, input=input_, job=document))


async def report(request: web.Request) -> web.Response:
    """`POST /v1/worker/jobs/{job}/events`."""
    lease = await _lease(request)
    asked = validated(ReportRequest, await small_json(request, _MAX_BODY, TooLarge(_LONG_REPORT)))
    events, retrying = checked_events(lease.job, asked)
    store = request.app[STORE]
    try:
        if not asked.events:
            cancel_by = await store.renew(lease)
            return answer_with(Reported(cancel_requested_by=cancel_by, lease_seconds=store.lease_seconds))
        if asked.events[-1].type not in CLOSING and await store.log_bytes(lease.job) > _MAX_LOG_BYTES:
            raise TooLarge(
                f"The job's log has {_MAX_LOG_BYTES} bytes, and takes nothing more but an end. PUT what is large as an"
                " output.",
                code="log_full",
            )
        appended = await _append(store, lease, asked.batch, events, retrying)
    except (LeaseLost, EventsLost) as error:
        _refuse(error)
    return answer_with(
        Reported(
            first=appended.first,
            last=str(appended.last),
            cancel_requested_by=appended.cancel_by,
            lease_seconds=store.lease_seconds,
        )
    )


async def put_output(request: web.Request) -> web.Response:
    """`PUT /v1/worker/jobs/{job}/outputs/{index}`."""
    lease = await _lease(request)
    index = request.match_info["index"]
    if _INDEX.fullmatch(index) is None:
        raise BadRequest("An output's index is 1 to 64 letters, digits, dots, underscores or dashes.")
    store, blobs = request.app[STORE], request.app[BLOBS]
    key = Blobs.output_key(lease.job, lease.attempt, index)
    limit = request.app[SETTINGS].max_upload_bytes
    try:
        # Asked before the bytes come and when they are there: only the attempt that has the job may leave files of it,
        # and a slow request of one that has ended must not replace what its log tells of.
        await store.renew(lease)
        body = body_chunks(request, limit)
        size, _ = await blobs.put(key, body, max_bytes=limit, still_wanted=lambda: store.renew(lease))
    except LeaseLost as error:
        _refuse(error)
    return answer_with(
        StoredOutput(
            index=index,
            content_type=request.headers.get("Content-Type", "application/octet-stream"),
            url=f"/v1/jobs/{lease.job}/outputs/{index}",
            size=size,
        )
    )


async def _lease(request: web.Request) -> Lease:
    """The lease in the request's token, which must be of the job in its path."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise WriteTokenNeeded("Send the attempt's write token: `Authorization: Bearer w1~...`.")
    said = await request.app[STORE].check_write_token(token.strip())
    if said.lease.job != request.match_info["job"]:
        raise NotFound("The write token is another job's.", code="job_not_found")
    return said.lease


async def _input(request: web.Request, record: JobRecord, inline: bytes) -> bytes:
    return inline if record.input_blob is None else await request.app[BLOBS].get(record.input_blob)


async def _append(
    store: Store, lease: Lease, batch: int | None, events: list[WriterEvent], retrying: Retrying | None
) -> Appended:
    """Append a report; an end takes the job out of hand."""
    delay: float | None = None
    if retrying is not None:
        problem = problem_of(retrying.problem)
        record = await store.job(lease.job)
        if record.failures + 1 < record.max_attempts:
            delay = retrying.delay_seconds
            appended = await store.retry(lease, batch, events, problem, delay, counts=True)
            await store.leave(lease, record, retry_after_seconds=delay)
            return appended
        events = [*events, _exhausted(problem, record.max_attempts, partial=record.leaves_something or _leave(events))]
    appended = await store.append(lease, batch, events)
    if events[-1].type in TERMINAL_TYPES:
        await store.leave(lease, await store.job(lease.job))
    return appended


def _leave(events: list[WriterEvent]) -> bool:
    return any(event.type in (EventType.OUTPUT, EventType.DELTA) for event in events)


def _exhausted(problem: dict[str, Any], attempts: int, *, partial: bool) -> WriterEvent:
    exhausted = {
        "type": "/docs#problem-retries_exhausted",
        "title": "All attempts failed",
        "code": "retries_exhausted",
        "detail": f"All {attempts} attempts failed. The last one: {problem['detail']}",
        "cause": problem["code"],
    }
    return WriterEvent(
        EventType.FAILED, encode_event_tail(EventType.FAILED, {"problem": exhausted, "partial": partial})
    )


def _refuse(error: LeaseLost | EventsLost) -> NoReturn:
    detail = f"{error.detail} Stop: nothing that you report is taken any more."
    if isinstance(error, EventsLost):
        # Which of the two it is only the worker can know.
        detail = (
            "The number of this report doesn't follow that of the last one in the log: send the one that is missing,"
            " or, if it was answered before, stop, since the job store has lost it."
        )
    raise Conflict(detail, code=error.code) from None


_TOKEN: Final = Parameter("Authorization", "`Bearer` and the attempt's write token.", place="header")

_ADOPTION_KEY: Final = Parameter(
    "Idempotency-Key",
    "The same key again is the same adoption, as after a lost answer. A UUID for each message is a good one.",
    {"type": "string", "maxLength": 255},
    "header",
)

routes: Final = (
    Route(
        "POST",
        "/v1/worker/jobs/{job}/adopt",
        adopt,
        "Take a handed-over attempt",
        "A token adopts its attempt once: a message that a queue delivers twice starts no second writer.",
        responses={200: Answer("The attempt is yours.", Adopted)},
        parameters=(_TOKEN, _ADOPTION_KEY),
        public=True,
    ),
    Route(
        "POST",
        "/v1/worker/jobs/{job}/events",
        report,
        "Report events of an attempt",
        request=ReportRequest,
        responses={200: Answer("The events are in the log, or the lease is renewed.", Reported)},
        parameters=(_TOKEN,),
        public=True,
    ),
    Route(
        "PUT",
        "/v1/worker/jobs/{job}/outputs/{index}",
        put_output,
        "Store the bytes of an output",
        "Report it afterwards: the answer is the data of its `output` event.",
        other_bodies=("application/octet-stream",),
        responses={200: Answer("The bytes are stored.", StoredOutput)},
        parameters=(_TOKEN,),
        public=True,
    ),
)
