"""The fold: what an event log up to event N amounts to. Pure; `client_js/fold.js` has the same rules.

A listener that gets the snapshot of a fold at N and then the events from N + 1 on ends with the same fold as one that
read them all. `tests/wire/fold.json` holds logs that both languages must fold alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from gateway.protocol import START, TERMINAL, TERMINAL_TYPES, TRANSITIONS, UNNUMBERED, Cursor, Event, EventType, State

# Types that only stand where the transition table has them; all others are legal while the job runs.
_CHANGING: Final = frozenset(type_ for _, type_ in TRANSITIONS)
# A snapshot's own members. What the terminal event says stands beside them and can't take their places.
_OWN: Final = ("cursor", "state", "attempt", "progress", "text", "outputs", "cancel_requested")


class Fold:
    """The state of a job at a place in its log, at first where nothing has been read. `apply` changes it in place."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.cursor = START
        self.state: State | None = None
        self.attempt = 0
        self.progress: dict[str, Any] | None = None
        self.outputs = 0
        """How many `output` events there were. An index that was replaced counts again: a fold that began with a
        snapshot doesn't know the indexes, and it must not differ from one that read the whole log."""
        self.cancel_requested = False
        self.end: dict[str, Any] = {}
        """The data of the terminal event."""
        # Joined when somebody asks: adding every delta to one long string costs the square of its length.
        self._pieces: dict[str, list[str]] = {}

    @classmethod
    def from_snapshot(cls, event: Event) -> Self:
        """The fold that a `snapshot` event holds. Raises `ValueError` if it is none."""
        fold = cls(event.job)
        data = event.data
        try:
            fold.cursor = Cursor.parse(data["cursor"])
            fold.state = None if data["state"] is None else State(data["state"])
            fold.attempt = data["attempt"]
            fold.progress = data["progress"]
            fold._pieces = {channel: [text] for channel, text in data["text"].items()}
            fold.outputs = data["outputs"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no snapshot: {error!r}") from None
        fold.cancel_requested = data.get("cancel_requested", False)
        fold.end = _without_own(data)
        return fold

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL

    @property
    def text(self) -> dict[str, str]:
        """What each channel's deltas add up to."""
        for pieces in self._pieces.values():
            pieces[:] = ["".join(pieces)]
        return {channel: pieces[0] for channel, pieces in self._pieces.items()}

    def apply(self, event: Event) -> Self:
        """Take the next numbered event.

        Raises `ValueError` for a change that the transition table doesn't have, and for a hole or a repeat in the
        numbers; the fold is then as it was.
        """
        if event.type in UNNUMBERED or event.id is None or (cursor := event.cursor) is None:
            raise ValueError(f"{event.type} has no number, so it changes nothing")
        if cursor.number != self.cursor.number + 1:
            raise ValueError(f"event {cursor.number} can't follow event {self.cursor.number}")
        self.state = self._next_state(event.type)
        self.cursor = cursor
        self._take(event)
        return self

    def follow(self, event: Event) -> Fold:
        """The fold of a listener after any event that it hears: a snapshot or a reset replaces what there was.

        Raises `ValueError` as `apply` and `from_snapshot` do.
        """
        if event.type == EventType.SNAPSHOT:
            return Fold.from_snapshot(event)
        if event.type == EventType.RESET:
            return Fold(self.job)
        return self if event.id is None else self.apply(event)

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
                    self._pieces = {}
            case EventType.PROGRESS:
                self.progress = data
            case EventType.DELTA:
                self._pieces.setdefault(data.get("channel", "text"), []).append(data.get("text", ""))
            case EventType.OUTPUT:
                self.outputs += 1
            case EventType.CANCEL_REQUESTED:
                self.cancel_requested = True
            case type_ if type_ in TERMINAL_TYPES:
                self.end = _without_own(data)


def _without_own(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in _OWN}
