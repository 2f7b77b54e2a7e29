"""The renewal thread: whose leases it renews, what it makes of answers, and how it watches the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import Unavailable
from gateway.store import Lease, Renewed
from processors.renewal import BLOCKED_SECONDS, LoopWatch, Renewal
from tests.faults import PATIENCE_SECONDS, wait_until


class Renewer:
    """A renewer that answers as a test says."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.failures = 0
        self.answer = Renewed(False, None)
        self.closed = False

    def renew(self, leases: list[Lease]) -> dict[str, Renewed]:
        """Answer."""
        self.asked.append([lease.job for lease in leases])
        if self.failures:
            self.failures -= 1
            raise Unavailable("leases were not renewed")
        return {lease.job: self.answer for lease in leases}

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Holder:
    """What the thread knows of an attempt."""

    def __init__(self, job: str) -> None:
        self.lease = Lease(job, "echo", 1, "n")
        self.holds_lease = True
        self.heard: list[tuple[bool, str | None]] = []
        self.processor: Any = SimpleNamespace(function=None)

    def on_renewed(self, lost: bool, cancel_by: str | None) -> None:
        """Note it."""
        self.heard.append((lost, cancel_by))


@pytest.mark.alone
async def test_leases_are_renewed_three_times_in_their_length() -> None:
    """Also while the event loop is blocked: that is what the thread is for."""
    renewer, holder = Renewer(), Holder("a")
    renewal = Renewal(renewer, lease_seconds=0.6)
    renewal.add(holder)  # type: ignore[arg-type] # all that it uses
    began = time.monotonic()
    renewal.start()

    # Blocks the loop, as a bad processor does.
    while len(renewer.asked) < 3 and time.monotonic() < began + PATIENCE_SECONDS:
        time.sleep(0.01)  # noqa: ASYNC251
    thirds = (time.monotonic() - began) / 0.2

    await renewal.stop()
    # Woken late, perhaps, and never early.
    assert thirds / 2 < 3 <= thirds
    assert renewer.asked[0] == ["a"]
    assert renewer.closed


async def test_an_attempt_that_gave_its_lease_up_is_not_renewed() -> None:
    """Its lease must run out."""
    renewer, kept, given_up, removed = Renewer(), Holder("a"), Holder("b"), Holder("c")
    renewal = Renewal(renewer, lease_seconds=0.03)
    for holder in (kept, given_up, removed):
        renewal.add(holder)  # type: ignore[arg-type] # all that it uses
    given_up.holds_lease = False
    renewal.remove(removed)  # type: ignore[arg-type]
    renewal.start()
    await wait_until(lambda: renewer.asked)
    await renewal.stop()

    assert renewer.asked[0] == ["a"]


async def test_answers_reach_the_attempt_on_its_loop() -> None:
    """A lost lease, or a cancel request; nothing where there is nothing new."""
    renewer, holder = Renewer(), Holder("a")
    renewal = Renewal(renewer, lease_seconds=0.03)
    renewal.add(holder)  # type: ignore[arg-type] # all that it uses
    renewal.start()
    await wait_until(lambda: len(renewer.asked) > 1)
    assert holder.heard == []
    renewer.answer = Renewed(False, "me")
    await wait_until(lambda: (False, "me") in holder.heard)
    renewer.answer = Renewed(True, None)
    await wait_until(lambda: (True, None) in holder.heard)
    await renewal.stop()


async def test_a_failed_renewal_is_tried_again_soon(caplog: pytest.LogCaptureFixture) -> None:
    """Long before the next one would be due, and it is said once."""
    renewer, holder = Renewer(), Holder("a")
    renewer.failures = 2
    renewal = Renewal(renewer, lease_seconds=3)
    renewal.add(holder)  # type: ignore[arg-type] # all that it uses
    renewal.start()
    await wait_until(lambda: len(renewer.asked) == 3)
    await renewal.stop()

    assert caplog.text.count("trying on") == 1


async def test_the_thread_outlives_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    """Without it every job of the worker would be taken away."""
    renewer, holder = Renewer(), Holder("a")
    renewer.answer = None  # type: ignore[assignment] # the defect
    renewal = Renewal(renewer, lease_seconds=0.03)
    renewal.add(holder)  # type: ignore[arg-type] # all that it uses
    renewal.start()
    await wait_until(lambda: len(renewer.asked) > 2)
    await renewal.stop()

    assert "leases were not renewed" in caplog.text


async def test_a_blocked_loop_is_named_by_its_processor(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each time it is blocked, with the place in the code."""
    holder = Holder("a")

    async def blocks() -> None:
        time.sleep(BLOCKED_SECONDS + 0.7)  # noqa: ASYNC251 - what is tested

    holder.processor = SimpleNamespace(function=blocks)
    watch = LoopWatch(asyncio.get_running_loop(), lambda: [holder])  # type: ignore[list-item] # all that it uses
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.1):
            watch.tick()

    thread = threading.Thread(target=tick)
    thread.start()
    await blocks()
    over.set()
    await asyncio.to_thread(thread.join)

    [line] = [entry.message for entry in caplog.records]
    assert "by the processor of kind echo at" in line
    assert "test_processor_renewal.py" in line


async def test_a_process_that_was_stopped_blames_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGSTOP the watching thread was as late as the loop."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = LoopWatch(asyncio.get_running_loop(), list)
    watch.tick()
    now += 60
    watch.tick()
    now += 0.2
    watch.tick()

    assert caplog.records == []
