"""Cursors, times, events, requests, frames and close codes."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.documents import KindDocument
from gateway.errors import BadRequest
from gateway.event_text import decode_event, encode_event, encode_event_tail, encode_transient
from gateway.protocol import (
    CLOSE_CODES,
    MAX_EVENT_BYTES,
    NEVER_HIDDEN,
    OPEN,
    PRIORITY_STEPS,
    START,
    TERMINAL,
    TERMINAL_TYPES,
    TRANSIENT,
    TRANSITIONS,
    UNNUMBERED,
    Cursor,
    Event,
    EventType,
    State,
    format_time,
    parse_time,
    should_come_back,
)
from gateway.requests import (
    CLIENT_FRAME,
    CancelFrame,
    JobOptions,
    JobRequest,
    SubmitFrame,
    SubscribeFrame,
    UnsubscribeFrame,
)
from tests.golden import golden

CURSORS = golden("cursors")
STATES = golden("states")
CODES = golden("close_codes")
JOB = "22jcerhx2axjbe4xdcug5w4evm"
# The years 1970 to 9999, which RFC 3339 can write.
TIMES = st.integers(0, 253_402_300_799_999)


# --- cursors and times --------------------------------------------------------------------------------------------


def test_golden_cursors_are_read_and_written_back() -> None:
    """A cursor's text is opaque to clients, so it must come back as it went."""
    for case in CURSORS["good"]:
        cursor = Cursor.parse(case["text"])
        assert cursor == (case["number"], case["time_ms"])
        assert str(cursor) == case["text"]


@pytest.mark.parametrize("text", CURSORS["bad"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """Only ASCII digits, no signs, no spaces, no line break at the end."""
    with pytest.raises(BadRequest, match="cursor is the id") as refused:
        Cursor.parse(text)

    assert refused.value.code == "bad_cursor"


@given(st.integers(0, 10**15 - 1), st.none() | st.integers(0, 10**15 - 1))
def test_every_cursor_survives_its_text(number: int, time_ms: int | None) -> None:
    """N and N-T are both read as they were written."""
    cursor = Cursor(number, time_ms)

    assert Cursor.parse(str(cursor)) == cursor


@given(st.text())
def test_any_text_is_a_cursor_or_a_bad_request(text: str) -> None:
    """No header that a client makes up raises anything else, and none is read as another cursor."""
    try:
        cursor = Cursor.parse(text)
    except BadRequest:
        return
    assert str(cursor) == text


def test_the_start_is_before_the_first_event() -> None:
    """Numbers count from 1."""
    assert str(START) == "0"


def test_an_event_leaves_its_listener_with_the_golden_cursor() -> None:
    """Transient events move no cursor; a snapshot has its own."""
    for case in CURSORS["events"]:
        cursor = decode_event(json.dumps(case["event"])).cursor
        assert (None if cursor is None else str(cursor)) == case["cursor"]


def test_golden_times_are_read_and_written() -> None:
    """JavaScript's `Date.parse` yields the same milliseconds."""
    for case in CURSORS["times"]:
        assert parse_time(case["time"]) == case["ms"]
        assert format_time(case["ms"]) == case["time"]


@given(TIMES)
def test_every_time_survives_its_text(time_ms: int) -> None:
    """A cursor is made of the time's text, so not one millisecond may be lost to rounding."""
    text = format_time(time_ms)

    assert parse_time(text) == time_ms
    assert len(text) == len("2026-11-24T02:17:26.763Z")


def test_a_time_without_an_offset_is_refused() -> None:
    """It would be read in the zone of whoever reads it."""
    with pytest.raises(ValueError, match="offset"):
        parse_time("2026-11-24T02:17:26.763")


# --- states and types ---------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_golden_file() -> None:
    """Both languages read the same states, transitions and types."""
    assert [state.value for state in State] == STATES["states"]
    assert {state.value for state in TERMINAL} == set(STATES["terminal"])
    assert {
        (state.value if state else None, type_.value): after.value for (state, type_), after in TRANSITIONS.items()
    } == {(row["from"], row["type"]): row["to"] for row in STATES["transitions"]}
    assert {type_.value for type_ in UNNUMBERED} == set(STATES["unnumbered_types"])
    assert {type_.value for type_ in EventType} - {type_.value for type_ in UNNUMBERED} == set(STATES["numbered_types"])
    assert {type_.value for type_ in NEVER_HIDDEN} == set(STATES["never_hidden_types"])


def test_a_state_is_open_or_terminal_and_terminal_states_are_final() -> None:
    """Nothing leads out of an end, and every end is reached by an event of its name."""
    assert set(State) == OPEN | TERMINAL
    assert not OPEN & TERMINAL
    assert not any(before in TERMINAL for before, _ in TRANSITIONS)
    assert {type_.value for type_ in TERMINAL_TYPES} == {state.value for state in TERMINAL}
    assert all((after in TERMINAL) == (type_ in TERMINAL_TYPES) for (_, type_), after in TRANSITIONS.items())
    assert TRANSIENT < UNNUMBERED


# --- events -------------------------------------------------------------------------------------------------------


def test_a_tail_becomes_an_event_with_what_the_script_puts_before_it() -> None:
    """The writer encodes all but the number and the time."""
    tail = encode_event_tail("progress", {"current": 3, "message": 'a "b" \n \u2028 \u00fc'})
    text = b'{"id":17,"time":"2026-11-24T02:17:26.763Z","job":"%b","attempt":1,%b' % (JOB.encode(), tail)

    event = decode_event(text)

    assert event.cursor == Cursor(17, 1795486646763)
    assert event.data == {"current": 3, "message": 'a "b" \n \u2028 \u00fc'}
    assert (event.type, event.attempt, event.terminal) == ("progress", 1, False)
    assert b"\n" not in text


@pytest.mark.parametrize("type_", sorted(TERMINAL_TYPES))
def test_the_last_event_says_that_it_is_terminal(type_: str) -> None:
    """Clients obey the boolean, never a list of words."""
    assert b'"terminal":true,"data":{}' in encode_event_tail(type_)
    assert decode_event(b'{"id":1,"job":"x",' + encode_event_tail(type_)).terminal


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text('a\n\r\0\u2028\U0001f600"'), st.lists, max_leaves=5)
)
def test_no_event_has_a_line_break(value: Any) -> None:
    """One event is one NDJSON line and one SSE data line, whatever a processor puts into it."""
    tail = encode_event_tail("a.b", {"value": value})

    assert b"\n" not in tail
    assert b"\r" not in tail
    assert b"NaN" not in tail
    json.loads(b"{" + tail)


