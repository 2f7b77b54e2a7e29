"""A subscription over scripted connections: no network, no waiting."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.backoff import Backoff
from gateway.client.subscription import Advice, Alive, Ended, Frame, Moved, Opened, Subscription
from gateway.errors import Gone, OutlastError, Unauthorized, Unavailable, Unreachable
from gateway.event_text import decode_event
from gateway.protocol import Cursor, Event, EventType
from tests.scripted_gateway import JOB, LOG, T0, cursor_of, event_text, transient_text

EVENTS = [decode_event(text) for text in LOG]
Step = Frame | Exception
CUT = Unreachable("cut")


class Script:
    """What each connection brings, one after the other; remembers what was asked for."""

    def __init__(self, *connections: Sequence[Step]) -> None:
        self._connections = list(connections)
        self.asked: list[tuple[str, bool]] = []
        self.closed = 0

    async def __call__(self, cursor: Cursor, *, snapshot: bool) -> AsyncGenerator[Frame, None]:
        self.asked.append((str(cursor), snapshot))
        try:
            for step in self._connections.pop(0):
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.closed += 1


def subscribe(script: Callable[..., AsyncGenerator[Frame, None]], **options: Any) -> Subscription:
    """A subscription that never pauses."""
    return Subscription(JOB, script, backoff=Backoff(0), **options)


async def read(subscription: Subscription) -> list[Event]:
    """All that it hands on."""
    return [event async for event in subscription]


def transient(type_: str, data: dict[str, Any]) -> Event:
    """An event without a number."""
    return decode_event(transient_text(type_, data))


def snapshot_of(number: int, state: str = "running") -> Event:
    """A snapshot that covers the log up to a number."""
    data = {"cursor": cursor_of(number), "state": state, "attempt": 1, "progress": None, "text": {}, "outputs": 0}
    return Event(id=number, time="2030-01-01T00:00:00.000Z", job=JOB, type="snapshot", data=data)


async def test_one_connection_brings_everything() -> None:
    """The plain case: no counter moves but `received`."""
    script = Script([Opened(), *EVENTS])
    subscription = subscribe(script)

    assert await read(subscription) == EVENTS
    assert script.asked == [("0", False)]
    assert (subscription.received, subscription.reconnects, subscription.missed) == (5, 0, 0)
    assert subscription.state == "ended"


@pytest.mark.parametrize("failure", [None, CUT, Unavailable("later"), Unavailable("x", retry_after_seconds=0)])
@pytest.mark.parametrize("at", range(5))
async def test_a_cut_anywhere_is_resumed_from_the_last_event(at: int, failure: OutlastError | None) -> None:
    """With or without an error: a stream that ends without a terminal event means "come back"."""
    first: list[Step] = [Opened(), *EVENTS[:at]]
    script = Script([*first, failure] if failure else first, [Opened(), *EVENTS[at:]])
    subscription = subscribe(script)

    assert await read(subscription) == EVENTS
    assert script.asked[1] == (cursor_of(at) if at else "0", False)
    assert (subscription.reconnects, subscription.repeated, subscription.holes) == (1, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
async def test_connections_that_repeat_and_skip_hand_on_each_event_once(spans: list[tuple[int, int]]) -> None:
    """Whatever a broken middlebox makes of the streams: each event once, in order, none missing."""
    connections: list[list[Step]] = [[Opened(), *EVENTS[start:end]] for start, end in spans]
    whole: list[Step] = [Opened(), *EVENTS]
    script = Script(*connections, *[whole] * 9)
    subscription = subscribe(script)

    events: list[Event] = []
    # The same hole three times in a row is given up; what was handed on is right all the same.
    with suppress(Unreachable):
        async for event in subscription:
            events.append(event)  # noqa: PERF401 - those before an error count too

    assert events == EVENTS[: len(events)]
    assert len(events) == len(EVENTS) or subscription.holes > 0


async def test_a_repeated_event_is_dropped() -> None:
    """A gateway that resumes one too early does no harm."""
    subscription = subscribe(Script([Opened(), EVENTS[0], EVENTS[1], CUT], [Opened(), *EVENTS[1:]]))

    assert await read(subscription) == EVENTS
    assert subscription.repeated == 1


async def test_a_hole_is_read_again_before_anything_is_handed_on() -> None:
    """Order is a promise: event 3 waits for event 2."""
    script = Script([Opened(), EVENTS[0], EVENTS[2]], [Opened(), *EVENTS[1:]])
    subscription = subscribe(script)

    assert await read(subscription) == EVENTS
    assert (subscription.holes, subscription.missed) == (1, 0)
    assert script.asked[1] == (cursor_of(1), False)


async def test_the_same_hole_three_times_is_given_up() -> None:
    """Going on would hide it, and going round would never end."""
    skipping: list[Step] = [Opened(), EVENTS[2]]
    subscription = subscribe(Script(*[skipping] * 3))

    with pytest.raises(Unreachable, match="Event 3 came where event 1 belongs"):
        await read(subscription)


async def test_types_leave_numbers_out_without_a_hole() -> None:
    """What was left out on purpose is not asked for again."""
    script = Script([Opened(), EVENTS[0], Moved(Cursor(3, T0 + 3)), CUT], [Opened(), EVENTS[4]])
    subscription = subscribe(script, contiguous=False)

    assert await read(subscription) == [EVENTS[0], EVENTS[4]]
    assert script.asked[1] == (cursor_of(3), False)
    assert subscription.holes == 0


async def test_the_end_may_be_behind_us() -> None:
    """A reconnect after the terminal event gets 204: nothing more, and no error."""
    assert await read(subscribe(Script([Ended()]), after=Cursor(5, T0 + 5))) == []


async def test_a_snapshot_is_a_place_to_resume_from() -> None:
    """What it covers is not read again, and it is asked for only once."""
    script = Script([Opened(), snapshot_of(3), CUT], [Opened(), *EVENTS[3:]])
    subscription = subscribe(script, snapshot=True)

    events = await read(subscription)

    assert [event.type for event in events] == ["snapshot", "output", "succeeded"]
    assert script.asked == [("0", True), (cursor_of(3), False)]
    assert subscription.received == 2


async def test_a_snapshot_is_asked_for_until_there_was_one() -> None:
    """A connection that broke before it must not fall back to the whole log."""
    script = Script([Opened(), CUT], [Opened(), snapshot_of(4), EVENTS[4]])

    await read(subscribe(script, snapshot=True))

    assert script.asked == [("0", True), ("0", True)]


async def test_a_snapshot_of_an_ended_job_is_the_last_event() -> None:
    """Its terminal event is in it; waiting for another one would never end."""
    events = await read(subscribe(Script([Opened(), snapshot_of(5, "failed")]), snapshot=True))

    assert [event.type for event in events] == ["snapshot"]


async def test_a_reset_counts_what_is_missing_and_goes_on_from_its_snapshot() -> None:
    """The gateway says so; nothing is spliced silently."""
    reset = transient("reset", {"reason": "trimmed", "missing_from": 2, "missing_to": 3})
    script = Script([Opened(), EVENTS[0], CUT], [Opened(), reset, snapshot_of(3), *EVENTS[3:]])
    subscription = subscribe(script)

    events = await read(subscription)

    assert [event.type for event in events] == ["queued", "reset", "snapshot", "output", "succeeded"]
    assert (subscription.missed, subscription.repeated, subscription.holes) == (2, 0, 0)


async def test_a_reset_may_lead_back() -> None:
    """Redis lost its tail: numbers that were handed on are used again, and are handed on again."""
    reset = transient("reset", {"reason": "rewritten", "missing_from": 5, "missing_to": 4})
    connection: list[Step] = [Opened(), *EVENTS[:4], reset, snapshot_of(2), *EVENTS[2:]]

    events = await read(subscribe(Script(connection)))

    assert [event.id for event in events] == [1, 2, 3, 4, None, 2, 3, 4, 5]


async def test_transient_events_leave_the_cursor_where_it_is() -> None:
    """They are handed on, and never resumed from."""
    script = Script([Opened(), EVENTS[0], transient("position", {"position": 2}), CUT], [Opened(), *EVENTS[1:]])

    events = await read(subscribe(script))

    assert events[1].type == "position"
    assert script.asked[1] == (cursor_of(1), False)


async def test_closing_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planned end comes with advice; it is the least pause."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("gateway.client.subscription.asyncio.sleep", sleep)
    closing = transient("closing", {"reason": "max_age", "retry_seconds": 4})
    script = Script(
        [Opened(), EVENTS[0], closing],
        [Opened(), EVENTS[1], Unavailable("x", retry_after_seconds=7)],
        [Opened(), Advice(3.0), CUT],
        [Opened(), *EVENTS[2:]],
    )
    subscription = Subscription(JOB, script, backoff=Backoff(1.0, random=lambda: 1.0))

    events = await read(subscription)

    assert [event.type for event in events][1] == "closing"
    assert slept == [6.0, 10.5, 6.0]


async def test_progress_makes_the_next_pause_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The back-off grows over failures in a row only."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("gateway.client.subscription.asyncio.sleep", sleep)
    script = Script([CUT], [CUT], [CUT], [Opened(), EVENTS[0], CUT], [Opened(), Alive(), CUT], [Opened(), *EVENTS[1:]])

    await read(Subscription(JOB, script, backoff=Backoff(1.0, random=lambda: 1.0)))

    assert slept == [1, 2, 4, 1, 1]


@pytest.mark.parametrize("error", [Unauthorized("no"), Gone("over"), Unreachable("x", code="tls_failed")])
async def test_what_coming_back_cannot_mend_is_raised(error: OutlastError) -> None:
    """401, 404, 410 and a wrong certificate are the same next time."""
    subscription = subscribe(Script([Opened(), EVENTS[0], CUT], [error]))

    with pytest.raises(type(error)):
        await read(subscription)
    assert subscription.state == "ended"


async def test_patience_has_an_end() -> None:
    """A gateway that is gone is an error at last, and the error is its own."""
    subscription = subscribe(Script([Opened(), EVENTS[0]], [CUT]), patience_seconds=0)

    with pytest.raises(Unreachable, match="cut"):
        await read(subscription)


async def test_a_gateway_that_answers_needs_no_patience() -> None:
    """Streams that are cut again and again, but opened, are no reason to give up."""
    cuts = [[Opened()]] * 20

    assert await read(subscribe(Script(*cuts, [Opened(), *EVENTS]), patience_seconds=0)) == EVENTS


async def test_the_hook_hears_of_each_new_connection() -> None:
    """A user can show "reconnected twice, missed 0"."""
    seen: list[tuple[int, str, str]] = []

    def hook(subscription: Subscription) -> None:
        seen.append((subscription.reconnects, str(subscription.cursor), subscription.state))

    script = Script([Opened(), EVENTS[0]], [CUT], [Opened(), EVENTS[1]], [Opened(), *EVENTS[2:]])
    subscription = subscribe(script, on_reconnect=hook)

    await read(subscription)

    assert seen == [(1, cursor_of(1), "open"), (2, cursor_of(2), "open")]
    assert subscription.last_error is None


async def test_leaving_the_loop_closes_the_connection() -> None:
    """Not at the garbage collector's leisure, where it is said how."""
    script = Script([Opened(), *EVENTS])
    subscription = subscribe(script)

    async with aclosing(aiter(subscription)) as events:
        async for _ in events:
            break

    assert script.closed == 1
    assert subscription.state == "ended"


