"""Connections to single servers: redis-py's, made cancellable, sure of their server, and bounded in a pool."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import hiredis
import redis.asyncio as redis
from redis.asyncio.connection import AbstractConnection, DefaultParser, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import MovedError, OutOfMemoryError, RedisError, ResponseError

from gateway.errors import ConfigurationError
from gateway.store.deployment import Address, Deployment

logger = logging.getLogger(__name__)

# Commands take milliseconds: one that waits 3 s has met a dead connection, and is sent again on another.
SOCKET_TIMEOUT_SECONDS: Final = 3.0
MAX_CONNECTIONS: Final = 16
# Who knows where things are is asked in passing; the next one is asked if this one doesn't say.
_LINE_TIMEOUT_SECONDS: Final = 1.0
# A server with other data is believed to have replaced the former one when so many connections in a row met it.
_STRANGE_ENOUGH: Final = 5
T = TypeVar("T")


class Demoted(redis.ConnectionError):
    """The server is no master any more, so its connection is of no use: another one may lead to the new master."""


class Passing(ResponseError):
    """The server refuses a command that is right, because of a state that passes."""


class OtherServer(redis.ConnectionError):
    """A connection led to a server with other data than the connections before it."""


class _Parser(DefaultParser):  # type: ignore[misc, valid-type]  # one of two classes, as hiredis is there or not
    EXCEPTION_CLASSES: Final = DefaultParser.EXCEPTION_CLASSES | {
        "READONLY": Demoted,
        # What a blocking command hears when its server becomes a replica.
        "UNBLOCKED": Demoted,
        "NOREPLICAS": Passing,
        "MISCONF": Passing,
        "BUSY": Passing,
    }


class _Cancellable(AbstractConnection):
    """A connection on which cancelling a command ends it.

    redis-py sends with `wait_for`, which on Python 3.11 returns normally where a cancel meets the end of the sending:
    the task would go on as if nobody had asked it to stop. Without it a command also costs no task of its own.

    `find` says where to connect to, each time; `greet` is called before the first command, and may refuse the server.
    """

    def __init__(
        self,
        *,
        find: Callable[[], Awaitable[Address]] | None = None,
        greet: Callable[[AbstractConnection], Awaitable[None]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(parser_class=_Parser, **options)
        self._find = find
        self._greet = greet

    async def _connect(self) -> None:
        if self._find is not None:
            self.host, self.port = await self._find()
        await super()._connect()  # type: ignore[no-untyped-call, safe-super]  # mixed into real ones

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        if self._greet is not None:
            await self._greet(self)

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis.TimeoutError("Timeout writing to socket") from None
        except (OSError, RuntimeError) as error:
            # uvloop says RuntimeError where the transport was closed since the last command.
            await self.disconnect(nowait=True)
            raise redis.ConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:
            # What was sent of the command can't be taken back: nobody may use this connection again.
            await self.disconnect(nowait=True)
            raise

    def pack_command(self, *args: Any) -> list[bytes]:
        """The command's bytes: hiredis packs a script's call in a tenth of the time."""
        # A command's name may be several words, as "SCRIPT LOAD".
        name = args[0].encode() if isinstance(args[0], str) else args[0]
        return [hiredis.pack_command((*name.split(), *args[1:]))]

    def abort(self) -> None:
        """End the connection at once; who waits on it hears of it, and the next one to use it connects anew."""
        if self._writer is not None:
            self._writer.transport.abort()


class _Plain(_Cancellable, redis.Connection):
    pass


class _Secure(_Cancellable, SSLConnection):
    pass


class _Unix(_Cancellable, UnixDomainSocketConnection):
    pass


def _connection(
    deployment: Deployment, address: Address | None, options: Mapping[str, Any]
) -> tuple[type[_Cancellable], dict[str, Any]]:
    """The class and the arguments of a connection; without an address it finds one each time."""
    common = {"protocol": 2, "health_check_interval": 0, **options}
    if address is None:
        return (_Secure if deployment.tls else _Plain), common
    if not address.port:
        return _Unix, common | {"path": address.host}
    return (_Secure if deployment.tls else _Plain), common | address._asdict()


class Server(redis.Redis):
    """A client of one server; what it has besides redis-py's, a `Cluster` has too."""

    def leave_connections(self) -> None:
        """End all connections, also those in use."""
        pool: Any = self.connection_pool
        for connection in (*pool._get_free_connections(), *pool._get_in_use_connections()):
            connection.abort()

    async def at(self, key: str, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do some work with the server that holds a key."""
        return await work(self)

    def servers(self) -> list[redis.Redis]:
        """A client of each server that holds keys."""
        return [self]

    def together(self, keys: list[str]) -> list[list[str]]:
        """The keys in groups that one command may name."""
        return [keys]


def open_server(
    deployment: Deployment,
    address: Address | None,
    *,
    retries: int,
    find: Callable[[], Awaitable[Address]] | None = None,
    greet: Callable[[AbstractConnection], Awaitable[None]] | None = None,
    blocking_seconds: float = 0,
    max_connections: int = MAX_CONNECTIONS,
) -> Server:
    """A client of one server with a bounded pool.

    `blocking_seconds` is how long its blocking reads last; redis-py's own time-out of 5 s would end them.
    """
    kind, options = _connection(deployment, address, deployment.options)
    try:
        pool = redis.BlockingConnectionPool(
            connection_class=kind,
            max_connections=max_connections,
            timeout=10,
            socket_timeout=SOCKET_TIMEOUT_SECONDS + blocking_seconds,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.5), retries),
            find=find,
            greet=greet,
            **options,
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # refuses an option that it doesn't know
    except TypeError as error:
        raise ConfigurationError(f"OUTLAST_REDIS_URL: {error}; leave the option out") from None
    server = Server(connection_pool=pool)
    server.auto_close_connection_pool = True
    return server


class Line:
    """A connection for questions to whichever of several servers answers; it stays with the one that does."""

    def __init__(self, deployment: Deployment, options: Mapping[str, Any]) -> None:
        self._deployment = deployment
        self._options = {
            "socket_timeout": _LINE_TIMEOUT_SECONDS,
            "socket_connect_timeout": _LINE_TIMEOUT_SECONDS,
            **options,
        }
        self._address: Address | None = None
        self._connection: _Cancellable | None = None

    async def ask(self, addresses: Iterable[Address], *words: str) -> tuple[Address, Any]:
        """The first answer, and who gave it. Raises the last one's error if nobody answers. One caller at a time."""
        unique = dict.fromkeys(addresses)
        first = [self._address] if self._address in unique else []
        last: Exception = redis.ConnectionError("there is nobody to ask")
        for address in dict.fromkeys([*first, *unique]):
            try:
                return address, await self._ask(address, words)
            except (RedisError, OSError) as error:
                last = error
                await self.close()
        raise last

    async def _ask(self, address: Address, words: tuple[str, ...]) -> Any:
        if self._connection is None or self._address != address:
            await self.close()
            kind, options = _connection(self._deployment, address, self._options)
            self._connection, self._address = kind(**options), address
        try:
            await self._connection.send_command(*words)
            return await self._connection.read_response()
        except BaseException:
            # An answer that comes later would be taken for that to the next question.
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


class Identity:
    """Makes sure that all connections lead to the same data, by a random mark in it.

    Behind one name or one proxy there may be two servers, and half of the jobs would be unknown to half of the
    processes. Each new connection reads the mark. Another mark than before means another server, or the same one after
    it lost its data. It lost its data if the old mark never comes back: a random mark can't come back by chance.
    """

    def __init__(self, key: str, stands: Callable[[], bool]) -> None:
        self._key = key
        self._stands = stands
        self._known: bytes | None = None
        self._former: set[bytes] = set()
        self._strange = 0
        self.conflict: str | None = None
        """What is wrong, once it is proven."""

    @property
    def mark(self) -> bytes | None:
        """The mark of the data that is used now; None where none was read, as in a cluster."""
        return self._known

    async def greet(self, connection: AbstractConnection) -> None:
        """Check a connection before its first command. Raises `OtherServer`."""

        async def ask(*words: str) -> Any:
            await connection.send_command(*words, check_health=False)
            return await connection.read_response()

        await self.check(ask)

    async def check(self, ask: Callable[..., Awaitable[Any]]) -> None:
        """Check a connection on which `ask(word, ...)` sends a command. Raises `OtherServer`."""
        try:
            mark: bytes | None = await ask("GET", self._key)
        except MovedError:
            return  # A node of a cluster, which is refused for that.
        if mark is None:
            try:
                await ask("SET", self._key, secrets.token_hex(8), "NX")
            except OutOfMemoryError:
                return  # It can be marked, and so told apart, when it has room again.
            mark = await ask("GET", self._key)
        if mark is not None:
            self._judge(mark)

    def _judge(self, mark: bytes) -> None:
        if self._known is None:
            self._known = mark
        if mark == self._known:
            if self._strange:
                self._found()
            self._strange = 0
            return
        self._strange += 1
        if mark in self._former:
            self._found()
        elif self._strange >= _STRANGE_ENOUGH and not self._stands():
            logger.error("Redis holds other data than before: it lost what it had, or is another server")
            self._former.add(self._known)
            self._known, self._strange = mark, 0
            return
        raise OtherServer(f"the server's mark is {mark!r}, not {self._known!r}")

    def _found(self) -> None:
        if self.conflict is None:
            self.conflict = (
                "two servers with different data answer under the same URL; name one server, or all of a"
                " redis+cluster:// or redis+sentinel://"
            )
            logger.error("OUTLAST_REDIS_URL: %s", self.conflict)


async def check_master(connection: AbstractConnection) -> None:
    """Make sure that a server is a master: Sentinels may be late. Raises `Demoted`."""
    await connection.send_command("ROLE", check_health=False)
    try:
        role = (await connection.read_response())[0]
    except ResponseError:
        return  # An ACL may forbid it; a write will tell.
    if role != b"master":
        raise Demoted(f"the server is a {role.decode()}")
