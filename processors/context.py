"""What a processor sees of its job: the `Context` of an async function, the `SyncContext` of code in a thread.

All reports go through one `Writer`, which gathers, orders and appends them. When the job is to stop, an async function
gets `CancelledError` where it awaits; code in a thread gets it from the next report, or asks `cancelled`.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from pydantic_core import to_json

from gateway.event_text import decode_event, encode_event_tail
from gateway.protocol import MAX_EVENT_BYTES, EventType
from processors.children import Children
from processors.files import InputFile, SyncInputFile, Workspace
from processors.text import check_index, clean
from processors.thread import Portal, run_in_thread

if TYPE_CHECKING:
    from gateway.blobs import Blobs
    from gateway.store import Store
    from gateway.store.records import JobRecord, StoredFile
    from processors.writer import Writer

T = TypeVar("T")
LogLevel = Literal["debug", "info", "warning", "error"]

# What an event is besides its value: an output or a result of `max_inline_bytes` must still fit into one event.
_ENVELOPE_BYTES: Final = 1024
# Most of a log message that is kept: a stack trace fits, a dumped document doesn't.
MAX_LOG_CHARACTERS: Final = 16_384
# Reports that needn't wait let other attempts run at least so often, also from a function that awaits nothing else.
_TURN_SECONDS: Final = 0.005


class Stepping(Protocol):
    """What has a job's steps done; see `processors.steps`, which knows the context and not the other way round."""

    def plan(self, weights: Mapping[str, float]) -> None: ...

    async def run(self, kind: str, input_: Any, *, step: str, part: str, files: bool) -> Any: ...

    async def run_all(self, kind: str, inputs: Sequence[Any], *, step: str, limit: int, files: bool) -> list[Any]: ...


class _NotTaken(Exception):
    """What comes after the job's end is dropped: a batch goes on without it."""


