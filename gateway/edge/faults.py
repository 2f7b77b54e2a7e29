"""Faults on demand: what `POST /__edge/fault` asks for, and which request gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

FaultName = Literal[
    "520",
    "521",
    "522",
    "523",
    "524_now",
    "525",
    "526",
    "1015",
    "1016",
    "1033",
    "challenge",
    "drop_after_bytes",
    "slow_drip",
    "duplicate_request",
]
# Cloudflare's 1xxx errors come with a status of their own.
STATUSES: Final = {"1015": 429, "1016": 530, "1033": 530}
# More would be a mistake: each is looked at for each request.
_MAX_FAULTS: Final = 100


@dataclass(slots=True)
class Fault:
    """One fault, for the next requests that it fits."""

    fault: FaultName
    times: int = 1
    """How many requests get it; 0: all until it is cleared."""
    method: str = ""
    path: str = ""
    """The beginning of the paths that it is for."""
    bytes: int = 0
    """`drop_after_bytes`: cut after so many bytes of the body."""
    bytes_per_second: int = 1
    """`slow_drip`: how fast the body goes."""

    @classmethod
    def parse(cls, document: Any) -> Fault:
        """From a JSON object. Raises `ValueError` that says what is wrong."""
        if not isinstance(document, dict) or "fault" not in document:
            raise ValueError(f'send a JSON object {{"fault": NAME}}; NAME is one of {", ".join(get_args(FaultName))}')
        kinds = {"fault": str, "times": int, "method": str, "path": str, "bytes": int, "bytes_per_second": int}
        for key, value in document.items():
            if key not in kinds:
                raise ValueError(f"{key!r} is unknown; a fault has {', '.join(kinds)}")
            if type(value) is not kinds[key] or (isinstance(value, int) and value < 0):
                raise ValueError(f"{key!r} is a {'number from 0 on' if kinds[key] is int else 'text'}")
        if document["fault"] not in get_args(FaultName):
            raise ValueError(f"there is no fault {document['fault']!r}; there are {', '.join(get_args(FaultName))}")
        if document.get("bytes_per_second") == 0:
            raise ValueError("'bytes_per_second' is at least 1")
        return cls(**document)


class Faults:
    """The faults that wait for a request."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Let a fault wait. Raises `ValueError` when too many do."""
        if len(self._waiting) >= _MAX_FAULTS:
            raise ValueError(f"{_MAX_FAULTS} faults wait already; DELETE /__edge/fault clears them")
        self._waiting.append(fault)

    def clear(self) -> None:
        """Forget them all."""
        self._waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault for this request."""
        for fault in self._waiting:
            if fault.method in {"", method} and path.startswith(fault.path):
                if fault.times == 1:
                    self._waiting.remove(fault)
                elif fault.times > 1:
                    fault.times -= 1
                return fault
        return None
