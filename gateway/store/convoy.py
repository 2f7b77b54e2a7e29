"""Appends that travel together: those of one loop turn go to Redis in one write for each master.

A worker with two hundred streams appends thousands of times a second. By redis-py each append takes a connection of the
pool, a system call and several turns of the loop, which is several times what it costs in company.

This is the quick way, for when all is well. A call that finds no connection, is answered by an error (the script isn't
known yet, the slot has moved, the server is no master any more) or gets no answer goes by the ordinary way, which knows
about all of that. It may then run twice, as any script may.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import hiredis
from redis.exceptions import RedisError

from gateway.errors import ConfigurationError, Unavailable
from gateway.store.clients import SOCKET_TIMEOUT_SECONDS, Identity
from gateway.store.deployment import Address
from gateway.store.scripts import Script
from gateway.store.topology import Topology
from gateway.store.wire import Wire, kept

T = TypeVar("T")

# So many leave at once; fewer wait for the end of the loop's turn, which is long where there are so many.
_FULL: Final = 32
# Where a master can be replaced: who answers so late may have been, and not know it yet. What is asked every second
# elsewhere is asked before anything more is sent there.
_LATE_SECONDS: Final = 1.0
# After these errors of one call the connection is of no use to the next ones either.
_USELESS: Final = ("READONLY", "LOADING", "MASTERDOWN")


class _Call(NamedTuple):
    keys: Sequence[str]
    args: Sequence[Any]
    read: Callable[[Any], Any]
    answer: asyncio.Future[Any]

    def end(self, reply: Any) -> None:
        """Give the caller its answer."""
        if self.answer.done():
            return
        try:
            self.answer.set_result(self.read(reply))
        except Exception as error:  # noqa: BLE001 - the caller hears of it; the appends of all others go on
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Tell the caller what went wrong."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Convoy:
    """Runs one script for many callers. Who calls waits for its own answer, so what waits is one call per caller.

    The calls of one master share nothing with those of another: one that hangs holds up its own jobs only.
    `ordinary` runs the script for one caller, and `called` hears of each call that was answered here.
    """

    def __init__(
        self,
        script: Script,
        topology: Topology,
        identity: Identity,
        ordinary: Callable[[Sequence[str], Sequence[Any]], Awaitable[Any]],
        called: Callable[[Sequence[Any]], None],
    ) -> None:
        self.script = script
        self.topology = topology
        self.identity = identity
        self.called = called
        self._ordinary = ordinary
        self._loop = asyncio.get_running_loop()
        self._roads: dict[Address, _Road] = {}
        self._changed = asyncio.Event()
        topology.on_change.append(self._changed.set)
        self._tasks: asyncio.TaskGroup | None = None

    def start(self, keys: Sequence[str], args: Sequence[Any], read: Callable[[Any], T]) -> asyncio.Future[T]:
        """Run the script in the slot of its keys; the answer as `read` understands it, once there is one.

        It raises what `read` and the ordinary way do.
        Cancelling it takes back what hasn't been sent, and sends nothing again; what has been sent may still be done.
        """
        call = _Call(keys, args, read, self._loop.create_future())
        address = self.topology.owner(keys[0])
        road = self._roads.get(address) if address is not None else None
        if road is None:
            self.detour(call)
        else:
            road.take(call)
        return call.answer

    def detour(self, call: _Call) -> None:
        """Send a call by the ordinary way."""
        if self._tasks is None:
            call.fail(Unavailable("This process is stopping; come back."))
        elif not call.answer.done():
            task = self._tasks.create_task(self._go_round(call), name="store append by the ordinary way")
            # Who has given up is spared a late success, and Redis the work.
            call.answer.add_done_callback(lambda answer: answer.cancelled() and task.cancel())

    async def keep_going(self) -> None:
        """Own the connections and what is under way; never returns. Owned by the store."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while True:
                    self._changed.clear()
                    self._arrange(tasks)
                    await self._changed.wait()
            finally:
                # From now on nothing goes round: what is given up is told so.
                self._tasks = None
                for road in self._roads.values():
                    road.give_up()

    def _arrange(self, tasks: asyncio.TaskGroup) -> None:
        """One road to each master."""
        for address in self._roads.keys() - set(self.topology.masters):
            self._roads.pop(address).stop()
        for address in self.topology.masters:
            if address not in self._roads:
                road = self._roads[address] = _Road(self, address)
                road.task = tasks.create_task(road.run(), name=f"store sends appends to {address}")

    async def _go_round(self, call: _Call) -> None:
        # Whoever goes round may have met a server that is no master any more. This is one question for all of them.
        with suppress(RedisError, OSError, ConfigurationError):
            await self.topology.refresh()
        try:
            answer = await self._ordinary(call.keys, call.args)
        except Exception as error:  # noqa: BLE001 - the caller hears of it; the appends of all others go on
            call.fail(error)
        except BaseException:
            call.answer.cancel()
            raise
        else:
            call.end(answer)


