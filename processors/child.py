"""A child process that runs a processor's function for its worker: `python -m processors.child`.

The function runs in the main thread, for one job after another, and sees a `SyncContext`; what it reports goes over the
channel to the worker, which does the rest. A child without its worker ends, with all that it started. Only systems
with process groups can import this.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from processors.channel import DEAF_EXIT, Channel
from processors.children import Children
from processors.context import Context, SyncContext, as_output
from processors.errors import ProcessorError, Rejected, Retry
from processors.processor import Processor, load_processors


class _RemoteFile:
    """An input file, read by the worker or from the path that it names."""

    def __init__(self, remote: RemoteContext, number: int, name: str, content_type: str, size: int) -> None:
        self.name = name
        self.content_type = content_type
        self.size = size
        self._remote = remote
        self._number = number

    def __repr__(self) -> str:
        return f"<file {self.name!r}, {self.content_type}, {self.size} bytes>"

    async def read(self) -> bytes:
        return cast(bytes, await self._remote.ask("read_file", self._number))

    async def path(self) -> Path:
        return cast(Path, await self._remote.ask("file_path", self._number))


class RemoteContext:
    """What a `SyncContext` needs of a `Context`, with the real one in another process.

    Everything that is not here is asked of the worker under its own name.
    """

    def __init__(self, channel: Channel, about: dict[str, Any], cancelled: threading.Event) -> None:
        self.job_id: str = about["job_id"]
        self.kind: str = about["kind"]
        self.attempt: int = about["attempt"]
        self.tags: tuple[str, ...] = about["tags"]
        self.files = tuple(_RemoteFile(self, number, *file) for number, file in enumerate(about["files"]))
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self._partial: bool = about["partial"]
        self._channel = channel
        self._cancelled = cancelled
        self._asked = 0
        self._sending = asyncio.Lock()
        self._children = Children(lead=False)
        self._writer = self
        self._said: set[asyncio.Task[None]] = set()
        self._latest: dict[str, Any] | None = None
        self._over = False
        self._loop = asyncio.get_running_loop()

    def plan(self, **weights: float) -> None:
        """Pass the plan on; nobody waits for it."""
        self._loop.call_soon_threadsafe(self._say, "plan", weights)

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is to stop."""
        return self._cancelled.is_set()

    @property
    def must_stop(self) -> bool:
        """Whether the function is to stop, which does one job at a time here."""
        return self._cancelled.is_set()

    @property
    def partial(self) -> bool:
        """Whether the result lacks something."""
        return self._partial

    @partial.setter
    def partial(self, value: bool) -> None:
        self._partial = value
        self._loop.call_soon_threadsafe(self._say, "partial", value)

    def _progress(self, current: float, total: float | None, **rest: Any) -> dict[str, Any]:
        return {"current": current, "total": total} | rest

    def progress(self, data: dict[str, Any]) -> None:
        """Pass progress on, the latest where the worker is behind; nobody waits for it."""
        waits, self._latest = self._latest is not None, data
        if not waits:
            self._own(self._send_latest())

    async def _send_latest(self) -> None:
        async with self._sending:
            data, self._latest = self._latest, None
            await self._channel.send("progress", data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def asked(*args: Any, **kwargs: Any) -> Any:
            return await self.ask(name, *args, **kwargs)

        return asked

    async def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Have the worker do something, and return what came of it."""
        self._check_open()
        self._asked += 1
        number = self._asked
        answer = self.answers[number] = self._loop.create_future()
        await self.send("call", number, name, args, kwargs)
        return await answer

    def _check_open(self) -> None:
        if self._over:
            raise asyncio.CancelledError("the attempt is over")

    async def send(self, *message: Any) -> None:
        """Send a message whole, whoever else sends one."""
        async with self._sending:
            await self._channel.send(*message)

    def _say(self, *message: Any) -> None:
        self._own(self.send(*message))

    def _own(self, sending: Coroutine[Any, Any, None]) -> None:
        if self._over:
            sending.close()
            return
        task = self._loop.create_task(sending)
        self._said.add(task)
        task.add_done_callback(self._said.discard)

    async def close(self) -> None:
        """Send what was said, and take nothing more: a thread that was left running would report for the next job."""
        while self._said:
            await asyncio.wait(self._said)
        self._over = True
        for answer in self.answers.values():
            answer.cancel()

    def terminate_programs(self) -> None:
        """Ask what the function has started to end."""
        self._children.terminate()


class _Job:
    """A job that the main thread is to do."""

    def __init__(self, context: SyncContext, arguments: tuple[Any, ...]) -> None:
        self.context = context
        self.arguments = arguments
        self.outcome: Future[tuple[Any, BaseException | None]] = Future()
        """What the function returned, and what it raised: as a value, since futures don't take every exception."""


class _Child:
    """The side thread: it hears the worker, and gives the main thread its jobs."""

    def __init__(self, end: socket.socket) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.ready: Future[None] = Future()
        self._end = end
        self._remote: RemoteContext | None = None
        self._cancelled = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._hear, name="hears the worker", daemon=True).start()

    def _hear(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException:  # noqa: BLE001 - nobody would answer the function any more
            traceback.print_exc()
        finally:
            os._exit(1)

    async def _serve(self) -> None:
        channel = await Channel.over(self._end)
        owned: set[asyncio.Task[None]] = {asyncio.create_task(self._tell_when_ready(channel))}
        while (message := await _heard(channel)) is not None:
            match message:
                case ("run", about, arguments):
                    self._cancelled = threading.Event()
                    self._remote = RemoteContext(channel, about, self._cancelled)
                    job = _Job(SyncContext(cast(Context, self._remote)), arguments)
                    task = asyncio.create_task(_report(self._remote, job))
                    owned.add(task)
                    task.add_done_callback(owned.discard)
                    self.jobs.put(job)
                case ("stop",) if self._remote is not None:
                    self._cancelled.set()
                    self._remote.terminate_programs()
                case ("return", number, value) if self._remote is not None:
                    if not (answer := self._remote.answers.pop(number)).done():
                        answer.set_result(value)
                case ("raise", number, error) if self._remote is not None:
                    if not (answer := self._remote.answers.pop(number)).done():
                        answer.set_exception(error)
        # The worker is gone, whatever the main thread does: nobody would hear of it.
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)

    async def _tell_when_ready(self, channel: Channel) -> None:
        await asyncio.wrap_future(self.ready)
        await channel.send("ready")


