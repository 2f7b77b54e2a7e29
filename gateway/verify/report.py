"""What `outlast verify` finds: an outcome for each check, a verdict for each promise. Pure; no I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

# The promises of docs/guarantees.md, by their numbers.
PROMISES: Final[Mapping[int, str]] = {
    1: "Accepted means kept",
    2: "No gap, no repeat, in order",
    3: "A worker that lost its job can't write",
    4: "First byte at once, silence never",
    5: "A slow listener costs nobody else anything",
    6: "Same Idempotency-Key, same job",
    7: "Disconnect is not cancel",
}

# What somebody who can only send requests can't bring about. docs/guarantees.md names the tests that can.
BEYOND: Final[Mapping[int, str]] = {
    1: "workers, gateways and Redis that die; what Redis keeps on disk",
    2: "a log that was trimmed, a Redis that lost its tail, live messages that were dropped, a job that expired",
    3: "a worker that is paused or cut off and comes back after its lease",
    4: "silence while Redis or the worker is away; the planned end after some minutes",
    5: "the gateway's memory; listeners by the thousand",
    6: "a gateway that dies between two steps of a submit",
    7: "jobs submitted with `on_disconnect: cancel`, which end when nobody has listened for a minute",
}

# A promise whose heart only a fault inside can try: checks from outside can refute it, and prove nothing.
_ONLY_REFUTED: Final = frozenset({3})


class Verdict(StrEnum):
    """What was found."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_TESTED = "not_tested"


class Broken(Exception):
    """A promise does not hold; the text says what was seen instead."""


class NotTested(Exception):
    """A check can't be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found. `evidence` is what was seen: figures, ids, or what went wrong."""

    promise: int
    name: str
    claim: str
    verdict: Verdict
    evidence: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes of one run."""

    urls: tuple[str, ...]
    kind: str
    started_at: str
    seconds: float
    outcomes: tuple[Outcome, ...]

    def of(self, promise: int) -> list[Outcome]:
        """The outcomes of one promise, in the order of the checks."""
        return [outcome for outcome in self.outcomes if outcome.promise == promise]

    def verdict(self, promise: int) -> Verdict:
        """A promise fails with one of its checks, and holds if at least one holds and none fails."""
        verdict = worst([outcome.verdict for outcome in self.of(promise)])
        return Verdict.NOT_TESTED if verdict is Verdict.HOLDS and promise in _ONLY_REFUTED else verdict

    @property
    def failed(self) -> list[int]:
        """The promises that don't hold."""
        return [promise for promise in PROMISES if self.verdict(promise) is Verdict.FAILS]

    def document(self) -> dict[str, Any]:
        """The report as plain data, for `--json`."""
        return {
            "urls": list(self.urls),
            "kind": self.kind,
            "started_at": self.started_at,
            "seconds": round(self.seconds, 1),
            "verdict": worst([outcome.verdict for outcome in self.outcomes]).value,
            "promises": [
                {
                    "number": promise,
                    "promise": title,
                    "verdict": self.verdict(promise).value,
                    "checks": [
                        {
                            "name": outcome.name,
                            "claim": outcome.claim,
                            "verdict": outcome.verdict.value,
                            "evidence": outcome.evidence,
                            "seconds": round(outcome.seconds, 2),
                        }
                        for outcome in self.of(promise)
                    ],
                    "not_tested_from_here": BEYOND[promise],
                }
                for promise, title in PROMISES.items()
            ],
        }


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several: a failure beats all, and what wasn't tested says nothing."""
    for verdict in (Verdict.FAILS, Verdict.HOLDS):
        if verdict in verdicts:
            return verdict
    return Verdict.NOT_TESTED
