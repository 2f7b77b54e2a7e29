"""Between the event loop and threads: run a function in a thread of its own, and call the loop from there.

The threads are daemons and belong to no pool: a function that hangs in foreign code would otherwise keep a place in
the pool, and the process, for ever. An attempt is long, so what a new thread costs (about 50 µs) doesn't count.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """The way from a thread back to the event loop that it was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._process = os.getpid()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Run an async function on the loop and wait for its result here.

        Raises:
            RuntimeError: It was called on the loop's own thread, where waiting would wait for itself, or in a fork of
                the process, which has no such thread.
            asyncio.CancelledError: The attempt is over, or the loop is closed: the worker has stopped.
        """
        self._check_process()
        if threading.get_ident() == self._loop_thread:
            raise RuntimeError("This face is for threads; on the event loop use the async methods of Context.")

        async def awaited() -> T:
            return await function(*args, **kwargs)

        coroutine = awaited()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise asyncio.CancelledError("the worker has stopped") from None
        try:
            return future.result()
        except CancelledError:
            # That of a thread's future is another class, and one that `except Exception` would swallow.
            raise asyncio.CancelledError("the attempt is over") from None

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have the loop call a plain function soon; nobody waits for it. Raises `RuntimeError` in a fork."""
        self._check_process()
        # Closed: the worker has stopped, and nobody would hear it.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("A fork can't report: have it give its results to the process that it is a fork of.")


async def run_in_thread(function: Callable[..., T], *args: Any, name: str = "", **kwargs: Any) -> T:
    """Run a function in a thread and return its result.

    Cancelling waits until the function has returned, since a thread can't be stopped from outside, and raises
    `CancelledError` then: whoever waits for the attempt's end can rely on nothing of it running on.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = context.run(function, *args, **kwargs), None
        except BaseException as error:  # noqa: BLE001 - raised again below, on the loop
            outcome = None, error
        try:
            loop.call_soon_threadsafe(done.set_result, outcome)
        except RuntimeError:
            # The loop is closed: the worker gave this thread up and left.
            return

    threading.Thread(target=work, name=name or getattr(function, "__name__", "processor"), daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    result, failure = done.result()
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]
