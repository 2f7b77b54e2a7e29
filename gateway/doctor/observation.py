"""One failure as it was seen: by ourselves, in a HAR file, or told in a text. What is not known is empty. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.doctor.exchange import Ended, Exchange

# An error page is far smaller; what is looked at stays bounded whatever comes.
MOST_BODY_CHARACTERS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Observation:
    """An answer, or the lack of one."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    ended: Ended = Ended.WHOLE
    host: str = ""
    """Whom the request was sent to; empty where that is not known."""
    port: int | None = None
    """Where the address names one."""
    method: str = "GET"
    elapsed_seconds: float | None = None
    last_gap_seconds: float | None = None
    """The silence before the end, for an answer that broke off."""
    sent_bytes: int = 0
    """How large the request's body was."""
    wants_stream: bool = False

    def get(self, name: str) -> str:
        """A header's value in lower case, empty where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "").lower()

    @property
    def by_cloudflare(self) -> bool:
        """Whether Cloudflare stood in the way of this answer."""
        return bool(self.get("cf-ray")) or self.get("server").startswith("cloudflare")


def observed(exchange: Exchange, *, sent_bytes: int = 0) -> Observation:
    """What the doctor saw itself."""
    head = exchange.head
    return Observation(
        status=exchange.status,
        headers=head.headers if head else (),
        body=exchange.body[:MOST_BODY_CHARACTERS].decode("utf-8", "replace"),
        ended=exchange.ended,
        host=urlsplit(exchange.url).hostname or "",
        port=urlsplit(exchange.url).port,
        method=exchange.method,
        elapsed_seconds=exchange.ended_seconds,
        last_gap_seconds=exchange.last_gap_seconds,
        sent_bytes=sent_bytes,
        wants_stream=bool(head and "event-stream" in head.get("content-type")),
    )
