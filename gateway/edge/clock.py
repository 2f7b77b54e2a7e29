"""Time in a simulated hop: all its limits are real numbers, shortened by one factor."""

from __future__ import annotations

import asyncio

from gateway.edge.profile import Timers


class Clock:
    """A loop's clock that runs faster: with a scale of 0.01, 125 s pass in 1.25."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()

    def now(self) -> float:
        """Seconds of the simulated time since the start."""
        return (self._loop.time() - self._start) / self._scale

    def when(self, moment: float) -> float:
        """The loop's time of a simulated moment, for `asyncio.timeout_at` and `call_at`."""
        return self._start + moment * self._scale

    def limit(self, seconds: float) -> asyncio.Timeout:
        """`async with clock.limit(19)`: as `asyncio.timeout`; 0 is no limit."""
        return asyncio.timeout(seconds * self._scale if seconds else None)

    async def sleep(self, seconds: float) -> None:
        """Let simulated time pass."""
        await asyncio.sleep(seconds * self._scale)


class Silence:
    """When an origin has been silent for too long, or a request has taken too long altogether."""

    def __init__(self, timers: Timers, clock: Clock, jitter_seconds: float) -> None:
        self._timers = timers
        self._clock = clock
        self._jitter = jitter_seconds
        self._begun = clock.now()
        self._last: float | None = None
        self._timeout: asyncio.Timeout | None = None
        self.has_head = False

    @property
    def limit_seconds(self) -> float:
        """The longest silence now."""
        return self._timers.gap_seconds if self.has_head else self._timers.first_seconds

    @property
    def last(self) -> float | None:
        """When it was broken last; None while the request is still being sent."""
        return self._last

    @property
    def is_over(self) -> bool:
        """Whether the request has taken too long altogether, silence or not."""
        total = self._timers.total_seconds
        return bool(total) and self._clock.now() >= self._begun + total

    def break_(self, moment: float | None = None) -> None:
        """Something came: now, or at another moment."""
        self._last = self._clock.now() if moment is None else moment
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self._deadline())

    def watch(self) -> asyncio.Timeout:
        """`async with silence.watch()`: ends with `TimeoutError` when it has lasted too long."""
        self._timeout = asyncio.timeout_at(self._deadline())
        return self._timeout

    def unwatch(self) -> None:
        """Nobody waits any more."""
        self._timeout = None

    def _deadline(self) -> float | None:
        moments = []
        if self.limit_seconds and self._last is not None:
            moments.append(self._last + self.limit_seconds + self._jitter)
        if self._timers.total_seconds:
            moments.append(self._begun + self._timers.total_seconds)
        return self._clock.when(min(moments)) if moments else None
