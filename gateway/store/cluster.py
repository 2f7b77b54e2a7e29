"""A cluster, spoken to as if it were one server: each command goes to the master that holds its key.

Each master has a client of its own with a bounded pool in which callers wait for a connection, as for a single server:
redis-py's cluster client refuses commands there, takes no script in a pipeline, and reconnects to all nodes when one
fails. Where slots are is one topology for commands, blocking reads and the live feed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

import redis.asyncio as redis
from redis.commands import AsyncCoreCommands
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from gateway.store.clients import MAX_CONNECTIONS, Server, open_server
from gateway.store.deployment import Address
from gateway.store.topology import ClusterSlots

T = TypeVar("T")
_Command = tuple[tuple[Any, ...], dict[str, Any]]

# What another try at another master, or a little later, may mend. A failover takes longer than all tries: until it is
# over, callers hear `Unavailable`.
_PASSING: Final = (redis.ConnectionError, redis.TimeoutError, ClusterDownError, TryAgainError, MovedError)
_TRIES: Final = 6
# One that hangs costs two time-outs each time, and whoever waits for it keeps others waiting: a kind's claims, for one.
_LONGEST_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 0.02
_MOST_PAUSE_SECONDS: Final = 0.5
# Where their first key is: after the script and the number of keys.
_SCRIPTS: Final = frozenset({"EVALSHA", "EVAL"})


async def _pause(tries: int) -> None:
    await asyncio.sleep(random.uniform(0.5, 1) * min(_MOST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**tries))


def _is_last(tries: int, started: float) -> bool:
    return tries + 1 == _TRIES or asyncio.get_running_loop().time() - started > _LONGEST_SECONDS


def _key(args: tuple[Any, ...]) -> str | bytes:
    key: str | bytes = args[3] if args[0] in _SCRIPTS else args[1]
    return key


class Cluster(AsyncCoreCommands):
    """Commands with a key go to its master; `servers` are for those without one."""

    _event_dispatcher: Any = None  # redis-py's commands want one, and do without.

    def __init__(
        self, topology: ClusterSlots, *, blocking_seconds: float = 0, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        self._topology = topology
        self._blocking_seconds = blocking_seconds
        self._max_connections = max_connections
        self._servers: dict[Address, Server] = {}

    def server(self, address: Address) -> Server:
        """The client of one node."""
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = open_server(
                self._topology.deployment,
                address,
                # Once more on a fresh connection; then somebody else may have become the master.
                retries=1,
                blocking_seconds=self._blocking_seconds,
                max_connections=self._max_connections,
            )
        return server

    def servers(self) -> list[redis.Redis]:
        """A client of each master."""
        return [self.server(address) for address in self._topology.masters]

    def together(self, keys: list[str]) -> list[list[str]]:
        """The keys in groups that one command may name: those of one slot."""
        groups: dict[int, list[str]] = {}
        for key in keys:
            groups.setdefault(key_slot(key.encode()), []).append(key)
        return list(groups.values())

    async def at(self, key: str | bytes, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do some work with the master that holds a key; again if that one isn't it any more."""
        started = asyncio.get_running_loop().time()
        for tries in range(_TRIES):
            address = self._topology.owner(key)
            try:
                if address is None:
                    raise ClusterDownError("nobody holds the slot")
                return await work(self.server(address))
            except _PASSING as error:
                if _is_last(tries, started):
                    raise
                await self._reconsider(error, tries)
            except AskError as error:
                return await work(self._asking(error, address))
        raise AssertionError("the last try returns or raises")

    async def _reconsider(self, error: Exception, tries: int) -> None:
        if not isinstance(error, MovedError) or tries:
            await _pause(tries)
        try:
            await self._topology.refresh()
        except (redis.RedisError, OSError):
            return
        for address in [address for address in self._servers if address not in self._topology.masters]:
            await self._servers.pop(address).aclose()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the master of its key."""
        return await self.at(_key(args), lambda server: server.execute_command(*args, **options))

    def pipeline(self, transaction: bool = False) -> Pipeline:
        """Commands that are sent together, each node's in one go; those of a transaction all have keys of one slot."""
        return Pipeline(self, transaction)

    async def run_transaction(self, commands: list[_Command]) -> list[Any]:
        """The replies to a transaction. Raises its first error. For `Pipeline`."""

        async def run(server: Any) -> list[Any]:
            async with server.pipeline(transaction=True) as pipe:
                for args, options in commands:
                    pipe.execute_command(*args, **options)
                try:
                    replies: list[Any] = await pipe.execute()
                except MovedError:
                    raise
                except AskError as error:
                    # It can't be asked there as a whole; a slot is not on its way for long.
                    raise TryAgainError(str(error)) from None
                return replies

        return await self.at(_key(commands[0][0]), run)

    async def run(self, commands: list[_Command]) -> list[Any]:
        """The replies to many commands, or their errors, in the commands' order. For `Pipeline`."""
        replies: list[Any] = [None] * len(commands)
        todo = list(range(len(commands)))
        started = asyncio.get_running_loop().time()
        for tries in range(_TRIES):
            by_node: dict[Address | None, list[int]] = {}
            for i in todo:
                by_node.setdefault(self._topology.owner(_key(commands[i][0])), []).append(i)
            await asyncio.gather(*(self._run_at(node, some, commands, replies) for node, some in by_node.items()))
            todo = [i for i in todo if isinstance(replies[i], _PASSING)]
            if not todo or _is_last(tries, started):
                break
            await self._reconsider(replies[todo[0]], tries)
        return replies

    async def _run_at(
        self,
        address: Address | None,
        some: list[int],
        commands: list[_Command],
        replies: list[Any],
    ) -> None:
        try:
            if address is None:
                raise ClusterDownError("nobody holds the slot")
            async with self.server(address).pipeline(transaction=False) as pipe:
                for i in some:
                    args, options = commands[i]
                    pipe.execute_command(*args, **options)
                answers = await pipe.execute(raise_on_error=False)
        except _PASSING as error:
            answers = [error] * len(some)
        for i, answer in zip(some, answers, strict=True):
            replies[i] = answer
            if isinstance(answer, AskError) and not isinstance(answer, MovedError):
                args, options = commands[i]
                try:
                    replies[i] = await self._asking(answer, address).execute_command(*args, **options)
                except redis.RedisError as error:
                    replies[i] = error

    def _asking(self, error: AskError, asked: Address | None) -> _Asking:
        # A node that doesn't know a host's name means the one at which it was asked.
        return _Asking(self.server(Address(error.host or (asked.host if asked else ""), error.port)))

    async def aclose(self) -> None:
        """Close all connections."""
        for server in self._servers.values():
            await server.aclose()
        self._servers.clear()


