"""The page on the doctor says what the code does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from gateway.cli import Exit, build_parser
from gateway.doctor.finding import Finding
from gateway.doctor.report import Outcome, Report, told
from gateway.doctor.verdicts import VERDICTS
from gateway.handlers import probe

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")


def test_the_page_lists_every_probe_and_no_other() -> None:
    """A new probe needs a row, and a removed one takes its row with it."""
    rows = re.findall(r"^\| (`[A-Z]+ /_probe/[^|]*) \|", PAGE, re.MULTILINE)
    listed = {request for row in rows for request in re.findall(r"`([A-Z]+ [^`]+)`", row)}

    assert listed == {f"{route.method} {route.path}" for route in probe.routes}


def test_the_page_tells_the_bounds_of_a_probe() -> None:
    """The numbers of the code."""
    assert f"{probe.MOST_AT_ONCE}; the next is 429" in PAGE
    assert f"| time | {probe.MOST_SECONDS:g} s |" in PAGE
    padding, stream = probe.MOST_PADDING_BYTES // 1024, probe.MOST_STREAM_BYTES // 2**20
    assert f"{probe.MOST_FRAMES} frames, {padding} KiB of padding in each, {stream} MiB in all" in PAGE
    assert f"{probe.MOST_UPLOAD_BYTES // 2**20} MiB; more is 413" in PAGE
    assert f"{probe.MOST_FRAMES} frames of at most" in PAGE


def test_the_page_lists_every_verdict_as_it_is() -> None:
    """Row by row: its code, where to look, what it is, the change."""
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| (\w+) \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)

    listed = {code: tuple(rest) for code, *rest in rows}
    assert listed == {
        code: (verdict.place.name.lower(), told(Finding(code)).title, told(Finding(code)).change)
        for code, verdict in VERDICTS.items()
    }
    notes = PAGE.partition("These are notes")[2].partition("## What it can't see")[0]
    assert {code for code in listed if f"| `{code}` |" in notes} == {code for code in VERDICTS if VERDICTS[code].note}


def test_the_page_lists_every_field_of_a_report_and_every_outcome() -> None:
    """What a script reads."""
    table = PAGE.partition("## The JSON report")[2].partition("## Verdicts")[0]
    first = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))

    assert set(re.findall(r"`([a-z_]+)`", first)) == Report.model_fields.keys()
    assert all(f"`{outcome}`" in table for outcome in Outcome)


def test_the_page_lists_every_option_and_exit_code() -> None:
    """As the command has them."""
    [commands] = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    options = {action.option_strings[0] for action in commands.choices["doctor"]._actions if action.option_strings}
    table = PAGE.partition("## Options")[2].partition("## Exit codes")[0]

    assert set(re.findall(r"^\| `(-[\w-]+)", table, re.MULTILINE)) == options - {"-h"}
    codes = PAGE.partition("## Exit codes")[2].partition("## The JSON")[0]
    used = {Exit.SUCCEEDED, Exit.FAILED, Exit.USAGE, Exit.UNDECIDED, Exit.INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", codes, re.MULTILINE)} == used
