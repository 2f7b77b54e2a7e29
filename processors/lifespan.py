"""What an author gives to be called for a whole worker: `setup`, which may end what it has begun, and `health`."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from processors.tasks import contained
from processors.thread import run_in_thread

logger = logging.getLogger(__name__)

# Of a generator's part behind its `yield`: enough to close connections, not enough to annoy who stops the worker.
END_SECONDS: Final = 5.0


async def called(function: Callable[[], Any]) -> None:
    """Call a function of an author's, on the loop if it is async and in a thread if it isn't."""
    with contained():
        if inspect.iscoroutinefunction(function):
            await function()
        else:
            await run_in_thread(function)


class Lifespans:
    """What a worker's setups have begun, to be ended with it."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], Awaitable[object]]] = []

    async def begin(self, setup: Callable[[], Any]) -> None:
        """Call a `setup`; a generator is called up to its `yield`."""
        with contained():
            if inspect.isasyncgenfunction(setup):
                lifespan = asynccontextmanager(setup)()
                await lifespan.__aenter__()
                self._ends.append(lambda: lifespan.__aexit__(None, None, None))
            elif inspect.isgeneratorfunction(setup):
                in_thread = contextmanager(setup)()
                await run_in_thread(in_thread.__enter__)
                self._ends.append(lambda: run_in_thread(in_thread.__exit__, None, None, None))
            else:
                await called(setup)

    async def end(self) -> list[asyncio.Task[None]]:
        """Go on behind each `yield`, the last one first; returns what doesn't come to its end."""
        hanging = []
        while self._ends:
            ending = asyncio.create_task(_ended(self._ends.pop()), name="ends what a setup began")
            await asyncio.wait({ending}, timeout=END_SECONDS)
            if not ending.done():
                logger.error("what a setup does at its end has not ended within %g s", END_SECONDS)
                hanging.append(ending)
        return hanging


async def _ended(end: Callable[[], Awaitable[object]]) -> None:
    try:
        with contained():
            await end()
    except Exception:
        logger.exception("what a setup does at its end has failed")
