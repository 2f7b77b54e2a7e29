"""What a delivered event costs the gateway, against a relay as one would write it by hand, in the same run.

    python -m benchmarks.fanout [--listeners 500] [--events 2000]

Two shapes: one job with many listeners, and many jobs with one listener each. The peer is an aiohttp relay: redis-py's
pub/sub, a queue for each listener, `json.loads` and `json.dumps`, `StreamResponse.write`. Both get the same events from
the same Redis as fast as they take them; the figure is CPU time of the server process per event on a client's socket.
The peer has no log: it can't resume, and promises nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import redis.asyncio as redis
from aiohttp import web

from benchmarks.delivery import connect_when_up, free_port
from gateway.documents import KindDocument
from gateway.embedded import EmbeddedValkey
from gateway.event_text import encode_event_tail
from gateway.requests import JobOptions
from gateway.store import Lease, NewJob, Store, WriterEvent

KIND = KindDocument(kind="bench")
BATCH = 16


async def serve_peer(url: str, port: int) -> None:
    """The relay by hand."""
    queues: dict[str, set[asyncio.Queue[dict[str, object]]]] = {}
    pubsub = redis.Redis.from_url(url).pubsub()

    async def pump() -> None:
        async for message in pubsub.listen():
            if message["type"] == "message":
                event = json.loads(message["data"])
                for queue in queues.get(message["channel"].decode(), ()):
                    queue.put_nowait(event)

    async def stream(request: web.Request) -> web.StreamResponse:
        channel = request.match_info["job"]
        queue: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        if channel not in queues:
            queues[channel] = set()
            await pubsub.subscribe(channel)
        queues[channel].add(queue)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": ok\n\n")
        while True:
            event = await queue.get()
            await response.write(f"id: {event['id']}\ndata: {json.dumps(event)}\n\n".encode())

    app = web.Application()
    app.router.add_get("/v1/jobs/{job}/events", stream)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await pubsub.subscribe("unused")
    await pump()


class Counter(asyncio.Protocol):
    """Counts events on one socket."""

    def __init__(self, head: bytes, total: list[int]) -> None:
        self._head = head
        self._total = total
        self.ready = asyncio.Event()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self.ready.set()
        data = self._rest + data
        self._total[0] += data.count(b"payload")
        self._rest = data[-6:] if not data.endswith(b"payload") else b""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def deliver(
    url: str, port: int, pid: int, jobs: list[str], per_job: int, leases: list[Lease] | None, events: int, prefix: str
) -> tuple[float, float, int]:
    """Connect, publish everything, wait until it has arrived; CPU seconds, wall seconds, deliveries."""
    loop = asyncio.get_running_loop()
    total = [0]
    counters = []
    for job in jobs:
        head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        for _ in range(per_job):
            _, counter = await loop.create_connection(partial(Counter, head, total), "127.0.0.1", port)
            await counter.ready.wait()
            counters.append(counter)
    await asyncio.sleep(0.5)
    expected = events * per_job
    each = events // len(jobs)
    cpu, wall = cpu_seconds(pid), time.perf_counter()
    store = await Store.connect(url, prefix=prefix) if leases else None
    pool = redis.BlockingConnectionPool.from_url(url, max_connections=16, timeout=None)
    client = redis.Redis.from_pool(pool)

    async def write(place: int) -> None:
        for batch in range(each // BATCH):
            texts = [
                {"id": batch * BATCH + i, "type": "log", "data": {"m": "payload", "x": "x" * 120}} for i in range(BATCH)
            ]
            if store and leases:
                tail = encode_event_tail("log", {"m": "payload", "x": "x" * 120})
                await store.append(leases[place], batch + 1, [WriterEvent("log", tail)] * BATCH)
            else:
                pipe = client.pipeline(transaction=False)
                for text in texts:
                    pipe.publish(jobs[place], json.dumps(text))
                await pipe.execute()
            # Not more under way than a socket's buffers hold: the figure is cost, not how well a queue grows.
            while (batch + 1) * BATCH * per_job * len(jobs) - total[0] > 64 * per_job * len(jobs):
                await asyncio.sleep(0.001)

    await asyncio.gather(*(write(place) for place in range(len(jobs))))
    sent = (each // BATCH) * BATCH * len(jobs) * per_job
    deadline = time.perf_counter() + 60
    while total[0] < sent and time.perf_counter() < deadline:
        await asyncio.sleep(0.005)
    result = cpu_seconds(pid) - cpu, time.perf_counter() - wall, total[0]
    for counter in counters:
        counter.transport.abort()
    if store:
        await store.close()
    await client.aclose()
    assert total[0] == sent, f"{total[0]} of {sent} arrived ({expected} planned)"
    return result


async def measure(url: str, name: str, jobs: int, per_job: int, events: int) -> float:
    """One server, one shape; prints and returns µs of CPU per delivery."""
    port = free_port()
    prefix = f"fan{name}{jobs}"
    leases: list[Lease] | None = None
    if name == "outlast":
        store = await Store.connect(url, prefix=prefix, lease_seconds=600)
        await store.register_kind(KIND)
        leases = []
        for _ in range(jobs):
            job = await store.job_id("local", None)
            await store.submit(job, NewJob(KIND, "local", {}, JobOptions(), "bench"), keyed=False)
            [claim] = await store.claim("bench", "bench", 1)
            begun = await store.begin(claim, "bench")
            assert begun.lease is not None
            leases.append(begun.lease)
        await store.close()
        environment = os.environ | {"OUTLAST_REDIS_URL": url, "OUTLAST_PREFIX": prefix, "OUTLAST_PORT": str(port)}
        command = [sys.executable, "-m", "gateway.cli", "gateway"]
        names = [lease.job for lease in leases]
    else:
        environment = dict(os.environ)
        command = [sys.executable, "-m", "benchmarks.fanout", "--peer", url, str(port)]
        names = [f"{prefix}{i}" for i in range(jobs)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await connect_when_up(port, process)
        cpu, wall, delivered = await deliver(url, port, process.pid, names, per_job, leases, events, prefix)
    finally:
        process.kill()
        process.wait()
    micro = cpu / delivered * 1e6
    print(f"  {name:8} {delivered:>8} deliveries  {micro:7.1f} us CPU each  {delivered / wall:>9,.0f}/s")
    return micro


async def main(arguments: argparse.Namespace) -> None:
    """Both shapes, the peer first."""
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for title, jobs, per_job in (
        (f"1 job x {arguments.listeners} listeners", 1, arguments.listeners),
        (f"{arguments.listeners} jobs x 1 listener", arguments.listeners, 1),
    ):
        print(title)
        events = arguments.events if per_job > 1 else arguments.listeners * 10 * BATCH
        with tempfile.TemporaryDirectory() as folder:
            async with EmbeddedValkey(Path(folder)) as server:
                peer = await measure(server.url, "by-hand", jobs, per_job, events)
                ours = await measure(server.url, "outlast", jobs, per_job, events)
        print(f"  by hand / outlast: {peer / ours:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listeners", type=int, default=500)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        asyncio.run(serve_peer(given.peer[0], int(given.peer[1])))
    else:
        asyncio.run(main(given))
