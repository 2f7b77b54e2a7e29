"""The `outlast` command itself: parsing, exit codes, how errors look, and what it imports."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gateway import cli
from gateway.cli import Exit, build_parser, exit_code, main, parse
from gateway.errors import (
    ConfigurationError,
    Gone,
    InvalidInput,
    JobFailed,
    NotFound,
    OutlastError,
    Unauthorized,
    Unavailable,
    Unreachable,
)


def run(monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException) -> int:
    """`main` of a command that returns or raises this."""

    def handler(args: argparse.Namespace) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(cli, "parse", lambda argv: argparse.Namespace(handler=handler))
    return main([])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobFailed("x"), Exit.FAILED),
        (JobFailed("x", code="job_cancelled"), Exit.CANCELLED),
        (Unreachable("x"), Exit.UNREACHABLE),
        (Unavailable("x"), Exit.UNREACHABLE),
        (InvalidInput("x"), Exit.USAGE),
        (NotFound("x"), Exit.USAGE),
        (Gone("x"), Exit.USAGE),
        (Unauthorized("x"), Exit.USAGE),
        (ConfigurationError("x"), Exit.USAGE),
        (OutlastError("x"), Exit.FAILED),
    ],
)
def test_each_error_has_its_exit_code(monkeypatch: pytest.MonkeyPatch, error: OutlastError, code: Exit) -> None:
    """Scripts tell a failed job from a cancelled one, and both from a gateway that is away."""
    assert exit_code(error) == code
    assert run(monkeypatch, error) == code


def test_the_exit_codes_are_what_the_help_says() -> None:
    """They are part of the command's face."""
    assert {code.name: int(code) for code in Exit} == {
        "SUCCEEDED": 0,
        "FAILED": 1,
        "USAGE": 2,
        "CANCELLED": 3,
        "UNREACHABLE": 4,
        "UNDECIDED": 5,
        "INTERRUPTED": 130,
    }
    help_ = build_parser().format_help()
    assert all(f"  {int(code)} " in help_ for code in Exit)


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of any command that a signal ended."""
    assert run(monkeypatch, KeyboardInterrupt()) == 130


def test_an_error_says_what_to_do_and_which_fields(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr: stdout is for results."""
    run(monkeypatch, InvalidInput("Send less.", errors=[{"field": "input.pages", "message": "too many"}]))

    out, err = capsys.readouterr()
    assert out == ""
    assert err == "outlast: Send less.\n  input.pages: too many\n"


def test_a_gateway_that_is_not_there_is_told_how_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The likeliest reason on the first day."""
    run(monkeypatch, Unreachable("No answer."))

    assert "outlast up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "files"),
    [
        (["submit", "ocr"], []),
        (["submit", "ocr", "a", "b"], ["a", "b"]),
        (["submit", "ocr", "--json", "a", "b"], ["a", "b"]),
        (["submit", "--json", "ocr", "a"], ["a"]),
        (["submit", "ocr", "a", "-p", "x=1", "b", "-q", "-"], ["a", "b", "-"]),
    ],
)
def test_files_may_stand_anywhere(argv: list[str], files: list[str]) -> None:
    """As with any other command."""
    args = parse(argv)

    assert args.kind == "ocr"
    assert args.files == files


@pytest.mark.parametrize(
    "argv", [[], ["sing"], ["submit"], ["submit", "ocr", "--sing"], ["watch", "a", "b"], ["jobs", "x"]]
)
def test_wrong_arguments_are_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse's own code, 2, is ours as well."""
    with pytest.raises(SystemExit) as exited:
        main(argv)

    assert exited.value.code == Exit.USAGE
    assert "usage: outlast" in capsys.readouterr().err


def test_every_command_has_a_handler_and_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    """One that had none would fail only when it is used."""

    def commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not below:
            yield name, parser
        for action in below:
            for word, one in action.choices.items():
                yield from commands(one, f"{name} {word}".strip())

    parsers = dict(commands(build_parser(), ""))

    assert {"up", "gateway", "worker", "submit", "watch", "result", "cancel", "jobs", "dead list", "verify"} <= set(
        parsers
    )
    for name, parser in parsers.items():
        assert callable(parser.get_default("handler")), name
        assert parser.description, name


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """`outlast --version`."""
    from importlib.metadata import version

    with pytest.raises(SystemExit) as exited:
        main(["--version"])

    assert exited.value.code == 0
    assert capsys.readouterr().out == f"outlast {version('outlast')}\n"


def test_help_waits_for_nothing_heavy() -> None:
    """Redis, aiohttp, pydantic and rich together take most of a second."""
    heavy = "{'redis', 'aiohttp', 'pydantic', 'rich', 'asyncio', 'jsonschema', 'obstore'}"
    code = (
        f"import sys; from gateway.cli import build_parser; build_parser(); print(sorted(sys.modules.keys() & {heavy}))"
    )

    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert shown.stdout.strip() == "[]"


def test_a_reader_that_has_enough_is_no_error() -> None:
    """`outlast ... | head -1` closes the pipe while there is more to print."""
    code = (
        "import argparse, sys\n"
        "from gateway import cli\n"
        "talk = lambda args: [print('x' * 999) for _ in range(999)] and 0\n"
        "cli.parse = lambda argv: argparse.Namespace(handler=talk)\n"
        "sys.exit(cli.main([]))"
    )

    shown = subprocess.run(
        f'{sys.executable} -c "$CODE" | head -c 5; exit ${{PIPESTATUS[0]}}',
        shell=True,
        executable="/bin/bash",
        env={"CODE": code, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "xxxxx", "")
