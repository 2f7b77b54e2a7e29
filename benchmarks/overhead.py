"""What a held or streamed slow route costs over calling the slow server directly.

    python -m benchmarks.overhead [--calls 200] [--work 0.05]

Four processes on this machine: a slow server that takes `--work` seconds for each call, a gateway, a worker, and this
one, which calls the server directly (the floor) and through the gateway in turns, one call at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
from aiohttp import web

from gateway.embedded import EmbeddedValkey

ROUTES = """
[[route]]
path = "/hold"
upstream = "{server}/slow"

[[route]]
path = "/watch"
upstream = "{server}/slow"
mode = "sse"
"""


async def serve_slowly(port: int, work: float) -> None:
    """The slow server."""

    async def slow(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(work)
        return web.json_response({"text": "x" * 1000})

    app = web.Application()
    app.router.add_post("/slow", slow)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def until(session: aiohttp.ClientSession, method: str, url: str, status: int) -> None:
    """Ask until this status comes."""
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.request(method, url) as answer:
                    if answer.status == status:
                        return
            await asyncio.sleep(0.1)


async def call(session: aiohttp.ClientSession, url: str) -> float:
    """Seconds until a call's answer has been read whole."""
    began = time.perf_counter()
    async with session.post(url, json={"input": "x" * 1000}) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()
    return time.perf_counter() - began


async def measure(calls: int, work: float) -> None:
    """Start everything, call in turns, print."""
    server_port, port = 18801, 18802
    server = f"http://127.0.0.1:{server_port}"
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outlast-bench-")))
        (folder / "routes.toml").write_text(ROUTES.format(server=server))
        valkey = await stack.enter_async_context(EmbeddedValkey(folder / "valkey"))
        environment = os.environ | {
            "OUTLAST_REDIS_URL": valkey.url,
            "OUTLAST_DATA": str(folder),
            "OUTLAST_PORT": str(port),
            "OUTLAST_ROUTES": str(folder / "routes.toml"),
            "OUTLAST_CONCURRENCY": "64",
        }
        commands = [
            ("-m", "benchmarks.overhead", "--serve", str(server_port), "--work", str(work)),
            ("-m", "gateway.cli", "gateway"),
            ("-m", "gateway.cli", "worker", "processors.http"),
        ]
        for command in commands:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, env=environment, stderr=asyncio.subprocess.DEVNULL
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        await until(session, "POST", f"{server}/slow", 200)
        await until(session, "POST", f"http://127.0.0.1:{port}/hold", 200)

        urls = {"direct": f"{server}/slow"} | {
            mode: f"http://127.0.0.1:{port}/{path}" for mode, path in (("held", "hold"), ("streamed", "watch"))
        }
        seconds: dict[str, list[float]] = {name: [] for name in urls}
        for turn in range(calls + 10):
            for name, url in urls.items():
                taken = await call(session, url)
                if turn >= 10:
                    seconds[name].append(taken)
    report(seconds)


def report(seconds: dict[str, list[float]]) -> None:
    """Print the machine, the times and what the gateway adds."""
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    floor = statistics.median(seconds["direct"])
    for name, taken in seconds.items():
        p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        print(
            f"{name:9} p50 {p50 * 1000:7.2f} ms  p99 {p99 * 1000:7.2f} ms  over direct {(p50 - floor) * 1000:6.2f} ms"
        )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--work", type=float, default=0.05)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    asyncio.run(serve_slowly(args.serve, args.work) if args.serve else measure(args.calls, args.work))


if __name__ == "__main__":
    main()
