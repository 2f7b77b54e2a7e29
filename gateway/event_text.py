"""An event's text: written once by whoever writes the event, and read only by those who must look into it.

It is the same bytes in the log, in SSE `data:`, in a WebSocket frame, in an NDJSON line and in a JSON array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import from_json, to_json

from gateway.fold import Fold
from gateway.protocol import MAX_EVENT_BYTES, TERMINAL_TYPES, TYPE_PATTERN, Event, EventType, format_time, read_event

_TYPE: Final = re.compile(TYPE_PATTERN, re.ASCII)


def encode_event_tail(type_: str, data: Mapping[str, Any] | None = None) -> bytes:
    """Encode all of an event that its writer knows: `"type":"progress","data":{...}}`.

    The append script puts `{"id":17,"time":"...","job":"...","attempt":1,` before it, so the number and the time are
    Redis's, and the text is never decoded again on its way to a listener.
    Raises `ValueError` for a type that could not stand in the protocol, for data that is no JSON, and for an event over
    `MAX_EVENT_BYTES`.
    """
    if _TYPE.fullmatch(type_) is None:
        raise ValueError(f"{type_!r} is no event type: use lower-case words, and a dot in an application's own types")
    terminal = b'"terminal":true,' if type_ in TERMINAL_TYPES else b""
    tail = b'"type":"%b",%b"data":%b}' % (type_.encode(), terminal, to_json(data or {}, inf_nan_mode="null"))
    if len(tail) > MAX_EVENT_BYTES:
        raise ValueError(f"a {type_} event of {len(tail)} bytes is over {MAX_EVENT_BYTES}: put the value in a file")
    return tail


def encode_transient(type_: EventType, job: str, time_ms: int, data: Mapping[str, Any]) -> bytes:
    """Encode an event that has no number: it is in no log and leaves a listener's cursor where it is."""
    return to_json({"time": format_time(time_ms), "job": job, "type": type_, "data": data})


def decode_event(text: bytes | str) -> Event:
    """Read one event's JSON text. Raises `ValueError` if it is none."""
    return read_event(from_json(text))


def number_of(text: bytes) -> int:
    """A logged event's number, without reading the rest: the append script begins each text with `{"id":17,`."""
    return int(text[6 : text.index(b",")])


def encode_event(event: Event) -> bytes:
    """Write an event that was read as the JSON text that it was, but for spaces and the order of unknown fields."""
    known = {name: getattr(event, name) for name in ("id", "time", "job", "attempt", "type")}
    fields = {name: value for name, value in known.items() if value is not None}
    return to_json(fields | ({"terminal": True} if event.terminal else {}) | {"data": event.data} | event.extra)


def encode_snapshot_data(fold: Fold) -> bytes:
    """Write the data of a snapshot event, as the store keeps it."""
    return to_json(fold.data(), inf_nan_mode="null")
