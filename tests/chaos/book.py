"""The books: what was submitted and accepted, and what each listener has heard. None of it is the product's."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gateway.event_text import decode_event
from gateway.protocol import START, Cursor, EventType


@dataclass(slots=True)
class Heard:
    """One listener's record of one job: how far it is, and a digest of every text that it was given, in order."""

    book: Book
    job: str
    cursor: Cursor = START
    ended: bool = False
    door: str = ""
    """The gateway that it listens to now; empty between two connections."""
    connected_since: float | None = None
    """When that gateway answered, in seconds of the wall clock; None if it hasn't yet."""
    connections: list[tuple[float, float]] = field(default_factory=list)
    """The connections that were answered and are over: from when to when."""
    digest: Any = field(default_factory=hashlib.sha256)

    def connect(self) -> None:
        """Note the gateway's answer."""
        self.connected_since = self.connected_since or time.time()

    def leave(self) -> bool:
        """Note the end of a connection; returns whether it had been answered."""
        since, self.connected_since, self.door = self.connected_since, None, ""
        if since is not None:
            self.connections.append((since, time.time()))
        return since is not None

    def was_there(self, begin: float, end: float) -> bool:
        """Whether a connection that is over had been answered before `end`, and was not over at `begin`."""
        return any(since < end and until > begin for since, until in self.connections)

    def hear(self, text: bytes) -> None:
        """Take one event's text as it came."""
        event = decode_event(text)
        if event.type in {EventType.RESET, EventType.SNAPSHOT}:
            self.book.breach("lost", f"{self.job}: a listener at {self.cursor} got {text.decode()[:200]}")
        if event.id is None:
            return
        if self.ended:
            self.book.breach("terminals", f"{self.job}: event {event.id} after the end")
        elif event.id <= self.cursor.number:
            self.book.breach("repeated", f"{self.job}: event {event.id} came again at {self.cursor}")
        elif event.id != self.cursor.number + 1:
            self.book.breach("out of order", f"{self.job}: event {event.id} came at {self.cursor}")
        self.cursor = event.cursor or self.cursor
        self.digest.update(text + b"\n")
        self.ended = self.ended or event.terminal
        self.book.counts["events heard"] += 1


@dataclass(slots=True)
class Entry:
    """A job that was accepted."""

    key: str
    job: str
    kind: str
    body: dict[str, Any]
    heard: list[Heard] = field(default_factory=list)
    checked: bool = False


BREACHES = ("lost", "repeated", "out of order", "stuck", "terminals", "doubled", "crashed")


class Book:
    """Everything that the outside knows."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        """By job."""
        self.counts: Counter[str] = Counter()
        self.breaches: Counter[str] = Counter(dict.fromkeys(BREACHES, 0))
        self.words: list[str] = []

    def breach(self, kind: str, words: str) -> None:
        """Note a broken promise."""
        self.breaches[kind] += 1
        if len(self.words) < 50:
            self.words.append(f"{kind}: {words}")

    def accept(self, entry: Entry) -> None:
        """Note a 202."""
        self.counts["accepted"] += 1
        if entry.job in self.entries:
            self.breach("doubled", f"{entry.job} was given to {entry.key} and {self.entries[entry.job].key}")
        self.entries[entry.job] = entry

    @property
    def good(self) -> bool:
        """Whether no promise was broken."""
        return not sum(self.breaches.values())
