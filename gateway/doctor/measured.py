"""What was measured of one chain, as values that are saved, compared and judged. No I/O. Times are in seconds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.doctor.drip import Shape
from gateway.doctor.exchange import Ended

# The least patient hops wait for 29 and 30 s.
_LATE_SECONDS = 25.0


class Value(BaseModel):
    """What is saved and read again: nothing in it changes, and nothing in it is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answered(Value):
    """A plain request and who answered it."""

    url: str = Field(description="What was asked, secrets left out.")
    method: str = Field(description="By which method.")
    ended: Ended = Field(description="How the exchange ended.")
    detail: str = Field("", description="More about that end.")
    status: int | None = Field(None, description="The status, if an answer came.")
    hops: tuple[str, ...] = Field((), description="Proxies that the answer's headers name.")
    ray: str = Field("", description="Cloudflare's id of the request.")
    colo: str = Field("", description="Cloudflare's data centre.")
    addresses: tuple[str, ...] = Field((), description="What the name resolves to.")
    tls: str = Field("", description="TLS version, ALPN and the certificate's issuer.")
    framing: str = Field("", description="How the body was framed: length, chunked, close or none.")
    content_encoding: str = Field("", description="How the body was compressed.")
    connected_seconds: float | None = Field(None, description="When the connection stood.")
    head_seconds: float | None = Field(None, description="When the headers came.")
    first_byte_seconds: float | None = Field(None, description="When the first byte of the body came.")
    largest_gap_seconds: float = Field(0, description="The longest silence.")
    ended_seconds: float = Field(0, description="When it was over.")


class Drip(Value):
    """One stream of the matrix: frames sent one by one, and how they came."""

    method: Literal["GET", "POST"] = Field(description="How it was asked for.")
    format: Literal["sse", "ndjson", "json", "text"] = Field(description="As which content type.")
    encoding: Literal["identity", "gzip"] = Field(description="What the client took.")
    http: Literal["1.1", "2"] = Field("1.1", description="Over which version of HTTP.")
    shape: Shape = Field(description="How the frames came.")
    status: int | None = Field(None, description="The answer's status.")
    content_encoding: str = Field("", description="How the answer was compressed.")
    framing: str = Field("", description="How the answer was framed.")
    head_seconds: float | None = Field(None, description="When the headers came.")
    first_byte_seconds: float | None = Field(None, description="When the first byte came.")
    sent_seconds: float = Field(0, description="From the first frame to the last, where they were sent.")
    came_seconds: float = Field(0, description="The same where they came.")
    largest_lag_seconds: float = Field(0, description="How much longer than the quickest frame one was under way.")
    ended_seconds: float = Field(0, description="When the answer was over.")
    size: int = Field(0, description="Bytes of the body.")

    @property
    def cell(self) -> str:
        """Its place in the matrix."""
        return f"{self.method} {self.format} {self.encoding}" + (" over HTTP/2" if self.http == "2" else "")


class Socket(Value):
    """The WebSocket."""

    outcome: Literal[
        "works", "stripped", "refused", "challenged", "unreachable", "mute", "closed", "altered", "idle_cut"
    ] = Field(description="What became of it.")
    status: int | None = Field(None, description="The handshake's answer.")
    seconds: float = Field(0, description="How long it lived, if it was closed.")
    hops: tuple[str, ...] = Field((), description="Proxies that the handshake's answer names.")


class Silence(Value):
    """How long the chain lets an answer be silent; measured by `--deep` only."""

    asked_seconds: float = Field(description="The silence that was asked for.")
    first_byte_cut_seconds: float | None = Field(None, description="When a silent request was ended; none: never.")
    first_byte_status: int | None = Field(None, description="With which status.")
    gap_cut_seconds: float | None = Field(None, description="When a stream was cut that fell silent; none: never.")
    paced_cut_seconds: float | None = Field(None, description="When one with a heartbeat was cut; none: never.")


class Chain(Value):
    """All that was measured of one address."""

    probe: Literal["ready", "off", "refused", "unreachable", "busy", "not asked"] = Field(
        description="Whether the gateway's probe routes could be used; `busy`: others were measuring with them."
    )
    answered: Answered = Field(description="The first request, and who answered it.")
    own: Answered | None = Field(None, description="The address itself, asked with GET.")
    drips: tuple[Drip, ...] = Field((), description="The drip matrix.")
    headers_held: bool | None = Field(None, description="Whether headers came only with the first byte of the body.")
    socket: Socket | None = Field(None, description="The WebSocket.")
    bodies: dict[str, Literal["whole", "replaced"]] = Field(
        default_factory=dict, description="Which errors' bodies came through, by status."
    )
    interim: Literal["passed", "dropped"] | None = Field(None, description="What became of a 103 before the answer.")
    missing_headers: tuple[str, ...] = Field((), description="Request headers that did not arrive.")
    inner_hops: tuple[str, ...] = Field((), description="Proxies that the request's headers named on arrival.")
    accept_encoding: str = Field("", description="What the gateway heard as Accept-Encoding.")
    cached: bool | None = Field(None, description="Whether two requests got the same answer.")
    visits: int | None = Field(None, description="How often one upload arrived.")
    upload: str = Field("", description="What went wrong with an upload, small or (`--deep`) slow; empty: nothing.")
    refused_bytes: int | None = Field(None, description="The smallest body that was refused before the gateway.")
    silence: Silence | None = Field(None, description="Idle limits.")

    @property
    def late_seconds(self) -> float | None:
        """How long the address itself was silent before it answered, if that is longer than some hops wait."""
        own = self.own
        seconds = own.head_seconds if own else None
        return seconds if seconds is not None and seconds >= _LATE_SECONDS else None

    @property
    def silent_seconds(self) -> float | None:
        """How long the address itself was asked without a byte, if none came at all."""
        own = self.own
        return own.ended_seconds if own and own.status is None and own.ended is Ended.PATIENCE else None
