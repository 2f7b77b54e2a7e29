"""`outlast worker --reload`: start the worker again whenever a Python file below the current folder changes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gateway.child import Child
from gateway.errors import ConfigurationError


def run_reloading(arguments: Sequence[str], grace_seconds: float) -> int:
    """Keep `outlast` with these arguments, a worker, running until Ctrl-C, the newest code in it; returns 0.

    A worker that is replaced hands its jobs back, so nothing is lost and no attempt is burnt.
    Raises `ConfigurationError` where the package that watches files is missing.
    """
    try:
        from watchfiles import PythonFilter, awatch
    except ModuleNotFoundError:
        raise ConfigurationError("--reload needs the package watchfiles: pip install 'outlast[dev]'") from None
    command = (sys.executable, "-m", "gateway.cli", *arguments)
    return asyncio.run(
        _keep_new(
            command,
            grace_seconds,
            lambda stop: awatch(Path.cwd(), watch_filter=PythonFilter(), stop_event=stop, raise_interrupt=False),
        )
    )


async def _keep_new(command: Sequence[str], grace_seconds: float, watch: Any) -> int:
    console = Console(stderr=True, highlight=False)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    child = await Child.start(*command)
    telling = asyncio.create_task(_tell_of_end(child, console), name="tells of the worker's end")
    try:
        async for changes in watch(stop):
            names = sorted({Path(path).name for _, path in changes})
            console.print(f"[dim]{', '.join(names[:5])} changed: the worker starts again[/]")
            telling.cancel()
            await child.stop(grace_seconds)
            child = await Child.start(*command)
            telling = asyncio.create_task(_tell_of_end(child, console), name="tells of the worker's end")
    finally:
        telling.cancel()
        await child.stop(grace_seconds)
    return 0


async def _tell_of_end(child: Child, console: Console) -> None:
    code = await child.wait()
    console.print(f"[dim]the worker ended (exit code {code}); it starts again with the next change[/]")
