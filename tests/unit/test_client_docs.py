"""The pages about the client and the command say what there is, all of it."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from pathlib import Path

import pytest

from gateway.cli import Exit, build_parser, parse
from gateway.client import Client, Job

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    """A page of the docs."""
    return (DOCS / name).read_text()


def test_every_command_stands_in_its_page() -> None:
    """And no other one does."""
    [commands] = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]

    named = set(re.findall(r"`outlast ([a-z]+)", page("cli.md")))

    assert named == set(commands.choices)


def test_every_exit_code_stands_in_its_page() -> None:
    """Scripts are written by it."""
    rows = re.findall(r"^\| (\d+) \|", page("cli.md"), re.MULTILINE)

    assert sorted(map(int, rows)) == sorted(Exit)


def test_every_option_of_an_example_exists() -> None:
    """A reader copies the line and runs it."""
    for line in re.findall(r"^outlast (.*?)(?: +#.*| > .*)?$", page("cli.md"), re.MULTILINE):
        words = re.sub(r"'[^']*'", "{}", line).replace('"one fish"', "x").split()
        parse(words)


def test_every_method_and_argument_of_the_client_stands_in_its_page() -> None:
    """A call that nobody is told of is used by nobody."""
    text = page("python.md")
    methods = [name for name, _ in inspect.getmembers(Client, callable) if not name.startswith("_")]
    arguments = list(inspect.signature(Client).parameters)

    assert [name for name in methods if f"`{name}(" not in text] == []
    assert [name for name in arguments if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", ["url", "transport", "patience_seconds", "silence_seconds", "backoff_seconds"])
def test_the_pages_defaults_are_the_clients(name: str) -> None:
    """A number that is written twice is wrong once."""
    default = inspect.signature(Client).parameters[name].default
    shown = f"{default:g}" if isinstance(default, float) else str(default)

    assert re.search(rf"^\| `{name}` \| `?{re.escape(shown)}`? \|", page("python.md"), re.MULTILINE)


def test_what_submit_returns_is_told_whole() -> None:
    """A reader tries no method in vain, and misses none."""
    [line] = [line for line in page("python.md").splitlines() if line.startswith("What `submit` returned has")]
    methods = {name for name, _ in inspect.getmembers(Job, inspect.isfunction) if not name.startswith("_")}

    assert set(re.findall(r"`(\w+)(?:\(\))?`", line)) == methods | {"submit", "document"}


def test_the_examples_are_python() -> None:
    """Each block compiles as it stands."""
    for block in re.findall(r"```python\n(.*?)```", page("python.md"), re.DOTALL):
        compile(block, "docs/python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
