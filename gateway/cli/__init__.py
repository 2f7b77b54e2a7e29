"""The `outlast` command: its sub-commands, its exit codes, and how its errors look.

Each file has `add_commands(subparsers)`, which gives every parser a `handler=`: a function that takes the parsed
arguments and returns the exit code. Handlers import what they need: `outlast --help` must not wait for Redis, aiohttp
or rich.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final

from gateway.errors import ConfigurationError, JobFailed, OutlastError, RequestError, Unavailable, Unreachable

Handler = Callable[[argparse.Namespace], int]


class Exit(IntEnum):
    """What the shell gets. Scripts rely on these; they are listed in `outlast --help`."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    UNREACHABLE = 4
    UNDECIDED = 5
    INTERRUPTED = 130


_EPILOG: Final = """\
exit codes:
  0    the job succeeded, or the command did what it says
  1    the job failed, a promise does not hold, or something went wrong
  2    the request can't be served as it is: wrong options, input or key, no such job
  3    the job was cancelled
  4    the gateway can't be reached, or is not ready
  5    the doctor saw nothing wrong, but could not measure everything
  130  interrupted with Ctrl-C (the job goes on)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parse(argv)
    handler: Handler = args.handler
    try:
        code = handler(args)
        # A closed pipe shows when the rest is written: here, where it can be answered, not at the interpreter's end.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # `outlast jobs | head`: the reader has what it wanted. Nothing may be written to the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.SUCCEEDED
    except OutlastError as error:
        complain(error)
        return exit_code(error)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed arguments. Files and modules may stand after options as well: `outlast submit ocr --json scan.pdf`.

    argparse gives a list of positionals only those that stand together, so a parser that has such a list says its name
    by `set_defaults(late="files")`, and the others are added to it here.
    """
    parser = build_parser()
    args, late = parser.parse_known_args(argv)
    unknown = [text for text in late if (text.startswith("-") and text != "-") or not hasattr(args, "late")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if late:
        getattr(args, args.late).extend(late)
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    from gateway.cli import doctor, edge, jobs, operate, serve, verify

    parser = argparse.ArgumentParser(
        prog="outlast",
        description="Long jobs that survive every cut connection: run the gateway and workers, submit and follow jobs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve.add_commands(subparsers)
    jobs.add_commands(subparsers)
    operate.add_commands(subparsers)
    edge.add_commands(subparsers)
    doctor.add_commands(subparsers)
    verify.add_commands(subparsers)
    return parser


def complain(error: OutlastError) -> None:
    """Print an error: what happened and what to do next, then each wrong field."""
    print(f"outlast: {error.detail}", file=sys.stderr)
    if isinstance(error, Unreachable):
        print("  `outlast up` starts a gateway here; --url or OUTLAST_URL names another one", file=sys.stderr)
    for wrong in error.errors:
        said = f"{wrong.get('field', '')}: {wrong.get('message', '')}"
        # The first is what the detail begins with.
        if said not in error.detail:
            print(f"  {said}", file=sys.stderr)


def exit_code(error: OutlastError) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, JobFailed):
        return Exit.CANCELLED if error.code == "job_cancelled" else Exit.FAILED
    if isinstance(error, Unavailable):
        return Exit.UNREACHABLE
    if isinstance(error, (RequestError, ConfigurationError)):
        return Exit.USAGE
    return Exit.FAILED


class _Version(argparse.Action):
    """`--version`, which reads the package's metadata only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"outlast {version('outlast')}")
        parser.exit(Exit.SUCCEEDED)
