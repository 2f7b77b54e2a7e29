"""Jobs: submit, read, list, cancel, retry, delete."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

from aiohttp import web
from pydantic import BaseModel, Field

from gateway.documents import JobDocument, JobList
from gateway.errors import BadRequest, Conflict, Gone, NotFound, TooLarge
from gateway.handlers.body import small_json
from gateway.handlers.context import (
    BLOBS,
    STORE,
    STREAMS,
    ended_within,
    known_kind,
    owned,
    owned_job,
    preferred_wait,
    principal,
    requested_preferences,
    requested_wait,
    wait_for_end,
)
from gateway.handlers.documents import answer_with, job_headers, shown_job
from gateway.handlers.received import Received
from gateway.handlers.routes import EVENT_STREAM, NO_BODY, SECONDS, Answer, Parameter, Route
from gateway.handlers.streams import (
    Format,
    Wishes,
    accepted_format,
    requested_cursor,
    requested_wishes,
    stream,
)
from gateway.handlers.submission import requested_key
from gateway.handlers.validation import validated
from gateway.protocol import START, State
from gateway.requests import JobRequest
from gateway.store import JobRecord, Submitted

# When to ask for an open job again; those who want to know at once wait or stream.
_ASK_AGAIN_SECONDS: Final = "2"
_MAX_LISTED: Final = 200
_MAX_REASON_BODY: Final = 16 * 1024
_LONG_REASON: Final = f"The body of a cancel has at most {_MAX_REASON_BODY} bytes."


class CancelRequest(BaseModel):
    """The optional JSON body of a cancel."""

    model_config = {"extra": "forbid"}
    reason: str = Field("cancelled by the client", min_length=1, max_length=500)


# --- submit -----------------------------------------------------------------------------------------------------------


async def submit_job(request: web.Request) -> web.StreamResponse:
    """`POST /v1/kinds/{kind}/jobs`."""
    if "Last-Event-ID" in request.headers:
        return await _resume_instead(request, await repeated_job(request))
    # What is wrong with how it wants its answer, and that there is no place for it, is said before there is a job.
    format_, wishes = accepted_format(request, "json"), requested_wishes(request)
    wait = preferred_wait(request)
    stays = format_ != "json" or wait
    with request.app[STREAMS].place(principal(request).owner) if stays else nullcontext():
        return await _answer_submit(request, await accept(request), format_, wishes, wait)


async def accept(request: web.Request) -> Submitted:
    """Read a submit's body and make its job, or find the job that its Idempotency-Key has made before.

    Raises what is wrong with the request before anything is kept; cancelling it leaves open whether there is a job.
    """
    key = requested_key(request)
    kind = await known_kind(request.app[STORE], request.match_info["kind"])
    async with Received(request.app, kind, principal(request), key) as received:
        await received.read(request)
        return await received.submit()


async def repeated_job(request: web.Request) -> Submitted:
    """The job of a POST with Last-Event-ID: a client repeats one that broke off, which never submits a second job.

    Raises `Conflict` without an Idempotency-Key, `NotFound` and `Gone`.
    """
    store, asking = request.app[STORE], principal(request)
    key = requested_key(request)
    if key is None:
        raise Conflict(
            "This POST carries Last-Event-ID, so it repeats a stream that broke off, but no Idempotency-Key says which"
            " job's. Go on with GET /v1/jobs/{id}/events.",
            code="resubmitted_stream",
            events="/v1/jobs/{id}/events",
        )
    return Submitted(await owned(store, await store.job_id(asking.owner, key), asking), replayed=True)


async def _resume_instead(request: web.Request, repeated: Submitted) -> web.StreamResponse:
    """Go on with the stream, or answer with the job as it is."""
    after, wishes = requested_cursor(request), requested_wishes(request)
    format_ = accepted_format(request, "json")
    record, headers = repeated.record, job_headers(repeated)
    if format_ == "json":
        return _document(request, record, headers=headers)
    with request.app[STREAMS].place(principal(request).owner):
        return await stream(request, record, after, format_, wishes, planned_end=False, headers=headers)


async def _answer_submit(
    request: web.Request, submitted: Submitted, format_: Format, wishes: Wishes, wait: float | None
) -> web.StreamResponse:
    record, headers = submitted.record, job_headers(submitted)
    if format_ != "json":
        return await stream(request, record, START, format_, wishes, planned_end=False, headers=headers)
    if wait is None:
        if "respond-async" in requested_preferences(request):
            headers["Preference-Applied"] = "respond-async"
        return _document(request, record, status=202, headers=headers)
    record = await ended_within(request, record, wait)
    headers["Preference-Applied"] = f"wait={wait:g}"
    return _document(request, record, status=200 if record.terminal else 202, headers=headers)


# --- read -------------------------------------------------------------------------------------------------------------


async def read_job(request: web.Request) -> web.Response:
    """`GET /v1/jobs/{job}`."""
    wait = requested_wait(request)
    return _document(request, await wait_for_end(request, await owned_job(request), wait))


async def list_jobs(request: web.Request) -> web.Response:
    """`GET /v1/jobs`."""
    query = request.query
    states = [state.value for state in State]
    if (state := query.get("state")) is not None and state not in states:
        raise BadRequest(f"?state= is one of {', '.join(states)}; not {state[:40]!r}.")
    cursor, limit = _requested_page(request)
    return _page(
        request,
        *await request.app[STORE].jobs(
            principal(request).owner,
            state=State(state) if state is not None else None,
            kind=query.get("kind"),
            tag=query.get("tag"),
            user=query.get("user"),
            cursor=cursor,
            limit=limit,
        ),
    )


async def list_dead_jobs(request: web.Request) -> web.Response:
    """`GET /v1/kinds/{kind}/dead`."""
    store = request.app[STORE]
    kind = await known_kind(store, request.match_info["kind"])
    cursor, limit = _requested_page(request)
    return _page(request, *await store.dead_jobs(kind.kind, principal(request).owner, cursor=cursor, limit=limit))


def _requested_page(request: web.Request) -> tuple[str | None, int]:
    limit, cursor = request.query.get("limit", "50"), request.query.get("cursor")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and 1 <= int(limit) <= _MAX_LISTED):
        raise BadRequest(f"?limit= is a number from 1 to {_MAX_LISTED}; not {limit[:40]!r}.")
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 16):
        raise BadRequest("?cursor= is the `cursor` of an earlier page, as it came.", code="bad_cursor")
    return cursor, int(limit)


def _page(request: web.Request, records: list[JobRecord], cursor: str | None) -> web.Response:
    return answer_with(JobList(jobs=[shown_job(request, record) for record in records], cursor=cursor))


# --- change -----------------------------------------------------------------------------------------------------------


async def cancel_job(request: web.Request) -> web.Response:
    """`POST /v1/jobs/{job}/cancel`."""
    wait = preferred_wait(request)
    record = await owned_job(request)
    asked = validated(CancelRequest, await small_json(request, _MAX_REASON_BODY, TooLarge(_LONG_REASON)))
    record = await request.app[STORE].cancel(record.id, principal(request).owner, asked.reason)
    headers = {}
    if wait is not None:
        record = await wait_for_end(request, record, wait)
        headers["Preference-Applied"] = f"wait={wait:g}"
    return _document(request, record, status=200 if record.terminal else 202, headers=headers)


async def retry_job(request: web.Request) -> web.Response:
    """`POST /v1/jobs/{job}/retry`: a new job with the same input, options and files."""
    app, key = request.app, requested_key(request)
    old = await owned_job(request)
    _check_ended(old)
    kind = await known_kind(app[STORE], old.kind)
    asking = principal(request)
    if asking.owner != old.owner:
        # An owner does a user's job again, and the user's page goes on with the new one. But a key is of who sends it:
        # the user may have used the same, which must not be in the way. No header holds an end of line.
        key = key and f"{asking.owner}\n{key}"
        asking = replace(asking, owner=old.owner)
    async with Received(app, kind, asking, key) as received:
        try:
            await received.copy(old)
        except NotFound:
            raise Gone("The job's files have expired; submit them again.") from None
        submitted = await received.submit(retry_of=old.id)
    await app[STORE].redone(old, submitted.record.id)
    return _document(request, submitted.record, status=202, headers=job_headers(submitted))


async def delete_job(request: web.Request) -> web.Response:
    """`DELETE /v1/jobs/{job}`."""
    record = await owned_job(request)
    _check_ended(record)
    for erased in await request.app[STORE].delete(record):
        await request.app[BLOBS].delete_prefix(f"jobs/{erased}")
    return web.Response(status=204)


def _check_ended(record: JobRecord) -> None:
    """Raises `Conflict` for an open job."""
    if not record.terminal:
        raise Conflict(
            "The job has not ended; wait for its end, or cancel it first.", code="still_open", retry_after_seconds=2
        )


# --- answers ----------------------------------------------------------------------------------------------------------


def _document(
    request: web.Request, record: JobRecord, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    response = answer_with(shown_job(request, record), status=status)
    if not record.terminal:
        response.headers["Retry-After"] = _ASK_AGAIN_SECONDS
    response.headers.update(headers or {})
    return response


# --- routes -----------------------------------------------------------------------------------------------------------

KEY_HEADER: Final = Parameter(
    "Idempotency-Key",
    "The same key with the same request is the same job, also after a lost answer. A UUID is a good one.",
    {"type": "string", "maxLength": 255},
    "header",
)
_PREFER: Final = Parameter(
    "Prefer", "`wait=N`: answer when the job has ended, after N seconds (at most 50) in any case.", place="header"
)
JOB_HEADERS: Final = {
    "Location": "The job.",
    "X-Job-Id": "Its id.",
    "Idempotency-Replayed": "`true` if an earlier request with this key made the job.",
}
# What a submit's query may hold, beside a raw file body.
SUBMIT_QUERY: Final = (
    Parameter("input", "The input as JSON, beside a raw file body."),
    Parameter("options", "The options as JSON, beside a raw file body."),
    Parameter("filename", "The name of a raw file body."),
)
_PAGE: Final = (
    Parameter("cursor", "The `cursor` of the page before."),
    Parameter("limit", "About so many jobs.", {"type": "integer", "minimum": 1, "maximum": _MAX_LISTED, "default": 50}),
)

routes: Final = (
    Route(
        "POST",
        "/v1/kinds/{kind}/jobs",
        submit_job,
        "Submit a job",
        "A JSON body holds `input` and options. Files come as parts of multipart/form-data, beside an `input` part and"
        " an `options` part (both JSON), or as the body itself with its own content type; then `?input=` and"
        " `?options=` hold the JSON, and `?filename=` or Content-Disposition the name. With an `Accept` of"
        " text/event-stream or application/x-ndjson the answer is the job's event stream.",
        request=JobRequest,
        other_bodies=("multipart/form-data", "application/octet-stream"),
        responses={
            202: Answer(
                "The job is accepted: it will end, whatever happens.",
                JobDocument,
                headers=JOB_HEADERS,
            ),
            200: Answer(
                "The job ended while it was waited for, or the answer is its stream.",
                JobDocument,
                (*EVENT_STREAM[:2], "application/json"),
            ),
        },
        parameters=(
            KEY_HEADER,
            _PREFER,
            *SUBMIT_QUERY,
        ),
        right="submit",
    ),
    Route(
        "GET",
        "/v1/jobs",
        list_jobs,
        "List your recent jobs, newest first",
        responses={200: Answer("A page of jobs.", JobList)},
        parameters=(
            Parameter(
                "state", "Only jobs in this state.", {"type": "string", "enum": [state.value for state in State]}
            ),
            Parameter("kind", "Only jobs of this kind."),
            Parameter("tag", "Only jobs with this tag."),
            Parameter("user", "Only jobs that this user submitted, with a token."),
            *_PAGE,
        ),
    ),
    Route(
        "GET",
        "/v1/kinds/{kind}/dead",
        list_dead_jobs,
        "List your dead letters of a kind",
        "Jobs that used up their attempts and that nobody has done again yet, newest first. They are kept for 14 days,"
        " or as long as the job itself asked for.",
        responses={200: Answer("A page of jobs.", JobList)},
        parameters=_PAGE,
    ),
    Route(
        "GET",
        "/v1/jobs/{job}",
        read_job,
        "Read a job",
        responses={
            200: Answer("The job.", JobDocument, headers={"Retry-After": "When to ask again, while it is open."})
        },
        parameters=(Parameter("wait", "Answer when the job has ended, after so many seconds in any case.", SECONDS),),
        right="read",
    ),
    Route(
        "POST",
        "/v1/jobs/{job}/cancel",
        cancel_job,
        "Cancel a job",
        "A queued job ends at once; a running one is told. An ended job is answered as it is.",
        request=CancelRequest,
        responses={
            200: Answer("The job has ended.", JobDocument),
            202: Answer("The worker has been asked to stop.", JobDocument),
        },
        parameters=(_PREFER,),
        right="cancel",
    ),
    Route(
        "POST",
        "/v1/jobs/{job}/retry",
        retry_job,
        "Do an ended job again, as a new job",
        responses={
            202: Answer(
                "The new job; its `retry_of` is the old one.",
                JobDocument,
                headers=JOB_HEADERS,
            )
        },
        parameters=(KEY_HEADER,),
        right="submit",
    ),
    Route(
        "DELETE",
        "/v1/jobs/{job}",
        delete_job,
        "Erase an ended job's data",
        "Its id then answers 410.",
        responses={204: Answer("It is gone.", content_types=NO_BODY)},
    ),
)
