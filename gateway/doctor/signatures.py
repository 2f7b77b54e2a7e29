"""Who made this answer: one failure in, one finding out. Pure functions, the most certain marks first.

A timing alone never decides; it only tells apart
what the same mark stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

from gateway.doctor.exchange import Ended
from gateway.doctor.finding import Finding
from gateway.doctor.hops import HOPS, hops_of_answer
from gateway.doctor.observation import Observation

_CODE_LINE: Final = re.compile(r"error code:? *(\d{3,4})\b", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title>([^<|]{0,200}?)\|? *(\d{3})?: ?[^<]*</title>", re.IGNORECASE)
_PAGE_MARKS: Final = ("cf-error-details", "cf-wrapper", "utm_source=errorcode_", "cloudflare ray id", "cdn-cgi/styles")
# Model providers whose errors are passed on by applications of others.
PROVIDERS: Final = {
    "api.openai.com": "OpenAI",
    "openai.com": "OpenAI",
    "api.anthropic.com": "Anthropic",
    "anthropic.com": "Anthropic",
    "api.replicate.com": "Replicate",
    "openrouter.ai": "OpenRouter",
    "api.mistral.ai": "Mistral",
    "api.groq.com": "Groq",
    "api.together.xyz": "Together",
    "generativelanguage.googleapis.com": "Google",
    "api.deepseek.com": "DeepSeek",
    "api.x.ai": "xAI",
    "api.cohere.com": "Cohere",
    "runpod.net": "RunPod",
    "queue.fal.run": "fal",
}
_ORIGIN_CODES: Final = {
    520: "origin_closed",
    521: "origin_refused",
    522: "origin_unanswered",
    523: "origin_unroutable",
    525: "edge_tls_failed",
    526: "edge_certificate",
}
_EDGE_CODES: Final = {1033: "tunnel_down", 1016: "edge_dns", 1001: "edge_dns", 1015: "edge_rate"}
# Cloudflare's 1xxx codes for "a rule of the zone says no".
_BLOCKED: Final = frozenset({1005, 1006, 1007, 1008, 1009, 1010, 1012, 1020})
# The read time-out of Cloudflare: 100 s until October 2025, then 120 s, 125 s since July 2026; the client's clock has
# the way there and back in it.
_READ_LIMITS: Final = ((95, 105), (118, 136))
# Below this a body fits into the buffers on the way and can't stall.
_UPLOAD_BYTES: Final = 64 * 1024
_SILENCE_SECONDS: Final = 8.0


def recognize(seen: Observation) -> Finding | None:
    """The finding that an observation stands for; None for an answer that is no failure, or that nothing tells of."""
    for look in _LOOKS:
        finding = look(seen)
        if finding is not None:
            return Finding(finding.code, (*_facts(seen), *finding.evidence), _values(seen) | dict(finding.values))
    return None


def heartbeat_for(silence_seconds: float) -> str:
    """A heartbeat that no idle limit of this length ever meets: a third of it, at most 15 s."""
    return f"{max(1, min(15, int(silence_seconds / 3)))}"


def ray_and_colo(seen: Observation) -> tuple[str, str]:
    """Cloudflare's id of the request, and the data centre that took it; empty where they are not known."""
    ray = seen.get("cf-ray") or str(_document(seen).get("ray_id") or "")
    if not ray and (match := re.search(r"ray id:?[^0-9a-f]{0,40}?([0-9a-f]{16})", seen.body, re.IGNORECASE)):
        ray = match[1]
    id_, _, colo = ray.partition("-")
    return id_, colo.upper()


def made_by_cloudflare(seen: Observation) -> bool:
    """Whether the answer's content is Cloudflare's own, not only carried by it."""
    document = _document(seen)
    if document:
        return document.get("cloudflare_error") is True
    text = seen.body.lower()
    return bool(seen.get("cf-error-type") or _plain_code(seen) or any(mark in text for mark in _PAGE_MARKS))


# --- one look each ----------------------------------------------------------------------------------------------------


def _connection(seen: Observation) -> Finding | None:
    if seen.status is not None:
        return None
    if seen.ended is Ended.REFUSED and seen.host in {"localhost", "127.0.0.1", "::1"}:
        return Finding("local_runtime_down", values={"host": f"{seen.host}:{seen.port}"} if seen.port else {})
    codes = {
        Ended.NO_NAME: "no_name",
        Ended.REFUSED: "refused",
        Ended.UNREACHABLE: "unreachable",
        Ended.TLS: "tls",
        Ended.GARBLED: "garbled",
        Ended.CUT: "closed_unanswered",
    }
    return Finding(codes[seen.ended]) if seen.ended in codes else None


def _broken_off(seen: Observation) -> Finding | None:
    if seen.status is None or seen.status >= 400 or seen.ended is not Ended.CUT:
        return None
    gap, age = seen.last_gap_seconds, seen.elapsed_seconds
    if gap is not None and (gap >= _SILENCE_SECONDS or (age and gap >= 0.5 * age and gap >= 1)):
        return Finding("cut_in_silence", values={"seconds": f"{gap:.0f}", "heartbeat": heartbeat_for(gap)})
    return Finding("cut_at_age", values={"seconds": f"{age:.0f}"}) if age else Finding("broke_off")


