"""Steps: jobs that a processor has done for its own job, whose events it relays, and which no retry pays for twice.

A step is a job of its own, a child, with its own attempts. Its id follows from the first job of the chain of retries,
the step's name and its input, so that a later attempt, or a later job that does a failed one again, finds what was
done. While a parent only waits for children it takes no place in its worker and none under its kind's cap.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic_core import from_json, to_json, to_jsonable_python

from gateway.errors import NotFound, TooMany, Unavailable
from gateway.event_text import decode_event, encode_event_tail
from gateway.protocol import START, Cursor, Event, EventType, State
from gateway.requests import JobOptions
from gateway.store import MAX_CHILDREN, JobRecord, Lease, NewJob, Store
from processors.backoff import Backoff
from processors.errors import Rejected, StepFailed

if TYPE_CHECKING:
    from gateway.blobs import Blobs
    from processors.context import Context
    from processors.writer import Writer

# A message on the live channel wakes; this finds what none told of.
_LOOK_AGAIN_SECONDS: Final = 5.0
# Less than any sensible grace: the parent must have time to say that it has stopped.
_CANCEL_WAIT_SECONDS: Final = 4.0
_MAX_INDEX: Final = 64
T = TypeVar("T")


class Steps:
    """The steps of one attempt. All of it belongs to the event loop."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        lease: Lease,
        record: JobRecord,
        writer: Writer,
        *,
        waiting: Callable[[], AbstractAsyncContextManager[None]],
        goes_on_elsewhere: Callable[[], bool],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._lease = lease
        self._record = record
        self._writer = writer
        self._waiting = waiting
        self._goes_on_elsewhere = goes_on_elsewhere
        self._children = set(record.children)
        self._under_way = 0
        self._changing = asyncio.Lock()
        self._parked: AbstractAsyncContextManager[None] | None = None
        self._weights: dict[str, float] = {}
        self._parts: dict[str, float] = {}
        self._shares: dict[str, tuple[str, float]] = {}

    def plan(self, weights: Mapping[str, float]) -> None:
        """Say what part of the work each step is, so that one progress bar can tell."""
        if not weights or any(weight <= 0 for weight in weights.values()):
            raise ValueError("a plan names steps, each with a weight above 0")
        self._weights = dict(weights)

    async def run(
        self, context: Context, kind: str, input_: Any, *, step: str, part: str, files: bool, share: float = 1.0
    ) -> Any:
        """Have a step done and return its result. `part` names it in the plan, `share` is its share of that part."""
        plain = to_jsonable_python(input_ if input_ is not None else {})
        if not isinstance(plain, dict):
            raise TypeError(f"the input of the step {step} is a {type(plain).__name__}: give a dict or a model")
        async with self._waited_for(kind, step, plain, files=files) as child:
            record = await self._follow(child, _Relay(self, context, step, part, share))
        if record.state is not State.SUCCEEDED:
            raise _failure(step, record)
        self._advance(context, part, step, 1.0, share)
        if record.result_blob is not None:
            return from_json(await self._blobs.get(record.result_blob))
        return record.end_data().get("result")

    async def run_all(
        self, context: Context, kind: str, inputs: Sequence[Any], *, step: str, limit: int, files: bool
    ) -> list[Any]:
        """The same step for each input, some at once; results in the inputs' order. One that fails ends the others."""
        if limit < 1:
            raise ValueError(f"limit is {limit}; it is at least 1")
        room = asyncio.Semaphore(limit)

        async def one(number: int, input_: Any) -> Any:
            async with room:
                share = 1 / len(inputs)
                return await self.run(
                    context, kind, input_, step=f"{step}.{number}", part=step, files=files, share=share
                )

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, input_)) for number, input_ in enumerate(inputs)]
        except* StepFailed as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    def output_url(self, index: str) -> str:
        """Where a client finds an output of this job."""
        return f"/v1/jobs/{self._record.id}/outputs/{index}"

    # --- the child ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _waited_for(self, kind: str, step: str, input_: dict[str, Any], *, files: bool) -> AsyncIterator[str]:
        """The step's child, submitted or found; cancelled if the block is broken off by anything but a hand-back."""
        child, new = await self._find(kind, step, input_, files=files)
        # Noted before it is made: an end of the parent that comes in between finds it, or finds none.
        await self._park(child)
        try:
            if new is not None:
                await _patiently(lambda: self._store.submit(child, new, keyed=True))
            yield child
        except asyncio.CancelledError as error:
            if not self._goes_on_elsewhere():
                await self._cancel(child)
            await self._unpark(error)
            raise
        except BaseException as error:
            await self._unpark(error)
            raise
        else:
            await self._unpark()

    async def _find(self, kind: str, step: str, input_: dict[str, Any], *, files: bool) -> tuple[str, NewJob | None]:
        """The id of the step's child, and the job to submit if there is none yet."""
        kinds = await _patiently(self._store.kinds)
        document = kinds.get(kind)
        if document is None:
            detail = f"The step {step} needs the kind {kind}, which no worker has offered; start one."
            raise Rejected(detail, "unknown_kind", step=step)
        taken = self._record.files if files else ()
        asked = to_json([kind, input_, [(file.name, file.content_type, file.size) for file in taken]])
        fingerprint = hashlib.sha256(asked).hexdigest()
        root = self._record.root or self._record.id
        options = JobOptions(priority=self._record.priority, retention_seconds=self._record.options.retention_seconds)
        parent, owner = self._record.id, self._record.owner
        new = NewJob(document, owner, input_, options, fingerprint, taken, parent=parent, root=root)
        for turn in count():
            child = await self._store.child_id(root, step, fingerprint, turn)
            there = await self._read(child)
            earlier = there is not None and there.parent != parent
            # One that failed for an earlier job of the chain is begun anew: this job was made to try again.
            if there is None or not (earlier and there.terminal and there.state is not State.SUCCEEDED):
                break
        self._children.add(child)
        if len(self._children) > MAX_CHILDREN:
            raise Rejected(f"A job has at most {MAX_CHILDREN} steps.", "too_many_steps", step=step)
        return child, new if there is None else None

    async def _read(self, child: str) -> JobRecord | None:
        return (await _patiently(lambda: self._store.read_jobs([child])))[0]

    async def _cancel(self, child: str) -> None:
        """Cancel a child and give it a little time to stop: the parent's end comes after it, if it can."""
        with suppress(Unavailable, NotFound, TimeoutError):
            await self._store.cancel(child, "outlast", f"its parent {self._record.id} was stopped")
            async with asyncio.timeout(_CANCEL_WAIT_SECONDS):
                await self._follow(child, None)

    # --- its place ----------------------------------------------------------------------------------------------

    async def _park(self, child: str) -> None:
        async with self._changing:
            self._under_way += 1
            if self._parked is None:
                self._parked = self._waiting()
                await self._parked.__aenter__()
            await _patiently(lambda: self._store.wait_for_child(self._lease, self._record, child))

    async def _unpark(self, error: BaseException | None = None) -> None:
        async with self._changing:
            self._under_way -= 1
            if self._under_way or self._parked is None:
                return
            parked, self._parked = self._parked, None
            if error is not None:
                # It has only its ending left to say, for which it waits for no place.
                with suppress(BaseException):
                    await parked.__aexit__(type(error), error, error.__traceback__)
                return
            await parked.__aexit__(None, None, None)
            await _patiently(lambda: self._store.go_on(self._lease))

    # --- what the client sees -----------------------------------------------------------------------------------

    async def _follow(self, child: str, relay: _Relay | None) -> JobRecord:
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
                    # Only a very long log is trimmed; what is missing has been replaced or is in the child's outputs.
                    cursor = page.head
                    continue
                if page.terminal and cursor.number >= page.head.number:
                    record = await self._read(child)
                    if record is None:
                        raise Rejected("The step's job has expired.", "expired", job=child)
                    return record
                if cursor.number >= page.head.number:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                            await ear.heard.wait()
        finally:
            self._store.feed.unfollow(child, ear)

    def _advance(self, context: Context, part: str, step: str, fraction: float, share: float, **said: Any) -> None:
        """Note how far a step is, and report how far they all are."""
        self._parts[step] = max(self._parts.get(step, 0.0), fraction)
        self._shares[step] = (part, share)
        total = sum(self._weights.values()) if self._weights else None
        # A step that a plan leaves out is no part of what the bar shows.
        alone = 0.0 if self._weights else 1.0
        current = sum(
            self._weights.get(of, alone) * share * self._parts[name] for name, (of, share) in self._shares.items()
        )
        unit = "steps" if not self._weights else "%"
        if total is not None:
            current, total = 100 * current / total, 100.0
        data = context._progress(round(current, 3), total, unit=unit, stage=part, **said)
        self._writer.progress(data)


