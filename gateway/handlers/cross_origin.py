"""Pages of the origins in `OUTLAST_ALLOWED_ORIGINS`: what a browser asks beforehand, and what they may read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_ASKED_HEADERS: Final = (
    "Accept",
    "Authorization",
    "Content-Disposition",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "Tus-Resumable",
    "Upload-Defer-Length",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-HTTP-Method-Override",
    "X-Request-ID",
)
_SHOWN_HEADERS: Final = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Idempotency-Replayed",
    "Last-Event-ID",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Resumable",
    "Tus-Version",
    "Upload-Defer-Length",
    "Upload-Expires",
    "Upload-Length",
    "Upload-Offset",
    "X-Job-Id",
    "X-Request-ID",
    "X-Upstream-Status",
)


def cross_origin_middleware(allowed: frozenset[str]) -> Middleware:
    """A middleware for pages of other origins: preflights, and the headers that let them read our answers."""

    @web.middleware
    async def shared(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (
            request.method == "OPTIONS"
            and request.headers.get("Origin") in allowed
            and "Access-Control-Request-Method" in request.headers
            and not isinstance(request.match_info.http_exception, web.HTTPNotFound)
        ):
            return web.Response(
                status=204,
                headers={
                    "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
                    "Access-Control-Allow-Headers": ", ".join(_ASKED_HEADERS),
                    "Access-Control-Max-Age": "600",
                },
            )
        return await handler(request)

    return shared


def cross_origin_headers(allowed: frozenset[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """A signal handler that lets the allowed origins, and no others, read an answer."""

    async def share(request: web.Request, response: web.StreamResponse) -> None:
        if not allowed:
            return
        vary = response.headers.get("Vary")
        response.headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
        origin = request.headers.get("Origin")
        if origin in allowed:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = ", ".join(_SHOWN_HEADERS)
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    return share
