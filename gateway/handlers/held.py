"""A POST that is held until its job has ended: the answer comes whole at the end, and white space before it.

For a while nothing is sent, so that a job that ends soon gets its true status. Then the head and one byte go out, and
another byte with each heartbeat: every hop on the way sees an answer that goes on. The hub's clock sends them; a held
request has no timer and no task of its own, so they come on time whatever Redis and the worker are doing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from gateway.errors import Gone, NotFound, OutlastError, Unavailable
from gateway.handlers.context import HUB, SETTINGS, STORE, owned, principal
from gateway.handlers.documents import job_headers
from gateway.handlers.listeners import StreamListener
from gateway.handlers.streams import STREAM_HEADERS
from gateway.hub import Frame, Place, Pulse, Subscription
from gateway.protocol import CloseCode, Cursor
from gateway.store import JobRecord, Submitted

# [spec] "Insignificant whitespace is allowed before or after any of the six structural characters." (RFC 8259, 2)
_WHITE_SPACE: Final = b" "


class HeldListener(StreamListener):
    """Hears a job's events only to know when it has ended; sends nothing but white space, and that not at once."""

    returns = False

    def __init__(self, pulse: Pulse, transport: asyncio.WriteTransport, *, chunked: bool, quiet_seconds: float) -> None:
        super().__init__(pulse, transport, transport_name="held", chunked=chunked)
        self.over = False
        """Whether the job has ended, or the connection has to."""
        self._speaks_at: float | None = self.opened_at + quiet_seconds
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def silent(self) -> bool:
        """Whether nothing has been sent yet."""
        return self._speaks_at is not None

    async def turn(self) -> None:
        """Return when the job is over, or earlier when the silence has been long enough."""
        await self._turn
        if not self.over:
            self.listen_on()

    def listen_on(self) -> None:
        """Wait for another turn."""
        self.over = False
        self._turn = asyncio.get_running_loop().create_future()

    def speak(self) -> None:
        """Send the first byte; from now on the clock sends the others."""
        self._speaks_at = None
        self.push(_WHITE_SPACE)

    def tick(self, now: float) -> None:
        if self._speaks_at is None:
            super().tick(now)
        elif now >= self._speaks_at and not self._turn.done():
            self._turn.set_result(None)

    def finished(self, place: Place) -> None:
        self._end()

    def close(self, code: CloseCode | None) -> None:
        super().close(code)
        self._end()

    def _end(self) -> None:
        self.over = True
        if not self._turn.done():
            self._turn.set_result(None)

    def encode(self, place: Place, frame: Frame) -> bytes:
        return b""

    def encode_unnumbered(self, place: Place, text: bytes, type_: str, cursor: Cursor | None = None) -> bytes:
        return b""

    def heartbeat(self) -> bytes:
        return _WHITE_SPACE


class Held:
    """A request that is held for one job. `async with`: the connection hears the job for the length of the block.

    Without a content type nothing can be sent before the answer is known.
    """

    def __init__(self, request: web.Request, submitted: Submitted, content_type: str | None) -> None:
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
        settings, self._hub = request.app[SETTINGS], request.app[HUB]
        self._request = request
        self._record = submitted.record
        self._headers = STREAM_HEADERS | job_headers(submitted)
        self._content_type = content_type
        self._response: web.StreamResponse | None = None
        self._listener = HeldListener(
            self._hub.pulse,
            request.transport,
            chunked=request.version >= (1, 1),
            quiet_seconds=settings.run_quiet_seconds,
        )

    @property
    def begun(self) -> bool:
        """Whether the status and the head have been sent."""
        return self._response is not None

    async def __aenter__(self) -> Held:
        self._hub.open(self._listener)
        if not self._record.terminal:
            self._follow(self._record)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hub.close(self._listener, "gone")

    def _follow(self, record: JobRecord) -> None:
        for place in tuple(self._listener.places):
            if isinstance(place, Subscription):
                self._hub.unsubscribe(place)
        self._listener.listen_on()
        self._hub.start_soon(self._hub.place(self._listener, record, record.last))

    async def end(self) -> JobRecord:
        """The job when it has ended; white space is sent meanwhile, or, where none may be, it comes back as it is.

        Redis may be away for as long as it likes. Raises `Unavailable` when this gateway stops, `Gone` or `NotFound`
        where the job was deleted. Cancelling it, as by a client that leaves, leaves the job alone.
        """
        store, record = self._request.app[STORE], self._record
        while not record.terminal:
            await self._listener.turn()
            if not self._listener.over:
                if self._content_type is None:
                    return record
                await self._speak(self._content_type)
                continue
            if self._listener.closed.done() and self._listener.closed.result() is CloseCode.DRAINING:
                raise _broken_off("This gateway is stopping", record, code="draining")
            try:
                record = await owned(store, record.id, principal(self._request))
            except Unavailable:
                await asyncio.sleep(random.uniform(0.3, 1.0))
                continue
            if record.terminal:
                break
            if self._listener.closed.done():
                # Redis had lost it for a moment, as in a failover, and a closed listener hears nothing any more.
                raise _broken_off("The wait for this job broke off", record)
            # Redis lost the end that was heard: the job goes on, and so does the wait.
            self._follow(record)
        return record

    async def _speak(self, content_type: str) -> None:
        """Send the status and the head, since the client has waited long enough for a byte."""
        response = web.StreamResponse(headers=self._headers | {"Content-Type": content_type})
        await response.prepare(self._request)
        self._response = response
        self._listener.speak()

    async def answer(
        self,
        status: int,
        body: bytes | AsyncIterable[bytes],
        size: int | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> web.StreamResponse:
        """Send the body. Its status, size and headers are told only if the head has not been sent yet.

        The size of bytes is known; that of a stream is None where it isn't.
        """
        # Before the first byte of it: white space in the midst of a body would be a part of it.
        self._hub.close(self._listener, "end")
        response = self._response
        if response is None:
            response = web.StreamResponse(status=status, headers=merged(self._headers, headers))
            if "Content-Type" not in response.headers and self._content_type:
                response.headers["Content-Type"] = self._content_type
            response.content_length = len(body) if isinstance(body, bytes) else size
            await response.prepare(self._request)
        if isinstance(body, bytes):
            await response.write_eof(b"" if self._request.method == "HEAD" else body)
            return response
        if self._request.method != "HEAD":
            async for piece in body:
                await response.write(piece)
        await response.write_eof()
        return response


def _broken_off(what: str, record: JobRecord, code: str | None = None) -> Unavailable:
    return Unavailable(
        f"{what}; the job goes on. Send the request again with the same Idempotency-Key, or wait for it:"
        f" GET /v1/jobs/{record.id}?wait=50.",
        code=code,
        retry_after_seconds=random.uniform(1, 3),
    )


def merged(base: Mapping[str, str], headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """Our headers, and over them an answer's own, each of which may come several times."""
    theirs = CIMultiDict(headers)
    return CIMultiDict([*((name, value) for name, value in base.items() if name not in theirs), *theirs.items()])


# What can be said of a job that is held for instead of its result.
HELD_ERRORS: Final[tuple[type[OutlastError], ...]] = (Unavailable, Gone, NotFound)
