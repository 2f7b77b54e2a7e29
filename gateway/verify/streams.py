"""One connection that carries a job's events, over each transport, and when each byte and event came.

A stream here never comes back by itself: that is what the checks do, to see what they get.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp
from aiohttp import WSMsgType

from gateway.errors import BadRequest
from gateway.event_text import decode_event
from gateway.protocol import UNNUMBERED, Event, parse_time
from gateway.sse import Decoder
from gateway.verify.report import Broken
from gateway.verify.target import Target, shown

Transport = Literal["sse", "websocket", "ndjson", "poll"]
TRANSPORTS: Final[tuple[Transport, ...]] = ("sse", "websocket", "ndjson", "poll")

_ACCEPT: Final = {"sse": "text/event-stream", "ndjson": "application/x-ndjson", "poll": "application/json"}
# A long poll asks for this long, so that a job with nothing to say shows as such and not as silence.
_POLL_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Heard:
    """An event, when it came (`time.monotonic`), and the cursor to come back with."""

    at: float
    text: str
    event: Event
    cursor: str

    @property
    def number(self) -> int | None:
        """Its number in the log; None for an event that is in no log."""
        return None if self.event.type in UNNUMBERED else self.event.id

    @property
    def written_at(self) -> float | None:
        """When it was written, by the server's clock, in seconds."""
        return parse_time(self.event.time) / 1000 if self.event.time is not None else None


class Stream(ABC):
    """A connection while it is open; `asked_at` is when it was asked for."""

    def __init__(self, transport: Transport, asked_at: float, silence_seconds: float) -> None:
        self.transport = transport
        self.asked_at = asked_at
        self.told_to_stop = False
        """The server said that there will be nothing more, ever."""
        self._silence_seconds = silence_seconds
        self._ready: deque[Heard] = deque()

    async def next(self) -> Heard | None:
        """The next event; None when the connection has ended. Raises `Broken` for silence, and for nonsense."""
        while not self._ready:
            try:
                async with asyncio.timeout(self._silence_seconds):
                    goes_on = await self._receive()
            except TimeoutError:
                raise Broken(
                    f"nothing came over {self.transport} for {self._silence_seconds:g} s, not even a heartbeat"
                ) from None
            except (aiohttp.ClientError, ConnectionError):
                # Cut on the way. Whoever listens comes back.
                goes_on = False
            if not goes_on:
                return self._ready.popleft() if self._ready else None
        return self._ready.popleft()

    async def sign(self) -> bool:
        """Wait for the next bytes, whatever they are; False when the connection has ended."""
        try:
            return await self._receive()
        except (aiohttp.ClientError, ConnectionError):
            return False

    @abstractmethod
    async def _receive(self) -> bool:
        """Take what comes next; False at the end."""

    def _heard(self, text: str, cursor: str = "") -> None:
        self._ready.append(read_event(text, cursor))


def read_event(text: str, cursor: str = "") -> Heard:
    """An event's JSON text. Raises `Broken` for what is none."""
    try:
        event = decode_event(text)
        own = event.cursor
    except (ValueError, BadRequest):
        raise Broken(f"this is no event of the protocol: {shown(text)}") from None
    return Heard(time.monotonic(), text, event, cursor or (str(own) if own is not None else ""))


class _ByteStream(Stream):
    """SSE and NDJSON: an HTTP body that goes on."""

    def __init__(
        self,
        transport: Transport,
        response: aiohttp.ClientResponse,
        asked_at: float,
        silence_seconds: float,
        after: str,
    ) -> None:
        super().__init__(transport, asked_at, silence_seconds)
        self._response = response
        self._decoder = Decoder(after)
        self._rest = b""
        self.told_to_stop = response.status == 204

    async def _receive(self) -> bool:
        chunk = await self._response.content.readany()
        if not chunk:
            return False
        if self.transport == "sse":
            for message in self._decoder.feed(chunk):
                self._heard(message.data, message.id)
            return True
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._heard(line.decode(errors="replace").strip())
        return True


class _SocketStream(Stream):
    """A WebSocket with one subscription."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, asked_at: float, silence_seconds: float) -> None:
        super().__init__("websocket", asked_at, silence_seconds)
        self._socket = socket

    async def _receive(self) -> bool:
        message = await self._socket.receive()
        if message.type in {WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR}:
            return False
        if message.type is WSMsgType.PING:
            await self._socket.pong(message.data)
        elif message.type is WSMsgType.TEXT:
            self._take(message.data)
            return not self.told_to_stop
        return True

    def _take(self, text: str) -> None:
        try:
            frame = json.loads(text)
        except ValueError:
            frame = None
        if not isinstance(frame, dict):
            raise Broken(f"this is no frame of the protocol: {shown(text)}")
        if frame.get("op") == "error":
            raise Refused(frame.get("problem", {}).get("status", 400), frame.get("problem", {}))
        if frame.get("op") == "subscribed":
            self.told_to_stop = bool(frame.get("ended"))
        elif "op" not in frame:
            self._heard(text)


class _Polls(Stream):
    """JSON pages, one after the other, each asked for with the cursor of the last event."""

    def __init__(self, target: Target, job: str, after: str, silence_seconds: float) -> None:
        super().__init__("poll", time.monotonic(), silence_seconds)
        self._target = target
        self._path = f"/v1/jobs/{job}/events"
        self._after = after
        self._terminal = False

    async def _receive(self) -> bool:
        if self._terminal:
            return False
        answer = await self._target.ask(
            "GET",
            f"{self._path}?after={self._after or 0}&wait={_POLL_SECONDS}",
            headers={"Accept": _ACCEPT["poll"]},
            patience_seconds=self._silence_seconds,
        )
        if answer.status != 200:
            raise Refused(answer.status, _problem(answer.body))
        try:
            page = json.loads(answer.body)
        except ValueError:
            page = None
        if not isinstance(page, list):
            raise Broken(f"a page of events is no JSON array: {shown(answer.body)}")
        for text in split_array(answer.body.decode()):
            heard = read_event(text)
            self._ready.append(heard)
            self._after = heard.cursor
            self._terminal = heard.event.terminal
        return True


class Refused(Broken):
    """A stream was refused."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.code = problem.get("code")
        super().__init__(f"it was refused with {status} {self.code or ''}: {problem.get('detail') or problem}"[:300])


