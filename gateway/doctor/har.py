"""A HAR file: which of its requests failed, and how. No I/O."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.doctor.exchange import Ended
from gateway.doctor.observation import MOST_BODY_CHARACTERS, Observation
from gateway.errors import InvalidInput

# The statuses that this command is about come before those that any page has a few of.
_TELLING: Final = (*range(520, 531), 504, 502, 413, 499, 503, 429, 403, 500)


def is_har(text: str) -> bool:
    """Whether a text is a HAR file."""
    return text.lstrip()[:1] == "{" and '"log"' in text[:2000] and '"entries"' in text


def worst_of(text: str) -> tuple[str, dict[str, str], bytes | None, Observation]:
    """The entry that failed most tellingly: its address, its request's headers and body, and what was observed.

    The body is None where the file only says that there was one.

    Raises `InvalidInput` for what is no HAR file, or has no request in it.
    """
    try:
        document = json.loads(text.removeprefix("\ufeff"))
        entries = [
            entry
            for entry in document["log"]["entries"]
            if str(entry.get("request", {}).get("url", "")).startswith("http")
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidInput("This is no HAR file; save it from the network panel of the browser's tools.") from None
    if not entries:
        raise InvalidInput("The HAR file has no request in it; record while the request fails.")
    entry = min(entries, key=_order)
    request = entry["request"]
    headers = {name: value for name, value in _headers(request) if not name.startswith(":")}
    return str(request["url"]), headers, _sent(request), _observation(entry)


def _order(entry: Mapping[str, Any]) -> tuple[int, float]:
    status = _status(entry)
    if status in _TELLING:
        rank = _TELLING.index(status)
    elif status == 0:
        rank = len(_TELLING)
    else:
        rank = len(_TELLING) + (1 if status >= 400 else 2)
    return rank, -_number(entry.get("time"))


def _observation(entry: Mapping[str, Any]) -> Observation:
    request, response = entry["request"], entry.get("response") or {}
    status = _status(entry)
    headers = tuple(_headers(response))
    error = str(response.get("_error") or "")
    milliseconds = _number(entry.get("time"))
    return Observation(
        status=status or None,
        headers=headers,
        body=_body(response),
        ended=Ended.CUT if status == 0 or error else Ended.WHOLE,
        host=urlsplit(str(request["url"])).hostname or "",
        method=str(request.get("method") or "GET"),
        elapsed_seconds=milliseconds / 1000 if milliseconds else None,
        sent_bytes=max(0, int(_number(request.get("bodySize")))),
        wants_stream=any("event-stream" in value for _, value in [*headers, *_headers(request)]),
    )


def _status(entry: Mapping[str, Any]) -> int:
    return int(_number((entry.get("response") or {}).get("status")))


def _headers(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(one.get("name", "")), str(one.get("value", ""))) for one in message.get("headers") or ()]


def _sent(request: Mapping[str, Any]) -> bytes | None:
    text = (request.get("postData") or {}).get("text")
    if isinstance(text, str) and text:
        return text.encode("utf-8", "surrogatepass")
    return None if _number(request.get("bodySize")) > 0 or request.get("postData") else b""


def _body(response: Mapping[str, Any]) -> str:
    content = response.get("content") or {}
    text = str(content.get("text") or "")[: 2 * MOST_BODY_CHARACTERS]
    if content.get("encoding") == "base64":
        try:
            text = base64.b64decode(text[: len(text) // 4 * 4]).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            text = ""
    return text[:MOST_BODY_CHARACTERS]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
