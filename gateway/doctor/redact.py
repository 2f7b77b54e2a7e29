"""Secrets out of everything that is printed, saved or reported. No I/O.

What looks like a secret is replaced whole: half of a token in a report is still a hint, and nobody misses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit, urlunsplit

HIDDEN: Final = "[redacted]"

_NAME: Final = (
    r"(?:[\w-]*(?:authorization|cookie|token|secret|password|passwd|api[-_]?key|access[-_]?key|private[-_]?key"
    r"|credential|signature|session|assertion|x-outlast-probe)[\w-]*|jwt|sig|pwd)"
)
# `Name: value` at the begin of a line or in quotes, as in headers, curl commands and dumps of requests.
_HEADER: Final = re.compile(
    r"(?im)(?P<name>(?:^|['\"\s,{])" + _NAME + r")"
    r"(?P<colon>['\"]?\s*:\s*['\"]?)(?P<value>(?:(?:bearer|basic|token|digest)\s+)?[^'\"\r\n,}]+)"
)
_COOKIES: Final = re.compile(r"(?im)((?:^|['\"\s])(?:set-)?cookie['\"]?\s*:\s*['\"]?)[^'\"\r\n]+")
_QUERY: Final = re.compile(r"(?i)([?&;](?:" + _NAME + r"|key|auth|code)=)[^&\s'\"<>#]+")
_ASSIGNED: Final = re.compile(r"(?i)(\b" + _NAME + r"=)(['\"]?)[^\s'\"&<>]{6,}")
_SCHEME: Final = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_USER: Final = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@'\"]+@")
_KNOWN: Final = re.compile(
    r"\b(?:sk-[\w-]{8,}|sk_(?:live|test)_\w{8,}|gh[pousr]_\w{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{12,}"
    r"|AIza[\w-]{30,}|hf_\w{20,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?|r8_\w{20,})"
)
_LONG_SEGMENT: Final = re.compile(r"[\w-]{32,}")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without what looks like a secret, and without these secrets, which are known to be some."""
    for secret in sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _COOKIES.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<name>\g<colon>{HIDDEN}", text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _ASSIGNED.sub(rf"\1{HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, text)


def redact_url(url: str) -> str:
    """An address without user, password and the values of its query: which of them is a secret only its owner knows."""
    parts = urlsplit(url)
    query = "&".join(
        f"{name}={HIDDEN}" if equals and not re.fullmatch(r"[\d.]{1,8}", value) else f"{name}{equals}{value}"
        for name, equals, value in (pair.partition("=") for pair in parts.query.split("&") if pair)
    )
    path = "/".join(
        HIDDEN if _LONG_SEGMENT.fullmatch(segment) and re.search(r"\d", segment) else segment
        for segment in parts.path.split("/")
    )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], redact(path), query, ""))
