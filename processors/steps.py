"""Steps: jobs that a processor has done for its own job, and which no retry pays for twice.

A step is a job of its own, a child, with its own attempts. Its id follows from the first job of the chain of retries,
the step's name and its input, so that a later attempt, or a later job that does a failed one again, finds what was
done. While a parent only waits for children it takes no place in its worker and none under its kind's cap.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from pydantic_core import from_json, to_json, to_jsonable_python

from gateway.errors import Gone, LeaseLost, NotFound, TooMany, Unavailable
from gateway.event_text import decode_event
from gateway.protocol import START, Cursor, State
from gateway.requests import MAX_RETENTION_SECONDS, JobOptions
from gateway.store import MAX_CHILDREN, JobRecord, Lease, NewJob, Store
from processors.backoff import Backoff
from processors.errors import ProcessorError, Rejected, StepFailed
from processors.relay import Relay
from processors.tasks import first_of
from processors.text import check_step_name

if TYPE_CHECKING:
    from gateway.blobs import Blobs
    from processors.context import Context
    from processors.writer import Writer

logger = logging.getLogger(__name__)

# Who stops a step when its parent's attempt breaks off.
_OURSELVES: Final = "outlast"
# A message on the live channel wakes; this finds what none told of.
_LOOK_AGAIN_SECONDS: Final = 5.0
# Less than any sensible grace: the parent must have time to say that it has stopped.
_CANCEL_WAIT_SECONDS: Final = 4.0
# What an attempt that ends spends on being in hand again: its ending waits for that, and Redis may be away.
_GO_ON_SECONDS: Final = 1.0
# While its kind's cap leaves an attempt no place: who ends in another worker rings for new jobs only, which are held
# back meanwhile.
_ASK_FIRST_SECONDS: Final = 0.05
_ASK_AGAIN_SECONDS: Final = 0.5
T = TypeVar("T")


class Aside(Protocol):
    """An attempt's place in its worker, which others may have while it waits for steps."""

    def step_aside(self) -> None:
        """Let others have it; nothing happens where they have it already."""

    async def come_back(self) -> None:
        """Wait until it is free again; once the attempt is stopped it waits for nothing."""

    def leave_hand(self) -> None:
        """Tell who waits in its worker for a place under its kind's cap that there is one."""

    def in_line(self) -> AbstractContextManager[asyncio.Event]:
        """In line for such a place; the event says that there may be one."""

    def is_stopping(self) -> bool:
        """Whether the attempt has only its ending left to say."""

    def goes_on_elsewhere(self) -> bool:
        """Whether the attempt stops so that another one goes on: the steps are that one's."""


