"""What this gateway has heard of one job's log: its newest frames, its head, and whether something may be missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.hub.frame import Frame
from gateway.protocol import Cursor
from gateway.store import LogEntry

# Events of one job that are kept as built, for those who join or come back; a few hundred KB for a watched job.
_RECENT_FRAMES: Final = 512


class Tail:
    """Shared by all of a job's subscriptions, so that a thousand that come back together build each frame once.

    `note` hears of each when it is built, whether it was heard or read.
    """

    def __init__(self, job: str, note: Callable[[Frame], None]) -> None:
        self.job = job
        self._note = note
        self.head = 0
        """The newest number that was heard or read; 0 while nothing is known."""
        self.gaps = 0
        """How often messages may have been lost: who read the log before the last of them must read it again."""
        self._recent: dict[int, Frame] = {}

    def frames(self, entries: list[LogEntry]) -> list[Frame]:
        """Frames of log entries."""
        return [self._frame(*entry) for entry in entries]

    def _frame(self, number: int, time_ms: int, type_: bytes, text: bytes) -> Frame:
        known = self._recent.get(number)
        if known is not None and known.time_ms == time_ms:
            return known
        if len(self._recent) >= _RECENT_FRAMES:
            self._recent.clear()
        frame = self._recent[number] = Frame(number, time_ms, type_, text)
        self._note(frame)
        return frame

    def hear(self, payload: bytes) -> list[Frame] | None:
        """Frames of a live message's `N-T type text` lines; None if its numbers were used for something else before.

        Somebody may have read its events from the log already; others still need them live.
        """
        frames = []
        for line in payload.split(b"\n"):
            cursor, type_, text = line.split(b" ", 2)
            digits, _, time_digits = cursor.partition(b"-")
            number, time_ms = int(digits), int(time_digits)
            known = self._recent.get(number)
            if number <= self.head and (known is None or known.time_ms != time_ms):
                # Redis lost its tail and counts again; or it is a very late message, and a reading costs little.
                return None
            frames.append(self._frame(number, time_ms, type_, text))
        self.head = max(self.head, frames[-1].number)
        return frames

    def agrees_with(self, head: Cursor) -> bool:
        """Whether the log's head is the event that was heard last; true while nothing is known."""
        if self.head == 0:
            return True
        known = self._recent.get(head.number)
        return head.number == self.head and (known is None or known.time_ms == head.time_ms)

    def lose(self) -> None:
        """Messages may have been lost."""
        self.gaps += 1
        self.head = 0
