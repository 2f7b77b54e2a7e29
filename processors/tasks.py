"""Waiting for `asyncio` tasks and ending them, so that none is left without an owner."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

# Until a cancel that was not obeyed is repeated.
_REPEAT_SECONDS: Final = 0.1


async def cancel_all(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their ends; what they raise is known already, or of no more use."""
    open_tasks = set(tasks)
    while open_tasks:
        for task in open_tasks:
            task.cancel()
        # A processor's own code may swallow a cancel: `wait_for` of Python 3.11 does, where it meets an end.
        _, open_tasks = await asyncio.wait(open_tasks, timeout=_REPEAT_SECONDS)
    for task in tasks:
        if not task.cancelled():
            # Marks the error as seen.
            task.exception()


async def first_of(*waits: Coroutine[Any, Any, Any], timeout_seconds: float | None = None) -> None:
    """Return when the first of these has, or after the timeout; the others are cancelled. What it raises is raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_all(*tasks)
    for task in done:
        task.result()


@contextmanager
def contained() -> Iterator[None]:
    """Make an ordinary error of a call to exit: one that a task lets out ends the event loop, and with it all jobs."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"the function called for the end of its process: {error!r}") from error
