"""The wire protocol: states, events, cursors and close codes.

No I/O here, and nothing of pydantic, whose import takes longer than all else that a program waits for which only
imports the client: `gateway.documents` has what is answered, `gateway.requests` what is asked for, and
`gateway.event_text` writes and reads an event's text. `docs/protocol.md` is the description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import NoneType
from typing import Any, Final, Literal, NamedTuple

from gateway.errors import BadRequest


class State(StrEnum):
    """Where a job stands. The set is closed: time-outs, crashes and expiry are `failed` with a code."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
OPEN: Final = frozenset({State.QUEUED, State.RUNNING})


class EventType(StrEnum):
    """The event types that the protocol defines; an application's own types contain a dot."""

    QUEUED = "queued"
    STARTED = "started"
    PROGRESS = "progress"
    DELTA = "delta"
    OUTPUT = "output"
    LOG = "log"
    RETRYING = "retrying"
    CANCEL_REQUESTED = "cancel_requested"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # Not numbered:
    POSITION = "position"
    LIVENESS = "liveness"
    SNAPSHOT = "snapshot"
    RESET = "reset"
    CLOSING = "closing"
    MISSING = "missing"


TRANSIENT: Final = frozenset({EventType.POSITION, EventType.LIVENESS, EventType.CLOSING, EventType.MISSING})
TERMINAL_TYPES: Final = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})
# `?types=` never hides these: a listener that missed one of them would draw a wrong conclusion.
NEVER_HIDDEN: Final = TERMINAL_TYPES | {EventType.RESET, EventType.SNAPSHOT, EventType.MISSING}

# Types that no log holds; a listener's cursor moves over none of them but a snapshot.
UNNUMBERED: Final = TRANSIENT | {EventType.RESET, EventType.SNAPSHOT}

# (state, event type) -> state. A pair that is missing is an illegal change; events that are not named here change
# nothing and are legal only while the job runs.
TRANSITIONS: Final[Mapping[tuple[State | None, EventType], State]] = {
    (None, EventType.QUEUED): State.QUEUED,
    (State.QUEUED, EventType.STARTED): State.RUNNING,
    (State.QUEUED, EventType.CANCELLED): State.CANCELLED,
    (State.QUEUED, EventType.FAILED): State.FAILED,
    (State.RUNNING, EventType.RETRYING): State.QUEUED,
    (State.RUNNING, EventType.SUCCEEDED): State.SUCCEEDED,
    (State.RUNNING, EventType.FAILED): State.FAILED,
    (State.RUNNING, EventType.CANCELLED): State.CANCELLED,
}

KIND_PATTERN: Final = r"^[a-z][a-z0-9_.-]{0,63}$"
INDEX_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
TAG_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$"
JOB_PATTERN: Final = r"^[a-z0-9]{26}$"
TYPE_PATTERN: Final = r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$"
# 15 digits: exact as a double too, which is what Lua and JavaScript count with.
_CURSOR: Final = re.compile(r"(0|[1-9][0-9]{0,14})(?:-(0|[1-9][0-9]{0,14}))?", re.ASCII)

# One event's JSON text, and one append. A larger value goes to the blob store and travels as a url.
MAX_EVENT_BYTES: Final = 256 * 1024
MAX_BATCH_EVENTS: Final = 64


class Cursor(NamedTuple):
    """The last event that a listener has: its number and, if known, its time in ms.

    The time makes the cursor name content, not only a place: where Redis lost its tail in a failover and used a
    number again, `17-T` doesn't match and the listener is told (`reset`). `time_ms` None is accepted, unchecked.
    """

    number: int
    time_ms: int | None = None

    def __str__(self) -> str:
        return str(self.number) if self.time_ms is None else f"{self.number}-{self.time_ms}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read `N` or `N-T`. Raises `BadRequest` (`bad_cursor`) for anything else; never reads unicode digits."""
        # fullmatch: `$` would let a line break through.
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise BadRequest(
                "A cursor is the id of the last event that you have, such as 17-1764000000000 or 17; use the last"
                " `id:` of the stream as it came, or 0 for the start.",
                code="bad_cursor",
            )
        number, time_ms = match.groups()
        return cls(int(number), None if time_ms is None else int(time_ms))


