"""Pipelines: a kind that is made of other kinds, one step after another.

    invoice = pipeline("invoice", ocr >> step("llm", input=ask_for_fields) >> check, files="required")

is short for an async processor that calls `ctx.run` for each step; what needs more than a row is written as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.errors import ConfigurationError
from processors.context import Context
from processors.errors import ProcessorError, Rejected, said_by
from processors.processor import Processor, processor
from processors.row import Done, HasSteps, Step
from processors.text import check_step_name

logger = logging.getLogger(__name__)
T = TypeVar("T")


def step(
    kind: str | Processor,
    name: str | None = None,
    *,
    weight: float = 1,
    input: Callable[[Done], Any] | None = None,
    each: Callable[[Done], Iterable[Any]] | None = None,
    limit: int = 8,
    files: bool | None = None,
) -> Step:
    """Describe a step.

    Args:
        kind: The kind that does it, or its processor.
        name: What it is called in events; the kind's name by default.
        weight: Its part of the work, for the progress bar.
        input: Makes its input. Without it the first step gets the pipeline's input, and each other one the result of
            the step before it.
        each: Makes several inputs: the step is done for each, and its result is the list of their results.
        limit: So many of them at once.
        files: Whether it gets the job's files; by default the first step does.

    Raises:
        ConfigurationError: A name that can't stand in an output's index, a weight or a limit that means nothing.
    """
    of = kind.kind if isinstance(kind, Processor) else kind
    name = of if name is None else name
    check_step_name(name)
    if weight <= 0 or limit < 1:
        raise ConfigurationError(f"The step {name!r} needs a weight above 0 and a limit of at least 1.")
    return Step(of, name, weight, input, each, limit, files)


def pipeline(
    kind: str,
    steps: HasSteps,
    *,
    input: Any = dict[str, Any],
    result: Any = Any,
    files: Literal["none", "optional", "required"] = "none",
    **options: Any,
) -> Processor:
    """Make a kind of a row of steps: one job to a client, whose result is that of the last step.

    `steps` is `a >> b >> c`, where each is a `step` or a processor; with names alone, `step("a") >> step("b")`.
    `input` and `result` are the types that a processor's annotations would name; `options` are those of `processor`.
    """
    row = steps.steps
    names = [one.name for one in row]
    for name in names:
        check_step_name(name)
    if len(set(names)) < len(names):
        raise ConfigurationError(f"The pipeline {kind!r} has two steps of one name; give one of them another.")
    promised: TypeAdapter[Any] = TypeAdapter(result)

    async def run(ctx: Context, input: Any) -> Any:
        ctx.plan(**{one.name: one.weight for one in row})
        done = Done(input, {}, None)
        for number, one in enumerate(row):
            with_files = one.files if one.files is not None else number == 0
            if one.each is not None:
                inputs: Sequence[Any] = _made(one, partial(_listed, one.each, done))
                value: Any = await ctx.run_all(one.kind, inputs, step=one.name, limit=one.limit, files=with_files)
            else:
                make = one.input or (_previous if number else _own)
                taken = _made(one, partial(make, done))
                value = await ctx.run(one.kind, taken, step=one.name, files=with_files)
            done = Done(input, {**done.results, one.name: value}, value)
        try:
            return promised.validate_python(done.previous)
        except ValidationError as error:
            detail = f"The result of the step {names[-1]} is not what the pipeline promises; see errors."
            raise Rejected(detail, "step_result", step=names[-1], errors=said_by(error)) from None

    run.__annotations__ = {"input": input, "return": result}
    run.__doc__ = f"{' >> '.join(names)}."
    return processor(kind, files=files, **options)(run)


def _own(done: Done) -> Any:
    return done.input


def _previous(done: Done) -> Any:
    return done.previous


def _listed(each: Callable[[Done], Iterable[Any]], done: Done) -> list[Any]:
    return list(each(done))


def _made(of: Step, make: Callable[[], T]) -> T:
    """What a step is to be given. Raises `Rejected` where it can't be made of the results before it."""
    try:
        return make()
    except ProcessorError as error:
        error.extra.setdefault("step", of.name)
        raise
    except Exception:
        # The same results would break it again; what it says may hold parts of them, and is no client's to read.
        logger.exception("the input of the step %s can't be made", of.name)
        detail = f"The results before the step {of.name} are not what it needs; the worker's log says why."
        raise Rejected(detail, "step_input", step=of.name) from None
