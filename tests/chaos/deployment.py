"""What is tried: Redis with its append-only file, gateways and workers, each a process behind proxies of its own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

import redis.asyncio as redis
from redis.exceptions import RedisError

from gateway.embedded import EmbeddedValkey
from gateway.protocol import TERMINAL, State
from gateway.store.scripts import Keys
from tests.chaos.switchboard import Switchboard
from tests.nodes import Node, start_node
from tests.ports import free_port

LEASE_SECONDS: Final = 2.0
KINDS: Final = ["burst", "steady", "flaky", "stubborn", "forsaken", "refused"]
_PREFIX: Final = "chaos"
# Where a node may halt by itself, so that a fault also meets what takes less than a millisecond. Their order is that in
# which they are handed out: the first few are every step that nothing else would meet.
GATEWAY_HALTS: Final = ("create", "reserve", "enqueue", "create", "list", "take", "judge")
WORKER_HALTS: Final = ("claim", "append/succeeded", "append/retrying", "begin", "settle/running", "leave", "append")


class Slot:
    """A place for a node: whoever dies in it is replaced."""

    def __init__(self, role: str, name: str, settings: dict[str, Any]) -> None:
        self.role = role
        self.name = name
        self.settings = settings
        self.node: Node | None = None
        self.halt: str | None = None
        self.expected = False
        """Whether what happens to the node now was done to it from outside, rather than by itself."""
        self.told_to_end = False
        """Whether the node was killed or told to end: its end may come much later, after a pause."""

    def resumed(self) -> None:
        """The node goes on: only an end that it was told is expected from now on."""
        self.expected = self.told_to_end


class Deployment:
    """`async with Deployment(folder, ...) as site`: everything runs; the nodes are started again when they die."""

    def __init__(self, folder: Path, seed: int, *, gateways: int, workers: int, concurrency: int) -> None:
        self.folder = folder
        self.keys = Keys(_PREFIX)
        self.on_halt: Callable[[Slot, str], Awaitable[bool]] | None = None
        """Asked about a node that halted as it was to, before anything is done about it: whether that met a job."""
        self.on_crash: Callable[[Slot], None] | None = None
        """Told of a node that ended and was neither to halt nor sent a signal."""
        self._rng = random.Random(f"{seed}/nodes")
        self._counts = (gateways, workers, concurrency)
        self._halts = {"gateway": deque(GATEWAY_HALTS), "worker": deque(WORKER_HALTS)}
        self._met: set[str] = set()
        """The places at which a halt has met a job."""
        self._stack = AsyncExitStack()
        self._keepers: list[asyncio.Task[None]] = []
        self.calm = False
        """No node halts by itself any more."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        gateways, workers, concurrency = self._counts
        # Every write is the operating system's before it is confirmed, so a killed server has lost none, and the books
        # must balance to the last event. `everysec` may hold a write back while the disk is busy, and `always` waits
        # for the disk: what is tried here is not the disk.
        self.valkey = EmbeddedValkey(self.folder / "data", memory_bytes=1 << 30, port=0, options={"appendfsync": "no"})
        await self._stack.enter_async_context(self.valkey)
        (self.folder / "blobs").mkdir()
        ports = {f"gateway-{i}": free_port() for i in range(gateways)}
        names = [*ports, *(f"worker-{i}" for i in range(workers))]
        targets = dict.fromkeys(names, self.valkey.url)
        targets |= {f"{name} door": f"http://127.0.0.1:{port}" for name, port in ports.items()}
        self.board = await self._stack.enter_async_context(Switchboard(targets))
        self.doors = [self.board.urls[f"{name} door"] for name in ports]
        self.slots = []
        for name in names:
            settings = {
                "redis_url": self.board.urls[name],
                "prefix": _PREFIX,
                "lease_seconds": LEASE_SECONDS,
                "data": self.folder,
                "blob_url": (self.folder / "blobs").as_uri(),
                "port": ports.get(name, 0),
                "heartbeat_seconds": 2,
                "retry_seconds": 0.1,
                "drain_seconds": 0.3,
                "stream_max_age_seconds": 20,
                "concurrency": concurrency,
                "stop_grace_seconds": 0.2,
            }
            self.slots.append(Slot("gateway" if name in ports else "worker", name, settings))
        self.client: Any = redis.Redis.from_url(self.valkey.url, socket_timeout=5)
        self._stack.push_async_callback(self.client.aclose)
        for slot in self.slots:
            self._fill(slot)
        self._keepers = [asyncio.create_task(self._keep(slot), name=f"keeps {slot.name}") for slot in self.slots]

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for slot in getattr(self, "slots", []):
            if slot.node is not None:
                await slot.node.end()
        await self._stack.aclose()

    # --- the nodes ----------------------------------------------------------------------------------------------

    def of(self, role: str) -> list[Slot]:
        """The slots of gateways, or of workers."""
        return [slot for slot in self.slots if slot.role == role]

    def _fill(self, slot: Slot) -> None:
        slot.halt = None
        if not self.calm and self._rng.random() < 0.7:
            places = self._halts[slot.role]
            place = places.popleft()
            places.append(place)
            nth = self._rng.randint(1, 3) if "/" not in place else self._rng.randint(3, 12)
            # A node that stands still shows whom it has met. After a kill the submitter is at another gateway at once.
            how = self._rng.choice(("KILL", "KILL", "STOP")) if place in self._met else "STOP"
            slot.halt = f"{place}:{nth}:{how}"
        slot.expected = slot.told_to_end = False
        role = "gateway" if slot.role == "gateway" else "tests.chaos.kinds"
        slot.node = start_node(role, slot.name, self.folder, slot.settings, halt=slot.halt)

    async def _keep(self, slot: Slot) -> None:
        """Watch one slot: wake what stopped itself, replace what died."""
        while True:
            node = slot.node
            assert node is not None
            while node.exit_code is None and not (node.paused and not slot.expected):
                with suppress(TimeoutError):
                    await node.ended(0.05)
            if not slot.expected:
                await self._hear_of(slot, node)
            if node.exit_code is None:
                slot.expected = True
                await asyncio.sleep(self._rng.uniform(0.3, 2 * LEASE_SECONDS))
                node.signal(signal.SIGCONT)
                await asyncio.sleep(0.05)
                slot.resumed()
                continue
            await node.end()
            if slot.halt is not None:
                # Something else came first, or met nobody: the next node halts there, or a short run would never meet
                # that step.
                place = slot.halt.partition(":")[0]
                self._halts[slot.role].remove(place)
                self._halts[slot.role].appendleft(place)
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))
            self._fill(slot)

    async def _hear_of(self, slot: Slot, node: Node) -> None:
        """Tell of a node that has halted or ended, and nothing was done to it; what has met a job need not come again.

        Who is stopped at its halt and goes on has none any more.
        """
        if slot.halt is None or node.exit_code not in {None, -signal.SIGKILL}:
            if self.on_crash is not None:
                self.on_crash(slot)
        elif self.on_halt is not None and await self.on_halt(slot, slot.halt):
            self._met.add(slot.halt.partition(":")[0])
            slot.halt = None

    def kill(self, slot: Slot) -> None:
        """SIGKILL."""
        slot.told_to_end = True
        self._send(slot, signal.SIGKILL)

    def terminate(self, slot: Slot) -> None:
        """SIGTERM: it drains, hands back, and ends."""
        slot.told_to_end = True
        self._send(slot, signal.SIGTERM)

    def _send(self, slot: Slot, number: signal.Signals) -> None:
        slot.expected = True
        if slot.node is not None:
            slot.node.signal(number)

    async def pause(self, slot: Slot, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        node = slot.node
        if node is None or slot.expected:
            return
        self._send(slot, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        if slot.node is node:
            node.signal(signal.SIGCONT)
            await asyncio.sleep(0.05)
            slot.resumed()

    def restart_redis(self, number: signal.Signals) -> None:
        """End the server; it is started again at once and reads its append-only file."""
        if (pid := self.valkey.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def has_redis(self) -> bool:
        """Whether Redis answers, past all proxies."""
        with suppress(RedisError, OSError):
            return bool(await self.client.ping())
        return False

    async def has_ended(self, job: str) -> bool:
        """Whether a job has ended, as Redis has it, past all proxies."""
        state = await self.client.hget(self.keys.record(job), "state")
        return state is not None and State(state.decode()) in TERMINAL

    async def settle(self) -> None:
        """End all faults: proxies let everything through, nobody halts any more, and those that are to halt go."""
        self.calm = True
        for name in self.board.urls:
            await self.board.turn(name, "resume")
            await self.board.turn(name, "delay_seconds", 0.0)
            await self.board.turn(name, "bytes_per_second", None)
        for slot in self.slots:
            if slot.halt is not None and not slot.expected:
                self.kill(slot)
