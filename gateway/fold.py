"""The fold: what an event log up to event N amounts to. Pure; `client_js/fold.js` has the same rules.

A listener that gets the snapshot of a fold at N and then the events from N + 1 on ends with the same fold as one that
read them all. `tests/wire/fold.json` holds logs that both languages must fold alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Self

from pydantic_core import to_json

from gateway.protocol import TERMINAL, TERMINAL_TYPES, TRANSITIONS, Cursor, Event, EventType, State

# Types that stand only where the transition table has them; others are legal while the job runs, and change nothing.
_CHANGING: Final = frozenset(type_ for _, type_ in TRANSITIONS)


class Fold:
    """The state of a job at a place in its log. `apply` changes it in place."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.cursor = Cursor(0)
        self.state: State | None = None
        self.attempt = 0
        self.progress: dict[str, Any] | None = None
        self.text: dict[str, str] = {}
        """What each channel's deltas add up to."""
        self.outputs = 0
        """How many different outputs there are. A snapshot only counts them, so a fold that began with one may count
        an index again that is replaced."""
        self.cancel_requested = False
        self.end: dict[str, Any] = {}
        """The data of the terminal event."""
        self._indexes: set[str] = set()

    @classmethod
    def empty(cls, job: str) -> Self:
        """The fold of a log in which nothing has been read."""
        return cls(job)

    @classmethod
    def from_snapshot(cls, event: Event) -> Self:
        """The fold that a `snapshot` event holds."""
        data = dict(event.data)
        fold = cls(event.job)
        fold.cursor = Cursor.parse(data.pop("cursor"))
        state = data.pop("state")
        fold.state = None if state is None else State(state)
        fold.attempt = data.pop("attempt")
        fold.progress = data.pop("progress")
        fold.text = dict(data.pop("text"))
        fold.outputs = data.pop("outputs")
        fold.cancel_requested = data.pop("cancel_requested", False)
        fold.end = data
        return fold

    @property
    def terminal(self) -> bool:
        """Whether the terminal event has been folded."""
        return self.state in TERMINAL

    def apply(self, event: Event) -> Self:
        """Take the next numbered event.

        Raises `ValueError` for a change that the transition table doesn't have, and for a hole or a repeat in the
        numbers; the fold is then as it was.
        """
        cursor = event.cursor
        if cursor is None:
            raise ValueError(f"{event.type} has no number, so it changes nothing")
        if cursor.number != self.cursor.number + 1:
            raise ValueError(f"event {cursor.number} can't follow event {self.cursor.number}")
        self.state = self._next_state(event.type)
        self.cursor = cursor
        self._take(event)
        return self

    def data(self) -> dict[str, Any]:
        """The data of a snapshot event."""
        return {
            "cursor": str(self.cursor),
            "state": self.state,
            "attempt": self.attempt,
            "progress": self.progress,
            "text": self.text,
            "outputs": self.outputs,
            "cancel_requested": self.cancel_requested,
            **self.end,
        }

    def encode(self) -> bytes:
        """The data of a snapshot event as JSON, as the store keeps it."""
        return to_json(self.data())

    def _next_state(self, type_: str) -> State | None:
        known = EventType(type_) if type_ in _CHANGING else None
        if known is not None and (after := TRANSITIONS.get((self.state, known))) is not None:
            return after
        if known is not None or self.state is not State.RUNNING:
            raise ValueError(f"the event {type_} is not possible while the job is {self.state or 'not yet there'}")
        return self.state

    def _take(self, event: Event) -> None:
        data = event.data
        match event.type:
            case EventType.STARTED:
                self.attempt = event.attempt or self.attempt + 1
                if self.attempt > 1:
                    # A new attempt tells its progress and its text anew; outputs stay, so that pages that were read
                    # are not read twice.
                    self.progress = None
                    self.text = {}
            case EventType.PROGRESS:
                self.progress = data
            case EventType.DELTA:
                channel = data["channel"]
                self.text[channel] = self.text.get(channel, "") + data["text"]
            case EventType.OUTPUT:
                if data["index"] not in self._indexes:
                    self.outputs += 1
                    self._indexes.add(data["index"])
            case EventType.CANCEL_REQUESTED:
                self.cancel_requested = True
            case type_ if type_ in TERMINAL_TYPES:
                self.end = data


def fold_log(job: str, events: Iterable[Event]) -> Fold:
    """The fold of a whole log."""
    fold = Fold.empty(job)
    for event in events:
        fold.apply(event)
    return fold
