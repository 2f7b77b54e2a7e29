"""How long to wait before the next try: exponential, with full jitter, so that clients don't come back in step."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from gateway.errors import OutlastError

# Longer pauses would only make a person wait after the gateway is back.
_CAP_SECONDS = 30.0
_MAX_DOUBLINGS = 10


class Backoff:
    """The pauses between tries. `base_seconds` may be changed at any time: the server advises it."""

    def __init__(self, base_seconds: float = 1.0, *, random: Callable[[], float] = random.random) -> None:
        self.base_seconds = base_seconds
        self._random = random
        self._failures = 0

    def reset(self) -> None:
        """The connection proved itself: the next pause is a short one again."""
        self._failures = 0

    def next_seconds(self, wish_seconds: float | None = None) -> float:
        """The next pause. The server's wish is the least, stretched by up to a half."""
        ceiling = min(_CAP_SECONDS, self.base_seconds * 2**self._failures)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
        if wish_seconds is not None:
            return float(wish_seconds * (1 + self._random() / 2))
        return float(self._random() * ceiling)


class Patience:
    """How long something that fails is tried again: until nothing has worked for so many seconds."""

    def __init__(self, backoff: Backoff, seconds: float) -> None:
        self._backoff = backoff
        self._seconds = seconds
        self.progressed()

    def progressed(self) -> None:
        """Something worked: the time begins again, and the next pause is a short one."""
        self._gives_up_at = time.monotonic() + self._seconds
        self._backoff.reset()

    async def wait(self, error: OutlastError) -> None:
        """Wait before the next try, at least as long as the error asks for; raises it where the patience is over."""
        pause = self._backoff.next_seconds(error.retry_after_seconds)
        if time.monotonic() + pause > self._gives_up_at:
            raise error
        await asyncio.sleep(pause)
