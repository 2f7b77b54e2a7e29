"""Reporting from a process that is no worker of ours: a Celery task, a Ray actor, a script.

    with Reporter(token) as job:                # or: async with AsyncReporter(token) as job:
        job.progress(1, 2)
        job.result = work(job.input)

The token comes from `ctx.hand_over` of the processor that took the job. The block is the attempt: it is fenced,
renewed, cancelled and ended as a processor's function is, because it is run as one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any

from pydantic_core import from_json

from gateway.blobs import Blobs
from gateway.config import Settings, load_settings
from gateway.documents import KindDocument
from gateway.errors import ConfigurationError, LeaseLost
from gateway.store import Claim, Store, read_token
from processors.attempt import Attempt, Tools
from processors.batching import Batches
from processors.beat import Beat
from processors.context import Context, SyncContext
from processors.places import Places
from processors.process import Processes
from processors.processor import Processor, Style
from processors.renewal import Renewal


class Report(Context):
    """A processor's context, with the job's input and the result to be set."""

    input: Any = None
    result: Any = None


class SyncReport(SyncContext):
    """A plain processor's context, with the job's input and the result to be set."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.input = report.input
        self.result: Any = None


class Reporter:
    """An attempt that was handed over, for plain code: `with Reporter(token) as job: ...`.

    `job` has what a plain processor's context has, and `input` and `result`. Leaving the block ends the attempt:
    `succeeded` with `job.result`, or whatever the exception means that left it, which goes on to the caller. Settings
    are read as a worker's (`OUTLAST_REDIS_URL`, `OUTLAST_BLOB_URL`, ...).

    Entering raises `LeaseLost` where there is nothing to do: the job has ended, the time to take it is over, or the
    token was used before, as by a queue that delivers twice. When the job is to stop, the next report raises
    `asyncio.CancelledError`, with which the block ends quietly.

    Any thread of this process may report, but no fork of it. A reporter that is entered and never left keeps its job
    until the kind's `run_timeout_seconds` are over.
    """

    def __init__(self, token: str, *, settings: Settings | None = None) -> None:
        self._token = token
        self._settings = settings
        self._entered: Future[tuple[_Block, SyncReport]] = Future()
        self._left: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._process = os.getpid()

    def __enter__(self) -> SyncReport:
        if self._thread.ident is not None:
            raise RuntimeError("A reporter is for one block: its token can be brought once.")
        self._thread.start()
        try:
            self._block, self._job = self._entered.result()
        except BaseException as error:
            # Interrupted, as by a queue's own time limit: nobody leaves a block that was never entered.
            self._entered.add_done_callback(partial(_abandon, error))
            raise
        return self._job

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if os.getpid() != self._process:
            # A fork that leaves its copy of the block; the attempt is not its own.
            return False
        self._block.loop.call_soon_threadsafe(self._block.leave, self._job.result, error)
        self._left.result()
        return self._block.report.cancelled and isinstance(error, asyncio.CancelledError)

    def _run(self) -> None:
        try:
            asyncio.run(self._hold())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            (self._left if self._entered.done() else self._entered).set_exception(error)
        else:
            self._left.set_result(None)

    async def _hold(self) -> None:
        async with _adopted(self._token, self._settings, lambda: None) as block:
            self._entered.set_result((block, SyncReport(block.report)))


def _abandon(error: BaseException, entered: Future[tuple[_Block, SyncReport]]) -> None:
    """End an attempt whose block nobody will leave, as the error says."""
    if entered.exception() is None:
        block, _ = entered.result()
        block.loop.call_soon_threadsafe(block.leave, None, error)