START: Final = Cursor(0)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def format_time(time_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 UTC with three decimals, as every time on the wire."""
    # No float on the way: what is formatted here is read back as the same number, since cursors are made of it.
    time = _EPOCH + timedelta(milliseconds=time_ms)
    return time.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def parse_time(text: str) -> int:
    """An RFC 3339 time as milliseconds since 1970. Raises `ValueError` for one without an offset."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} has no offset from UTC; end it with Z")
    return (time - _EPOCH) // timedelta(milliseconds=1)


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event as a listener reads it. `id` and `attempt` are None where it has none, as a transient event."""

    job: str
    type: str
    id: int | None = None
    time: str | None = None
    attempt: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    terminal: bool = False
    extra: dict[str, Any] = field(default_factory=dict, repr=False)
    """Fields that this version doesn't know, as they came."""

    @property
    def cursor(self) -> Cursor | None:
        """What a listener that has this event comes back with; None for an event that moves no cursor.

        A snapshot names the last event that it covers, whose time isn't its own.
        """
        if self.type == EventType.SNAPSHOT:
            return Cursor.parse(str(self.data.get("cursor")))
        if self.id is None or self.time is None:
            return None
        return Cursor(self.id, parse_time(self.time))


_EVENT_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "job": (str,),
    "type": (str,),
    "id": (int, NoneType),
    "time": (str, NoneType),
    "attempt": (int, NoneType),
    "data": (dict,),
    "terminal": (bool,),
}


def read_event(value: object) -> Event:
    """Read one event from its parsed JSON; unknown fields and types pass through. Raises `ValueError` if it is none."""
    if not isinstance(value, dict) or "job" not in value or "type" not in value:
        raise ValueError("an event is a JSON object with `job` and `type`")
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, content in value.items():
        types = _EVENT_FIELDS.get(name)
        if types is None:
            extra[name] = content
        elif isinstance(content, types) and isinstance(content, bool) == (bool in types):
            known[name] = content
        else:
            raise ValueError(f"the event's `{name}` is {type(content).__name__}")
    return Event(**known, extra=extra)


# --- options ------------------------------------------------------------------------------------------------------

Priority = Literal["high", "normal", "low"]
# What one job adds to its owner's score (fair queueing): high goes 16 times as often as low, and low is never starved.
PRIORITY_STEPS: Final[Mapping[Priority, int]] = {"high": 2, "normal": 8, "low": 32}

DAY_SECONDS: Final = 86_400


# --- the ends of a WebSocket --------------------------------------------------------------------------------------


class CloseCode(StrEnum):
    """Why a WebSocket was closed, by name. 4000 to 4499: come back with your cursors; 4500 to 4999: do not."""

    SLOW = "slow"
    DRAINING = "draining"
    MAX_AGE = "max_age"
    STORE_LOST = "store_lost"
    CUT = "cut"
    TOKEN_EXPIRED = "token_expired"
    BAD_FRAME = "bad_frame"
    IDLE = "idle"


CLOSE_CODES: Final[Mapping[CloseCode, int]] = {
    CloseCode.SLOW: 4000,
    CloseCode.DRAINING: 4001,
    CloseCode.MAX_AGE: 4002,
    CloseCode.STORE_LOST: 4003,
    CloseCode.CUT: 4004,
    CloseCode.TOKEN_EXPIRED: 4005,
    CloseCode.BAD_FRAME: 4500,
    CloseCode.IDLE: 4501,
}


def should_come_back(close_code: int) -> bool:
    """Whether a client should reconnect after this close code, known to it or not.

    1000 is a wish of one of the two sides, 1002 to 1010 (but 1005 and 1006) say that the client is at fault; what is
    left of 1xxx (going away, no code, no close frame, restart, try again later) is the network's or the server's.
    """
    if 4000 <= close_code <= 4999:
        return close_code < 4500
    return close_code in {1001, 1005, 1006, 1011, 1012, 1013, 1014}
