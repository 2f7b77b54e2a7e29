"""One event and its bytes on each transport."""

from __future__ import annotations

from collections.abc import Callable


class Frame:
    """One event, and its bytes on each transport: each is built once, at first use, and shared by all listeners."""

    __slots__ = ("_forms", "_sse", "_websocket", "number", "text", "time_ms", "type")

    def __init__(self, number: int, time_ms: int, type_: bytes, text: bytes) -> None:
        self.number = number
        self.time_ms = time_ms
        self.type = type_
        self.text = text
        self._sse: bytes | None = None
        self._websocket: bytes | None = None
        self._forms: dict[str, bytes] | None = None

    @property
    def sse(self) -> bytes:
        """The event as an SSE block. Its text has no line break (JSON), its id is digits: nothing can be injected."""
        if self._sse is None:
            self._sse = b"id: %d-%d\ndata: %b\n\n" % (self.number, self.time_ms, self.text)
        return self._sse

    @property
    def websocket(self) -> bytes:
        """The event as an unmasked, uncompressed WebSocket text frame (RFC 6455, section 5.2)."""
        if self._websocket is None:
            self._websocket = websocket_frame(self.text)
        return self._websocket

    def form(self, name: str, build: Callable[[Frame], bytes]) -> bytes:
        """The event in another protocol. What is built under a name must be the same for every listener of the job."""
        if self._forms is None:
            self._forms = {}
        form = self._forms.get(name)
        if form is None:
            form = self._forms[name] = build(self)
        return form


def websocket_frame(text: bytes) -> bytes:
    """A server's text frame around ready bytes."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2) + text
    return b"\x81\x7f" + size.to_bytes(8) + text
