"""Steps in a row: what `a >> b` of a pipeline makes, from steps, rows of them, and processors as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Done(NamedTuple):
    """What a step's input can be made of: the pipeline's own input, and the results so far."""

    input: Any
    results: Mapping[str, Any]
    """The result of each step by its name."""
    previous: Any
    """The result of the step before this one; None for the first."""


class HasSteps(Protocol):
    """What can stand in a row: a step, several, or a processor, which is a step without anything special."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in their order."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a pipeline; `a >> b` puts one after another."""

    kind: str
    name: str
    weight: float = 1
    input: Callable[[Done], Any] | None = None
    each: Callable[[Done], Iterable[Any]] | None = None
    limit: int = 8
    files: bool | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """This one."""
        return (self,)

    def __rshift__(self, following: HasSteps) -> Row:
        return Row((self, *following.steps))


@dataclass(frozen=True, slots=True)
class Row:
    """Steps in their order."""

    steps: tuple[Step, ...]

    def __rshift__(self, following: HasSteps) -> Row:
        return Row((*self.steps, *following.steps))
