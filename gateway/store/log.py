"""The event log: appending to it under a lease, and reading it in pages."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from gateway.errors import BadRequest, EventsLost
from gateway.event_text import encode_event_tail, number_of
from gateway.protocol import TERMINAL, TERMINAL_TYPES, Cursor, EventType
from gateway.store.connection import translate, translated
from gateway.store.convoy import Convoy
from gateway.store.jobs import Jobs
from gateway.store.records import Appended, Lease, LogEntry, WriterEvent

# One read of the log; a longer one is read page by page, so that a thousand listeners at once need bounded memory.
PAGE_EVENTS: Final = 256
# Reads that go out in one pipeline. More wait for the next one.
_BATCH_READS: Final = 64


class LogPage(NamedTuple):
    """Events after a cursor, in order without holes, and where the log ends.

    `broken` says why nothing can be spliced to the cursor: `trimmed` (what follows it is gone) or `rewritten` (Redis
    lost its tail and used the numbers again). The entries are then empty.
    """

    entries: list[LogEntry]
    head: Cursor
    terminal: bool
    broken: str | None = None


class _Read(NamedTuple):
    job: str
    after: Cursor
    limit: int
    page: asyncio.Future[LogPage | None]


class Log(Jobs):
    """All reads of one loop turn go to Redis in one pipeline, and all appends: many jobs need few connections."""

    _wanted: deque[_Read]
    _wake: asyncio.Event
    _appends: Convoy

    def append(
        self,
        lease: Lease,
        batch: int | None,
        events: Sequence[WriterEvent],
        *,
        fold: bytes | None = None,
        fold_cursor: Cursor | None = None,
        result_blob: str | None = None,
    ) -> Awaitable[Appended]:
        """Write an attempt's next batch in one atomic step: log, state, outputs, publication.

        It leaves at the end of this turn of the loop, whether the answer is awaited yet or not.
        `batch` counts 1, 2, 3, ... in each attempt; sending the same batch again is safe and gets the first answer.
        A writer that doesn't count says None, and what it sends twice is written twice.
        A terminal event, last of the batch, ends the job. `fold` is the state up to `fold_cursor`, as JSON.
        Raises `LeaseLost` (stop: another has the job, or it ended) and `EventsLost` (Redis lost earlier batches).
        """
        closing = bool(events) and events[-1].type in TERMINAL_TYPES
        folded: tuple[bytes | str, int] = ("", 0)
        if fold is not None and fold_cursor is not None:
            folded = (f"{fold_cursor} ".encode() + fold, fold_cursor.number)
        arguments = [*folded, result_blob or "", 0, 0]
        return self._write(lease, batch, events, arguments, durably=closing)

    async def retry(
        self,
        lease: Lease,
        batch: int | None,
        events: Sequence[WriterEvent],
        problem: dict[str, Any],
        delay_seconds: float,
        *,
        counts: bool,
    ) -> Appended:
        """Give the job back to the queue, after a delay: `retrying` is the last event of the batch.

        `counts` False is a release (a stopping worker): it is no failure and costs no attempt.
        """
        data = {"problem": problem, "delay_seconds": round(delay_seconds, 3)}
        closing = WriterEvent(EventType.RETRYING, encode_event_tail(EventType.RETRYING, data))
        arguments = ["", 0, "", int(delay_seconds * 1000), int(counts)]
        return await self._write(lease, batch, [*events, closing], arguments)

    def _write(
        self,
        lease: Lease,
        batch: int | None,
        events: Sequence[WriterEvent],
        options: list[Any],
        *,
        durably: bool = False,
    ) -> Awaitable[Appended]:
        number = f"?{secrets.token_hex(8)}" if batch is None else batch
        arguments: list[Any] = [lease.job, lease.attempt, lease.nonce, number, *options]
        for event in events:
            arguments += (event.type, event.tail, event.index)
        keys = self._keys.job(lease.job)
        if durably and self._durability != "redis":
            return self._write_durably(lease, keys, arguments)
        return self._appends.start(keys, arguments, partial(_appended, lease))

    async def _write_durably(self, lease: Lease, keys: Sequence[str], arguments: Sequence[Any]) -> Appended:
        return _appended(lease, await self._run_durably("append", keys, arguments))

    async def events(self, job: str, after: Cursor, limit: int = PAGE_EVENTS) -> LogPage:
        """The events after a cursor.

        Raises `BadRequest` (`bad_cursor`) for a bare number beyond the head, `NotFound` and `Gone` for the job.
        Cancelling it cancels nothing but the caller's own wait.
        """
        read = _Read(job, after, limit, asyncio.get_running_loop().create_future())
        self._wanted.append(read)
        self._wake.set()
        page = await read.page
        return page or await self._missing(job)

    async def _read_loop(self) -> None:
        """Send what was asked for since the last pipeline as the next one; owned by the store."""
        while True:
            await self._wake.wait()
            batch = [self._wanted.popleft() for _ in range(min(_BATCH_READS, len(self._wanted)))]
            if not self._wanted:
                self._wake.clear()
            if not batch:
                continue
            try:
                await self._read_batch(batch)
            except Exception as error:  # noqa: BLE001 - each waiting reader gets it
                for read in batch:
                    if not read.page.done():
                        read.page.set_exception(error)
            except asyncio.CancelledError:
                # Nobody cancelled the readers: `close` tells them, with those whose turn had not come.
                self._wanted.extendleft(batch)
                raise

    async def _read_batch(self, batch: list[_Read]) -> None:
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for job, after, limit, _ in batch:
                pipe.hmget(self._keys.record(job), "last", "last_ms", "state")
                # A cursor with a time is read including its own entry, which proves that it is still the same one.
                checked = after.time_ms is not None and after.number > 0
                start = f"{after.number}-0" if checked else f"{after.number + 1}-0"
                pipe.xrange(self._keys.events(job), start, "+", count=limit + checked)
            replies = await pipe.execute(raise_on_error=False)
        for read, record, rows in zip(batch, replies[::2], replies[1::2], strict=True):
            if read.page.done():
                continue
            failure = next((reply for reply in (record, rows) if isinstance(reply, Exception)), None)
            if failure is not None:
                # In a cluster, that of one master: the other jobs have theirs elsewhere.
                read.page.set_exception(translate(failure))
                continue
            last, last_ms, state = record
            if state is None:
                read.page.set_result(None)
                continue
            head = Cursor(int(last), int(last_ms))
            try:
                read.page.set_result(_page(read.after, rows, head, state.decode() in TERMINAL))
            except BadRequest as error:
                read.page.set_exception(error)

    async def heads(self, jobs: list[str]) -> list[Cursor | None]:
        """The newest event of each job; None for one that is not there, or is at a master of a cluster that is away."""
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(self._keys.record(job), "last", "last_ms")
            rows = await pipe.execute(raise_on_error=False)
        return [
            None if isinstance(row, Exception) or row[0] is None else Cursor(int(row[0]), int(row[1])) for row in rows
        ]

    async def log_bytes(self, job: str) -> int:
        """How large a job's log is: what was written, less what was trimmed."""
        async with translated():
            written, trimmed = await self._client.hmget(self._keys.record(job), "bytes", "trimmed_bytes")
        return int(written or 0) - int(trimmed or 0)

    async def fold(self, job: str) -> tuple[Cursor, bytes] | None:
        """The newest stored fold, as the JSON of a snapshot's data, and its cursor; None where none was stored."""
        async with translated():
            stored: bytes | None = await self._client.get(self._keys.job(job)[3])
        if stored is None:
            return None
        cursor, _, text = stored.partition(b" ")
        return Cursor.parse(cursor.decode()), text

    async def outputs(self, job: str, prefix: str = "") -> list[bytes]:
        """The texts of the newest output event of each index, in the order of their numbers.

        `prefix`: only of indexes that begin so, without reading the others.
        """
        key = self._keys.job(job)[2]
        async with translated():
            if not prefix:
                return sorted(await self._client.hvals(key), key=number_of)
            names = [name for name in await self._client.hkeys(key) if name.startswith(prefix.encode())]
            stored = await self._client.hmget(key, names) if names else []
        return sorted((text for text in stored if text is not None), key=number_of)

    async def output(self, job: str, index: str) -> bytes | None:
        """The text of the newest output event of an index."""
        async with translated():
            stored: bytes | None = await self._client.hget(self._keys.job(job)[2], index)
        return stored


