"""Batching: one call of a function for several jobs at once, as models on a GPU want it.

Jobs gather for `max_wait_seconds` after the first, or until there are `max_batch`; while a batch is being done the next
one gathers, so under load batches are full and nobody waits for a timer. One batch of a kind at a time in a worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from processors.context import Context
from processors.errors import ProcessorError
from processors.processor import Processor, Style
from processors.tasks import cancel_all, contained
from processors.thread import run_in_thread


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """A job of a batch, and what becomes of it."""

    context: Context
    arguments: tuple[Any, ...]
    outcome: asyncio.Future[Any]
    since: float
    """When it came, in the loop's time."""


class Batches:
    """The batches of one worker, by kind."""

    def __init__(self) -> None:
        self._gathering: dict[str, _Gathering] = {}

    async def run(self, processor: Processor, context: Context, arguments: tuple[Any, ...]) -> Any:
        """Have a job done with others of its kind, and return its own result.

        Cancelling it takes the job out of a batch that has not begun. One that has begun goes on for the others, and is
        cancelled with the last of them, who wait for its end.
        """
        gathering = self._gathering.get(processor.kind)
        if gathering is None:
            gathering = self._gathering[processor.kind] = _Gathering(processor)
        return await gathering.run(context, arguments)

    def hang(self, kind: str) -> bool:
        """Whether a kind's batch goes on although all of its jobs have left it, so that no other one can begin."""
        gathering = self._gathering.get(kind)
        return gathering is not None and gathering.hangs

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What does the batches; cancelling ends it, unless a thread doesn't return."""
        return [gathering.task for gathering in self._gathering.values() if gathering.task is not None]


class _Gathering:
    """The jobs of one kind that wait for their batch, and the task that makes batches of them."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._waiting: deque[_Member] = deque()
        self._full = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._batch: list[_Member] = []
        self._calling: asyncio.Task[list[Any]] | None = None
        self._is_stuck = False

    @property
    def hangs(self) -> bool:
        """Whether everybody has left a batch that goes on."""
        running = self._calling is not None and not self._calling.done()
        return running and all(member.outcome.done() for member in self._batch)

    async def run(self, context: Context, arguments: tuple[Any, ...]) -> Any:
        if self._is_stuck:
            raise _stuck()
        loop = asyncio.get_running_loop()
        member = _Member(context, arguments, loop.create_future(), loop.time())
        # Bounded by the places that a worker has for the kind.
        self._waiting.append(member)
        if len(self._waiting) >= self._processor.max_batch:
            self._full.set()
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._serve(), name=f"{self._processor.kind} batches")
        try:
            return await member.outcome
        except asyncio.CancelledError:
            while member in self._batch and self.hangs and self._calling is not None:
                self._calling.cancel()
                # Whoever cancels again insists, which is passed on.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({self._calling})
            raise

    async def _serve(self) -> None:
        """Do batches as long as jobs wait."""
        while self._waiting:
            await self._gather()
            self._batch = []
            while self._waiting and len(self._batch) < self._processor.max_batch:
                member = self._waiting.popleft()
                if not member.outcome.done():
                    self._batch.append(member)
            if self._batch:
                await self._do(self._batch)

    async def _gather(self) -> None:
        """Wait until a batch is full, or its first job has waited long enough."""
        if len(self._waiting) >= self._processor.max_batch:
            return
        self._full.clear()
        due = self._waiting[0].since + self._processor.max_wait_seconds
        timer = asyncio.get_running_loop().call_at(due, self._full.set)
        try:
            await self._full.wait()
        finally:
            timer.cancel()

    async def _do(self, batch: list[_Member]) -> None:
        outcomes = [member.outcome for member in batch]
        everybody = asyncio.gather(*outcomes, return_exceptions=True)
        self._calling = calling = asyncio.create_task(
            self._call(batch), name=f"{self._processor.kind} batch of {len(batch)}"
        )
        try:
            await asyncio.wait({calling, everybody}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                await self._end_left(calling)
            _share_out(calling, outcomes)
        finally:
            everybody.cancel()
            await cancel_all(calling)

    async def _end_left(self, calling: asyncio.Task[list[Any]]) -> None:
        """End a batch that everybody has left; while a thread ignores that, who waits is sent elsewhere."""
        calling.cancel()
        await asyncio.wait({calling}, timeout=self._processor.cancel_grace_seconds)
        try:
            if not calling.done():
                self._is_stuck = True
                for member in self._waiting:
                    if not member.outcome.done():
                        member.outcome.set_exception(_stuck())
                await asyncio.wait({calling})
        finally:
            self._is_stuck = False

    async def _call(self, batch: list[_Member]) -> list[Any]:
        inputs = [member.arguments[0] for member in batch] if batch[0].arguments else None
        function = self._processor.function
        together = [member.context for member in batch]
        for context in together:
            context.share(together)
        with contained():
            if self._processor.style is Style.ASYNC:
                results = await (function(together) if inputs is None else function(together, inputs))
            else:
                contexts = [context.sync for context in together]
                arguments = (contexts,) if inputs is None else (contexts, inputs)
                results = await run_in_thread(function, *arguments, name=f"{self._processor.kind} batch")
        # Arrays are no sequences, but lists of results all the same.
        if isinstance(results, str | bytes | Mapping) or not isinstance(results, Iterable):
            raise TypeError(f"{self._processor} must return a list of results, not {type(results).__name__}")
        results = list(results)
        if len(results) != len(batch):
            raise TypeError(f"{self._processor} returned {len(results)} results for a batch of {len(batch)} jobs")
        return results


def _stuck() -> ProcessorError:
    return ProcessorError(
        "batch_stuck", "An earlier batch on this worker can't be ended; another worker may do the job."
    )


def _share_out(calling: asyncio.Task[list[Any]], outcomes: list[asyncio.Future[Any]]) -> None:
    """Give each job its result, or all of them the error; a result that is an exception is that job's own."""
    if calling.cancelled():
        results: list[Any] = [asyncio.CancelledError()] * len(outcomes)
    elif (error := calling.exception()) is not None:
        results = [error] * len(outcomes)
    else:
        results = calling.result()
    for outcome, result in zip(outcomes, results, strict=True):
        if outcome.done():
            continue
        if isinstance(result, asyncio.CancelledError):
            outcome.cancel()
        elif isinstance(result, Exception) and not isinstance(result, StopIteration):
            outcome.set_exception(result)
        elif isinstance(result, BaseException):
            # Futures don't take the one, and the others would end the event loop.
            outcome.set_exception(RuntimeError(f"the function gave {result!r} as a result"))
        else:
            outcome.set_result(result)
