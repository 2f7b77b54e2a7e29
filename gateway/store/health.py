"""What Redis says of itself: whether it can be used at all, and what about its settings breaks a promise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoReply

from gateway.errors import ConfigurationError
from gateway.store.connection import Connection, translated
from gateway.store.deployment import Address, Deployment

# Streams and scripts are older; sharded pub/sub and scripts that may run out of memory came with these.
_OLDEST: Final[Mapping[str, tuple[int, int]]] = {"valkey": (7, 2), "redis": (7, 0)}

# What says of a master of a cluster that it is away, and not that it is none of ours.
_NO_ANSWER: Final = (NoConnection, NoReply, BusyLoadingError, OSError)
# One that hangs must not hide what the others say.
_PATIENCE_SECONDS: Final = 2.0


class Health(Connection):
    """Asks every master, and puts together what they say."""

    @property
    def conflict(self) -> str | None:
        """What is wrong, where it is proven that the URL leads to different data at different times."""
        return self._identity.conflict or self._topology.conflict

    async def info(self) -> dict[str, Any]:
        """The servers' name and version, and `warnings`: what about their settings breaks a promise.

        Raises `ConfigurationError` for servers that can't be used, and `Unavailable` if none answers.
        """
        servers = list((await self.answering()).values())
        for server in servers:
            _check_usable(server, self._deployment)
        # In a cluster all nodes should be set alike: what holds for one is said once.
        warnings = dict.fromkeys(warning for server in servers for warning in _warnings(server, self._durability))
        if away := len(self._topology.masters) - len(servers):
            warnings[f"{away} of {len(self._topology.masters)} masters do not answer: what lies there waits"] = None
        if self.conflict is not None:
            warnings[self.conflict] = None
        first = servers[0]
        return {
            "server": _name(first),
            "version": _version(first),
            "topology": self._deployment.topology,
            "masters": len(servers),
            "aof": all(server.get("aof_enabled") for server in servers),
            "eviction": first.get("maxmemory_policy", "noeviction"),
            "used_memory": sum(server.get("used_memory", 0) for server in servers),
            "warnings": list(warnings),
        }

    async def answering(self) -> dict[Address, dict[str, Any]]:
        """The masters that answer now, and what each says of itself. Raises `Unavailable` if none does."""
        masters = self._topology.masters
        patience = None if len(masters) == 1 else _PATIENCE_SECONDS
        async with translated():
            answers = await asyncio.gather(
                *(self._info_of(one, patience) for one in self._client.servers()), return_exceptions=True
            )
            said = {one: info for one, info in zip(masters, answers, strict=True) if isinstance(info, dict)}
            for error in answers:
                if isinstance(error, BaseException) and not (said and isinstance(error, _NO_ANSWER)):
                    raise error
        return said

    async def _info_of(self, server: Any, patience_seconds: float | None) -> dict[str, Any]:
        async with asyncio.timeout(patience_seconds):
            info: dict[str, Any] = await server.info()
            if self._durability == "disk":
                # Many users may not ask for settings; then nobody can tell.
                with suppress(ResponseError):
                    info |= await server.config_get("appendfsync")
            return info


def _name(server: dict[str, Any]) -> str:
    return "valkey" if server.get("server_name") == "valkey" or "valkey_version" in server else "redis"


def _version(server: dict[str, Any]) -> str:
    return str(server.get("valkey_version") or server.get("redis_version"))


def _check_usable(server: dict[str, Any], deployment: Deployment) -> None:
    name, version = _name(server), _version(server)
    # redis-py makes a number of a version such as "7.2".
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if tuple(numbers) < _OLDEST[name]:
        raise ConfigurationError(
            f"OUTLAST_REDIS_URL: {name} {version} is too old: Outlast needs Redis 7.0 or Valkey 7.2, or newer"
        )
    if server.get("cluster_enabled") and deployment.topology != "cluster":
        raise ConfigurationError(
            "OUTLAST_REDIS_URL: the server is a node of a cluster, which holds a part of the keys; use redis+cluster://"
        )


def _warnings(server: dict[str, Any], durability: str) -> list[str]:
    warnings = []
    policy = server.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        warnings.append(f"maxmemory-policy is {policy}: Redis may throw jobs away; set it to noeviction")
    if not server.get("aof_enabled"):
        warnings.append("appendonly is off: a restart of Redis loses jobs; set appendonly yes")
    elif server.get("aof_last_write_status", "ok") != "ok":
        warnings.append("the last write to the append-only file failed: Redis's disk may be full")
    if durability == "disk" and server.get("appendfsync", "always") != "always":
        # Seen of Valkey 9.1 under `everysec`, and of Redis 7.4: WAITAOF is answered before the write has been synced.
        warnings.append(
            f"OUTLAST_DURABILITY is disk, and appendfsync is {server['appendfsync']}: Redis may then say that a write"
            " is on the disk before it is; set appendfsync always"
        )
    if durability == "replica" and not server.get("connected_slaves"):
        warnings.append("OUTLAST_DURABILITY is replica, and a master has none: submits are refused until it has one")
    return warnings
