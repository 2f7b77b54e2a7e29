"""The `@processor` decorator: a function, the kind that it does, and what the gateway must know of it.

A kind is announced with the JSON Schemas of its input model and its result, so that a gateway validates and shows it
without importing any of this. Running a processor is `processors.attempt`; serving kinds is `processors.worker`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from gateway.documents import KindDocument
from gateway.errors import ConfigurationError
from gateway.protocol import DAY_SECONDS, KIND_PATTERN
from processors.row import HasSteps, Row, Step

_KIND: Final = re.compile(KIND_PATTERN, re.ASCII)


class Style(Enum):
    """How a processor's function is run."""

    ASYNC = "an async function, on the event loop"
    ASYNC_GENERATOR = "an async generator, on the event loop; each value that it yields is an output"
    THREAD = "a plain function, in a thread"
    THREAD_GENERATOR = "a plain generator, in a thread; each value that it yields is an output"
    PROCESS = "a plain function or generator, in a child process"


@dataclass(frozen=True, eq=False)
class Processor:
    """A function that does one kind of work, and how to run it. Call it like the function to test it by hand."""

    document: KindDocument
    function: Callable[..., Any]
    style: Style
    input_adapter: TypeAdapter[Any] | None
    """Validates the input; None for a function that takes the context only."""
    result_adapter: TypeAdapter[Any] | None
    """Encodes the result; None for a function without a typed result."""
    concurrency: int | None = None
    waits: bool = False
    cancel_grace_seconds: float = 5
    setup: Callable[[], Any] | None = None
    memory_bytes: int = 0
    """Most that a child process may use; 0: no limit."""
    max_batch: int = 0
    """The function takes lists of at most so many contexts and inputs; 0: it takes one job."""
    max_wait_seconds: float = 0
    health: Callable[[], Any] | None = None

    @property
    def kind(self) -> str:
        """The name of the work that it does."""
        return self.document.kind

    @property
    def module(self) -> str:
        """The module that it is found in by its name."""
        return self.function.__module__

    @property
    def steps(self) -> tuple[Step, ...]:
        """Itself as the one step of a row, named as its kind."""
        return (Step(self.kind, self.kind),)

    def __rshift__(self, following: HasSteps) -> Row:
        return Row((*self.steps, *following.steps))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<processor {self.kind}: {self.function.__module__}.{self.function.__qualname__}>"


