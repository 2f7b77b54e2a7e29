"""What a model's token costs on its way to a client, and how late it is, beside a plain relay in the same run.

    python -m benchmarks.tokens [--streams 200] [--deltas 500] [--workers 3] [--rate 10]

A scripted model server writes its clock into each token; clients read chat completions as OpenAI's package does: first
straight from the model server, which shows what the machine adds by itself, then through the peer, then through ours.
The peer is FastAPI with sse-starlette and httpx, passing the chunks on as they come: it parses nothing, keeps nothing
and can't resume. Ours is a gateway process, worker processes and Valkey. CPU time is that of each process, per token on
a client's socket.

All streams begin together: the model server waits until all have asked. Paced, each has `rate` tokens a second, in step
with no other. At full speed the model server writes as fast as it can, in one of two ways:

- *yielding*: in the time that all others leave it (`SCHED_IDLE`), as if it were on another machine and were asked for
  all that can be passed on. Nothing is overrun, so the delay is that of the way.
- *flooding*: with a claim to the cores like everybody else's. It then fills the buffers of its connections faster than
  anybody beside it can empty them, and a token is late by the length of that queue; what counts is the CPU time, and
  when half of the tokens, and the last one, have come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import uvicorn
from aiohttp import web
from fastapi import FastAPI, Request
from sse_starlette.sse import EventSourceResponse

from benchmarks.delivery import connect_when_up, free_port
from benchmarks.fanout import cpu_seconds
from gateway.embedded import EmbeddedValkey

PATH = "/openai/v1/chat/completions"
_STAMP = re.compile(rb"t([0-9]{9,20}) ")
_SETTLE_SECONDS = 1.0
_PACED_SECONDS = 15
# Delays of which a percentile says something.
_FEWEST = 1000
_YIELDING, _FLOODING = "yielding", "flooding"


def clock_us() -> int:
    """Microseconds on a clock that all processes of this machine share."""
    return time.monotonic_ns() // 1000


class _Spoken:
    """One answer of the model server, a token at a time; it has no task of its own, which would cost the most."""

    def __init__(self, transport: asyncio.Transport, deltas: int, rate: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._left = deltas
        self._pause = 1 / rate if rate else 0.0
        # Models don't speak in step.
        self._next = self._loop.time() + random.random() * self._pause
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_at(self._next, self._speak)

    def _speak(self) -> None:
        choice = b'{"index":0,"delta":{"content":"t%d "},"finish_reason":null}' % clock_us()
        chunk = b'data: {"id":"x","object":"chat.completion.chunk","choices":[%b]}\n\n' % choice
        self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self._left -= 1
        if not self._left or self._transport.is_closing():
            self.done.set_result(None)
        elif self._pause:
            self._next += self._pause
            self._loop.call_at(self._next, self._speak)
        else:
            self._loop.call_soon(self._speak)


async def serve_upstream(port: int) -> None:
    """The model server: `deltas` tokens, `rate` a second or, with 0, as fast as it can, once all have asked."""
    asking: list[asyncio.Future[None]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        # Streams at once are what is measured; what it takes to begin them is not.
        asking.append(asyncio.get_running_loop().create_future())
        mine = asking[-1]
        if len(asking) == body["streams"]:
            for each in asking:
                each.set_result(None)
            asking.clear()
        await mine
        assert isinstance(request.transport, asyncio.Transport)
        await _Spoken(request.transport, body["deltas"], body["rate"]).done
        await response.write(b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post(PATH, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


def serve_peer(port: int, upstream: str) -> None:
    """The relay as one would write it."""
    app = FastAPI()
    client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))

    @app.post(PATH)
    async def relay(request: Request) -> EventSourceResponse:
        body = await request.body()

        async def chunks() -> object:
            headers = {"Content-Type": "application/json"}
            async with client.stream("POST", upstream, content=body, headers=headers) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        yield {"data": line[6:]}

        return EventSourceResponse(chunks())  # type: ignore[arg-type]

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", backlog=1024)


class Reader(asyncio.Protocol):
    """Reads one streamed answer."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.tokens: list[tuple[int, int]] = []
        """When each was written and when it came, in microseconds."""
        self._rest = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        now = clock_us()
        data = self._rest + data
        end = 0
        for match in _STAMP.finditer(data):
            self.tokens.append((int(match[1]), now))
            end = match.end()
        self._rest = data[max(end, len(data) - 32) :]
        if b"[DONE]" in self._rest and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionResetError("the stream ended early"))