class Steps:
    """The steps of one attempt. All of it belongs to the event loop."""

    def __init__(
        self,
        context: Context,
        writer: Writer,
        store: Store,
        blobs: Blobs,
        *,
        lease: Lease,
        record: JobRecord,
        aside: Aside,
    ) -> None:
        self._context = context
        self._writer = writer
        self._store = store
        self._blobs = blobs
        self._lease = lease
        self._record = record
        self._aside = aside
        self._children = set(record.children)
        self._under_way = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changing = asyncio.Lock()
        self._told: set[str] = set()
        self._weights: dict[str, float] = {}
        self._parts: dict[str, dict[str, float]] = {}

    def plan(self, weights: Mapping[str, float]) -> None:
        """Say what part of the work each step is, so that one progress bar can tell."""
        if not weights or any(weight <= 0 for weight in weights.values()):
            raise ValueError("a plan names steps, each with a weight above 0")
        self._weights = dict(weights)

    async def run(self, kind: str, input_: Any, *, step: str, part: str, files: bool, share: float = 1.0) -> Any:
        """Have a step done and return its result. `part` names it in the plan, `share` is its share of that part."""
        check_step_name(step)
        new = await self._new_job(kind, input_, step, files=files)
        record = await self._do(new, step, part, share)
        if record.state is not State.SUCCEEDED:
            raise _failure(step, record)
        self._advance(part, step, 1.0, share=share)
        end = record.end_data()
        # What a step's result lacks, its parent's lacks as well; who knows better says so afterwards.
        self._context.partial = self._context.partial or bool(end.get("partial"))
        blob = record.result_blob
        return end.get("result") if blob is None else from_json(await _patiently(lambda: self._blobs.get(blob)))

    async def run_all(self, kind: str, inputs: Sequence[Any], *, step: str, limit: int, files: bool) -> list[Any]:
        """The same step for each input, some at once; results in the inputs' order. One that fails ends the others."""
        if limit < 1:
            raise ValueError(f"limit is {limit}; it is at least 1")
        if len(inputs) > MAX_CHILDREN:
            # Before the first of them is paid for.
            raise _too_many(step)
        room = asyncio.Semaphore(limit)
        if not inputs:
            self._advance(step, step, 1.0, share=1.0)

        async def one(number: int, input_: Any) -> Any:
            async with room:
                share = 1 / len(inputs)
                return await self.run(kind, input_, step=f"{step}.{number}", part=step, files=files, share=share)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, input_)) for number, input_ in enumerate(inputs)]
        except BaseExceptionGroup as failed:
            # One that says what it means for the job goes before one that broke.
            raise min(failed.exceptions, key=lambda error: not isinstance(error, ProcessorError)) from None
        return [task.result() for task in tasks]

    async def close(self) -> None:
        """End the steps that the function has left behind, as `asyncio.gather` does when one of its own fails."""
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_CANCEL_WAIT_SECONDS + 1)

    # --- the child ----------------------------------------------------------------------------------------------

    async def _new_job(self, kind: str, input_: Any, step: str, *, files: bool) -> NewJob:
        """The job that does a step. Raises `Rejected` where there can be none."""
        try:
            plain = to_jsonable_python(input_ if input_ is not None else {})
        except ValueError:
            # What the error says may hold parts of the input, and is no client's to read.
            logger.exception("the input of the step %s can't be written as JSON", step)
            detail = f"What the step {step} was to be given can't be written as JSON; the worker's log says why."
            raise Rejected(detail, "step_input", step=step) from None
        if not isinstance(plain, dict):
            detail = f"The step {step} takes an object, and what it was to be given is of type {type(plain).__name__}."
            raise Rejected(detail, "step_input", step=step)
        kinds = await _patiently(self._store.kinds)
        document = kinds.get(kind)
        if document is None:
            detail = f"The step {step} needs the kind {kind}, which no worker has offered; start one."
            raise Rejected(detail, "unknown_kind", step=step)
        taken = tuple(file.stored for file in self._context.files) if files else ()
        asked = to_json([kind, plain, [(file.name, file.content_type, file.size) for file in taken]])
        root = self._record.root or self._record.id
        # For as long as its parent may be open; the parent's last look makes its own time of it.
        options = JobOptions(priority=self._record.priority, retention_seconds=MAX_RETENTION_SECONDS)
        fingerprint = hashlib.sha256(asked).hexdigest()
        owner, parent = self._record.owner, self._record.id
        return NewJob(document, owner, plain, options, fingerprint, taken, parent=parent, root=root)

    async def _do(self, new: NewJob, step: str, part: str, share: float) -> JobRecord:
        """Have a step's job done, and return its record at its end."""
        turn = 0
        while True:
            child, there, turn = await self._find(new, step, turn)
            # What it says is told once in an attempt, however often the step is asked for.
            advance = partial(self._advance, part, step, share=share)
            relay = None if child in self._told else Relay(self._context, self._writer, step, advance)
            self._told.add(child)
            try:
                async with self._waited_for(child, None if there else new):
                    record = await self._follow(child, relay)
                if self._aside.is_stopping() or not _was_broken_off(record):
                    return record
            except NotFound:
                # Redis lost it, or somebody erased it and its tombstone is over: it is made once more.
                self._told.discard(child)
            except Gone:
                # Somebody erased it, and its id is used up.
                turn += 1

    async def _find(self, new: NewJob, step: str, turn: int) -> tuple[str, bool, int]:
        """The id of the step's child, whether it is there, and how often the step was begun anew before."""
        while True:
            child = await self._store.child_id(new.root or "", step, new.fingerprint, turn)
            there = (await _patiently(partial(self._store.read_jobs, [child])))[0]
            # Of an earlier job of the chain only what is done counts: that job has ended, and what it began ends too.
            if there is None or (there.parent == new.parent and not _was_broken_off(there)):
                break
            if there.state is State.SUCCEEDED:
                await _patiently(partial(self._store.use_child, there, self._record.id))
                break
            turn += 1
        if len(self._children | {child}) > MAX_CHILDREN:
            raise _too_many(step)
        self._children.add(child)
        return child, there is not None, turn

    @asynccontextmanager
    async def _waited_for(self, child: str, new: NewJob | None) -> AsyncIterator[None]:
        """Waiting for a step's child, which is submitted if there is none; broken off by a stop, it is cancelled."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._under_way += 1
        try:
            # Noted before it is made: an end of the parent that comes in between finds it, or finds none.
            await self._park(child)
            if new is not None:
                await self._submit(child, new)
            yield
        except asyncio.CancelledError:
            if not self._aside.goes_on_elsewhere():
                await self._cancel(child)
            raise
        finally:
            self._under_way -= 1
            try:
                await self._unpark()
            finally:
                self._tasks.discard(task)

    async def _submit(self, child: str, new: NewJob) -> None:
        text = to_json(new.input)
        if len(text) > self._context.inline_bytes:
            # The result of the step before it, for one, which has no bound; a record is read again and again.
            key = f"jobs/{child}/input"
            await _patiently(lambda: self._blobs.put(key, text, max_bytes=None))
            new = replace(new, input={}, input_blob=key)
        await _patiently(lambda: self._store.submit(child, new, keyed=True))

    async def _cancel(self, child: str) -> None:
        """Cancel a child and give it a little time to stop: the parent's end comes after it, if it can."""
        with suppress(LeaseLost, Unavailable, NotFound, Gone, TimeoutError):
            # Who has lost the job without having heard of it leaves its steps to the attempt that has it.
            await self._store.wait_for_child(self._lease, self._record, child)
            await self._store.cancel(child, _OURSELVES, f"its parent {self._record.id} was stopped")
            async with asyncio.timeout(_CANCEL_WAIT_SECONDS):
                await self._follow(child, None)

    # --- its place ----------------------------------------------------------------------------------------------

    async def _park(self, child: str) -> None:
        async with self._changing:
            self._aside.step_aside()
            await _patiently(lambda: self._store.wait_for_child(self._lease, self._record, child))
            self._aside.leave_hand()

    async def _unpark(self) -> None:
        async with self._changing:
            if self._under_way:
                return
            # Each of the two places goes to who comes back before anything new, and nobody who has the second waits for
            # the first: so nobody waits for ever.
            try:
                await self._until_in_hand()
            finally:
                if not self._under_way:
                    await self._aside.come_back()

    async def _until_in_hand(self) -> None:
        """Wait for a place under the kind's cap; no longer once the attempt is stopped, or its next step has begun."""
        backoff = Backoff(_ASK_FIRST_SECONDS, _ASK_AGAIN_SECONDS)
        try:
            with self._aside.in_line() as left:
                while not self._aside.is_stopping():
                    left.clear()
                    if await _patiently(lambda: self._store.go_on(self._lease)):
                        return
                    await first_of(left.wait(), timeout_seconds=backoff.next())
                    if self._under_way:
                        return
        except asyncio.CancelledError:
            if not self._under_way:
                await self._go_on_at_once()
            raise
        await self._go_on_at_once()

    async def _go_on_at_once(self) -> None:
        """Be in hand whatever the cap says, to be handed back or ended without a look; if not, a look does that."""
        with suppress(LeaseLost, Unavailable, TimeoutError):
            async with asyncio.timeout(_GO_ON_SECONDS):
                await self._store.go_on(self._lease, at_once=True)

    # --- what the client sees -----------------------------------------------------------------------------------

    async def _follow(self, child: str, relay: Relay | None) -> JobRecord:
        """Relay a child's events until its end; returns its record."""
        ear = _Ear()
        cursor: Cursor = START
        try:
            while True:
                ear.heard.clear()
                try:
                    await self._store.feed.follow(child, ear)
                    page = await self._store.events(child, cursor)
                except Unavailable:
                    await asyncio.sleep(0.5)
                    continue
                for entry in page.entries:
                    cursor = entry.cursor
                    if relay is not None:
                        await relay.event(decode_event(entry.text))
                if page.broken:
                    # Only a very long log is trimmed: its fold has the text, and its newest outputs are kept.
                    from_start = cursor == START
                    cursor = page.head
                    if relay is not None and from_start:
                        cursor = await self._relay_fold(child, relay) or cursor
                    continue
                if page.terminal and cursor.number >= page.head.number:
                    return await _patiently(lambda: self._store.job(child))
                if cursor.number >= page.head.number:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                            await ear.heard.wait()
        finally:
            self._store.feed.unfollow(child, ear)

    async def _relay_fold(self, child: str, relay: Relay) -> Cursor | None:
        """Relay what the trimmed part of a child's log amounts to; returns where its log goes on."""
        stored = await _patiently(lambda: self._store.fold(child))
        if stored is None:
            return None
        cursor, text = stored
        for channel, said in from_json(text)["text"].items():
            await relay.text(channel, said)
        for output in await _patiently(lambda: self._store.outputs(child)):
            await relay.event(decode_event(output))
        return cursor

    def _advance(self, part: str, step: str, fraction: float, *, share: float, **said: Any) -> None:
        """Note how far a step is, and report how far they all are."""
        done = self._parts.setdefault(part, {})
        done[step] = max(done.get(step, 0.0), fraction * share)
        # A step that a plan leaves out is no part of what the bar shows.
        alone = 0.0 if self._weights else 1.0
        # Several fan-outs of one name are one part, of which there is no more than the whole.
        current = sum(self._weights.get(of, alone) * min(1.0, sum(all_.values())) for of, all_ in self._parts.items())
        total = None
        if self._weights:
            current, total = 100 * current / sum(self._weights.values()), 100.0
        unit = "steps" if total is None else "%"
        self._writer.progress(self._context._progress(round(current, 3), total, unit=unit, stage=part, **said))


class _Ear:
    """Hears that a child's log has grown."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def on_message(self, payload: bytes) -> None:
        self.heard.set()

    def on_gap(self) -> None:
        self.heard.set()


def _was_broken_off(record: JobRecord) -> bool:
    """Whether a step was stopped by an attempt that broke off, which says nothing about the step: it is begun anew."""
    return record.cancel_by == _OURSELVES and record.state not in (State.SUCCEEDED, State.FAILED)


def _too_many(step: str) -> Rejected:
    return Rejected(f"A job has at most {MAX_CHILDREN} steps.", "too_many_steps", step=step)


def _failure(step: str, record: JobRecord) -> StepFailed:
    end = record.end_data()
    cancelled = {"code": "step_cancelled", "detail": f"It was cancelled: {end.get('reason')}."}
    return StepFailed(step, record.id, end.get("problem") or cancelled)


async def _patiently(step: Callable[[], Awaitable[T]]) -> T:
    """Do something with the store until it is done; each of these steps is safe to repeat.

    The store may be away, the kind's queue full, or the owner's share of it used up: the parent waits with all others.
    """
    backoff = Backoff(0.05, 1.0)
    while True:
        try:
            return await step()
        except (Unavailable, TooMany):
            await asyncio.sleep(backoff.next())
