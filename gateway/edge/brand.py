"""The headers that a hop adds, takes away and overwrites, by whose hop it is."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gateway.edge.message import Headers
from gateway.edge.profile import Profile

# Sent by an edge to say that it speaks HTTP/3 as well.
_ALT_SVC = 'h3=":443"; ma=86400'


@dataclass(frozen=True, slots=True)
class Passage:
    """What is known of a request on its way through."""

    ray: str
    client: str
    """The client's address."""
    host: str
    """As the client named it."""
    origin: str
    """host:port of the origin."""


def change_request(profile: Profile, headers: Headers, passage: Passage) -> None:
    """Make a request's headers those that the origin gets. Hop-by-hop fields are gone already."""
    rules = profile.request
    if rules.drop_dotted:
        headers.items = [(name, value) for name, value in headers.items if "." not in name]
    if rules.accept_encoding:
        headers.set("Accept-Encoding", rules.accept_encoding)
    match profile.brand:
        case "cloudflare":
            _forwarded(headers, passage)
            headers.set("CF-Connecting-IP", passage.client)
            headers.set("CF-Ray", passage.ray)
            headers.set("CF-Visitor", json.dumps({"scheme": "http"}))
            headers.set("CF-IPCountry", "XX")
        case "nginx":
            # Without proxy_set_header, the origin sees its own name.
            headers.set("Host", passage.origin)
        case "alb":
            _forwarded(headers, passage)
            headers.set("X-Amzn-Trace-Id", f"Root={passage.ray}")
        case "heroku":
            _forwarded(headers, passage)
            headers.set("X-Request-Id", passage.ray)
            headers.items.append(("Via", "1.1 heroku-router"))
        case "api-gateway":
            _forwarded(headers, passage)
            headers.set("Host", passage.origin)
        case _:
            pass
    if rules.max_loops:
        loop = headers.get("cdn-loop")
        headers.set("CDN-Loop", f"{loop}, {profile.brand}" if loop else profile.brand)
    if rules.origin_http == "1.0":
        headers.set("Connection", "close")
    elif profile.brand == "cloudflare":
        headers.set("Connection", "Keep-Alive")


def _forwarded(headers: Headers, passage: Passage) -> None:
    before = headers.get("x-forwarded-for")
    headers.set("X-Forwarded-For", f"{before}, {passage.client}" if before else passage.client)
    headers.set("X-Forwarded-Proto", "http")


def change_response(profile: Profile, headers: Headers, passage: Passage) -> None:
    """Make a response's headers those that the client gets, the hop's own pages included."""
    match profile.brand:
        case "cloudflare":
            _drop_x_accel(headers)
            headers.set("Server", "cloudflare")
            headers.set("CF-RAY", passage.ray)
            headers.set("cf-cache-status", "DYNAMIC")
            headers.set("alt-svc", _ALT_SVC)
        case "nginx":
            _drop_x_accel(headers)
            headers.set("Server", "nginx")
        case "heroku":
            headers.items.append(("Via", "1.1 heroku-router"))
        case "api-gateway":
            headers.set("x-amzn-RequestId", passage.ray)
        case _:
            pass


def _drop_x_accel(headers: Headers) -> None:
    headers.items = [(name, value) for name, value in headers.items if not name.lower().startswith("x-accel-")]


def loops(headers: Headers, brand: str) -> int:
    """How often a request has been through a hop of this brand."""
    return [part.strip().lower() for part in (headers.get("cdn-loop") or "").split(",")].count(brand)
