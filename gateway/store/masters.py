"""Blocking clients of the masters, for a thread that must not depend on the event loop."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from gateway.store.deployment import Address, Deployment, Slots


class Masters:
    """Which master holds which key, and a client of each; for one thread."""

    def __init__(self, deployment: Deployment, timeout_seconds: float) -> None:
        self._deployment = deployment
        self._timeout_seconds = timeout_seconds
        self._clients: dict[Address, redis.Redis] = {}
        self._slots: Slots | None = None
        self._known: tuple[Address, ...] = deployment.seeds if deployment.topology == "server" else ()

    def of(self, key: str) -> Address:
        """The master of a key. Raises `RedisError` or `OSError` if nobody says which that is."""
        self._find()
        owner = self._slots.owner(key) if self._slots is not None else self._known[0]
        if owner is None:
            raise redis.ConnectionError("nobody holds the slot")
        return owner

    def all(self) -> tuple[Address, ...]:
        """All masters. Raises like `of`."""
        self._find()
        return self._known

    def _find(self) -> None:
        if self._deployment.topology == "cluster":
            if self._slots is None:
                asked, reply = self._ask("CLUSTER", "SLOTS")
                self._slots = Slots.parse(reply, asked)
                self._known = self._slots.masters
        elif not self._known:
            _, found = self._ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._deployment.master)
            if found is None:
                raise redis.ConnectionError("the Sentinels know no such master")
            self._known = (Address(found[0].decode(), int(found[1])),)

    def client(self, address: Address) -> redis.Redis:
        """The client of a master."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._open(address, self._deployment.options)
        return client

    def _open(self, address: Address, options: Any) -> redis.Redis:
        where = {"unix_socket_path": address.host} if not address.port else address._asdict()
        return redis.Redis(
            **where,
            **options,
            ssl=self._deployment.tls,
            socket_timeout=self._timeout_seconds,
            socket_connect_timeout=self._timeout_seconds,
            retry=Retry(NoBackoff(), 1),
            protocol=2,
        )

    def _ask(self, *words: str) -> tuple[Address, Any]:
        """Ask who knows where the masters are, one after another. Raises the last one's error."""
        sentinel = self._deployment.topology == "sentinel"
        options = self._deployment.sentinel_options if sentinel else self._deployment.options
        last: Exception = redis.ConnectionError("there is nobody to ask")
        for address in dict.fromkeys([*(() if sentinel else self._known), *self._deployment.seeds]):
            with self._open(address, options) as client:
                try:
                    return address, _raw(client, words)
                except (RedisError, OSError) as error:
                    last = error
        raise last

    def forget(self) -> None:
        """Ask again before the next use: something was not where it should be."""
        self._slots = None
        if self._deployment.topology == "sentinel":
            self._known = ()

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def _raw(client: redis.Redis, words: tuple[str, ...]) -> Any:
    """A reply as it comes: redis-py makes something else of some."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*words)  # type: ignore[no-untyped-call]
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)
