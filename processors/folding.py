"""The fold of a job's log as its writer knows it, so that a snapshot can be stored without reading the log back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from pydantic_core import from_json

from gateway.event_text import decode_event, encode_snapshot_data
from gateway.fold import Fold
from gateway.protocol import START, Cursor, Event, EventType, format_time
from gateway.store import JobRecord, LogPage

logger = logging.getLogger("outlast.worker")

# So much new log makes a new fold worth storing: it bounds what the reader of a snapshot has to read after it.
FOLD_EVENTS: Final = 500
FOLD_BYTES: Final = 64 * 1024


class ReadableLog(Protocol):
    """What reading a log needs of the store."""

    async def fold(self, job: str) -> tuple[Cursor, bytes] | None:
        """The stored fold and its cursor."""

    async def events(self, job: str, after: Cursor) -> LogPage:
        """A page of the log."""


class StoredFold(NamedTuple):
    """A fold as it is stored: the JSON of a snapshot's data, and the last event that it covers."""

    text: bytes
    cursor: Cursor


class Folding:
    """Follows a log event by event, and folds only once a fold is due: most jobs end before that.

    What waits is bounded as the fold is, by what makes the next one due. A log that can't be folded is logged once and
    gets no more folds.
    """

    def __init__(self, record: JobRecord) -> None:
        self._job = record.id
        self._record = record
        self._fold: Fold | None = Fold(record.id)
        self._unfolded: list[tuple[Cursor, str, Mapping[str, Any], int]] = []
        self.cursor = START
        self._stored_at = 0
        # A fold of much text is stored less often than 64 KiB come: it would be written again and again otherwise.
        self._stored_bytes = 0
        self._bytes = 0
        self.has_outputs = False

    async def load(self, log: ReadableLog) -> None:
        """Fold what is in the log already."""
        last = self._record.last
        if self._record.attempt == 1 and last.number == 2:
            # Nothing but `queued` and `started`: not worth a read.
            for number, type_ in enumerate((EventType.QUEUED, EventType.STARTED), 1):
                self.add(Cursor(number, last.time_ms), type_, {})
            return
        stored = await log.fold(self._job)
        if stored is not None:
            self.cursor, text = stored
            self._stored_at = self.cursor.number
            snapshot = Event(job=self._job, type=EventType.SNAPSHOT, data=from_json(text))
            self._fold = Fold.from_snapshot(snapshot)
            self.has_outputs = bool(snapshot.data.get("outputs") or snapshot.data.get("text"))
        while self.cursor.number < last.number:
            page = await log.events(self._job, self.cursor)
            if not page.entries:
                logger.warning("job %s: its log can't be folded on from %s (%s)", self._job, self.cursor, page.broken)
                self._fold, self.cursor = None, last
                self._unfolded.clear()
                return
            for entry in page.entries:
                event = decode_event(entry.text)
                self.add(entry.cursor, event.type, event.data, attempt=event.attempt, size=len(entry.text))

    def add(
        self, cursor: Cursor, type_: str, data: Mapping[str, Any], *, attempt: int | None = None, size: int = 0
    ) -> None:
        """Apply the next event, which is of this attempt unless another one is named."""
        self.cursor = cursor
        self._bytes += size
        if type_ in (EventType.OUTPUT, EventType.DELTA):
            self.has_outputs = True
        if self._fold is not None:
            self._unfolded.append((cursor, type_, data, self._record.attempt if attempt is None else attempt))

    def take_if_due(self) -> StoredFold | None:
        """The fold, if so much was added since the last stored one that it is worth storing."""
        news = self.cursor.number - self._stored_at
        if self._fold is None or (news < FOLD_EVENTS and self._bytes < max(FOLD_BYTES, self._stored_bytes)):
            return None
        if not self._fold_up(self._fold):
            self._fold = None
            return None
        text = encode_snapshot_data(self._fold)
        self._stored_at, self._stored_bytes = self.cursor.number, len(text)
        self._bytes = 0
        return StoredFold(text, self.cursor)

    def _fold_up(self, fold: Fold) -> bool:
        """Apply what came since the last fold; False if it can't be."""
        unfolded, self._unfolded = self._unfolded, []
        for cursor, type_, data, attempt in unfolded:
            time = format_time(cursor.time_ms or 0)
            event = Event(id=cursor.number, time=time, job=self._job, attempt=attempt, type=type_, data=dict(data))
            try:
                fold.apply(event)
            except ValueError:
                logger.exception("job %s: event %d can't be folded; no more snapshots", self._job, cursor.number)
                return False
        return True
