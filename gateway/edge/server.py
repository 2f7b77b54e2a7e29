"""A hop that listens: its clients' connections, the clock that walks over them, and chains of hops."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final, Self

from gateway.edge import admin, pages
from gateway.edge.clock import Clock
from gateway.edge.exchange import Exchange, Hop
from gateway.edge.failures import Cut, Garbled
from gateway.edge.faults import Fault, Faults
from gateway.edge.message import Body, RequestHead, ResponseHead, parse_request, request_framing, split_head
from gateway.edge.metrics import Metrics, Record
from gateway.edge.origin import Origin
from gateway.edge.profile import Profile
from gateway.edge.wire import Wire
from gateway.errors import ConfigurationError

_BACKLOG: Final = 1024
# How long a connection with an unread body is listened to after its answer: a reset would take the answer with it.
_LINGER_SECONDS: Final = 2.0
# How often idle connections to the origin are looked at, in real seconds.
_SWEEP_SECONDS: Final = 0.5
_ADMIN_BODY_BYTES: Final = 64 * 1024


class Edge:
    """`async with Edge(profile, "http://127.0.0.1:8080") as edge: ... edge.url`: one simulated hop.

    Limits of the profile pass `1 / time_scale` times as fast. With the same seed and the same requests in the same
    order, rays, jitter and random limits are the same. `marked=False` leaves out what says that this is a simulation.
    """

    def __init__(
        self,
        profile: Profile,
        origin: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        time_scale: float = 1.0,
        seed: int = 0,
        marked: bool = True,
    ) -> None:
        if not 0 < time_scale <= 1:
            raise ConfigurationError(f"The time scale is above 0 and at most 1, not {time_scale:g}.")
        self.profile = profile
        self._origin_url = origin
        self._address = host, port
        self._time_scale = time_scale
        self._seed = seed
        self._marked = marked
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wires: set[Wire] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        clock = Clock(self._time_scale)
        self._hop = Hop(
            self.profile,
            clock,
            Origin(self._origin_url, self.profile, clock),
            Metrics(clock.now),
            Faults(),
            random.Random(f"{self._seed} {self.profile.name}"),
            self._marked,
        )
        host, port = self._address
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Wire(self._accept), host, port, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"The edge can't listen on {host}:{port} ({error.strerror or error}); choose another --port."
            ) from None
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self._walking = asyncio.create_task(self._walk(), name="an edge's clock")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = [self._walking, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in self._wires:
            wire.abort()
        self._hop.origin.cut()

    # --- what is asked of it from outside ---------------------------------------------------------------------------

    @property
    def requests(self) -> list[Record]:
        """What happened to the last requests, oldest first."""
        return self._hop.metrics.records

    @property
    def metrics(self) -> Metrics:
        """The same, with counts."""
        return self._hop.metrics

    @property
    def faults(self) -> Faults:
        """What goes wrong on demand."""
        return self._hop.faults

    def fault(self, name: str, **options: object) -> None:
        """Let a fault wait for the next request that it fits. Raises `ValueError`."""
        self.faults.add(Fault.parse({"fault": name, **options}))

    def restart(self, *, spare: Connection | None = None) -> int:
        """Cut all connections, as a restarted edge does; returns how many. New ones are taken at once.

        `spare` is the one that asked for it, and waits for the answer.
        """
        self._hop.metrics.restarts += 1
        connections = self._connections - {spare}
        for connection in connections:
            connection.cut("restart")
        self._hop.origin.cut()
        return len(connections)

    # --- connections ------------------------------------------------------------------------------------------------

    def _accept(self, wire: Wire) -> None:
        connection = Connection(self, self._hop, wire)
        self._wires.add(wire)
        self._connections.add(connection)
        task = asyncio.get_running_loop().create_task(connection.serve(), name="an edge's connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._connections.discard(connection))

    async def _walk(self) -> None:
        """Close what is idle, and restart when it is time."""
        every = self.profile.timers.restart_every_seconds
        next_restart = every * self._hop.random.uniform(0.8, 1.2)
        while True:
            await asyncio.sleep(min(_SWEEP_SECONDS, every * self._time_scale / 10 or _SWEEP_SECONDS))
            self._hop.origin.sweep()
            # A closed connection may still be sending its last bytes.
            self._wires = {wire for wire in self._wires if not wire.lost}
            if every and self._hop.clock.now() >= next_restart:
                next_restart += every * self._hop.random.uniform(0.8, 1.2)
                self.restart()


class Connection:
    """A client's connection: one request after the other."""

    def __init__(self, edge: Edge, hop: Hop, wire: Wire) -> None:
        self._edge = edge
        self._hop = hop
        self._wire = wire
        self._exchange: Exchange | None = None

    def cut(self, reason: str) -> None:
        """End it without a word."""
        if self._exchange is not None:
            self._exchange.fail(Cut(reason))
        self._wire.abort()

    async def serve(self) -> None:
        """Serve requests until the connection ends."""
        try:
            while (head := await self._next_head()) is not None:
                if not await self._serve_one(head):
                    break
            await self._linger()
        except Garbled:
            self._wire.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            await self._linger()
        finally:
            self._wire.close()

    async def _next_head(self) -> RequestHead | None:
        """The next request's head; None when there is none."""
        rules, buffer = self._hop.profile.request, b""
        try:
            async with self._hop.clock.limit(self._hop.profile.timers.client_idle_seconds):
                while (parts := split_head(buffer)) is None:
                    if len(buffer) > rules.max_head_bytes + rules.max_url_bytes:
                        self._refuse(self._hop.profile.errors.head_too_large)
                        return None
                    data = await self._wire.read()
                    if not data:
                        return None
                    # Empty lines before a request are skipped (RFC 9112, section 2.2).
                    buffer = (buffer + data).lstrip(b"\r\n") if not buffer else buffer + data
        except TimeoutError:
            return None
        self._wire.unread(parts[1])
        head = parse_request(parts[0])
        if len(parts[0]) > rules.max_head_bytes and len(head.target) <= rules.max_url_bytes:
            self._refuse(self._hop.profile.errors.head_too_large)
            return None
        return head

    async def _serve_one(self, head: RequestHead) -> bool:
        framing, length = request_framing(head)
        if head.target.startswith(admin.PREFIX):
            return await self._serve_admin(head, Body(framing, length))
        self._exchange = Exchange(self._hop, self._wire, head, Body(framing, length), self._ray())
        try:
            return await self._exchange.run()
        finally:
            self._exchange = None

    def _ray(self) -> str:
        return f"{self._hop.random.getrandbits(64):016x}-{'SIM' if self._hop.marked else 'FRA'}"

    async def _serve_admin(self, head: RequestHead, body: Body) -> bool:
        text = b""
        while not body.complete and len(text) <= _ADMIN_BODY_BYTES:
            data = await self._wire.read()
            if not data:
                return False
            text += body.feed(data)
        self._wire.unread(body.leftover)
        self._wire.write(admin.answer(self._hop, partial(self._edge.restart, spare=self), head, text))
        return head.keeps_alive and body.complete

    def _refuse(self, status: int) -> None:
        """Answer a head that is too large to be looked at."""
        occasion = pages.Occasion(
            status, status, "head_too_large", "", "", self._ray(), "", datetime.now(UTC), 0, self._hop.marked
        )
        page = pages.make_page(self._hop.profile.brand, occasion)
        page.headers.set("Connection", "close")
        self._wire.write(ResponseHead(page.status, page.reason, "1.1", page.headers).encode() + page.body)

    async def _linger(self) -> None:
        """Say that this is all, and let the client finish what it is sending."""
        if self._wire.ended:
            return
        self._wire.finish()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self._wire.read():
                    pass


@asynccontextmanager
async def chain(
    profiles: Sequence[Profile],
    origin: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    time_scale: float = 1.0,
    seed: int = 0,
    marked: bool = True,
) -> AsyncIterator[list[Edge]]:
    """Hops one behind the other, each a listener of its own: the first is the clients', the last asks the origin."""
    if not profiles:
        raise ConfigurationError("A chain has at least one profile.")
    async with AsyncExitStack() as stack:
        hops: list[Edge] = []
        for place, profile in reversed(list(enumerate(profiles))):
            edge = Edge(
                profile,
                hops[0].url if hops else origin,
                host=host if place == 0 else "127.0.0.1",
                port=port if place == 0 else 0,
                time_scale=time_scale,
                seed=seed + place,
                marked=marked,
            )
            hops.insert(0, await stack.enter_async_context(edge))
        yield hops
