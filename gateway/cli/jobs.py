"""`outlast submit | watch | result | cancel | jobs`: the commands for those who have work to be done."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.cli import Exit
from gateway.cli.arguments import ASK_SECONDS, add_command, check_writable, open_client, read_input
from gateway.errors import InvalidInput, OutlastError

if TYPE_CHECKING:
    from gateway.cli.display import Display
    from gateway.client import Client, File, Job, Subscription

# A gateway that restarts under a job that runs for an hour is waited for.
_FOLLOW_SECONDS: Final = 300.0
# Words that a table shows in a colour.
_STYLES: Final = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "paused": "yellow",
    "no worker": "red",
}
_TEXT_FIRST: Final = "text/plain, application/json;q=0.9, */*;q=0.1"


def add_commands(subparsers: Any) -> None:
    """Add the commands to `outlast`."""
    submit = add_command(subparsers, "submit", _submit, "submit a job, watch it and print its result")
    submit.add_argument("kind", metavar="KIND", help="the kind of work, such as ocr")
    submit.add_argument("files", nargs="*", default=[], metavar="FILE", help="files to send with it; - is stdin")
    submit.add_argument("--input", metavar="JSON", help="the job's input as a JSON object")
    submit.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="one field of the input"
    )
    submit.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the job, such as priority=low or run_timeout_seconds=60",
    )
    submit.add_argument("--tag", action="append", default=[], metavar="TAG", help="a tag to find the job by")
    submit.add_argument("--idempotency-key", metavar="KEY", help="the same key again finds the same job")
    submit.add_argument("--no-wait", action="store_true", help="print the job's id and leave")
    submit.set_defaults(late="files")
    _add_result_options(submit)

    watch = add_command(subparsers, "watch", _watch, "watch a job and print its result")
    watch.add_argument("job", help="the job's id")
    watch.add_argument("--events", action="store_true", help="print the events instead, one JSON text a line")
    _add_result_options(watch)

    result = add_command(subparsers, "result", _result, "wait for a job's end and print its result")
    result.add_argument("job", help="the job's id")
    _add_result_options(result)

    cancel = add_command(subparsers, "cancel", _cancel, "cancel a job")
    cancel.add_argument("job", help="the job's id")
    cancel.add_argument("--reason", help="is kept with the job")
    cancel.add_argument("--wait", action="store_true", help="return when it has ended")

    jobs = add_command(subparsers, "jobs", _jobs, "list your own recent jobs, newest first")
    jobs.add_argument("--state", choices=["queued", "running", "succeeded", "failed", "cancelled"])
    jobs.add_argument("--kind")
    jobs.add_argument("--tag")
    jobs.add_argument("--user", help="only what this user of your pages submitted, with a token")
    jobs.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="at most so many (default: 20)")
    jobs.add_argument("--json", action="store_true", help="print them as JSON")


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result there instead of stdout")
    parser.add_argument("--json", action="store_true", help="the JSON result, also where there is plain text")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


# --- commands -------------------------------------------------------------------------------------------------------


def _submit(args: argparse.Namespace) -> int:
    from gateway.cli.display import display

    input_ = _input(args)
    options = dict(_pair(text, "--option") for text in args.option)
    check_writable(args.output)
    title = " ".join([args.kind, *(Path(name).name for name in args.files)])
    followed = _Followed(args)

    async def submit() -> int:
        with display(title, quiet=args.quiet) as shown:
            async with open_client(args, _FOLLOW_SECONDS) as client:
                job = await client.submit(
                    args.kind,
                    input_,
                    files=_files(args.files),
                    tags=args.tag or None,
                    idempotency_key=args.idempotency_key,
                    on_upload=shown.upload,
                    patience_seconds=ASK_SECONDS,
                    **options,
                )
                followed.job = job.id
                if args.no_wait:
                    content = document_of(job) if args.json else job.id
                else:
                    await _say_without_worker(client, args.kind, shown)
                    content = await _follow_to_result(client, job.id, shown, args, client.events(job))
        _write(content, args)
        return Exit.SUCCEEDED

    return followed.run(submit())


def _watch(args: argparse.Namespace) -> int:
    from gateway.cli.display import display
    from gateway.event_text import encode_event

    check_writable(args.output)
    followed = _Followed(args, args.job)

    async def watch() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            job = await client.job(args.job)
        async with open_client(args, _FOLLOW_SECONDS) as client:
            if args.events:
                async for event in client.events(job):
                    print(encode_event(event).decode(), flush=True)
                return _code_of(await client.job(job))
            with display(f"{job.kind} {job.id}", quiet=args.quiet) as shown:
                content = await _follow_to_result(client, job.id, shown, args, client.events(job, snapshot=True))
        _write(content, args)
        return Exit.SUCCEEDED

    return followed.run(watch())


def _result(args: argparse.Namespace) -> int:
    check_writable(args.output)

    async def result() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            content = await client.result(args.job, accept=_accept(args))
        _write(content, args)
        return Exit.SUCCEEDED

    return _Followed(args, args.job).run(result())


def _cancel(args: argparse.Namespace) -> int:
    async def cancel() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            job = await client.cancel(args.job, reason=args.reason, wait=args.wait)
        if job.state == "cancelled":
            print(f"{job.id} is cancelled")
        elif job.terminal:
            print(f"{job.id} had ended before: {job.state}")
        else:
            print(f"{job.id} is asked to stop; it ends when its processor notices")
        return Exit.SUCCEEDED

    return _Followed(args, args.job).run(cancel())


def _jobs(args: argparse.Namespace) -> int:
    async def jobs() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            listed = client.jobs(state=args.state, kind=args.kind, tag=args.tag, user=args.user, limit=args.limit)
            found = [job async for job in listed]
        if args.json:
            print(json.dumps([document_of(job) for job in found], indent=2, ensure_ascii=False))
        else:
            rows = [
                (job.id, job.kind, str(job.state), _amount(job), shown_time(job.document.created_at)) for job in found
            ]
            print_rows(("job", "kind", "state", "progress", "created"), rows, empty="No jobs yet.")
        return Exit.SUCCEEDED

    return _Followed(args).run(jobs())


# --- following ------------------------------------------------------------------------------------------------------


class _Followed:
    """The job that a command is about, for what is to be said when the user leaves."""

    def __init__(self, args: argparse.Namespace, job: str | None = None) -> None:
        self._url = args.url
        self.job = job

    def run(self, command: Coroutine[Any, Any, int]) -> int:
        """Run the command. Ctrl-C ends the watching, never the job."""
        import asyncio

        try:
            return asyncio.run(command)
        except KeyboardInterrupt:
            if self.job is None:
                print("\nStopped; nothing was submitted, or its answer had not come yet.", file=sys.stderr)
            else:
                from gateway.cli.serve import own_command

                target = f"--url {self._url} {self.job}" if self._url else self.job
                print(
                    f"\nStopped watching. The job goes on; it was not cancelled.\n"
                    f"  come back:  {own_command()} watch {target}\n"
                    f"  cancel it:  {own_command()} cancel {target}",
                    file=sys.stderr,
                )
            raise


async def _say_without_worker(client: Client, kind: str, shown: Display) -> None:
    """Who waits for a worker that nobody has started should not have to guess it."""
    # The job is kept, whatever comes of this question.
    with suppress(OutlastError):
        if any(one.kind == kind and one.workers == 0 for one in await client.kinds()):
            shown.say(f"no worker serves {kind} at the moment; this is kept, and waits for one (outlast worker MODULE)")


async def _follow_to_result(
    client: Client, job: str, shown: Display, args: argparse.Namespace, subscription: Subscription
) -> Any:
    """Show the job's events to the last one, then fetch its result."""
    from gateway.cli.display import printable

    if not args.quiet:
        shown.say(f"job {job}")
    shown.follow(subscription)
    async for event in subscription:
        shown.take(event)
    content = await client.result(job, accept=_accept(args))
    if shown.view.fold.end.get("partial"):
        shown.say("Some parts are missing from the result; the JSON result (--json) names them.")
    summary = [f"{shown.title}: {shown.view.fold.state}", shown.view.counted(), *shown.view.warnings(subscription)]
    shown.say(printable(", ".join(part for part in summary if part)))
    return content


