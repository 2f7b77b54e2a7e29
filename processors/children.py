"""The child processes of an attempt: none of them outlives it.

Each child leads a process group of its own, so that what it starts ends with it; so does both with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from processors.lifeline import Lifeline, need_process_groups

logger = logging.getLogger(__name__)


class Children:
    """Starts children and ends them: SIGTERM when the attempt is to stop, SIGKILL when it is over.

    Starting one raises `ConfigurationError` on a system without process groups.
    """

    def __init__(self, *, lead: bool = True) -> None:
        """`lead` False: they stay in this process's own group, which somebody else ends as a whole."""
        self._group = 0 if lead else None
        # Changed from threads too; adding, removing and copying a set are each one step.
        self._running: set[asyncio.subprocess.Process | subprocess.Popen[Any]] = set()

    @asynccontextmanager
    async def start(self, *command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
        """A child for the length of the block; killed at its end if it still runs."""
        with self._lifeline(options) as tie:
            process = await asyncio.create_subprocess_exec(*command, process_group=self._group, **options)
            tie(process.pid)
            self._running.add(process)
            try:
                yield process
            finally:
                if process.returncode is None:
                    self._signal(process.pid, signal.SIGKILL)
                    await process.wait()
                self._running.discard(process)

    @contextmanager
    def start_sync(self, *command: str, **options: Any) -> Iterator[subprocess.Popen[Any]]:
        """The same for code in a thread."""
        with (
            self._lifeline(options) as tie,
            subprocess.Popen(command, process_group=self._group, **options) as process,
        ):
            tie(process.pid)
            self._running.add(process)
            try:
                yield process
            finally:
                if process.poll() is None:
                    self._signal(process.pid, signal.SIGKILL)
                self._running.discard(process)

    @contextmanager
    def _lifeline(self, options: dict[str, Any]) -> Iterator[Callable[[int], None]]:
        """What ties a child to this process; it is added to the options with which the child is started."""
        need_process_groups("Running a program for a job")
        if self._group is None or not options.get("close_fds", True):
            # The group is tied as a whole, or the caller sees to what is inherited.
            yield lambda group: None
            return
        lifeline = Lifeline()
        options["pass_fds"] = (*options.get("pass_fds", ()), lifeline.inherited)
        try:
            yield lifeline.tie
        finally:
            lifeline.close()

    def terminate(self) -> int:
        """Ask all children to end; returns how many there are."""
        return self._signal_all(signal.SIGTERM)

    def kill(self) -> int:
        """End all children now; returns how many there were."""
        return self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> int:
        running = [process for process in set(self._running) if process.returncode is None]
        for process in running:
            self._signal(process.pid, number)
        return len(running)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        # It may have ended just now; until it is waited for, its number isn't given to another process. One that runs
        # as somebody else, as `sudo` does, ends by itself: the attempt must not break off for it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._group is None:
                os.kill(pid, number)
            else:
                os.killpg(pid, number)
