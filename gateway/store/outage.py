"""What the log says while Redis is away: its loss at once, then a line now and then, and its return.

All that asks Redis fails meanwhile, several times a second in every process: a line for each would bury all others.
Each failure is told at the level DEBUG.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

_REMIND_SECONDS: Final = 30.0
# In a cluster some masters answer while another is away: that all do shows when nothing has failed for so long.
_QUIET_SECONDS: Final = 5.0


class Outage:
    """The outages that one process sees, one after the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None
        self._told_at = self._failed_at = 0.0
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """A call got no answer, or a refusal that passes."""
        now = self._failed_at = self._clock()
        self._failures += 1
        if self._began is None:
            self._began = self._told_at = now
            logger.warning("Redis does not answer: %s: %s", type(error).__name__, error)
        elif now - self._told_at < _REMIND_SECONDS:
            logger.debug("Redis does not answer: %s: %s", type(error).__name__, error)
        else:
            self._told_at = now
            logger.warning(
                "Redis has not answered for %.0f s (%d calls failed, the last with %s: %s)",
                now - self._began,
                self._failures,
                type(error).__name__,
                error,
            )

    def answered(self) -> None:
        """A call got its answer."""
        if self._began is None or self._clock() - self._failed_at < _QUIET_SECONDS:
            return
        # As loud as the loss, so that nobody is shown one of the two alone.
        logger.warning(
            "Redis answers again: %d calls had failed in %.0f s", self._failures, self._failed_at - self._began
        )
        self._began, self._failures = None, 0


# One for the process: all of its stores, and their connections, lead to the same Redis.
OUTAGE: Final = Outage()