def split_array(text: str) -> list[str]:
    """The texts of a JSON array's items as they stand there, so that they can be compared byte by byte."""
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    texts: list[str] = []
    while True:
        while text[place] in ", \n\r\t":
            place += 1
        if text[place] == "]":
            return texts
        _, end = decoder.raw_decode(text, place)
        texts.append(text[place:end])
        place = end


def _problem(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"detail": shown(body)}


@asynccontextmanager
async def open_stream(
    target: Target,
    transport: Transport,
    job: str,
    after: str = "",
    *,
    silence_seconds: float,
    session: aiohttp.ClientSession | None = None,
) -> AsyncIterator[Stream]:
    """Open a job's events after a cursor. Leaving the block cuts the connection, whatever is still on its way.

    Raises `Refused`, and `Broken` where nobody answers.
    """
    if transport == "poll":
        yield _Polls(target, job, after, silence_seconds)
        return
    asked_at = time.monotonic()
    if transport == "websocket":
        async with _open_socket(target, silence_seconds) as socket:
            await socket.send_str(json.dumps({"op": "subscribe", "ref": "1", "job": job, "after": after or "0"}))
            yield _SocketStream(socket, asked_at, silence_seconds)
        return
    # As a browser does it on SSE; the others have no such header of their own.
    place = {"Last-Event-ID": after} if after and transport == "sse" else {}
    query = f"?after={after}" if after and transport == "ndjson" else ""
    request = (session or target.session).get(
        f"{target.next_base()}/v1/jobs/{job}/events{query}",
        headers=target.headers({"Accept": _ACCEPT[transport], "Cache-Control": "no-cache", **place}),
        allow_redirects=False,
    )
    async with _opened(request, transport, silence_seconds) as response:
        yield _ByteStream(transport, response, asked_at, silence_seconds, after)


@asynccontextmanager
async def submit_stream(
    target: Target, body: dict[str, Any], headers: dict[str, str], *, silence_seconds: float
) -> AsyncIterator[tuple[Stream, str]]:
    """Submit a job and read its events from the same answer; also gives the job's id."""
    asked_at = time.monotonic()
    request = target.session.post(
        target.next_base() + target.submit_path,
        headers=target.headers({"Accept": _ACCEPT["sse"], "Content-Type": "application/json", **headers}),
        data=json.dumps(body).encode(),
        allow_redirects=False,
    )
    async with _opened(request, "sse", silence_seconds) as response:
        job = response.headers.get("Location", "").rpartition("/")[2]
        if job:
            target.made[job] = None
        yield _ByteStream("sse", response, asked_at, silence_seconds, ""), job


@asynccontextmanager
async def _opened(request: Any, transport: Transport, silence_seconds: float) -> AsyncIterator[aiohttp.ClientResponse]:
    try:
        async with asyncio.timeout(silence_seconds):
            response: aiohttp.ClientResponse = await request
    except TimeoutError:
        raise Broken(f"no answer to a stream over {transport} within {silence_seconds:g} s") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Broken(f"a stream over {transport} could not be opened: {error or type(error).__name__}") from None
    try:
        if response.status == 204:
            yield response
            return
        if response.status != 200:
            raise Refused(response.status, _problem(await response.read()))
        if response.content_type != _ACCEPT[transport]:
            raise Broken(f"a stream over {transport} was answered with {response.content_type}")
        yield response
    finally:
        response.close()


@asynccontextmanager
async def _open_socket(target: Target, silence_seconds: float) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    try:
        async with asyncio.timeout(silence_seconds):
            socket = await target.session.ws_connect(
                f"{target.next_base()}/v1/ws",
                headers=target.headers(),
                # Pings are what breaks the silence here, so they have to be seen.
                autoping=False,
                compress=0,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
            )
    except TimeoutError:
        raise Broken(f"no answer to a WebSocket handshake within {silence_seconds:g} s") from None
    except aiohttp.WSServerHandshakeError as error:
        raise Refused(error.status, {"detail": "the WebSocket handshake"}) from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Broken(f"a WebSocket could not be opened: {error or type(error).__name__}") from None
    try:
        yield socket
    finally:
        await socket.close()


async def submit_over_socket(target: Target, frame: dict[str, Any], *, silence_seconds: float) -> dict[str, Any]:
    """Submit a job over a WebSocket; returns the answer's frame. Raises `Refused` with the problem's code."""
    async with _open_socket(target, silence_seconds) as socket:
        await socket.send_str(json.dumps({"op": "submit", "ref": "1", **frame}))
        while True:
            try:
                async with asyncio.timeout(silence_seconds):
                    message = await socket.receive()
            except TimeoutError:
                raise Broken(f"a submit over a WebSocket got no answer within {silence_seconds:g} s") from None
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
                continue
            if message.type is not WSMsgType.TEXT:
                raise Broken("the WebSocket was closed where the answer to a submit should have come")
            answer: dict[str, Any] = json.loads(message.data)
            if answer.get("op") == "error":
                problem = answer.get("problem", {})
                raise Refused(problem.get("status", 400), problem)
            if answer.get("op") == "submitted":
                target.made[answer["job"]["id"]] = None
                return answer
