"""Running a plain function in a child process: for what would hold the interpreter, leak, crash, or ignore its cancel.

A child does one job after another, so that what `setup` loads is loaded once in each; it is ended with the attempt that
is cancelled or runs out of time, since that is the one way to stop any code. `processors.child` is what runs in it.

Each child leads a process group, which ends with it: killed here, dead by itself, or with this worker, however that
ends (`processors.lifeline`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from processors.channel import DEAF_EXIT, Channel
from processors.context import Context
from processors.errors import ProcessorError
from processors.lifeline import Lifeline, need_process_groups
from processors.processor import Processor
from processors.tasks import cancel_all

# A child that loads a large model takes long; one that hangs in it must show all the same.
_START_SECONDS: Final = 600.0
# What a child that died has sent is read within these; what it left behind may hold its end of the channel open.
_LAST_WORDS_SECONDS: Final = 0.5
# A child whose channel is closed has ended, but for the asking, or won't.
_DEATH_SECONDS: Final = 1.0
# Where Linux counts the processes that it has ended for want of memory, the machine's or a container's.
_COUNTS: Final = Path("/proc/vmstat")
# After these nothing is known of the state that it is in.
_ENDS_THE_CHILD: Final = frozenset({"process_died", "out_of_memory"})


class ChildFailed(RuntimeError):
    """What the function raised in its child: the text of the traceback, for the worker's log."""


class _Stopped(asyncio.CancelledError):
    """The function has stopped as it was told to."""


class Processes:
    """The child processes of one worker: idle ones by kind, each kept for the next job."""

    def __init__(self) -> None:
        self._idle: defaultdict[str, list[_Child]] = defaultdict(list)
        self._running: set[_Child] = set()

    async def warm(self, processor: Processor) -> None:
        """Start a child and set it up, so that the first job needn't wait, and a `setup` that fails shows at once."""
        self._idle[processor.kind].append(await self._start(processor))

    async def run(self, processor: Processor, context: Context, arguments: tuple[Any, ...]) -> Any:
        """Run the function in a child and return its result. Cancelling it kills the child."""
        idle = self._idle[processor.kind]
        # One that was killed while nobody needed it is no job's failure.
        idle[:] = [child for child in idle if child.alive]
        child = idle.pop() if idle else await self._start(processor)
        self._running.add(child)
        kept = False
        try:
            result = await child.run(context, arguments)
            kept = True
            return result
        except ProcessorError as error:
            kept = error.code not in _ENDS_THE_CHILD
            raise
        except (ChildFailed, _Stopped):
            # It waits for its next job, with all that it has loaded.
            kept = True
            raise
        finally:
            self._running.discard(child)
            if kept:
                idle.append(child)
            else:
                await child.kill()

    async def close(self) -> None:
        """End all children."""
        children = [*self._running, *(child for idle in self._idle.values() for child in idle)]
        self._idle.clear()
        await asyncio.gather(*(child.kill() for child in children))

    async def _start(self, processor: Processor) -> _Child:
        child = await _Child.start(processor)
        self._running.add(child)
        try:
            async with asyncio.timeout(_START_SECONDS):
                if not await child.is_ready():
                    raise ChildFailed(f"The child process of {processor} ended before it was set up; see above.")
            return child
        except BaseException:
            await child.kill()
            raise
        finally:
            self._running.discard(child)


