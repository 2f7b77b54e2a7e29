"""Running a plain function in a child process: for what would hold the interpreter, leak, crash, or ignore its cancel.

A child does one job after another, so that what `setup` loads is loaded once in each; it is ended with the attempt that
is cancelled or runs out of time, since that is the one way to stop any code. `processors.child` is what runs in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import defaultdict
from typing import Any, Final

from processors.channel import Channel
from processors.context import Context
from processors.errors import ProcessorError
from processors.processor import Processor

logger = logging.getLogger(__name__)

# A child that loads a large model takes long; one that hangs in it must show all the same.
_START_SECONDS: Final = 600.0
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
        except _Stopped:
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
    """One child process and the channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, processor: Processor) -> None:
        self._process = process
        self._channel = channel
        self._processor = processor
        self._answers: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()

    @classmethod
    async def start(cls, processor: Processor) -> _Child:
        """Start a child; it isn't set up yet."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = ("-m", "processors.child", str(theirs.fileno()), processor.module, processor.kind)
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, str(processor.memory_bytes), pass_fds=(theirs.fileno(),), process_group=0
            )
        return cls(process, await Channel.over(ours), processor)

    async def is_ready(self) -> bool:
        """Wait until it is set up; False if it ended instead."""
        return await self._channel.receive() == ("ready",)

    async def run(self, context: Context, arguments: tuple[Any, ...]) -> Any:
        """Have it do a job."""
        about = {name: getattr(context, name) for name in ("job_id", "kind", "attempt", "tags", "partial")}
        files = [(file.name, file.content_type, file.size) for file in context.files]
        await self._send("run", about | {"files": files}, arguments)
        context.on_stop = self._tell_to_stop
        while True:
            match await self._channel.receive():
                case None:
                    raise await self._death()
                case ("call", number, name, args, kwargs):
                    self._answer(context, number, name, args, kwargs)
                case ("progress", data):
                    await context.progress(**data)
                case ("plan", weights):
                    context.plan(**weights)
                case ("partial", value):
                    context.partial = value
                case ("done", result):
                    return result
                case ("failed", kind, state, args):
                    raise _rebuilt(kind, state, args)
                case ("cancelled",):
                    raise _Stopped
                case ("out_of_memory",):
                    raise self._out_of_memory()
                case ("broke", text, trace):
                    raise ChildFailed(f"{text}\n{trace}")

    def _tell_to_stop(self) -> None:
        task = asyncio.create_task(self._pass_on_stop())
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _pass_on_stop(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._send("stop")

    def _answer(self, context: Context, number: int, name: str, args: Any, kwargs: Any) -> None:
        task = asyncio.create_task(self._call(context, number, name, args, kwargs))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _call(self, context: Context, number: int, name: str, args: Any, kwargs: Any) -> None:
        try:
            if name == "read_file":
                value: Any = await context.files[args[0]].read()
            elif name == "file_path":
                value = await context.files[args[0]].path()
            else:
                value = await getattr(context, name)(*args, **kwargs)
            await self._send("return", number, value)
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001 - raised in the child, where it was asked for
            await self._send("raise", number, error)

    async def _send(self, *message: Any) -> None:
        async with self._sending:
            await self._channel.send(*message)

    async def _death(self) -> ProcessorError:
        code = await self._process.wait()
        if code == -signal.SIGKILL and self._processor.memory_bytes:
            return self._out_of_memory()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return ProcessorError("process_died", f"The process that did the work ended {how}.")

    def _out_of_memory(self) -> ProcessorError:
        limit = self._processor.memory_bytes
        allowed = f" It may use {limit} bytes (memory_bytes)." if limit else ""
        return ProcessorError("out_of_memory", f"The work needed more memory than there is.{allowed}")

    async def kill(self) -> None:
        """End it, and all that it started."""
        for task in self._answers:
            task.cancel()
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                logger.debug("child %d had ended", self._process.pid)
            await self._process.wait()
        self._channel.close()


def _rebuilt(kind: type[ProcessorError], state: dict[str, Any], args: tuple[Any, ...]) -> ProcessorError:
    """An error as it was raised in the child: its class needs other arguments than an exception keeps."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    error.args = args
    return error
