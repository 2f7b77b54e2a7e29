"""What the store hands out and takes in: plain frozen values, no Redis in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import from_json

from gateway.documents import KindDocument
from gateway.errors import LeaseLost
from gateway.protocol import TERMINAL, Cursor, Priority, State
from gateway.requests import JobOptions


class LogEntry(NamedTuple):
    """One event of a job's log: its number, its time, its type, and its JSON text as it goes to every listener."""

    number: int
    time_ms: int
    type: bytes
    text: bytes

    @property
    def cursor(self) -> Cursor:
        """The cursor of a listener that has this event."""
        return Cursor(self.number, self.time_ms)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a job: what the client called it, and the key of its blob."""

    name: str
    content_type: str
    size: int
    blob: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """All that `Store.submit` needs. `fingerprint` decides whether a used Idempotency-Key means the same request."""

    kind: KindDocument
    owner: str
    input: dict[str, Any]
    options: JobOptions
    fingerprint: str
    files: tuple[StoredFile, ...] = ()
    retry_of: str | None = None
    parent: str | None = None
    root: str | None = None
    """The first job of a chain of retries: what is done again finds there what was done."""
    input_blob: str | None = None
    """Where the input is instead, if it is too large for a record."""
    max_waiting: int | None = None
    """At most so many of the owner's jobs of this kind may wait, where that is fewer than the kind says."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as its record in Redis says it, but for its input, which is large and few ask for: `Store.input_of`.

    Times are milliseconds since 1970; None where it hasn't happened.
    """

    id: str
    kind: str
    owner: str
    state: State
    attempt: int
    failures: int
    max_attempts: int
    """So many failed attempts end the job: its kind's limit when it was submitted."""
    last: Cursor
    created_ms: int
    started_ms: int | None
    ended_ms: int | None
    expires_ms: int | None
    not_before_ms: int | None
    priority: Priority
    tags: tuple[str, ...]
    files: tuple[StoredFile, ...]
    retry_of: str | None
    cancel_by: str | None
    worker: str | None
    seen_ms: int | None
    progress: bytes | None
    """The data of the newest `progress` event, JSON."""
    input_blob: str | None
    """Where the input is, if it is too large for a record."""
    end: bytes | None
    """The data of the terminal event, JSON: `result` or `result_url`, or `problem` and `partial`, or `reason`."""
    result_blob: str | None
    leaves_something: bool = False
    """Whether there are outputs or text, whatever becomes of it."""
    redone_as: str | None = None
    """The job that does this one again."""
    parent: str | None = None
    """The job that this one is a step of."""
    root: str | None = None
    children: tuple[str, ...] = ()
    options: JobOptions = field(default_factory=JobOptions)

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL

    def ends_at(self, cursor: Cursor) -> bool:
        """Whether who has this cursor has every event that there will ever be."""
        return self.terminal and cursor in {self.last, Cursor(self.last.number)}

    @property
    def dead(self) -> bool:
        """Whether it used up its attempts, and nobody has done it again yet."""
        if self.state is not State.FAILED or self.redone_as is not None:
            return False
        return bool((self.end_data().get("problem") or {}).get("code") == "retries_exhausted")

    def end_data(self) -> dict[str, Any]:
        """The data of the terminal event; empty while the job is open."""
        return dict(from_json(self.end)) if self.end else {}


@dataclass(frozen=True, slots=True)
class Upload:
    """A resumable upload: `offset` bytes of `length` are there; None where the length is not known yet."""

    id: str
    owner: str
    name: str
    content_type: str
    """As the client said it; empty where it said nothing."""
    length: int | None
    offset: int
    expires_ms: float
    blob: str | None
    """Where its parts stand joined, once they do; `sha256` is then the digest of the whole."""
    sha256: str

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return self.offset == self.length


class Submitted(NamedTuple):
    """A submit's answer: the job's record, and whether an earlier request had made the job already."""

    record: JobRecord
    replayed: bool


class Claim(NamedTuple):
    """A job that a worker has taken from its kind's queue. `token` is its due score; see `Store.hold`."""

    job: str
    kind: str
    token: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a job's events: what `begin` gave, and what every write is checked against."""

    job: str
    kind: str
    attempt: int
    nonce: str

    def lost(self) -> LeaseLost:
        """The error of a write that comes after the right to it."""
        return LeaseLost(f"Job {self.job} is not attempt {self.attempt}'s any more.")


class Begun(NamedTuple):
    """What `Store.begin` answers: the lease, the record and the input, or none of them and why (`outcome`).

    `input` is JSON; empty where it is in the record's `input_blob`.
    `outcome` is `begun`, or: `unknown` · `ended` · `held` (another worker has it) · `early` (not before its time).
    """

    outcome: str
    lease: Lease | None = None
    record: JobRecord | None = None
    input: bytes = b""


class Appended(NamedTuple):
    """What `Store.append` answers: the numbers that the batch got, and who asked to cancel the job, if anybody."""

    first: int
    last: Cursor
    cancel_by: str | None


# Not frozen, which would take three times as long to make: there is one for each token.
@dataclass(slots=True)
class WriterEvent:
    """An event that an attempt wants to append: its type, its tail (`encode_event_tail`), its index if an output."""

    type: str
    tail: bytes
    index: str = ""