class Pipeline(AsyncCoreCommands):
    """Collects commands, and sends them grouped by node; there is no order between nodes."""

    _event_dispatcher: Any = None

    def __init__(self, cluster: Cluster, transaction: bool) -> None:
        self._cluster = cluster
        self._transaction = transaction
        self._commands: list[_Command] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands = []

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Take a command; it is sent by `execute`."""
        self._commands.append((args, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what was taken; raises the first error, or returns each where its reply would be."""
        commands, self._commands = self._commands, []
        if self._transaction and commands:
            return await self._cluster.run_transaction(commands)
        replies = await self._cluster.run(commands)
        for reply in replies:
            if raise_on_error and isinstance(reply, redis.RedisError):
                raise reply
        return replies


class _Asking:
    """A server to which a slot is on its way: it takes the slot's commands from those who say ASKING before each."""

    def __init__(self, server: redis.Redis) -> None:
        self._server = server

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with self.client() as one:
            return await one.execute_command(*args, **options)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[_AskingConnection]:
        async with self._server.client() as one:
            yield _AskingConnection(one)


class _AskingConnection:
    """One connection to such a server."""

    def __init__(self, one: Any) -> None:
        self._one = one

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        await self._one.execute_command("ASKING")
        return await self._one.execute_command(*args, **options)
