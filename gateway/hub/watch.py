"""A job that somebody here listens to: the follower of its live channel, and what is known of its worker."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway.event_text import decode_event, encode_transient
from gateway.hub.frame import Frame
from gateway.hub.listener import Pulse
from gateway.hub.subscription import Source, Subscription
from gateway.hub.tail import Tail
from gateway.protocol import Cursor, EventType, State, format_time
from gateway.store import JobRecord, Position, Store

_STATE_AFTER: Final = {b"queued": State.QUEUED, b"started": State.RUNNING, b"retrying": State.QUEUED}


class Watch:
    """One per job and gateway; hands what it hears to the job's subscriptions."""

    def __init__(
        self, store: Store, pulse: Pulse, record: JobRecord, spawn: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self.record = record
        self.tail = Tail(record.id, self._note)
        self.source = Source(store, self, self.tail, record.created_ms, spawn)
        self.state = record.state
        self.subscriptions: set[Subscription] = set()
        self.heard_at = pulse.clock()
        self.mark = secrets.token_hex(8) if record.options.grace_seconds is not None else None
        """Under which name the job is marked as listened to; None for a job that goes on without listeners."""
        self._pulse = pulse
        self._late_seconds = store.lease_seconds / 2
        self._state_number = record.last.number
        self._worker = record.worker or ""
        silent_ms = max(0, pulse.now_ms() - record.seen_ms) if record.seen_ms else 0
        self._seen_at = pulse.clock() - silent_ms / 1000
        self._liveness_at = float("-inf")
        self._told_late = False
        self._position: tuple[int | None, bool] | None = None

    @property
    def job(self) -> str:
        """The job's id."""
        return self.tail.job

    def on_message(self, payload: bytes) -> None:
        """A message of the live channel: `N-T type text` lines, or `seen ms worker`."""
        self._seen_at = self._pulse.clock()
        self._told_late = False
        if payload.startswith(b"seen "):
            self._worker = payload.split(b" ", 2)[2].decode()
            return
        self.heard_at = self._seen_at
        frames = self.tail.hear(payload)
        if frames is None:
            # Everybody's cursor must be checked.
            self.on_gap()
            return
        for subscription in tuple(self.subscriptions):
            if subscription.live:
                subscription.deliver(frames)

    def _note(self, frame: Frame) -> None:
        """Take a new event's news of the job: also where it was read, since the job may begin before it is followed."""
        if frame.number > self._state_number and (state := _STATE_AFTER.get(frame.type)) is not None:
            self.state = state
            if frame.type == b"started":
                self._worker = str(decode_event(frame.text).data.get("worker", self._worker))
            self._state_number = frame.number
            self._position = None

    def on_gap(self) -> None:
        """Messages may have been lost: every listener reads the log again, which also checks its cursor."""
        self.tail.lose()
        for subscription in tuple(self.subscriptions):
            subscription.fall_behind()

    def compare(self, head: Cursor | None) -> None:
        """Hold what was heard against the log's head: a lost last message shows by nothing else."""
        if head is not None and not self.tail.agrees_with(head):
            self.on_gap()

    def push_liveness(self, now: float) -> None:
        """Tell listeners how long the worker has been silent: with each heartbeat, and once when it gets late."""
        silent = now - self._seen_at
        late = silent > self._late_seconds and not self._told_late
        if self.state is not State.RUNNING or (now - self._liveness_at < self._pulse.heartbeat_seconds and not late):
            return
        self._liveness_at = now
        self._told_late = self._told_late or late
        data = {
            "worker": self._worker,
            "seen_at": format_time(self._pulse.now_ms() - int(silent * 1000)),
            "silent_seconds": round(silent, 1),
        }
        self._push_transient(EventType.LIVENESS, data)

    def push_position(self, place: Position) -> None:
        """Tell listeners the job's place in the queue if it has changed, or whether there is an estimate."""
        said = (place.position, place.eta_seconds is None)
        if said != self._position and self.state is State.QUEUED:
            self._position = said
            self._push_transient(EventType.POSITION, place._asdict())

    def _push_transient(self, type_: EventType, data: dict[str, Any]) -> None:
        text = encode_transient(type_, self.job, self._pulse.now_ms(), data)
        for subscription in tuple(self.subscriptions):
            subscription.push_transient(type_, text)
