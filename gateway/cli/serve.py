"""`outlast up`, `outlast gateway` and `outlast worker`: the commands that run until they are stopped."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from gateway.cli.product import Running
    from gateway.config import Settings


class BuiltIn(NamedTuple):
    """A kind that comes with Outlast: the module that does it, and the packages that it needs, by extra."""

    kind: str
    module: str
    extra: str
    packages: tuple[str, ...]


BUILT_IN: Final = (
    BuiltIn("ocr", "processors.ocr", "ocr", ("rapidocr", "onnxruntime", "pypdfium2", "PIL", "numpy")),
    BuiltIn("probe", "processors.probe", "", ()),
)
# They need no packages, but something that they may call.
HTTP: Final = BuiltIn("http", "processors.http", "", ())
LLM: Final = BuiltIn("llm", "processors.llm", "", ())


def add_commands(subparsers: Any) -> None:
    """Add the three commands to `outlast`."""
    up = subparsers.add_parser(
        "up",
        help="run everything: an embedded Valkey, the gateway and workers",
        description="Run an embedded Valkey, the gateway and workers until Ctrl-C. Everything else that can be set"
        " is set by environment variables (OUTLAST_...); docs/settings.md lists them.",
    )
    up.add_argument("modules", nargs="*", metavar="MODULE", help="modules with processors of your own, besides ocr")
    _add_gateway_options(up)
    _add_store_options(up)
    up.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[one.kind for one in (*BUILT_IN, HTTP, LLM)],
        help="do not run this built-in kind",
    )
    up.add_argument("--workers", type=_positive, default=1, metavar="N", help="worker processes (default: 1)")
    _add_concurrency(up)
    up.set_defaults(handler=_up, late="modules")

    gateway = subparsers.add_parser(
        "gateway", help="run a gateway", description="Run a gateway on a Redis or Valkey that runs already."
    )
    _add_gateway_options(gateway)
    _add_store_options(gateway)
    gateway.set_defaults(handler=_gateway)

    worker = subparsers.add_parser(
        "worker",
        help="run a worker with processors of your own",
        description="Run the processors of these modules; modules in the current folder are found.",
    )
    worker.add_argument("modules", nargs="+", metavar="MODULE", help="such as package.module")
    _add_store_options(worker)
    _add_concurrency(worker)
    worker.add_argument(
        "--reload", action="store_true", help="start again when a Python file below this folder changes (development)"
    )
    worker.set_defaults(handler=_worker, late="modules")


def _add_gateway_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="PORT", help="port to listen on (default: 8080; 0: a free one)")
    parser.add_argument("--routes", type=Path, metavar="FILE", help="slow routes: public paths and their upstreams")
    parser.add_argument("--dev", action="store_true", default=None, help="allow ?cut= on streams")


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redis", metavar="URL", help="a Redis that runs, such as redis://host:6379/0 (OUTLAST_REDIS_URL)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder for data (default: .outlast)")


def _add_concurrency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=_positive, metavar="N", help="attempts at once in one worker")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _settings(args: argparse.Namespace, **more: object) -> Settings:
    from gateway.config import load_settings

    names = ("host", "port", "data", "dev", "concurrency", "routes")
    given = {name: getattr(args, name, None) for name in names}
    return load_settings(redis_url=args.redis, **given, **more)


def _gateway(args: argparse.Namespace) -> int:
    from gateway import logs
    from gateway.app import run_gateway

    settings = _settings(args)
    _need_redis(settings, "a gateway")
    logs.configure(settings.log_format)
    return run_gateway(settings)


def _worker(args: argparse.Namespace) -> int:
    from gateway import logs
    from processors.worker import run_worker

    settings = _settings(args)
    _need_redis(settings, "a worker")
    if args.reload:
        _need_unix("--reload starts the worker as its child")
        from gateway.cli.reload import run_reloading

        return run_reloading([word for word in sys.argv[1:] if word != "--reload"])
    logs.configure(settings.log_format)
    # An installed command does not look there by itself, unlike `python -m`.
    sys.path.insert(0, os.getcwd())
    return run_worker(settings, args.modules)


def _need_redis(settings: Settings, what: str) -> None:
    if not settings.redis_url:
        raise ConfigurationError(
            f"OUTLAST_REDIS_URL is not set, and {what} needs the Redis that the others use: give --redis URL."
            " `outlast up` starts one of its own and prints its URL."
        )


def _need_unix(why: str) -> None:
    if not hasattr(os, "killpg"):
        raise ConfigurationError(
            f"{why}, which it can't on Windows: use WSL or a container there, or start `outlast gateway` and"
            " `outlast worker` with the --redis URL of a server that runs elsewhere."
        )


def _up(args: argparse.Namespace) -> int:
    _need_unix("`outlast up` starts Valkey, the gateway and the workers as its children")
    import asyncio

    from rich.console import Console

    from gateway import logs
    from gateway.cli.product import Product

    settings = _settings(args)
    logs.configure(settings.log_format)
    console = Console(highlight=False, soft_wrap=True)
    wanted = [one for one in BUILT_IN if one.kind not in args.without]
    served = [one for one in wanted if not missing_packages(one)]
    unserved = [one for one in wanted if one not in served]

    # A mistake in the file with routes is told before anything starts.
    waiting = waiting_modules(settings, args.without)

    def announce(running: Running) -> None:
        print_banner(console, settings, running, unserved)

    product = Product(
        settings,
        [one.module for one in served] + args.modules,
        waiting_modules=waiting,
        workers=args.workers,
        announce=announce,
        say=lambda text: console.print(text, style="dim", markup=False),
    )
    return asyncio.run(product.run())


def waiting_modules(settings: Settings, without: Sequence[str]) -> list[str]:
    """The built-in kinds that wait for other servers, where settings name any. Raises `ConfigurationError`."""
    from gateway.slow_routes import load_routes

    called = {HTTP: bool(settings.upstreams or load_routes(settings.routes)), LLM: bool(settings.llm_url)}
    return [one.module for one in called if called[one] and one.kind not in without]


def missing_packages(built_in: BuiltIn) -> list[str]:
    """What a built-in kind needs and is not installed."""
    return [name for name in built_in.packages if importlib.util.find_spec(name) is None]


def print_banner(console: Any, settings: Settings, running: Running, unserved: Sequence[BuiltIn]) -> None:
    """Say what runs, where, and what to try first."""
    from importlib.metadata import version

    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")

    def row(name: str, text: str, style: str = "") -> None:
        # As Text: brackets in a plain string would be read as markup.
        table.add_row(name, Text(text, style))

    row("page", f"{running.address}/", "bold cyan")
    row("API", f"{running.address}/docs")
    if LLM.kind in running.kinds:
        row("OpenAI", f"{running.address}/openai/v1")
    row("kinds", ", ".join(running.kinds) or "none: start a worker (below)")
    for built_in in unserved:
        row("", f"not {built_in.kind}: pip install 'outlast[{built_in.extra}]'")
    row("store", f"{running.server}, {'embedded' if running.embedded else 'yours'}")
    row("data", str(settings.data.resolve()) if running.embedded else settings.blob_location)
    if running.unfinished:
        jobs = "1 unfinished job goes" if running.unfinished == 1 else f"{running.unfinished} unfinished jobs go"
        row("jobs", f"{jobs} on")

    console.print()
    console.print(Text.assemble(("Outlast ", "bold"), (version("outlast"), "bold"), " is running"))
    console.print(table)
    for warning in running.warnings:
        console.print(Text(f"warning: {warning}", "yellow"))
    console.print()
    if "ocr" in running.kinds:
        console.print("Try it: read a scanned document, line by line as it is read", style="dim")
        console.print(f"  {curl_line(settings, running.address)}", markup=False)
    console.print("Processors of your own", style="dim")
    console.print(f"  {worker_line(settings, running)}", markup=False)
    console.print("Ctrl-C stops everything; unfinished jobs go on at the next start.", style="dim")
    console.print()


def own_command() -> str:
    """How a shell in this folder calls `outlast`: it may be in an environment that is not on the PATH."""
    if shutil.which("outlast"):
        return "outlast"
    path = Path(sys.prefix, "bin", "outlast")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def worker_line(settings: Settings, running: Running) -> str:
    """A line for a shell that adds a worker to what runs."""
    # Another server's URL may hold a password, and whoever set it knows it.
    url = f"'{running.redis_url}'" if running.embedded else '"$OUTLAST_REDIS_URL"'
    data = "" if settings.blob_url else f" --data '{settings.data.resolve()}'"
    return f"{own_command()} worker package.module --redis {url}{data}"


def curl_line(settings: Settings, address: str) -> str:
    """A line for a shell that submits a document and shows its events."""
    sample = Path("examples/documents/scan.pdf")
    file = sample if sample.is_file() else Path("scan.pdf")
    key = "-H 'Authorization: Bearer YOUR-KEY' " if settings.api_keys else ""
    return (
        f"curl -sSN {key}-H 'Content-Type: application/pdf' -H 'Accept: text/event-stream'"
        f" --data-binary @{file} {address}/v1/kinds/ocr/jobs"
    )
