"""A job's events over HTTP: Server-Sent Events, NDJSON, and JSON pages with a long poll.

The response's head and first bytes go out through aiohttp; what comes from then on is a listener's.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass, replace
from typing import Final, Literal

from aiohttp import web

from gateway.errors import BadRequest, OutlastError
from gateway.event_text import encode_transient
from gateway.handlers.context import (
    HUB,
    METRICS,
    SETTINGS,
    STORE,
    owned_job,
    owned_jobs,
    principal,
    requested_seconds,
    requested_wait,
)
from gateway.handlers.listeners import TOLD, FirstEvent, ManyListener, NdjsonListener, SseListener, StreamListener
from gateway.handlers.routes import EVENT_STREAM, NO_BODY, SECONDS, Answer, Parameter, Route
from gateway.hub import Listener, Pulse, Subscription
from gateway.protocol import START, TYPE_PATTERN, CloseCode, Cursor, EventType
from gateway.requests import MAX_SUBSCRIPTIONS
from gateway.sse import comment, retry
from gateway.store import JobRecord

Format = Literal["sse", "ndjson", "json"]
CONTENT_TYPES: Final = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "json": "application/json",
}
# Streams must pass every hop unbuffered and unchanged: no-transform keeps an edge from compressing them, and
# X-Accel-Buffering is nginx's switch.
STREAM_HEADERS: Final = {
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
    "Vary": "Accept",
}
_PAGE_EVENTS: Final = 1000
_PAGE_BYTES: Final = 1 << 20
_TYPE: Final = re.compile(TYPE_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a listener wants its events, besides the place to begin at."""

    snapshot: bool = False
    types: frozenset[str] | None = None
    names: bool = False
    cut_seconds: float | None = None
    """After so long the connection is cut without a word."""


def accepted_format(request: web.Request, default: Format) -> Format:
    """The stream's format by `Accept`: the first of ours that is named, else the default."""
    accept = request.headers.get("Accept", "")
    for part in accept.split(","):
        media = part.split(";", 1)[0].strip().lower()
        for name, content_type in CONTENT_TYPES.items():
            if media == content_type:
                return name  # type: ignore[return-value]
    return default


def requested_cursor(request: web.Request) -> Cursor:
    """Where to go on: `Last-Event-ID` (a browser's own reconnect), else `?after=`, else the start."""
    text = request.headers.get("Last-Event-ID") or request.query.get("after") or "0"
    return Cursor.parse(text)


def requested_types(request: web.Request) -> frozenset[str] | None:
    """`?types=progress,output`; None for all."""
    text = request.query.get("types")
    if text is None:
        return None
    types = frozenset(part.strip() for part in text.split(",") if part.strip())
    wrong = sorted(type_ for type_ in types if not _TYPE.match(type_))
    if wrong or len(types) > 64:
        raise BadRequest(f"?types= takes event types separated by commas; {wrong[:1] or 'more than 64'} is not good.")
    return types


def requested_cut(request: web.Request) -> float | None:
    """`?cut=5s` in development, else None."""
    return requested_seconds(request, "cut", 3600) if request.app[SETTINGS].dev else None


def requested_wishes(request: web.Request) -> Wishes:
    """What the query asks for. Raises `BadRequest`, so it is read before anything is done."""
    query = request.query
    return Wishes(
        snapshot=query.get("snapshot") == "1",
        types=requested_types(request),
        names=query.get("names") == "1",
        cut_seconds=requested_cut(request),
    )


