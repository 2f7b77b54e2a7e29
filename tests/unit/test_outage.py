"""What the log says of an outage of Redis: enough to see it, and not more."""

from __future__ import annotations

import logging

import pytest

from gateway.store.outage import Outage


class Clock:
    """A clock that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_told_when_it_begins_now_and_then_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """Two failures a second for a minute and a half make three lines, and nothing of them is lost at DEBUG."""
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    outage = Outage(clock)
    for _ in range(180):
        outage.failed(ConnectionError("refused"))
        clock.now += 0.5
    for _ in range(20):
        outage.answered()
        clock.now += 0.5

    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        "Redis does not answer: ConnectionError: refused",
        "Redis has not answered for 30 s (61 calls failed, the last with ConnectionError: refused)",
        "Redis has not answered for 60 s (121 calls failed, the last with ConnectionError: refused)",
        "Redis answers again: 180 calls had failed in 90 s",
    ]
    assert len(caplog.records) == 181


def test_one_master_s_answers_are_not_taken_for_anothers_return(caplog: pytest.LogCaptureFixture) -> None:
    """In a cluster most calls succeed while one master is away."""
    clock = Clock()
    outage = Outage(clock)
    for _ in range(10):
        outage.failed(TimeoutError("no answer"))
        for _ in range(4):
            clock.now += 0.5
            outage.answered()

    assert len(caplog.records) == 1


def test_each_outage_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The second begins with a line of its own."""
    clock = Clock()
    outage = Outage(clock)
    for _ in range(2):
        outage.failed(ConnectionError("refused"))
        clock.now += 10
        outage.answered()

    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "Redis does not answer",
        "Redis answers again",
    ] * 2
