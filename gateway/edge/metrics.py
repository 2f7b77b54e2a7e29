"""What happened to each request, in simulated seconds: what a doctor or a test looks at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

# The oldest are forgotten.
_KEPT: Final = 1000


@dataclass(slots=True)
class Record:
    """One request through one hop."""

    ray: str
    method: str
    path: str
    started_seconds: float
    websocket: bool = False
    reused: bool = False
    """Whether it went over a connection to the origin that had served another."""
    origin_status: int | None = None
    status: int | None = None
    """What the client was told."""
    first_header_seconds: float | None = None
    """When the origin's final head was complete, after the start."""
    first_byte_seconds: float | None = None
    """When the first byte of its body came."""
    passed_first_byte_seconds: float | None = None
    """When the first byte of the body went to the client."""
    last_gap_seconds: float | None = None
    """How long the origin had been silent when the request ended."""
    largest_gap_seconds: float = 0.0
    request_bytes: int = 0
    response_bytes: int = 0
    passed_bytes: int = 0
    most_held_bytes: int = 0
    seconds: float | None = None
    ended: str | None = None
    """How it ended; None while it goes on."""


class Metrics:
    """The last requests."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._records: deque[Record] = deque(maxlen=_KEPT)
        self.restarts = 0
        self.in_flight = 0

    @property
    def records(self) -> list[Record]:
        """Oldest first."""
        return list(self._records)

    def begin(self, ray: str, method: str, path: str) -> Record:
        """Note a request's start."""
        record = Record(ray, method, path, self._now())
        self._records.append(record)
        self.in_flight += 1
        return record

    def end(self, record: Record, how: str) -> None:
        """Note its end."""
        record.ended = how
        record.seconds = self._now() - record.started_seconds
        self.in_flight -= 1

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "restarts": self.restarts,
            "in_flight": self.in_flight,
            "requests": [asdict(record) for record in self._records],
        }
