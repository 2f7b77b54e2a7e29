"""The pages with which a hop answers for the origin: the formats that clients and log readers know, in our own words.

They carry the markers of the real pages (title, ids, header names, JSON keys, `error code: 524`), and say that they are
simulated unless the marks are off.
"""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from gateway.edge.message import Headers
from gateway.edge.profile import Brand

_CLOUDFLARE_TITLES: Final[Mapping[int, str]] = {
    520: "Web server is returning an unknown error",
    521: "Web server is down",
    522: "Connection timed out",
    523: "Origin is unreachable",
    524: "A timeout occurred",
    525: "SSL handshake failed",
    526: "Invalid SSL certificate",
    1000: "DNS points to prohibited IP",
    1015: "You are being rate limited",
    1016: "Origin DNS error",
    1033: "Cloudflare Tunnel error",
}
# `error_name` of the JSON form: 524's was seen, the others are formed after it.
_CLOUDFLARE_NAMES: Final[Mapping[int, str]] = {
    520: "origin_unknown_error",
    521: "origin_down",
    522: "origin_connection_timeout",
    523: "origin_unreachable",
    524: "origin_response_timeout",
    525: "origin_tls_handshake_failed",
    526: "origin_certificate_invalid",
    1000: "dns_prohibited_ip",
    1015: "rate_limited",
    1016: "origin_dns_error",
    1033: "tunnel_error",
}
# In words for people what the metrics call by a name.
_CAUSES: Final[Mapping[str, str]] = {
    "read_timeout": "the origin was silent for too long",
    "write_stalled": "the request's body stopped for too long",
    "connect_timeout": "the origin accepted no connection in time",
    "not_acknowledged": "the origin did not acknowledge the request in time",
    "refused": "the origin refused the connection",
    "unknown_name": "the origin's name is not known here",
    "garbled": "the origin's answer is no HTTP",
    "empty_answer": "the origin closed the connection without an answer",
    "reuse_race": "the origin closed a connection as it was used again",
    "replaced": "the origin answered with this status",
    "loop": "the request has been here before",
    "too_many": "too many requests at once",
    "fault": "somebody asked for this error",
}
_NO_STORE: Final = (
    "private, max-age=0, no-store, no-cache, must-revalidate, post-check=0, pre-check=0"  # as seen on a 524
)
_FORMS: Final = frozenset({"application/json", "application/problem+json", "text/html"})
# As seen: clients are invited to send again what is still running.
_RETRY_AFTER: Final = 120


@dataclass(frozen=True, slots=True)
class Page:
    """An answer of the hop's own."""

    status: int
    reason: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a page is about."""

    status: int
    code: int
    """The number in the page."""
    cause: str
    """As the metrics call it."""
    host: str
    accept: str
    ray: str
    client: str
    now: datetime
    silent_seconds: float
    """The limit that was passed, for the text."""
    marked: bool


def make_page(brand: Brand, occasion: Occasion) -> Page:
    """The page for an occasion, in the brand's format."""
    match brand:
        case "cloudflare":
            return _cloudflare(occasion)
        case "nginx":
            return _server_page(occasion, server="nginx", signature="nginx/1.27.0")
        case "alb":
            return _server_page(occasion, server="awselb/2.0", signature="")
        case "heroku":
            return _heroku(occasion)
        case "api-gateway":
            return _api_gateway(occasion)
        case _:
            return _page(occasion, "text/plain; charset=utf-8", f"{occasion.status} {_cause(occasion)}\n")


def challenge(occasion: Occasion) -> Page:
    """The page of a bot check: what an API client gets for an answer."""
    page = _page(
        occasion,
        "text/html; charset=UTF-8",
        _document(
            "Just a moment...", '<p id="challenge-error-text">Enable JavaScript and cookies to continue</p>', occasion
        ),
    )
    page.headers.set("cf-mitigated", "challenge")
    return page


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _cause(occasion: Occasion) -> str:
    return _CAUSES.get(occasion.cause, occasion.cause.replace("_", " "))


