"""The doctor in a terminal: each step as it is done, then the one change. To stdout; in a pipe it is plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.doctor.compare import Difference
from gateway.doctor.drip import Shape
from gateway.doctor.measured import Chain
from gateway.doctor.report import Outcome, Report, Step, Told, route_file

_STEP_WIDTH: Final = 9
_STYLES: Final = {
    Outcome.HEALTHY: ("green", "Nothing is wrong with this chain"),
    Outcome.FIXED: ("green", "Fixed"),
    Outcome.UNDECIDED: ("yellow", "Undecided"),
}
_COPY: Final = "with the request that fails in its place; in a browser: developer tools, Network, Copy as cURL"
# The columns of the matrix: their heads, and what they hold.
_COLUMNS: Final = {"takes identity": ("identity", "1.1"), "takes gzip": ("gzip", "1.1"), "HTTP/2": ("gzip", "2")}


class Terminal:
    """Prints a walk."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, budget_seconds: float) -> None:
        """Say how long it may take."""
        self._console.print(Text(f"outlast doctor: takes at most {_duration(budget_seconds)}", style="dim"))

    def step(self, step: Step) -> None:
        """A step that has been done."""
        line = Table.grid(padding=(0, 1))
        line.add_column(width=_STEP_WIDTH, style="cyan")
        line.add_column(overflow="fold")
        if step.name != "change":
            line.add_row(step.name, Text(step.text))
            self._console.print(line)

    def report(self, report: Report) -> None:
        """What it came to."""
        self._console.print()
        if report.chain is not None and any(drip.shape is not Shape.PACED for drip in report.chain.drips):
            self._console.print(Padding(_matrix(report.chain), (0, 0, 1, _STEP_WIDTH + 1)))
        if report.differences:
            self._console.print(Padding(_differences(report.differences), (0, 0, 1, _STEP_WIDTH + 1)))
        if report.verdict is not None:
            self._console.print(_verdict(report, report.verdict))
            if file := route_file(report):
                # Outside of the frame, so that it can be copied.
                self._console.print(Text("FILE", style="cyan"))
                self._console.print(Text(file.rstrip()), soft_wrap=True)
        else:
            style, text = _STYLES[report.outcome]
            if report.outcome is Outcome.UNDECIDED:
                reason, advice = _undecided(report)
                self._console.print(Text(f"{text}: {reason}", style=f"bold {style}"))
                self._console.print(Text(advice))
            else:
                self._console.print(Text(text + ".", style=f"bold {style}"))
            if report.next:
                self._console.print(Text("next  ", style="cyan") + Text(report.next, style="green"), soft_wrap=True)
        if report.more:
            self._console.print()
            self._console.print(Text("more", style="cyan"))
            for one in report.more:
                self._console.print(Padding(_short(one), (0, 0, 0, 2)))
        self._console.print(Text(f"\n{report.outcome}, {report.seconds:.1f} s", style="dim"))


def _verdict(report: Report, verdict: Told) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("seen", Text("\n".join(verdict.evidence)))
    rows.add_row("change", Text(verdict.change, style="bold"))
    rows.add_row("why", Text(verdict.why))
    if report.verify:
        rows.add_row("verify", Text(report.verify, style="green"))
        if "curl ..." in report.verify:
            rows.add_row("", Text(_COPY, style="dim"))
    head = Text(verdict.title, style="bold red")
    if report.outcome is Outcome.NOT_FIXED:
        head = Text("Not fixed: ", style="bold red") + head
    place = Text(f"{verdict.place} · {verdict.code}", style="dim")
    return Panel(Group(head, place, Text(), rows), border_style="red", padding=(0, 1))


def _short(one: Told) -> Text:
    text = Text("note: " if one.note else "also: ", style="dim" if one.note else "yellow")
    text.append(f"{one.title}. ", style="default")
    text.append(one.change, style="dim")
    return text


def _matrix(chain: Chain) -> Table:
    measured = {(drip.encoding, drip.http) for drip in chain.drips}
    columns = {head: column for head, column in _COLUMNS.items() if column in measured}
    table = Table("stream", *columns, box=None, pad_edge=False)
    shapes = {(drip.method, drip.format, drip.encoding, drip.http): drip for drip in chain.drips}
    for method, format_ in dict.fromkeys((drip.method, drip.format) for drip in chain.drips):
        cells = []
        for encoding, http in columns.values():
            drip = shapes.get((method, format_, encoding, http))
            if drip is None:
                cells.append(Text("-", style="dim"))
            elif drip.shape is Shape.PACED:
                cells.append(Text("in time", style="green"))
            else:
                cells.append(Text(f"{drip.shape} ({drip.sent_seconds:.1f} s came in {drip.came_seconds:.1f} s)", "red"))
        table.add_row(f"{method} {format_}", *cells)
    return table


def _differences(differences: Sequence[Difference]) -> Table:
    table = Table("differs", "there", "here", box=None, pad_edge=False)
    for row in differences:
        table.add_row(row.what, Text(row.before), Text(row.after, style="red" if row.worse else ""))
    return table


def _undecided(report: Report) -> tuple[str, str]:
    """Why it could not be decided, and what to do about it."""
    if report.chain is None:
        return (
            "nothing in this text says what failed.",
            "Give the address, a curl command (in a browser: developer tools, Network, Copy as cURL) or a HAR file.",
        )
    if report.chain.probe == "busy":
        return "other doctors are measuring with this gateway's probes.", "Run it again in half a minute."
    if report.chain.probe == "ready":
        return "the answer did not come within the time that was allowed.", "Nothing else is wrong with this chain."
    if seconds := report.chain.silent_seconds:
        return (
            f"no byte came within {seconds:.0f} s.",
            "That is what an edge answers with a 524 when it has waited long enough: --deep waits for 140 s and says"
            " who ends it, and --origin URL asks the origin itself.",
        )
    if late := report.chain.late_seconds:
        return (
            f"the answer came, after {late:.0f} s of silence.",
            "That is an error wherever a hop waits for less: Heroku and API Gateway 30 s, nginx and ALB 60 s,"
            " Cloudflare 125 s. `outlast up --routes FILE` before it sends a byte every 15 s.",
        )
    ask = (
        f"The failing {report.method} was not sent, since it may start paid work: --rerun sends it once."
        if report.method not in {"GET", "HEAD"}
        else "If another request fails, give that one: a curl command, a HAR file, or the text of the error."
    )
    return (
        "nothing wrong was seen from outside.",
        f"{ask} To measure what happens to streams, an Outlast gateway has to be behind the address, started with"
        " OUTLAST_PROBE_TOKEN set, and the same token given to this command.",
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
