"""The raw text of an error (a page, an answer with its headers, a log line, an exception), judged. No I/O.

A text is first read as an answer: a status, headers, a body. What has none of these is looked up in a table of phrases
by which programs say what happened to them.
"""

from __future__ import annotations

import json
import re
from typing import Final
from urllib.parse import urlsplit

from gateway.doctor.exchange import Ended
from gateway.doctor.finding import Finding
from gateway.doctor.observation import MOST_BODY_CHARACTERS, Observation
from gateway.doctor.signatures import recognize

_HEAD: Final = re.compile(
    r"^(?:< ?)?HTTP/\d(?:\.\d)? (\d{3})[^\r\n]*\r?\n((?:(?:< ?)?[\w-]+:[^\r\n]*\r?\n)*)", re.MULTILINE
)
_STATUSES: Final = (
    r"error code:? *(\d{3})\b",
    r"\|\s*(\d{3}):",
    r"\b(?:status(?:[_ ]?code)?|http status|http/\d(?:\.\d)?|http(?: error)?|api error|response code)\W{0,4}(\d{3})\b",
    r"\b(\d{3})\s+(?:server error|client error|status code|bad gateway|gateway time-?out|service unavailable"
    r"|request entity too large|payload too large|too many requests|unauthorized|forbidden|internal server error"
    r"|a timeout occurred|web server is down|connection timed out|origin is unreachable|ssl handshake failed"
    r"|invalid ssl certificate|origin dns error|<none>)",
    r"\berror\W{1,3}(\d{3})\b",
    r"\b(52[0-7]|530)\b",
)
_ELAPSED: Final = re.compile(
    r"(?:after|elapsed|took|duration|time)\D{0,12}?(\d{1,4}(?:\.\d{1,3})?|\d{4,7})\s?(ms|s\b|sec|seconds|milliseconds)",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"https?://[^\s'\"<>)\]}]+")
_SSE: Final = re.compile(r"event-stream|\bsse\b|/events\b|stream(?:ing)?\b", re.IGNORECASE)

# What programs say, and what it stands for; the more particular first.
_PHRASES: Final[tuple[tuple[str, str], ...]] = (
    (r"cf_gateway_timeout", "relayed_timeout"),
    (r"incoming request ended abruptly: context canceled", "edge_read_timeout"),
    (r"upstream timed out \(110", "nginx_timeout"),
    (r"\bcode=H1[25]\b|\bH1[25]\b.{0,40}(?:request timeout|idle connection)", "heroku_timeout"),
    (r"endpoint request timed out", "gateway_api_timeout"),
    (r"client intended to send too large body", "body_over_proxy"),
    (r"cuda out of memory|outofmemoryerror|oomkilled|out of memory: killed|cannot allocate memory", "out_of_memory"),
    (r"exit(?:ed)?(?: with)?(?: code)? 137|signal 9 \(sigkill\)", "out_of_memory"),
    (r"insufficient_quota|exceeded your current quota|billing_hard_limit|credit balance is too low", "quota"),
    (r"rate_limit_exceeded|rate limit reached|too many requests", "quota"),
    (r"overloaded_error|engine is currently overloaded|model is overloaded", "provider_overloaded"),
    (r"model_not_found|the model [`'\"].{1,80}does not exist|unknown model", "model_unknown"),
    (r"invalid_api_key|incorrect api key|authentication_error|invalid x-api-key", "unauthorized"),
    (r"upstream prematurely closed connection", "origin_closed"),
    (r"unable to reach the origin service|no such host.{0,60}cloudflared", "refused"),
    (r"websocket.{0,80}(?:unexpected (?:server )?response|handshake).{0,20}(?:200|400|404|426)", "upgrade_stripped"),
    (r"\b1006\b.{0,60}(?:abnormal|clos)|clos.{0,60}\b1006\b|no close frame received", "broke_off"),
    (r"httpclient\.timeout of|und_err_(?:headers|body)_timeout|read timed out|readtimeout|curl: \(28\)"
     r"|operation timed out|etimedout.{0,20}read|client ?disconnected|timeout of \d+ ?ms exceeded"
     r"|apitimeouterror", "client_left"),
    (r"enotfound|getaddrinfo|name or service not known|could not resolve host|nodename nor servname"
     r"|name_not_resolved", "no_name"),
    (r"certificate_verify_failed|unable_to_verify_leaf|self[- ]signed certificate|ssl certificate problem"
     r"|cert_has_expired", "tls"),
    (r"econnrefused|connection refused|err_connection_refused|curl: \(7\)", "refused"),
    (r"incomplete chunked read|incompleteread|peer closed connection without sending complete|chunkedencodingerror"
     r"|clientpayloaderror|transferencodingerror|err_incomplete_chunked|curl: \(18\)|err_http2_protocol_error"
     r"|stream .{0,20}was not closed cleanly|terminated.{0,30}other side closed", "broke_off"),
    (r"socket hang up|econnreset|err_connection_(?:reset|closed)|err_empty_response"
     r"|connection reset by peer|remotedisconnected|empty reply from server|curl: \(52\)"
     r"|server disconnected", "closed_unanswered"),
)  # fmt: skip
_LOCAL: Final = re.compile(r"(?:localhost|127\.0\.0\.1|\[?::1\]?)(?::\d+)?")


