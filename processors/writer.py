"""Appends one attempt's events: encoded once, gathered into batches, in order, by one flusher.

- An output, a log line or an event of the author's own goes out as soon as the append before it has returned.
- Deltas of a channel are gathered for at most 25 ms after the last ones that went out, then merged into one event.
  They leave on a beat that all attempts of a process share, and so in one write to Redis.
- Progress goes out at most ten times a second, the latest wins; what waits goes before any other event.
- What waits is bounded: full means that the author's report waits, so a slow Redis slows the work, not the memory.
- A batch that got no answer is sent again, the same under the same number, which the script knows for a repeat.

What a stream of tokens does, it does thousands of times a second: gathered text leaves on the beat and its answer is
noted without a turn of the flusher, which sees to all that is less simple.

All of this belongs to the event loop; code in a thread comes through `SyncContext`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from gateway.errors import Unavailable
from gateway.event_text import decode_event, encode_event_tail
from gateway.protocol import MAX_BATCH_EVENTS, Cursor, Event, EventType
from gateway.store import Appended, JobRecord, Lease, WriterEvent
from processors.backoff import Backoff
from processors.beat import BEAT_SECONDS, Beat
from processors.folding import Folding, ReadableLog, StoredFold
from processors.text import clean

logger = logging.getLogger("outlast.worker")
T = TypeVar("T")

MAX_BATCH_BYTES: Final = 256 * 1024
# What may wait for Redis, per attempt: enough to ride out a slow moment, little enough for a hundred attempts.
MAX_WAITING_EVENTS: Final = 256
MAX_WAITING_BYTES: Final = 1024 * 1024
DELTA_GATHER_SECONDS: Final = 0.025
PROGRESS_PAUSE_SECONDS: Final = 0.1
# A delta's text: JSON can make 6 bytes of a character, and the event must stay under its limit.
MAX_DELTA_CHARACTERS: Final = 32 * 1024
# Redis away: soon enough after its return that a listener hardly notices, seldom enough not to flood it.
_RESEND_FIRST_SECONDS: Final = 0.05
_RESEND_MOST_SECONDS: Final = 1.0


class Log(ReadableLog, Protocol):
    """What the writer needs of the store."""

    def append(
        self,
        lease: Lease,
        batch: int,
        events: Sequence[WriterEvent],
        *,
        fold: bytes | None = None,
        fold_cursor: Cursor | None = None,
        result_blob: str | None = None,
    ) -> Awaitable[Appended]:
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


class _Departed:
    """A batch that is under way. All of it is chosen once: it must be the same when it is sent again."""

    __slots__ = ("answer", "batch", "ending", "events", "fold", "number")

    def __init__(self, number: int, batch: list[_Waiting], ending: _Ending | None, fold: StoredFold | None) -> None:
        self.number = number
        self.batch = batch
        self.events = [one.event for one in batch]
        self.ending = ending
        self.fold = fold
        self.answer: asyncio.Future[Appended]


class Writer:
    """The only way by which an attempt's events come into the log. `run` is its flusher; the attempt owns it."""

    def __init__(
        self, log: Log, lease: Lease, record: JobRecord, on_cancel_requested: Callable[[Event], object], beat: Beat
    ) -> None:
        self.beat = beat
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
        self._awaited_beat = 0
        self._on_the_beat = False
        self._wake = asyncio.Event()
        self._rests = False
        self._departed: _Departed | None = None
        self._moved: asyncio.Event | None = None
        self._ending: _Ending | None = None
        self._closed = False
        self.drops_late = False
        """Whether what comes after the end is dropped instead of refused: a batch goes on without this job."""
        self._leaves_something = False
        self._batch = 0
        self._listening = False
        self._folding = Folding(record)

    # --- for the context ----------------------------------------------------------------------------------------

    async def put(self, type_: str, tail: bytes, data: Mapping[str, Any], index: str = "") -> None:
        """Queue an event behind all earlier ones; waits while too much waits already."""
        if not await self.has_room():
            return
        self._seal()
        self._push(WriterEvent(type_, tail, index), data)
        self._wake.set()
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
            if (self._closed or self._is_full) and not await self.has_room():
                return
            piece = text[start : start + MAX_DELTA_CHARACTERS]
            if not self._gathered:
                self._awaited_beat = self.beat.wait(max(self._loop.time(), self._delta_due), self._on_beat)
            self._gathered.setdefault(channel, []).append(piece)
            self._gathered_bytes += len(piece)
            if self._gathered_bytes >= MAX_DELTA_CHARACTERS:
                self._seal()
                self._wake.set()

    async def flush(self) -> None:
        """Wait until all that was put so far is in the log."""
        self._seal()
        self._wake.set()
        target = self._accepted
        while self._appended < target and not (self._closed and self.drops_late):
            self._check_open()
            await self._movement()

    # --- for the attempt ----------------------------------------------------------------------------------------

    def log(self, level: str, message: str) -> None:
        """Queue a log line of the runtime's own, without waiting for room."""
        if not self._closed:
            data = {"level": level, "message": clean(message)}
            self._seal()
            self._push(WriterEvent(EventType.LOG, encode_event_tail(EventType.LOG, data)), data)
            self._wake.set()

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
                departed, self._departed = self._departed, None
                if departed is None:
                    if self._listening:
                        self._listening = False
                        await self._patiently(self._listen)
                        continue
                    departed = self._depart()
                await self._arrive(departed)
                if departed.ending is not None:
                    return
        finally:
            if self._departed is not None:
                self._departed.answer.cancel()
            self.close()

    async def hand_back(self, problem: dict[str, Any]) -> None:
        """Give the job back without this attempt's events, after `run` raised `EventsLost`."""
        await self._patiently(lambda: self._log.retry(self._lease, self._batch, [], problem, 0.0, counts=False))

    # --- what waits ---------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise asyncio.CancelledError("the attempt is over")

    async def has_room(self) -> bool:
        """Wait for room; False where the event is to be dropped."""
        while True:
            if self._closed and self.drops_late:
                return False
            self._check_open()
            if not self._is_full:
                return True
            await self._movement()

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING_EVENTS or self._waiting_bytes >= MAX_WAITING_BYTES

    def _push(self, event: WriterEvent, data: Mapping[str, Any]) -> None:
        self._waiting.append(_Waiting(event, data))
        self._waiting_bytes += len(event.tail)
        self._accepted += 1
        self._leaves_something |= event.type in (EventType.OUTPUT, EventType.DELTA)

    def _seal(self) -> None:
        """Turn what is held back into events, so that one may come after them."""
        self._seal_progress()
        for channel, pieces in self._gathered.items():
            data = {"channel": channel, "text": "".join(pieces)}
            self._push(WriterEvent(EventType.DELTA, encode_event_tail(EventType.DELTA, data)), data)
        if self._gathered:
            self._gathered = {}
            self._gathered_bytes = 0
            self._delta_due = self._loop.time() + DELTA_GATHER_SECONDS - BEAT_SECONDS
            self._awaited_beat = 0
            self._on_the_beat = False

    def _on_beat(self, number: int) -> None:
        # Otherwise what waited for this beat has left already.
        if number == self._awaited_beat:
            self._on_the_beat = True
            if self._departed is None:
                self._leave_on_the_beat()

    def _leave_on_the_beat(self) -> None:
        """Send what is gathered now, without the flusher if that has nothing else to see to."""
        if self._rests and self._progress is None and not self._wake.is_set():
            self._seal()
            self._departed = departed = self._depart()
            departed.answer.add_done_callback(self._on_answer)
        else:
            self._wake.set()

    def _on_answer(self, answer: asyncio.Future[Appended]) -> None:
        departed = self._departed
        if departed is None or departed.answer is not answer:
            # The flusher has taken it.
            return
        if answer.cancelled() or answer.exception() is not None or not self._follows(answer.result()):
            self._wake.set()
            return
        self._departed = None
        self._note(departed, answer.result())
        if self._on_the_beat:
            self._leave_on_the_beat()
        elif self._waiting:
            # More than one batch holds.
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
        """Wait until there is something to send: an event, or progress or deltas whose time has come.

        Or until there is something to see to of a batch that left without the flusher.
        """
        while True:
            if self._on_the_beat and self._departed is None:
                self._seal()
            elif self._progress is not None and self._loop.time() >= self._progress_due:
                self._seal_progress()
            if self._waiting or self._ending is not None or self._listening:
                return
            if self._departed is not None and self._departed.answer.done():
                return
            self._wake.clear()
            # What is gathered has a timer already.
            timer = None if self._progress is None else self._loop.call_at(self._progress_due, self._wake.set)
            self._rests = True
            try:
                await self._wake.wait()
            finally:
                self._rests = False
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

    def _depart(self) -> _Departed:
        """Send what waits, or as much of it as one batch may have."""
        batch = self._take()
        ending = self._ending if not self._waiting else None
        self._batch += 1
        departed = _Departed(self._batch, batch, ending, self._folding.take_if_due())
        departed.answer = asyncio.ensure_future(self._append(departed))
        return departed

    async def _arrive(self, departed: _Departed) -> None:
        """Wait for a batch's answer, and send it again while there is none."""
        answer = await self._patiently(lambda: self._append(departed), departed.answer)
        if departed.ending is None and not self._follows(answer):
            # Somebody else has written in between.
            await self._patiently(lambda: self._listen(answer.first - 1))
        self._note(departed, answer)

    def _follows(self, answer: Appended) -> bool:
        return answer.first == self._folding.cursor.number + 1

    def _note(self, departed: _Departed, answer: Appended) -> None:
        """A batch is in the log."""
        for number, one in enumerate(departed.batch, answer.first):
            size = len(one.event.tail)
            self._waiting_bytes -= size
            if departed.ending is None:
                self._folding.add(Cursor(number, answer.last.time_ms), one.event.type, one.data, size=size)
        self._appended += len(departed.batch)
        self._move()

    def _append(self, departed: _Departed) -> Awaitable[Appended]:
        ending, fold = departed.ending, departed.fold
        if ending is not None and ending.problem is not None:
            return self._log.retry(
                self._lease,
                departed.number,
                departed.events,
                ending.problem,
                ending.delay_seconds,
                counts=ending.counts,
            )
        return self._log.append(
            self._lease,
            departed.number,
            departed.events,
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

    async def _patiently(self, step: Callable[[], Awaitable[T]], begun: Awaitable[T] | None = None) -> T:
        """Do one step with the store, again and again while Redis is away: each step is safe to repeat.

        `begun` is the first try, where it is under way already.
        """
        backoff = Backoff(_RESEND_FIRST_SECONDS, _RESEND_MOST_SECONDS)
        while True:
            try:
                return await (step() if begun is None else begun)
            except Unavailable as error:
                begun = None
                logger.warning("job %s: not written yet, trying on: %s", self._lease.job, error.detail)
                await asyncio.sleep(backoff.next())

    async def _movement(self) -> None:
        """Wait for room, or for a batch to be in the log."""
        if self._moved is None:
            self._moved = asyncio.Event()
        await self._moved.wait()

    def _move(self) -> None:
        """Wake those who wait for room or for a flush."""
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.set()