def _page(occasion: Occasion, content_type: str, text: str) -> Page:
    body = text.encode()
    headers = Headers([("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return Page(occasion.status, _phrase(occasion.status), headers, body)


def _document(title: str, content: str, occasion: Occasion) -> str:
    mark = "<p>Simulated by <code>outlast edge</code>.</p>\n" if occasion.marked else ""
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title></head>\n'
        f"<body>\n{content}\n{mark}</body>\n</html>\n"
    )


# --- Cloudflare -------------------------------------------------------------------------------------------------------


def _cloudflare(occasion: Occasion) -> Page:
    if occasion.status == 413:
        # The one page that looks like a web server's own.
        return _server_page(occasion, server="cloudflare", signature="cloudflare")
    # The JSON form says that the error is the edge's own, which a 502 or 504 that takes the origin's place is not.
    accepted = _wanted(occasion.accept, _FORMS if occasion.code in _CLOUDFLARE_NAMES else {"text/html"})
    if accepted in {"application/json", "application/problem+json"}:
        page = _page(occasion, f"{accepted}; charset=utf-8", json.dumps(_cloudflare_object(occasion)))
        page.headers.items.append(("Retry-After", str(_RETRY_AFTER)))
    elif accepted == "text/html":
        page = _page(occasion, "text/html; charset=UTF-8", _cloudflare_document(occasion))
    else:
        page = _page(occasion, "text/plain; charset=UTF-8", f"error code: {occasion.code}")
    own = [
        ("Cache-Control", _NO_STORE),
        ("Expires", "Thu, 01 Jan 1970 00:00:01 GMT"),
        ("X-Frame-Options", "SAMEORIGIN"),
        ("Referrer-Policy", "same-origin"),
    ]
    if occasion.code in _CLOUDFLARE_NAMES:
        own += [("cf-error-type", str(occasion.code)), ("cf-error-origin", "edge")]
    page.headers.items += own
    return page


def _wanted(accept: str, forms: Collection[str]) -> str:
    """The first of the forms that there are, as the client ranks them; none: plain text."""
    ranked = []
    for place, part in enumerate(accept.lower().split(",")):
        type_, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        if type_ in forms:
            ranked.append((-float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0, place, type_))
    return min(ranked)[2] if ranked else ""


def _cloudflare_title(code: int) -> str:
    return _CLOUDFLARE_TITLES.get(code, _phrase(code) or "Unknown error")


def _cloudflare_object(occasion: Occasion) -> dict[str, object]:
    code = occasion.code
    detail = f"No answer of the origin: {_cause(occasion)}."
    if code == 524:
        detail = (
            f"The origin web server did not answer within the {occasion.silent_seconds:g}-second Proxy Read Timeout"
            " window."
        )
    document: dict[str, object] = {
        "type": f"https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/error-{code}/",
        "title": f"Error {code}: {_cloudflare_title(code)}",
        "status": occasion.status,
        "detail": detail,
        "instance": occasion.ray,
        "error_code": code,
        "error_name": _CLOUDFLARE_NAMES[code],
        "error_category": "origin" if code != 1015 else "rate_limit",
        "ray_id": occasion.ray,
        "timestamp": occasion.now.isoformat().replace("+00:00", "Z"),
        "zone": occasion.host,
        "cloudflare_error": True,
        "retryable": True,
        "retry_after": _RETRY_AFTER,
        "owner_action_required": True,
        "what_you_should_do": "Wait and send the request again; its owner should look at the origin.",
        "footer": f"Ray ID: {occasion.ray}",
    }
    if occasion.marked:
        document["simulated"] = True
    return document


def _cloudflare_document(occasion: Occasion) -> str:
    host, code = html.escape(occasion.host), occasion.code
    title = _cloudflare_title(code)
    link = (
        f"https://www.cloudflare.com/5xx-error-landing?utm_source=errorcode_{code}"
        f"&amp;utm_campaign={quote(occasion.host, safe='')}"
    )
    return _document(
        f"{occasion.host} | {code}: {title}",
        '<link rel="stylesheet" href="/cdn-cgi/styles/main.css">\n'
        '<div id="cf-wrapper"><div id="cf-error-details">\n'
        f"<h1>{title} <span>Error code {code}</span></h1>\n"
        f"<p>The browser and the edge work; {host} does not: {_cause(occasion)}.</p>\n"
        f'<p><a href="{link}">More about this error</a></p>\n'
        f"<p>Cloudflare Ray ID: <strong>{occasion.ray}</strong> &bull; Your IP: {html.escape(occasion.client)}</p>\n"
        "</div></div>",
        occasion,
    )


# --- the others -------------------------------------------------------------------------------------------------------


def _server_page(occasion: Occasion, *, server: str, signature: str) -> Page:
    """The short page of a web server: nginx, and those that look like it."""
    title = f"{occasion.status} {_server_phrase(occasion.status)}"
    lines = [
        "<html>",
        f"<head><title>{title}</title></head>",
        "<body>",
        f"<center><h1>{title}</h1></center>",
        *([f"<hr><center>{signature}</center>"] if signature else []),
        *(["<!-- simulated by outlast edge -->"] if occasion.marked else []),
        "</body>",
        "</html>",
        "",
    ]
    page = _page(occasion, "text/html", "\r\n".join(lines))
    page.headers.set("Server", server)
    return page


def _server_phrase(status: int) -> str:
    # nginx has words of its own for these.
    own = {504: "Gateway Time-out", 413: "Request Entity Too Large", 414: "Request-URI Too Large"}
    return own.get(status, _phrase(status))


def _heroku(occasion: Occasion) -> Page:
    content = "<p>An error occurred in the application and your page could not be served.</p>"
    page = _page(occasion, "text/html; charset=utf-8", _document("Application Error", content, occasion))
    page.headers.items += [("Server", "Heroku"), ("Cache-Control", "no-cache, no-store")]
    return page


def _api_gateway(occasion: Occasion) -> Page:
    message = "Endpoint request timed out" if occasion.status == 504 else _phrase(occasion.status)
    if occasion.status == 413:
        message = "Request Too Long"
    document: dict[str, object] = {"message": message}
    if occasion.marked:
        document["simulated"] = True
    page = _page(occasion, "application/json", json.dumps(document))
    page.headers.items += [("x-amzn-RequestId", occasion.ray), ("x-amzn-ErrorType", "InternalServerErrorException")]
    return page
