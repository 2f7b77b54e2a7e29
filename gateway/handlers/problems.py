"""Every error as a problem document (RFC 9457), in one place; and one log line per request.

Our errors say what happened and what to do. Anything else that is raised is answered with a bare 500: its details go
to the log, under the request id that the client is told.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from aiohttp import ClientConnectionResetError, web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestPayloadError
from pydantic_core import to_json

from gateway.auth import PRINCIPAL
from gateway.errors import FOR_CLIENTS, BadRequest, MethodNotAllowed, NotFound, OutlastError, TooLarge
from gateway.handlers.openai import errors as openai
from gateway.handlers.refusal import refusal_headers
from gateway.limits import Connection
from gateway.metrics import Metrics

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("gateway.access")

REQUEST_ID: Final = web.RequestKey("request_id", str)
_STARTED: Final = web.RequestKey("started", bool)
# As in nginx's logs: the client went before there was an answer.
_CLIENT_GONE: Final = 499
_QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_REQUEST_ID: Final = re.compile(r"^[A-Za-z0-9._-]{8,64}$", re.ASCII)

SECURITY_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        # A foreign page may not even show or embed what it can't read.
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
    }
)
# A document of ours that a browser shows by itself runs nothing and loads nothing; the page has its own policy.
DATA_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; sandbox"


def problem_document(error: OutlastError, request_id: str) -> dict[str, Any]:
    """The error's document; what is our fault has the id with it under which the log tells more."""
    document = error.problem()
    if error.status >= 500:
        document["request_id"] = request_id
    return document


def _response(request: web.Request, error: OutlastError) -> web.Response:
    """The error as the client that asked can read it."""
    if request.path.startswith(openai.PREFIX):
        return openai.error_response(error)
    return web.Response(
        status=error.status,
        body=to_json(problem_document(error, request[REQUEST_ID])),
        content_type="application/problem+json",
        headers=refusal_headers(error),
    )


def translate(error: Exception, request: web.Request) -> OutlastError:
    """What a request's handling raised, aiohttp's own errors included, as the error that its client may read."""
    if isinstance(error, web.HTTPNotFound):
        return NotFound(f"There is nothing at {request.path[:200]}; see /docs for the routes.")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.method[:20]} is not served here; use {allowed}.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return TooLarge("The body is larger than this gateway takes.")
    if isinstance(error, web.HTTPException) and 400 <= error.status < 500:
        return BadRequest(f"{HTTPStatus(error.status).phrase}.")
    if isinstance(error, RequestPayloadError):
        return BadRequest("The body broke off or its transfer coding is wrong; send the request again.")
    return for_client(error)


def for_client(error: Exception) -> OutlastError:
    """What was raised as the error that a client may read; what is not for it becomes a bare `internal`."""
    if isinstance(error, FOR_CLIENTS):
        return error
    return OutlastError("Something went wrong on our side. Try again; if it lasts, tell the operator the request id.")


def problem_middleware(metrics: Metrics) -> Middleware:
    """The outermost middleware: it answers every error, and logs the end of every request."""

    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as raised:
            if raised.status < 400:
                raise
            error = translate(raised, request)
            response = _response(request, error)
            if isinstance(raised, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = ", ".join(sorted(raised.allowed_methods))
        except ClientConnectionResetError:
            # The client went while its answer was begun: no defect of ours, and nobody is there to hear of it.
            return web.Response(status=_CLIENT_GONE)
        except Exception as raised:
            error = translate(raised, request)
            if error.code == "internal":
                logger.error("request %s failed", request[REQUEST_ID], exc_info=raised)
            response = _response(request, error)
        metrics.count("problems", code=error.code)
        connection = request.protocol
        if not request.content.at_eof() or (isinstance(connection, Connection) and connection.refused):
            # The rest of a refused body is no next request; the client is told not to wait for an answer to one.
            response.force_close()
        if request.get(_STARTED) and request.transport is not None:
            # An answer has begun: a second one inside it would be taken for a part of it.
            request.transport.abort()
        return response

    @web.middleware
    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-ID", "")
        request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        began = time.perf_counter()
        status = _CLIENT_GONE
        try:
            response = await answer(request, handler)
            status = response.status
            return response
        finally:
            _log_end(request, status, time.perf_counter() - began, metrics)

    return answered


def _log_end(request: web.Request, status: int, seconds: float, metrics: Metrics) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "none"
    method = request.method if request.method in {"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"} else "other"
    metrics.count("requests", route=route, method=method, status=str(status))
    if not request.get(_STARTED):
        metrics.observe("request_seconds", seconds, route=route)
    principal = request.get(PRINCIPAL)
    # The path without its query: that may hold a token. `%s` of a path can't break the line, since aiohttp decodes
    # no percent escapes in `rel_url.raw_path`.
    # A balancer that asks every second would bury everything else.
    quiet = status == 200 and route in _QUIET_ROUTES
    access_logger.log(
        logging.DEBUG if quiet else logging.INFO,
        "%s %s %d %.3fs owner=%s id=%s ray=%s",
        method,
        request.rel_url.raw_path[:300],
        status,
        seconds,
        principal.owner if principal else "-",
        request[REQUEST_ID],
        re.sub(r"[^A-Za-z0-9-]", "", request.headers.get("CF-Ray", ""))[:40] or "-",
    )


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put the headers on that every answer has. A signal handler: also streams and sockets pass through it."""
    request[_STARTED] = True
    headers = response.headers
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", DATA_POLICY)
    request_id = request.get(REQUEST_ID)
    if request_id is not None:
        headers.setdefault("X-Request-ID", request_id)
