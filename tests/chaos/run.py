"""One run: a deployment under load, the faults of a plan, calm, and the equations."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from tests.chaos.book import Book
from tests.chaos.deployment import KINDS, LEASE_SECONDS, Deployment, Slot
from tests.chaos.equations import check_jobs, check_redis
from tests.chaos.load import Load
from tests.chaos.plan import FAULTS, Fault, plan
from tests.chaos.steps import Standing, Step, standings
from tests.faults import wait_until

# After the last fault: a lease, a retry's delay, a restart of Redis, and what a slow machine needs for all of it.
CALM_SECONDS: Final = 60.0
_MOST_ROUNDS: Final = 4
# The step that a halt is for, where no record says whose fault it was.
_STEP_OF_HALT: Final = {
    "reserve": Step.RESERVED,
    "create": Step.CREATED,
    "claim": Step.CLAIMED,
    "append/retrying": Step.RETURNING,
}
_SLOW: Final = {"line slow": ("delay_seconds", 0.05, 0.0), "line throttled": ("bytes_per_second", 50_000, None)}


@dataclass
class Outcome:
    """What came of a run."""

    seed: int
    book: Book = field(default_factory=Book)
    faults: Counter[str] = field(default_factory=Counter)
    met: Counter[tuple[str, Step]] = field(default_factory=Counter)
    """How many jobs each fault has met in each step."""
    seconds: float = 0

    def unmet(self) -> list[Step]:
        """The steps in which no fault has met a job."""
        return [step for step in Step if not any(self.met[fault, step] for fault in FAULTS)]

    @property
    def worker_faults(self) -> int:
        """Kills, pauses, stops and halts of workers."""
        return sum(count for name, count in self.faults.items() if name.startswith("worker"))

    @property
    def gateway_kills(self) -> int:
        """Kills and halts of gateways."""
        return self.faults["gateway killed"] + self.faults["gateway halted"]

    @property
    def redis_restarts(self) -> int:
        """Restarts of Redis."""
        return self.faults["redis killed"] + self.faults["redis stopped"]


class Run:
    """The faults of a plan, done to a deployment under load."""

    def __init__(self, site: Deployment, load: Load, outcome: Outcome) -> None:
        self._site = site
        self._load = load
        self._outcome = outcome
        site.on_halt = self._on_halt
        site.on_crash = self._on_crash

    async def through(self, faults: Sequence[Fault], seconds: float) -> None:
        """Do each fault at its time; those that last go on beside the others."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as lasting:
            for fault in faults:
                await asyncio.sleep(max(0.0, started + fault.at_seconds - time.monotonic()))
                lasting.create_task(self._do(fault))
            await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))

    async def _do(self, fault: Fault) -> None:
        who, _, what = fault.name.partition(" ")
        if who == "redis":
            await self._note(fault.name, None)
            self._site.restart_redis(signal.SIGKILL if what == "killed" else signal.SIGTERM)
            return
        if who == "kind":
            await self._pause(fault)
            return
        slots = self._site.slots if who == "line" else self._site.of("worker" if who == "worker" else "gateway")
        slot = slots[fault.target % len(slots)]
        await self._note(fault.name, slot)
        match what:
            case "killed":
                self._site.kill(slot)
            case "stopped":
                self._site.terminate(slot)
            case "paused":
                await self._site.pause(slot, fault.lasts_seconds)
            case _:
                await self._bend(fault.name, slot, fault.lasts_seconds)

    async def _pause(self, fault: Fault) -> None:
        """What an operator does to a kind: its jobs wait, and go on."""
        kind = KINDS[fault.target % len(KINDS)]
        await self._load.pause(kind, True)
        await self._note(fault.name, None, kind=kind)
        await asyncio.sleep(fault.lasts_seconds)
        await self._load.pause(kind, False)

    async def _bend(self, name: str, slot: Slot, seconds: float) -> None:
        """What is done to connections: those of a node to Redis, or of listeners to a gateway."""
        turn = self._site.board.turn
        if name == "listeners cut":
            await turn(f"{slot.name} door", "cut", 0.4)
        elif name == "line cut":
            await turn(slot.name, "cut")
        elif name in _SLOW:
            switch, on, off = _SLOW[name]
            await turn(slot.name, switch, on)
            await asyncio.sleep(seconds)
            await turn(slot.name, switch, off)
        else:
            await turn(slot.name, "stall" if name == "line stalled" else "black_hole")
            await asyncio.sleep(seconds)
            await turn(slot.name, "resume")

    # --- what a fault has met -----------------------------------------------------------------------------------

    def _on_crash(self, slot: Slot) -> None:
        assert slot.node is not None
        code, words = slot.node.exit_code, slot.node.said[-2000:]
        self._outcome.book.breach("crashed", f"{slot.name} ended by itself (exit code {code}): {words}")

    async def _on_halt(self, slot: Slot, halt: str) -> bool:
        place = halt.partition(":")[0]
        # Where Redis is down, nothing could be said of whom the halt has met; who halted waits.
        with suppress(AssertionError):
            await wait_until(self._site.has_redis, 3)
        steps = await self._note(f"{slot.role} halted", slot, place)
        return _STEP_OF_HALT[place] in steps if place in _STEP_OF_HALT else bool(steps)

    async def _note(self, name: str, slot: Slot | None, place: str = "", kind: str = "") -> set[Step]:
        """Count a fault and the jobs that it has met; returns the steps that these were in."""
        self._outcome.faults[name] += 1
        steps = set()
        # Redis may be the one that is away.
        with suppress(RedisError, OSError):
            for job, standing in (await standings(self._site.client, self._site.keys, KINDS)).items():
                entry = self._outcome.book.entries.get(job)
                if kind and (entry is None or entry.kind != kind):
                    continue
                if self._meets(job, standing, slot, place):
                    self._outcome.met[name, standing.step] += 1
                    steps.add(standing.step)
        return steps

    def _meets(self, job: str, standing: Standing, slot: Slot | None, place: str) -> bool:
        """Whether a fault that is done to a node (None: to Redis) has to do with this job."""
        entry = self._outcome.book.entries.get(job)
        waited_for = [heard for heard in entry.heard if not heard.ended] if entry else []
        if standing.step is Step.ENDED and not waited_for:
            return False
        if slot is None:
            return True
        if _STEP_OF_HALT.get(place) is standing.step:
            return True
        if slot.role == "worker":
            return slot.node is not None and f"-{slot.node.pid}-" in standing.worker
        door = self._site.board.urls[f"{slot.name} door"]
        return any(heard.door == door and heard.connected_since for heard in waited_for)


