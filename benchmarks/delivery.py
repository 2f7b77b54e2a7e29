"""From a worker's append to the bytes on a client's socket: how long, with many jobs streaming at once.

    python -m benchmarks.delivery [--jobs 200] [--rate 10] [--seconds 10]

Three processes on this machine: a gateway, a writer that appends through the store as a worker does (one event per
append), and this one, which holds one SSE connection per job. The floor is the same traffic through Redis alone: one
process publishes, one reads, with no log, no script and no HTTP. All clocks are CLOCK_MONOTONIC, which is one clock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import hiredis

from gateway.documents import KindDocument
from gateway.embedded import EmbeddedValkey
from gateway.event_text import encode_event_tail
from gateway.requests import JobOptions
from gateway.store import Lease, NewJob, Store, WriterEvent

_SENT = re.compile(rb'"sent":(\d+)')
KIND = KindDocument(kind="bench")


class Reader(asyncio.Protocol):
    """Notes when each event's bytes arrive."""

    def __init__(self, first: bytes, delays: list[int], ready: asyncio.Event) -> None:
        self._first = first
        self._delays = delays
        self._ready = ready

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._first)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._ready.set()
        self._delays.extend(now - int(sent) for sent in _SENT.findall(data))


async def write(url: str, prefix: str, leases: list[Lease], rate: float, seconds: float) -> None:
    """Append to every job `rate` times a second, each at its own moment, as workers do."""
    gc.freeze()
    store = await Store.connect(url, prefix=prefix)

    async def one(place: int, lease: Lease) -> None:
        start = time.monotonic() + place / len(leases) / rate
        for batch in range(1, int(rate * seconds) + 1):
            await asyncio.sleep(max(0.0, start + batch / rate - time.monotonic()))
            data = {"sent": time.monotonic_ns(), "message": "x" * 120}
            await store.append(lease, batch, [WriterEvent("log", encode_event_tail("log", data))])

    await asyncio.gather(*(one(place, lease) for place, lease in enumerate(leases)))
    await store.close()


async def publish(url: str, channels: int, rate: float, seconds: float) -> None:
    """The floor's writer: the same rate and size, published and nothing else."""
    import redis.asyncio as redis

    pool = redis.BlockingConnectionPool.from_url(url, max_connections=16, timeout=None)
    client = redis.Redis.from_pool(pool)

    async def one(place: int) -> None:
        start = time.monotonic() + place / channels / rate
        for turn in range(1, int(rate * seconds) + 1):
            await asyncio.sleep(max(0.0, start + turn / rate - time.monotonic()))
            await client.publish(f"floor{place}", b'{"sent":%d,"message":"%b"}' % (time.monotonic_ns(), b"x" * 220))

    await asyncio.gather(*(one(place) for place in range(channels)))
    await client.aclose()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def connect_when_up(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the gateway answers."""
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit("the gateway ended at once; start it by hand to see why")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return
    raise SystemExit("the gateway did not come up within 15 s")


def run_self(mode: str, options: dict[str, object]) -> subprocess.Popen[bytes]:
    """This file again, as the writer."""
    return subprocess.Popen([sys.executable, "-m", "benchmarks.delivery", f"--{mode}", json.dumps(options)])


async def through_the_gateway(url: str, arguments: argparse.Namespace) -> list[int]:
    """Delays in ns from append to socket."""
    prefix = "bench"
    store = await Store.connect(url, prefix=prefix, lease_seconds=600)
    await store.register_kind(KIND)
    leases = []
    for _ in range(arguments.jobs):
        job = await store.job_id("local", None)
        await store.submit(job, NewJob(KIND, "local", {}, JobOptions(), "bench"), keyed=False)
        [claim] = await store.claim("bench", "bench", 1)
        begun = await store.begin(claim, "bench")
        assert begun.lease is not None
        leases.append(begun.lease)
    port = free_port()
    environment = os.environ | {"OUTLAST_REDIS_URL": url, "OUTLAST_PREFIX": prefix, "OUTLAST_PORT": str(port)}
    gateway = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "gateway"], env=environment, stdout=subprocess.DEVNULL
    )
    delays: list[int] = []
    try:
        await connect_when_up(port, gateway)
        loop = asyncio.get_running_loop()
        transports = []
        for lease in leases:
            ready = asyncio.Event()
            head = f"GET /v1/jobs/{lease.job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
            transport, _ = await loop.create_connection(partial(Reader, head, delays, ready), "127.0.0.1", port)
            transports.append(transport)
            await ready.wait()
        options = {
            "url": url,
            "prefix": prefix,
            "leases": [[lease.job, lease.kind, lease.attempt, lease.nonce] for lease in leases],
            "rate": arguments.rate,
            "seconds": arguments.seconds,
        }
        writer = run_self("write", options)
        await asyncio.to_thread(writer.wait)
        await asyncio.sleep(0.5)
        for transport in transports:
            transport.abort()
    finally:
        gateway.terminate()
        gateway.wait()
        await store.close()
    return delays


async def through_redis_alone(url: str, arguments: argparse.Namespace) -> list[int]:
    """The floor's delays in ns."""
    delays: list[int] = []
    ready = asyncio.Event()
    path = url.removeprefix("unix://").split("?")[0]
    words = ("SUBSCRIBE", *(f"floor{i}" for i in range(arguments.jobs)))
    subscribe = hiredis.pack_command(words)  # type: ignore[arg-type] # the stub means one word
    transport, _ = await asyncio.get_running_loop().create_unix_connection(
        lambda: Reader(subscribe, delays, ready), path
    )
    await ready.wait()
    options = {"url": url, "channels": arguments.jobs, "rate": arguments.rate, "seconds": arguments.seconds}
    await asyncio.to_thread(run_self("publish", options).wait)
    transport.abort()
    return delays


def summary(name: str, delays: list[int], expected: int) -> tuple[float, float]:
    """Print one line; p50 and p99 in ms."""
    cuts = statistics.quantiles(delays, n=100)
    p50, p99 = cuts[49] / 1e6, cuts[98] / 1e6
    print(f"{name:22} {len(delays):>7} of {expected} events   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
    return p50, p99


async def main(arguments: argparse.Namespace) -> None:
    """Run both, floor first, and print the ratio."""
    # A collection of this process's own would count as lateness of theirs.
    gc.freeze()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{arguments.jobs} jobs, {arguments.rate} events/s each, {arguments.seconds} s")
    expected = arguments.jobs * int(arguments.rate * arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedValkey(Path(folder)) as server:
            floor = summary("Redis pub/sub alone", await through_redis_alone(server.url, arguments), expected)
            ours = summary("append to SSE socket", await through_the_gateway(server.url, arguments), expected)
    print(f"ratio                  p50 {ours[0] / floor[0]:.1f}   p99 {ours[1] / floor[1]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--write", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--publish", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        given.write["leases"] = [Lease(*fields) for fields in given.write["leases"]]
        asyncio.run(write(**given.write))
    elif given.publish:
        asyncio.run(publish(**given.publish))
    else:
        asyncio.run(main(given))
