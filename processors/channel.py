"""Messages between a worker and a child process that runs a processor's function: pickled tuples, each with its length.

Both ends are the same program, so pickle is as safe here as anywhere in a process. `processors.process` is the
worker's end, `processors.child` the other.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from typing import Any, Final

# A message holds a result or an output as it is in memory; one that is larger than this is a file, not a message.
MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
# With this code a child ends that has no memory left to hear its worker.
DEAF_EXIT: Final = 12
_LENGTH_BYTES: Final = 4


class Channel:
    """One end. Sending and receiving belong to the event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """A channel over one end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end))

    async def send(self, *message: Any) -> None:
        """Send a message; waits while the other end is behind.

        Raises whatever pickling raises for a value that can't travel, and `ConnectionError` if the other end is gone.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        if len(data) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(data)} bytes is over {MAX_MESSAGE_BYTES}: write it to a file instead")
        self._writer.write(len(data).to_bytes(_LENGTH_BYTES))
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> tuple[Any, ...] | None:
        """The next message; None once the other end is gone.

        Raises `ValueError` for a length that no message has, and whatever unpickling raises: something else than the
        runtime has written to the channel, or a value that exists at its other end only.
        """
        try:
            size = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
            if size > MAX_MESSAGE_BYTES:
                raise ValueError(f"what came over the channel is no message: it would have {size} bytes")
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        message: tuple[Any, ...] = pickle.loads(data)
        return message

    def close(self) -> None:
        """Close this end; what the other one has not taken yet is dropped."""
        self._writer.transport.abort()