class AsyncReporter:
    """An attempt that was handed over, for async code: `async with AsyncReporter(token) as job: ...`.

    As `Reporter`, with a processor's async context. When the job is to stop, the code in the block gets
    `CancelledError` where it awaits, and the block ends with it; before the block has begun, entering raises
    `LeaseLost`.
    """

    def __init__(self, token: str, *, settings: Settings | None = None) -> None:
        self._token = token
        self._settings = settings

    async def __aenter__(self) -> Report:
        self._task = asyncio.current_task()
        self._cancels = 0 if self._task is None else self._task.cancelling()
        self._told = False
        self._adopted = _adopted(self._token, self._settings, self._interrupt)
        try:
            self._block = await self._adopted.__aenter__()
        except asyncio.CancelledError:
            if self._told and self._task is not None and self._task.uncancel() <= self._cancels:
                raise LeaseLost("The job is to stop: somebody asked for its end before its block began.") from None
            raise
        return self._block.report

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._block.leave(self._block.report.result, error)
        ours = self._told and isinstance(error, asyncio.CancelledError)
        if self._told and self._task is not None:
            # Our cancel has done what it was for; one that somebody else asked for as well goes on.
            ours = self._task.uncancel() <= self._cancels and ours
        await self._adopted.__aexit__(None, None, None)
        return ours

    def _interrupt(self) -> None:
        if self._task is not None and not self._told:
            self._told = True
            self._task.cancel()


class _Block:
    """What an attempt runs instead of a processor's function: it waits for the block of code elsewhere to be left."""

    report: Report

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.entered: asyncio.Future[None] = self.loop.create_future()
        self._outcome: asyncio.Future[tuple[Any, BaseException | None]] = self.loop.create_future()
        self._interrupt = interrupt

    async def function(self, context: Report) -> Any:
        """Return what the block made, or raise what left it; a cancel is passed on, and its end waited for."""
        self.report = context
        self.entered.set_result(None)
        while not self._outcome.done():
            try:
                await asyncio.shield(self._outcome)
            except asyncio.CancelledError:
                if self._outcome.done():
                    raise
                self._interrupt()
        result, error = self._outcome.result()
        if error is not None:
            raise error
        return result

    def leave(self, result: Any, error: BaseException | None) -> None:
        """The block has been left."""
        if not self._outcome.done():
            # As a value, since futures don't take every exception.
            self._outcome.set_result((result, error))


@asynccontextmanager
async def _adopted(token: str, settings: Settings | None, interrupt: Callable[[], None]) -> AsyncIterator[_Block]:
    """Adopt the token's attempt, run it around the block, and return when its end is written."""
    settings = settings or load_settings()
    if not settings.redis_url:
        raise ConfigurationError("OUTLAST_REDIS_URL is not set: a reporter needs the Redis that its gateways use.")
    name = f"{socket.gethostname()}-{os.getpid()}-reporter"
    blobs = Blobs.open(settings.blob_location)
    store = await Store.connect_when_up(settings)
    try:
        await store.check_place(await blobs.marker())
        kinds = await store.kinds()
        # Nothing that can fail comes between this and the attempt: the job would wait for the end of its lease.
        begun, _ = await store.adopt(read_token(token).lease, name)
        assert begun.lease is not None
        assert begun.record is not None
        kind = kinds.get(begun.lease.kind) or KindDocument(kind=begun.lease.kind)
        block = _Block(interrupt)
        processor = Processor(kind, block.function, Style.ASYNC, None, None)
        claim = Claim(begun.lease.job, begun.lease.kind, "")
        places = Places({kind.kind: processor}, 1)
        places.take(kind.kind)
        tools = Tools(store, blobs, settings.max_inline_bytes, Processes(), Batches(), places, Beat())
        attempt = Attempt(processor, claim, begun.lease, begun.record, tools, input_=b"", context_type=Report)
        renewal = Renewal(store.renewer(name), store.lease_seconds)
        renewal.start()
        renewal.add(attempt)
        running = asyncio.create_task(attempt.run(), name=f"{kind.kind} {claim.job} reported")
        try:
            await asyncio.wait({running, block.entered}, return_when=asyncio.FIRST_COMPLETED)
            if not block.entered.done():
                raise LeaseLost(f"The attempt at job {claim.job} ended before its block began; its events tell why.")
            blob = begun.record.input_blob
            block.report.input = from_json(begun.input if blob is None else await blobs.get(blob))
            yield block
            await running
        finally:
            block.leave(None, asyncio.CancelledError())
            await asyncio.wait({running})
            renewal.remove(attempt)
            await renewal.stop()
    finally:
        await store.close()
