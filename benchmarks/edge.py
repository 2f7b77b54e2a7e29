"""What the simulated edge adds to a request: the time through it against the time without it.

    python -m benchmarks.edge [--requests 2000]

An origin and the hop run in processes of their own; this one asks over kept connections, directly and through the hop
in turn, so that a busy machine slows both. The figure to hold is the difference of the medians: under 2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

REQUEST = b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n"


async def origin() -> None:
    """Answer every head with the same 200 bytes, and echo what comes after an upgrade; print the port."""
    body = b"x" * 200
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"websocket" in head:
                    writer.write(switch)
                    while data := await reader.read(65536):
                        writer.write(data)
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def start(*command: str) -> tuple[subprocess.Popen[str], str]:
    """A process, and the first word that it prints."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0].rsplit(":", 1)[-1]


Ask = Callable[[], Awaitable[None]]


async def asking(port: int) -> Ask:
    """One request and its answer, on a kept connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask() -> None:
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(200)

    return ask


async def echoing(port: int) -> Ask:
    """Some bytes there and back on an upgraded connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")

    async def ask() -> None:
        writer.write(b"y" * 100)
        await reader.readexactly(100)

    return ask


async def measure(make: Callable[[int], Awaitable[Ask]], ports: list[int], count: int) -> list[list[float]]:
    """Milliseconds for each port, asked in turn."""
    asks = [await make(port) for port in ports]
    times: list[list[float]] = [[] for _ in ports]
    for _ in range(count):
        for ask, into in zip(asks, times, strict=True):
            begun = time.perf_counter()
            await ask()
            into.append((time.perf_counter() - begun) * 1000)
    return times


async def run(requests: int) -> None:
    """Measure and print."""
    origin_process, origin_port = start("benchmarks.edge", "--origin")
    edge_process, edge_port = start(
        "gateway.cli", "edge", "--profile", "cloudflare", "--port", "0", "--origin", f"http://127.0.0.1:{origin_port}"
    )
    try:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {requests} each")
        for name, make in (("request", asking), ("WebSocket echo", echoing)):
            direct, through = await measure(make, [int(origin_port), int(edge_port)], requests)
            for label, times in (("direct", direct), ("through the edge", through)):
                quantiles = statistics.quantiles(times, n=100)
                print(f"{name:15s} {label:17s} p50 {quantiles[49]:6.3f} ms   p99 {quantiles[98]:6.3f} ms")
            added = statistics.median(through) - statistics.median(direct)
            print(f"{name:15s} adds {added:.3f} ms at p50 (to hold: under 2 ms)")
    finally:
        for process in (edge_process, origin_process):
            process.terminate()
            process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--origin", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asyncio.run(origin() if arguments.origin else run(arguments.requests))
