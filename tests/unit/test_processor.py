"""The decorator: what it makes of a function, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, Field

from gateway.errors import ConfigurationError
from processors import Context, Processor, SyncContext, load_processors, processor
from processors.processor import Style
from processors.worker import concurrency_for

if TYPE_CHECKING:
    from decimal import Decimal


class Words(BaseModel):
    """An input."""

    text: str
    most: int = Field(10, ge=1)


class Counts(BaseModel):
    """A result."""

    words: dict[str, int]


def test_the_annotations_become_the_kinds_schemas() -> None:
    """A gateway validates and shows a kind without importing its code."""

    @processor("count")
    async def count(ctx: Context, input: Words) -> Counts:
        """Count words.

        More about it.
        """
        raise NotImplementedError

    document = count.document
    assert document.kind == "count"
    assert document.listed
    assert document.description == "Count words."
    assert document.input_schema["required"] == ["text"]
    assert document.input_schema["properties"]["most"]["minimum"] == 1
    assert document.result_schema is not None
    assert "words" in document.result_schema["properties"]


def test_models_that_are_local_to_a_function_are_found() -> None:
    """A processor in a test, or made by a function, needs no module-level models."""

    class Local(BaseModel):
        here: bool

    @processor("local", listed=False)
    async def local(ctx: Context, input: Local) -> None:
        raise NotImplementedError

    assert "here" in local.document.input_schema["properties"]
    assert not local.document.listed


def test_each_style_of_function_is_told_apart() -> None:
    """Async functions and generators run on the loop, plain ones in a thread."""

    @processor("a")
    async def a(ctx: Context) -> None: ...

    @processor("b")
    async def b(ctx: Context) -> AsyncIterator[int]:
        yield 1

    @processor("c")
    def c(ctx: SyncContext) -> None: ...

    @processor("d")
    def d(ctx: SyncContext) -> Iterator[int]:
        yield 1

    assert [one.style for one in (a, b, c, d)] == [
        Style.ASYNC,
        Style.ASYNC_GENERATOR,
        Style.THREAD,
        Style.THREAD_GENERATOR,
    ]
    assert b.document.result_schema is None


def test_a_processor_without_input_takes_an_object() -> None:
    """What comes as input is still a JSON object, and nothing is asked of it."""

    @processor("nothing")
    async def nothing(ctx: Context) -> None: ...

    assert nothing.input_adapter is None
    assert nothing.document.input_schema == {"type": "object"}


def test_an_input_without_an_annotation_is_any_object() -> None:
    """The first step with a new processor needs no model."""

    @processor("any")
    async def any_(ctx: Context, input) -> None: ...  # type: ignore[no-untyped-def] # what is tested

    assert any_.document.input_schema["type"] == "object"


def test_a_processor_is_called_like_its_function() -> None:
    """Its author tests it without a worker."""

    @processor("add")
    def add(ctx: SyncContext, input: dict[str, int]) -> int:
        return input["a"] + input["b"]

    assert add(None, {"a": 1, "b": 2}) == 3


@pytest.mark.parametrize("kind", ["", "Count", "9lives", "a b", "a" * 65, "é", "a{b}"])
def test_a_name_that_is_no_kind_is_refused(kind: str) -> None:
    """A kind stands in urls and in keys."""
    with pytest.raises(ConfigurationError, match="is no kind"):

        @processor(kind)
        async def function(ctx: Context) -> None: ...


def test_an_input_that_is_no_object_is_refused() -> None:
    """The wire's input is an object."""
    with pytest.raises(ConfigurationError, match="must be a JSON object"):

        @processor("list")
        async def function(ctx: Context, input: list[int]) -> None: ...


