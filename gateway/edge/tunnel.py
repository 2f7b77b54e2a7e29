"""An upgraded connection: bytes both ways as they come, until one side ends or both have been silent for too long."""

from __future__ import annotations

import asyncio

from gateway.edge.clock import Clock
from gateway.edge.metrics import Record
from gateway.edge.wire import Wire


class Moments:
    """When an upgraded connection has to end: after silence, or after a time; 0 is never."""

    def __init__(self, clock: Clock, idle_seconds: float, total_seconds: float) -> None:
        self.clock = clock
        self.last = clock.now()
        self._idle_seconds = idle_seconds
        self._over = self.last + total_seconds if total_seconds else None

    def end(self) -> float | None:
        """The moment of its end if nothing more comes."""
        moments = [] if self._over is None else [self._over]
        if self._idle_seconds:
            moments.append(self.last + self._idle_seconds)
        return min(moments, default=None)

    def is_idle(self) -> bool:
        """Whether silence is why."""
        return bool(self._idle_seconds) and self.clock.now() >= self.last + self._idle_seconds


async def tunnel(client: Wire, origin: Wire, moments: Moments, record: Record) -> str:
    """Carry bytes until the end; returns how it ended. Pings and close codes pass as they are: no frame is looked at.

    One side that closes takes the other with it, half-closed or not, after what it has sent. A limit that is reached
    resets both. Cancelling leaves both sides to the caller.
    """
    flows = [
        asyncio.create_task(_flow(client, origin, moments, record, from_client=True), name="an edge's tunnel in"),
        asyncio.create_task(_flow(origin, client, moments, record, from_client=False), name="an edge's tunnel out"),
    ]
    clock = moments.clock
    try:
        while not any(flow.done() for flow in flows):
            until = moments.end()
            if until is not None and until <= clock.now():
                for wire in (client, origin):
                    wire.abort()
                return "websocket_idle" if moments.is_idle() else "websocket_total"
            seconds = None if until is None else clock.when(until) - asyncio.get_running_loop().time()
            await asyncio.wait(flows, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for flow in flows:
            flow.cancel()
        await asyncio.wait(flows)
    how = "client_left" if client.ended else "origin_closed"
    for wire in (client, origin):
        wire.close()
    return how


async def _flow(source: Wire, sink: Wire, moments: Moments, record: Record, *, from_client: bool) -> None:
    while data := await source.read():
        moments.last = moments.clock.now()
        if from_client:
            record.request_bytes += len(data)
        else:
            record.response_bytes += len(data)
            record.passed_bytes += len(data)
        sink.write(data)
        await sink.drain()
