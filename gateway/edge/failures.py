"""What ends a request other than its response.

Failure
├── Refused      the hop answers instead of the origin: one of `ErrorRules`
├── Garbled      bytes that are no HTTP
└── Cut          the connections end without a word
"""

from __future__ import annotations


class Failure(Exception):
    """The request has no response of the origin's."""


class Refused(Failure):
    """The hop gives an answer of its own."""

    def __init__(self, status: int, reason: str, *, code: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        """What the metrics call it."""
        self.code = code or status
        """The number in the page: Cloudflare's 1xxx errors have another than their status."""


class Garbled(Failure):
    """What came can't be read as HTTP."""


class Cut(Failure):
    """The client sees its connection break."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
