"""The page for authors says what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from processors import Context, SyncContext, processor

PAGE = (Path(__file__).parents[2] / "docs" / "processors.md").read_text()
RUNTIME_ONLY = {"add_file", "share", "stop", "kill_children", "run_for_thread"}


def test_each_option_of_the_decorator_is_in_the_table() -> None:
    """And no other."""
    table = PAGE.split("## Options")[1].split("## ")[0]
    told = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)

    assert told == [name for name in inspect.signature(processor).parameters if name != "kind"]


def test_each_method_of_the_context_is_told_of() -> None:
    """An author finds all there is on one page."""
    names = {name for name, _ in inspect.getmembers(Context, inspect.isfunction) if not name.startswith("_")}

    assert {name for name in names - RUNTIME_ONLY if name not in PAGE} == set()


def test_both_faces_of_the_context_have_the_same_names() -> None:
    """Code moves from a coroutine to a thread by losing its awaits."""

    def face(of: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(of, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    expected = {name: parameters for name, parameters in face(Context).items() if name not in RUNTIME_ONLY}
    assert face(SyncContext) | {"in_thread": expected["in_thread"]} == expected


def test_the_first_example_of_the_page_runs() -> None:
    """It is what people paste."""
    names: dict[str, object] = {}
    source = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    exec(compile(source, "docs/processors.md", "exec", dont_inherit=True), names)

    assert "greet" in names
