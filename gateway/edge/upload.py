"""A request's body on its way to the origin: passed on as it comes, or read first, and held to the hop's limits."""

from __future__ import annotations

import tempfile
from typing import Final

from gateway.edge.clock import Clock
from gateway.edge.failures import Cut, Garbled, Refused
from gateway.edge.message import LAST_CHUNK, Body, Headers, chunk
from gateway.edge.metrics import Record
from gateway.edge.profile import Profile
from gateway.edge.wire import Wire

# A body that is read first lies in memory up to this, then on disk.
_SPOOL_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 64 * 1024


class Upload:
    """One request's body. Its methods raise `Refused` at a limit, and `Cut` when the client leaves."""

    def __init__(self, client: Wire, body: Body, profile: Profile, clock: Clock, record: Record) -> None:
        self._client = client
        self._body = body
        self._profile = profile
        self._clock = clock
        self._record = record
        self._saved: tempfile.SpooledTemporaryFile[bytes] | None = None
        self.exists = not body.complete

    @property
    def is_read(self) -> bool:
        """Whether nothing of it is left with the client."""
        return self._body.complete

    def check_length(self) -> None:
        """Refuse a body that says itself that it is too large."""
        self._check_size(self._body.length)

    async def save(self, most: int | None = None) -> None:
        """Read it, or its beginning, before anything is sent on; it can be sent more than once then."""
        self._saved = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - `close` does
        while not self._body.complete and (most is None or self._record.request_bytes < most):
            self._saved.write(await self._read())

    def frame(self, headers: Headers) -> None:
        """Say in the request's head how the body ends."""
        if self._body.framing == "chunked" and self._saved is not None and self._body.complete:
            headers.set("Content-Length", str(self._record.request_bytes))
        elif self._body.framing == "chunked":
            headers.set("Transfer-Encoding", "chunked")

    async def send(self, origin: Wire) -> None:
        """Send it, framed as the head says."""
        chunked = self._body.framing == "chunked" and not (self._saved is not None and self._body.complete)
        if self._saved is not None:
            self._saved.seek(0)
            while piece := self._saved.read(_READ_BYTES):
                await self._write(origin, chunk(piece) if chunked else piece)
        while not self._body.complete:
            piece = await self._read()
            await self._write(origin, chunk(piece) if chunked else piece)
        if chunked:
            origin.write(LAST_CHUNK)

    def close(self) -> None:
        """Forget what was saved."""
        if self._saved is not None:
            self._saved.close()

    async def _read(self) -> bytes:
        try:
            async with self._clock.limit(self._profile.timers.write_seconds):
                data = await self._client.read()
        except TimeoutError:
            raise Refused(self._profile.errors.write_stalled, "write_stalled") from None
        if not data:
            raise Cut("client_left")
        try:
            piece = self._body.feed(data)
        except Garbled:
            raise Refused(400, "bad_request") from None
        if self._body.complete:
            self._client.unread(self._body.leftover)
        self._record.request_bytes += len(piece)
        self._check_size(self._record.request_bytes)
        return piece

    async def _write(self, origin: Wire, data: bytes) -> None:
        origin.write(data)
        try:
            async with self._clock.limit(self._profile.timers.write_seconds):
                await origin.drain()
        except TimeoutError:
            raise Refused(self._profile.errors.write_stalled, "write_stalled") from None

    def _check_size(self, size: int) -> None:
        most = self._profile.request.max_body_bytes
        if most and size > most:
            raise Refused(self._profile.errors.body_too_large, "body_too_large")
