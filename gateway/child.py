"""A child process that doesn't outlive us: how the supervisor starts and ends Valkey, the gateway and the workers.

What runs in the child is its own business. A terminal sends Ctrl-C to everybody in the process group at once; here the
parent decides who ends when, so children don't see that signal, nor the one of a closed terminal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final, Self

# Run in the child before the program: `preexec_fn` would run Python between fork and exec, which can deadlock a
# parent that has threads. A signal mask and the parent-death signal both survive the exec, and the pid stays.
# The parent-death signal is Linux's. The parent may be dead before it is asked for, hence the look at getppid.
_PRELUDE: Final = """\
import os, signal, sys
parent, death_signal, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, death_signal)
    if os.getppid() != parent:
        sys.exit(1)
try:
    os.execvp(program[0], program)
except OSError as error:
    sys.exit(f"{program[0]}: {error.strerror}")
"""


# A child that dies at once would otherwise be started hundreds of times a second, and one that is slow to recover
# never more than this late.
_FIRST_PAUSE_SECONDS: Final = 0.1
_MOST_PAUSE_SECONDS: Final = 5.0
# Who has run this long before it died gets a quick start again.
_STEADY_SECONDS: Final = 30.0


class Restarts:
    """How long to wait before a child that died is started again: longer and longer while it keeps dying."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE_SECONDS
        self._begun = time.monotonic()

    def begin(self) -> None:
        """Note a start."""
        self._begun = time.monotonic()

    def pause_seconds(self) -> float:
        """The pause before the next start."""
        if time.monotonic() - self._begun > _STEADY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        pause, self._pause = self._pause, min(2 * self._pause, _MOST_PAUSE_SECONDS)
        return pause


class Child:
    """A running child process. The event loop's thread must outlive it: Linux counts that thread as the parent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        *command: str,
        death_signal: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str] | None = None,
        output: IO[Any] | int | None = None,
        inherit: Sequence[int] = (),
    ) -> Self:
        """Start a program. It gets `death_signal` when this process dies, on systems that can do that.

        `output` takes what it prints on both streams; `inherit` names file descriptors that it keeps open.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _PRELUDE, str(os.getpid()), str(int(death_signal)), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=inherit,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process id, the same before and after the program was started."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative number of the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end; returns the exit code. Cancelling leaves it running."""
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self, grace_seconds: float) -> int:
        """SIGTERM, and SIGKILL if it still runs after that time. Returns the exit code; cancelling kills at once."""
        self.send(signal.SIGTERM)
        # A stopped process takes no SIGTERM.
        self.send(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            pass
        finally:
            if self.exit_code is None:
                self.send(signal.SIGKILL)
        return await self.wait()
