"""The page on the doctor says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

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