def processor(
    kind: str,
    *,
    description: str | None = None,
    files: Literal["none", "optional", "required"] = "none",
    content_types: Iterable[str] = (),
    listed: bool = True,
    concurrency: int | None = None,
    waits: bool = False,
    max_running: int | None = None,
    max_attempts: int = 3,
    run_timeout_seconds: float = 3600,
    start_deadline_seconds: float | None = None,
    retention_seconds: float = DAY_SECONDS,
    max_waiting: int = 10_000,
    max_waiting_per_owner: int = 10_000,
    cancel_grace_seconds: float = 5,
    setup: Callable[[], Any] | None = None,
    run_in: Literal["thread", "process"] = "thread",
    memory_bytes: int = 0,
    max_batch: int = 0,
    max_wait_seconds: float = 0.01,
    health: Callable[[], Any] | None = None,
) -> Callable[[Callable[..., Any]], Processor]:
    """Make a processor of a function `(ctx)` or `(ctx, input)`.

    The annotation of `input` (a pydantic model) becomes the kind's input schema, the return annotation its result's.
    An async function gets a `Context`; a plain one runs in a thread and gets a `SyncContext`; a generator's values
    become outputs 0, 1, 2, ...

    Args:
        kind: Name of the work, as in `POST /v1/kinds/{kind}/jobs`.
        description: One line for people; the docstring's first line by default.
        files: Whether a job of this kind comes with files.
        content_types: What the files may be, such as `image/png` or `image/*`; empty: anything.
        listed: Whether the page offers it; say no for what is only a step of other kinds. Who names it can submit it.
        concurrency: At most so many attempts at once in one worker.
        waits: Whether the function only waits for others, such as a model server, and needs no core: a worker of such
            kinds alone does 256 at once where nothing else is set.
        max_running: At most so many at once over all workers.
        max_attempts: So many failed attempts end the job.
        run_timeout_seconds: An attempt that runs longer fails the job; a job can ask for less or more.
        start_deadline_seconds: A job that no worker began in this time fails.
        retention_seconds: How long an ended job's data is kept.
        max_waiting: Jobs beyond so many waiting ones are refused.
        max_waiting_per_owner: The same for the jobs of one owner.
        cancel_grace_seconds: A function that still runs so long after it was told to stop is given up.
        setup: Called once per worker process, before the kind is announced: load models here. A plain function runs
            in a thread; an async one is awaited. A generator goes on behind its `yield` when the worker stops. With
            `run_in="process"` it is called once in each child process, whose end is a kill: no generator then.
        run_in: `process` runs a plain function in a child process, which is killed where it must stop: for code that
            keeps the interpreter to itself, leaks, crashes, or ignores its cancel. A worker on Windows refuses it.
        memory_bytes: Most address space of such a child; 0 is no limit. Beyond it the attempt fails with
            `out_of_memory`.
        max_batch: The function does up to so many jobs in one call, `(contexts, inputs)`, and returns a list with a
            result for each; a result that is an exception fails that job alone. For models that are faster on many.
        max_wait_seconds: How long a job waits for others to fill its batch, while no batch is being done.
        health: Called in the worker every 15 s, as `setup` is. While it raises, or says nothing for 15 s, this worker
            begins no job of the kind: others do, or the jobs wait.
    """
    if not isinstance(kind, str):
        raise ConfigurationError("A processor needs the name of its kind: write @processor('its-kind').")
    # Models that are local to the function which decorates would not be found by their names otherwise.
    local_names = sys._getframe(1).f_locals

    def decorate(function: Callable[..., Any]) -> Processor:
        if _KIND.match(kind) is None:
            raise ConfigurationError(
                f"{kind!r} is no kind: begin with a lower-case letter and go on with letters, digits, '_', '.' or '-'."
            )
        style = _style(kind, function, run_in, memory_bytes)
        if style is Style.PROCESS and (inspect.isgeneratorfunction(setup) or inspect.isasyncgenfunction(setup)):
            raise ConfigurationError(
                f"The setup of {kind!r} is a generator: a child process is killed, and never goes on behind a yield."
            )
        if max_batch and style not in (Style.ASYNC, Style.THREAD):
            raise ConfigurationError(f"The processor of {kind!r} does batches: it can be no generator and no process.")
        input_adapter, result_adapter = _adapters(kind, function, local_names, batch=bool(max_batch))
        document = KindDocument(
            kind=kind,
            description=description if description is not None else _first_line(function),
            input_schema=_schema(kind, input_adapter, "validation") or {"type": "object"},
            result_schema=_schema(kind, result_adapter, "serialization"),
            files=files,
            content_types=list(content_types),
            listed=listed,
            max_attempts=_at_least_one("max_attempts", max_attempts),
            run_timeout_seconds=run_timeout_seconds,
            start_deadline_seconds=start_deadline_seconds,
            retention_seconds=retention_seconds,
            max_running=max_running,
            max_waiting=max_waiting,
            max_waiting_per_owner=max_waiting_per_owner,
        )
        if document.input_schema.get("type", "object") != "object":
            raise ConfigurationError(f"The input of {kind!r} must be a JSON object: annotate it with a pydantic model.")
        if concurrency is not None:
            _at_least_one("concurrency", concurrency)
        return Processor(
            document,
            function,
            style,
            input_adapter,
            result_adapter,
            concurrency,
            waits,
            cancel_grace_seconds,
            setup,
            memory_bytes,
            max_batch,
            max_wait_seconds,
            health,
        )

    return decorate


def load_processors(modules: Iterable[str]) -> dict[str, Processor]:
    """Import modules and collect the processors that are among their names.

    Raises:
        ConfigurationError: A module can't be found, has no processor, or two processors do the same kind.
    """
    found: dict[str, Processor] = {}
    for name in modules:
        here = [value for value in vars(_import(name)).values() if isinstance(value, Processor)]
        if not here:
            raise ConfigurationError(
                f"The module {name} has no processor: decorate a function in it with @processor('its-kind')."
            )
        for one in here:
            other = found.setdefault(one.kind, one)
            if other is not one:
                raise ConfigurationError(f"{other} and {one} do the same kind; give one of them another name.")
    return found


