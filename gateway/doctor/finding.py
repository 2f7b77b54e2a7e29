"""What the doctor found: a verdict, what was seen of it, and the values that its texts need. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.doctor.verdicts import VERDICTS, Verdict

# What a text says where a finding has no better value.
_DEFAULTS: Final = {
    "fallback": "Until then clients fall back to SSE.",
    "host": "the host",
    "path": "the stream's path",
    "seconds": "some",
    "heartbeat": "15",
    "hop": "the proxy",
    "owner": "the provider",
    "limit": "a few MB",
    "buffering": "Turn off response buffering for the stream's path in the proxy.",
    "websocket": "Let the proxy pass `Upgrade` and `Connection` on.",
    "timeout": "Set OUTLAST_HEARTBEAT_SECONDS={heartbeat}.",
    "body": "Raise the proxy's limit for request bodies.",
    "headers": "headers",
    "statuses": "errors",
    "status": "another status",
    "cells": "some of them",
    "size": "so many",
    "visits": "several",
    "what": "a measurement",
    "before": "one thing",
    "after": "another",
    "detail": "something is lost",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict that was reached, with what was seen and what its texts need."""

    code: str
    evidence: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The row of the table."""
        return VERDICTS[self.code]

    def text(self, template: str) -> str:
        """One of the verdict's texts, with the finding's values in it."""
        return template.format_map(_Filled(_DEFAULTS | dict(self.values)))


class _Filled(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def in_cause_order(findings: Iterable[Finding]) -> list[Finding]:
    """The finding to act on first; notes last."""
    return sorted(findings, key=lambda finding: (finding.verdict.note, finding.verdict.cause))
