"""The page on the edge simulator says what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from gateway.edge import Record, load_profile, profile_names
from gateway.edge.faults import FaultName
from gateway.edge.profile import EVIDENCE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "edge.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_listed_with_its_title(name: str) -> None:
    """And the table has no other."""
    assert f"| `{name}` | {load_profile(name).title} |" in PAGE


def test_the_values_of_cloudflare_are_the_profiles() -> None:
    """Value, evidence and note; every one that differs from no hop at all."""
    profile, nothing = load_profile("cloudflare"), load_profile("direct")
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| `(\w+\.\w+)` \| (.*?) \| (.) \| (.*?) ?\|$", PAGE, re.MULTILINE)
    }
    different = {
        where
        for where in profile.evidence
        if _value(profile, where) != _value(nothing, where) or where in profile.notes
    }

    assert rows.keys() == different
    for where, (shown, evidence, note) in rows.items():
        assert (evidence, note) == (profile.evidence[where], profile.notes.get(where, ""))
        value = _value(profile, where)
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(shown) == value, where


def _value(profile: object, where: str) -> object:
    section, _, key = where.partition(".")
    return getattr(getattr(profile, section), key)


def test_every_fault_and_every_kind_of_evidence_is_told() -> None:
    """By its name."""
    assert all(f"`{name}`" in PAGE for name in get_args(FaultName))
    assert all(f"`{tag}`: {meaning}" in PAGE for tag, meaning in EVIDENCE.items())


def test_what_the_page_says_of_the_metrics_is_there() -> None:
    """Each name is a field of a record."""
    told = set(
        re.findall(r"`(\w+_(?:seconds|bytes|status))`", PAGE.partition("the metrics have")[2].partition("```")[0])
    )

    assert len(told) >= 7
    assert told <= {field.name for field in fields(Record)}


def test_the_page_shows_the_example_that_is_tested() -> None:
    """As it is."""
    [(name, code)] = re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)

    assert code == (ROOT / name).read_text(encoding="utf-8")


def test_the_profile_in_the_page_loads(tmp_path: Path) -> None:
    """It is what people begin with."""
    path = tmp_path / "mine.toml"
    path.write_text(PAGE.partition("```toml\n")[2].partition("```")[0])

    assert load_profile(str(path)).timers.gap_seconds == 300