async def events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/jobs/{id}/events`."""
    record = await owned_job(request)
    after = requested_cursor(request)
    check_cursor(record, after)
    format_ = accepted_format(request, "sse")
    if format_ == "json":
        return await _page(request, record, after)
    if format_ == "sse" and record.ends_at(after):
        # [spec] "Clients will reconnect if the connection is closed; a client can be told to stop reconnecting using
        # the HTTP 204 No Content response code." (WHATWG HTML, 9.2.1)
        return web.Response(status=204, headers=STREAM_HEADERS)
    return await stream(request, record, after, format_, requested_wishes(request), planned_end=True)


async def stream(
    request: web.Request,
    record: JobRecord,
    after: Cursor,
    format_: Format,
    wishes: Wishes,
    *,
    planned_end: bool,
    headers: dict[str, str] | None = None,
) -> web.StreamResponse:
    """Send a job's events until its end, as they come.

    `planned_end` ends the stream after about `stream_max_age_seconds`, with advice to come back: so resuming is
    exercised every day. A POST's stream can't be repeated by a browser and never is ended by plan.
    """
    settings, hub = request.app[SETTINGS], request.app[HUB]
    response = web.StreamResponse(headers=STREAM_HEADERS | (headers or {}))
    response.content_type = CONTENT_TYPES[format_]
    if format_ == "sse":
        response.charset = "utf-8"
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        return response
    chunked = bool(response.chunked) or request.version >= (1, 1)
    listener: StreamListener
    if format_ == "sse":
        listener = SseListener(hub.pulse, transport, transport_name="sse", chunked=chunked)
        listener.names = wishes.names
        # Two frames at once: some middleboxes hold the first until they have seen a second, and an edge may hold the
        # headers until there is a body byte.
        listener.send(comment("ok"))
        listener.send(retry(_jittered_ms(settings.retry_seconds)))
    else:
        listener = NdjsonListener(hub.pulse, transport, transport_name="ndjson", chunked=chunked)
        listener.send(b" ")
    places = [hub.place(listener, record, after, types=wishes.types)]
    return await _serve(request, response, listener, places, wishes, planned_end=planned_end)


async def _serve(
    request: web.Request,
    response: web.StreamResponse,
    listener: StreamListener,
    places: list[Subscription],
    wishes: Wishes,
    *,
    planned_end: bool,
) -> web.StreamResponse:
    """Keep a prepared response's listener until it is closed, whoever closes it."""
    settings = request.app[SETTINGS]
    if planned_end:
        listener.end_in(settings.stream_max_age_seconds * random.uniform(0.8, 1.2), CloseCode.MAX_AGE)
        end_with_token(request, listener)
    code = await listen(request, listener, places, wishes)
    if code is not None and not listener.transport.is_closing():
        _advise(listener, places[0], code, settings.retry_seconds)
    await response.write_eof()
    return response


def end_with_token(request: web.Request, listener: Listener) -> None:
    """End what can be come back to when its token expires. What one POST asked for is answered to the end."""
    expires = principal(request).expires
    if expires is not None:
        listener.end_in(expires - time.time(), CloseCode.TOKEN_EXPIRED)


async def listen(
    request: web.Request, listener: StreamListener, places: list[Subscription], wishes: Wishes
) -> CloseCode | None:
    """Let a listener hear its places until it is closed; returns why, None for the regular end."""
    hub = request.app[HUB]
    cutter = None
    if wishes.cut_seconds is not None:
        cutter = asyncio.get_running_loop().call_later(wishes.cut_seconds, listener.transport.abort)
    hub.open(listener)
    reason = "gone"
    try:
        if len(places) == 1:
            await hub.start(places[0], snapshot=wishes.snapshot)
        else:
            # Side by side: a job with a long log, or whose master is away, keeps no other waiting.
            async with asyncio.TaskGroup() as group:
                for place in places:
                    group.create_task(hub.start(place, snapshot=wishes.snapshot))
        code = await listener.closed
        reason = code.value if code else "end"
        return code
    finally:
        if cutter is not None:
            cutter.cancel()
        hub.close(listener, reason)


async def many_events(request: web.Request) -> web.StreamResponse:
    """`GET /v1/events?jobs=a,b`."""
    store, hub, settings = request.app[STORE], request.app[HUB], request.app[SETTINGS]
    jobs = [job for job in request.query.get("jobs", "").split(",") if job]
    if not 1 <= len(jobs) <= MAX_SUBSCRIPTIONS or len(set(jobs)) != len(jobs):
        raise BadRequest(f"?jobs= takes 1 to {MAX_SUBSCRIPTIONS} different job ids separated by commas.")
    cursors = dict(zip(jobs, _many_cursors(request, len(jobs)), strict=True))
    asked = {job: cursor for job, cursor in cursors.items() if cursor is not None}
    found = dict(zip(asked, await owned_jobs(store, list(asked), principal(request)), strict=True))
    missing = {job: error for job, error in found.items() if isinstance(error, OutlastError)}
    records = {job: record for job, record in found.items() if isinstance(record, JobRecord)}
    if missing and not records:
        raise next(iter(missing.values()))
    if not missing and all(
        record.terminal and asked[job].number == record.last.number for job, record in records.items()
    ):
        return web.Response(status=204, headers=STREAM_HEADERS)

    response = web.StreamResponse(headers=STREAM_HEADERS)
    response.content_type = CONTENT_TYPES["sse"]
    response.charset = "utf-8"
    # A snapshot's cursor is one job's: there is none of several.
    wishes = replace(requested_wishes(request), snapshot=False)
    await response.prepare(request)
    if (transport := request.transport) is None:
        return response
    listener = ManyListener(hub.pulse, transport, chunked=request.version >= (1, 1))
    listener.send(comment("ok"))
    listener.send(retry(_jittered_ms(settings.retry_seconds)))
    places = {
        job: hub.place(listener, record, _checkable(asked[job], record), types=wishes.types)
        for job, record in records.items()
    }
    listener.begin([places.get(job, cursor) for job, cursor in cursors.items()])
    for at, job in enumerate(jobs):
        if job in missing:
            listener.push_missing(at, job, missing[job])
    return await _serve(request, response, listener, list(places.values()), wishes, planned_end=True)


def _many_cursors(request: web.Request, jobs: int) -> list[Cursor | None]:
    """Where to go on with each job of the query; None for those of which the client knows that they are missing."""
    text = request.headers.get("Last-Event-ID") or request.query.get("after")
    if not text:
        return [START] * jobs
    parts = text.split(".")
    if len(parts) != jobs:
        raise BadRequest(f"The cursor has {len(parts)} numbers for {jobs} jobs.", code="bad_cursor")
    return [None if part == TOLD else Cursor.parse(part) for part in parts]


def _checkable(cursor: Cursor, record: JobRecord) -> Cursor:
    """A cursor of which a number that the job has no more is answered with a `reset`: Redis lost its newest events.

    A client of several jobs is given bare numbers, and must not lose all of them for one.
    """
    return cursor if cursor.number <= record.last.number else Cursor(cursor.number, cursor.time_ms or 0)


def check_cursor(record: JobRecord, after: Cursor) -> None:
    """Raises `BadRequest` for a bare number that no event has yet."""
    if after.time_ms is None and after.number > record.last.number:
        raise BadRequest(
            f"The cursor {after} is beyond the last event of job {record.id}, {record.last.number}; use the id of an"
            " event that you have, or 0 for the start.",
            code="bad_cursor",
        )


def _advise(listener: StreamListener, place: Subscription, code: CloseCode, retry_seconds: float) -> None:
    """Say that this connection ends and the job does not: `closing`, and when to come back."""
    milliseconds = _jittered_ms(retry_seconds)
    data = {"reason": code.value, "retry_seconds": milliseconds / 1000}
    text = encode_transient(EventType.CLOSING, place.job, Pulse.now_ms(), data)
    advice = retry(milliseconds) if isinstance(listener, SseListener) else b""
    listener.send(listener.encode_unnumbered(place, text, EventType.CLOSING) + advice)


def _jittered_ms(seconds: float) -> int:
    return int(seconds * 1000 * random.uniform(0.5, 1.5))


async def _page(request: web.Request, record: JobRecord, after: Cursor) -> web.Response:
    """A JSON array of events; `?wait=N` waits for the first one where there is none yet."""
    store, hub = request.app[STORE], request.app[HUB]
    wait = requested_wait(request)
    types = requested_types(request)
    page = await store.events(record.id, after, _PAGE_EVENTS)
    if not page.entries and not page.broken and not page.terminal and wait:
        listener = FirstEvent(hub.pulse, request.transport or _gone(), transport_name="poll", chunked=False)
        hub.open(listener)
        try:
            async with asyncio.timeout(wait):
                await hub.start(hub.place(listener, record, page.head))
                await listener.closed
        except TimeoutError:
            pass
        finally:
            hub.close(listener, "poll")
        page = await store.events(record.id, after, _PAGE_EVENTS)
    texts: list[bytes] = []
    if page.broken:
        raise BadRequest(
            f"Events after {after} are gone or were rewritten; start again with ?after=0, or follow the stream, which"
            " sends a snapshot.",
            code="cursor_lost",
        )
    size = 0
    last = after
    wanted = None if types is None else {type_.encode() for type_ in types}
    for entry in page.entries:
        size += len(entry.text)
        if texts and size > _PAGE_BYTES:
            break
        last = entry.cursor
        if wanted is None or entry.type in wanted or entry.type in {b"succeeded", b"failed", b"cancelled"}:
            texts.append(entry.text)
    body = b"[" + b",".join(texts) + b"]"
    headers = {"Cache-Control": "no-store", "Vary": "Accept", "Last-Event-ID": str(last)}
    request.app[METRICS].count("polls")
    return web.Response(body=body, content_type="application/json", headers=headers)


def _gone() -> asyncio.WriteTransport:
    raise ConnectionResetError("the client has gone")


CURSOR_PARAMETERS: Final = (
    Parameter(
        "Last-Event-ID", "The cursor of the last event that you have; a browser sends it by itself.", place="header"
    ),
    Parameter("after", "The same, for clients that set no headers: `17-1764000000000`, or a bare number."),
)
STREAM_PARAMETERS: Final = (
    Parameter("snapshot", "Begin with a snapshot instead of the whole log.", {"type": "string", "enum": ["1"]}),
    Parameter("types", "Only these event types, separated by commas; the end, `reset` and `snapshot` always come."),
    Parameter("names", "Add an `event:` line to SSE blocks.", {"type": "string", "enum": ["1"]}),
    Parameter("cut", "In development: cut the connection after so many seconds, to see the resume work."),
)
routes: Final = [
    Route(
        "GET",
        "/v1/jobs/{job}/events",
        events,
        "Follow a job",
        "Server-Sent Events by default, NDJSON or a JSON page by `Accept`; from the cursor on, each event once, in"
        " order, until the job's end.",
        responses={
            200: Answer("The events, as they come.", content_types=EVENT_STREAM),
            204: Answer("The job has ended and you have all its events: don't come back.", content_types=NO_BODY),
        },
        parameters=(
            *CURSOR_PARAMETERS,
            *STREAM_PARAMETERS,
            Parameter("wait", "For a JSON page: wait so long for the first event.", SECONDS),
        ),
        held=True,
        right="read",
    ),
    Route(
        "GET",
        "/v1/events",
        many_events,
        "Follow several jobs on one connection",
        "Server-Sent Events of up to 100 jobs; the cursor is their numbers in the query's order, joined by dots. Where"
        " some can't be followed, `missing` says so, once, and the others go on.",
        responses={
            200: Answer("The events, as they come.", content_types=("text/event-stream",)),
            204: Answer(
                "All jobs that there are have ended and you have all their events: don't come back.",
                content_types=NO_BODY,
            ),
        },
        parameters=(Parameter("jobs", "Job ids, separated by commas."), *CURSOR_PARAMETERS, *STREAM_PARAMETERS[1:2]),
        held=True,
        right="read",
    ),
]
