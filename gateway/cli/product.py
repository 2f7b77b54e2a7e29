"""The whole product on one machine: an embedded Valkey, a gateway and workers, each a process of its own.

The parent only watches: it starts a child again that died, and ends all in the order in which they need each other. It
and its children are one process group, and none of them outlives it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from gateway.blobs import Blobs
from gateway.child import Child, Restarts
from gateway.cli import Exit
from gateway.config import Settings
from gateway.embedded import EmbeddedValkey
from gateway.errors import ConfigurationError, Unavailable
from gateway.store import Store, until_available

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.05
# Beyond what a gateway or worker was told to wait for by its own settings.
_STOP_MARGIN_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Running:
    """What is there once everything is ready, for the banner."""

    address: str
    redis_url: str
    server: str
    embedded: bool
    kinds: tuple[str, ...]
    unfinished: int
    warnings: tuple[str, ...] = field(default=())


class _Ended(Exception):
    """A child ended in a way that a new start would not mend. It has said why on standard error."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"the {name} ended (exit code {code})")
        self.code = code


class Service:
    """One child of the product."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], stop_seconds: float) -> None:
        self.name = name
        self.ready = False
        self._command = command
        self._environment = environment
        self._stop_seconds = stop_seconds
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the present child."""
        return self._child.pid if self._child else None

    async def keep(self) -> None:
        """Keep it running. Raises `_Ended` for an end before it was ready, and for settings that can't work."""
        restarts = Restarts()
        while True:
            restarts.begin()
            self._child = await Child.start(*self._command, environment=self._environment)
            code = await self._child.wait()
            if not self.ready or code == Exit.USAGE:
                raise _Ended(self.name, code)
            pause = restarts.pause_seconds()
            logger.error("the %s ended (exit code %d); starting it again in %.1f s", self.name, code, pause)
            await asyncio.sleep(pause)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._child is not None:
            self._child.send(number)

    async def stop(self) -> None:
        """Ask it to end, and end it if that takes too long."""
        if self._child is not None and self._child.exit_code is None:
            await self._child.stop(self._stop_seconds)


