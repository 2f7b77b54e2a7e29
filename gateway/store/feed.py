"""The live feed: one subscribing connection for the whole process, read without redis-py.

redis-py's own reader needs six times the CPU per message, gives up after about 4 s without a server, and loses
messages silently when it reconnects. Pub/sub is only the fast path here: after every reconnect each follower is told to
read the log again, which is the truth.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from typing import Any, Final, Protocol, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

from gateway.errors import Unavailable
from gateway.store.scripts import Keys

logger = logging.getLogger(__name__)

# A quiet connection is asked for a sign of life; one that gives none is dead, whatever TCP says.
_PING_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 12.0
_MAX_BACKOFF_SECONDS: Final = 1.0


class Follower(Protocol):
    """Who hears a job's live channel. Both methods are called from the event loop and must not block."""

    def on_message(self, payload: bytes) -> None:
        """One message: lines `N-T type text`, or `seen ms worker`."""

    def on_gap(self) -> None:
        """Messages may have been lost: read the log again."""


class _Wire(asyncio.Protocol):
    """Parses what Redis sends and hands it on; knows nothing of jobs."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._reader = hiredis.Reader()
        self.transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard_at = asyncio.get_running_loop().time()
        self.refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._feed.clock()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._feed.receive(reply)
        except (ConnectionError, hiredis.HiredisError) as error:
            # LOADING after a restart, a wrong password, a slot that has moved: start anew, with a pause.
            logger.warning("live feed: %s; reconnecting", error)
            self.refused = True
            assert self.transport is not None
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, *words: bytes) -> None:
        assert self.transport is not None
        self.transport.write(hiredis.pack_command(tuple(words)))  # type: ignore[arg-type] # the stub means one word


class Feed:
    """Follows the live channels of the jobs that this process serves, and no others."""

    def __init__(self, url: str, keys: Keys) -> None:
        self._url = url
        self._keys = keys
        self._followers: dict[bytes, Follower] = {}
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        self._wire: _Wire | None = None
        self.reconnects = 0
        self.clock = asyncio.get_running_loop().time

    @property
    def connected(self) -> bool:
        """Whether the subscribing connection stands."""
        return self._wire is not None

    async def follow(self, job: str, follower: Follower) -> None:
        """Subscribe to a job's live channel; returns when Redis has confirmed, so that nothing after it is missed.

        One follower per job. Raises `Unavailable` where the connection is down and stays down for 5 s; the follower
        stays registered and hears `on_gap` when it is back.
        """
        channel = self._keys.live(job).encode()
        self._followers[channel] = follower
        confirmed = self._confirmations.get(channel)
        if confirmed is None:
            confirmed = self._confirmations[channel] = asyncio.get_running_loop().create_future()
            if self._wire is not None:
                self._wire.send(b"SSUBSCRIBE", channel)
        try:
            async with asyncio.timeout(5):
                await asyncio.shield(confirmed)
        except TimeoutError:
            raise Unavailable("The live feed is down; come back in a moment.", retry_after_seconds=2) from None

    def unfollow(self, job: str) -> None:
        """Unsubscribe from a job's live channel."""
        channel = self._keys.live(job).encode()
        if self._followers.pop(channel, None) is None:
            return
        confirmed = self._confirmations.pop(channel, None)
        if confirmed is not None and not confirmed.done():
            confirmed.cancel()
        if self._wire is not None:
            self._wire.send(b"SUNSUBSCRIBE", channel)

    def receive(self, reply: Any) -> None:
        """Take one reply of the connection."""
        if isinstance(reply, Exception):
            raise ConnectionError(str(reply))
        if not isinstance(reply, list):
            return
        match reply:
            case [b"smessage", channel, payload]:
                if (follower := self._followers.get(channel)) is not None:
                    follower.on_message(payload)
            case [b"ssubscribe", channel, _]:
                confirmed = self._confirmations.get(channel)
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)
                elif (follower := self._followers.get(channel)) is not None:
                    # A channel that was followed before: between the two subscriptions messages were lost.
                    follower.on_gap()
            case [b"sunsubscribe", channel, _] if channel in self._followers and self._wire is not None:
                # Not asked for (the slot moved to another node), or followed again meanwhile.
                self._wire.send(b"SSUBSCRIBE", channel)

    async def run(self) -> None:
        """Keep the connection up; never returns. Owned by the store."""
        failures = 0
        while True:
            try:
                wire = await self._connect()
            except (OSError, TimeoutError, ConnectionError) as error:
                failures += 1
                if failures == 1:
                    logger.warning("live feed: can't connect (%s); trying on", type(error).__name__)
                await self._pause(failures)
                continue
            self._wire = wire
            if self._followers:
                self.reconnects += 1
            for channel in self._followers:
                # One by one: in a cluster the channels of one command would have to share a slot.
                wire.send(b"SSUBSCRIBE", channel)
            try:
                await self._stay(wire)
            finally:
                self._wire = None
                if wire.transport is not None:
                    wire.transport.abort()
            if wire.refused:
                failures += 1
                await self._pause(failures)
            else:
                failures = 0

    @staticmethod
    async def _pause(failures: int) -> None:
        await asyncio.sleep(random.uniform(0.3, 1) * min(_MAX_BACKOFF_SECONDS, 0.02 * 2 ** min(failures, 10)))

    async def _stay(self, wire: _Wire) -> None:
        while not wire.lost.done():
            # Not wait_for: on Python 3.11 it may swallow the cancellation that ends this loop.
            await asyncio.wait({wire.lost}, timeout=_PING_SECONDS)
            silence = self.clock() - wire.heard_at
            if silence > _SILENCE_SECONDS:
                logger.warning("live feed: no sign of life for %.0f s; reconnecting", silence)
                return
            if silence > _PING_SECONDS / 2 and not wire.lost.done():
                wire.send(b"PING")

    async def _connect(self) -> _Wire:
        options: dict[str, Any] = dict(parse_url(self._url))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(3):
            if "path" in options:
                _, wire = await loop.create_unix_connection(lambda: _Wire(self), options["path"])
            else:
                secure = options.get("connection_class") is SSLConnection
                context = _tls_context(options) if secure else None
                host, port = options.get("host", "localhost"), int(options.get("port", 6379))
                _, wire = await loop.create_connection(lambda: _Wire(self), host, port, ssl=context)
        if options.get("password"):
            name = [options["username"].encode()] if options.get("username") else []
            wire.send(b"AUTH", *name, options["password"].encode())
        return wire


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    if str(options.get("ssl_cert_reqs", "required")) in {"none", "0"}:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
