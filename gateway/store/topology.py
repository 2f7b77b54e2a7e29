"""Where the masters are: one server that stays, a master that Sentinels know, or a cluster's slots."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from gateway.errors import ConfigurationError
from gateway.store.clients import Line, OtherServer
from gateway.store.deployment import Address, Deployment, Slots

logger = logging.getLogger(__name__)

# A question at once after the last one would get the same answer.
_SHORTEST_SECONDS: Final = 0.1


class Topology:
    """Which master holds which key. This one is for a single server, which is always the same."""

    period_seconds: float | None = None
    """How often to ask although nothing seems to have changed; None: never."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.masters: tuple[Address, ...] = deployment.seeds
        self.on_change: list[Callable[[], None]] = []
        self.conflict: str | None = None
        """What is wrong, once a server has answered that is none of these."""
        self._wanted = asyncio.Event()
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")

    def owner(self, key: str | bytes) -> Address | None:
        """The master that holds a key; None while nobody is known to."""
        return self.masters[0] if self.masters else None

    async def refresh(self) -> None:
        """Ask where the masters are now, unless somebody else has asked since this call.

        Raises `redis.RedisError` or `OSError` if nobody says, `ConfigurationError` if they don't know what is meant.
        """
        clock = asyncio.get_running_loop().time
        called_at = clock()
        async with self._asking:
            if self._asked_at > called_at:
                return
            self._asked_at = clock()
            if await self._find():
                for heard in self.on_change:
                    heard()

    async def _find(self) -> bool:
        """Ask; True if something changed."""
        return False

    def want_refresh(self) -> None:
        """Ask soon: something looks as if it had changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask when it is wanted, and every `period_seconds` besides; never returns. Owned by the store."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self.period_seconds):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self.refresh()
                failures = 0
            except (RedisError, OSError, ConfigurationError) as error:
                failures += 1
                if failures == 1:
                    logger.warning("can't ask where Redis's masters are: %s: %s", type(error).__name__, error)
            await asyncio.sleep(_SHORTEST_SECONDS)

    async def close(self) -> None:
        """Close the connection that the questions use."""


class SentinelMaster(Topology):
    """The master of a name, as the Sentinels say."""

    # A failover is told to nobody who doesn't ask: connections to a master that hangs would wait for its return.
    period_seconds = 1.0

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self.masters = ()
        self._line = Line(deployment, deployment.sentinel_options)

    async def find(self) -> Address:
        """Where the master is now. Raises like `refresh`."""
        await self.refresh()
        return self.masters[0]

    async def _find(self) -> bool:
        name = self.deployment.master
        _, answer = await self._line.ask(self.deployment.seeds, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        if answer is None:
            raise ConfigurationError(f"OUTLAST_REDIS_URL: the Sentinels know no master {name!r}; check the name")
        found = (Address(answer[0].decode(), int(answer[1])),)
        if found == self.masters:
            return False
        if self.masters:
            logger.warning("Redis's master is %s now, after %s", found[0], self.masters[0])
        self.masters = found
        return True

    async def close(self) -> None:
        await self._line.close()


class ClusterSlots(Topology):
    """The masters of a cluster, as its nodes say."""

    period_seconds = 30.0

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self.masters = ()
        self._line = Line(deployment, deployment.options)
        self._slots: Slots | None = None

    def owner(self, key: str | bytes) -> Address | None:
        return self._slots.owner(key) if self._slots is not None else None

    async def _find(self) -> bool:
        asked, reply = await self._line.ask([*self.masters, *self.deployment.seeds], "CLUSTER", "SLOTS")
        slots = Slots.parse(reply, asked)
        if not slots.masters:
            raise redis.ConnectionError(f"{asked} knows no master of any slot")
        before = self._slots
        if before is not None and before.nodes.isdisjoint(slots.nodes):
            self.conflict = f"{asked} is a node of another cluster than before; name nodes of one cluster"
            logger.error("OUTLAST_REDIS_URL: %s", self.conflict)
            raise OtherServer(self.conflict)
        self._slots, self.masters = slots, slots.masters
        return before is None or not before.same(slots)

    async def check_seeds(self) -> None:
        """Make sure that all nodes that the URL names are of one cluster. Raises `ConfigurationError`.

        A node that doesn't answer is not waited for: that it may be down is why there are several.
        """
        line = Line(self.deployment, self.deployment.options)
        nodes: frozenset[str] = frozenset()
        try:
            for seed in self.deployment.seeds:
                try:
                    asked, reply = await line.ask([seed], "CLUSTER", "SLOTS")
                except ResponseError as error:
                    if "cluster support disabled" in str(error):
                        raise ConfigurationError(
                            f"OUTLAST_REDIS_URL: {seed} is not a node of a cluster; use redis://{seed}"
                        ) from None
                    raise
                except (RedisError, OSError):
                    continue
                found = Slots.parse(reply, asked).nodes
                if nodes and found and nodes.isdisjoint(found):
                    raise ConfigurationError(
                        f"OUTLAST_REDIS_URL: {seed} is of another cluster than the nodes before it; name nodes of one"
                    )
                nodes |= found
        finally:
            await line.close()

    async def close(self) -> None:
        await self._line.close()


def open_topology(deployment: Deployment) -> Topology:
    """The topology of a deployment; ask it once before its first use."""
    kinds: dict[str, Any] = {"server": Topology, "sentinel": SentinelMaster, "cluster": ClusterSlots}
    topology: Topology = kinds[deployment.topology](deployment)
    return topology
