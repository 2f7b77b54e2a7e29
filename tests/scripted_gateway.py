"""A gateway that does what a test tells it: raw HTTP, so that an answer can stop at any byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from gateway.event_text import decode_event
from gateway.hub import websocket_frame
from gateway.protocol import Cursor, format_time
from gateway.sse import comment, encode_event, retry

JOB = "22jcerhx2axjbe4xdcug5w4evm"
T0 = 1795486646748


def event_text(number: int, type_: str, data: dict[str, Any] | None = None, *, attempt: int = 1) -> bytes:
    """An event as the log holds it."""
    event = {"id": number, "time": format_time(T0 + number), "job": JOB, "attempt": attempt, "type": type_}
    terminal = {"terminal": True} if type_ in {"succeeded", "failed", "cancelled"} else {}
    return json.dumps(event | terminal | {"data": data or {}}, separators=(",", ":")).encode()


def transient_text(type_: str, data: dict[str, Any]) -> bytes:
    """An event without a number."""
    event = {"time": format_time(T0), "job": JOB, "type": type_, "data": data}
    return json.dumps(event, separators=(",", ":")).encode()


def cursor_of(number: int) -> str:
    """The cursor of `event_text(number, ...)`."""
    return f"{number}-{T0 + number}"


LOG = [
    event_text(1, "queued", attempt=0),
    event_text(2, "started", {"worker": "w-1"}),
    event_text(3, "progress", {"current": 1, "total": 2}),
    event_text(4, "output", {"index": "0", "content_type": "text/plain", "value": "Gr\u00fc\u00dfe"}),
    event_text(5, "succeeded", {"result": {"pages": 2}}),
]


def document(state: str = "queued", **more: Any) -> dict[str, Any]:
    """A job document."""
    base = f"/v1/jobs/{JOB}"
    return {
        "id": JOB,
        "kind": "ocr",
        "state": state,
        "terminal": state in {"succeeded", "failed", "cancelled"},
        "attempt": 1,
        "last_event_id": cursor_of(1),
        "created_at": format_time(T0),
        "urls": {
            "self": base,
            "events": f"{base}/events",
            "websocket": "/v1/ws",
            "result": f"{base}/result",
            "outputs": f"{base}/outputs",
            "cancel": f"{base}/cancel",
            "watch": f"{base}/events",
        },
    } | more


@dataclass
class Asked:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    frames: list[dict[str, Any]] = field(default_factory=list)
    """What the client sent over a WebSocket."""

    @property
    def after(self) -> int:
        """The number of the cursor that was asked for."""
        text = self.query.get("after") or (self.frames[-1].get("after") if self.frames else None) or "0"
        return Cursor.parse(text).number


class Wire:
    """The answering side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(
        self, status: int, body: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None
    ) -> None:
        """A whole answer; a dict is JSON."""
        content_type = "text/html"
        if isinstance(body, dict):
            content_type = "application/problem+json" if status >= 400 else "application/json"
            body = json.dumps(body).encode()
        head = {"Content-Type": content_type, "Content-Length": str(len(body))} | (headers or {})
        await self.send(_head(status, head) + (b"" if status == 204 else body))

    async def stream(
        self, pieces: Iterable[bytes], *, chunked: bool = True, most: int | None = None, end: bool = True
    ) -> None:
        """An event stream's answer, cut after `most` bytes, its head included; without `end` it stays open."""
        answer = event_stream(pieces, chunked=chunked, end=end)
        await self.send(answer[:most])
        if not end:
            await self.closed()

    async def closed(self) -> None:
        """Return when the client has gone, or says goodbye with a close frame."""
        with suppress(ConnectionError):
            while received := await self.reader.read(1024):
                if received[0] == 0x88:
                    return

    async def accept_socket(self, asked: Asked) -> None:
        """Answer a WebSocket's handshake, and read the client's first frame."""
        accept = hashlib.sha1(asked.headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
        key = base64.b64encode(accept.digest()).decode()
        await self.send(_head(101, {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": key}))
        asked.frames.append(await self.receive_frame())

    async def receive_frame(self) -> dict[str, Any]:
        """A client's text frame (masked, RFC 6455, section 5.2)."""
        _, size = await self.reader.readexactly(2)
        size &= 0x7F
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2))
        mask = await self.reader.readexactly(4)
        text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await self.reader.readexactly(size)))
        frame: dict[str, Any] = json.loads(text)
        return frame

    async def close_socket(self, code: int, reason: bytes = b"") -> None:
        """A WebSocket's close frame."""
        await self.send(b"\x88%c" % (2 + len(reason)) + code.to_bytes(2) + reason)


Handler = Callable[[Asked, Wire], Awaitable[None]]


class ScriptedGateway:
    """`async with ScriptedGateway(handler) as gateway: ... gateway.url`. Every connection carries one request."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.asked: list[Asked] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        failures = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for failure in failures:
            if isinstance(failure, Exception) and not isinstance(failure, (ConnectionError, EOFError)):
                raise failure

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        try:
            asked = await _read_request(wire)
            self.asked.append(asked)
            await self._handler(asked, wire)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _read_request(wire: Wire) -> Asked:
    lines = (await wire.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
    parts = urlsplit(target)
    asked = Asked(method, unquote(parts.path), dict(parse_qsl(parts.query)), headers)
    if headers.get("expect") == "100-continue":
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await wire.reader.readline(), 16):
            asked.body += await wire.reader.readexactly(size)
            await wire.reader.readexactly(2)
        await wire.reader.readexactly(2)
    else:
        asked.body = await wire.reader.readexactly(int(headers.get("content-length", "0")))
    return asked


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    if status != 101 and "Connection" not in headers:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def event_stream(pieces: Iterable[bytes], *, chunked: bool = True, end: bool = True) -> bytes:
    """An event stream's whole answer."""
    coding = {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece for piece in pieces)
    if end and chunked:
        body += b"0\r\n\r\n"
    return _head(200, {"Content-Type": "text/event-stream; charset=utf-8"} | coding) + body


def sse(texts: Iterable[bytes], *, after: int = 0) -> list[bytes]:
    """The pieces of an event stream: its first two frames, then the events after a number."""
    blocks = [
        encode_event(text, event.cursor)
        for text in texts
        if (event := decode_event(text)).id is None or event.id > after
    ]
    return [comment("ok"), retry(1), *blocks]


def frames(texts: Iterable[bytes], *, after: int = 0) -> bytes:
    """The same over a WebSocket: the answer to `subscribe`, then the events."""
    kept = [text for text in texts if (event := decode_event(text)).id is None or event.id > after]
    subscribed = json.dumps({"op": "subscribed", "ref": "1", "job": JOB, "after": str(after)}).encode()
    return b"".join(websocket_frame(text) for text in [subscribed, *kept])
