"""Batching: one call of a function for several jobs at once, as models on a GPU want it.

Jobs gather for `max_wait_seconds` after the first, or until there are `max_batch`; while a batch is being done the next
one gathers, so under load batches are full and nobody waits for a timer. One batch of a kind at a time in a worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from processors.context import Context
from processors.processor import Processor, Style
from processors.tasks import cancel_all
from processors.thread import run_in_thread


class _Member(NamedTuple):
    """A job of a batch, and what becomes of it."""

    context: Context
    arguments: tuple[Any, ...]
    outcome: asyncio.Future[Any]


class Batches:
    """The batches of one worker, by kind."""

    def __init__(self) -> None:
        self._gathering: dict[str, _Gathering] = {}

    async def run(self, processor: Processor, context: Context, arguments: tuple[Any, ...]) -> Any:
        """Have a job done with others of its kind, and return its own result.

        Cancelling it takes the job out of a batch that has not begun. One that has begun goes on for the others, and is
        cancelled with the last of them.
        """
        gathering = self._gathering.get(processor.kind)
        if gathering is None:
            gathering = self._gathering[processor.kind] = _Gathering(processor)
        return await gathering.run(context, arguments)

    async def close(self) -> None:
        """End what still runs."""
        await asyncio.gather(*(gathering.close() for gathering in self._gathering.values()))


class _Gathering:
    """The jobs of one kind that wait for their batch, and the task that makes batches of them."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._waiting: deque[_Member] = deque()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def run(self, context: Context, arguments: tuple[Any, ...]) -> Any:
        member = _Member(context, arguments, asyncio.get_running_loop().create_future())
        # Bounded by the places that a worker has for the kind.
        self._waiting.append(member)
        if len(self._waiting) >= self._processor.max_batch:
            self._full.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve(), name=f"{self._processor.kind} batches")
        return await member.outcome

    async def close(self) -> None:
        if self._task is not None:
            await cancel_all(self._task)

    async def _serve(self) -> None:
        """Do batches as long as jobs wait."""
        while self._waiting:
            if len(self._waiting) < self._processor.max_batch:
                self._full.clear()
                timer = asyncio.get_running_loop().call_later(self._processor.max_wait_seconds, self._full.set)
                await self._full.wait()
                timer.cancel()
            batch: list[_Member] = []
            while self._waiting and len(batch) < self._processor.max_batch:
                member = self._waiting.popleft()
                if not member.outcome.done():
                    batch.append(member)
            if batch:
                await self._do(batch)

    async def _do(self, batch: list[_Member]) -> None:
        calling = asyncio.create_task(self._call(batch), name=f"{self._processor.kind} batch of {len(batch)}")
        outcomes = [member.outcome for member in batch]
        for outcome in outcomes:
            outcome.add_done_callback(lambda _: all(one.done() for one in outcomes) and calling.cancel())
        try:
            await asyncio.wait({calling})
            _share_out(calling, outcomes)
        finally:
            await cancel_all(calling)

    async def _call(self, batch: list[_Member]) -> list[Any]:
        inputs = [member.arguments[0] for member in batch] if batch[0].arguments else None
        function = self._processor.function
        if self._processor.style is Style.ASYNC:
            contexts: Sequence[Any] = [member.context for member in batch]
            results = await (function(contexts) if inputs is None else function(contexts, inputs))
        else:
            contexts = [member.context.sync for member in batch]
            arguments = (contexts,) if inputs is None else (contexts, inputs)
            results = await run_in_thread(function, *arguments, name=f"{self._processor.kind} batch")
        if not isinstance(results, Sequence) or len(results) != len(batch):
            raise TypeError(f"{self._processor} must return a list with one result for each of its {len(batch)} jobs")
        return list(results)


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
        elif isinstance(result, BaseException):
            outcome.set_exception(result)
        else:
            outcome.set_result(result)
