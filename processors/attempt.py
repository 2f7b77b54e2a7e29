"""One attempt at a job, from its lease to its end: begin, run, end.

    function returned                 -> succeeded
    Rejected, input not valid         -> failed, its own code
    Retry, ProcessorError, any error  -> retrying, with back-off; failed (retries_exhausted) at the kind's limit
    ran for too long                  -> failed (run_timeout)
    cancelled                         -> cancelled, once the function has really stopped
    worker stopping                   -> retrying (worker_stopping), which is no failure
    events lost by Redis              -> retrying (events_lost), which is no failure
    lease lost                        -> nothing: another attempt has the job, or it has ended
    handed over, function returned    -> nothing: whoever has the write token goes on

A function that is told to stop gets `CancelledError` (async) or is told through its context (thread). After its
kind's grace it is told again and its child processes are killed. A thread can't be killed: a timed-out one is left
running after the job has ended, and a cancelled job's lease is given up after a second grace, whereupon a look ends
it. The place in the worker stays taken until the function has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from gateway.blobs import Blobs
from gateway.errors import EventsLost, LeaseLost, Unavailable
from gateway.event_text import decode_event
from gateway.protocol import Event, EventType
from gateway.store import Claim, JobRecord, Lease, Store
from processors.batching import Batches
from processors.beat import Beat
from processors.call import Call, Result
from processors.context import Context
from processors.ending import Ending, after_error, cancelled, released, timed_out
from processors.errors import ProcessorError, Rejected
from processors.places import Places
from processors.process import Processes
from processors.processor import Processor, Style
from processors.steps import Steps
from processors.tasks import cancel_all, contained
from processors.writer import Writer

logger = logging.getLogger(__name__)

# An attempt that is over sooner needs neither its entry in the kind's slot nor its live channel.
_SETTLE_SECONDS: Final = 0.05


class Stop(Enum):
    """Why an attempt is told to stop."""

    CANCELLED = "the job was cancelled"
    TIMED_OUT = "it ran for too long"
    WORKER_STOPPING = "the worker is stopping"
    LOST = "the job is not this attempt's any more"


@dataclass(frozen=True, slots=True)
class Tools:
    """What attempts need of their worker."""

    store: Store
    blobs: Blobs
    max_inline_bytes: int
    processes: Processes
    batches: Batches
    places: Places
    beat: Beat


class Attempt:
    """Runs a processor's function under a lease. All of it belongs to the event loop."""

    def __init__(
        self,
        processor: Processor,
        claim: Claim,
        lease: Lease,
        record: JobRecord,
        tools: Tools,
        *,
        input_: bytes,
        context_type: type[Context] = Context,
    ) -> None:
        self.processor = processor
        self.lease = lease
        self.holds_lease = True
        """False once the lease is lost, given up or of no more use: it must not be renewed any more."""
        self.over = asyncio.Event()
        """Set once nothing of it is left to write; its function may still run."""
        self._claim = claim
        self._record = record
        self._tools = tools
        self._writer = Writer(tools.store, lease, record, self._on_cancel_requested, tools.beat)
        self._context = context_type(
            record,
            self._writer,
            store=tools.store,
            blobs=tools.blobs,
            max_inline_bytes=tools.max_inline_bytes,
            hand_over=self._hand_over,
        )
        self._steps = Steps(
            self._context, self._writer, tools.store, tools.blobs, lease=lease, record=record, aside=self
        )
        self._context.steps = self._steps
        self._call = Call(
            processor,
            record,
            self._context,
            input_=input_,
            blobs=tools.blobs,
            processes=tools.processes,
            batches=tools.batches,
        )
        self._stop: Stop | None = None
        self._stopping = asyncio.Event()
        self._cancel: dict[str, Any] = {}
        self._function: asyncio.Task[Result] | None = None
        self._following = False
        self._handed_over = False
        self._aside = False
        self._returned = False
        self._begun = asyncio.get_running_loop().time()

    def __repr__(self) -> str:
        return f"<attempt {self.lease.attempt} at {self.lease.kind} job {self.lease.job}>"

    # --- what may happen to it ----------------------------------------------------------------------------------

    def stop(self, reason: Stop) -> None:
        """Tell the function to stop. The first reason stands, but that a lost lease is lost."""
        if self._function is None or self._function.done():
            return
        if reason is Stop.LOST:
            self._writer.close()
            self._unfollow()
        elif self._stop is not None:
            return
        told = self._stop is not None
        self._stop = reason
        self._stopping.set()
        if not told:
            logger.info("%s: told to stop: %s", self, reason.value)
            self._context.stop()
            self._interrupt()

    def on_renewed(self, lost: bool, cancel_by: str | None) -> None:
        """Hear the answer to a renewal of the lease."""
        if lost:
            self.stop(Stop.LOST)
        elif cancel_by is not None and self._stop is None:
            self._writer.listen()

    def on_message(self, payload: bytes) -> None:
        """Hear the job's live channel: mostly this attempt's own events, and maybe a cancel request."""
        if b" cancel_requested {" not in payload:
            return
        for line in payload.split(b"\n"):
            _, _, rest = line.partition(b" ")
            type_, _, text = rest.partition(b" ")
            if type_ == b"cancel_requested":
                self._on_cancel_requested(decode_event(text))

    def on_gap(self) -> None:
        """Hear that the live channel may have missed something."""
        self._writer.listen()

    def _on_cancel_requested(self, event: Event) -> None:
        self._cancel = event.data
        self.stop(Stop.CANCELLED)

    def _interrupt(self, *, again: bool = False) -> None:
        # A thread hears it from its context; cancelling the task that waits for it would only lose its result. So does
        # a child process at first; after its grace it is killed, which is what cancelling does to it.
        by_cancel = self.processor.max_batch or self.processor.style in (Style.ASYNC, Style.ASYNC_GENERATOR)
        if self._function is not None and (by_cancel or (again and self.processor.style is Style.PROCESS)):
            self._function.cancel()

    # --- while it waits for its steps ---------------------------------------------------------------------------

    def step_aside(self) -> None:
        """Lend its place in the worker to others; nothing happens where they have it already."""
        if not self._aside:
            self._aside = True
            self._tools.places.step_aside(self.lease.kind)

    async def come_back(self) -> None:
        """Wait for a place. Once it is stopped it waits for none."""
        if self._aside:
            self._aside = False
            if self.is_stopping():
                self._tools.places.come_back_at_once(self.lease.kind)
            else:
                await self._tools.places.come_back(self.lease.kind)

    def leave_hand(self) -> None:
        """Tell who waits in this worker for a place under the kind's cap that it has left one."""
        self._tools.places.leave_hand(self.lease.kind)

    def in_line(self) -> contextlib.AbstractContextManager[asyncio.Event]:
        """In line for a place under the kind's cap; the event says that another attempt has left one."""
        return self._tools.places.in_line(self.lease.kind)

    def is_stopping(self) -> bool:
        """Whether it has only its ending left to say."""
        return self._stop is not None or self._returned

    def goes_on_elsewhere(self) -> bool:
        """Whether it stops so that another attempt goes on: its steps are that one's."""
        return self._stop in (Stop.WORKER_STOPPING, Stop.LOST)

    # --- begin, run, end ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the function and end the attempt. Cancelling it leaves the job to its lease's end."""
        name = f"{self.lease.kind} {self.lease.job}"
        self._function = function = asyncio.create_task(self._call_function(), name=name)
        writing = asyncio.create_task(self._writer.run(), name=f"{name} writer")
        joining = asyncio.create_task(self._join(), name=f"{name} joins")
        try:
            await self._watch(function, writing)
            ending = await self._end(function, writing)
            self.holds_lease = False
            await cancel_all(joining)
            self._unfollow()
            if ending is not None:
                await self._leave(ending)
            self.over.set()
            # It may still run; nothing of an attempt runs on in a place that is given to another one.
            while not function.done():
                self._interrupt(again=True)
                await asyncio.wait({function}, timeout=self.processor.cancel_grace_seconds + 1)
        finally:
            self._unfollow()
            await cancel_all(function, writing, joining)
            if self._aside:
                # What the function left behind may still want to come back.
                self._aside = False
                self._tools.places.come_back_at_once(self.lease.kind)
            self._context.kill_children()
            await self._context.workspace.remove()

    async def _watch(self, function: asyncio.Task[Result], writing: asyncio.Task[None]) -> None:
        """Wait until the function has ended, or has had all the time there is."""
        timer = asyncio.get_running_loop().call_later(self._run_timeout_seconds, self.stop, Stop.TIMED_OUT)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({function, writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if function.done():
                return
            if writing.done():
                # It returns before the function only because it can't write.
                self.stop(Stop.LOST)
            grace = self.processor.cancel_grace_seconds
            await asyncio.wait({function}, timeout=grace)
            if function.done():
                return
            self._insist(grace)
            if self._stop is Stop.CANCELLED:
                await asyncio.wait({function}, timeout=grace)
                self.holds_lease = function.done()
        finally:
            timer.cancel()
            await cancel_all(stopping)

    def _insist(self, grace: float) -> None:
        """Tell the function a second time, and its children for the last time."""
        killed = self._context.kill_children()
        message = f"The processor still runs {grace:g} s after it was told to stop"
        message += f"; {killed} of its child processes were killed." if killed else "."
        logger.warning("%s: %s", self, message)
        self._writer.log("warning", message)
        self._interrupt(again=True)

    async def _end(self, function: asyncio.Task[Result], writing: asyncio.Task[None]) -> Ending | None:
        """Write how the attempt ended; None if that isn't ours to say."""
        returned = function.done() and not function.cancelled() and function.exception() is None
        # A cancel that was told to this attempt, instead of ending the job at once, is asked of whoever uses the token.
        if self._handed_over and (returned or self._stop is Stop.CANCELLED):
            self._writer.close()
            return None
        if self._stop is Stop.CANCELLED and not self.holds_lease:
            message = "The processor ignores its cancel: its lease is given up, and the job ends when that is over."
            logger.error("%s: %s", self, message)
            self._writer.log("error", message)
            self._writer.close()
            return None
        ending = None
        if not writing.done():
            if self._stop is Stop.LOST:
                logger.warning("%s: stopped, nothing more is written: a renewal said so", self)
                return None
            ending = self._decide(function)
            self._write(ending)
        try:
            await writing
        except LeaseLost as error:
            logger.warning("%s: stopped, nothing more is written: %s", self, error.detail)
            return None
        except EventsLost as error:
            logger.error("%s: %s", self, error.detail)
            return await self._start_over()
        except Exception:
            # Nothing is known of what the store has: the lease runs out, and a look decides.
            logger.exception("%s: its events can't be written", self)
            return None
        return ending

    def _write(self, ending: Ending) -> None:
        if ending.delay_seconds is None:
            self._writer.end(ending.type, ending.data, ending.result_blob)
        else:
            self._writer.retry(ending.data["problem"], ending.delay_seconds, counts=ending.counts)

    async def _start_over(self) -> Ending | None:
        """Give the job back after Redis lost some of its events."""
        detail = "The job store lost events of this attempt that it had confirmed; the job is tried again."
        ending = released("events_lost", "Events were lost", detail)
        try:
            await self._writer.hand_back(ending.data["problem"])
        except (LeaseLost, EventsLost) as error:
            logger.warning("%s: it can't be handed back: %s", self, error.detail)
            return None
        return ending

    def _decide(self, function: asyncio.Task[Result]) -> Ending:
        """How the attempt ended, from why it was stopped and what the function did."""
        result, error = _outcome(function)
        self._report(error)
        partial = self._writer.has_outputs
        if self._stop is Stop.CANCELLED:
            return cancelled(self._cancel)
        if self._stop is Stop.TIMED_OUT:
            return timed_out(self._run_timeout_seconds, partial=partial)
        if result is not None:
            return Ending(EventType.SUCCEEDED, result.data, result.blob)
        if self._stop is Stop.WORKER_STOPPING and not isinstance(error, Rejected):
            return released(
                "worker_stopping",
                "The worker was stopped",
                "The worker that had the job was stopped; another takes it.",
            )
        assert error is not None
        return after_error(
            error,
            failures=self._record.failures,
            max_attempts=self._record.max_attempts,
            partial=partial,
        )

    def _report(self, error: BaseException | None) -> None:
        if error is None or (self._stop is not None and isinstance(error, asyncio.CancelledError)):
            return
        if isinstance(error, ProcessorError):
            logger.info("%s: %s: %s", self, error.code, error.detail)
        else:
            logger.error("%s failed", self, exc_info=error)

    @property
    def _run_timeout_seconds(self) -> float:
        return self._record.options.run_timeout_seconds or self.processor.document.run_timeout_seconds

    # --- the function -------------------------------------------------------------------------------------------

    async def _call_function(self) -> Result:
        with contained():
            try:
                return await self._call.run()
            finally:
                self._returned = True
                await self._steps.close()

    async def _hand_over(self, seconds: float) -> str:
        token = await self._tools.store.hand_over(self.lease, seconds, self._record.worker or "")
        if token is None:
            # Asked for its end before that was heard here: there is nothing to pass on.
            self._writer.listen()
            await self._stopping.wait()
            raise asyncio.CancelledError("the attempt is to stop")
        # From now on the lease is as long as the hand-over may take, and no renewal of ours stands for its adopter.
        self.holds_lease = False
        self._handed_over = True
        return token

    # --- its place in the store ---------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Note the attempt in its kind's slot, and hear of a cancel request at once."""
        await asyncio.sleep(_SETTLE_SECONDS)
        # Neither is needed for a promise: a look notes a begun attempt, a renewal brings the request.
        try:
            if not self._aside:
                with contextlib.suppress(Unavailable):
                    grace = self._record.options.grace_seconds
                    await self._tools.store.hold(self._claim, self.lease, grace_seconds=grace)
            with contextlib.suppress(Unavailable):
                self._following = True
                await self._tools.store.feed.follow(self.lease.job, self)
        except Exception:
            logger.exception("%s: joining the jobs in hand failed; going on", self)
        # What was asked before the channel was open.
        self._writer.listen()

    def _unfollow(self) -> None:
        if self._following:
            self._following = False
            self._tools.store.feed.unfollow(self.lease.job, self)

    async def _leave(self, ending: Ending) -> None:
        ran = asyncio.get_running_loop().time() - self._begun if ending.counts else 0
        # If it fails, the job's due entry is there still, and a look puts the job where it belongs.
        with contextlib.suppress(Unavailable):
            await self._tools.store.leave(
                self.lease, self._record, retry_after_seconds=ending.delay_seconds, ran_seconds=ran
            )
        self.leave_hand()


def _outcome(function: asyncio.Task[Result]) -> tuple[Result | None, BaseException | None]:
    """What the function returned or raised; neither if it still runs."""
    if not function.done():
        return None, None
    if function.cancelled():
        return None, asyncio.CancelledError()
    error = function.exception()
    return (None, error) if error is not None else (function.result(), None)
