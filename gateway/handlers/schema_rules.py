"""JSON Schema's rules at a bounded price: inputs come from anybody, and some schemas make one cost its square or worse.

A union whose alternatives contain the union again is tried anew at every level, two to the power of the depth. And
jsonschema compares each item of a set with all others where they can't be sorted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

_Rule = Callable[[Validator, Any, Any, Any], Iterator[ValidationError] | None]


class TooComplex(Exception):
    """A value took more rules than it may."""


class _Count(threading.local):
    """How many rules the check that this thread is doing may still apply."""

    left = 0


_count = _Count()


@contextmanager
def within(most: int) -> Iterator[None]:
    """Let the checks in this block, which must not await, apply so many rules. They raise `TooComplex` beyond."""
    _count.left = most
    try:
        yield
    finally:
        _count.left = 0


@lru_cache(maxsize=16)
def bounded(cls: type[Validator]) -> type[Validator]:
    """A validator class whose rules are counted; to be used inside `within`."""
    rules = dict(cls.VALIDATORS) | {"uniqueItems": _unique_items}
    counted = {name: _counted(rule) for name, rule in rules.items()}
    bounded_cls: type[Validator] = extend(cls, counted)  # type: ignore[no-untyped-call]
    return bounded_cls


def _counted(rule: _Rule) -> _Rule:
    @wraps(rule)
    def counted(validator: Validator, asked: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        _count.left -= 1
        if _count.left < 0:
            raise TooComplex
        return rule(validator, asked, instance, schema)

    return counted


def _unique_items(validator: Validator, asked: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if asked and isinstance(instance, list) and len({_identity(item) for item in instance}) < len(instance):
        yield ValidationError("an item stands in it twice")


def _identity(value: Any) -> Any:
    """What two JSON values that are equal have in common, hashable: 1 is 1.0, and neither is true."""
    if isinstance(value, list):
        return "list", tuple(map(_identity, value))
    if isinstance(value, dict):
        return "object", frozenset((name, _identity(item)) for name, item in value.items())
    return isinstance(value, bool), value
