"""The page about other people's workers names the examples that there are, and says what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "workers.md").read_text()
ADAPTERS = re.findall(r"\(\.\./examples/(\w+\.py)\)", PAGE)


def test_the_page_names_each_adapter() -> None:
    """Whatever in examples hands over is on the page."""
    there = {path.name for path in (ROOT / "examples").glob("*.py") if "hand_over" in path.read_text()}

    assert there
    assert there <= set(ADAPTERS)


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_adapter_can_be_read_in_a_minute(name: str) -> None:
    """It is there, says first how it is run, and is short."""
    text = (ROOT / "examples" / name).read_text()

    assert f"examples.{name.removesuffix('.py')}" in text.split('"""')[1] or f"examples/{name}" in text.split('"""')[1]
    assert len(text.splitlines()) < 120
