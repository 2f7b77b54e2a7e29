"""The gateway as one aiohttp application, and the process that serves it: start, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, Final, TypeVar

from aiohttp import http_parser, web
from aiohttp.http import RawRequestMessage
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict, CIMultiDictProxy
from pydantic_core import to_json

from gateway import websocket
from gateway.auth import Keyring, authentication, origin_guard
from gateway.blobs import Blobs
from gateway.collector import collect_loop
from gateway.config import Settings
from gateway.errors import ConfigurationError, Unavailable
from gateway.handlers import jobs, kinds, pages, probe, results, run, slow_routes, streams, tokens, tus, worker
from gateway.handlers.body import expect_later
from gateway.handlers.context import (
    BLOBS,
    DOCS,
    HUB,
    METRICS,
    OPENAPI,
    READINESS,
    SETTINGS,
    STORE,
    STREAMS,
    Readiness,
    place_owner,
)
from gateway.handlers.cross_origin import cross_origin_headers, cross_origin_middleware
from gateway.handlers.joining import JOINS, Joins
from gateway.handlers.openai import chat, models, responses
from gateway.handlers.problems import finish_headers, problem_middleware
from gateway.handlers.routes import Route
from gateway.handlers.submission import SLOW_ROUTES, VALIDATORS
from gateway.handlers.validation import Validators
from gateway.hub import Hub
from gateway.limits import Door, StreamLimit, door_guard
from gateway.metrics import Registry
from gateway.openapi import docs_page, openapi_document
from gateway.signals import on_stop_signals
from gateway.slow_routes import SlowRoute, load_routes
from gateway.static import client_files
from gateway.store import Store, until_available
from gateway.tokens import Right
from gateway.upstreams import Upstreams

logger = logging.getLogger(__name__)

T = TypeVar("T")

ROUTES: Final[tuple[Route, ...]] = (
    *jobs.routes,
    *run.routes,
    *slow_routes.routes,
    *streams.routes,
    *results.routes,
    *tus.routes,
    *tokens.routes,
    *worker.routes,
    *chat.routes,
    *responses.routes,
    *models.routes,
    *websocket.routes,
    *kinds.routes,
    *pages.routes,
    *probe.routes,
)
DOOR: Final = web.AppKey("door", Door)
# What must answer while the gateway is full or about to stop.
_ALWAYS: Final[frozenset[object]] = frozenset({pages.healthz, pages.readyz, pages.metrics})

_BACKLOG: Final = 1024
# For requests that are under way when the streams have been closed: a submit takes milliseconds, an upload may not.
_SHUTDOWN_SECONDS: Final = 5.0
_RESTART_SECONDS: Final = 1.0
# Ctrl-C reaches the whole process group, and then the parent sends its own signal: that is one wish, not two.
_SECOND_SIGNAL_SECONDS: Final = 1.0


def make_app(settings: Settings, store: Store, blobs: Blobs, hub: Hub) -> web.Application:
    """The application; serve it with `serving`, which also watches over its connections.

    Raises `ConfigurationError` where aiohttp lacks its C parser, or the page's files are missing.
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        # Its pure Python parser has been the way for most request smuggling, and takes several times the CPU.
        raise ConfigurationError(
            "aiohttp runs without its C parser; install a wheel of aiohttp for this platform, and unset"
            " AIOHTTP_NO_EXTENSIONS."
        )
    metrics = hub.metrics
    keys = Keyring({name: secret.get_secret_value() for name, secret in settings.api_keys.items()})
    allowed = frozenset(settings.allowed_origins)
    readiness = Readiness()
    public: set[object] = {route.handler for route in ROUTES if route.public}
    routed = load_routes(settings.routes)
    handlers = [(route, slow_routes.route_handler(route, asks_for_key=bool(keys) and route.key)) for route in routed]
    rights: dict[object, Right] = {route.handler: route.right for route in ROUTES if route.right is not None}
    # Without keys everybody here is `local`, and foreign pages are kept out of a slow route too.
    public |= {handler for route, handler in handlers if keys and not route.key}
    app = web.Application(
        client_max_size=settings.max_upload_bytes,
        middlewares=[
            problem_middleware(metrics),
            door_guard(set(_ALWAYS)),
            _drain_guard(readiness),
            cross_origin_middleware(allowed),
            origin_guard(keys, allowed, public),
            authentication(keys, public, rights, metrics),
        ],
    )
    app[SETTINGS], app[STORE], app[BLOBS], app[HUB] = settings, store, blobs, hub
    app[METRICS], app[READINESS] = metrics, readiness
    app[VALIDATORS] = Validators(Upstreams(settings.upstreams, settings.upstream_networks))
    app[SLOW_ROUTES] = routed
    app[STREAMS] = StreamLimit(settings.max_streams_per_owner)
    app[probe.PROBES] = probe.Probes()
    app[JOINS] = Joins(store, blobs)
    app[OPENAPI], app[DOCS] = to_json(openapi_document(ROUTES)), docs_page(ROUTES)
    app[pages.CLIENT] = client_files()
    app[DOOR] = Door(
        max_connections=settings.max_connections,
        header_timeout_seconds=settings.header_timeout_seconds,
        upload_idle_seconds=settings.upload_idle_seconds,
        write_stall_seconds=settings.write_stall_seconds,
        metrics=metrics,
    )
    _add_routes(app.router, handlers)
    app.on_response_prepare.append(finish_headers)
    app.on_response_prepare.append(cross_origin_headers(allowed))
    app.on_response_prepare.append(tus.tus_headers)
    app.on_response_prepare.append(_say_goodbye)
    app.cleanup_ctx.append(_clocks)
    return app


