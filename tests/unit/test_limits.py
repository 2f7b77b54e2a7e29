"""How many streams each owner may hold."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gateway.errors import TooMany
from gateway.limits import USER_STREAMS, StreamLimit


def test_each_owner_has_its_own_places() -> None:
    """One owner's limit is nothing to another; a place that is left can be taken again."""
    limit = StreamLimit(2)

    with ExitStack() as held:
        first = limit.place("a")
        first.__enter__()
        held.enter_context(limit.place("a"))
        held.enter_context(limit.place("b"))
        with pytest.raises(TooMany) as refused, limit.place("a"):
            pass
        first.__exit__(None, None, None)
        with limit.place("a"):
            assert len(limit) == 3

    assert refused.value.code == "too_many_streams"
    assert refused.value.retry_after_seconds is not None
    assert len(limit) == 0


def test_a_user_of_a_token_has_fewer_places_and_takes_none_of_the_owners() -> None:
    """A stolen token must not fill a gateway; where the owner's limit is lower, it is the user's too."""
    limit = StreamLimit(1000)

    with ExitStack() as held:
        for _ in range(USER_STREAMS):
            held.enter_context(limit.place("a/anna"))
        with pytest.raises(TooMany), limit.place("a/anna"):
            pass
        held.enter_context(limit.place("a"))
        held.enter_context(limit.place("a/boris"))
    few = StreamLimit(1)
    with few.place("a/anna"), pytest.raises(TooMany), few.place("a/anna"):
        pass


def test_a_place_is_left_also_by_an_error() -> None:
    """Whatever ends the stream."""
    limit = StreamLimit(1)

    with pytest.raises(RuntimeError), limit.place("a"):
        raise RuntimeError

    assert len(limit) == 0
