"""One request and its response on an HTTP/2 connection, from and as bytes. No I/O, no clock.

Browsers speak HTTP/2 to an edge, and a hop can treat its streams otherwise than answers over HTTP/1.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

from gateway.doctor.response import Framing, Garbled, Head

# [spec] "An endpoint MUST NOT generate an HTTP/2 message containing connection-specific header fields." (RFC 9113,
# section 8.2.2)
_OF_CONNECTIONS = frozenset({"host", "connection", "transfer-encoding", "upgrade", "keep-alive", "content-length"})
_STREAM = 1


class Http2Response:
    """Write `outgoing()` whenever there is some, feed what comes; it yields heads and pieces of the body."""

    framing: Framing = "none"

    def __init__(self, method: str, url: str, headers: Iterable[tuple[str, str]]) -> None:
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        pseudo = [(":method", method), (":scheme", parts.scheme), (":authority", parts.netloc.rpartition("@")[2])]
        sent = [(name.lower(), value) for name, value in headers if name.lower() not in _OF_CONNECTIONS]
        self._connection = H2Connection(H2Configuration(header_encoding="latin-1", validate_inbound_headers=False))
        self._connection.initiate_connection()
        self._connection.send_headers(_STREAM, [*pseudo, (":path", path), *sent], end_stream=True)
        self.done = False
        """Whether the response has come to its end."""
        self.cut = ""
        """Why it broke off, if it did."""

    def outgoing(self) -> bytes:
        """What is to be written to the peer."""
        return self._connection.data_to_send()

    def feed(self, data: bytes) -> list[Head | bytes]:
        """What these bytes bring. Raises `Garbled`."""
        try:
            found = self._connection.receive_data(data)
        except ProtocolError as error:
            raise Garbled(f"this is no HTTP/2: {error}") from None
        return [part for event in found if (part := self._part(event))]

    def _part(self, event: events.Event) -> Head | bytes | None:
        match event:
            case events.ResponseReceived() | events.InformationalResponseReceived():
                fields = [(str(name), str(value)) for name, value in event.headers or ()]
                status = next((value for name, value in fields if name == ":status"), "")
                if not status.isdigit():
                    raise Garbled("an HTTP/2 answer without a status")
                return Head(int(status), "", "2", tuple(field for field in fields if not field[0].startswith(":")))
            case events.DataReceived():
                self._connection.acknowledge_received_data(event.flow_controlled_length or 0, _STREAM)
                return event.data
            case events.StreamEnded():
                self.done = True
            case events.StreamReset():
                self.cut = f"the stream was reset ({int(event.error_code or 0)})"
            case events.ConnectionTerminated():
                # What has begun is carried to its end; only one that never began is lost.
                self.cut = "" if (event.last_stream_id or 0) >= _STREAM else "the connection was ended"
        return None
