"""The way to Redis: running scripts and asking servers, and the only place where Redis's errors become ours."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeVar

from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from gateway.errors import ConfigurationError, Unavailable
from gateway.store.clients import SOCKET_TIMEOUT_SECONDS, Identity, Passing, Server, check_master, open_server
from gateway.store.cluster import Cluster
from gateway.store.deployment import Deployment
from gateway.store.feed import Feed
from gateway.store.halt import Halt
from gateway.store.outage import OUTAGE
from gateway.store.scripts import Keys, load
from gateway.store.topology import ClusterSlots, SentinelMaster, Topology, open_topology

logger = logging.getLogger(__name__)

# As often as a caller can wait for: with the pauses between them about 2 s.
_RETRIES: Final = 5
# Errors of a server in a state that passes; of all others the command is the cause.
_PASSING: Final = (Passing, MasterDownError, ClusterDownError, TryAgainError, MovedError)
T = TypeVar("T")
Durability = Literal["redis", "disk", "replica"]


def open_client(
    topology: Topology, identity: Identity, *, blocking_seconds: float = 0, max_connections: int = 16
) -> Server | Cluster:
    """A client for all commands, wherever their keys are. `blocking_seconds` is how long its blocking reads last."""
    if isinstance(topology, ClusterSlots):
        return Cluster(topology, blocking_seconds=blocking_seconds, max_connections=max_connections)
    if isinstance(topology, SentinelMaster):

        async def greet(connection: Any) -> None:
            await check_master(connection)
            await identity.greet(connection)

        server = open_server(
            topology.deployment,
            None,
            retries=_RETRIES,
            find=topology.find,
            greet=greet,
            blocking_seconds=blocking_seconds,
            max_connections=max_connections,
        )
        # Where the old master hangs or comes back, its connections would be used on.
        topology.on_change.append(server.leave_connections)
        return server
    return open_server(
        topology.deployment,
        topology.masters[0],
        retries=_RETRIES,
        greet=identity.greet,
        blocking_seconds=blocking_seconds,
        max_connections=max_connections,
    )


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn Redis's errors into ours."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise translate(error) from None
    else:
        OUTAGE.answered()


def translate(error: Exception) -> Exception:
    """An error of Redis's as ours. What it says is logged, never sent."""
    if isinstance(error, OutOfMemoryError):
        logger.error("Redis is out of memory (maxmemory): new jobs are refused")
        return Unavailable("The server's memory is full; try again later.", code="store_full", retry_after_seconds=30)
    if isinstance(error, AuthenticationError):
        return ConfigurationError(f"OUTLAST_REDIS_URL: Redis refuses the credentials ({error})")
    if isinstance(error, ResponseError) and not isinstance(error, _PASSING):
        return error  # A wrong command or script is a defect of ours, not an outage.
    OUTAGE.failed(error)
    return Unavailable(
        "The job store does not answer; nothing that was accepted is lost. Try again with the same key.",
        retry_after_seconds=2,
    )


async def all_done(work: Iterable[Awaitable[T]]) -> list[T]:
    """Do everything at once and to its end, whatever fails of it; then raise the first that did, or return all."""
    answers = await asyncio.gather(*work, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def until_available(work: Callable[[], Awaitable[T]], what: str) -> T:
    """Repeat some work until Redis answers: a process may start before its Redis. `what` is for the log."""
    told = False
    while True:
        try:
            return await work()
        except Unavailable:
            if not told:
                # Why stands in the line before; whether it goes on is told there too.
                logger.warning("%s; trying on", what)
            told = True
            await asyncio.sleep(random.uniform(0.3, 1.0))


class Connection:
    """What every part of the store is built on: clients, the live feed, the names of the keys, and running scripts."""

    def __init__(self, url: str, prefix: str, durability: Durability) -> None:
        self._url = url
        self._deployment = Deployment.parse(url)
        self._topology = topology = open_topology(self._deployment)
        self._keys = Keys(prefix)
        self._durability = durability
        self._identity = Identity(self._keys.mark, lambda: self.feed.connected)
        self.feed = Feed(topology, self._keys, self._identity)
        # redis-py types each reply as the union over its decoding modes; ours are always bytes.
        self._client: Any = open_client(topology, self._identity)
        self._blocking: Any = open_client(topology, self._identity, blocking_seconds=60, max_connections=8)
        self._halt = Halt.from_environment()

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script in the slot of its keys."""
        async with translated():
            answer = await load(name).run(self._client, keys, args)
        self._called(name, args, answer)
        return answer

    def _called(self, name: str, arguments: Sequence[Any] = (), answer: Any = None) -> None:
        """Redis has answered this call: where a test may have asked the process to halt."""
        if self._halt is not None and answer != []:
            self._halt.after(name, arguments)

    async def _run_durably(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script and wait until its writes are where the `durability` setting wants them.

        WAIT and WAITAOF speak of their own connection's writes, so both commands use one connection. WAITAOF alone is
        not enough: only under `appendfsync always` is the disk's answer true of every server.
        """
        if self._durability == "redis":
            return await self._run(name, keys, args)
        timeout_ms = int(SOCKET_TIMEOUT_SECONDS * 1000) - 500

        async def run(server: Any) -> Any:
            async with server.client() as one:
                answer = await load(name).run(one, keys, args)
                self._called(name, args)
                if self._durability == "disk":
                    return answer, (await one.execute_command("WAITAOF", 1, 0, timeout_ms))[0]
                return answer, await one.execute_command("WAIT", 1, timeout_ms)

        async with translated():
            answer, reached = await self._client.at(keys[0], run)
        if not reached:
            where = "on disk" if self._durability == "disk" else "on a replica"
            raise Unavailable(
                f"The job store could not confirm the write {where} in time. Try again with the same key.",
                code="not_durable",
                retry_after_seconds=2,
            )
        self._called("durable")
        return answer