def _add_routes(router: web.UrlDispatcher, slow: Iterable[tuple[SlowRoute, Handler]]) -> None:
    """Our own routes come first: what the file with slow routes says can't take their place."""
    for route in ROUTES:
        if route.held:
            router.add_route(route.method, route.path, _held(route.handler), expect_handler=expect_later)
        elif route.method == "GET":
            router.add_get(route.path, route.handler, expect_handler=expect_later)
        else:
            router.add_route(route.method, route.path, route.handler, expect_handler=expect_later)
    for named, handler in slow:
        path = named.path[:-1] + "{tail:.*}" if named.path.endswith("*") else named.path
        for method in named.methods:
            router.add_route(method, path, handler, expect_handler=expect_later)


def make_hub(settings: Settings, store: Store, metrics: Registry) -> Hub:
    """The hub as the settings want it. Needs a running event loop."""
    return Hub(
        store,
        heartbeat_seconds=settings.heartbeat_seconds,
        write_stall_seconds=settings.write_stall_seconds,
        write_buffer_bytes=settings.write_buffer_bytes,
        metrics=metrics,
    )


def _held(handler: Handler) -> Handler:
    """A handler whose answers stay open: each takes one of its owner's places."""

    @wraps(handler)
    async def held(request: web.Request) -> web.StreamResponse:
        with request.app[STREAMS].place(await place_owner(request)):
            return await handler(request)

    return held


def _drain_guard(readiness: Readiness) -> Middleware:
    """A middleware that sends new requests elsewhere once the streams are being closed."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if readiness.closing and request.match_info.handler not in _ALWAYS:
            raise Unavailable(
                "This gateway is stopping; send the request again, with the same key: another one answers.",
                code="draining",
                retry_after_seconds=random.uniform(1, 3),
            )
        return await handler(request)

    return guarded


async def _say_goodbye(request: web.Request, response: web.StreamResponse) -> None:
    """While draining, no connection is kept for a next request: that one should go to another gateway."""
    response.headers["Server"] = "outlast"
    if request.app[READINESS].draining and response.status != 101:
        response.headers["Connection"] = "close"
        response.force_close()


async def _clocks(app: web.Application) -> AsyncIterator[None]:
    """Run the clocks that walk listeners and connections, for as long as the application serves."""
    tasks = [
        asyncio.create_task(keep_running(app[HUB].run, "hub"), name="hub"),
        asyncio.create_task(keep_running(app[DOOR].run, "door"), name="door"),
    ]
    yield
    await app[JOINS].close()
    await _end(tasks)


async def keep_running(work: Callable[[], Awaitable[None]], name: str) -> None:
    """Run what never ends. A defect in it is logged and it is begun again: its silence would be worse."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("the %s failed and is started again", name)
        await asyncio.sleep(_RESTART_SECONDS)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- serving ----------------------------------------------------------------------------------------------------------


class Serving:
    """An application that is being served."""

    def __init__(self, app: web.Application, server: asyncio.Server, settings: Settings) -> None:
        self._app = app
        self._server = server
        self._settings = settings
        self.port: int = server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """Where it can be reached from this machine."""
        return self._settings.address(self.port)

    async def drain(self) -> None:
        """Say that this gateway is not ready, give a load balancer time to see it, then close the streams.

        They are spread over `drain_seconds`, each with the advice to come back.
        """
        readiness, seconds = self._app[READINESS], self._settings.drain_seconds
        readiness.draining = True
        if readiness.is_watched(asyncio.get_running_loop().time()):
            await asyncio.sleep(seconds)
        self._server.close()
        readiness.closing = True
        await self._app[HUB].drain(seconds)


