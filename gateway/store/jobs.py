"""Jobs: submitting, reading, listing, cancelling."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, NoReturn

from pydantic_core import from_json, to_json

from gateway.errors import Gone, KeyReused, NotFound, OutlastError, RequestError, TooMany, Unavailable
from gateway.event_text import encode_event_tail
from gateway.protocol import DAY_SECONDS, PRIORITY_STEPS, Cursor, EventType, State
from gateway.requests import JobOptions
from gateway.store.connection import Connection, all_done, translated
from gateway.store.records import JobRecord, NewJob, StoredFile, Submitted
from gateway.store.scripts import encode_owner
from gateway.tokens import split_owner

# A submit takes milliseconds; after this, somebody looks whether it was finished.
_SUBMIT_LOOK_MS: Final = 30_000
# An open job is looked at this often at least, so that a lost pointer is found.
LONGEST_LOOK_MS: Final = 300_000
# A job that used up its attempts waits so long for somebody who mends the cause.
_DEAD_RETENTION_SECONDS: Final = 14 * DAY_SECONDS
# Recent jobs kept per owner.
_MAX_LISTED: Final = 10_000
_READ_JOBS: Final = 50
# Read for one page at most. A filter that nothing passes would go through all of them, each with its result.
_MOST_READ: Final = 1000
# Of results on one page: it is sent as a whole, and waits in memory for a client that reads slowly.
_PAGE_BYTES: Final = 2 * 1024 * 1024


def encode_id(digest: bytes) -> str:
    """128 bits as 26 characters [a-z2-7]."""
    return base64.b32encode(digest[:16]).decode().rstrip("=").lower()


# All of a record that a `JobRecord` tells. The input is not: it may be 256 KiB, and a stream holds a record for hours.
_FIELDS: Final = (
    *("id", "kind", "owner", "state", "attempt", "failures", "last", "last_ms", "created", "started", "ended"),
    *("expires", "not_before", "priority", "tags", "files", "retry_of", "parent", "root", "children", "cancel_by"),
    *("worker", "seen", "progress", "input_blob", "end", "result_blob", "leaves", "redone_as", "max_attempts"),
    "options",
)


def read_record(flat: Sequence[bytes]) -> tuple[JobRecord, bytes]:
    """A job's record and its input, from all fields and values as a script returns them."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return _record([fields.get(name.encode()) for name in _FIELDS]), fields[b"input"]


def _record(values: Sequence[bytes | None]) -> JobRecord:
    """A job's record from the values of `_FIELDS`."""
    fields = dict(zip(_FIELDS, values, strict=True))

    def text(name: str) -> str | None:
        value = fields[name]
        return value.decode() if value else None

    def number(name: str) -> int | None:
        value = fields[name]
        return int(value) if value and value != b"0" else None

    last, last_ms = number("last") or 0, number("last_ms") or 0
    return JobRecord(
        id=text("id") or "",
        kind=text("kind") or "",
        owner=text("owner") or "",
        state=State(text("state") or ""),
        attempt=number("attempt") or 0,
        failures=number("failures") or 0,
        max_attempts=number("max_attempts") or 1,
        last=Cursor(last, last_ms),
        created_ms=number("created") or 0,
        started_ms=number("started"),
        ended_ms=number("ended"),
        expires_ms=number("expires"),
        not_before_ms=number("not_before"),
        priority=text("priority") or "normal",  # type: ignore[arg-type]
        tags=tuple(from_json(fields["tags"] or b"[]")),
        files=tuple(StoredFile(**file) for file in from_json(fields["files"] or b"[]")),
        retry_of=text("retry_of"),
        parent=text("parent"),
        root=text("root"),
        children=tuple((text("children") or "").split()),
        cancel_by=text("cancel_by"),
        worker=text("worker"),
        seen_ms=number("seen"),
        progress=fields["progress"],
        input_blob=text("input_blob"),
        end=fields["end"],
        result_blob=text("result_blob"),
        leaves_something=text("leaves") is not None,
        redone_as=text("redone_as"),
        options=JobOptions.model_validate_json(fields["options"] or b"{}"),
    )


