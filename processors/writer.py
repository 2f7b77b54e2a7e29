"""Appends one attempt's events: encoded once, gathered into batches, in order, by one flusher.

- An output, a log line or an event of the author's own goes out as soon as the append before it has returned.
- Deltas of a channel are gathered for at most 25 ms after the last ones that went out, then merged into one event.
  They leave on a beat that all attempts of a process share, and so in one write to Redis.
- Progress goes out at most ten times a second, the latest wins; what waits goes before any other event.
- What waits is bounded: full means that the author's report waits, so a slow Redis slows the work, not the memory.
- A batch that got no answer is sent again, the same under the same number, which the script knows for a repeat.

All of this belongs to the event loop; code in a thread comes through `SyncContext`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from gateway.errors import Unavailable
from gateway.event_text import decode_event, encode_event_tail
from gateway.protocol import MAX_BATCH_EVENTS, Cursor, Event, EventType
from gateway.store import Appended, JobRecord, Lease, WriterEvent
from processors.backoff import Backoff
from processors.folding import Folding, ReadableLog, StoredFold
from processors.text import clean

logger = logging.getLogger("outlast.worker")
T = TypeVar("T")

MAX_BATCH_BYTES: Final = 256 * 1024
# What may wait for Redis, per attempt: enough to ride out a slow moment, little enough for a hundred attempts.
MAX_WAITING_EVENTS: Final = 256
MAX_WAITING_BYTES: Final = 1024 * 1024
DELTA_GATHER_SECONDS: Final = 0.025
# A part of those: long enough that many streams have something to say, too short to be noticed.
_BEAT_SECONDS: Final = 0.005
PROGRESS_PAUSE_SECONDS: Final = 0.1
# A delta's text: JSON can make 6 bytes of a character, and the event must stay under its limit.
MAX_DELTA_CHARACTERS: Final = 32 * 1024
# Redis away: soon enough after its return that a listener hardly notices, seldom enough not to flood it.
_RESEND_FIRST_SECONDS: Final = 0.05
_RESEND_MOST_SECONDS: Final = 1.0


class Log(ReadableLog, Protocol):
    """What the writer needs of the store."""

    async def append(
        self,
        lease: Lease,
        batch: int,
        events: Sequence[WriterEvent],
        *,
        fold: bytes | None = None,
        fold_cursor: Cursor | None = None,
        result_blob: str | None = None,
    ) -> Appended:
        """Append a batch; a terminal event in it ends the job."""

    async def retry(
        self,
        lease: Lease,
        batch: int,
        events: Sequence[WriterEvent],
        problem: dict[str, Any],
        delay_seconds: float,
        *,
        counts: bool,
    ) -> Appended:
        """Append a batch and `retrying`, which puts the job back."""


class _Waiting(NamedTuple):
    """An event on its way: what is sent, and the data that the fold needs of it."""

    event: WriterEvent
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Ending:
    """How the attempt ends: its terminal event is the last that waits, or (`problem`) the job goes back."""

    result_blob: str | None = None
    problem: dict[str, Any] | None = None
    delay_seconds: float = 0
    counts: bool = True


class Writer:
    """The only way by which an attempt's events come into the log. `run` is its flusher; the attempt owns it."""

    def __init__(
        self, log: Log, lease: Lease, record: JobRecord, on_cancel_requested: Callable[[Event], object]
    ) -> None:
        self._log = log
        self._lease = lease
        self._on_cancel_requested = on_cancel_requested
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._accepted = 0
        self._appended = 0
        self._progress: dict[str, Any] | None = None
        self._progress_due = 0.0
        self._gathered: dict[str, list[str]] = {}
        self._gathered_bytes = 0
        self._delta_due = 0.0
        self._delta_timer: asyncio.TimerHandle | None = None
        self._on_the_beat = False
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._ending: _Ending | None = None
        self._closed = False
        self.drops_late = False
        """Whether what comes after the end is dropped instead of refused: a batch goes on without this job."""
        self._leaves_something = False
        self._batch = 0
        self._fold: StoredFold | None = None
        self._listening = False
        self._folding = Folding(record)

    # --- for the context ----------------------------------------------------------------------------------------

    async def put(self, type_: str, tail: bytes, data: Mapping[str, Any], index: str = "") -> None:
        """Queue an event behind all earlier ones; waits while too much waits already."""
        if not await self._has_room():
            return
        self._seal()
        self._push(WriterEvent(type_, tail, index), data)
        # Lets the flusher start on it also where the function that reports never waits for anything else.
        await asyncio.sleep(0)

    def progress(self, data: dict[str, Any]) -> None:
        """Replace the progress that waits."""
        if not self._closed:
            self._progress = data
            self._wake.set()

    async def delta(self, channel: str, text: str) -> None:
        """Add text to a channel; waits while too much waits already."""
        text = clean(text)
        for start in range(0, len(text), MAX_DELTA_CHARACTERS):
            if not await self._has_room():
                return
            piece = text[start : start + MAX_DELTA_CHARACTERS]
            if not self._gathered:
                beat = _next_beat(max(self._loop.time(), self._delta_due))
                self._delta_timer = self._loop.call_at(beat, self._on_beat)
            self._gathered.setdefault(channel, []).append(piece)
            self._gathered_bytes += len(piece)
            if self._gathered_bytes >= MAX_DELTA_CHARACTERS:
                self._seal()

    async def flush(self) -> None:
        """Wait until all that was put so far is in the log."""
        self._seal()
        target = self._accepted
        while self._appended < target and not (self._closed and self.drops_late):
            self._check_open()
            await self._moved.wait()

    # --- for the attempt ----------------------------------------------------------------------------------------

    def log(self, level: str, message: str) -> None:
        """Queue a log line of the runtime's own, without waiting for room."""
        if not self._closed:
            data = {"level": level, "message": clean(message)}
            self._seal()
            self._push(WriterEvent(EventType.LOG, encode_event_tail(EventType.LOG, data)), data)

    def end(self, type_: EventType, data: Mapping[str, Any], result_blob: str | None = None) -> None:
        """Make this terminal event the last; `run` returns once it is in the log, in one append with what waited."""
        self._check_open()
        self._seal()
        self._push(WriterEvent(type_, encode_event_tail(type_, data)), data)
        self._close(_Ending(result_blob=result_blob))

    def retry(self, problem: dict[str, Any], delay_seconds: float, *, counts: bool = True) -> None:
        """Give the job back after what waited; `run` returns once that is in the log."""
        self._check_open()
        self._seal()
        self._close(_Ending(problem=problem, delay_seconds=delay_seconds, counts=counts))

    def close(self) -> None:
        """Take no more events; those who wait for room get `CancelledError`."""
        self._closed = True
        self._move()

    def listen(self) -> None:
        """Read what others wrote to the log meanwhile: somebody may have asked for the job's end."""
        self._listening = True
        self._wake.set()

    @property
    def has_outputs(self) -> bool:
        """Whether a failure would leave something: an output or text, of this attempt or an earlier one."""
        return self._leaves_something or bool(self._gathered) or self._folding.has_outputs

    async def run(self) -> None:
        """Append what comes until the end is appended.

        Raises:
            LeaseLost: Another attempt has the job, or it has ended: nothing more was or will be written.
            EventsLost: Redis lost appended events, so this attempt's numbers don't fit any more.
        """
        try:
            await self._patiently(lambda: self._folding.load(self._log))
            while True:
                await self._until_due()
                if self._listening:
                    self._listening = False
                    await self._patiently(self._listen)
                    continue
                batch = self._take()
                ending = self._ending if not self._waiting else None
                await self._send(batch, ending)
                if ending is not None:
                    return
        finally:
            self.close()

    async def hand_back(self, problem: dict[str, Any]) -> None:
        """Give the job back without this attempt's events, after `run` raised `EventsLost`."""
        await self._patiently(lambda: self._log.retry(self._lease, self._batch, [], problem, 0.0, counts=False))

    # --- what waits ---------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise asyncio.CancelledError("the attempt is over")

    async def _has_room(self) -> bool:
        """Wait for room; False where the event is to be dropped."""
        while True:
            if self._closed and self.drops_late:
                return False
            self._check_open()
            if len(self._waiting) < MAX_WAITING_EVENTS and self._waiting_bytes < MAX_WAITING_BYTES:
                return True
            await self._moved.wait()

    def _push(self, event: WriterEvent, data: Mapping[str, Any]) -> None:
        self._waiting.append(_Waiting(event, data))
        self._waiting_bytes += len(event.tail)
        self._accepted += 1
        self._leaves_something |= event.type in (EventType.OUTPUT, EventType.DELTA)
        self._wake.set()

    def _seal(self) -> None:
        """Turn what is held back into events, so that one may come after them."""
        self._seal_progress()
        for channel, pieces in self._gathered.items():
            data = {"channel": channel, "text": "".join(pieces)}
            self._push(WriterEvent(EventType.DELTA, encode_event_tail(EventType.DELTA, data)), data)
        if self._gathered:
            self._gathered = {}
            self._gathered_bytes = 0
            self._delta_due = self._loop.time() + DELTA_GATHER_SECONDS - _BEAT_SECONDS
            self._on_the_beat = False
            if self._delta_timer is not None:
                self._delta_timer.cancel()

    def _on_beat(self) -> None:
        self._on_the_beat = True
        self._wake.set()

    def _seal_progress(self) -> None:
        data, self._progress = self._progress, None
        if data is not None:
            self._push(WriterEvent(EventType.PROGRESS, encode_event_tail(EventType.PROGRESS, data)), data)
            self._progress_due = self._loop.time() + PROGRESS_PAUSE_SECONDS

    def _close(self, ending: _Ending) -> None:
        self._ending = ending
        self._closed = True
        self._wake.set()

    # --- the flusher --------------------------------------------------------------------------------------------

    async def _until_due(self) -> None:
        """Wait until there is something to send: an event, or progress or deltas whose time has come."""
        while True:
            if self._on_the_beat:
                self._seal()
            elif self._progress is not None and self._loop.time() >= self._progress_due:
                self._seal_progress()
            if self._waiting or self._ending is not None or self._listening:
                return
            self._wake.clear()
            # What is gathered has a timer already.
            timer = None if self._progress is None else self._loop.call_at(self._progress_due, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_EVENTS:
            size += len(self._waiting[0].event.tail)
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, batch: list[_Waiting], ending: _Ending | None) -> None:
        self._batch += 1
        # Chosen once: the same batch must be the same when it is sent again.
        self._fold = self._folding.take_if_due()
        events = [one.event for one in batch]
        answer = await self._patiently(lambda: self._append(events, ending))
        if ending is None:
            await self._keep_folding(batch, answer)
        self._waiting_bytes -= sum(len(event.tail) for event in events)
        self._appended += len(events)
        self._move()

    async def _keep_folding(self, batch: list[_Waiting], answer: Appended) -> None:
        if answer.first != self._folding.cursor.number + 1:
            # Somebody else has written in between.
            await self._patiently(lambda: self._listen(answer.first - 1))
        for number, one in enumerate(batch, answer.first):
            cursor = Cursor(number, answer.last.time_ms)
            self._folding.add(cursor, one.event.type, one.data, size=len(one.event.tail))

    async def _append(self, events: list[WriterEvent], ending: _Ending | None) -> Appended:
        if ending is not None and ending.problem is not None:
            return await self._log.retry(
                self._lease, self._batch, events, ending.problem, ending.delay_seconds, counts=ending.counts
            )
        fold = self._fold
        return await self._log.append(
            self._lease,
            self._batch,
            events,
            fold=fold.text if fold else None,
            fold_cursor=fold.cursor if fold else None,
            result_blob=ending.result_blob if ending else None,
        )

    async def _listen(self, up_to: int | None = None) -> None:
        """Read and fold the events of others: besides this writer only a cancel request may write."""
        page = await self._log.events(self._lease.job, self._folding.cursor)
        for entry in page.entries:
            if up_to is not None and entry.number > up_to:
                break
            event = decode_event(entry.text)
            self._folding.add(entry.cursor, event.type, event.data, attempt=event.attempt, size=len(entry.text))
            if event.type == EventType.CANCEL_REQUESTED:
                self._on_cancel_requested(event)

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do one step with the store, again and again while Redis is away: each step is safe to repeat."""
        backoff = Backoff(_RESEND_FIRST_SECONDS, _RESEND_MOST_SECONDS)
        while True:
            try:
                return await step()
            except Unavailable as error:
                logger.warning("job %s: not written yet, trying on: %s", self._lease.job, error.detail)
                await asyncio.sleep(backoff.next())

    def _move(self) -> None:
        """Wake those who wait for room or for a flush."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


def _next_beat(time: float) -> float:
    return math.ceil(time / _BEAT_SECONDS) * _BEAT_SECONDS