@asynccontextmanager
async def serving(app: web.Application, settings: Settings) -> AsyncIterator[Serving]:
    """Serve an application on the settings' address for the length of the block.

    Raises `ConfigurationError` where that address can't be had.
    """
    runner = web.AppRunner(
        app,
        # A client that has gone takes its handler with it; aiohttp's default lets it run on.
        handler_cancellation=True,
        # A compressed body would get around the limits on what is read.
        auto_decompress=False,
        access_log=None,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        runner.server.request_factory = _without_other_expectations(runner.server.request_factory)
        try:
            server = await asyncio.get_running_loop().create_server(
                app[DOOR].factory(runner.server), settings.host, settings.port, backlog=_BACKLOG
            )
        except OSError as error:
            raise ConfigurationError(
                f"The gateway can't listen on {settings.host}:{settings.port} ({error.strerror or error}); stop what"
                " is there, or choose another OUTLAST_PORT or OUTLAST_HOST."
            ) from None
        try:
            yield Serving(app, server, settings)
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _without_other_expectations(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Makes requests that expect nothing but `100-continue`.

    aiohttp answers any other expectation where no route matches, in words of its own that quote the client's bytes.
    [spec] "A server that receives an Expect field value containing a member other than 100-continue MAY respond with a
    417 (Expectation Failed) status code" (RFC 9110, section 10.1.1): this one doesn't.
    """

    def made(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        if message.headers.get("Expect", "100-continue").lower() != "100-continue":
            kept = CIMultiDict(message.headers)
            del kept["Expect"]
            message = message._replace(headers=CIMultiDictProxy(kept))
        return make(message, *rest)

    return made


# --- the process ------------------------------------------------------------------------------------------------------


class _Signals:
    """SIGTERM and SIGINT: the first asks to drain, the second to hurry."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._stopped_at = 0.0
        on_stop_signals(self._came)

    def _came(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self.stop.is_set():
            self._stopped_at = now
            self.stop.set()
        elif now - self._stopped_at > _SECOND_SIGNAL_SECONDS:
            self.hurry.set()

    @staticmethod
    async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work returns, or None if the event came first; the work is then cancelled."""
        task = asyncio.create_task(work)
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, waiting):
                each.cancel()
            await asyncio.gather(task, waiting, return_exceptions=True)


def run_gateway(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit code.

    Raises `ConfigurationError` for settings that can't work.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(settings))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - an extra, which is not there on every system
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(settings: Settings) -> int:
    if not settings.redis_url:
        raise ConfigurationError(
            "OUTLAST_REDIS_URL is not set; `outlast up` starts a gateway with a Valkey of its own."
        )
    signals = _Signals()
    blobs = Blobs.open(settings.blob_location)
    store = await signals.unless(signals.stop, _connect(settings, blobs))
    if store is None:
        return 0
    try:
        app = make_app(settings, store, blobs, make_hub(settings, store, Registry()))
        async with serving(app, settings) as server:
            background = [
                asyncio.create_task(keep_running(store.look_loop, "look"), name="look"),
                asyncio.create_task(keep_running(lambda: collect_loop(store, blobs), "collector"), name="collector"),
            ]
            # What the start made stays for ever: a full collection that walks it would hold up every listener for it.
            gc.collect()
            gc.freeze()
            logger.info("listening on %s", server.url)
            try:
                await signals.stop.wait()
                logger.info("stopping: streams are closed, unfinished jobs go on elsewhere or at the next start")
                await signals.unless(signals.hurry, server.drain())
            finally:
                await _end(background)
    finally:
        await store.close()
    return 0


async def _connect(settings: Settings, blobs: Blobs) -> Store:
    """Connect to Redis as soon as it answers. Raises `ConfigurationError` where the jobs' files are not in `blobs`."""
    store = await Store.connect_when_up(settings)
    try:
        marker = await blobs.marker()
        await until_available(lambda: store.check_place(marker), "the files' place can't be checked yet")
        for warning in (await until_available(store.info, "no answer from Redis"))["warnings"]:
            logger.warning("Redis: %s", warning)
    except BaseException:
        await store.close()
        raise
    return store
