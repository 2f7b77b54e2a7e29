"""`outlast worker --reload`: start the worker again whenever a Python file below the current folder changes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from gateway.child import Child
from gateway.errors import ConfigurationError
from gateway.signals import on_stop_signals

# For a worker that is told to stop: longer than a function may take to obey.
_STOP_SECONDS: Final = 30.0


def run_reloading(arguments: Sequence[str]) -> int:
    """Keep `outlast` with these arguments, a worker, running until Ctrl-C, the newest code in it; returns 0.

    A worker that is replaced hands its jobs back at once, so nothing is lost, no attempt is burnt, and the new code
    does them without waiting for the old.
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
            lambda stop: awatch(Path.cwd(), watch_filter=PythonFilter(), stop_event=stop, raise_interrupt=False),
        )
    )


async def _keep_new(command: Sequence[str], watch: Any) -> int:
    console = Console(stderr=True, highlight=False)
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    environment = os.environ | {"OUTLAST_STOP_GRACE_SECONDS": "0"}
    child = await Child.start(*command, environment=environment)
    telling = asyncio.create_task(_tell_of_end(child, console), name="tells of the worker's end")
    try:
        async for changes in watch(stop):
            names = sorted({Path(path).name for _, path in changes})
            console.print(f"[dim]{', '.join(names[:5])} changed: the worker starts again[/]")
            telling.cancel()
            await child.stop(_STOP_SECONDS)
            child = await Child.start(*command, environment=environment)
            telling = asyncio.create_task(_tell_of_end(child, console), name="tells of the worker's end")
    finally:
        telling.cancel()
        await child.stop(_STOP_SECONDS)
    return 0


async def _tell_of_end(child: Child, console: Console) -> None:
    code = await child.wait()
    console.print(f"[dim]the worker ended (exit code {code}); it starts again with the next change[/]")
