"""A run's figures as text: live on a line, and at the end as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.chaos.book import BREACHES
from tests.chaos.plan import FAULTS
from tests.chaos.run import Outcome
from tests.chaos.steps import Step


def line(outcome: Outcome) -> str:
    """The figures that a soak has to reach, on one line."""
    book = outcome.book
    seconds = max(1.0, outcome.seconds)
    breaches = ", ".join(f"{count} {name}" for name, count in book.breaches.items() if count) or "0 breaches"
    return (
        f"{outcome.seconds:5.0f} s  {book.counts['accepted']} jobs ({book.counts['accepted'] / seconds:.0f}/s), "
        f"{book.counts['ended']} ended, {book.counts['events logged']} events, "
        f"{outcome.worker_faults} worker faults, {outcome.gateway_kills} gateway kills, "
        f"{outcome.redis_restarts} Redis restarts, {book.counts['listener cuts']} listener cuts: {breaches}"
    )


def show(outcome: Outcome, console: Console) -> None:
    """All figures, and the first words about each breach."""
    book = outcome.book
    figures = Table(title=f"chaos, seed {outcome.seed}, {outcome.seconds:.0f} s", show_header=False)
    for name in ("accepted", "ended", "events logged", "events heard", "submits sent", "submitted again"):
        figures.add_row(name, str(book.counts[name]))
    figures.add_row("cancels asked", str(book.counts["cancels asked"]))
    figures.add_row("listener cuts", str(book.counts["listener cuts"]))
    for name in BREACHES:
        figures.add_row(name, f"{'' if not book.breaches[name] else '[red]'}{book.breaches[name]}")
    console.print(figures)
    met = Table(title="jobs that each fault has met, by the step that they were in")
    met.add_column("fault", no_wrap=True)
    met.add_column("times", justify="right", no_wrap=True)
    for step in Step:
        met.add_column(step.value, justify="right")
    for fault in FAULTS:
        cells = [str(outcome.met[fault, step] or "") for step in Step]
        met.add_row(fault, str(outcome.faults[fault]), *cells)
    sums = [sum(outcome.met[fault, step] for fault in FAULTS) for step in Step]
    met.add_section()
    met.add_row("all", str(outcome.faults.total()), *(str(one) if one else "[red]0" for one in sums))
    console.print(met)
    for words in book.words:
        console.print(words, markup=False, highlight=False)