class _Road:
    """The connection to one master, what leaves in this turn of the loop, and what is under way."""

    def __init__(self, convoy: Convoy, address: Address) -> None:
        self._convoy = convoy
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._leaving: list[_Call] = []
        self._under_way: deque[_Call] = deque()
        self._waits_since = 0.0
        self.task: asyncio.Task[None] | None = None

    def take(self, call: _Call) -> None:
        self._leaving.append(call)
        if len(self._leaving) == 1:
            self._loop.call_soon(self._depart)
        elif len(self._leaving) >= _FULL:
            self._depart()

    def stop(self) -> None:
        """End the connection, since there is no master any more."""
        if self.task is not None:
            self.task.cancel()

    def give_up(self) -> None:
        """Send by the ordinary way what has no answer."""
        calls = [*self._under_way, *self._leaving]
        self._under_way.clear()
        self._leaving = []
        for call in calls:
            self._convoy.detour(call)

    async def run(self) -> None:
        """Keep the connection up; never returns. Owned by the convoy."""
        convoy = self._convoy
        async for wire in kept(convoy.topology, convoy.identity, self._address, self._receive, "appends"):
            self._wire = wire
            try:
                await self._stay(wire)
            finally:
                self._wire = None
                wire.abort()
                self.give_up()

    async def _stay(self, wire: Wire) -> None:
        """Return when the connection is lost, or the oldest call has waited for too long."""
        while not wire.lost.done():
            since = self._waits_since if self._under_way else self._loop.time()
            left = since + SOCKET_TIMEOUT_SECONDS - self._loop.time()
            if left <= 0:
                return
            # Not wait_for: on Python 3.11 it may swallow the cancellation that ends this loop.
            await asyncio.wait({wire.lost}, timeout=left)

    def _depart(self) -> None:
        calls, self._leaving = [call for call in self._leaving if not call.answer.done()], []
        if not calls:
            return
        if self._wire is None or self._wire.lost.done():
            for call in calls:
                self._convoy.detour(call)
            return
        if not self._under_way:
            self._waits_since = self._loop.time()
        self._under_way += calls
        words = self._convoy.script.words
        self._wire.send_all([words(call.keys, call.args) for call in calls])

    def _receive(self, reply: Any) -> None:
        if not self._under_way:
            raise ConnectionError("an answer that nobody waits for")
        call = self._under_way.popleft()
        now = self._loop.time()
        if now - self._waits_since > _LATE_SECONDS and self._convoy.topology.period_seconds is not None:
            self._convoy.detour(call)
            raise ConnectionError("it answers late, and may be no master any more")
        self._waits_since = now
        if isinstance(reply, hiredis.ReplyError):
            self._convoy.detour(call)
            if str(reply).startswith(_USELESS):
                raise ConnectionError(str(reply))
            return
        self._convoy.called(call.args)
        call.end(reply)