async def run_chaos(
    folder: Path,
    seed: int,
    seconds: float,
    *,
    rate: float,
    most_open: int,
    workers: int = 3,
    on_tick: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """A run of so many seconds of faults, and as long as it takes until all is calm; `on_tick` is called each second.

    If no fault has met a job in some step, there is another round of faults, at most three. Once they are over, every
    accepted job must end, and every listener must have heard it all, within `CALM_SECONDS`.
    """
    outcome = Outcome(seed)
    started = time.monotonic()
    async with Deployment(folder, seed, gateways=3, workers=workers, concurrency=24) as site:
        await _until_ready(site)
        load = Load(outcome.book, site.doors, seed, site.has_ended, rate=rate, most_open=most_open)
        loading = asyncio.create_task(load.run(), name="the load")
        checking = asyncio.create_task(_check_loop(site, outcome, started, on_tick), name="the books are checked")
        try:
            run = Run(site, load, outcome)
            for number in range(_MOST_ROUNDS):
                await run.through(plan(seed + number, seconds), seconds)
                if not outcome.unmet():
                    break
            outcome.seconds = time.monotonic() - started
            await site.settle()
            load.stop()
            await asyncio.wait({loading}, timeout=CALM_SECONDS)
        finally:
            for task in (checking, loading):
                task.cancel()
            await asyncio.gather(checking, return_exceptions=True)
            loaded = (await asyncio.gather(loading, return_exceptions=True))[0]
        if isinstance(loaded, Exception):
            raise loaded
        await _balance(site, outcome)
    return outcome


async def _until_ready(site: Deployment) -> None:
    """Until the workers have announced their kinds: a submit of an unknown one is refused."""

    async def announced() -> bool:
        return bool(await site.client.hlen(site.keys.kinds) == len(KINDS))

    await wait_until(announced, 30, what="the announcement of the kinds")


async def _check_loop(site: Deployment, outcome: Outcome, started: float, on_tick: Callable[[Outcome], None]) -> None:
    """Check what has ended while the rest goes on: breaches show at once, and memory stays small."""
    while True:
        await asyncio.sleep(1)
        outcome.seconds = time.monotonic() - started
        with suppress(RedisError, OSError):
            await _check_ended(site, outcome.book)
        on_tick(outcome)


async def _check_ended(site: Deployment, book: Book) -> None:
    ready = [entry for entry in book.entries.values() if not entry.checked and all(one.ended for one in entry.heard)]
    await check_jobs(site.client, site.keys, book, ready)


async def _balance(site: Deployment, outcome: Outcome) -> None:
    book = outcome.book
    await _check_ended(site, book)
    records = await standings(site.client, site.keys, KINDS)
    for entry in book.entries.values():
        if not entry.checked:
            where = [f"{heard.cursor}{' ended' if heard.ended else ''}" for heard in entry.heard]
            book.breach("stuck", f"{entry.job} ({entry.kind}), {records.get(entry.job)}, listeners at {where}")
    # What a dead worker has left in the kind's slot goes with the next look at it.
    with suppress(AssertionError):
        await wait_until(lambda: _nothing_in_hand(site), 15 + LEASE_SECONDS)
    await check_redis(site.client, site.keys, KINDS, book)


async def _nothing_in_hand(site: Deployment) -> bool:
    return not sum([await site.client.zcard(site.keys.kind(kind)[2]) for kind in KINDS])
