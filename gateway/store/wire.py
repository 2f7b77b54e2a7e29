"""A connection to one server for what comes and goes by the thousand: the live feed, and appends.

It is read without redis-py, which needs six times the CPU per message.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Final, Self, cast

import hiredis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import RedisError

from gateway.store.clients import Identity
from gateway.store.deployment import Address, Deployment
from gateway.store.outage import OUTAGE
from gateway.store.topology import SentinelMaster, Topology

_CONNECT_SECONDS: Final = 3.0
_MAX_BACKOFF_SECONDS: Final = 1.0


class Wire(asyncio.Protocol):
    """Parses what Redis sends and hands it on; knows nothing of jobs.

    First it is asked questions; from `listen` on, all that comes goes to `receive`, which may raise `ConnectionError`.
    `what` is for the log.
    """

    def __init__(self, receive: Callable[[Any], None], what: str) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._what = what
        self._reader = hiredis.Reader()
        self._live = receive
        self._receive: Callable[[Any], None] = self._answer
        self._asked: asyncio.Future[Any] | None = None
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = loop.create_future()
        self.heard_at = self._clock()
        self.refused = False
        """Whether the server said something that ends the connection."""

    @classmethod
    async def open(cls, deployment: Deployment, address: Address, receive: Callable[[Any], None], what: str) -> Self:
        """Connect and log in.

        Raises `OSError` or `redis.RedisError`. Cancelling it leaves no connection behind.
        """
        loop = asyncio.get_running_loop()
        wire = cls(receive, what)
        try:
            if address.port:
                context = _tls_context(deployment.options) if deployment.tls else None
                await loop.create_connection(lambda: wire, address.host, address.port, ssl=context)
            else:
                await loop.create_unix_connection(lambda: wire, address.host)
            options = deployment.options
            if options.get("password"):
                name = [options["username"]] if options.get("username") else []
                await wire.ask("AUTH", *name, options["password"])
            if options.get("db"):
                await wire.ask("SELECT", str(options["db"]))
        except BaseException:
            wire.abort()
            raise
        return wire

    async def ask(self, *words: str) -> Any:
        """Send a command and return its reply; only before `listen`. Raises `redis.RedisError` for an error reply."""
        self._asked = asyncio.get_running_loop().create_future()
        self.send(*(word.encode() for word in words))
        reply = await self._asked
        if isinstance(reply, hiredis.ReplyError):
            error: Exception = DefaultParser.parse_error(str(reply))  # type: ignore[no-untyped-call]
            raise error
        return reply

    def _answer(self, reply: Any) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(reply)

    def listen(self) -> None:
        """From now on all that comes is live."""
        self._receive = self._live

    def send(self, *words: bytes) -> None:
        """Send a command without waiting."""
        self.send_all([words])

    def send_all(self, commands: Iterable[tuple[Any, ...]]) -> None:
        """Send commands in one write, without waiting.

        On a connection that is ending they go nowhere, and `lost` tells of that.
        """
        assert self._transport is not None
        # uvloop raises a RuntimeError for it.
        if self._transport.is_closing():
            return
        self._transport.write(b"".join([hiredis.pack_command(words) for words in commands]))

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- what asyncio calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._clock()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._receive(reply)
        except (ConnectionError, hiredis.HiredisError) as error:
            # LOADING after a restart, a cluster that is down: start anew, with a pause.
            OUTAGE.failed(ConnectionError(f"{self._what}: {error}"))
            self.refused = True
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(ConnectionError("the server ended the connection"))
        if not self.lost.done():
            self.lost.set_result(None)


async def kept(
    topology: Topology, identity: Identity, address: Address, receive: Callable[[Any], None], what: str
) -> AsyncGenerator[Wire, None]:
    """A connection to a master each time one stands, checked and listening; comes back for the next when it is lost.

    Never ends. Who takes a wire ends it, since a generator that waits for its next turn hears of no cancel.
    """
    failures = 0
    while True:
        try:
            wire = await _checked(topology, identity, address, receive, what)
        except (OSError, TimeoutError, RedisError) as error:
            failures += 1
            OUTAGE.failed(ConnectionError(f"{what}: can't connect to {address} ({error})"))
            topology.want_refresh()
            await _pause(failures)
            continue
        yield wire
        topology.want_refresh()
        failures = failures + 1 if wire.refused else 0
        if failures:
            await _pause(failures)


async def _checked(
    topology: Topology, identity: Identity, address: Address, receive: Callable[[Any], None], what: str
) -> Wire:
    async with asyncio.timeout(_CONNECT_SECONDS):
        wire = await Wire.open(topology.deployment, address, receive, what)
        try:
            if topology.deployment.topology != "cluster":
                await identity.check(wire.ask)
            if isinstance(topology, SentinelMaster) and (await wire.ask("ROLE"))[0] != b"master":
                raise ConnectionError("it is no master")
        except BaseException:
            wire.abort()
            raise
    wire.listen()
    return wire


async def _pause(failures: int) -> None:
    await asyncio.sleep(random.uniform(0.3, 1) * min(_MAX_BACKOFF_SECONDS, 0.02 * 2 ** min(failures, 10)))


def _tls_context(options: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    if str(options.get("ssl_cert_reqs", "required")) in {"none", "0"}:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