@pytest.mark.parametrize(
    "type_", ["", "Progress", "a b", "a-b", "1a", ".a", "a.", "a..b", 'x","y', "a.b\n", "a\n", "\u00e4", "a\0"]
)
def test_what_is_no_type_is_refused(type_: str) -> None:
    """A type is put into JSON as it is, so it must not be able to end its string or its line."""
    with pytest.raises(ValueError, match="no event type"):
        encode_event_tail(type_)


def test_an_event_over_the_limit_is_refused() -> None:
    """Large values go to a blob and travel as a url."""
    with pytest.raises(ValueError, match="is over"):
        encode_event_tail("a.b", {"value": "x" * MAX_EVENT_BYTES})


@pytest.mark.parametrize("value", [object(), "\ud800", b"\xff"])
def test_data_that_is_no_json_is_refused(value: object) -> None:
    """The author's mistake shows at the author's call."""
    with pytest.raises(ValueError, match="serializ"):
        encode_event_tail("a.b", {"value": value})


def test_a_transient_event_has_no_number() -> None:
    """It moves no cursor and stands in no log."""
    event = decode_event(encode_transient(EventType.POSITION, JOB, 1795486646763, {"position": None}))

    assert (event.id, event.cursor, event.type, event.data) == (None, None, "position", {"position": None})
    assert event.time == "2026-11-24T02:17:26.763Z"


def test_unknown_fields_and_types_pass_through() -> None:
    """A client of today reads a gateway of tomorrow."""
    event = decode_event('{"id":1,"job":"x","type":"new.type","data":{"a":[1]},"later":{"b":2}}')

    assert event.type == "new.type"
    assert event.extra == {"later": {"b": 2}}
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '"x"', "{}", '{"job":"x"}'),
        *(
            '{"job":"x","type":"a","data":[]}',
            '{"job":"x","type":"a","id":true}',
            '{"job":"x","type":"a","terminal":1}',
        ),
    ],
)
def test_what_is_no_event_is_refused(text: str) -> None:
    """A client takes it for a broken stream."""
    with pytest.raises(ValueError, match=r"."):
        decode_event(text)


