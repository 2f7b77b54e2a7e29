"""docs/guarantees.md is held to the truth: every test that it names is there, and its promises are the suite's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.verify import PROMISES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:tests|client_js)/[\w/.]+)::([^`]+)`", PAGE)


def sections() -> dict[str, str]:
    """The page's sections by their headings."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name[:60] for _, name in NAMED])
def test_every_test_that_the_page_names_is_there(file: str, name: str) -> None:
    """A test that is renamed or deleted takes its line's proof with it."""
    source = (ROOT / file).read_text(encoding="utf-8")
    wanted = f'test("{name}"' if file.endswith(".js") else f"def {name}("
    assert wanted in source


def test_the_page_has_the_seven_promises_and_each_has_its_proof() -> None:
    """In the words and numbers that `outlast verify` reports, and that the README tells."""
    found = sections()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for number, title in PROMISES.items():
        assert "::test_" in found[f"{number} {title}"], title
        assert f"{number}. **{title}.**" in readme
    assert "docs/guarantees.md" in readme


def test_every_line_of_a_proof_names_a_test() -> None:
    """A line without one is a wish."""
    tables = re.findall(r"^\| line \| proven by \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]

    assert len(lines) > 30
    assert [line for line in lines if "::" not in line] == []