def judge_text(text: str, host: str = "") -> tuple[Finding | None, Observation]:
    """The finding that a text stands for, None if it tells nothing, and what was read from it.

    `host` is the host that was asked, where the caller knows it: an error that names another one is somebody else's.
    """
    seen = read_text(text, host)
    phrase = _by_phrase(text, seen)
    finding = recognize(seen) if seen.status is not None else None
    # An answer's own marks tell more than a phrase in it, unless they tell only that something failed.
    if finding is None or (phrase is not None and finding.code in _VAGUE):
        return phrase or finding, seen
    return finding, seen


_VAGUE: Final = frozenset({"application_error", "imitated_timeout", "bad_gateway", "origin_overloaded", "not_found"})


def read_text(text: str, host: str = "") -> Observation:
    """An observation from a text: its status, headers and body, as far as they are in it."""
    text = text[: 4 * MOST_BODY_CHARACTERS]
    heads = list(_HEAD.finditer(text))
    headers: tuple[tuple[str, str], ...] = ()
    body, status = text, None
    if heads:
        last = heads[-1]
        # `curl -v` puts "< " before the lines of a head, and its empty last line before the body.
        status, body = int(last[1]), re.sub(r"\A(?:<? ?\r?\n)+", "", text[last.end() :])
        lines = [line.removeprefix("< ").partition(":") for line in last[2].splitlines() if ":" in line]
        headers = tuple((name.strip(), value.strip()) for name, _, value in lines)
    document = _object_in(body)
    if status is None:
        status = _status_of(body, document)
    if status is None and re.search(r"\berror(?: code)?:? *1\d{3}\b", body, re.IGNORECASE):
        status = 530  # What carries most of Cloudflare's errors of four digits; the digits decide.
    elapsed = _ELAPSED.search(text)
    seconds = float(elapsed[1]) / (1000 if elapsed[2].lower().startswith("m") else 1) if elapsed else None
    return Observation(
        status=status,
        headers=headers,
        body=(document or body)[:MOST_BODY_CHARACTERS],
        ended=Ended.WHOLE if status is not None else Ended.CUT,
        host=host,
        elapsed_seconds=seconds,
        wants_stream=_SSE.search(text) is not None,
    )


def url_in(text: str) -> str:
    """The first address in a text that is not a vendor's documentation; empty where there is none."""
    urls: list[str] = _URL.findall(text)
    for url in urls:
        if not re.search(r"cloudflare\.com|w3\.org|schema|docs\.|developer", url):
            return url.rstrip(".,;:")
    return ""


def _status_of(body: str, document: str) -> int | None:
    if document:
        fields = json.loads(document)
        inner = fields.get("error") if isinstance(fields.get("error"), dict) else {}
        for name in ("status", "error_code", "status_code", "code"):
            value = fields.get(name, inner.get(name))
            if isinstance(value, int) and 400 <= value <= 599:
                return value
    for pattern in _STATUSES:
        match = re.search(pattern, body, re.IGNORECASE)
        if match and 400 <= int(match[1]) <= 599:
            return int(match[1])
    return None


def _object_in(text: str) -> str:
    """The first JSON object in a text, as text; empty where there is none."""
    start = text.find("{")
    while start != -1 and start < MOST_BODY_CHARACTERS:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        found: str = text[start:end]
        return found if isinstance(value, dict) and value else ""
    return ""


def _by_phrase(text: str, seen: Observation) -> Finding | None:
    for pattern, code in _PHRASES:
        match = re.search(pattern, text, re.IGNORECASE | re.DOTALL)
        if match is None:
            continue
        evidence = (f"the text says: {' '.join(match[0].split())[:100]}",)
        if code == "refused" and (local := _LOCAL.search(text)):
            return Finding("local_runtime_down", evidence, {"host": local[0]})
        host = seen.host
        if not host and code in {"refused", "no_name", "tls", "closed_unanswered"}:
            host = urlsplit(url_in(text)).netloc
        return Finding(code, evidence, {"host": host} if host else {})
    return None
