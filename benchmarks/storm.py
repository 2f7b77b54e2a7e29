"""A thousand listeners come back at once, each having missed a hundred events: how long until all have caught up.

    python -m benchmarks.storm [--listeners 1000] [--missed 100]

Three processes on this machine: a Valkey, a gateway, and this one with a socket for each listener. The floor is the
same bytes from a server of a dozen lines that has them ready: what the sockets and this process cost by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.delivery import connect_when_up, free_port
from gateway.documents import KindDocument
from gateway.embedded import EmbeddedValkey
from gateway.event_text import encode_event_tail
from gateway.requests import JobOptions
from gateway.store import NewJob, Store, WriterEvent

KIND = KindDocument(kind="bench")
_NUMBERS = re.compile(rb"\nid: (\d+)-")
_LIMIT_SECONDS = 60.0
_BATCH = 50


class Returned(asyncio.Protocol):
    """A listener that has come back; `done` when it has the last number, with all that it got."""

    def __init__(self, head: bytes, last: int, done: asyncio.Future[list[int]]) -> None:
        self._head = head
        self._last = b"\nid: %d-" % last
        self._got = bytearray()
        self._done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._last in self._got[-len(data) - 64 :] and not self._done.done():
            self._done.set_result([int(number) for number in _NUMBERS.findall(bytes(self._got))])
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError("a listener was cut before it had caught up"))


async def storm(port: int, path: str, cursor: str, first: int, last: int, listeners: int) -> list[float]:
    """Come back `listeners` times at once; the seconds until each had caught up, sorted."""
    loop = asyncio.get_running_loop()
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nLast-Event-ID: {cursor}\r\n\r\n".encode()
    began = time.monotonic()

    async def one() -> float:
        done: asyncio.Future[list[int]] = loop.create_future()
        await loop.create_connection(partial(Returned, head, last, done), "127.0.0.1", port)
        numbers = await done
        if numbers != list(range(first, last + 1)):
            raise SystemExit(f"a listener got {len(numbers)} numbers, not {first} to {last}: the figures mean nothing")
        return time.monotonic() - began

    async with asyncio.timeout(_LIMIT_SECONDS):
        return sorted(await asyncio.gather(*(one() for _ in range(listeners))))


async def serve_ready_bytes(port: int, body: bytes) -> None:
    """The floor's server: a head, then bytes that lie ready."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body)
        await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", port, backlog=1024) as server:
        await server.serve_forever()


async def prepare(store: Store, missed: int) -> tuple[str, str, int, bytes]:
    """A job with a log: its id, the cursor that everybody has, the last number, and the bytes that they miss."""
    await store.register_kind(KIND)
    job = await store.job_id("local", None)
    await store.submit(job, NewJob(KIND, "local", {}, JobOptions(), "bench"), keyed=False)
    [claim] = await store.claim("bench", "bench", 1)
    begun = await store.begin(claim, "bench")
    assert begun.lease is not None
    cursor = (await store.job(job)).last
    tail = encode_event_tail("log", {"message": "x" * 200})
    for batch, start in enumerate(range(0, missed, _BATCH), 1):
        await store.append(begun.lease, batch, [WriterEvent("log", tail)] * min(_BATCH, missed - start))
    page = await store.events(job, cursor, missed)
    blocks = (b"\nid: %d-%d\ndata: %b\n" % (entry.number, entry.time_ms, entry.text) for entry in page.entries)
    return job, str(cursor), page.head.number, b"".join(blocks)


def cpu_seconds(pid: int) -> float:
    """What a process has used of the CPU so far; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(name: str, seconds: list[float]) -> float:
    """Print one line; the seconds until the last one had caught up."""
    print(f"{name:22} half {seconds[len(seconds) // 2]:6.3f} s   all {seconds[-1]:6.3f} s")
    return seconds[-1]


async def main(listeners: int, missed: int) -> None:
    """The floor, then the gateway, then the ratio."""
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{listeners} listeners come back at once, each has missed {missed} events")
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedValkey(Path(folder)) as server:
            store = await Store.connect(server.url, prefix="bench", lease_seconds=600)
            job, cursor, last, body = await prepare(store, missed)
            first = last - missed + 1
            ready = Path(folder, "ready")
            ready.write_bytes(body)
            floor_port, port = free_port(), free_port()
            settings = {"REDIS_URL": server.url, "PREFIX": "bench", "PORT": str(port), "DATA": folder}
            environment = os.environ | {f"OUTLAST_{name}": value for name, value in settings.items()}
            floor = subprocess.Popen([sys.executable, "-m", "benchmarks.storm", "--serve", str(floor_port), str(ready)])
            gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "gateway"], env=environment, stderr=subprocess.DEVNULL
            )
            try:
                await connect_when_up(floor_port, floor)
                await connect_when_up(port, gateway)
                path = f"/v1/jobs/{job}/events"
                lowest = report("ready bytes", await storm(floor_port, path, cursor, first, last, listeners))
                before = cpu_seconds(gateway.pid)
                ours = report("gateway", await storm(port, path, cursor, first, last, listeners))
                spent = cpu_seconds(gateway.pid) - before
            finally:
                for process in (floor, gateway):
                    process.terminate()
                    process.wait()
                await store.close()
    # On a machine that others use as well, this says more than the time does.
    print(f"gateway's own CPU      {spent:.2f} s")
    print(f"ratio                  {ours / lowest:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--missed", type=int, default=100)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve_ready_bytes(int(given.serve[0]), Path(given.serve[1]).read_bytes()))
    else:
        asyncio.run(main(given.listeners, given.missed))
