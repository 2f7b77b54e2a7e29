"""What a Redis URL names: one server, a master that Sentinels know, or a cluster; and which key lies where. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Self
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio.connection import parse_url
from redis.crc import key_slot

from gateway.errors import ConfigurationError

_FORMS: Final = (
    "redis://host:6379/0, rediss://..., unix:///path/to/socket, redis+cluster://host:6379,host:6379 or"
    " redis+sentinel://host:26379,host:26379/master/0"
)
_SENTINEL_PORT: Final = 26379
_SERVER_PORT: Final = 6379


class Address(NamedTuple):
    """Where a server listens; a unix socket is its path and port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a URL says: the servers to ask first, and what a connection to any server needs."""

    topology: Literal["server", "sentinel", "cluster"]
    seeds: tuple[Address, ...]
    """The server; or some Sentinels; or some nodes of a cluster."""
    tls: bool
    options: Mapping[str, Any] = field(repr=False)
    """What redis-py's connections take besides the address: username, password, db, ssl_..."""
    master: str = ""
    """The name under which Sentinels know the master."""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL. Raises `ConfigurationError` that says which forms there are."""
        try:
            return cls._parse(url)
        except ValueError as error:
            raise ConfigurationError(f"OUTLAST_REDIS_URL: {error}; use {_FORMS}") from None

    @classmethod
    def _parse(cls, url: str) -> Self:
        scheme, _, topology = url.partition("://")[0].partition("+")
        if topology not in {"", "cluster", "sentinel"} or (topology and scheme == "unix"):
            raise ValueError(f"{url.partition('://')[0]}:// is none of the schemes")
        # The standard library takes no list of hosts: each is read as a URL of its own.
        parts = urlsplit(f"{scheme}://{url.partition('://')[2]}")
        credentials, at, hosts = parts.netloc.rpartition("@")
        options: dict[str, Any] = dict(parse_url(parts._replace(netloc=f"{credentials}{at}localhost").geturl()))
        options.pop("connection_class", None)
        options.pop("host", None)
        tls = scheme == "rediss"
        if scheme == "unix":
            path = options.pop("path", "")
            if not path:
                raise ValueError("unix:// names no socket")
            return cls("server", (Address(path, 0),), False, options)
        if not topology:
            if "," in hosts:
                raise ValueError("redis:// names one server; several are a cluster or Sentinels")
            return cls("server", (_address(hosts or "localhost", _SERVER_PORT),), tls, options)
        if topology == "cluster":
            if options.get("db"):
                raise ValueError("a cluster has no database but 0")
            options.pop("db", None)
            return cls("cluster", _addresses(hosts, _SERVER_PORT), tls, options)
        return cls._parse_sentinel(parts, hosts, tls, options)

    @classmethod
    def _parse_sentinel(cls, parts: SplitResult, hosts: str, tls: bool, options: dict[str, Any]) -> Self:
        match = re.fullmatch(r"/([^/]+)(?:/(\d+)?)?", parts.path)
        if match is None:
            raise ValueError("redis+sentinel:// names no master, as in redis+sentinel://host:26379/mymaster/0")
        options["db"] = int(match[2] or 0)
        of_sentinels = {name: value for name, value in options.items() if name.startswith("ssl_")}
        for name in ("username", "password"):
            if (value := options.pop(f"sentinel_{name}", None)) is not None:
                of_sentinels[name] = value
        return cls("sentinel", _addresses(hosts, _SENTINEL_PORT), tls, options, unquote(match[1]), of_sentinels)


def _addresses(hosts: str, port: int) -> tuple[Address, ...]:
    return tuple(_address(host, port) for host in hosts.split(","))


def _address(text: str, port: int) -> Address:
    one = urlsplit(f"//{text}")
    if not one.hostname:
        raise ValueError("a host is missing")
    return Address(unquote(one.hostname), one.port or port)


class Slots:
    """Which master of a cluster holds which key, as one of its nodes said."""

    def __init__(self, owners: list[Address | None], nodes: frozenset[str]) -> None:
        self._owners = owners
        self.nodes = nodes
        """The ids of all nodes, masters and replicas: two clusters have none in common."""
        self.masters = tuple(sorted({owner for owner in owners if owner is not None}))

    @classmethod
    def parse(cls, reply: list[Any], asked: Address) -> Self:
        """Read the reply to CLUSTER SLOTS. A node that doesn't know its own host is where it was asked."""
        owners: list[Address | None] = [None] * 16_384
        nodes: set[str] = set()
        for first, last, master, *replicas in reply:
            host = master[0].decode() if master[0] else ""
            owner = Address(host if host not in {"", "?"} else asked.host, int(master[1]))
            owners[first : last + 1] = [owner] * (last + 1 - first)
            nodes.update(node[2].decode() for node in (master, *replicas))
        return cls(owners, frozenset(nodes))

    def owner(self, key: str | bytes) -> Address | None:
        """The master that holds a key; None while nobody does."""
        return self._owners[key_slot(key.encode() if isinstance(key, str) else key)]

    def same(self, other: Slots) -> bool:
        """Whether every slot is where the other says."""
        return self._owners == other._owners
