"""Silence never: bytes on raw sockets while the worker, Redis and then the gateway itself stand still."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.documents import KindDocument
from gateway.store import Store
from tests.faults import FaultProxy, wait_until
from tests.gateway_process import gateway_process
from tests.jobs import begin, submit
from tests.worker_process import worker_process

HELD = 500
STREAMS = 20
QUIET_SECONDS = 1.0
HEARTBEAT_SECONDS = 1.0
BLOCKED_SECONDS = 2.0
LISTENERS = {"run": HELD, "sse": STREAMS, "ndjson": STREAMS, "websocket": STREAMS}
# [spec] "The FIN bit, the opcode ... the mask bit" (RFC 6455, 5.2): a whole text, a whole pong, masked with zeros.
_TEXT, _PONG, _MASK = b"\x81", b"\x8a\x80", bytes(4)


def request(transport: str, job: str) -> bytes:
    """What asks for a job's events, or, for `run`, for a job of one's own."""
    if transport == "run":
        return b"POST /v1/kinds/echo/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    if transport == "websocket":
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        head = f"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n"
        frame = json.dumps({"op": "subscribe", "ref": "1", "job": job}).encode()
        return head.encode() + _TEXT + bytes([0x80 | len(frame)]) + _MASK + frame
    accept = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}[transport]
    return f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode()


class Silences:
    """How long each of many listeners has waited for each byte, by transport."""

    def __init__(self) -> None:
        self.gaps: dict[str, list[float]] = {transport: [] for transport in LISTENERS}

    def count(self) -> dict[str, int]:
        """How many bytes of news each transport has brought so far."""
        return {transport: len(gaps) for transport, gaps in self.gaps.items()}

    async def listen(self, port: int, transport: str, job: str) -> None:
        """Note the gaps until cancelled; an end is a failure."""
        clock = asyncio.get_running_loop().time
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request(transport, job))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split()[1] in {b"200", b"101"}, head
            heard = clock()
            while await reader.read(65536):
                self.gaps[transport].append(clock() - heard)
                heard = clock()
                if transport == "websocket":
                    writer.write(_PONG + _MASK)
            raise AssertionError(f"{transport} was ended")
        finally:
            writer.transport.abort()


@pytest.mark.alone
async def test_every_listener_hears_each_heartbeat_in_time_whatever_stands_still(
    store: Store, prefix: str, tmp_path: Path
) -> None:
    """No gap is a second too long with the worker stopped and Redis silent; with the gateway stopped, by that only."""
    await store.register_kind(KindDocument(kind="quiet"))
    job = (await submit(store, KindDocument(kind="quiet"), owner="local")).id
    await begin(store, "quiet")
    settings = {
        "run_quiet_seconds": QUIET_SECONDS,
        "heartbeat_seconds": HEARTBEAT_SECONDS,
        "blob_url": (tmp_path / "blobs").as_uri(),
    }
    silences = Silences()

    def each_has_heard(times: int, since: Mapping[str, int]) -> bool:
        now = silences.count()
        return all(now[transport] >= since[transport] + times * many for transport, many in LISTENERS.items())

    async with (
        FaultProxy(store._url) as proxy,
        worker_process(store, tmp_path) as worker,
        gateway_process(proxy.url, prefix, tmp_path / "data", **settings) as gateway,
    ):
        port = int(gateway.url.rpartition(":")[2])
        worker.signal(signal.SIGSTOP)
        wanted = [transport for transport, many in LISTENERS.items() for _ in range(many)]
        listeners = [asyncio.create_task(silences.listen(port, transport, job)) for transport in wanted]
        try:
            await wait_until(lambda: each_has_heard(1, Counter()), what="every first byte")
            proxy.stall()
            await wait_until(lambda: each_has_heard(3, Counter()), 30, what="heartbeats without Redis")
            calm, heard = {transport: max(gaps) for transport, gaps in silences.gaps.items()}, silences.count()
            gateway.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(BLOCKED_SECONDS)
            gateway.process.send_signal(signal.SIGCONT)
            await wait_until(lambda: each_has_heard(3, heard), 30, what="heartbeats after the stop")
            assert [task for task in listeners if task.done()] == []
        finally:
            gateway.process.send_signal(signal.SIGCONT)
            proxy.resume()
            for task in listeners:
                task.cancel()
            await asyncio.gather(*listeners, return_exceptions=True)
            worker.signal(signal.SIGCONT)

    for transport, many in LISTENERS.items():
        gaps = silences.gaps[transport]
        assert calm[transport] < HEARTBEAT_SECONDS + 1, transport
        # Late by what the event loop stood still, and one heartbeat of each only.
        assert BLOCKED_SECONDS <= max(gaps) < HEARTBEAT_SECONDS + 1 + BLOCKED_SECONDS, transport
        assert sum(gap > HEARTBEAT_SECONDS + 1 for gap in gaps) <= many, transport
