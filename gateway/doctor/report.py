"""What the doctor says, as one value: printed, saved, compared with, written for the team. No I/O.

Every text in it has been through `redact`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from gateway.doctor.compare import Difference
from gateway.doctor.finding import Finding
from gateway.doctor.measured import Chain, Value
from gateway.doctor.redact import redact
from gateway.errors import InvalidInput


class Outcome(StrEnum):
    """How it came out; the exit code says the same."""

    HEALTHY = "healthy"
    """Measured, and nothing is wrong."""
    FAULT = "fault"
    """Something is wrong, and the verdict says what to change."""
    UNDECIDED = "undecided"
    """Nothing wrong was seen, but not everything could be looked at."""
    FIXED = "fixed"
    NOT_FIXED = "not_fixed"


class Told(Value):
    """One finding in words."""

    code: str = Field(description="Stable name of the verdict; docs/doctor.md lists them.")
    place: str = Field(description="Where to look: account, quota, provider, runtime, deployment or client.")
    cause: str = Field(description="The kind of cause; causes have an order in which they hide one another.")
    title: str = Field(description="What it is.")
    evidence: tuple[str, ...] = Field(description="What was seen.")
    change: str = Field(description="The one thing to change.")
    why: str = Field(description="Why that.")
    note: bool = Field(description="Worth knowing, and nothing to act on.")


class Step(Value):
    """One step of the walk."""

    name: Literal["capture", "place", "origin", "measure", "compare", "change"] = Field(description="Which step.")
    text: str = Field(description="What it found.")


class Report(Value):
    """One run of the doctor."""

    version: Literal[1] = Field(1, description="Of this format.")
    outlast: str = Field(description="The version of Outlast that made it.")
    made_at: str = Field(description="When, RFC 3339 UTC.")
    source: Literal["url", "curl", "har", "text"] = Field(description="What was brought.")
    target: str = Field(description="The address, secrets left out; empty where none is known.")
    method: str = Field("GET", description="The method of the request in question.")
    outcome: Outcome = Field(description="How it came out.")
    verdict: Told | None = Field(None, description="The finding to act on; none where nothing is wrong.")
    more: tuple[Told, ...] = Field((), description="Other findings, then notes.")
    verify: str = Field("", description="The command that shows whether the change helped.")
    next: str = Field("", description="The command that finds out more, where this run could not decide.")
    steps: tuple[Step, ...] = Field((), description="The walk, step by step.")
    origin: Chain | None = Field(None, description="Measured at the origin.")
    chain: Chain | None = Field(None, description="Measured at the address.")
    compared: Chain | None = Field(None, description="Measured at the working address.")
    differences: tuple[Difference, ...] = Field((), description="From the working address, or the baseline.")
    budget_seconds: float = Field(description="What was announced as the longest time.")
    seconds: float = Field(description="What it took.")


def told(finding: Finding, secrets: Iterable[str] = ()) -> Told:
    """A finding in words."""
    secrets = tuple(secrets)
    verdict = finding.verdict

    def text(template: str) -> str:
        # A value may itself have places for values, such as a hop's switch.
        return redact(finding.text(finding.text(template)), secrets)

    return Told(
        code=finding.code,
        place=verdict.place,
        cause=verdict.cause.name.lower(),
        title=text(verdict.title),
        evidence=tuple(redact(line, secrets) for line in finding.evidence),
        change=text(verdict.change),
        why=text(verdict.why),
        note=verdict.note,
    )


def load_report(text: str, name: str) -> Report:
    """A saved report. Raises `InvalidInput` for what is none."""
    try:
        return Report.model_validate_json(text)
    except ValidationError:
        raise InvalidInput(f"{name} is no report that `outlast doctor --save` wrote; save a new one.") from None


def route_file(report: Report) -> str:
    """The file that a change speaks of which puts Outlast before a slow route, for this route; else empty."""
    if report.verdict is None or "--routes FILE" not in report.verdict.change:
        return ""
    path = urlsplit(report.target).path if report.target else ""
    path = path if path not in {"", "/"} else "/the/slow/route"
    # What JSON says of a text, TOML reads.
    own, theirs = json.dumps(path), json.dumps(f"http://127.0.0.1:8000{path}")
    return f"[[route]]\npath = {own}\nupstream = {theirs}    # the slow server itself\n"


# --- for the team -----------------------------------------------------------------------------------------------------


def incident(report: Report) -> str:
    """The report as a page of Markdown: the incident, the evidence, the change, the proof."""
    lines = [
        f"# Incident: {report.verdict.title if report.verdict else 'nothing wrong was found'}",
        "",
        f"Found by `outlast doctor` {report.outlast} on {report.made_at}; secrets are left out.",
        "",
        "| | |",
        "|---|---|",
        f"| address | {_cell(report.target or 'not known')} |",
        f"| outcome | {report.outcome} |",
    ]
    if report.verdict:
        lines += [f"| verdict | `{report.verdict.code}` |", f"| where to look | {report.verdict.place} |"]
    lines += ["", "## What happened", ""]
    lines += [f"- {step.name}: {step.text}" for step in report.steps]
    if report.verdict:
        lines += ["", "## Evidence", "", *(f"- {line}" for line in report.verdict.evidence)]
        lines += ["", "## The change", "", report.verdict.change, ""]
        if file := route_file(report):
            lines += ["```toml", *file.splitlines(), "```", ""]
        lines += [f"Why: {report.verdict.why}"]
    if report.differences:
        lines += ["", "## Compared", "", "| what | works | here |", "|---|---|---|"]
        lines += [f"| {row.what} | {_cell(row.before)} | {_cell(row.after)} |" for row in report.differences]
    lines += ["", "## The proof", ""]
    proof = {
        Outcome.FIXED: "The smallest failing action was repeated and does not fail any more.",
        Outcome.NOT_FIXED: "The smallest failing action was repeated and still fails.",
        Outcome.HEALTHY: "Everything was measured, and nothing is wrong.",
    }.get(report.outcome, "Not there yet. After the change:")
    lines += [proof] if not report.verify else [proof, "", "```sh", report.verify, "```"]
    if report.more:
        lines += ["", "## More", "", *(f"- `{one.code}`: {one.title}. {one.change}" for one in report.more)]
    if report.chain and report.chain.drips:
        lines += ["", "## Streams", "", *_matrix(report.chain)]
    return "\n".join(lines) + "\n"


def _matrix(chain: Chain) -> Sequence[str]:
    rows = [
        f"| {drip.method} | {drip.format} | {drip.encoding} | {drip.http} | {drip.shape} | {drip.sent_seconds:.1f} |"
        f" {drip.came_seconds:.1f} | {drip.largest_lag_seconds:.2f} |"
        for drip in chain.drips
    ]
    return [
        "| method | format | takes | HTTP | shape | sent over s | came over s | largest lag s |",
        "|---" * 8 + "|",
        *rows,
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
