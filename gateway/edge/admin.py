"""`/__edge/...`: what a hop answers about itself, and how faults are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from gateway.edge.exchange import Hop
from gateway.edge.faults import Fault, Faults
from gateway.edge.message import RequestHead

PREFIX: Final = "/__edge/"


def answer(hop: Hop, restart: Callable[[], int], head: RequestHead, body: bytes) -> bytes:
    """The whole response. `restart` cuts all other connections and returns how many."""
    # A page that somebody has open in a browser must not break connections here.
    if head.headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
        return _response(403, {"error": "this is not for pages of other sites"})
    match head.method, head.target.partition("?")[0]:
        case "GET", "/__edge/metrics":
            return _response(200, {"profile": hop.profile.name, **hop.metrics.document()})
        case "POST", "/__edge/restart":
            return _response(200, {"cut": restart()})
        case "POST", "/__edge/fault":
            return _add_fault(hop.faults, body)
        case "DELETE", "/__edge/fault":
            hop.faults.clear()
            return _response(200, {"faults": "cleared"})
        case _:
            return _response(
                404,
                {
                    "error": "there are GET /__edge/metrics, POST /__edge/restart, POST /__edge/fault and"
                    " DELETE /__edge/fault"
                },
            )


def _add_fault(faults: Faults, body: bytes) -> bytes:
    try:
        fault = Fault.parse(json.loads(body))
        faults.add(fault)
    except ValueError as error:
        return _response(400, {"error": str(error)})
    return _response(200, {"fault": fault.fault, "times": fault.times})


def _response(status: int, document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    return (
        f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