def test_an_event_is_a_value() -> None:
    """Listeners share events, so nobody may change one."""
    event = Event(id=1, job="x", type="log")

    with pytest.raises(FrozenInstanceError):
        event.type = "other"  # type: ignore[misc]


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", "urgent"),
        ("start_at", "2026-11-24T02:17:26"),
        ("start_deadline_seconds", 0),
        ("run_timeout_seconds", -1),
        ("run_timeout_seconds", float("nan")),
        ("run_timeout_seconds", float("inf")),
        ("retention_seconds", 0.5),
        ("tags", ["a b"]),
        ("tags", ["a\n"]),
        ("tags", ["x"] * 17),
        ("webhook", "http://example.org"),
        ("on_disconnect", "retry"),
        ("disconnect_grace_seconds", 5),
    ],
)
def test_a_wrong_or_unbuilt_option_is_refused(field: str, value: object) -> None:
    """Never ignored: who asked for it would believe that it holds."""
    with pytest.raises(ValidationError) as refused:
        JobRequest.model_validate({field: value})

    assert refused.value.errors()[0]["loc"][0] == field


def test_a_request_without_anything_has_the_defaults() -> None:
    """`{}` is a request for a job with an empty input."""
    request = JobRequest.model_validate({})

    assert request.input == {}
    assert request.priority in PRIORITY_STEPS
    assert JobOptions().tags == []


@pytest.mark.parametrize("kind", ["", "OCR", "1a", "a b", "a{b}", "a:b", "a*", "ocr\n", "x" * 65])
def test_a_kind_that_could_break_a_key_is_refused(kind: str) -> None:
    """Kinds stand in Redis keys and in URLs."""
    with pytest.raises(ValidationError):
        KindDocument(kind=kind)


def test_a_kind_of_a_newer_release_is_read() -> None:
    """Old and new releases share one Redis during a deploy."""
    assert KindDocument.model_validate({"kind": "ocr", "later": 1}).kind == "ocr"


# --- WebSocket ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "frame"),
    [
        ({"op": "subscribe", "job": JOB, "after": "3-4"}, SubscribeFrame),
        ({"op": "unsubscribe", "job": JOB, "ref": "1"}, UnsubscribeFrame),
        ({"op": "submit", "kind": "ocr", "input": {"a": 1}, "priority": "low"}, SubmitFrame),
        ({"op": "cancel", "job": JOB}, CancelFrame),
    ],
)
def test_each_frame_is_read_by_its_op(raw: dict[str, Any], frame: type) -> None:
    """One adapter reads them all."""
    assert type(CLIENT_FRAME.validate_python(raw)) is frame


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"op": "jump"},
        {"op": "subscribe"},
        {"op": "subscribe", "job": "../x"},
        {"op": "subscribe", "job": JOB + "\n"},
        {"op": "subscribe", "job": JOB, "later": 1},
        {"op": "subscribe", "job": JOB, "types": ["a b"]},
        {"op": "subscribe", "job": JOB, "ref": "x" * 65},
        {"op": "submit", "kind": "a:b"},
        {"op": "submit", "kind": "ocr", "idempotency_key": ""},
        {"op": "submit", "kind": "ocr", "webhook": "x"},
    ],
)
def test_what_is_no_frame_is_refused(raw: dict[str, Any]) -> None:
    """Unknown fields too: they may be an option that isn't built."""
    with pytest.raises(ValidationError):
        CLIENT_FRAME.validate_python(raw)


def test_close_codes_are_those_of_the_golden_file() -> None:
    """Numbers and advice are the same in every client."""
    assert {code.value: number for code, number in CLOSE_CODES.items()} == {
        row["name"]: row["code"] for row in CODES["ours"]
    }
    for row in CODES["ours"] + CODES["others"]:
        assert should_come_back(row["code"]) is row["come_back"], row