async def read_all(port: int, streams: int, deltas: int, rate: float) -> list[list[tuple[int, int]]]:
    """Ask for all answers at once; the tokens of each."""
    question = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    body = json.dumps(question | {"deltas": deltas, "rate": rate, "streams": streams}).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    readers = []
    for _ in range(streams):
        _, reader = await asyncio.get_running_loop().create_connection(partial(Reader, head), "127.0.0.1", port)
        readers.append(reader)
    async with asyncio.timeout(300):
        await asyncio.gather(*(reader.done for reader in readers))
    for reader in readers:
        reader.transport.abort()
    answers = [reader.tokens for reader in readers]
    assert all(len(tokens) == deltas for tokens in answers), "not all tokens came"
    return answers


@dataclass(frozen=True)
class Way:
    """A way from the model server to the clients, and the processes whose CPU time it costs."""

    name: str
    port: int
    pids: dict[str, list[int]]

    def _cpu_seconds(self) -> dict[str, float]:
        return {name: sum(cpu_seconds(pid) for pid in pids) for name, pids in self.pids.items()}

    async def measure(self, given: argparse.Namespace, pace: str, rate: float) -> dict[str, float]:
        """Prints one line; the CPU microseconds per token, by the processes' name."""
        # The delays need no more tokens than this; full speed has its whole length, and its start weighs less.
        deltas = min(given.deltas, int(rate * _PACED_SECONDS)) if rate else given.deltas
        before = self._cpu_seconds()
        began = clock_us()
        answers = await read_all(self.port, given.streams, deltas, rate)
        tokens = [token for answer in answers for token in answer]
        costs = {name: (spent - before[name]) / len(tokens) * 1e6 for name, spent in self._cpu_seconds().items()}
        spent = ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
        come = sorted((came - began) / 1e6 for _, came in tokens)
        all_begun = max(answer[0][1] for answer in answers) if rate else 0
        delays = sorted((came - written) / 1000 for written, came in tokens if written >= all_begun)
        if len(delays) < _FEWEST:
            raise SystemExit("the answers had nearly ended when the last one began: ask for a lower rate")
        print(
            f"  {self.name:8} {pace:11}"
            f"  half came in {come[len(come) // 2]:5.1f} s, all in {come[-1]:5.1f} s"
            f"  delay p50 {delays[len(delays) // 2]:7.1f} ms, p99 {delays[int(len(delays) * 0.99)]:7.1f} ms"
            f"  us CPU per token: {spent}  load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        await asyncio.sleep(_SETTLE_SECONDS)
        return costs


async def main(given: argparse.Namespace) -> None:
    """All three ways, over the same model server."""
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{given.streams} streams of {given.deltas} tokens, {given.workers} worker processes")
    upstream_port, peer_port, port = free_port(), free_port(), free_port()
    base = f"http://127.0.0.1:{upstream_port}/openai/v1"
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        return process

    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedValkey(Path(folder)) as server:
            try:
                upstream = start("benchmarks.tokens", "--upstream", str(upstream_port))
                await connect_when_up(upstream_port, upstream)
                peer = start("benchmarks.tokens", "--peer", str(peer_port), f"{base}/chat/completions")
                await connect_when_up(peer_port, peer)
                settings = {
                    "OUTLAST_REDIS_URL": server.url,
                    "OUTLAST_PORT": str(port),
                    "OUTLAST_DATA": folder,
                    "OUTLAST_LLM_URL": base,
                }
                places = str(-(-given.streams // given.workers))
                workers = [
                    start("gateway.cli", "worker", "processors.llm", "--concurrency", places, **settings)
                    for _ in range(given.workers)
                ]
                gateway = start("gateway.cli", "gateway", **settings)
                await connect_when_up(port, gateway)
                await asyncio.sleep(_SETTLE_SECONDS * 2)
                ours = {
                    "gateway": [gateway.pid],
                    "workers": [worker.pid for worker in workers],
                    "valkey": [server.pid or 0],
                }
                ways = (
                    Way("direct", upstream_port, {"model server": [upstream.pid]}),
                    Way("relay", peer_port, {"relay": [peer.pid]}),
                    Way("outlast", port, ours),
                )
                paces = {f"{rate:g}/s each": rate for rate in given.rate} | {_FLOODING: 0.0, _YIELDING: 0.0}
                for pace, rate in paces.items():
                    if pace == _YIELDING:
                        os.sched_setscheduler(upstream.pid, os.SCHED_IDLE, os.sched_param(0))
                    # All ways at one pace before the next pace: what else the machine does then meets all of them.
                    _, theirs, mine = [await way.measure(given, pace, rate) for way in ways]
                    whole = theirs["relay"] / sum(mine.values())
                    print(
                        f"  CPU time, relay / gateway: {theirs['relay'] / mine['gateway']:.1f},"
                        f" relay / (gateway, workers and Valkey): {whole:.1f}"
                    )
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--deltas", type=int, default=500)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rate", type=float, nargs="*", default=[10.0])
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        asyncio.run(serve_upstream(int(arguments.upstream)))
    elif arguments.peer:
        serve_peer(int(arguments.peer[0]), arguments.peer[1])
    else:
        asyncio.run(main(arguments))
