"""What one client may take from everybody: connections, time without a byte, and streams.

aiohttp has no deadline for a request's head, for its body, or for a peer that stops reading. Here one clock walks all
connections instead of a timer each. Whoever comes over a limit is refused; nobody who is in is thrown out for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import BadRequest, OutlastError, Timeout, TooMany, Unavailable
from gateway.metrics import Metrics
from gateway.tokens import split_owner

logger = logging.getLogger(__name__)

# Connections over the limit are still read, to be told 503; so many, then they are only closed.
SPARE_CONNECTIONS: Final = 256
# Of one user on one gateway: whoever has stolen a page's token must not fill it. A user has a few pages open.
USER_STREAMS: Final = 100
# An upload may be silent for `upload_idle_seconds` and still drip a byte at a time for ever: below this it is too slow.
_LEAST_BYTES_PER_SECOND: Final = 1000
# The hub closes its own listeners by the same limit and knows the reason; this clock is for all other answers.
_STALL_SPARE_SECONDS: Final = 2.0
_WALKED_AT_ONCE: Final = 500
_LONGEST_PAUSE_SECONDS: Final = 1.0


class Connection(web.RequestHandler):
    """aiohttp's connection, which also knows since when it has been waiting for what."""

    __slots__ = ("_body_number", "_body_since", "_door", "_taken", "head_since", "moved_at", "received_at", "refused")

    def __init__(self, door: Door, server: web.Server, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self._door = door
        self._taken = -1
        self._body_number = 0
        self._body_since = 0.0
        self.received_at = self.moved_at = loop.time()
        self.head_since: float | None = self.received_at
        """Since when a request's head has been owed: from the start, later from a head's first byte."""
        self.refused = False
        """It came when the gateway was full: it is told so, whatever it asks."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._door.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It has gone."""
        self._door.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, or of a WebSocket."""
        if not data:  # aiohttp calls itself with nothing, to go on with what it holds.
            super().data_received(data)
            return
        self.received_at = self._loop.time()
        requests = self._request_count
        owes_head = self._owes_head()
        super().data_received(data)
        if self._request_count > requests:
            self.head_since = None
        elif owes_head and self.head_since is None:
            self.head_since = self.received_at

    def _owes_head(self) -> bool:
        """Whether the next byte belongs to a new request's head, not to a body or an upgraded connection."""
        if self._upgraded or self._payload_parser is not None or self._messages:
            return False
        return self._current_request is None or self._current_request.content.is_eof()

    def check(self, now: float, door: Door) -> None:
        """Called by the door's clock: give up on what has been waited for too long."""
        transport = self.transport
        if transport is None:
            return
        request = self._current_request
        if request is None:
            if self.head_since is not None and now - self.head_since > door.header_timeout_seconds:
                door.metrics.count("connections_timed_out", what="head")
                # Not force_close: that would wait for a peer that reads nothing either.
                transport.abort()
                return
        elif getattr(content := request.content, "_waiter", None) is not None and content.exception() is None:
            if self._body_number != self._request_count:
                self._body_number, self._body_since = self._request_count, now
            silent = now - self.received_at
            dripping = now - self._body_since > door.upload_idle_seconds + content.total_bytes / _LEAST_BYTES_PER_SECOND
            if silent > door.upload_idle_seconds or dripping:
                door.metrics.count("connections_timed_out", what="body")
                # Nothing more is read from it: the answer goes out, then the connection is closed.
                self._lingering_time = 0.0
                content.set_exception(_upload_timeout(silent, dripping))
                return
        self._check_writes(transport, request, now, door)

    def _check_writes(
        self, transport: asyncio.Transport, request: web.BaseRequest | None, now: float, door: Door
    ) -> None:
        waiting = transport.get_write_buffer_size()
        # What the peer has taken: all that was written, less what still waits.
        taken = (request.writer.output_size if request is not None else 0) - waiting
        if waiting == 0 or taken != self._taken:
            self._taken = taken
            self.moved_at = now
        elif now - self.moved_at > door.write_stall_seconds + _STALL_SPARE_SECONDS:
            door.metrics.count("connections_timed_out", what="write")
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never reached the application, such as a malformed head, with a problem document."""
        if request.writer.output_size > 0:
            raise ConnectionError("An answer has begun; the connection is closed instead of a second one.")
        if isinstance(exc, OutlastError):
            error = exc
        elif status == 400:
            logger.debug("a malformed request from %s: %s", request.remote, message)
            error = BadRequest(
                "This is not a valid HTTP request: "
                + (" ".join((message or "").split())[:200] or "check the request line and the headers")
            )
        else:
            logger.error("a request failed outside its handler", exc_info=exc)
            error = OutlastError("The request failed on our side; try again.")
        response = web.Response(
            status=error.status,
            body=json.dumps(error.problem()).encode(),
            content_type="application/problem+json",
            headers={"Cache-Control": "no-store", "Server": "outlast", "X-Content-Type-Options": "nosniff"},
        )
        response.force_close()
        return response


def _upload_timeout(silent: float, dripping: bool) -> Timeout:
    if dripping:
        return Timeout(f"The body arrives at less than {_LEAST_BYTES_PER_SECOND} bytes a second; send it again.")
    return Timeout(f"Nothing of the body came for {silent:.0f} s; send the request again, with the same key.")


class Door:
    """All connections of this gateway: how many may be in, and the clock that walks them."""

    def __init__(
        self,
        *,
        max_connections: int,
        header_timeout_seconds: float,
        upload_idle_seconds: float,
        write_stall_seconds: float,
        metrics: Metrics,
    ) -> None:
        self.max_connections = max_connections
        self.header_timeout_seconds = header_timeout_seconds
        self.upload_idle_seconds = upload_idle_seconds
        self.write_stall_seconds = write_stall_seconds
        self.metrics = metrics
        self.connections: set[Connection] = set()

    def factory(self, server: web.Server) -> Callable[[], Connection]:
        """Makes the protocol of each new connection, for `loop.create_server`."""
        loop, options = asyncio.get_running_loop(), server._kwargs
        return lambda: Connection(self, server, loop, **options)

    def enter(self, connection: Connection) -> None:
        """Let a connection in; refuse it if the gateway is full."""
        inside = len(self.connections)
        self.connections.add(connection)
        if inside >= self.max_connections:
            self.metrics.count("connections_refused")
            connection.refused = True
            if inside >= self.max_connections + SPARE_CONNECTIONS and connection.transport is not None:
                connection.transport.abort()

    def leave(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)

    async def run(self) -> None:
        """Walk all connections; never returns. Measures on the way how late the event loop is."""
        loop = asyncio.get_running_loop()
        shortest = min(self.header_timeout_seconds, self.upload_idle_seconds, self.write_stall_seconds)
        pause = min(_LONGEST_PAUSE_SECONDS, shortest / 4)
        while True:
            due = loop.time() + pause
            await asyncio.sleep(pause)
            self.metrics.observe("loop_lag_seconds", max(0.0, loop.time() - due))
            self.metrics.set("http_connections", len(self.connections))
            for walked, connection in enumerate(tuple(self.connections)):
                if walked % _WALKED_AT_ONCE == _WALKED_AT_ONCE - 1:
                    # A walk over many thousands must not hold up the streams.
                    await asyncio.sleep(0)
                connection.check(loop.time(), self)


def door_guard(exempt: set[object]) -> Middleware:
    """A middleware that tells connections over the limit to come back later.

    `exempt` are the handlers of health checks: a gateway that is full must not be restarted for it.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        if isinstance(connection, Connection) and connection.refused and request.match_info.handler not in exempt:
            raise Unavailable(
                "This gateway has as many connections as it takes; come back a little later.",
                code="too_many_connections",
                retry_after_seconds=random.uniform(1, 5),
            )
        return await handler(request)

    return guarded


class StreamLimit:
    """How many streams, sockets and held requests each owner has open here."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._open.values())

    @contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """Take a place for the length of the block. Raises `TooMany`."""
        taken = self._open.get(owner, 0)
        most = self._most if split_owner(owner)[1] is None else min(self._most, USER_STREAMS)
        if taken >= most:
            raise TooMany(
                f"You have {taken} streams open here, which is the limit; close some, or follow many jobs over one"
                " WebSocket.",
                code="too_many_streams",
                retry_after_seconds=random.uniform(2, 6),
            )
        self._open[owner] = taken + 1
        try:
            yield
        finally:
            if self._open[owner] == 1:
                del self._open[owner]
            else:
                self._open[owner] -= 1