@pytest.mark.parametrize("name", ["concurrency", "max_attempts"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    """Such a kind would never run."""
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigurationError, match=f"{name} is 0"):

        @processor("never", **options)
        async def function(ctx: Context) -> None: ...


def test_a_function_with_other_parameters_is_refused() -> None:
    """The mistake shows when the module is imported, not when the first job runs."""
    with pytest.raises(ConfigurationError, match=r"must take \(ctx\) or \(ctx, input\)"):

        @processor("more")
        async def function(ctx: Context, input: Words, more: int) -> None: ...

    with pytest.raises(ConfigurationError, match="must take"):

        @processor("none")
        async def other() -> None: ...


def test_an_annotation_that_does_not_exist_at_run_time_is_named() -> None:
    """A model under TYPE_CHECKING is the usual mistake."""
    with pytest.raises(ConfigurationError, match="Decimal"):

        @processor("hidden")
        async def function(ctx: Context) -> Decimal:
            raise NotImplementedError


def test_the_contexts_own_annotation_need_not_exist_at_run_time() -> None:
    """Nothing is read from it."""

    @processor("typed")
    async def typed(ctx: Decimal, input: Words) -> None: ...

    assert "text" in typed.document.input_schema["properties"]


def test_the_decorator_without_a_kind_says_what_is_missing() -> None:
    """`@processor` alone is an easy slip."""
    with pytest.raises(ConfigurationError, match=r"write @processor\('its-kind'\)"):

        @processor  # type: ignore[arg-type] # what is tested
        async def function(ctx: Context) -> None: ...


def test_modules_are_searched_for_their_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`outlast worker greetings` serves what the module has."""
    (tmp_path / "greetings.py").write_text(
        "from processors import Context, processor\n"
        "@processor('hello')\nasync def hello(ctx: Context) -> None: ...\n"
        "@processor('bye')\nasync def bye(ctx: Context) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    found = load_processors(["greetings"])

    assert sorted(found) == ["bye", "hello"]
    assert all(isinstance(one, Processor) for one in found.values())


def test_a_module_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A console script's path lacks the folder that it is called in."""
    (tmp_path / "right_here.py").write_text(
        "from processors import Context, processor\n@processor('x')\nasync def x(ctx: Context) -> None: ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    assert list(load_processors(["right_here"])) == ["x"]


def test_a_missing_or_empty_module_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the first thing that a new user sees."""
    (tmp_path / "empty_module.py").write_text("")
    (tmp_path / "broken_module.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigurationError, match=r"no module nowhere\.to_be_found"):
        load_processors(["nowhere.to_be_found"])
    with pytest.raises(ConfigurationError, match=r"no module empty_module\.py: .* a file's name: empty_module,"):
        load_processors(["empty_module.py"])
    with pytest.raises(ConfigurationError, match="has no processor: decorate"):
        load_processors(["empty_module"])
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all"):
        load_processors(["broken_module"])


def test_two_processors_of_one_kind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them runs must not depend on the order of imports."""
    for name in ("one_twin", "other_twin"):
        (tmp_path / f"{name}.py").write_text(
            "from processors import Context, processor\n@processor('twin')\nasync def twin(ctx: Context) -> None: ...\n"
        )
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigurationError, match="do the same kind"):
        load_processors(["one_twin", "other_twin"])
    assert list(load_processors(["one_twin", "one_twin"])) == ["twin"]


def test_a_worker_of_kinds_that_only_wait_does_many_at_once_and_any_other_one_for_each_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kind that computes must not be begun hundreds of times because others wait beside it."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})

    @processor("computes")
    def computes(ctx: SyncContext) -> None: ...

    @processor("asks", waits=True)
    async def asks(ctx: Context) -> None: ...

    shipped = load_processors(["processors.http", "processors.llm"])

    assert concurrency_for([asks, *shipped.values()]) == 256
    assert concurrency_for([asks, computes]) == 3


def test_a_module_of_processors_loads_nothing_of_the_store() -> None:
    """Nor does a child process, which is started for each function that runs in one."""
    heavy = "{'aiohttp', 'gateway.store', 'obstore', 'redis'}"
    code = f"import sys, processors, processors.child; print(sorted(sys.modules.keys() & {heavy}))"

    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert shown.stdout.strip() == "[]"
