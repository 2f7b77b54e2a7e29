"""How long to wait before the next try: doubling, capped, with jitter so that many don't come back at once."""

from __future__ import annotations

import random
from typing import Final

# A failed attempt is tried again after about 1, 2, 4, ... seconds, at most 5 minutes.
RETRY_FIRST_SECONDS: Final = 1.0
RETRY_MOST_SECONDS: Final = 300.0


class Backoff:
    """The pauses between tries at one thing: `next()` gives the next one, in seconds."""

    def __init__(self, first_seconds: float, most_seconds: float) -> None:
        self._pause = first_seconds
        self._most = most_seconds

    def next(self) -> float:
        """Between half of the doubled pause and all of it."""
        pause, self._pause = self._pause, min(self._most, self._pause * 2)
        return pause * random.uniform(0.5, 1)


def retry_delay(failures: int) -> float:
    """Seconds until the next attempt at a job, after so many failed ones."""
    # The exponent is bounded so that a large count can't overflow a float.
    longest = min(RETRY_MOST_SECONDS, RETRY_FIRST_SECONDS * 2.0 ** min(failures - 1, 32))
    return longest * random.uniform(0.5, 1)
