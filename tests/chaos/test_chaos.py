"""The short form of the soak: some seconds of everything that can go wrong, then every equation must balance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.report import line
from tests.chaos.run import run_chaos

SEED = int(os.environ.get("OUTLAST_SEED", "524"))
SECONDS = 14.0


@pytest.mark.alone
@pytest.mark.timeout(240)
async def test_nothing_is_lost_or_doubled_whatever_dies(tmp_path: Path) -> None:
    """Accepted = ended, each log and each listener has 1..n, one terminal each; faults met a job in every step.

    The seed is in the failure's text: OUTLAST_SEED repeats the plan, `make soak SEED=` does so for longer.
    """
    outcome = await run_chaos(tmp_path, SEED, SECONDS, rate=20, most_open=60, workers=2)

    assert outcome.book.good, "\n".join([f"seed {SEED}", line(outcome), *outcome.book.words])
    assert outcome.unmet() == [], f"seed {SEED}: no fault has met a job in these steps: {outcome.met}"
    assert outcome.book.counts["accepted"] == outcome.book.counts["ended"] > 0
    assert outcome.book.counts["submitted again"] > 0
    assert outcome.book.counts["listener cuts"] > 0
    assert any(entry.kind == "forsaken" for entry in outcome.book.entries.values())
    assert outcome.faults["kind paused"] > 0
    assert min(outcome.worker_faults, outcome.gateway_kills, outcome.redis_restarts) > 0