class Product:
    """Starts everything, says so through `announce`, and runs until a signal.

    The kinds of `waiting_modules` wait for others and use no core: their many attempts have a worker of their own.
    """

    def __init__(
        self,
        settings: Settings,
        modules: Sequence[str],
        *,
        waiting_modules: Sequence[str] = (),
        workers: int,
        announce: Callable[[Running], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._modules = modules
        self._waiting_modules = waiting_modules
        self._workers = workers if modules else 0
        self._announce = announce
        self._say = say
        self._services: list[Service] = []
        self._signals = 0
        self._serving: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Run until SIGINT, SIGTERM or SIGHUP; returns the exit code. A second signal hurries, a third kills.

        Raises `ConfigurationError` for what can't work, such as a taken port, before anything is started.
        """
        settings = self._settings
        port = check_address(settings.host, settings.port)
        self._say(f"Starting in {settings.data.resolve()} ...")
        loop = asyncio.get_running_loop()
        self._serving = asyncio.create_task(self._serve(port), name="the product")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop_by_signal)
        try:
            await self._serving
        except asyncio.CancelledError:
            return Exit.SUCCEEDED
        except BaseExceptionGroup as group:
            ended, other = group.split(_Ended)
            if ended is None or other is not None:
                raise
            first = _leaf(ended)
            self._say(f"Stopped: {first}; its reason is above.")
            return first.code if first.code > 0 else Exit.FAILED
        return Exit.SUCCEEDED

    def _stop_by_signal(self) -> None:
        self._signals += 1
        if self._signals == 1 and self._serving is not None:
            self._say("Stopping. Unfinished jobs go on at the next start. Ctrl-C again hurries.")
            self._serving.cancel()
            return
        for service in self._services:
            # A worker takes the second SIGTERM as: hand back at once.
            service.send(signal.SIGTERM if self._signals == 2 else signal.SIGKILL)

    async def _serve(self, port: int) -> None:
        settings = self._settings
        async with AsyncExitStack() as stack:
            url = settings.redis_url
            if not url:
                # Where a submit waits for the disk, each write has to be there: see gateway.store.health.
                sync = {"appendfsync": "always"} if settings.durability == "disk" else {}
                server = EmbeddedValkey(settings.data, memory_bytes=settings.embedded_memory_bytes, options=sync)
                url = (await stack.enter_async_context(server)).url
            await self._check_place(url)
            self._services = self._make_services(url, port)
            # Before the group is left, its tasks are cancelled and start nothing more; then this ends the children,
            # and only then Valkey goes.
            stack.push_async_callback(self._stop_services)
            async with asyncio.TaskGroup() as group:
                for service in self._services:
                    group.create_task(service.keep(), name=f"keeps the {service.name}")
                running = await self._until_ready(url, port)
                for service in self._services:
                    service.ready = True
                self._announce(running)

    def _make_services(self, url: str, port: int) -> list[Service]:
        settings = self._settings
        environment = os.environ | {
            "OUTLAST_HOST": settings.host,
            "OUTLAST_PORT": str(port),
            "OUTLAST_REDIS_URL": url,
            "OUTLAST_DATA": str(settings.data.resolve()),
            "OUTLAST_CONCURRENCY": str(settings.concurrency),
            "OUTLAST_DEV": str(settings.dev).lower(),
        }
        if settings.routes is not None:
            environment["OUTLAST_ROUTES"] = str(settings.routes.resolve())
        # -P: a folder `gateway` where the command was called must not pass for this package.
        outlast = (sys.executable, "-P", "-m", "gateway.cli")
        gateway = Service("gateway", (*outlast, "gateway"), environment, settings.drain_seconds + _STOP_MARGIN_SECONDS)
        worker_seconds = settings.stop_grace_seconds + _STOP_MARGIN_SECONDS
        workers = [
            Service("worker", (*outlast, "worker", *self._modules), environment, worker_seconds)
            for _ in range(self._workers)
        ]
        if self._waiting_modules:
            # What is set is meant for those that need a core.
            command = (*outlast, "worker", *self._waiting_modules)
            workers.append(Service("worker", command, environment | {"OUTLAST_CONCURRENCY": "0"}, worker_seconds))
        return [gateway, *workers]

    async def _check_place(self, url: str) -> None:
        """Make sure that the jobs' files are where the settings say: each child would refuse to start without.

        Raises `ConfigurationError`, also for a Redis that can't be used.
        """
        blobs = Blobs.open(self._settings.blob_location)
        store = await self._connect(url)
        try:
            # A store of files that does not answer now is waited for, or complained of, by those who need it.
            with suppress(Unavailable):
                marker = await blobs.marker()
                await until_available(lambda: store.check_place(marker), "the files' place can't be checked yet")
        finally:
            await store.close()

    async def _connect(self, url: str) -> Store:
        connect = partial(Store.connect, url, prefix=self._settings.prefix)
        return await until_available(connect, "no answer from Redis yet")

    async def _stop_services(self) -> None:
        await asyncio.gather(*(service.stop() for service in self._services))

    # --- the start ----------------------------------------------------------------------------------------------

    async def _until_ready(self, url: str, port: int) -> Running:
        """Wait until the gateway says that it is ready and every worker claims jobs."""
        settings = self._settings
        store = await self._connect(url)
        try:
            kinds = await self._until_workers(store)
            await _until_answered(settings.reachable_host, port)
            info = await store.info()
            depths = await store.depths(list(kinds))
        finally:
            await store.close()
        return Running(
            address=settings.address(port),
            redis_url=url,
            server=f"{info['server']} {info['version']}",
            embedded=not settings.redis_url,
            kinds=kinds,
            unfinished=sum(sum(depth) for depth in depths.values()),
            warnings=tuple(info["warnings"]),
        )

    async def _until_workers(self, store: Store) -> tuple[str, ...]:
        """The kinds that our own workers do; those of an earlier start may still be listed as present."""
        while True:
            ours = {f"{socket.gethostname()}-{service.pid}-" for service in self._services[1:]}
            present = [row for row in await store.workers() if row["worker"].startswith(tuple(ours))]
            if len(present) >= len(ours):
                return tuple(sorted({kind for row in present for kind in row["kinds"]}))
            await asyncio.sleep(_POLL_SECONDS)


def _leaf(group: BaseExceptionGroup[_Ended]) -> _Ended:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


def check_address(host: str, port: int) -> int:
    """Whether the gateway could listen there; returns the port, or a free one for 0.

    Raises `ConfigurationError` that says what to do. It is asked before anything starts, since a gateway that finds
    its port taken would leave a half-started product.
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigurationError(f"OUTLAST_HOST: {host!r} is no address of this machine ({error.strerror})") from None
    for family, kind, protocol, _, address in answers:
        with socket.socket(family, kind, protocol) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise ConfigurationError(_explain(error, host, port)) from None
            bound: Any = probe.getsockname()
            port = port or bound[1]
    return port


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken by another program. Stop that one, or choose another port:"
            f" outlast up --port {port + 1} (or: make run PORT={port + 1})"
        )
    if error.errno == errno.EACCES:
        return f"Port {port} may only be used by root: choose one above 1023, such as --port 8080"
    return f"OUTLAST_HOST: {host!r} is no address of this machine ({error.strerror})"


async def _until_answered(host: str, port: int) -> None:
    """Wait until the gateway there says that it is ready."""
    while True:
        if await _is_ready(host, port):
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _is_ready(host: str, port: int) -> bool:
    """Whether the gateway there answers 200 to `/readyz`."""
    writer = None
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET /readyz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            return (await reader.readline()).split()[1:2] == [b"200"]
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
