"""`make soak MINUTES=10`: the chaos suite for as long as you like, with its figures live and at the end.

Exits with 1 if a promise was broken or a step of a job's life was never met by a fault. `--seed` repeats a plan.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.chaos.report import line, show
from tests.chaos.run import Outcome, run_chaos


def main() -> int:
    """Run, print, and tell by the exit code how it went."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="repeat the faults of an earlier run")
    parser.add_argument("--rate", type=float, default=45.0, help="jobs a second, as long as there is room")
    parser.add_argument("--open", type=int, default=200, help="most open jobs at a time")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--keep", type=Path, default=None, help="a new folder for data and logs, which stays")
    chosen = parser.parse_args()
    seed = random.randrange(1 << 31) if chosen.seed is None else chosen.seed
    console = Console(width=max(160, Console().width))
    console.print(f"seed {seed}: repeat these faults with make soak MINUTES={chosen.minutes:g} SEED={seed}")
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        ticker = _Ticker(console)
        outcome = asyncio.run(
            run_chaos(
                folder,
                seed,
                chosen.minutes * 60,
                rate=chosen.rate,
                most_open=chosen.open,
                workers=chosen.workers,
                on_tick=ticker.tick,
            )
        )
    show(outcome, console)
    console.print(line(outcome))
    if unmet := outcome.unmet():
        console.print(f"[red]no fault has met a job in these steps: {', '.join(unmet)}")
    return 0 if outcome.book.good and not unmet else 1


class _Ticker:
    """A line in place on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("starting") if console.is_terminal else None
        if self._status is not None:
            self._status.start()
        self._said_at = 0.0

    def tick(self, outcome: Outcome) -> None:
        """Show how far it is."""
        if self._status is not None:
            self._status.update(line(outcome))
        elif outcome.seconds - self._said_at >= 10:
            self._said_at = outcome.seconds
            self._console.print(line(outcome))


if __name__ == "__main__":
    sys.exit(main())