async def test_a_subscription_is_read_once() -> None:
    """Its counters tell of one reading."""
    subscription = subscribe(Script([Opened(), *EVENTS]))
    await read(subscription)

    with pytest.raises(RuntimeError, match="read once"):
        await read(subscription)


@pytest.mark.parametrize(
    "event",
    [
        Event(id=1, time="yesterday", job=JOB, type="log"),
        Event(id=1, time="2026-11-24T02:17:26", job=JOB, type="log"),
        Event(job=JOB, type=EventType.SNAPSHOT, data={"cursor": "x"}),
    ],
)
async def test_an_event_with_a_broken_cursor_is_a_broken_stream(event: Event) -> None:
    """It is read again, and given up if it stays."""
    broken: list[Step] = [Opened(), event]

    with pytest.raises(Unreachable) as given_up:
        await read(subscribe(Script(*[broken] * 3)))

    assert given_up.value.code == "bad_stream"


async def test_odd_data_of_closing_and_reset_does_no_harm() -> None:
    """They are advice; a stranger's gateway may say anything."""
    odd = [transient("closing", {"retry_seconds": "soon"}), transient("reset", {"missing_from": None})]
    subscription = subscribe(Script([Opened(), *odd, *EVENTS]))

    assert len(await read(subscription)) == 7
    assert subscription.missed == 0


def test_the_log_of_these_tests_is_a_log() -> None:
    """Numbers without holes, and one end."""
    assert [event.id for event in EVENTS] == [1, 2, 3, 4, 5]
    assert [event.terminal for event in EVENTS] == [False] * 4 + [True]
    assert event_text(1, "queued", attempt=0) == LOG[0]