class _Child:
    """One child process, the channel to it and its lifeline."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: Channel, lifeline: Lifeline, processor: Processor
    ) -> None:
        self._process = process
        self._channel = channel
        self._lifeline = lifeline
        self._processor = processor
        self._answers: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._group_ended = False
        self._ended_before = 0
        self._burying = asyncio.create_task(self._bury(), name=f"child {process.pid} of {processor.kind}")

    @classmethod
    async def start(cls, processor: Processor) -> _Child:
        """Start a child; it isn't set up yet. Raises `ConfigurationError` on a system without process groups."""
        need_process_groups(f"{processor}, which runs in a process,")
        ours, theirs = socket.socketpair()
        with theirs:
            # First: from the child's start to its owner there is nothing to wait for, and so nothing to break off.
            channel = await Channel.over(ours)
            lifeline = Lifeline()
            about = (str(theirs.fileno()), processor.module, processor.kind, str(processor.memory_bytes))
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "processors.child", *about),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), lifeline.inherited),
                    process_group=0,
                )
            except BaseException:
                channel.close()
                lifeline.close()
                raise
        lifeline.tie(process.pid)
        return cls(process, channel, lifeline, processor)

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as is known."""
        return self._process.returncode is None

    async def is_ready(self) -> bool:
        """Wait until it is set up; False if it ended instead."""
        return await self._channel.receive() == ("ready",)

    async def run(self, context: Context, arguments: tuple[Any, ...]) -> Any:
        """Have it do a job."""
        about = {name: getattr(context, name) for name in ("job_id", "kind", "attempt", "tags", "partial")}
        files = [(file.name, file.content_type, file.size) for file in context.files]
        context.on_stop = self._tell_to_stop
        self._ended_before = _ended_for_memory()
        try:
            try:
                await self._send("run", about | {"files": files}, arguments)
            except ConnectionError:
                # It died a moment ago, while nobody needed it.
                raise await self._death() from None
            if context.cancelled:
                # Before it could hear of it.
                self._tell_to_stop()
            return await self._follow(context)
        finally:
            # What comes late belongs to this job; its child may have the next one by then.
            context.on_stop = None
            for task in self._answers:
                task.cancel()

    async def _follow(self, context: Context) -> Any:
        """Do what the function asks for, until it has ended."""
        while True:
            match await self._channel.receive():
                case None:
                    raise await self._death()
                case ("call", number, name, args, kwargs):
                    self._own(self._call(context, number, name, args, kwargs))
                case ("progress", data):
                    await context.progress(**data)
                case ("plan", weights):
                    context.plan(**weights)
                case ("partial", value):
                    context.partial = value
                case ("done", result):
                    return result
                case ("failed", ProcessorError() as error):
                    raise error
                case ("cancelled",):
                    raise _Stopped
                case ("out_of_memory",):
                    raise self._out_of_memory()
                case ("broke", trace):
                    raise ChildFailed(trace)
                case other:
                    raise RuntimeError(f"what its process sent is no message: {other!r:.200}")

    def _tell_to_stop(self) -> None:
        self._own(self._pass_on_stop())

    async def _pass_on_stop(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._send("stop")

    def _own(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _call(self, context: Context, number: int, name: str, args: Any, kwargs: Any) -> None:
        """Do what the function called for, and answer it."""
        answer: tuple[Any, ...]
        try:
            if name == "read_file":
                value: Any = await context.files[args[0]].read()
            elif name == "file_path":
                value = await context.files[args[0]].path()
            else:
                value = await getattr(context, name)(*args, **kwargs)
            answer = "return", number, value
        except asyncio.CancelledError as error:
            if context.on_stop is None:
                # The function is left; its child may have another job by now.
                raise
            # A step is broken off when the attempt is to stop.
            answer = "raise", number, error
        except Exception as error:  # noqa: BLE001 - raised in the child, where it was asked for
            answer = "raise", number, _travelling(error)
        with contextlib.suppress(ConnectionError):
            try:
                await self._send(*answer)
            except ValueError as error:
                # Too large for a message: without any answer the function would wait for ever.
                await self._send("raise", number, error)

    async def _send(self, *message: Any) -> None:
        async with self._sending:
            await self._channel.send(*message)

    async def _death(self) -> ProcessorError:
        """Why the channel is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_SECONDS):
                await self._process.wait()
        code = self._process.returncode
        if code is None:
            return ProcessorError("process_died", "The process that did the work let go of its worker.")
        if code == -signal.SIGKILL and _ended_for_memory() > self._ended_before:
            detail = "The system ended the process that did the work, since it had no memory left to give."
            return ProcessorError("out_of_memory", detail)
        if code == DEAF_EXIT:
            return self._out_of_memory()
        how = f"by signal {_name(-code)}" if code < 0 else f"with exit code {code}"
        return ProcessorError("process_died", f"The process that did the work ended {how}.")

    def _out_of_memory(self) -> ProcessorError:
        limit = self._processor.memory_bytes
        allowed = f" It may use {limit} bytes (memory_bytes)." if limit else ""
        return ProcessorError("out_of_memory", f"The work needed more memory than there is.{allowed}")

    async def kill(self) -> None:
        """End it, and all that it started."""
        for task in self._answers:
            task.cancel()
        self._end_group()
        await self._process.wait()
        await cancel_all(self._burying)

    async def _bury(self) -> None:
        """End what it leaves behind, whenever it ends."""
        try:
            await self._process.wait()
            self._end_group()
            await asyncio.sleep(_LAST_WORDS_SECONDS)
        finally:
            self._channel.close()
            self._lifeline.close()

    def _end_group(self) -> None:
        if self._group_ended:
            return
        # Without members it is gone, and some systems say so in other words.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # The number may be another group's by the next time.
        self._group_ended = self._process.returncode is not None


def _ended_for_memory() -> int:
    """How many processes the system has ended so far for want of memory; 0 where it doesn't say."""
    try:
        return int(_COUNTS.read_bytes().partition(b"\noom_kill ")[2].split(b"\n", 1)[0])
    except (OSError, ValueError):
        return 0


def _travelling(error: Exception) -> Exception:
    """The error, or what is left of one that would not arrive."""
    try:
        arrives = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - whatever its class does with it
        arrives = False
    return error if arrives else RuntimeError(f"{type(error).__name__}: {error}")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Most real-time signals have none.
        return str(number)
