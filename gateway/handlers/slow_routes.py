"""Slow routes: an unchanged client calls a path here, a worker calls the unchanged upstream, and the answer comes back.

`hold`: the answer on the same request, with white space before it where it is JSON and takes long. `async`: 202 and the
address of the answer. `sse`: the job's events, with the upstream's pieces as they come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic_core import from_json, to_json

from gateway.auth import PRINCIPAL, Principal
from gateway.errors import FOR_CLIENTS, InvalidInput, NotFound, OutlastError, Unavailable
from gateway.event_text import decode_event
from gateway.handlers.context import (
    BLOBS,
    STORE,
    STREAMS,
    known_kind,
    owned,
    owned_job,
    principal,
    requested_wait,
    wait_for_end,
)
from gateway.handlers.documents import answer_with, job_headers, shown_job
from gateway.handlers.held import Held, merged
from gateway.handlers.problems import DATA_POLICY
from gateway.handlers.received import Received
from gateway.handlers.results import output_content, result_of
from gateway.handlers.routes import SECONDS, Answer, Parameter, Route
from gateway.handlers.streams import (
    Format,
    Wishes,
    accepted_format,
    requested_cursor,
    stream,
)
from gateway.handlers.submission import HTTP, requested_key
from gateway.protocol import START
from gateway.requests import JobRequest
from gateway.slow_routes import SlowRoute
from gateway.store import JobRecord, Submitted
from gateway.upstreams import Refused, Upstreams

# The owner of jobs on routes that ask for no key; no API key can have this name.
ANYBODY: Final = "~routes"
_BODY: Final = "body"
_INLINE_BYTES: Final = 64 * 1024
# What concerns one connection, or what the worker says itself; the rest is passed on.
_NOT_PASSED_ON: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
        *("te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "accept-encoding", "expect"),
        *("last-event-id", "prefer"),
        # A browser's socket offers its key as one of these.
        *("sec-websocket-key", "sec-websocket-protocol", "sec-websocket-version", "sec-websocket-extensions"),
    }
)
# What makes two requests the same, besides method, address and body: what is asked for and who asks. What a library
# or a proxy says anew each time (dates, trace ids) doesn't.
_MEANING: Final = frozenset({"authorization", "cookie", "content-type", "accept"})
# What an upstream may not say for our own origin: at `/response` it is anybody's upstream.
_NOT_FOR_OUR_ORIGIN: Final = frozenset(
    {
        *("set-cookie", "content-security-policy", "content-security-policy-report-only", "clear-site-data", "refresh"),
        *("strict-transport-security", "alt-svc", "nel", "report-to", "reporting-endpoints", "service-worker-allowed"),
        *("access-control-allow-origin", "access-control-allow-credentials", "cross-origin-resource-policy"),
    }
)
_NO_BODY: Final = frozenset({204, 304})
# An edge puts a page of its own in the place of these answers, and from us they would pass for the edge's.
_REPLACED: Final = frozenset({502, 504})


@dataclass(frozen=True, slots=True)
class Response:
    """An upstream's answer, as the job has it: in the result, and the body there or in a blob."""

    status: int
    headers: tuple[tuple[str, str], ...]
    size: int
    text: bytes | None
    blob: str | None

    @property
    def is_json(self) -> bool:
        """Whether white space may come before it."""
        media_type = dict(self.headers).get("content-type", "").split(";", 1)[0].strip().lower()
        encoded = "content-encoding" in dict(self.headers)
        return (media_type == "application/json" or media_type.endswith("+json")) and not encoded

    @property
    def head(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """Status and headers for the client: 503 for what an edge would replace, with the upstream's own beside it."""
        if self.status in _REPLACED:
            return 503, (*self.headers, ("x-upstream-status", str(self.status)))
        return self.status, self.headers

    async def pieces(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body."""
        if self.text is not None:
            yield self.text
        elif self.blob is not None:
            async for piece in request.app[BLOBS].stream(self.blob):
                yield piece


async def response_of(request: web.Request, record: JobRecord) -> Response:
    """What the upstream answered to an ended job. Raises why there is no answer."""
    result = await result_of(request.app, record)
    if record.kind != HTTP or not isinstance(result, dict):
        raise NotFound(
            f"A job of the kind {record.kind} has no upstream's answer; GET {request.path[:80]} is for http."
        )
    blob = None
    if result["text"] is None:
        text = await request.app[STORE].output(record.id, _BODY)
        if text is None:
            raise NotFound("The answer's body is not there any more.")
        blob = output_content(record.id, decode_event(text)).blob
    headers = tuple((name, value) for name, value in result["headers"] if name != "content-length")
    body = None if result["text"] is None else result["text"].encode()
    return Response(result["status"], headers, result["size"], body, blob)


def route_handler(route: SlowRoute, *, asks_for_key: bool) -> Handler:
    """The handler of a slow route; `asks_for_key`: the middlewares have found out whose request it is."""
    allowed = Upstreams([route.listed])

    async def handle(request: web.Request) -> web.StreamResponse:
        if PRINCIPAL not in request:
            request[PRINCIPAL] = Principal(ANYBODY)
        owner = principal(request).owner
        with request.app[STREAMS].place(owner):
            key = requested_key(request)
            if route.mode == "sse" and "Last-Event-ID" in request.headers:
                return await _resume(request, owner, key)
            # A gateway's own key is nothing for the upstream to see.
            submitted = await _submit(request, route, allowed, key, passes_key_on=not asks_for_key)
            match route.mode:
                case "hold":
                    return await _hold(request, route, submitted)
                case "async":
                    return await _answer_later(request, submitted)
                case "sse":
                    return await _stream(request, submitted)

    return handle


async def _submit(
    request: web.Request, route: SlowRoute, allowed: Upstreams, key: str | None, *, passes_key_on: bool
) -> Submitted:
    app = request.app
    url = route.url(request.rel_url.raw_path_qs)
    try:
        allowed.check(url)
    except Refused as refused:
        raise InvalidInput(refused.detail, code=refused.code) from None
    try:
        kind = await known_kind(app[STORE], HTTP)
    except NotFound:
        raise Unavailable(
            "No worker that calls upstreams has been here yet; `outlast up --routes FILE` starts one, and for a gateway"
            " that runs alone `outlast worker processors.http` does.",
            code="no_worker",
        ) from None
    input_: dict[str, Any] = {
        "url": url,
        "method": request.method,
        "headers": _passed_on(request, passes_key_on),
        "retries": route.retries,
        "idempotent": route.idempotent,
    }
    async with Received(app, kind, principal(request), key) as received:
        input_["body"] = await received.read_whole(request, _INLINE_BYTES)
        received.request = JobRequest(
            input=input_, run_timeout_seconds=route.timeout, on_disconnect=route.on_disconnect
        )
        headers = input_["headers"]
        said = {name: value for name, value in headers.items() if name.lower() in _MEANING}
        return await received.submit(meaning=[request.method, url, said, input_["body"]])


def _passed_on(request: web.Request, passes_key_on: bool) -> dict[str, str]:
    """The request's headers for the upstream, and who asked through us, as proxies say it."""
    dropped = _NOT_PASSED_ON | {
        name.strip().lower() for value in request.headers.getall("Connection", []) for name in value.split(",")
    }
    if not passes_key_on:
        dropped |= {"authorization"}
    headers: dict[str, str] = {}
    for name in dict.fromkeys(name.lower() for name in request.headers):
        if name not in dropped:
            joined = ("; " if name == "cookie" else ", ").join(request.headers.getall(name))
            headers[name] = joined.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    before = headers.get("x-forwarded-for")
    headers["x-forwarded-for"] = f"{before}, {request.remote}" if before else str(request.remote)
    headers.setdefault("x-forwarded-host", request.headers.get("Host", ""))
    headers.setdefault("x-forwarded-proto", request.scheme)
    return headers


# --- how the answer comes back ----------------------------------------------------------------------------------------


async def _hold(request: web.Request, route: SlowRoute, submitted: Submitted) -> web.StreamResponse:
    record = submitted.record
    # The answer to HEAD has no body, so white space after its head would be read as the next answer's begin.
    may_speak = route.json_ and request.method != "HEAD"
    async with Held(request, submitted, "application/json" if may_speak else None) as held:
        try:
            record = await held.end()
            if not record.terminal:
                # It takes long, and nothing can be sent before an answer that is no JSON.
                return await _answer_later(request, Submitted(record, submitted.replayed))
            response = await response_of(request, record)
        except FOR_CLIENTS as error:
            if not held.begun:
                raise
            return await held.answer(error.status, to_json({"error": error.problem()} | _address(record)))
        if held.begun and not (200 <= response.status < 300 and response.is_json):
            return await held.answer(200, _wrapped(record, response))
        size = None if request.method == "HEAD" or response.status in _NO_BODY else response.size
        status, headers = response.head
        return await held.answer(status, response.pieces(request), size, headers)


def _address(record: JobRecord) -> dict[str, str]:
    return {"job": record.id, "response_url": f"/v1/jobs/{record.id}/response"}


def _wrapped(record: JobRecord, response: Response) -> bytes:
    """An answer that can't be given as it is any more, since the head says 200 and JSON."""
    said = f"The upstream answered {response.status}"
    if not response.is_json:
        said += f" with {dict(response.headers).get('content-type', 'no content type')}"
    error = OutlastError(
        f"{said}, after this answer had begun; it is at response_url as it came.", code="upstream_status"
    )
    document = {"error": error.problem() | {"status": response.status}} | _address(record)
    if response.is_json and response.text is not None:
        return b'%b,"body":%b}' % (to_json(document)[:-1], response.text)
    return to_json(document)


async def _answer_later(request: web.Request, submitted: Submitted) -> web.StreamResponse:
    record, headers = submitted.record, job_headers(submitted)
    if record.terminal:
        return await _answer(request, await response_of(request, record), headers, ours=False)
    answer = answer_with(shown_job(request, record), status=202)
    answer.headers.update(headers | {"Location": f"/v1/jobs/{record.id}/response", "Retry-After": "2"})
    return answer


async def _stream(request: web.Request, submitted: Submitted) -> web.StreamResponse:
    format_: Format = "ndjson" if accepted_format(request, "sse") == "ndjson" else "sse"
    headers = job_headers(submitted)
    # The query is the upstream's own, also where it has our names.
    return await stream(request, submitted.record, START, format_, Wishes(), planned_end=False, headers=headers)


async def _resume(request: web.Request, owner: str, key: str | None) -> web.StreamResponse:
    """Go on with a stream that broke off; it never makes a second job."""
    if key is None:
        # [spec] 204 tells an EventSource not to come back (WHATWG HTML, 9.2.1): it can't say which job it means.
        return web.Response(status=204)
    store = request.app[STORE]
    record = await owned(store, await store.job_id(owner, key), principal(request))
    asked = _passed_on(request, passes_key_on=True)
    if owner == ANYBODY and _credentials(from_json(await store.input_of(record.id))["headers"]) != _credentials(asked):
        # A route without keys of ours leaves it to the upstream to know who asks, and that one is not asked again here.
        raise NotFound("There is no such job of yours; send the request without Last-Event-ID.", code="job_not_found")
    after = requested_cursor(request)
    headers = job_headers(Submitted(record, replayed=True))
    return await stream(request, record, after, "sse", Wishes(), planned_end=False, headers=headers)


def _credentials(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """By what an upstream knows who asks."""
    return headers.get("authorization"), headers.get("cookie")


# --- the answer's own address -----------------------------------------------------------------------------------------


async def read_response(request: web.Request) -> web.StreamResponse:
    """`GET /v1/jobs/{job}/response`."""
    wait = requested_wait(request)
    record = await wait_for_end(request, await owned_job(request), wait)
    if not record.terminal:
        return await _answer_later(request, Submitted(record, False))
    return await _answer(request, await response_of(request, record), {"X-Job-Id": record.id}, ours=True)


async def _answer(
    request: web.Request, response: Response, said: Mapping[str, str], *, ours: bool
) -> web.StreamResponse:
    """Give an upstream's answer as it is; `ours`: at an address of ours, where it may not speak for our origin."""
    status, theirs = response.head
    headers = merged({"Cache-Control": "no-store"} | dict(said), theirs)
    if ours:
        for name in _NOT_FOR_OUR_ORIGIN:
            headers.popall(name, None)
        headers["Content-Security-Policy"] = DATA_POLICY
    answer = web.StreamResponse(status=status, headers=headers)
    if response.status not in _NO_BODY:
        answer.content_length = response.size
    await answer.prepare(request)
    if request.method != "HEAD":
        async for piece in response.pieces(request):
            await answer.write(piece)
    await answer.write_eof()
    return answer


routes: Final = (
    Route(
        "GET",
        "/v1/jobs/{job}/response",
        read_response,
        "Fetch what an upstream answered",
        "For jobs of the kind http: the upstream's own status, headers and body; 202 with the job while it is open.",
        responses={
            200: Answer("Or any other status: the upstream's answer.", content_types=("*/*",)),
            202: Answer("The upstream has not answered yet; ask again here."),
        },
        parameters=(Parameter("wait", "Wait so long for the answer.", SECONDS),),
        right="read",
    ),
)
