"""The clock that stands still with its process: what is tested by who is first depends on it."""

from __future__ import annotations

import asyncio
import time

import pytest

pytestmark = pytest.mark.usefixtures("patient_clock")


async def test_who_is_due_first_is_done_first_however_late_both_are() -> None:
    """A tenth of a second lies between them, and the process stands still for both."""
    done: list[str] = []

    async def first() -> None:
        await asyncio.sleep(0.1)
        for _ in range(10):
            await asyncio.sleep(0)
        done.append("first")

    async def second() -> None:
        await asyncio.sleep(0.2)
        done.append("second")

    both = asyncio.gather(first(), second())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - what is tested
    await both

    assert done == ["first", "second"]


async def test_what_is_waited_for_takes_its_time() -> None:
    """By this clock and by any other."""
    loop = asyncio.get_running_loop()
    began, really = loop.time(), time.monotonic()

    await asyncio.sleep(0.05)

    assert 0.05 - 0.001 <= loop.time() - began <= time.monotonic() - really + 0.001
