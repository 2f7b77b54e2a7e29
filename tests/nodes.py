"""Gateways and workers as processes that cost little to start, for tests that kill, stop and cut them by the dozen.

They are forked from a server that has imported everything once: 20 ms of CPU instead of 1.5 s. Each is a process of its
own, with its own connections, its own log, and no file of the test's open but that log.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

from gateway.store.halt import VARIABLE as HALT
from tests.faults import PATIENCE_SECONDS, wait_until

_CONTEXT: Final = multiprocessing.get_context("forkserver")
# What a child needs is imported before it is forked.
_CONTEXT.set_forkserver_preload(
    ["gateway.app", "processors.worker", "tests.worker_kinds", "tests.chaos.kinds", "tests.nodes"]
)
_PARENT_DEATH_SIGNAL: Final = 1


class Node:
    """A process that serves: alive until it is killed, ends, or halts itself at its `OUTLAST_HALT`."""

    def __init__(self, process: ForkServerProcess, name: str, log: Path) -> None:
        self._process = process
        self._forgotten: int | None = None
        assert process.pid is not None
        self.pid: int = process.pid
        self.name = name
        self.log = log

    @property
    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        return self._process.exitcode if self._forgotten is None else self._forgotten

    @property
    def paused(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except FileNotFoundError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def ended(self, timeout_seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; returns the exit code."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self._process.sentinel, gone.set)
        try:
            async with asyncio.timeout(timeout_seconds):
                await gone.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    async def halted(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until it has killed or stopped itself."""
        await wait_until(
            lambda: self.paused or self.exit_code is not None, timeout_seconds, what=f"the halt of {self.name}"
        )
        assert self.exit_code in {None, -signal.SIGKILL}, self.said

    async def end(self) -> None:
        """Kill it if it lives, and forget it."""
        self.signal(signal.SIGKILL)
        if self._forgotten is None:
            self._forgotten = await self.ended()
            self._process.close()


def start_node(role: str, name: str, folder: Path, settings: Mapping[str, Any], *, halt: str | None = None) -> Node:
    """Start a gateway (`role` is `gateway`) or a worker that serves the kinds of a module (`role` names it)."""
    environment = {f"OUTLAST_{key.upper()}": str(value) for key, value in settings.items()}
    if halt is not None:
        environment[HALT] = halt
    log = folder / f"{name}.log"
    process = _CONTEXT.Process(target=_serve, args=(role, name, log, environment), name=name, daemon=True)
    process.start()
    return Node(process, name, log)


@asynccontextmanager
async def node(
    role: str, name: str, folder: Path, settings: Mapping[str, Any], *, halt: str | None = None
) -> AsyncIterator[Node]:
    """A node for the length of the block."""
    started = start_node(role, name, folder, settings, halt=halt)
    try:
        yield started
    finally:
        await started.end()


def _serve(role: str, name: str, log: Path, environment: dict[str, str]) -> None:
    """The child: say that it goes when its parent goes, then be a gateway or a worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(message)s", stream=sys.stderr)
    from gateway.app import run_gateway
    from gateway.config import load_settings
    from processors.worker import run_worker

    settings = load_settings()
    sys.exit(run_gateway(settings) if role == "gateway" else run_worker(settings, [role]))
