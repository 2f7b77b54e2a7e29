"""Runs a module without the modules and names that only Unix has: `python -m tests.without_unix MODULE ARGUMENT...`."""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

_MODULES: Final = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
_OS: Final = ("fork", "getpgrp", "getuid", "killpg", "sched_getaffinity", "setsid")
_SIGNAL: Final = ("SIGCONT", "SIGHUP", "SIGKILL", "SIGSTOP", "alarm", "pthread_sigmask")


def take_unix_away() -> None:
    """What is imported from now on finds of the system what Windows has; asyncio has what it needs."""
    for name in _MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # so that importing it fails
    for module, names in ((os, _OS), (signal, _SIGNAL)):
        for name in names:
            delattr(module, name)

    def refuse(loop: asyncio.AbstractEventLoop, number: int, call: Callable[..., Any], *arguments: Any) -> None:
        raise NotImplementedError

    asyncio.SelectorEventLoop.add_signal_handler = refuse  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    take_unix_away()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
