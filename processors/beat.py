"""What all attempts of a process keep time by: the event loop's turns, and the beat on which gathered text leaves.

What leaves on one beat leaves in one write to Redis.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

# Long enough that many streams have something to say, too short to be noticed.
BEAT_SECONDS: Final = 0.005


class Beat:
    """One timer for all attempts of a process, which runs only while somebody waits for it, and one count of turns."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, list[Callable[[int], object]]] = {}
        self._turn = 0
        self._counts = False

    def wait(self, time: float, call: Callable[[int], object]) -> int:
        """Call with the beat's number at the first beat from `time` on; returns that number."""
        number = math.ceil(time / BEAT_SECONDS)
        waiting = self._waiting.get(number)
        if waiting is None:
            self._waiting[number] = [call]
            self._loop.call_at(number * BEAT_SECONDS, self._play, number)
        else:
            waiting.append(call)
        return number

    def turn(self) -> int:
        """Which turn of the loop this is: as long as it is the same one, nothing else has run."""
        if not self._counts:
            self._counts = True
            self._loop.call_soon(self._next_turn)
        return self._turn

    def _next_turn(self) -> None:
        self._counts = False
        self._turn += 1

    def _play(self, number: int) -> None:
        for call in self._waiting.pop(number):
            call(number)