def _challenge(seen: Observation) -> Finding | None:
    if seen.get("cf-mitigated") == "challenge" or (
        seen.status in {403, 429, 503} and re.search(r"challenge-platform|<title>just a moment", seen.body, re.I)
    ):
        return Finding("challenge")
    return None


def _edge_code(seen: Observation) -> Finding | None:
    code = _edge_error_code(seen)
    if code in _EDGE_CODES:
        return Finding(_EDGE_CODES[code], (f"Cloudflare's error {code}",))
    if code in _BLOCKED:
        return Finding("edge_blocked", (f"Cloudflare's error {code}",))
    if seen.status == 530:
        return Finding("tunnel_down" if "tunnel" in seen.body.lower() else "edge_dns")
    return None


def _timeout_524(seen: Observation) -> Finding | None:
    if seen.status != 524:
        return None
    if owner := _relayed_from(seen):
        return Finding("relayed_timeout", (f"the error is of {owner}",), {"owner": owner})
    if not made_by_cloudflare(seen):
        # A bare status with a ray of the edge's: a proxied origin may answer 524 too, but hardly ever with no body.
        if seen.by_cloudflare and not seen.body.strip():
            return Finding("edge_read_timeout", ("no body, but a ray id",))
        return Finding("imitated_timeout", ("no mark of Cloudflare's on the answer",))
    elapsed = seen.elapsed_seconds
    if elapsed is not None and 25 <= elapsed <= 45 and seen.sent_bytes >= _UPLOAD_BYTES:
        return Finding("edge_write_timeout", (f"after {elapsed:.0f} s, while {seen.sent_bytes} bytes were sent",))
    if elapsed is not None and not any(low <= elapsed <= high for low, high in _READ_LIMITS):
        return Finding("edge_read_timeout", (f"{elapsed:.0f} s is no default: a read time-out set by the zone",))
    return Finding("edge_read_timeout", ("Cloudflare's own marks",))


def _origin_52x(seen: Observation) -> Finding | None:
    if seen.status not in _ORIGIN_CODES:
        return None
    if seen.headers and not seen.by_cloudflare and not made_by_cloudflare(seen):
        return Finding("imitated_timeout", (f"{seen.status} without a mark of Cloudflare's",))
    return Finding(_ORIGIN_CODES[seen.status])


def _bad_gateway(seen: Observation) -> Finding | None:
    if seen.status not in {502, 504}:
        return None
    elapsed = seen.elapsed_seconds or 0
    if seen.status == 502 and seen.by_cloudflare and seen.wants_stream and 95 <= elapsed <= 136:
        return Finding("held_then_cut", (f"502 after {elapsed:.0f} s on a stream",))
    if seen.by_cloudflare and (_plain_code(seen) in {502, 504}) and not seen.get("cf-error-type"):
        return Finding("body_replaced", (f"the whole body is `error code: {seen.status}`",))
    page = seen.body.lower()
    # A hop inside has written the page, whoever carried it: its name on it is the best mark there is.
    if re.search(r"<center>(nginx|openresty|tengine)", page) or (
        not seen.by_cloudflare and "nginx" in hops_of_answer(seen.headers)
    ):
        return Finding("nginx_timeout") if seen.status == 504 else Finding("bad_gateway", values={"hop": "nginx"})
    hop = next((name for name in hops_of_answer(seen.headers) if name != "cloudflare"), "")
    if "endpoint request timed out" in page or (hop == "api-gateway" and seen.status == 504):
        return Finding("gateway_api_timeout")
    if hop == "heroku":
        return Finding("heroku_timeout")
    if hop and seen.status == 504:
        return Finding("proxy_timeout", values={"hop": HOPS[hop].title, "timeout": HOPS[hop].timeout})
    usual = next((owner for low, high, owner in _USUAL if low <= elapsed <= high), "") if elapsed else ""
    values = {"seconds": f"{elapsed:.0f}" if elapsed else "some"} | ({"hop": usual} if usual else {})
    return Finding("bad_gateway", (f"{usual}'s usual limit",) if usual else (), values)


# The default limits of hops that hide behind a branded page.
_USUAL: Final = (
    (28, 33, "Heroku, CloudFront or a Google load balancer"),
    (57, 64, "nginx or AWS ALB"),
    (225, 236, "Azure"),
    (297, 306, "Railway or Vercel"),
)


def _unavailable(seen: Observation) -> Finding | None:
    if seen.status != 503:
        return None
    page = seen.body.lower()
    hops = hops_of_answer(seen.headers)
    if "heroku" in hops or re.search(r"\bh1[25]\b|heroku.*application error", page):
        return Finding("heroku_timeout")
    if "first byte timeout" in page or "between bytes timeout" in page:
        hop = HOPS["fastly"]
        return Finding("proxy_timeout", ("`first byte timeout`",), {"hop": hop.title, "timeout": hop.timeout})
    if "service unavailable" in page and "endpoint request timed out" in page:
        return Finding("gateway_api_timeout")
    return Finding("origin_overloaded")


