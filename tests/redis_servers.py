"""Real deployments of Redis for tests: a cluster of masters and replicas, and a master with a replica and Sentinels.

Each server is a process of its own, which tests may kill, stop and start again.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any, Self

import redis.asyncio as redis

from gateway.child import Child
from gateway.embedded import find_server
from tests.faults import wait_until
from tests.ports import free_port

HOST = "127.0.0.1"
# A master that is silent for this long is replaced. Less, and a busy machine looks like a dead one.
SILENCE_MS = 1500


class RedisProcess:
    """A server on a port of its own."""

    def __init__(self, folder: Path, port: int, options: dict[str, Any], *, sentinel: str | None = None) -> None:
        self.port = port
        self._folder = folder
        self._options = options
        self._sentinel = sentinel
        self._child: Child | None = None

    async def start(self) -> None:
        """Start it, with the data it had when it ended, and wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {"port": self.port, "bind": HOST, "dir": self._folder, "save": ""} | self._options
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        if self._sentinel is not None:
            # A Sentinel writes its configuration, so it wants a file.
            file = self._folder / "sentinel.conf"
            if not file.exists():
                file.write_text(f"port {self.port}\nbind {HOST}\ndir {self._folder}\n{self._sentinel}")
            words = [str(file), "--sentinel"]
        with (self._folder / "log").open("ab") as log:
            self._child = await Child.start(str(find_server()), *words, output=log)
        await wait_until(self._answers, what=f"an answer of the server at {self.port}")

    async def _answers(self) -> bool:
        try:
            return bool(await self.ask("PING") == b"PONG")
        except redis.RedisError:
            return False

    async def ask(self, *words: Any) -> Any:
        """Send it one command."""
        async with redis.Redis(host=HOST, port=self.port, protocol=2, socket_timeout=5) as client:
            # Without redis-py's idea of what the reply means.
            client.response_callbacks.clear()
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def info(self, key: str) -> str:
        """One field of INFO."""
        lines = (await self.ask("INFO")).decode().splitlines()
        return next((line.partition(":")[2] for line in lines if line.startswith(f"{key}:")), "")

    async def kill(self) -> None:
        """End it without a word."""
        assert self._child is not None
        self._child.send(signal.SIGKILL)
        await self._child.wait()

    def stop(self) -> None:
        """Halt it: its connections stand, and nothing comes."""
        assert self._child is not None
        self._child.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a halt."""
        assert self._child is not None
        self._child.send(signal.SIGCONT)

    async def close(self) -> None:
        """End it for good; it need not have been started."""
        if self._child is not None and self._child.exit_code is None:
            await self.kill()


class RedisCluster:
    """`async with RedisCluster(folder) as cluster: cluster.url`: three masters, each with a replica."""

    def __init__(self, folder: Path, *, masters: int = 3, replicas: bool = True) -> None:
        options = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": SILENCE_MS,
            "cluster-replica-validity-factor": 0,
            "appendonly": "yes",
            "repl-diskless-sync-delay": 0,
        }
        count = masters * (2 if replicas else 1)
        self.nodes = [
            RedisProcess(folder / str(i), port := free_port(), options | {"cluster-port": free_port(), "port": port})
            for i in range(count)
        ]
        self._masters = masters

    @property
    def url(self) -> str:
        """What `Store.connect` takes: three of the nodes."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes[:3])

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(node.start() for node in self.nodes))
            await self._form()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))

    async def _form(self) -> None:
        for i, node in enumerate(self.nodes):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i < self._masters:
                first, last = (16_384 * j // self._masters for j in (i, i + 1))
                await node.ask("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        first_node = self.nodes[0]
        for node in self.nodes[1:]:
            await first_node.ask("CLUSTER", "MEET", HOST, node.port, node._options["cluster-port"])
        await wait_until(self._all_met, what="the cluster")
        for i, node in enumerate(self.nodes[self._masters :]):
            await node.ask("CLUSTER", "REPLICATE", (await self.nodes[i].ask("CLUSTER", "MYID")).decode())
        await asyncio.gather(*(_until_linked(node) for node in self.nodes[self._masters :]))

    async def _all_met(self) -> bool:
        for node in self.nodes:
            info = await node.ask("CLUSTER", "INFO")
            known = f"cluster_known_nodes:{len(self.nodes)}\r".encode()
            if b"cluster_state:ok" not in info or known not in info:
                return False
        return True

    async def roles(self) -> dict[str, list[RedisProcess]]:
        """The nodes that answer, as masters (with slots or not) and replicas."""
        roles: dict[str, list[RedisProcess]] = {"master": [], "slave": []}
        for node in self.nodes:
            try:
                roles[(await node.ask("ROLE"))[0].decode()].append(node)
            except redis.RedisError:
                continue
        return roles

    async def master_of(self, key: str) -> RedisProcess:
        """The node that holds a key."""
        for node in (await self.roles())["master"]:
            slot = await node.ask("CLUSTER", "KEYSLOT", key)
            for first, last, master, *_ in await node.ask("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return next(one for one in self.nodes if one.port == master[1])
        raise AssertionError(f"nobody holds {key}")

    async def replica_of(self, master: RedisProcess) -> RedisProcess:
        """A replica of a master."""
        for node in (await self.roles())["slave"]:
            if (await node.ask("ROLE"))[2] == master.port:
                return node
        raise AssertionError("it has none")


async def _until_linked(replica: RedisProcess) -> None:
    async def linked() -> bool:
        return await replica.info("master_link_status") == "up"

    await wait_until(linked, what=f"the link of the replica at {replica.port}")


class SentinelTrio:
    """`async with SentinelTrio(folder) as trio: trio.url`: a master, a replica, and three Sentinels that watch them."""

    name = "main"

    def __init__(self, folder: Path) -> None:
        options = {"appendonly": "yes", "repl-diskless-sync-delay": 0}
        first, second = free_port(), free_port()
        self.servers = [
            RedisProcess(folder / "first", first, options),
            RedisProcess(folder / "second", second, options | {"replicaof": f"{HOST} {first}"}),
        ]
        watch = (
            f"sentinel monitor {self.name} {HOST} {first} 2\n"
            f"sentinel down-after-milliseconds {self.name} {SILENCE_MS}\n"
            f"sentinel failover-timeout {self.name} 4000\n"
        )
        self.sentinels = [RedisProcess(folder / f"sentinel{i}", free_port(), {}, sentinel=watch) for i in range(3)]

    @property
    def url(self) -> str:
        """What `Store.connect` takes."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}/0"

    async def __aenter__(self) -> Self:
        try:
            for server in self.servers:
                await server.start()
            await _until_linked(self.servers[1])
            await asyncio.gather(*(sentinel.start() for sentinel in self.sentinels))
            await wait_until(self._all_met, what="the Sentinels")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(one.close() for one in (*self.sentinels, *self.servers)))

    async def _all_met(self) -> bool:
        for sentinel in self.sentinels:
            flat = await sentinel.ask("SENTINEL", "MASTER", self.name)
            facts = dict(zip(flat[::2], flat[1::2], strict=True))
            if facts[b"num-other-sentinels"] != b"2" or facts[b"num-slaves"] != b"1":
                return False
        return True

    async def master(self) -> RedisProcess:
        """Whom the Sentinels call the master."""
        _, port = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(port))
