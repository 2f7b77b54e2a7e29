"""Text and names on their way into an event."""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import ConfigurationError
from gateway.protocol import INDEX_PATTERN

_INDEX: Final = re.compile(INDEX_PATTERN, re.ASCII)


def clean(text: str) -> str:
    """The text with `?` for what no UTF-8 can carry, such as half of a surrogate pair."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def check_index(index: str) -> None:
    """Raises `ValueError` for what is no output's index."""
    if _INDEX.fullmatch(index) is None:
        raise ValueError(f"{index!r} is no output index: use letters, digits, '.', '_', '-', at most 64")


def check_step_name(name: str) -> None:
    """Raises `ConfigurationError` for what is no step's name: it stands in channels and in outputs' indexes."""
    if _INDEX.fullmatch(name) is None:
        raise ConfigurationError(f"{name!r} is no step's name: use letters, digits, '.', '_', '-', at most 64.")
