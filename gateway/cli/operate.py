"""`outlast dead | kinds`: the commands for those who look after the work: what failed for good, and what may begin."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from gateway.cli import Exit
from gateway.cli.arguments import ASK_SECONDS, add_command, open_client
from gateway.cli.jobs import document_of, print_rows, shown_time
from gateway.errors import InvalidInput

if TYPE_CHECKING:
    from gateway.client import Client, Job
    from gateway.documents import KindStatus


def add_commands(subparsers: Any) -> None:
    """Add the commands to `outlast`."""
    dead = _group(subparsers, "dead", "your jobs that used up their attempts")

    list_ = add_command(dead, "list", _list_dead, "list your dead letters, newest first")
    list_.add_argument("--kind", help="only those of this kind")
    list_.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="at most so many (default: 20)")
    list_.add_argument("--json", action="store_true", help="print them as JSON")

    show = add_command(dead, "show", _show_dead, "tell what each attempt at a job failed of")
    show.add_argument("job", help="the job's id")
    show.add_argument("--json", action="store_true", help="print the job as JSON")

    redrive = add_command(dead, "redrive", _redrive, "do dead letters again, each as a new job")
    redrive.add_argument("jobs", nargs="*", metavar="JOB", help="the jobs' ids")
    redrive.add_argument("--kind", help="all of this kind")
    redrive.set_defaults(late="jobs")

    kinds = _group(subparsers, "kinds", "the kinds of work, and whether they may begin")
    kinds_list = add_command(kinds, "list", _list_kinds, "list the kinds")
    kinds_list.add_argument("--json", action="store_true", help="print them as JSON")
    for verb, help_ in (
        ("pause", "let no worker begin jobs of a kind; they wait"),
        ("resume", "let workers begin jobs of a kind again"),
    ):
        add_command(kinds, verb, _operate, help_).add_argument("kind", help="the kind of work, such as ocr")


def _group(subparsers: Any, name: str, help_: str) -> Any:
    parser = subparsers.add_parser(name, help=help_, description=help_.capitalize() + ".")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="verb")


def _run(command: Coroutine[Any, Any, int]) -> int:
    import asyncio

    return asyncio.run(command)


# --- dead letters ---------------------------------------------------------------------------------------------------


def _list_dead(args: argparse.Namespace) -> int:
    async def list_() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            jobs = await _dead(client, args.kind, limit=args.limit)
        if args.json:
            print(json.dumps([document_of(job) for job in jobs], indent=2, ensure_ascii=False))
        else:
            rows = [(job.id, job.kind, _cause(job), shown_time(job.document.ended_at), _detail(job)) for job in jobs]
            print_rows(("job", "kind", "cause", "ended", "what happened"), rows, empty="No dead letters.")
        return Exit.SUCCEEDED

    return _run(list_())


async def _dead(client: Client, kind: str | None, *, limit: int | None = None) -> list[Job]:
    """Dead letters of a kind, or of all kinds."""
    kinds = [kind] if kind is not None else [one.kind for one in await client.kinds()]
    found = [job for name in kinds async for job in client.dead(name, limit=limit)]
    found.sort(key=lambda job: job.document.ended_at or "", reverse=True)
    return found[:limit]


def _cause(job: Job) -> str:
    problem = job.document.problem
    return str((problem.model_extra or {}).get("cause") or problem.code) if problem else ""


def _detail(job: Job) -> str:
    return job.document.problem.detail if job.document.problem else ""


def _show_dead(args: argparse.Namespace) -> int:
    async def show() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            job = await client.job(args.job)
            if args.json:
                print(json.dumps(document_of(job), indent=2, ensure_ascii=False))
                return Exit.SUCCEEDED
            if not job.terminal:
                raise InvalidInput(f"{job.id} has not ended; `outlast watch {job.id}` shows what it does.")
            failures = [event async for event in job.events(types=["retrying"]) if "problem" in event.data]
        _print_failures(job, [(event.attempt or 0, event.time or "", event.data["problem"]) for event in failures])
        return Exit.SUCCEEDED

    return _run(show())


def _print_failures(job: Job, failures: list[tuple[int, str, dict[str, Any]]]) -> None:
    from gateway.cli.display import printable

    document = job.document
    print(f"{job.id}  {job.kind}  {job.state}")
    facts = {
        "submitted": document.created_at,
        "kept until": document.expires_at,
        "retry of": document.retry_of,
        "tags": ", ".join(document.tags),
        "files": ", ".join(file.name for file in document.files),
    }
    for name, value in facts.items():
        if value:
            print(f"  {name}: {printable(value)}")
    for attempt, time, problem in failures:
        said = f"{problem.get('code', '')}: {problem.get('detail', '')}"
        print(f"  attempt {attempt}, {time}: {printable(said)}")


def _redrive(args: argparse.Namespace) -> int:
    if bool(args.jobs) == bool(args.kind):
        raise InvalidInput("Name the jobs, or give --kind for all dead letters of a kind.")

    async def redrive() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            jobs = args.jobs or [job.id for job in await _dead(client, args.kind)]
            for job in jobs:
                # The key is made of the job's id: however often this is repeated, the job is done again once.
                new = await client.retry(job, idempotency_key=f"redrive {job}")
                again = " (as before)" if new.replayed else ""
                print(f"{job} is done again as {new.id}{again}")
        if not jobs:
            print("No dead letters.", file=sys.stderr)
        return Exit.SUCCEEDED

    return _run(redrive())


# --- kinds ----------------------------------------------------------------------------------------------------------


def _list_kinds(args: argparse.Namespace) -> int:
    async def list_() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            kinds = await client.kinds()
        if args.json:
            print(json.dumps([kind.model_dump(mode="json") for kind in kinds], indent=2, ensure_ascii=False))
        else:
            rows = [
                (kind.kind, _standing(kind), str(kind.workers), str(kind.waiting), str(kind.running), kind.description)
                for kind in kinds
            ]
            columns = ("kind", "state", "workers", "waiting", "running", "what it does")
            print_rows(columns, rows, empty="No kinds yet; start a worker.")
        return Exit.SUCCEEDED

    return _run(list_())


def _standing(kind: KindStatus) -> str:
    if kind.paused:
        return "paused"
    return "open" if kind.workers else "no worker"


def _operate(args: argparse.Namespace) -> int:
    async def operate() -> int:
        async with open_client(args, ASK_SECONDS) as client:
            kind = await (client.pause if args.verb == "pause" else client.resume)(args.kind)
        waiting = f"{kind.waiting} {'job waits' if kind.waiting == 1 else 'jobs wait'}"
        print(f"{kind.kind} is {'paused' if kind.paused else 'open'}; {waiting}, {kind.running} in hand")
        return Exit.SUCCEEDED

    return _run(operate())
