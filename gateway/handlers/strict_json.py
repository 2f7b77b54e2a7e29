"""JSON from clients, read strictly: what two readers could understand differently is refused.

[spec] "An object whose names are all unique is interoperable in the sense that all software implementations receiving
that object will agree on the name-value mappings." (RFC 8259, section 4)
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic_core import from_json

from gateway.errors import BadRequest

# An honest integer has at most 20 digits or so; converting a very long one takes time that grows with its square.
_MAX_DIGITS: Final = 100


def read_json(raw: bytes | bytearray, what: str) -> Any:
    """Read a JSON text. Raises `BadRequest` (`bad_json`), saying where and why; `what` names the text."""
    try:
        # pydantic's reader first: it refuses NaN, deep nesting (200), lone surrogates and bad UTF-8, and says where.
        from_json(raw, allow_inf_nan=False)
        return json.loads(
            raw.decode(),
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadRequest(f"{what} is not good JSON: {reason}.", code="bad_json") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:64]!r} stands twice in one object")
    return result


def _bounded_int(text: str) -> int:
    digits = len(text.removeprefix("-"))
    if digits > _MAX_DIGITS:
        raise ValueError(f"an integer of {digits} digits; at most {_MAX_DIGITS} are read")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError(f"the number {text[:32]} is out of range")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