def _too_large(seen: Observation) -> Finding | None:
    if seen.status != 413:
        return None
    if "<center>cloudflare" in seen.body.lower():
        return Finding("body_over_edge", ("the page's centre line says cloudflare",))
    if re.search(r"<center>(nginx|openresty)", seen.body, re.I):
        return Finding("body_over_proxy")
    return Finding("body_over_app")


def _refusals(seen: Observation) -> Finding | None:
    """What the application or a provider says by itself; an edge passes it on unchanged."""
    text, status = seen.body.lower(), seen.status
    if status is None or status < 400:
        return None
    owner = {"owner": _provider_in(seen)} if _provider_in(seen) else {}
    if re.search(r"model_not_found|model .{0,80}(does not exist|not found)|unknown model", text):
        return Finding("model_unknown", values=owner)
    if status == 529 or re.search(r"overloaded_error|engine.{0,30}overloaded|model is overloaded", text):
        return Finding("provider_overloaded", values=owner)
    if status in {402, 429} or re.search(r"insufficient_quota|quota exceeded|rate_limit_exceeded", text):
        if status == 429 and made_by_cloudflare(seen):
            return Finding("edge_rate")
        return Finding("quota", values=owner)
    if status in {401, 407} or (status == 403 and not made_by_cloudflare(seen)):
        return Finding("unauthorized")
    if status == 403:
        return Finding("edge_blocked")
    if status == 499:
        return Finding("client_left")
    if status == 404:
        return Finding("not_found")
    if re.search(r"out of memory|oomkilled|cannot allocate memory", text):
        return Finding("out_of_memory")
    return Finding("application_error") if status == 500 else None


_LOOKS: Final[tuple[Callable[[Observation], Finding | None], ...]] = (
    _connection,
    _broken_off,
    _challenge,
    _edge_code,
    _timeout_524,
    _origin_52x,
    _bad_gateway,
    _unavailable,
    _too_large,
    _refusals,
)


# --- reading an answer ------------------------------------------------------------------------------------------------


def _document(seen: Observation) -> dict[str, Any]:
    """The body as a JSON object; empty where it is none."""
    try:
        document = json.loads(seen.body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _plain_code(seen: Observation) -> int | None:
    """The number of a body that is nothing but `error code: N`; a pasted text may have more lines around that one."""
    lines = [seen.body.strip()] if seen.headers else [line.strip() for line in seen.body.splitlines()]
    match = next((match for line in lines if (match := _CODE_LINE.fullmatch(line))), None)
    return int(match[1]) if match else None


def _edge_error_code(seen: Observation) -> int | None:
    """A Cloudflare error of four digits, from any of its three formats."""
    document = _document(seen)
    code = document.get("error_code")
    if document.get("cloudflare_error") is True and isinstance(code, int) and code >= 1000:
        return code
    match = re.search(r"error(?: code)?:?\s*(?:</span>\s*<span>)?\s*(1\d{3})\b", seen.body, re.IGNORECASE)
    return int(match[1]) if match and not document else None


def _relayed_from(seen: Observation) -> str:
    """Whose edge an error is of, if it is not that of the host that was asked; else empty."""
    if "cf_gateway_timeout" in seen.body:
        return _provider_in(seen) or "the provider"
    named = str(_document(seen).get("zone") or "")
    if not named and (match := _TITLE.search(seen.body)):
        named = match[1].strip()
    named = re.sub(r":\d+$", "", named.lower())
    if not named or " " in named:
        return ""
    if seen.host and not _same_zone(named, seen.host.lower()):
        return PROVIDERS.get(named, named)
    return PROVIDERS.get(named, "") if not seen.host else ""


def _same_zone(zone: str, host: str) -> bool:
    return zone == host or host.endswith(f".{zone}") or zone.endswith(f".{host}")


def _provider_in(seen: Observation) -> str:
    text = f"{seen.host}\n{seen.body}".lower()
    return next((name for domain, name in PROVIDERS.items() if domain in text), "")


def _facts(seen: Observation) -> tuple[str, ...]:
    """What is always told: status, time, ray and colo."""
    ray, colo = ray_and_colo(seen)
    facts = [f"status {seen.status}" if seen.status is not None else f"no answer ({seen.ended})"]
    if seen.elapsed_seconds is not None:
        facts.append(f"after {seen.elapsed_seconds:.1f} s")
    if ray:
        facts.append(f"ray {ray}" + (f" at {colo}" if colo else ""))
    return (", ".join(facts),)


def _values(seen: Observation) -> dict[str, str]:
    values = {"host": seen.host} if seen.host else {}
    hops = hops_of_answer(seen.headers)
    if hops:
        values["hop"] = HOPS[hops[0]].title
    if seen.status is not None:
        values["status"] = str(seen.status)
    return values
