"""One TCP connection, read as bytes arrive: every read is seen with its time, and the peer's leaving at once."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

# The most that lies unread: beyond it the peer is held back by TCP.
_HIGH_WATER_BYTES: Final = 256 * 1024
# The most that waits to be sent before `drain` waits.
_WRITE_BYTES: Final = 64 * 1024


class Wire(asyncio.Protocol):
    """A connection. `read` returns what has come, `b""` at its end; only one coroutine reads and one writes."""

    def __init__(self, on_connect: Callable[[Wire], None] | None = None) -> None:
        self._on_connect = on_connect
        self._buffer = bytearray()
        self._paused = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.ended = False
        """Nothing more will come: the peer has closed its side, or the connection is lost."""
        self.lost = False
        self.on_end: Callable[[], None] | None = None
        """Called once when it ends; who waits for something else than this connection learns of it so."""
        self.transport: asyncio.Transport

    # --- what asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BYTES)
        raw: socket.socket | None = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._on_connect is not None:
            self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._readable.set()

    def eof_received(self) -> bool:
        self._end()
        # The other direction goes on until its writer closes it.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._writable.set()
        self._end()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._readable.set()
        if self.on_end is not None:
            self.on_end()

    # --- what its owner calls ---------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """All that has come and was not read, at least one byte; `b""` when nothing will come any more."""
        while not self._buffer:
            if self.ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._paused and not self.lost:
            self._paused = False
            self.transport.resume_reading()
        return data

    def unread(self, data: bytes) -> None:
        """Put back what belongs to the next reader."""
        if data:
            self._buffer[:0] = data

    @property
    def waiting(self) -> bool:
        """Whether there is something to read."""
        return bool(self._buffer)

    def write(self, data: bytes) -> None:
        """Send; what is sent to a lost connection is dropped."""
        if data and not self.lost and not self.transport.is_closing():
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait until there is room to write again, or nobody to write to."""
        await self._writable.wait()

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""
        return 0 if self.lost else self.transport.get_write_buffer_size()

    def unacknowledged(self) -> int:
        """How many bytes the peer's kernel has not acknowledged, as far as this system tells."""
        count = self.transport.get_write_buffer_size()
        raw: socket.socket | None = self.transport.get_extra_info("socket")
        if sys.platform == "linux" and raw is not None and raw.fileno() >= 0:
            import fcntl  # noqa: PLC0415 - not there on every system
            import termios  # noqa: PLC0415

            with suppress(OSError):
                (queued,) = struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, b"\0" * 4))
                count += queued
        return count

    def finish(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        if not self.lost and not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Close in order, once all is sent."""
        self.transport.close()

    def abort(self) -> None:
        """End it as a crashed process does: the peer sees a reset."""
        raw: socket.socket | None = self.transport.get_extra_info("socket")
        if raw is not None:
            with suppress(OSError):
                # Linger of zero seconds: closing sends RST.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
