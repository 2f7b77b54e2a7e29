"""What is not the API itself: the page and its modules, the docs, health, readiness and metrics."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiohttp import web
from pydantic_core import to_json

from gateway.errors import ConfigurationError, NotFound, Unavailable
from gateway.handlers.context import BLOBS, DOCS, HUB, METRICS, OPENAPI, READINESS, STORE
from gateway.handlers.routes import NO_BODY, Answer, Route
from gateway.metrics import CONTENT_TYPE as METRICS_TYPE
from gateway.metrics import Registry

CLIENT: Final = web.AppKey("client", Path)

# A flat folder of plain files: nothing in a name can lead out of it, and what is no part of the client isn't served.
_FILE: Final = re.compile(r"^[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*\.(js|css|svg|png|ico|webmanifest)$", re.ASCII)
_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}
# Everything from ourselves, no inline script or style; blob: and data: are the images that a user chose or that a job
# made. `connect-src 'self'` includes the WebSocket of the same origin.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:;"
    " manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_READY_SECONDS: Final = 5.0


async def index(request: web.Request) -> web.StreamResponse:
    """`GET /`: the page."""
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-cache",
        "Content-Security-Policy": PAGE_POLICY,
    }
    return web.FileResponse(request.app[CLIENT] / "index.html", headers=headers)


async def client_file(request: web.Request) -> web.StreamResponse:
    """`GET /client/{path}`: the browser client's modules."""
    name = request.match_info["path"]
    path = request.app[CLIENT] / name
    if _FILE.fullmatch(name) is None or not path.is_file():
        raise NotFound(f"The browser client has no file {name[:100]!r}.")
    # Not cached without asking: after an upgrade all modules must be of one release.
    headers = {"Content-Type": _TYPES[path.suffix], "Cache-Control": "no-cache"}
    # Another site's page may import the client; what it may then do is the API's own question.
    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return web.FileResponse(path, headers=headers)


async def docs(request: web.Request) -> web.Response:
    """`GET /docs`: the API's description for people, without a byte from elsewhere."""
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'",
    }
    return web.Response(text=request.app[DOCS], content_type="text/html", headers=headers)


async def docs_style(request: web.Request) -> web.Response:
    """`GET /docs.css`."""
    text = (Path(__file__).parent / "docs.css").read_text()
    return web.Response(text=text, content_type="text/css", headers={"Cache-Control": "no-cache"})


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    return web.Response(
        body=request.app[OPENAPI], content_type="application/json", headers={"Cache-Control": "no-cache"}
    )


async def healthz(request: web.Request) -> web.Response:
    """`GET /healthz`: this process lives. Redis is not asked: its outage must not restart all gateways."""
    return _status(200, {"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """`GET /readyz`: whether requests should be sent here. Workers are a detail: jobs wait for them.

    So are `warnings`: what about Redis's settings breaks a promise.
    """
    readiness = request.app[READINESS]
    if readiness.draining:
        return _status(503, {"status": "draining"})
    checks: dict[str, object] = {"store": "ok", "blobs": "ok"}
    try:
        async with asyncio.timeout(_READY_SECONDS):
            checks["warnings"] = (await request.app[STORE].info())["warnings"]
            # In a cluster the master that knows may be the one that is away.
            with suppress(Unavailable):
                checks["workers"] = len(await request.app[STORE].workers())
        if request.app[STORE].conflict is not None:
            # Its jobs might wait where no worker looks.
            checks["store"] = "two servers"
    except (Unavailable, TimeoutError):
        checks["store"] = "no answer"
    except ConfigurationError:
        checks["store"] = "not usable"
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await request.app[BLOBS].marker()
    except (Unavailable, TimeoutError):
        checks["blobs"] = "no answer"
    ready = checks["store"] == checks["blobs"] == "ok"
    if ready:
        readiness.asked(asyncio.get_running_loop().time())
    return _status(200 if ready else 503, {"status": "ready" if ready else "not ready", **checks})


def _status(status: int, document: dict[str, object]) -> web.Response:
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": "1"} if status == 503 else {})
    return web.Response(status=status, body=to_json(document), content_type="application/json", headers=headers)


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`: Prometheus text. What Redis knows is read at the scrape; without Redis the rest is shown."""
    registry = request.app[METRICS]
    if not isinstance(registry, Registry):
        raise NotFound("This gateway keeps no metrics.")
    store = request.app[STORE]
    registry.clear("listeners")
    for transport, count in Counter(listener.transport_name for listener in request.app[HUB].listeners).items():
        registry.set("listeners", count, transport=transport)
    for gauge in ("queue_depth", "queue_running", "dead_jobs", "workers"):
        registry.clear(gauge)
    try:
        kinds = list(await store.kinds())
        for kind, (waiting, running) in (await store.depths(kinds)).items():
            registry.set("queue_depth", waiting, kind=kind)
            registry.set("queue_running", running, kind=kind)
        for kind, count in (await store.count_dead(kinds)).items():
            registry.set("dead_jobs", count, kind=kind)
        registry.set("workers", len(await store.workers()))
        registry.set("store_up", 1)
    except Unavailable:
        registry.set("store_up", 0)
    return web.Response(
        body=registry.expose().encode(), headers={"Content-Type": METRICS_TYPE, "Cache-Control": "no-store"}
    )


_HTML: Final = ("text/html",)

routes: Final = [
    Route(
        "GET",
        "/healthz",
        healthz,
        "Whether this process lives",
        responses={200: Answer("It does.")},
        public=True,
    ),
    Route(
        "GET",
        "/readyz",
        readyz,
        "Whether to send requests here",
        "Asks Redis and the blob store. Workers are a detail in it, so that scaling from zero works.",
        responses={200: Answer("Ready."), 503: Answer("Not ready, or about to stop.")},
        public=True,
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        "Metrics for Prometheus",
        responses={200: Answer("Prometheus text.", content_types=("text/plain",))},
    ),
    Route(
        "GET",
        "/openapi.json",
        openapi,
        "This description",
        responses={200: Answer("OpenAPI 3.1.")},
        public=True,
    ),
    Route(
        "GET",
        "/docs",
        docs,
        "This description, for people",
        responses={200: Answer("A page.", content_types=_HTML)},
        public=True,
    ),
    Route("GET", "/docs.css", docs_style, "The docs page's style", public=True, hidden=True),
    Route("GET", "/", index, "The page", responses={200: Answer("A page.", content_types=_HTML)}, public=True),
    Route(
        "GET",
        "/client/{path}",
        client_file,
        "The browser client's modules",
        "Plain ES modules; `index.js` exports everything.",
        responses={
            200: Answer("A file.", content_types=("text/javascript",)),
            304: Answer("Unchanged.", content_types=NO_BODY),
        },
        public=True,
    ),
]