class Context:
    """A job as an async processor sees it. Its methods belong to the event loop; `sync` is for threads.

    Every report may wait while too many earlier ones are under way, as when Redis is slow or away. Cancelling a
    report leaves it either queued whole or not at all.
    """

    def __init__(
        self,
        record: JobRecord,
        writer: Writer,
        *,
        store: Store,
        blobs: Blobs,
        max_inline_bytes: int,
        hand_over: Callable[[float], Awaitable[str]],
    ) -> None:
        self.job_id = record.id
        self.kind = record.kind
        self.attempt = record.attempt
        """1 for the first try at this job; `outputs` tells what earlier ones left."""
        self.tags = record.tags
        self.partial = False
        """Set it to True where the result lacks something, such as a page that can't be read; clients see it."""
        self.workspace = Workspace()
        self.files = tuple(InputFile(file, blobs, self.workspace) for file in record.files)
        self._writer = writer
        self._hand_over = hand_over
        self._store = store
        self._blobs = blobs
        self.inline_bytes = min(max_inline_bytes, MAX_EVENT_BYTES - _ENVELOPE_BYTES)
        """What is larger becomes a blob. The runtime's to read, as it is for results and the inputs of steps."""
        self._stopped = threading.Event()
        self._together: Sequence[Context] = (self,)
        self._children = Children()
        self._waiting_threads: set[asyncio.Task[Any]] = set()
        self.on_stop: Callable[[], object] | None = None
        """Called when the attempt is to stop. The runtime's to set, not the processor's."""
        self.steps: Stepping | None = None
        """What has this job's steps done, but in a batch. The runtime's to set, not the processor's."""
        self._current: float | None = None
        self._loop = asyncio.get_running_loop()
        self._turn = -1
        self._turn_ends = 0.0
        self.sync = SyncContext(self)
        """The same context for code in a thread, as for what `in_thread` runs."""

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is to stop: cancelled, timed out, or the worker is stopping. Readable from any thread."""
        return self._stopped.is_set()

    @property
    def must_stop(self) -> bool:
        """Whether the function is to stop: in a batch, when all of its jobs are."""
        return all(context.cancelled for context in self._together)

    def check_cancelled(self) -> None:
        """Raise `asyncio.CancelledError` if the function is to stop. Callable from any thread."""
        if self.must_stop:
            raise asyncio.CancelledError("the attempt is to stop")

    def share(self, together: Sequence[Context]) -> None:
        """Be one of a batch's jobs, which may end before the function does. The runtime's to call."""
        self._together = together
        self._writer.drops_late = True
        # A cancel of this job would break off a step, and with it the function, which is everybody's.
        self.steps = None

    def add_file(self, file: StoredFile) -> None:
        """Put a file behind those that the job came with. The runtime's to call, not the processor's."""
        added = InputFile(file, self._blobs, self.workspace)
        self.files = (*self.files, added)
        self.sync.files = (*self.sync.files, SyncInputFile(added, self.sync._portal))

    async def progress(
        self,
        current: float,
        total: float | None = None,
        *,
        unit: str | None = None,
        message: str | None = None,
        stage: str | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Say how far the work is. Call it as often as you like: at most ten a second are sent, the latest wins.

        `current` never falls within an attempt: a smaller one is sent as the largest so far.
        """
        self._writer.progress(
            self._progress(current, total, unit=unit, message=message, stage=stage, eta_seconds=eta_seconds)
        )
        await self._take_turns()

    async def output(
        self,
        index: str | int,
        value: Any = None,
        *,
        data: bytes | AsyncIterable[bytes] | None = None,
        content_type: str | None = None,
    ) -> None:
        """Publish a part of the result now; the same index again replaces it.

        `value` is anything that pydantic can write as JSON; `data` is bytes, such as an image, or a stream of them,
        which is never held whole. What is large, and all bytes, go to the blob store, and clients get a url. An index
        like `result.txt` is another form of the result.

        Args:
            index: 1 to 64 letters, digits, dots, underscores or dashes, the first a letter or digit; numbers are fine.
            value: The value; a string with another content type than JSON is stored as text.
            data: The bytes, instead of `value`; an error of a stream leaves nothing behind.
            content_type: `application/json` for a value and `application/octet-stream` for bytes, by default.
        """
        name = str(index)
        check_index(name)
        if data is not None and value is not None:
            raise ValueError("an output is either a value or data, not both")
        content_type = content_type or ("application/json" if data is None else "application/octet-stream")
        head = {"index": name, "content_type": content_type}
        if data is None:
            text = to_json(value, inf_nan_mode="null")
            if len(text) <= self.inline_bytes:
                # Encoded once: the value goes between the last two braces of a tail that lacks it.
                tail = encode_event_tail(EventType.OUTPUT, head)[:-2] + b',"value":' + text + b"}}"
                await self._writer.put(EventType.OUTPUT, tail, head, name)
                return
            data = value.encode() if isinstance(value, str) and content_type != "application/json" else text
        # The gateway finds the blob by the event's attempt and index; a client sees the url only.
        key = self._blobs.output_key(self.job_id, self.attempt, name)
        try:
            size, _ = await self._blobs.put(key, data, max_bytes=None, still_wanted=self._check_taken)
        except _NotTaken:
            return
        where = {"url": f"/v1/jobs/{self.job_id}/outputs/{name}", "size": size}
        await self._writer.put(EventType.OUTPUT, encode_event_tail(EventType.OUTPUT, head | where), head, name)

    async def delta(self, text: str, channel: str = "text") -> None:
        """Append text to a channel, as a model's tokens come. Gathered for at most 25 ms, so call it for each token."""
        await self._writer.delta(channel, text)
        await self._take_turns()

    async def log(self, message: str, level: LogLevel = "info") -> None:
        """Tell those who watch the job something, in one line; clients can read it, so no secrets."""
        if len(message) > MAX_LOG_CHARACTERS:
            message = message[:MAX_LOG_CHARACTERS] + "…"
        data = {"level": level, "message": clean(message)}
        await self._writer.put(EventType.LOG, encode_event_tail(EventType.LOG, data), data)

    async def event(self, type: str, data: dict[str, Any] | None = None) -> None:
        """Publish an event of your own; its type has a dot in it, such as `invoice.line`."""
        if "." not in type:
            raise ValueError(
                f"the event type {type!r} needs a dot, such as invoice.line: the plain words are Outlast's"
            )
        await self._writer.put(type, encode_event_tail(type, data), data or {})

    async def outputs(self) -> dict[str, dict[str, Any]]:
        """The outputs that the job has so far, by index: what earlier attempts left need not be done again.

        A value is each event's data: `content_type`, and `value`, or `url` and `size` (see `read_output`).
        """
        await self._writer.flush()
        events = [decode_event(text) for text in await self._store.outputs(self.job_id)]
        return {str(event.data["index"]): event.data for event in events}

    async def read_output(self, index: str | int) -> bytes:
        """One output as bytes: the JSON of its value, or the data that it was given. Raises `KeyError` without one."""
        await self._writer.flush()
        text = await self._store.output(self.job_id, str(index))
        if text is None:
            raise KeyError(f"the job has no output {index}")
        event = decode_event(text)
        if "url" not in event.data:
            return to_json(event.data.get("value"))
        job, name = self.job_id, str(index)
        if "source" in event.data:
            # A step's: its bytes are its own.
            _, _, _, job, _, name = event.data["source"].split("/", 5)
            text = await self._store.output(job, name)
            if text is None:
                raise KeyError(f"the output {index} was a step's, whose job has expired")
            event = decode_event(text)
        return await self._blobs.get(self._blobs.output_key(job, event.attempt, name))

    async def run(self, kind: str, input: Any = None, *, step: str | None = None, files: bool = False) -> Any:
        """Have another kind do a step of this job, as a job of its own, and return its result.

        Its events are relayed under the step's name. A retry, a takeover and a job that does a failed one again find
        what was done: the same step with the same input is not done twice. Meanwhile this attempt takes no place in
        its worker. Cancelling it cancels the step.

        Args:
            kind: The kind that does the step; its own attempts are its own affair.
            input: A dict or a pydantic model.
            step: The step's name, the kind's by default; two steps of one job need two names or two inputs.
            files: Whether the step gets the files that came with this job.

        Raises:
            StepFailed: The step failed, after all its attempts, or was cancelled. Let it through: the job fails with
                the step's own code, and names the step.
        """
        name = step or kind
        return await self._stepping().run(kind, input, step=name, part=name, files=files)

    async def run_all(
        self, kind: str, inputs: Sequence[Any], *, step: str | None = None, limit: int = 8, files: bool = False
    ) -> list[Any]:
        """The same step for each of several inputs, at most `limit` at once; the results come in the inputs' order.

        They are named `step.0`, `step.1`, ...; one that fails ends the others. See `run`.
        """
        steps = self._stepping()
        return await steps.run_all(kind, list(inputs), step=step or kind, limit=limit, files=files)

    async def run_for_thread(self, several: bool, *args: Any, **kwargs: Any) -> Any:
        """`run` or `run_all` for code that no cancel reaches: broken off when the attempt is to stop."""
        task = asyncio.current_task()
        assert task is not None
        self.check_cancelled()
        self._waiting_threads.add(task)
        try:
            return await (self.run_all if several else self.run)(*args, **kwargs)
        finally:
            self._waiting_threads.discard(task)

    def plan(self, **weights: float) -> None:
        """Say which steps there are and what part of the work each is, so that one progress bar tells of all."""
        self._stepping().plan(weights)

    def _stepping(self) -> Stepping:
        if self.steps is None:
            raise RuntimeError("this context has no steps: they belong to the attempt at one job, and to no batch")
        return self.steps

    async def hand_over(self, seconds: float = 300) -> str:
        """Let another process finish this attempt, and return the write token that it needs: pass it on and return.

        Whoever brings the token within `seconds` adopts the attempt, once; if nobody does, or the adopter dies, the
        job is tried again, as after any lost worker. Report before, not after. A function that raises afterwards, as
        where the other queue takes nothing, fails its attempt as usual.
        """
        await self._writer.flush()
        return await self._hand_over(seconds)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run heavy work in a thread and return its result; on the event loop it would hold up every other attempt.

        Cancelling waits for the function to return, so long work asks `ctx.cancelled` now and then. To report from
        the thread, use `ctx.sync`.
        """
        return await run_in_thread(function, *args, name=f"{self.kind} {self.job_id}")

    def process(self, *command: str, **options: Any) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """Run another program: `async with ctx.process("pdftoppm", path, stdout=PIPE) as process: ...`.

        It gets SIGTERM when the attempt is to stop, and SIGKILL at the end of the block or of the attempt; so does
        what it starts in turn. The options are those of `asyncio.create_subprocess_exec`.

        Raises:
            FileNotFoundError: There is no such program.
            ConfigurationError: The system has no process groups: it is Windows.
        """
        return self._children.start(*command, **options)

    def stop(self) -> None:
        """Make `cancelled` true. The runtime's to call, not the processor's."""
        self._stopped.set()
        self._children.terminate()
        for waiting in self._waiting_threads:
            waiting.cancel()
        if self.on_stop is not None:
            self.on_stop()

    def kill_children(self) -> int:
        """End the child processes that still run; returns how many. The runtime's to call, not the processor's."""
        return self._children.kill()

    def _progress(self, current: float, total: float | None, **rest: Any) -> dict[str, Any]:
        """The data of a progress event, with `current` kept from falling."""
        current = _number(current)
        self._current = current if self._current is None else max(self._current, current)
        # What is no JSON would be found only where it is sent, behind the function's back.
        said = {
            name: _number(value) if name == "eta_seconds" else clean(str(value))
            for name, value in rest.items()
            if value is not None
        }
        return {"current": self._current, "total": None if total is None else _number(total)} | said

    async def _check_taken(self) -> None:
        # The bytes would replace those of an output that the log tells of, and no event could tell of these.
        if not await self._writer.has_room():
            raise _NotTaken

    async def _take_turns(self) -> None:
        # Without this, a function that awaits nothing but reports would keep the loop, and its reports, to itself.
        turn, now = self._writer.beat.turn(), self._loop.time()
        if turn != self._turn:
            self._turn, self._turn_ends = turn, now + _TURN_SECONDS
        elif now >= self._turn_ends:
            await asyncio.sleep(0)


class SyncContext:
    """A job as code in a thread sees it: the names of `Context`, without `await`.

    Once the attempt is to stop, the next report raises `asyncio.CancelledError`, and those after it go through, so
    that a clean-up can still report. A function that reports nothing for long asks `cancelled` or `check_cancelled`.
    """

    def __init__(self, context: Context) -> None:
        self.job_id = context.job_id
        self.kind = context.kind
        self.attempt = context.attempt
        self.tags = context.tags
        self._context = context
        self._portal = Portal()
        self.files = tuple(SyncInputFile(file, self._portal) for file in context.files)
        self._told = False
        self._latest: dict[str, Any] | None = None
        self._lock = threading.Lock()

    @property
    def partial(self) -> bool:
        """Set it to True where the result lacks something, such as a page that can't be read; clients see it."""
        return self._context.partial

    @partial.setter
    def partial(self, value: bool) -> None:
        self._context.partial = value

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is to stop: cancelled, timed out, or the worker is stopping."""
        return self._context.cancelled

    def check_cancelled(self) -> None:
        """Raise `asyncio.CancelledError` if the function is to stop."""
        if self._context.must_stop:
            self._told = True
            raise asyncio.CancelledError("the attempt is to stop")

    def progress(
        self,
        current: float,
        total: float | None = None,
        *,
        unit: str | None = None,
        message: str | None = None,
        stage: str | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Say how far the work is; see `Context.progress`. Never waits, so it may stand in a tight loop."""
        self._tell_once()
        with self._lock:
            waking = self._latest is None
            self._latest = self._context._progress(
                current, total, unit=unit, message=message, stage=stage, eta_seconds=eta_seconds
            )
        if waking:
            self._portal.post(self._pass_progress)

    def output(
        self, index: str | int, value: Any = None, *, data: bytes | None = None, content_type: str | None = None
    ) -> None:
        """Publish a part of the result now; see `Context.output`."""
        self._call(self._context.output, index, value, data=data, content_type=content_type)

    def delta(self, text: str, channel: str = "text") -> None:
        """Append text to a channel; see `Context.delta`."""
        self._call(self._context.delta, text, channel)

    def log(self, message: str, level: LogLevel = "info") -> None:
        """Tell those who watch the job something; see `Context.log`."""
        self._call(self._context.log, message, level)

    def event(self, type: str, data: dict[str, Any] | None = None) -> None:
        """Publish an event of your own; see `Context.event`."""
        self._call(self._context.event, type, data)

    def outputs(self) -> dict[str, dict[str, Any]]:
        """The outputs that the job has so far; see `Context.outputs`."""
        return self._call(self._context.outputs)

    def read_output(self, index: str | int) -> bytes:
        """One output as bytes; see `Context.read_output`."""
        return self._call(self._context.read_output, index)

    def run(self, kind: str, input: Any = None, *, step: str | None = None, files: bool = False) -> Any:
        """Have another kind do a step of this job; see `Context.run`."""
        return self._run(False, kind, input, step=step, files=files)

    def run_all(
        self, kind: str, inputs: Sequence[Any], *, step: str | None = None, limit: int = 8, files: bool = False
    ) -> list[Any]:
        """The same step for each of several inputs; see `Context.run_all`."""
        result: list[Any] = self._run(True, kind, inputs, step=step, limit=limit, files=files)
        return result

    def plan(self, **weights: float) -> None:
        """Say what part of the work each step is; see `Context.plan`."""
        self._context.plan(**weights)

    def hand_over(self, seconds: float = 300) -> str:
        """Let another process finish this attempt; see `Context.hand_over`."""
        return self._call(self._context.hand_over, seconds)

    def process(self, *command: str, **options: Any) -> AbstractContextManager[subprocess.Popen[Any]]:
        """Run another program; see `Context.process`. The options are those of `subprocess.Popen`."""
        return self._context._children.start_sync(*command, **options)

    def _run(self, several: bool, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._call(self._context.run_for_thread, several, *args, **kwargs)
        except asyncio.CancelledError:
            self._told = True
            raise

    def _call(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        self._tell_once()
        return self._portal.call(function, *args, **kwargs)

    def _tell_once(self) -> None:
        if self._context.must_stop and not self._told:
            self.check_cancelled()

    def _pass_progress(self) -> None:
        with self._lock:
            data, self._latest = self._latest, None
        if data is not None:
            self._context._writer.progress(data)


def as_output(value: Any) -> dict[str, Any]:
    """What a generator yielded, as arguments of `output`."""
    return {"data": value} if isinstance(value, bytes) else {"value": value}


def _number(value: float) -> float:
    """A plain number: arrays' libraries have their own, which are no JSON."""
    return value if type(value) in (int, float) else float(value)
