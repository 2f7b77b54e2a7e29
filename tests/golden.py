"""The golden files of the wire protocol, which the Python and the JavaScript tests read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "wire"


def golden(name: str) -> dict[str, Any]:
    """One file of `tests/wire/`."""
    content: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return content


def named(cases: list[dict[str, Any]]) -> list[Any]:
    """Cases for `parametrize`, each under its own name."""
    import pytest

    return [pytest.param(case, id=case["name"]) for case in cases]