class Jobs(Connection):
    """A submit is three steps in two slots; whichever is the last one done, a look finishes or forgets the job."""

    job_deadline_seconds: float
    tombstone_seconds: float
    _secret: tuple[bytes | None, bytes] | None = None
    """Of which data (`Identity.mark`) it is, and itself."""

    async def job_id(self, owner: str, idempotency_key: str | None) -> str:
        """The id of a job to come: random, or with a key always the same for this owner and key."""
        if idempotency_key is None:
            return encode_id(secrets.token_bytes(16))
        text = f"{len(owner)}:{owner}{idempotency_key}".encode()
        return encode_id(hmac.new(await self.secret(), text, hashlib.sha256).digest())

    async def secret(self) -> bytes:
        """What all processes of this store sign with, and nobody else."""
        mark = self._identity.mark
        # A Redis that lost its data has another one: who went on with the old would call the same key another job.
        if self._secret is None or self._secret[0] != mark:
            async with translated():
                secret: bytes | None = await self._client.get(self._keys.secret)
                if secret is None:
                    await self._client.set(self._keys.secret, secrets.token_hex(32), nx=True)
                    secret = await self._client.get(self._keys.secret)
            assert secret is not None
            self._secret = mark, secret
        return self._secret[1]

    async def submit(self, job: str, new: NewJob, *, keyed: bool) -> Submitted:
        """Take a job: after this returns it is kept and will end exactly once.

        Raises `TooMany` or `Unavailable` where a queue is full, `KeyReused` for another request under the same key,
        `Gone` for a key whose job has expired.
        """
        refusal = await self._reserve(job, new)
        if refusal is not None:
            if keyed and (there := await self._find(job)) is not None:
                # An accepted job is replayed, never refused for want of room.
                return self._replay(there, new)
            raise refusal

        if new.retry_of is not None:
            [old] = await self.read_jobs([new.retry_of])
            new = replace(new, root=(old and old.root) or new.retry_of)
        nonce = secrets.token_hex(8)
        fields = self._fields(new)
        outcome, *fields_now = await self._run_durably(
            "create",
            self._keys.job(job),
            (job, nonce, new.fingerprint, encode_event_tail(EventType.QUEUED), *fields),
        )
        if outcome == b"gone":
            raise Gone("The job of this Idempotency-Key has ended and expired; use a new key for a new job.")
        if outcome == b"conflict":
            raise _key_reused()
        record, _ = read_record(fields_now[0])
        steps = [self.list_job(record)]
        if record.state is State.QUEUED:
            # Also for a replay: the first submitter may have died between the last two steps.
            steps.append(self._line_up(record, new))
        await all_done(steps)
        return Submitted(record, outcome == b"replayed")

    async def _line_up(self, record: JobRecord, new: NewJob) -> None:
        """Put a job into its kind's queue; one that waits for its start or its next attempt is put there by a look."""
        keys, priority = self._keys.kind(record.kind), new.options.priority
        grace_ms = (new.options.grace_seconds or math.inf) * 1000
        deadline_ms = self._start_deadline_ms(new) or math.inf
        look_ms = int(min(LONGEST_LOOK_MS, self.job_deadline_seconds * 1000, deadline_ms, grace_ms))
        # Both times are of the job's slot: two clocks are never compared.
        ahead_ms = (record.not_before_ms or 0) - record.created_ms
        if ahead_ms > 0:
            await self._run("notice", keys, (record.id, min(ahead_ms, look_ms)))
        else:
            arguments = (record.id, priority, encode_owner(record.owner), PRIORITY_STEPS[priority], look_ms)
            await self._run("enqueue", keys, arguments)

    async def _reserve(self, job: str, new: NewJob) -> OutlastError | None:
        """Make room for a job; returns why there is none."""
        kind = new.kind
        together = kind.max_waiting_per_owner
        most = min(together, new.max_waiting or together)
        try:
            room = await self._run(
                "reserve",
                self._keys.kind(kind.kind),
                (job, encode_owner(new.owner), kind.max_waiting, most, _SUBMIT_LOOK_MS, together),
            )
        except Unavailable as error:
            if error.code != "store_full":
                raise
            return error
        if room == b"owner_full":
            return TooMany(
                f"You have {most} jobs of kind {kind.kind} waiting; submit again when some have begun.",
                code="owner_queue_full",
                retry_after_seconds=5,
            )
        if room == b"users_full":
            # Who mints tokens names as many users as he likes.
            return TooMany(
                f"The users of one API key have {together} jobs of kind {kind.kind} waiting together; submit again when"
                " some have begun.",
                code="owner_queue_full",
                retry_after_seconds=5,
            )
        if room == b"kind_full":
            return Unavailable(
                f"The queue of kind {kind.kind} is full; try again later.", code="queue_full", retry_after_seconds=5
            )
        return None

    async def list_job(self, record: JobRecord) -> None:
        """Put a job into the list of recent jobs of its owner's key, unless it is a step of another one.

        The list is for people, and no part of a promise: where its master is away, or has no memory left, the job goes
        on without. The last look tries again.
        """
        if record.parent is not None:
            return
        key = self._keys.owner(record.owner)
        with suppress(Unavailable):
            async with translated(), self._client.pipeline(transaction=False) as pipe:
                pipe.zadd(key, {record.id: record.created_ms}, nx=True)
                pipe.zremrangebyrank(key, 0, -_MAX_LISTED - 1)
                await pipe.execute()
        self._called("list")

    def _fields(self, new: NewJob) -> list[Any]:
        options = new.options
        run_timeout = options.run_timeout_seconds or new.kind.run_timeout_seconds
        retention = options.retention_seconds or new.kind.retention_seconds
        fields: dict[str, Any] = {
            "kind": new.kind.kind,
            "owner": new.owner,
            "priority": options.priority,
            "tags": to_json(options.tags),
            "files": to_json(new.files),
            "input": b"" if new.input_blob else to_json(new.input),
            "options": options.model_dump_json(exclude_defaults=True),
            "max_attempts": new.kind.max_attempts,
            "run_timeout_ms": int(run_timeout * 1000),
            "retention_ms": int(retention * 1000),
            # Who said how long the data may be kept is obeyed, also where all attempts fail.
            "dead_retention_ms": int((options.retention_seconds or max(retention, _DEAD_RETENTION_SECONDS)) * 1000),
            "tombstone_ms": int(self.tombstone_seconds * 1000),
            "deadline_after_ms": int(self.job_deadline_seconds * 1000),
        }
        if options.grace_seconds is not None:
            fields["disconnect_grace_ms"] = int(options.grace_seconds * 1000)
        named = ("retry_of", "parent", "root", "input_blob")
        fields |= {name: value for name in named if (value := getattr(new, name)) is not None}
        if start_deadline_ms := self._start_deadline_ms(new):
            fields["start_deadline_after_ms"] = start_deadline_ms
        if options.start_at is not None:
            fields["not_before_after_ms"] = max(0, int((options.start_at.timestamp() - time.time()) * 1000))
        return [part for pair in fields.items() for part in pair]

    @staticmethod
    def _start_deadline_ms(new: NewJob) -> int | None:
        seconds = new.options.start_deadline_seconds or new.kind.start_deadline_seconds
        if seconds is None:
            return None
        start = new.options.start_at
        ahead = max(0.0, start.timestamp() - time.time()) if start else 0.0
        return int((seconds + ahead) * 1000)

    async def _find(self, job: str) -> tuple[JobRecord, bytes] | None:
        async with translated():
            fingerprint, *values = await self._client.hmget(self._keys.record(job), "fingerprint", *_FIELDS)
        return None if fingerprint is None else (_record(values), fingerprint)

    def _replay(self, there: tuple[JobRecord, bytes], new: NewJob) -> Submitted:
        record, fingerprint = there
        if fingerprint.decode() != new.fingerprint:
            raise _key_reused()
        return Submitted(record, True)

    async def job(self, job: str) -> JobRecord:
        """A job's record. Raises `NotFound`, and `Gone` for a job whose retention time is over."""
        [found] = await self.find_jobs([job])
        if isinstance(found, RequestError):
            raise found
        return found

    async def find_jobs(self, jobs: list[str]) -> list[JobRecord | NotFound | Gone]:
        """Several records at once; in the place of one that is not there, the error that `job` raises."""
        records = await self.read_jobs(jobs)
        lost = [job for job, record in zip(jobs, records, strict=True) if record is None]
        reasons = iter(await self._why_missing(lost)) if lost else iter(())
        return [next(reasons) if record is None else record for record in records]

    async def read_jobs(self, jobs: list[str]) -> list[JobRecord | None]:
        """Several records at once; None for those that are not there."""
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(self._keys.record(job), _FIELDS)
            rows: list[list[bytes | None]] = await pipe.execute()
        return [None if row[0] is None else _record(row) for row in rows]

    async def input_of(self, job: str) -> bytes:
        """A job's input, JSON; empty where it is in the record's `input_blob`. Raises as `job` does."""
        async with translated():
            text: bytes | None = await self._client.hget(self._keys.record(job), "input")
        if text is None:
            await self._missing(job)
        return text

    async def _missing(self, job: str) -> NoReturn:
        [reason] = await self._why_missing([job])
        raise reason

    async def _why_missing(self, jobs: list[str]) -> list[NotFound | Gone]:
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(self._keys.job(job)[5], "owner")
            owners: list[bytes | None] = await pipe.execute()
        return [_absence(job, owner) for job, owner in zip(jobs, owners, strict=True)]

    async def jobs(
        self,
        owner: str,
        *,
        state: State | None = None,
        kind: str | None = None,
        tag: str | None = None,
        user: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[JobRecord], str | None]:
        """Recent jobs of an API key, its users' included, newest first, and the next page's cursor, if there is one.

        A page may have fewer than `limit`, or none, and there be more: large results, and the few jobs that pass a
        filter, are spread over several.
        """
        key = self._keys.owner(owner)
        highest = f"({int(cursor)}" if cursor and cursor.isascii() and cursor.isdigit() else "+inf"
        found: list[JobRecord] = []
        read = size = 0
        while True:
            async with translated():
                rows = await self._client.zrevrangebyscore(
                    key, highest, "-inf", start=0, num=_READ_JOBS, withscores=True
                )
                if len(rows) == _READ_JOBS:
                    # The next read begins below this millisecond: what else is of it belongs to this one.
                    last = await self._client.zrangebyscore(key, rows[-1][1], rows[-1][1], withscores=True)
                    known = {job for job, _ in rows}
                    rows += [row for row in last if row[0] not in known]
            if not rows:
                return found, None
            records = await self.read_jobs([job.decode() for job, _ in rows])
            expired = [job for (job, _), record in zip(rows, records, strict=True) if record is None]
            if expired:
                async with translated():
                    await self._client.zrem(key, *expired)
            for (_, created), record in zip(rows, records, strict=True):
                if record is None or (state and record.state != state) or (kind and record.kind != kind):
                    continue
                if (tag and tag not in record.tags) or (user and split_owner(record.owner)[1] != user):
                    continue
                # Jobs of the same millisecond stay on one page: the cursor is that millisecond.
                full = len(found) >= limit or size >= _PAGE_BYTES
                if full and found[-1].created_ms != int(created):
                    return found, str(found[-1].created_ms)
                found.append(record)
                size += len(record.end or b"")
            read += len(rows)
            if read >= _MOST_READ:
                return found, str(int(rows[-1][1]))
            highest = f"({int(rows[-1][1])}"

    async def cancel(self, job: str, by: str, reason: str) -> JobRecord:
        """Ask for a job's end: it ends at once where nobody has it in hand, and who has it is told.

        Returns the job as it is then; one that had ended before is left as it is.
        """
        requested = encode_event_tail(EventType.CANCEL_REQUESTED, {"by": by, "reason": reason})
        cancelled = encode_event_tail(EventType.CANCELLED, {"reason": reason, "by": by})
        # It may be the job's end, which is as sure as any other.
        answer = await self._run_durably("cancel", self._keys.job(job), (job, by, requested, cancelled))
        if answer == b"unknown":
            await self._missing(job)
        record = await self.job(job)
        if answer in {b"freed", b"cancelled"}:
            # The look at it is what frees its place under its kind's cap, or among those that may wait; its entry may
            # be minutes ahead.
            with suppress(Unavailable):
                await self._run("notice", self._keys.kind(record.kind), (job, 0))
        if record.state is State.CANCELLED and record.children:
            # It waited for another attempt, and nobody is there who would tell them; the look does so too, but later.
            await asyncio.gather(*(self.cancel(child, by, reason) for child in record.children), return_exceptions=True)
        return record

    async def depths(self, kinds: list[str]) -> dict[str, tuple[int, int]]:
        """How many jobs of each kind are waiting, and how many are in hand."""
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for kind in kinds:
                keys = self._keys.kind(kind)
                pipe.zcard(keys[0])
                # Below zero stand those that wait to go on.
                pipe.zcount(keys[2], 0, "+inf")
            counts = await pipe.execute()
        return {kind: (counts[2 * i], counts[2 * i + 1]) for i, kind in enumerate(kinds)}


def _absence(job: str, owner: bytes | None) -> NotFound | Gone:
    if owner is None:
        return NotFound(f"There is no job {job}.", code="job_not_found")
    gone = Gone(f"Job {job} has ended, and its data was removed after its retention time.")
    gone.owner = owner.decode()
    return gone


def _key_reused() -> KeyReused:
    return KeyReused(
        "This Idempotency-Key was used for another request; use a new key for a new request, and the same body to"
        " repeat the old one."
    )