def _page(after: Cursor, rows: list[tuple[bytes, dict[bytes, bytes]]], head: Cursor, terminal: bool) -> LogPage:
    entries = []
    for stream_id, fields in rows:
        number, _, time_ms = stream_id.partition(b"-")
        entries.append(LogEntry(int(number), int(time_ms), fields[b"t"], fields[b"e"]))
    if after.number > head.number:
        if after.time_ms is None:
            raise BadRequest(
                f"The cursor {after} is beyond the job's last event, {head.number}; use the id of an event that you"
                " have, or 0 for the start.",
                code="bad_cursor",
            )
        return LogPage([], head, terminal, "rewritten")
    if after.time_ms is not None and after.number > 0:
        if not entries or entries[0].number > after.number:
            return LogPage([], head, terminal, "trimmed")
        if entries[0].time_ms != after.time_ms:
            return LogPage([], head, terminal, "rewritten")
        del entries[0]
    elif head.number > after.number and (not entries or entries[0].number != after.number + 1):
        return LogPage([], head, terminal, "trimmed")
    return LogPage(entries, head, terminal)


def _appended(lease: Lease, answer: list[bytes]) -> Appended:
    """Read the script's answer. Raises `EventsLost` and `LeaseLost`."""
    if answer[0] == b"ok":
        return Appended(int(answer[1]), Cursor(int(answer[2]), int(answer[3])), answer[4].decode() or None)
    if answer[0] == b"gap":
        raise EventsLost(f"Redis lost events of job {lease.job} that it had acknowledged.")
    raise lease.lost()
