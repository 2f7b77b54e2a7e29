"""The page on settings says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config import Settings

_PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
_ROW = re.compile(r"^\| `OUTLAST_([A-Z_]+)` \| (?:`([^`]*)`|none) \| (.+) \|$", re.MULTILINE)
ROWS = {name.lower(): (default, meaning) for name, default, meaning in _ROW.findall(_PAGE.read_text(encoding="utf-8"))}


def test_the_page_lists_every_setting_and_no_other() -> None:
    """A new setting needs a row, and a removed one takes its row with it."""
    assert ROWS.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_page_tells_the_default(name: str) -> None:
    """What a row gives as the default is what the setting is if nobody sets it."""
    default = Settings.model_fields[name].get_default(call_default_factory=True)

    written, meaning = ROWS[name]

    if isinstance(default, bool):
        assert written == str(default).lower()
    elif isinstance(default, int | float):
        assert float(written) == default
    else:
        assert written == (str(default) if default else "")
    assert meaning.endswith(".") or meaning.endswith(").")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described_where_it_stands(name: str) -> None:
    """The code's own description is not left out."""
    assert Settings.model_fields[name].description
