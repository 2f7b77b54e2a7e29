"""Text on its way into an event."""

from __future__ import annotations


def clean(text: str) -> str:
    """The text with `?` for what no UTF-8 can carry, such as half of a surrogate pair."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