def _import(name: str) -> Any:
    # The current folder is where people keep the file that they name; a console script doesn't have it on its path.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that exists but misses one of its own imports is another mistake: its traceback says which.
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        meant = name.removesuffix(".py").replace("/", ".")
        hint = f"; leave out what makes it a file's name: {meant}" if meant != name else ", such as package.module"
        raise ConfigurationError(
            f"There is no module {name}: name it as Python imports it{hint}, from a folder where that works."
        ) from None


def _style(kind: str, function: Callable[..., Any], run_in: str, memory_bytes: int) -> Style:
    if run_in == "process":
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"The processor of {kind!r} is async: only a plain function runs in a process.")
        if function.__module__ == "__main__" or "<locals>" in function.__qualname__:
            raise ConfigurationError(
                f"The processor of {kind!r} runs in a process, which must find it: define it at the top of a module."
            )
        return Style.PROCESS
    if run_in != "thread":
        raise ConfigurationError(f"run_in is {run_in!r}; use 'thread' or 'process'.")
    if memory_bytes:
        raise ConfigurationError("memory_bytes limits a child process: it needs run_in='process'.")
    if inspect.isasyncgenfunction(function):
        return Style.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(function):
        return Style.ASYNC
    if inspect.isgeneratorfunction(function):
        return Style.THREAD_GENERATOR
    return Style.THREAD


def _adapters(
    kind: str, function: Callable[..., Any], local_names: Mapping[str, Any], *, batch: bool
) -> tuple[TypeAdapter[Any] | None, TypeAdapter[Any] | None]:
    """The adapters of the input and of the result, from the function's annotations."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(positional) != len(parameters) or not 1 <= len(positional) <= 2:
        raise ConfigurationError(f"{function.__qualname__} must take (ctx) or (ctx, input), to be a processor.")
    names = {one.name for one in positional[1:]} | {"return"}
    hints = _hints(function, names, local_names)
    yields = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
    result = hints.get("return", Any)
    taken: Any = (
        hints.get(positional[1].name, list[dict[str, Any]] if batch else dict[str, Any]) if positional[1:] else None
    )
    if batch:
        # What it takes and returns are lists; a kind's schemas are of one job.
        taken, result = _item(kind, taken), _item(kind, result)
    try:
        return (
            TypeAdapter(taken) if len(positional) == 2 else None,
            None if yields or result in (Any, None, type(None)) else TypeAdapter(result),
        )
    except PydanticSchemaGenerationError as error:
        raise ConfigurationError(
            f"An annotation of the processor of {kind!r} is no type that pydantic knows: {error.message}"
        ) from None


def _item(kind: str, annotation: Any) -> Any:
    """What a list is of."""
    if annotation in (Any, None, type(None)):
        return annotation
    if get_origin(annotation) not in (list, Sequence):
        raise ConfigurationError(f"The processor of {kind!r} does batches: annotate its input and result as lists.")
    items = [one for one in get_args(get_args(annotation)[0]) or get_args(annotation) if one is not Exception]
    return items[0] if len(items) == 1 else get_args(annotation)[0]


def _hints(function: Callable[..., Any], names: set[str], local_names: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations of these parameters only: that of `ctx` may be for the type checker alone."""
    inner = inspect.unwrap(function)
    annotations = {name: hint for name, hint in inspect.get_annotations(inner).items() if name in names}
    try:
        return get_type_hints(
            SimpleNamespace(__annotations__=annotations), inner.__globals__, dict(local_names), include_extras=True
        )
    except NameError as error:
        raise ConfigurationError(
            f"An annotation of {function.__qualname__} names {error.name}, which can't be found: define or import it"
            " above the function, and not under TYPE_CHECKING."
        ) from None


def _schema(
    kind: str, adapter: TypeAdapter[Any] | None, mode: Literal["validation", "serialization"]
) -> dict[str, Any] | None:
    if adapter is None:
        return None
    try:
        return adapter.json_schema(mode=mode)
    except PydanticInvalidForJsonSchema as error:
        raise ConfigurationError(f"A type of the processor of {kind!r} has no JSON Schema: {error.message}") from None


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").split("\n", 1)[0].strip()


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ConfigurationError(f"{name} is {value}; it must be at least 1.")
    return value
