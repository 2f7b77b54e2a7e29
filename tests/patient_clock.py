"""A loop's clock that stands still while the machine does something else, for tests in which time decides.

A simulated hop gives up after half a second what its origin would have answered a tenth of a second earlier. On a busy
machine a process may get no core for longer than that: both moments are over when it goes on, and the wrong one wins.
By this clock a pause of the process takes no time, and so each of the two has its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

# What a turn of the loop may take by its clock, however long it did take.
_TURN_SECONDS: Final = 0.001


class PatientClock:
    """The clock of the loop that runs, from its making on. Nothing is given back: a test's loop ends with it."""

    def __init__(self) -> None:
        loop: Any = asyncio.get_running_loop()
        self._real: Callable[[], float] = loop.time
        self._select: Callable[[float | None], list[Any]] = loop._selector.select
        self._now: float = self._real()
        self._seen = self._now
        loop.time = self.time
        loop._selector.select = self.select

    def time(self) -> float:
        """As `loop.time`."""
        self._pass(_TURN_SECONDS)
        return self._now

    def select(self, timeout: float | None = None) -> list[Any]:
        """As `select` of the loop's selector: no longer than it was asked for, by this clock."""
        self._pass(_TURN_SECONDS)
        events = self._select(timeout)
        self._pass(float("inf") if timeout is None else max(0.0, timeout) + _TURN_SECONDS)
        return events

    def _pass(self, most: float) -> None:
        now = self._real()
        self._now += min(now - self._seen, most)
        self._seen = now
