"""`outlast doctor`: from an error to the one thing to change."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import Exit
from gateway.cli.arguments import check_writable
from gateway.errors import InvalidInput

if TYPE_CHECKING:
    from gateway.doctor.examine import Inquiry
    from gateway.doctor.report import Report

_EPILOG = """\
what to give it:
  an address            outlast doctor https://app.example.com/api/ocr
  a curl command        outlast doctor "curl -X POST https://app.example.com/api/ocr -d @scan.pdf"
  a HAR file            outlast doctor failing.har
  the text of an error  outlast doctor < error.txt
  both                  outlast doctor https://app.example.com - < error.txt

exit codes:
  0    nothing is wrong, or --rerun found it fixed
  1    something is wrong: the verdict says what to change
  2    what was given can't be read
  5    nothing wrong was seen, but not everything could be measured
"""


def add_commands(subparsers: Any) -> None:
    """Add the command to `outlast`."""
    doctor = subparsers.add_parser(
        "doctor",
        help="find out what a chain of proxies does to long requests, and the one thing to change",
        description="Capture a failure, place it, measure the chain (the origin first), and say the one thing to"
        " change, why, and the command that verifies it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument(
        "targets", nargs="*", metavar="TARGET", help="an address, a file, a quoted curl command, or - for stdin"
    )
    doctor.add_argument("--origin", metavar="URL", help="the origin's own address; it is measured first")
    doctor.add_argument("--compare", metavar="URL", help="the same behind a chain that works")
    doctor.add_argument("--deep", action="store_true", help="also the silent tests, which take minutes")
    doctor.add_argument("--token", help="the gateway's probe token; better in OUTLAST_PROBE_TOKEN")
    doctor.add_argument(
        "-H", "--header", action="append", default=[], metavar="NAME: VALUE", help="a header for every request"
    )
    doctor.add_argument("--json", action="store_true", help="the report as JSON")
    doctor.add_argument("--save", type=Path, metavar="FILE", help="save the report, for --baseline")
    doctor.add_argument("--baseline", type=Path, metavar="FILE", help="compare with a saved report")
    doctor.add_argument(
        "--rerun", action="store_true", help="repeat only what failed (of --baseline, or the given request)"
    )
    doctor.add_argument("--report", type=Path, metavar="FILE", help="write the incident as Markdown, for the team")
    doctor.set_defaults(handler=_doctor, late="targets")


def _doctor(args: argparse.Namespace) -> int:
    import asyncio

    from gateway.doctor.examine import examine

    for path in (args.save, args.report):
        check_writable(path)
    inquiry = _inquiry(args)
    if args.json:
        report = asyncio.run(examine(inquiry))
        print(report.model_dump_json(indent=2))
    else:
        from rich.console import Console

        from gateway.doctor.terminal import Terminal

        terminal = Terminal(Console(highlight=False))
        terminal.begin(inquiry.budget_seconds)
        report = asyncio.run(examine(inquiry, say=terminal.step))
        terminal.report(report)
    _keep(report, args)
    return _code_of(report)


def _inquiry(args: argparse.Namespace) -> Inquiry:
    from gateway.doctor.capture import capture, checked_url
    from gateway.doctor.examine import Inquiry
    from gateway.doctor.report import load_report

    baseline = load_report(_read(args.baseline), str(args.baseline)) if args.baseline else None
    targets = args.targets
    if not targets and baseline is not None and sys.stdin.isatty():
        raise InvalidInput("Give the address too: a saved report leaves out what may be a secret in it.")
    captured = capture(targets, _stdin)
    if args.rerun and not captured.url:
        raise InvalidInput("--rerun needs an address, a curl command or a HAR file: a text can't be repeated.")
    if args.rerun and captured.files and (baseline is None or baseline.chain is None):
        raise InvalidInput("The request sends files, which are not here to be sent again; repeat it yourself.")
    return Inquiry(
        captured,
        origin=checked_url(args.origin) if args.origin else "",
        compare=checked_url(args.compare) if args.compare else "",
        token=args.token or os.environ.get("OUTLAST_PROBE_TOKEN", ""),
        headers=dict(_header(text) for text in args.header),
        deep=args.deep,
        rerun=args.rerun,
        baseline=baseline,
        saved_as=str(args.save or (args.baseline if args.rerun else None) or ""),
    )


def _stdin() -> str:
    if sys.stdin.isatty():
        print("Paste the error, a curl command or a HAR file, then press Ctrl-D:", file=sys.stderr)
    return sys.stdin.read()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip().isascii() or not name.strip():
        raise InvalidInput(f"-H takes 'NAME: VALUE', such as -H 'CF-Access-Client-Id: ...'; not {text[:20]!r}.")
    return name.strip(), value.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(f"{path} can't be read; give a file that --save wrote.") from None


def _keep(report: Report, args: argparse.Namespace) -> None:
    from gateway.doctor.report import incident

    if args.save:
        args.save.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if args.report:
        args.report.write_text(incident(report), encoding="utf-8")


def _code_of(report: Report) -> int:
    codes = {"healthy": Exit.SUCCEEDED, "fixed": Exit.SUCCEEDED, "undecided": Exit.UNDECIDED}
    return codes.get(report.outcome, Exit.FAILED)
