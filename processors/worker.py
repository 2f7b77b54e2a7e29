"""The worker: a process that claims jobs of its kinds and runs their processors.

A job may run more than once, since a worker can die between doing and saying; its log is written by one attempt at a
time. Each loop here is a method: `_claim_loop` takes jobs, `_presence_loop` says that the worker lives, the store's
look loop looks after everybody's open jobs, and the renewal thread keeps the leases.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from gateway.blobs import Blobs
from gateway.config import Settings
from gateway.errors import ConfigurationError, Unavailable
from gateway.signals import on_stop_signals
from gateway.store import Claim, Store, until_available
from processors.attempt import Attempt, Stop, Tools
from processors.backoff import Backoff
from processors.batching import Batches
from processors.beat import Beat
from processors.lifespan import Lifespans, called
from processors.places import Places
from processors.process import Processes
from processors.processor import Processor, Style, load_processors
from processors.renewal import Renewal
from processors.tasks import cancel_all, first_of

logger = logging.getLogger(__name__)

# An attempt that waits costs a connection and some memory.
_WAITING_CONCURRENCY: Final = 256
PRESENCE_SECONDS: Final = 5.0
HEALTH_SECONDS: Final = 15.0
# The bell rings for new work; this finds what a lost ring, a retry or another worker's end has left.
POLL_SECONDS: Final = 2.0
# After a stopping worker's attempts were told to stop: enough to write `retrying`, not enough to annoy who stops it.
HAND_BACK_SECONDS: Final = 5.0
# For a call of `setup` or `health` that is cancelled.
_LET_GO_SECONDS: Final = 1.0
_UNAVAILABLE_FIRST_SECONDS: Final = 0.1
_UNAVAILABLE_MOST_SECONDS: Final = 1.0


class Worker:
    """Serves kinds with `concurrency` attempts at once. `run` ends after `stop`."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        processors: Mapping[str, Processor],
        *,
        concurrency: int,
        stop_grace_seconds: float,
        max_inline_bytes: int,
        name: str | None = None,
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.ready = asyncio.Event()
        """Set once the kinds are announced and jobs are claimed."""
        self._store = store
        self._processors = processors
        self._processes = Processes()
        self._batches = Batches()
        self._lifespans = Lifespans()
        self._places = Places(processors, concurrency, hangs=self._batches.hang)
        self._tools = Tools(store, blobs, max_inline_bytes, self._processes, self._batches, self._places, Beat())
        self._concurrency = concurrency
        self._stop_grace_seconds = stop_grace_seconds
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._handing_back = False
        self._turns = deque(processors)
        self._unwell: set[str] = set()
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._left_behind: set[asyncio.Task[None]] = set()
        self._shown: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempts: set[Attempt] = set()

    def stop(self) -> None:
        """Claim nothing more, wait for the attempts, hand back what is left; a second call doesn't wait."""
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    @property
    def stuck(self) -> int:
        """How much still runs; after `run` these are threads that ignored every call to stop."""
        return len(self._tasks) + len(self._left_behind)

    async def run(self) -> None:
        """Set up the processors, announce their kinds, and work until `stop`."""
        try:
            if await self._is_set_up():
                await self._announce()
                await self._serve()
        finally:
            await self._leave_behind(*self._asked.values(), *self._batches.tasks)
            await self._processes.close()
            await self._leave_behind(*await self._lifespans.end())

    async def _serve(self) -> None:
        self._renewal = Renewal(self._store.renewer(self.name), self._store.lease_seconds)
        self._renewal.start()
        try:
            async with asyncio.TaskGroup() as loops:
                running = [
                    loops.create_task(self._claim_loop(), name="worker claims"),
                    loops.create_task(self._presence_loop(), name="worker shows itself"),
                    loops.create_task(self._look_loop(), name="worker looks"),
                    loops.create_task(self._health_loop(), name="worker checks health"),
                ]
                self.ready.set()
                await self._stopping.wait()
                # It ends by itself: a claim that is cut off half-way would leave its jobs waiting for a look.
                await asyncio.wait({running[0]}, timeout=HAND_BACK_SECONDS)
                await self._drain()
                for loop in running:
                    loop.cancel()
        finally:
            await self._renewal.stop()
            # It is forgotten after a while anyhow; Redis may be away.
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(1):
                    await self._store.absent(self.name, self._shown, self._concurrency)

    # --- the start ----------------------------------------------------------------------------------------------

    async def _is_set_up(self) -> bool:
        """Set up the processors; False where the worker was stopped meanwhile: a large model takes minutes to load."""
        setting_up = asyncio.create_task(self._set_up(), name="worker is set up")
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({setting_up, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all(stopping)
            if not setting_up.done():
                await self._leave_behind(setting_up)
        if self._stopping.is_set():
            return False
        await setting_up
        return True

    async def _leave_behind(self, *tasks: asyncio.Task[None]) -> None:
        """Cancel what calls an author's functions; a thread that doesn't return can't be ended, and holds nothing."""
        for task in tasks:
            task.cancel()
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=_LET_GO_SECONDS)
            self._left_behind |= running

    async def _set_up(self) -> None:
        in_here = [one for one in self._processors.values() if one.style is not Style.PROCESS]
        for setup in {one.setup: None for one in in_here if one.setup is not None}:
            logger.info("setting up: %s", getattr(setup, "__qualname__", setup))
            await self._lifespans.begin(setup)
        for processor in self._processors.values():
            if processor.style is Style.PROCESS:
                await self._processes.warm(processor)

    async def _announce(self) -> None:
        backoff = Backoff(_UNAVAILABLE_FIRST_SECONDS, _UNAVAILABLE_MOST_SECONDS)
        while not self._stopping.is_set():
            try:
                for processor in self._processors.values():
                    await self._store.register_kind(processor.document)
                await self._show()
                break
            except Unavailable as error:
                logger.warning("the kinds can't be announced yet: %s", error.detail)
                await asyncio.sleep(backoff.next())
        logger.info("worker %s serves %s, %d at once", self.name, ", ".join(self._processors), self._concurrency)

    # --- the loops ----------------------------------------------------------------------------------------------

    async def _presence_loop(self) -> None:
        while True:
            await asyncio.sleep(PRESENCE_SECONDS)
            try:
                await self._show()
            except Unavailable:
                continue
            except Exception:
                logger.exception("the worker could not show itself")

    async def _show(self) -> None:
        before, self._shown = self._shown, [kind for kind in self._processors if kind not in self._unwell]
        await self._store.present(self.name, self._shown, self._concurrency)
        if before != self._shown:
            await self._store.absent(self.name, before, self._concurrency)

    async def _health_loop(self) -> None:
        checked = [one for one in self._processors.values() if one.health is not None]
        while checked:
            await asyncio.gather(*(self._check_health(processor) for processor in checked))
            await asyncio.sleep(HEALTH_SECONDS)

    async def _check_health(self, processor: Processor) -> None:
        try:
            await self._ask_health(processor)
        except Exception:
            if processor.kind not in self._unwell:
                logger.exception("%s is not well: its jobs are left to other workers until it is", processor)
                self._unwell.add(processor.kind)
                self._places.set_well(processor.kind, False)
        else:
            if processor.kind in self._unwell:
                logger.info("%s is well again", processor)
                self._unwell.discard(processor.kind)
                self._places.set_well(processor.kind, True)

    async def _ask_health(self, processor: Processor) -> None:
        """Raises what the check raises, and `TimeoutError` while it says nothing, as a device that hangs makes it."""
        asked = self._asked.get(processor.kind)
        if asked is None:
            assert processor.health is not None
            asked = asyncio.create_task(called(processor.health), name=f"health of {processor.kind}")
            self._asked[processor.kind] = asked
        await asyncio.wait({asked}, timeout=HEALTH_SECONDS)
        if not asked.done():
            raise TimeoutError(f"the health check has not ended within {HEALTH_SECONDS:g} s")
        del self._asked[processor.kind]
        await asked

    async def _look_loop(self) -> None:
        while True:
            try:
                await self._store.look_loop()
            except Exception:
                # A defect met by one job's look must not end the attempts at all others.
                logger.exception("a look failed; going on")
                await asyncio.sleep(_UNAVAILABLE_MOST_SECONDS)

    async def _claim_loop(self) -> None:
        backoff = Backoff(_UNAVAILABLE_FIRST_SECONDS, _UNAVAILABLE_MOST_SECONDS)
        while not self._stopping.is_set():
            try:
                if await self._claim_round() == 0:
                    await self._wait_for_work()
                backoff = Backoff(_UNAVAILABLE_FIRST_SECONDS, _UNAVAILABLE_MOST_SECONDS)
                continue
            except Unavailable:
                pause = backoff.next()
            except Exception:
                # The attempts that run must not end because a claim met a defect or an odd answer.
                logger.exception("a claim failed; trying on")
                pause = _UNAVAILABLE_MOST_SECONDS
            await first_of(self._stopping.wait(), timeout_seconds=pause)

    async def _claim_round(self) -> int:
        """Give each kind a turn at the free places; returns how many jobs were claimed.

        Raises `Unavailable` where none were, and of some kind nobody can say whether there are any.
        """
        claimed = 0
        failure: Unavailable | None = None
        for kind in list(self._turns):
            room = self._places.room(kind)
            if room == 0 or self._stopping.is_set():
                continue
            # No kind takes more than its share of what is free, so that many jobs of one can't starve another.
            share = max(1, self._places.free // len(self._turns))
            if self._processors[kind].max_batch:
                share = room
            try:
                claims = await self._claim(kind, min(room, share))
            except Unavailable as error:
                # In a cluster the master of another kind may be there.
                failure = error
                continue
            for claim in claims:
                self._start(claim)
            if claims:
                self._turns.remove(kind)
                self._turns.append(kind)
            claimed += len(claims)
        if failure is not None and not claimed:
            raise failure
        return claimed

    async def _claim(self, kind: str, most: int) -> list[Claim]:
        """Claim jobs of a kind; each has its place."""
        # Taken before: an attempt that comes back meanwhile must not find them free as well.
        self._places.take(kind, most)
        claims: list[Claim] = []
        try:
            claims = await self._store.claim(kind, self.name, most)
        finally:
            if most > len(claims):
                self._places.give_up(kind, most - len(claims))
        return claims

    async def _wait_for_work(self) -> None:
        """Wait for a bell, for room where there was none, or for the time to look by oneself."""
        if self._stopping.is_set():
            return
        self._places.made.clear()
        kinds = [kind for kind in self._turns if self._places.room(kind) > 0]
        waits: list[Coroutine[Any, Any, Any]] = [self._places.made.wait(), self._stopping.wait()]
        if kinds:
            waits.append(self._store.wait_for_work(kinds, POLL_SECONDS))
        await first_of(*waits)

    # --- attempts -----------------------------------------------------------------------------------------------

    def _start(self, claim: Claim) -> None:
        task = asyncio.create_task(self._work(claim), name=f"{claim.kind} {claim.job} attempt")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._finish(claim.kind, task))

    def _finish(self, kind: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.give_up(kind)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("an attempt at a %s job broke off", kind, exc_info=error)

    async def _work(self, claim: Claim) -> None:
        """Begin a claimed job and run the attempt."""
        try:
            begun = await self._store.begin(claim, self.name)
        except Unavailable as error:
            logger.warning("job %s was claimed but can't be begun: %s", claim.job, error.detail)
            return
        if begun.lease is None or begun.record is None:
            logger.debug("job %s is not begun: %s", claim.job, begun.outcome)
            return
        processor = self._processors[claim.kind]
        attempt = Attempt(processor, claim, begun.lease, begun.record, self._tools, input_=begun.input)
        self._attempts.add(attempt)
        self._renewal.add(attempt)
        if self._handing_back:
            # Begun too late to hear the call; `run` starts the function before this is called.
            asyncio.get_running_loop().call_soon(attempt.stop, Stop.WORKER_STOPPING)
        try:
            await attempt.run()
        finally:
            self._renewal.remove(attempt)
            self._attempts.discard(attempt)

    # --- the stop -----------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Let the attempts end by themselves for a while, then hand back what is left."""
        if not self._tasks:
            return
        logger.info("stopping: waiting up to %g s for %d attempts", self._stop_grace_seconds, len(self._tasks))
        await first_of(self._until_idle(), self._hurrying.wait(), timeout_seconds=self._stop_grace_seconds)
        self._handing_back = True
        for attempt in list(self._attempts):
            attempt.stop(Stop.WORKER_STOPPING)
        await first_of(self._until_handed_back(), timeout_seconds=HAND_BACK_SECONDS + self._longest_grace())
        if self._tasks:
            logger.error("%d attempts can't be ended and are left behind", len(self._tasks))
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=1)

    async def _until_idle(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _until_handed_back(self) -> None:
        """Wait until nothing is left to write; what still runs then is threads that ignore the stop."""
        while len(self._attempts) < len(self._tasks) or not all(attempt.over.is_set() for attempt in self._attempts):
            await asyncio.wait(self._tasks, timeout=0.02)
        if self._tasks:
            # An attempt that is over ends its task in the next turns, unless a thread holds it up.
            await asyncio.wait(self._tasks, timeout=0.1)

    def _longest_grace(self) -> float:
        return max((attempt.processor.cancel_grace_seconds for attempt in self._attempts), default=0.0)


def run_worker(settings: Settings, modules: Iterable[str]) -> int:
    """Serve the processors of these modules until SIGTERM or SIGINT; returns the process's exit code.

    The first signal lets running attempts end for `stop_grace_seconds`; a second one hands them back at once.
    Raises `ConfigurationError` for modules without processors and for settings that can't work.
    """
    processors = load_processors(modules)
    if not settings.redis_url:
        raise ConfigurationError("OUTLAST_REDIS_URL is not set: a worker needs the Redis that its gateways use.")
    return asyncio.run(_serve(settings, processors))


async def _serve(settings: Settings, processors: Mapping[str, Processor]) -> int:
    blobs = Blobs.open(settings.blob_location)
    store = await Store.connect_when_up(settings)
    try:
        marker = await blobs.marker()
        await until_available(lambda: store.check_place(marker), "the files' place can't be checked yet")
        worker = Worker(
            store,
            blobs,
            processors,
            concurrency=settings.concurrency or concurrency_for(processors.values()),
            stop_grace_seconds=settings.stop_grace_seconds,
            max_inline_bytes=settings.max_inline_bytes,
        )
        on_stop_signals(worker.stop)
        # What the imports made stays for ever: a full collection that walks it would hold up every attempt for it.
        gc.collect()
        gc.freeze()
        await worker.run()
    finally:
        await store.close()
    if worker.stuck:
        # A thread that can't be stopped would hold up the loop's own end, and with it the process's, for ever.
        logging.shutdown()
        os._exit(1)
    return 0


def concurrency_for(processors: Iterable[Processor]) -> int:
    """How many attempts at once suit them: one for each core, or 256 where all of them only wait for others."""
    if all(processor.waits for processor in processors):
        return _WAITING_CONCURRENCY
    # Not on every system; a container's share of a core is not counted anywhere.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
