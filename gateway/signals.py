"""The signals that ask a process to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress


def on_stop_signals(call: Callable[[], object]) -> None:
    """Call this at each SIGTERM and SIGINT; it belongs to the running event loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not on Windows, where a signal ends the process as it always does.
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, call)
