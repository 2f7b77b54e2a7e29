"""Appends that travel together: those of one loop turn go to Redis in one write for each master.

A worker with two hundred streams appends thousands of times a second. One by one, each append takes a connection's
turn, a system call and a wake-up on both sides, which is several times what it costs in company.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import NoScriptError, RedisError

from gateway.errors import Unavailable
from gateway.store.deployment import Address
from gateway.store.scripts import Script
from gateway.store.topology import Topology

# What Redis does in one go; more go in the next write, at the same time.
_MOST: Final = 64


class _Traveller(NamedTuple):
    keys: Sequence[str]
    args: Sequence[Any]
    answer: asyncio.Future[Any]


class Convoy:
    """Runs one script for many callers. Who calls waits for its own answer, so what waits is one call per caller.

    The calls of one master share nothing with those of another: one that hangs holds up its own jobs only.
    """

    def __init__(
        self, script: Script, client: Any, topology: Topology, called: Callable[[Sequence[Any]], None]
    ) -> None:
        self._script = script
        self._client = client
        self._topology = topology
        self._called = called
        self._waiting: list[_Traveller] = []
        self._wake = asyncio.Event()
        self._closed = False

    async def run(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run the script in the slot of its keys; its answer. Raises what redis-py does.

        Cancelling it takes back what hasn't been sent; what has may still be done, as with any call.
        """
        if self._closed:
            raise _closing()
        one = _Traveller(keys, args, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._wake.set()
        return await one.answer

    async def keep_going(self) -> None:
        """Send what waits, in each turn of the loop; never returns. Owned by the store."""
        try:
            async with asyncio.TaskGroup() as under_way:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    for company in self._companies():
                        under_way.create_task(self._send(company), name="store appends")
        finally:
            self._closed = True
            for one in self._waiting:
                if not one.answer.done():
                    one.answer.set_exception(_closing())

    def _companies(self) -> list[list[_Traveller]]:
        waiting, self._waiting = self._waiting, []
        by_master: dict[Address | None, list[_Traveller]] = {}
        for one in waiting:
            if not one.answer.done():
                by_master.setdefault(self._topology.owner(one.keys[0]), []).append(one)
        return [some[at : at + _MOST] for some in by_master.values() for at in range(0, len(some), _MOST)]

    async def _send(self, company: list[_Traveller]) -> None:
        answers: list[Any]
        try:
            answers = await self._ask(company)
        except Exception as error:  # noqa: BLE001 - these callers hear of it; the appends of all others go on
            answers = [error] * len(company)
        except BaseException:
            for one in company:
                one.answer.cancel()
            raise
        for one, answer in zip(company, answers, strict=True):
            if not isinstance(answer, Exception):
                self._called([*one.keys, *one.args])
            if one.answer.done():
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)

    async def _ask(self, company: list[_Traveller]) -> list[Any]:
        """The answers, or for each that has none the error."""
        async with self._client.pipeline(transaction=False) as pipe:
            for one in company:
                pipe.execute_command(*self._script.words(one.keys, one.args))
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        for i, one in enumerate(company):
            if isinstance(answers[i], NoScriptError):
                try:
                    answers[i] = await self._script.run(self._client, one.keys, one.args)
                except RedisError as error:
                    answers[i] = error
        return answers


def _closing() -> Unavailable:
    return Unavailable("This process is stopping; come back.")
