"""Which fault comes when, drawn from a seed: the same seed is the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

# Per minute: with what nodes do to themselves, more than the figures of a soak ask for.
_RATES: Final = {
    "worker killed": 7.0,
    "worker paused": 5.0,
    "worker stopped": 1.0,
    "gateway killed": 5.0,
    "gateway paused": 1.5,
    "gateway stopped": 1.0,
    "redis killed": 1.4,
    "redis stopped": 0.9,
    "listeners cut": 40.0,
    "line cut": 4.0,
    "line stalled": 2.0,
    "line slow": 2.0,
    "line throttled": 1.0,
    "line black hole": 2.0,
    "kind paused": 2.0,
}
FAULTS: Final = (*_RATES, "worker halted", "gateway halted")
# A short run has each of these at least once.
_ALWAYS: Final = (
    *("worker killed", "worker paused", "gateway killed", "redis killed", "listeners cut", "line cut"),
    *("line stalled", "line black hole", "kind paused"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when it comes, whom it meets (a number that the deployment turns into a slot), how long it lasts."""

    at_seconds: float
    name: str
    target: int
    lasts_seconds: float


def plan(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run, by time."""
    rng = random.Random(f"{seed}/plan")
    names = [name for name, rate in _RATES.items() for _ in range(round(rate * seconds / 60))]
    names += [name for name in _ALWAYS if name not in names]
    faults = [Fault(rng.uniform(1, seconds), name, rng.randrange(1 << 16), rng.uniform(0.2, 4.5)) for name in names]
    # Two restarts of Redis at once would be one.
    restarts = [fault for fault in faults if fault.name.startswith("redis")]
    step = (seconds - 2) / max(1, len(restarts))
    spread = {id(fault): 2 + step * (i + rng.uniform(0.2, 0.8)) for i, fault in enumerate(restarts)}
    moved = [
        Fault(spread.get(id(fault), fault.at_seconds), fault.name, fault.target, fault.lasts_seconds)
        for fault in faults
    ]
    return sorted(moved, key=lambda fault: fault.at_seconds)
