"""Renews the leases of a worker's attempts, from a thread with a connection of its own.

A processor that blocks the event loop keeps its job that way; the thread also says so in the log, naming it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Final, Protocol

from gateway.errors import Unavailable
from gateway.store import Lease, Renewed
from processors.attempt import Attempt
from processors.backoff import Backoff

logger = logging.getLogger(__name__)

# An event loop that answers nobody for so long is late for everything: heartbeats, cancels, other attempts.
BLOCKED_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.25


class Renewing(Protocol):
    """What the thread needs of the store."""

    def renew(self, leases: list[Lease]) -> dict[str, Renewed]:
        """Renew all leases in one round trip."""

    def close(self) -> None:
        """Close the connection."""


class Renewal:
    """The thread, and the attempts whose leases it renews."""

    def __init__(self, renewer: Renewing, lease_seconds: float) -> None:
        self._renewer = renewer
        self._pause = lease_seconds / 3
        self._tick = min(_TICK_SECONDS, self._pause)
        self._loop = asyncio.get_running_loop()
        self._watch = LoopWatch(self._loop, self._holders)
        self._attempts: dict[Attempt, None] = {}
        self._changing = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renews leases", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread and wait for its end."""
        self._stopped.set()
        await asyncio.to_thread(self._thread.join)

    def add(self, attempt: Attempt) -> None:
        """Renew an attempt's lease from now on; it was just begun, so the first time is not at once."""
        with self._changing:
            self._attempts[attempt] = None

    def remove(self, attempt: Attempt) -> None:
        """Renew an attempt's lease no more."""
        with self._changing:
            self._attempts.pop(attempt, None)

    def _holders(self) -> list[Attempt]:
        with self._changing:
            return [attempt for attempt in self._attempts if attempt.holds_lease]

    def _run(self) -> None:
        backoff: Backoff | None = None
        due = time.monotonic() + self._pause
        while not self._stopped.wait(self._tick):
            self._watch.tick()
            if time.monotonic() < due:
                continue
            try:
                self._renew()
            except Unavailable as error:
                if backoff is None:
                    logger.warning("%s; trying on", error.detail)
                backoff = backoff or Backoff(min(0.1, self._pause), min(1.0, self._pause))
                due = time.monotonic() + backoff.next()
            except Exception:
                # This thread must live as long as the worker: without it every job would be taken away.
                logger.exception("leases were not renewed")
                due = time.monotonic() + self._pause
            else:
                backoff = None
                due = time.monotonic() + self._pause
        self._renewer.close()

    def _renew(self) -> None:
        holders = self._holders()
        answers = self._renewer.renew([attempt.lease for attempt in holders])
        for attempt in holders:
            answer = answers[attempt.lease.job]
            if answer.lost or answer.cancel_by is not None:
                self._loop.call_soon_threadsafe(attempt.on_renewed, answer.lost, answer.cancel_by)


class LoopWatch:
    """Tells from outside whether an event loop still turns, and which processor holds it up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, attempts: Callable[[], list[Attempt]]) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._attempts = attempts
        self._asked_at: float | None = None
        self._ticked_at = time.monotonic()
        self._said = False

    def tick(self) -> None:
        """Look once; called every quarter of a second from another thread."""
        now = time.monotonic()
        paused = now - self._ticked_at > BLOCKED_SECONDS
        self._ticked_at = now
        if paused:
            # This thread stood still as well: the process was stopped, or the machine slept.
            self._asked_at = now if self._asked_at is not None else None
        if self._asked_at is None:
            self._asked_at, self._said = now, False
            self._loop.call_soon_threadsafe(self._answer)
        elif now - self._asked_at > BLOCKED_SECONDS and not self._said:
            self._said = True
            logger.warning(
                "the event loop has been blocked for %.1f s by %s; heavy work belongs into a thread:"
                " await ctx.in_thread(function, ...)",
                now - self._asked_at,
                self._culprit(),
            )

    def _answer(self) -> None:
        self._asked_at = None

    def _culprit(self) -> str:
        functions: dict[CodeType, Attempt] = {}
        for attempt in self._attempts():
            code = getattr(attempt.processor.function, "__code__", None)
            if code is not None:
                functions[code] = attempt
        frame: FrameType | None = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return "something"
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        while frame is not None:
            if (found := functions.get(frame.f_code)) is not None:
                return f"the processor of kind {found.lease.kind} at {where}"
            frame = frame.f_back
        return f"something at {where}"
