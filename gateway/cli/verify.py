"""`outlast verify`: whether a deployment keeps its promises, seen from outside, through whatever stands in front."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from gateway.cli import Exit
from gateway.cli.arguments import DEFAULT_URL, read_input
from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gateway.verify import Outcome, Report

_MARKS: Final = {"holds": ("✓", "green"), "fails": ("✗", "red"), "not_tested": ("–", "dim")}
_EPILOG: Final = """\
It submits about six short jobs of the kind `probe` (which `outlast up` serves), and some that start in an hour and are
cancelled before. It takes a little longer than --run-quiet and --silence together. What can't be seen from outside,
such as the death of a worker, is listed as not tested: docs/guarantees.md names the tests for it.

exit codes:
  0    every promise that could be tested holds
  1    a promise does not hold
  2    no such kind, a wrong key or option
  4    an address can't be reached
"""


def add_commands(subparsers: Any) -> None:
    """Add the command to `outlast`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="test whether a deployment keeps its promises",
        description="Test promise by promise whether a deployment delivers what it should, through its own proxies.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "urls",
        nargs="*",
        metavar="URL",
        help=f"the deployment's address, or several of one deployment (OUTLAST_URL; default: {DEFAULT_URL})",
    )
    parser.add_argument("--key", help="the API key; better in OUTLAST_API_KEY, where other users can't see it")
    parser.add_argument("--other-key", metavar="KEY", help="the API key of a second owner, to test what is kept apart")
    parser.add_argument("--kind", help="a kind of your own instead of probe; about five of its jobs are run")
    parser.add_argument("--input", metavar="JSON", help="the input of its jobs; one that takes some seconds is best")
    parser.add_argument(
        "--silence",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="the longest silence that is promised, the deployment's OUTLAST_HEARTBEAT_SECONDS (default: 15)",
    )
    parser.add_argument(
        "--run-quiet",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="how long a `run` is silent at first, the deployment's OUTLAST_RUN_QUIET_SECONDS (default: 20)",
    )
    parser.add_argument(
        "--patience", type=float, default=120.0, metavar="SECONDS", help="how long a job may take (default: 120)"
    )
    parser.add_argument("--only", metavar="N,N", help="only these promises, by their numbers")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(handler=_verify, late="urls")


def _verify(args: argparse.Namespace) -> int:
    import asyncio

    from rich.console import Console

    from gateway.verify import CHECKS, verify

    urls = args.urls or [os.environ.get("OUTLAST_URL") or DEFAULT_URL]
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"{url!r} is no address of a gateway, such as {DEFAULT_URL}.")
    promises, input_ = _promises(args.only), _input(args)
    left = sum(check.promise in promises for check in CHECKS)
    # What is going on stands on stderr: stdout is for the report.
    progress = Console(stderr=True, highlight=False)
    with progress.status("") as status:

        def tell(outcome: Outcome | None = None) -> None:
            nonlocal left
            left -= outcome is not None
            status.update(f"{left} checks under way, the longest take {args.silence + args.run_quiet:g} s")

        tell()
        report = asyncio.run(
            verify(
                urls,
                kind=args.kind,
                input=input_,
                api_key=args.key or os.environ.get("OUTLAST_API_KEY") or None,
                other_key=args.other_key,
                silence_seconds=args.silence,
                run_quiet_seconds=args.run_quiet,
                patience_seconds=args.patience,
                promises=promises,
                on_outcome=tell,
            )
        )
    if args.json:
        print(json.dumps(report.document(), indent=2, ensure_ascii=False))
    else:
        print_report(Console(file=sys.stdout, highlight=False), report, promises)
    return Exit.FAILED if report.failed else Exit.SUCCEEDED


def _promises(text: str | None) -> list[int]:
    from gateway.verify import PROMISES

    if text is None:
        return list(PROMISES)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) in PROMISES for part in parts):
        raise ConfigurationError(
            f"--only takes numbers of promises from 1 to {len(PROMISES)}, such as 2,4; not {text!r}."
        )
    return sorted({int(part) for part in parts})


def _input(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.input is None:
        return None
    if args.kind is None:
        raise ConfigurationError("--input belongs to a kind of your own: name it with --kind.")
    return read_input(args.input)


def print_report(console: Console, report: Report, promises: list[int]) -> None:
    """Each promise with its checks and what was seen, then one line that says it all."""
    from rich.padding import Padding
    from rich.text import Text

    from gateway.verify import BEYOND, PROMISES

    console.print()
    console.print(Text.assemble(", ".join(report.urls), ("  kind ", "dim"), report.kind))
    for promise in promises:
        verdict = report.verdict(promise)
        _, style = _MARKS[verdict]
        console.print()
        console.print(
            Text.assemble(
                (f"{promise} {PROMISES[promise]}", "bold"), "  ", (verdict.replace("_", " "), f"bold {style}")
            )
        )
        for outcome in report.of(promise):
            console.print(Padding(_line(outcome), (0, 0, 0, 2)))
            evidence_style = style if outcome.verdict == "fails" else "dim"
            console.print(Padding(Text(outcome.evidence, evidence_style), (0, 0, 0, 4)))
        console.print(Padding(Text(f"– not tested from here: {BEYOND[promise]}", "dim"), (0, 0, 0, 2)))
    console.print()
    console.print(_summary(report, promises))


def _line(outcome: Outcome) -> Text:
    from rich.text import Text

    mark, style = _MARKS[outcome.verdict]
    return Text.assemble((f"{mark} ", style), outcome.claim, (f"  {outcome.name}", "dim"))


def _summary(report: Report, promises: list[int]) -> Text:
    from rich.text import Text

    from gateway.verify import PROMISES

    if report.failed:
        names = "; ".join(f"{promise} {PROMISES[promise]}" for promise in report.failed)
        return Text(f"Does not hold: {names}.", "bold red")
    held = [promise for promise in promises if report.verdict(promise) == "holds"]
    untested = [str(promise) for promise in promises if report.verdict(promise) == "not_tested"]
    rest = f"; not tested from here: {', '.join(untested)}" if untested else ""
    return Text(f"{len(held)} of {len(promises)} promises hold{rest} ({report.seconds:.0f} s).", "bold green")