async def _heard(channel: Channel) -> tuple[Any, ...] | None:
    try:
        return await channel.receive()
    except MemoryError:
        # The function has taken it, or asked for more than there is. At once: an orderly end would need some, too.
        os._exit(DEAF_EXIT)


async def _report(remote: RemoteContext, job: _Job) -> None:
    """Tell the worker how the function ended."""
    result, error = await asyncio.wrap_future(job.outcome)
    await remote.close()
    message: tuple[Any, ...]
    match error:
        case None:
            message = "done", result
        case ProcessorError():
            message = "failed", error
        case asyncio.CancelledError():
            message = ("cancelled",)
        case MemoryError():
            message = ("out_of_memory",)
        case _:
            message = "broke", _trace(error)
    try:
        await remote.send(*message)
    except ConnectionError:
        return
    except MemoryError:
        await remote.send("out_of_memory")
    except Exception as what:  # noqa: BLE001 - whatever pickling says
        if isinstance(error, ProcessorError):
            await remote.send("failed", _bare(error))
        else:
            await remote.send("broke", f"The result can't travel.\n{_trace(what)}")


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _bare(error: ProcessorError) -> ProcessorError:
    """What of an error can always travel."""
    if isinstance(error, Rejected):
        return Rejected(error.detail, error.code)
    if isinstance(error, Retry):
        return Retry(error.after_seconds, error.detail, error.code)
    return ProcessorError(error.code, error.detail)


def main(fd: int, module: str, kind: str, memory_bytes: int) -> None:
    """Set the processor up, then do jobs until the worker is gone."""
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    child = _Child(socket.socket(fileno=fd))
    child.start()
    processor = load_processors([module])[kind]
    if processor.setup is not None:
        made = processor.setup()
        if inspect.isawaitable(made):
            asyncio.run(_awaited(made))
    child.ready.set_result(None)
    while True:
        job = child.jobs.get()
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = _run(processor, job), None
        except BaseException as error:  # noqa: BLE001 - the other thread sends it
            outcome = None, error
        job.outcome.set_result(outcome)


async def _awaited(made: Any) -> None:
    await made


def _run(processor: Processor, job: _Job) -> Any:
    made = processor.function(job.context, *job.arguments)
    if not inspect.isgenerator(made):
        return made
    with contextlib.closing(made) as values:
        for index, value in enumerate(values):
            job.context.output(index, **as_output(value))
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
