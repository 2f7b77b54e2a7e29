"""The pauses between tries."""

from __future__ import annotations

from gateway.client.backoff import Backoff


def test_pauses_double_up_to_a_cap() -> None:
    """A gateway that is away for long is not hammered, and found again within half a minute."""
    backoff = Backoff(1.0, random=lambda: 1.0)

    assert [backoff.next_seconds() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_pauses_are_fully_jittered() -> None:
    """Listeners that were cut together must not come back together."""
    assert Backoff(8.0, random=lambda: 0.25).next_seconds() == 2.0
    assert Backoff(8.0, random=lambda: 0.0).next_seconds() == 0.0


def test_a_connection_that_proved_itself_starts_over() -> None:
    """After progress the next pause is a short one."""
    backoff = Backoff(1.0, random=lambda: 1.0)
    backoff.next_seconds()
    backoff.next_seconds()

    backoff.reset()

    assert backoff.next_seconds() == 1.0


def test_the_servers_wish_is_the_least() -> None:
    """It knows when it will be back; jitter only adds to it."""
    assert Backoff(1.0, random=lambda: 0.0).next_seconds(5) == 5.0
    assert Backoff(1.0, random=lambda: 1.0).next_seconds(5) == 7.5


def test_the_base_can_be_advised() -> None:
    """`retry:` of a stream changes it on the way."""
    backoff = Backoff(1.0, random=lambda: 1.0)

    backoff.base_seconds = 0.1

    assert backoff.next_seconds() == 0.1
