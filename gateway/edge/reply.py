"""What the client gets: one head, the body's pieces, and an end that it can tell from a broken connection."""

from __future__ import annotations

from collections.abc import Callable

from gateway.edge.clock import Clock
from gateway.edge.failures import Cut
from gateway.edge.faults import Fault
from gateway.edge.message import LAST_CHUNK, Framing, RequestHead, ResponseHead, chunk
from gateway.edge.metrics import Record
from gateway.edge.wire import Wire


class Reply:
    """The answer to one request. `check` is called after each write, and raises what has ended the exchange."""

    def __init__(
        self, client: Wire, request: RequestHead, record: Record, clock: Clock, check: Callable[[], None]
    ) -> None:
        self._client = client
        self._request = request
        self._record = record
        self._clock = clock
        self._check = check
        self._head = b""
        self._chunked = False
        self._marks_end = True
        self.begun = False
        """Whether anything but interim heads has gone to the client."""
        self.keeps = request.keeps_alive
        """Whether the connection serves another request."""
        self.fault: Fault | None = None

    def interim(self, head: ResponseHead) -> None:
        """Pass on a 102 or 103; HTTP/1.0 knows none."""
        if self._request.version == "1.1":
            self._client.write(head.encode())

    def prepare(self, head: ResponseHead, framing: Framing, *, request_is_read: bool) -> None:
        """Say how the body will end, and whether the connection goes on. Nothing is sent yet."""
        headers = head.headers
        unknown = framing in {"chunked", "close"} or (framing == "length" and headers.get("content-length") is None)
        if unknown and self._request.version == "1.1":
            self._chunked = True
            headers.set("Transfer-Encoding", "chunked")
        elif unknown:
            self._marks_end = self.keeps = False
        # What is left of a request that nobody read would be taken for the next one.
        self.keeps = self.keeps and request_is_read
        if not self.keeps:
            headers.set("Connection", "close")
        elif self._request.version == "1.0":
            headers.set("Connection", "keep-alive")
        if 520 <= head.status < 530:
            head.reason = ""
        self._record.status = head.status
        self._head = head.encode()

    async def begin(self) -> None:
        """Send the head, if it has not gone with the body's first piece."""
        if not self.begun:
            self.begun = True
            await self._write(self._head)

    async def pass_on(self, data: bytes) -> None:
        """Send a piece of the body; the first one together with the head."""
        if not data:
            return
        if self._record.passed_first_byte_seconds is None:
            self._record.passed_first_byte_seconds = self._clock.now() - self._record.started_seconds
        head, self.begun = (b"" if self.begun else self._head), True
        fault = self.fault
        if fault is not None and fault.fault == "drop_after_bytes":
            data, rest = data[: max(0, fault.bytes - self._record.passed_bytes)], data
            if len(data) < len(rest):
                self._record.passed_bytes += len(data)
                await self._write(head + self._framed(data))
                raise Cut("fault")
        if fault is not None and fault.fault == "slow_drip":
            await self._drip(head, data, fault.bytes_per_second)
        else:
            self._record.passed_bytes += len(data)
            await self._write(head + self._framed(data))

    async def end(self) -> None:
        """Send the end of the body."""
        await self.begin()
        if self._chunked:
            await self._write(LAST_CHUNK)

    def cut(self) -> None:
        """Break off: after what has been sent where the client sees that the end is missing, else by a reset."""
        self.keeps = False
        if self.begun and self._marks_end and not self._client.ended:
            self._client.close()
        else:
            self._client.abort()

    async def _drip(self, head: bytes, data: bytes, bytes_per_second: int) -> None:
        await self._write(head)
        for place in range(len(data)):
            self._record.passed_bytes += 1
            await self._write(self._framed(data[place : place + 1]))
            await self._clock.sleep(1 / bytes_per_second)

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if self._chunked else data

    async def _write(self, data: bytes) -> None:
        self._client.write(data)
        await self._client.drain()
        self._check()