def _code_of(job: Job) -> int:
    codes = {"succeeded": Exit.SUCCEEDED, "cancelled": Exit.CANCELLED}
    return codes.get(job.state, Exit.FAILED)


# --- arguments ------------------------------------------------------------------------------------------------------


def _input(args: argparse.Namespace) -> dict[str, Any]:
    value = read_input(args.input) if args.input else {}
    return value | dict(_pair(text, "-p") for text in args.parameter)


def _pair(text: str, option: str) -> tuple[str, Any]:
    """`name=value`; the value is JSON if it can be read as such, else it is text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidInput(f"{option} takes NAME=VALUE, such as {option} language=de; not {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _files(names: list[str]) -> list[File]:
    from gateway.client import File

    return [File(sys.stdin.buffer, name="stdin") if name == "-" else File(name) for name in names]


def _accept(args: argparse.Namespace) -> str:
    return "application/json" if args.json else _TEXT_FIRST


# --- output ---------------------------------------------------------------------------------------------------------


def _write(content: Any, args: argparse.Namespace) -> None:
    """Print a result, or write it to a file: text and bytes as they are, anything else as JSON."""
    path: Path | None = args.output
    if args.json or not isinstance(content, (str, bytes)):
        content = json.dumps(content, indent=2, ensure_ascii=False)
    if path is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    else:
        print(content, end="" if content.endswith("\n") else "\n")


def document_of(job: Job) -> dict[str, Any]:
    """The job's document as plain JSON values."""
    return job.document.model_dump(mode="json")


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """A table for a terminal; values between tabs for a pipe."""
    from gateway.cli.display import printable

    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(printable(value) for value in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(value), _STYLES.get(value, "")) for value in row))
    Console().print(table if rows else empty)


def shown_time(time: str | None) -> str:
    """A time as a person reads it; as it came for a program."""
    if not time or not sys.stdout.isatty():
        return time or ""
    return time[:19].replace("T", " ")


def _amount(job: Job) -> str:
    progress = job.document.progress or {}
    current, total, unit = progress.get("current"), progress.get("total"), progress.get("unit") or ""
    if current is None:
        return ""
    return f"{current:g}/{total:g} {unit}".strip() if total else f"{current:g} {unit}".strip()
