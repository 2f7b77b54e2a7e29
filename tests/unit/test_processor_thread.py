"""Threads and the event loop: results, errors, cancels, and the way back."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from processors.thread import Portal, run_in_thread
from tests.faults import PATIENCE_SECONDS

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


async def test_a_function_runs_in_a_thread_of_its_own() -> None:
    """The loop goes on meanwhile, and context variables go along."""
    WHO.set("me")

    name, who = await run_in_thread(lambda: (threading.current_thread().name, WHO.get()), name="heavy work")

    assert (name, who) == ("heavy work", "me")


async def test_its_error_is_raised_where_it_is_awaited() -> None:
    """Whatever it is, `StopIteration` and `CancelledError` included, which futures don't take."""
    # Python makes a RuntimeError of a StopIteration that leaves a coroutine.
    for error, raised in (
        (ValueError("no"), ValueError),
        (StopIteration(1), RuntimeError),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(raised) as caught:
            await run_in_thread(fail)
        assert error in {caught.value, caught.value.__cause__}


async def test_cancelling_waits_for_the_function() -> None:
    """A cancelled job must not go on in a thread that nobody knows of."""
    go, running = threading.Event(), threading.Event()

    def work() -> None:
        running.set()
        assert go.wait(PATIENCE_SECONDS)

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(running.wait, PATIENCE_SECONDS)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()

    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_thread_calls_the_loop_through_a_portal() -> None:
    """It waits there for what an async function returns or raises."""
    portal = Portal()

    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return value * 2

    async def fail() -> None:
        raise LookupError("nothing there")

    async def stop() -> None:
        raise asyncio.CancelledError

    def told(heard: list[str]) -> None:
        try:
            portal.call(stop)
        except asyncio.CancelledError as error:
            heard.append(str(error))

    assert await run_in_thread(portal.call, double, 21) == 42
    heard: list[str] = []
    await run_in_thread(told, heard)
    assert heard == ["the attempt is over"]
    with pytest.raises(LookupError, match="nothing there"):
        await run_in_thread(portal.call, fail)


async def test_the_face_for_threads_refuses_the_loops_own_thread() -> None:
    """It would wait for itself for ever."""

    async def nothing() -> None: ...

    with pytest.raises(RuntimeError, match="async methods of Context"):
        Portal().call(nothing)


def test_a_thread_that_outlives_the_loop_is_told() -> None:
    """It ends with its next report instead of hanging."""
    portals: list[Portal] = []

    async def make() -> None:
        portals.append(Portal())

    asyncio.run(make())

    async def nothing() -> None: ...

    outcome: list[BaseException] = []

    def late() -> None:
        try:
            portals[0].call(nothing)
        except asyncio.CancelledError as error:
            outcome.append(error)
        portals[0].post(lambda: None)

    thread = threading.Thread(target=late)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert len(outcome) == 1
