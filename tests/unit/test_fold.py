"""The fold of a log: the golden logs, and the promise that a snapshot and the rest make the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.event_text import decode_event, encode_snapshot_data
from gateway.fold import Fold
from gateway.protocol import TRANSITIONS, Event, EventType, State, format_time
from tests.golden import golden, named
from tests.jobs import fold_log

GOLDEN = golden("fold")
JOB: str = GOLDEN["job"]


def events_of(case: dict[str, Any]) -> list[Event]:
    """The events of a golden case, read as from the wire."""
    return [decode_event(json.dumps(event)) for event in case["events"]]


def from_wire(fold: Fold) -> Fold:
    """The fold as a listener has it that got its snapshot."""
    return Fold.from_snapshot(Event(job=JOB, type=EventType.SNAPSHOT, data=json.loads(encode_snapshot_data(fold))))


def assert_snapshots_lose_nothing(events: list[Event]) -> None:
    """A snapshot after any event, then the rest, must equal the whole log."""
    whole = fold_log(JOB, events)
    for at in range(len(events) + 1):
        fold = from_wire(fold_log(JOB, events[:at]))
        for event in events[at:]:
            fold.apply(event)
        assert fold.data() == whole.data(), f"snapshot after event {at}"
        assert encode_snapshot_data(fold) == encode_snapshot_data(whole)


@pytest.mark.parametrize("case", named(GOLDEN["cases"]))
def test_a_golden_log_folds_to_its_data(case: dict[str, Any]) -> None:
    """What JavaScript makes of the same log is the same data."""
    assert json.loads(encode_snapshot_data(fold_log(JOB, events_of(case)))) == case["data"]


@pytest.mark.parametrize("case", named(GOLDEN["cases"]))
def test_a_golden_log_folds_the_same_from_a_snapshot_anywhere(case: dict[str, Any]) -> None:
    """A listener may have got a snapshot after any event."""
    assert_snapshots_lose_nothing(events_of(case))


@pytest.mark.parametrize("case", named(GOLDEN["refused"]))
def test_what_no_log_holds_is_refused_and_changes_nothing(case: dict[str, Any]) -> None:
    """Illegal changes, holes and repeats are named; the fold stays usable."""
    *good, bad = events_of(case)
    fold = fold_log(JOB, good)
    before = fold.data()

    with pytest.raises(ValueError, match=r".") as refused:
        fold.apply(bad)

    assert all(word in str(refused.value) for word in case["words"]), refused.value
    assert fold.data() == before


DATA: dict[EventType, st.SearchStrategy[dict[str, Any]]] = {
    EventType.PROGRESS: st.fixed_dictionaries({"current": st.integers(0, 9), "total": st.none() | st.integers(1, 9)}),
    EventType.DELTA: st.fixed_dictionaries(
        {"channel": st.sampled_from(["text", "x"]), "text": st.text("ab\u00fc", max_size=3)}
    ),
    EventType.OUTPUT: st.fixed_dictionaries({"index": st.sampled_from(["0", "1", "a"]), "value": st.integers()}),
    EventType.SUCCEEDED: st.fixed_dictionaries({"result": st.none() | st.integers()}),
    EventType.FAILED: st.fixed_dictionaries({"problem": st.just({"code": "x"}), "partial": st.booleans()}),
    EventType.CANCELLED: st.fixed_dictionaries({"reason": st.sampled_from(["", "asked"]), "by": st.just("me")}),
}
PASSING = [EventType.PROGRESS, EventType.DELTA, EventType.OUTPUT, EventType.LOG, EventType.CANCEL_REQUESTED, "a.b"]


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A legal log of any length, as the transition table allows it."""
    events: list[Event] = []
    state: State | None = None
    attempt = 0
    time_ms = draw(st.integers(0, 4 * 10**12))
    for number in range(1, draw(st.integers(1, 25))):
        changes = [type_ for (before, type_) in TRANSITIONS if before is state]
        passing = PASSING if state is State.RUNNING else []
        types = [*changes, *passing * 3]
        if not types:
            break
        type_ = draw(st.sampled_from(types))
        attempt += type_ == EventType.STARTED
        state = TRANSITIONS.get((state, EventType(type_))) or state if type_ != "a.b" else state
        time_ms += draw(st.integers(0, 3))
        data: dict[str, Any] = draw(DATA[EventType(type_)]) if type_ in DATA else {}
        events.append(Event(id=number, time=format_time(time_ms), job=JOB, attempt=attempt, type=str(type_), data=data))
    return events


@given(logs())
def test_any_log_folds_the_same_from_a_snapshot_anywhere(events: list[Event]) -> None:
    """fold(snapshot at k + rest) == fold(whole), for every k."""
    assert_snapshots_lose_nothing(events)


@given(logs())
def test_a_fold_read_in_the_middle_folds_on_the_same(events: list[Event]) -> None:
    """Asking for the data has no effect on what comes after."""
    watched = Fold(JOB)
    for event in events:
        watched.apply(event).data()

    assert watched.data() == fold_log(JOB, events).data()


def test_data_is_a_copy() -> None:
    """A snapshot taken now doesn't change with the events of later."""
    fold = fold_log(JOB, events_of(GOLDEN["cases"][1]))
    fold.apply(Event(id=2, time=format_time(1), job=JOB, attempt=1, type="started"))
    before = fold.data()

    fold.apply(Event(id=3, time=format_time(2), job=JOB, attempt=1, type="delta", data={"channel": "c", "text": "x"}))

    assert before["text"] == {}
    assert fold.data()["text"] == {"c": "x"}


def test_a_fold_says_when_the_job_has_ended() -> None:
    """`terminal` is what a client obeys."""
    ended = {case["name"]: fold_log(JOB, events_of(case)).terminal for case in GOLDEN["cases"]}

    assert ended["a job that succeeds"]
    assert ended["a queued job that is cancelled"]
    assert not ended["a queued job"]
    assert not ended["an empty log"]


@pytest.mark.parametrize("broken", [{}, {"cursor": "1-1"}, {"cursor": 7, "state": None}, {"text": []}])
def test_what_is_no_snapshot_is_refused(broken: dict[str, Any]) -> None:
    """A client takes it for a broken stream."""
    whole = fold_log(JOB, events_of(GOLDEN["cases"][2])).data()
    data = broken if "text" not in broken else whole | broken

    with pytest.raises(ValueError, match="no snapshot"):
        Fold.from_snapshot(Event(job=JOB, type=EventType.SNAPSHOT, data=data))


def test_numbers_that_json_lacks_become_null() -> None:
    """A processor that reports NaN must not make the snapshot unreadable."""
    fold = fold_log(JOB, events_of(GOLDEN["cases"][1]))
    fold.apply(Event(id=2, time=format_time(1), job=JOB, attempt=1, type="started"))
    fold.apply(Event(id=3, time=format_time(1), job=JOB, attempt=1, type="progress", data={"current": float("nan")}))

    assert json.loads(encode_snapshot_data(fold))["progress"] == {"current": None}
