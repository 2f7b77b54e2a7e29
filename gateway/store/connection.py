"""The way to Redis: one bounded pool for commands and scripts, and the only place where Redis's errors become ours."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeVar

import redis.asyncio as redis
from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from gateway.errors import ConfigurationError, Unavailable
from gateway.store.halt import Halt
from gateway.store.scripts import Keys, load

logger = logging.getLogger(__name__)

# Commands take milliseconds: one that waits 3 s has met a dead connection, and is sent again on another.
SOCKET_TIMEOUT_SECONDS: Final = 3.0
MAX_CONNECTIONS: Final = 16
T = TypeVar("T")
Durability = Literal["redis", "disk", "replica"]


class _Cancellable(AbstractConnection):
    """A connection on which cancelling a command ends it.

    redis-py sends with `wait_for`, which on Python 3.11 returns normally where a cancel meets the end of the sending:
    the task would go on as if nobody had asked it to stop. Without it a command also costs no task of its own.
    """

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


class _Plain(_Cancellable, redis.Connection):
    pass


class _Secure(_Cancellable, SSLConnection):
    pass


class _Unix(_Cancellable, UnixDomainSocketConnection):
    pass


_CONNECTIONS: Final = {redis.Connection: _Plain, SSLConnection: _Secure, UnixDomainSocketConnection: _Unix}


def open_client(url: str, *, blocking_seconds: float = 0, max_connections: int = MAX_CONNECTIONS) -> redis.Redis:
    """A client of redis-py for one server.

    `blocking_seconds` is how long its blocking reads last; redis-py's own time-out of 5 s would end them.
    Raises `ConfigurationError` for a URL that redis-py can't read.
    """
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=10,
            socket_timeout=SOCKET_TIMEOUT_SECONDS + blocking_seconds,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.5), 5),
            retry_on_error=[BusyLoadingError],
            protocol=2,
            health_check_interval=0,
        )
    except ValueError as error:
        raise ConfigurationError(
            f"OUTLAST_REDIS_URL: {error}; use redis://host:6379/0, rediss://... or unix:///path/to/socket"
        ) from None
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return redis.Redis.from_pool(pool)


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn Redis's errors into ours. What they say is logged, never sent."""
    try:
        yield
    except OutOfMemoryError:
        logger.error("Redis is out of memory (maxmemory): new jobs are refused")
        raise Unavailable(
            "The server's memory is full; try again later.", code="store_full", retry_after_seconds=30
        ) from None
    except AuthenticationError as error:
        raise ConfigurationError(f"OUTLAST_REDIS_URL: Redis refuses the credentials ({error})") from None
    except (RedisError, OSError) as error:
        if isinstance(error, ResponseError) and not isinstance(
            error, BusyLoadingError | ReadOnlyError | MasterDownError | ClusterDownError
        ):
            raise  # A wrong command or script is a defect of ours, not an outage.
        logger.warning("Redis does not answer: %s: %s", type(error).__name__, error)
        raise Unavailable(
            "The job store does not answer; nothing that was accepted is lost. Try again with the same key.",
            retry_after_seconds=2,
        ) from None


async def until_available(work: Callable[[], Awaitable[T]], what: str) -> T:
    """Repeat some work until Redis answers: a process may start before its Redis. `what` is for the log."""
    while True:
        try:
            return await work()
        except Unavailable as error:
            logger.warning("%s: %s", what, error.detail)
            await asyncio.sleep(random.uniform(0.3, 1.0))


class Connection:
    """What every part of the store is built on: the client, the names of the keys, and running scripts."""

    def __init__(self, client: redis.Redis, url: str, prefix: str, durability: Durability) -> None:
        # redis-py types each reply as the union over its decoding modes; ours are always bytes.
        self._client: Any = client
        self._url = url
        self._keys = Keys(prefix)
        self._durability = durability
        self._halt = Halt.from_environment()

    async def _run(self, name: str, keys: Sequence[str], args: Iterable[Any]) -> Any:
        """Run a script in the slot of its keys."""
        script = load(name)
        arguments = [*keys, *args]
        async with translated():
            try:
                answer = await self._client.evalsha(script.sha, len(keys), *arguments)
            except NoScriptError:
                answer = await self._client.eval(script.text, len(keys), *arguments)
        self._called(name, arguments)
        return answer

    def _called(self, name: str, arguments: Sequence[Any] = ()) -> None:
        """Redis has answered this call: where a test may have asked the process to halt."""
        if self._halt is not None:
            self._halt.after(name, arguments)

    async def _run_durably(self, name: str, keys: Sequence[str], args: Iterable[Any]) -> Any:
        """Run a script and wait until its writes are where the `durability` setting wants them.

        WAIT and WAITAOF speak of their own connection's writes, so both commands use one connection.
        """
        if self._durability == "redis":
            return await self._run(name, keys, args)
        script = load(name)
        arguments = [*keys, *args]
        async with translated(), self._client.client() as one:
            try:
                answer = await one.evalsha(script.sha, len(keys), *arguments)
            except NoScriptError:
                answer = await one.eval(script.text, len(keys), *arguments)
            self._called(name, arguments)
            timeout_ms = int(SOCKET_TIMEOUT_SECONDS * 1000) - 500
            if self._durability == "disk":
                reached = (await one.execute_command("WAITAOF", 1, 0, timeout_ms))[0]
            else:
                reached = await one.execute_command("WAIT", 1, timeout_ms)
            if not reached:
                where = "on disk" if self._durability == "disk" else "on a replica"
                raise Unavailable(
                    f"The job store could not confirm the write {where} in time. Try again with the same key.",
                    code="not_durable",
                    retry_after_seconds=2,
                )
            self._called("durable")
            return answer

    async def ping(self) -> None:
        """Ask whether Redis answers. Raises `Unavailable`."""
        async with translated(), asyncio.timeout(SOCKET_TIMEOUT_SECONDS):
            await self._client.ping()

    async def info(self) -> dict[str, Any]:
        """The server's name and version, and `warnings`: what about its settings breaks a promise."""
        async with translated():
            server = await self._client.info()
            policy = server.get("maxmemory_policy", "noeviction")
        warnings = []
        if policy != "noeviction":
            warnings.append(f"maxmemory-policy is {policy}: Redis may throw jobs away; set it to noeviction")
        if not server.get("aof_enabled"):
            warnings.append("appendonly is off: a restart of Redis loses jobs; set appendonly yes")
        name = "valkey" if server.get("server_name") == "valkey" or "valkey_version" in server else "redis"
        version = str(server.get("valkey_version") or server.get("redis_version"))
        if tuple(int(part) for part in str(server.get("redis_version", "0")).split(".")[:2]) < (7, 0):
            raise ConfigurationError(f"{name} {version} is too old: Outlast needs Redis 7.0 or Valkey 7.2, or newer")
        return {
            "server": name,
            "version": version,
            "run_id": server.get("run_id"),
            "aof": bool(server.get("aof_enabled")),
            "eviction": policy,
            "used_memory": server.get("used_memory"),
            "warnings": warnings,
        }
