"""The README's code is the examples' own."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_examples_as_they_are() -> None:
    """A reader who copies the README's processor gets the file that is tested."""
    shown = re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    assert shown
    for name, code in shown:
        assert code.strip() in (ROOT / name).read_text(), name