class _Ear:
    """Hears that a child's log has grown."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def on_message(self, payload: bytes) -> None:
        self.heard.set()

    def on_gap(self) -> None:
        self.heard.set()


class _Relay:
    """Turns a child's events into its parent's, under the step's name."""

    def __init__(self, steps: Steps, context: Context, step: str, part: str, share: float) -> None:
        self._steps = steps
        self._context = context
        self._step = step
        self._part = part
        self._share = share

    async def event(self, event: Event) -> None:
        """Pass one event on."""
        data = event.data
        match event.type:
            case EventType.PROGRESS:
                total, current = data.get("total"), data.get("current") or 0
                fraction = min(1.0, current / total) if total else 0.0
                self._steps._advance(
                    self._context, self._part, self._step, fraction, self._share, message=data.get("message")
                )
            case EventType.DELTA:
                channel = data.get("channel", "text")
                await self._context.delta(str(data.get("text", "")), f"{self._step}.{channel}"[:64])
            case EventType.OUTPUT:
                await self._output(data)
            case EventType.LOG:
                await self._context.log(f"{self._step}: {data.get('message', '')}", data.get("level", "info"))
            case EventType.RETRYING:
                detail = (data.get("problem") or {}).get("detail", "")
                await self._context.log(f"{self._step} is tried again: {detail}", "warning")
            case EventType.STARTED:
                self._steps._advance(self._context, self._part, self._step, 0.0, self._share)
            case type_ if "." in type_:
                await self._context.event(type_, data | {"step": self._step})

    async def _output(self, data: dict[str, Any]) -> None:
        index = f"{self._step}.{data.get('index')}"[:_MAX_INDEX]
        relayed = data | {"index": index, "step": self._step}
        if "url" in data:
            # The bytes are not copied: they stay the child's, which is kept as long.
            relayed |= {"url": self._steps.output_url(index), "source": data.get("source", data["url"])}
        await self._steps._writer.put(EventType.OUTPUT, encode_event_tail(EventType.OUTPUT, relayed), relayed, index)


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
