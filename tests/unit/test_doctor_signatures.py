"""Whose error an answer or a text is: each known format has its verdict, and what resembles it has another."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.doctor.exchange import Ended
from gateway.doctor.finding import Finding, in_cause_order
from gateway.doctor.observation import Observation
from gateway.doctor.signatures import heartbeat_for, ray_and_colo, recognize
from gateway.doctor.texts import judge_text
from gateway.doctor.verdicts import VERDICTS, Cause

EDGE = (("Server", "cloudflare"), ("CF-RAY", "9a1b2c3d4e5f6071-FRA"))


def html(code: int, title: str, host: str = "app.example.com") -> str:
    """An error page with an edge's marks."""
    return (
        f"<!DOCTYPE html><html><head><title>{host} | {code}: {title}</title>"
        f'<link rel="stylesheet" href="/cdn-cgi/styles/main.css"></head><body><div id="cf-wrapper">'
        f'<div id="cf-error-details"><h1>{title}</h1><span>Error code {code}</span></div>'
        "<p>Cloudflare Ray ID: <strong>9a1b2c3d4e5f6071</strong></p></div></body></html>"
    )


def document(code: int, **more: Any) -> str:
    """The same as JSON."""
    fields = {"status": code, "error_code": code, "cloudflare_error": True, "ray_id": "9a1b2c3d4e5f6071"}
    return json.dumps(fields | {"zone": "app.example.com", "retryable": True} | more)


def plain(status: int) -> str:
    """The same in one line."""
    return f"error code: {status}"


def seen(status: int | None, body: str = "", headers: tuple[tuple[str, str], ...] = (), **more: Any) -> Observation:
    """An answer of app.example.com."""
    return Observation(status=status, headers=headers, body=body, **{"host": "app.example.com"} | more)


NGINX = (
    "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center><hr><center>nginx</center></body></html>"
)

ANSWERS: list[tuple[str, Observation]] = [
    # --- 524, its three formats, its two timers, and what only looks like it
    ("edge_read_timeout", seen(524, html(524, "A timeout occurred"), EDGE, elapsed_seconds=125.3)),
    ("edge_read_timeout", seen(524, document(524), EDGE, elapsed_seconds=100.4)),
    ("edge_read_timeout", seen(524, plain(524), EDGE)),
    ("edge_read_timeout", seen(524, "", EDGE)),
    ("edge_read_timeout", seen(524, html(524, "A timeout occurred"), EDGE, elapsed_seconds=600.2)),
    ("edge_read_timeout", seen(524, plain(524), EDGE, elapsed_seconds=30.5)),
    ("edge_write_timeout", seen(524, plain(524), EDGE, elapsed_seconds=30.5, sent_bytes=9_000_000, method="POST")),
    ("edge_read_timeout", seen(524, plain(524), EDGE, elapsed_seconds=125.5, sent_bytes=9_000_000, method="POST")),
    ("relayed_timeout", seen(524, document(524, zone="api.openai.com"), EDGE)),
    ("relayed_timeout", seen(524, html(524, "A timeout occurred", "api.anthropic.com"))),
    ("relayed_timeout", seen(524, json.dumps({"error": {"type": "cf_gateway_timeout", "code": 524}}), EDGE)),
    ("edge_read_timeout", seen(524, document(524, zone="example.com"), EDGE)),
    ("imitated_timeout", seen(524, '{"error":"upstream timeout"}')),
    ("imitated_timeout", seen(524, '{"error":"upstream timeout"}', EDGE)),
    ("imitated_timeout", seen(522, "down", (("Server", "nginx"),))),
    # --- the other 52x and 1xxx
    ("origin_closed", seen(520, html(520, "Web server is returning an unknown error"), EDGE)),
    ("origin_refused", seen(521, html(521, "Web server is down"), EDGE)),
    ("origin_unanswered", seen(522, plain(522), EDGE)),
    ("origin_unroutable", seen(523, document(523), EDGE)),
    ("edge_tls_failed", seen(525, html(525, "SSL handshake failed"), EDGE)),
    ("edge_certificate", seen(526, plain(526), EDGE)),
    ("tunnel_down", seen(530, plain(1033), EDGE)),
    ("tunnel_down", seen(530, "<span>Error</span> <span>1033</span> Cloudflare Tunnel error", EDGE)),
    ("edge_dns", seen(530, document(1016), EDGE)),
    ("edge_rate", seen(429, plain(1015), EDGE)),
    ("edge_blocked", seen(403, plain(1020), EDGE)),
    ("challenge", seen(403, "<title>Just a moment...</title>", (*EDGE, ("cf-mitigated", "challenge")))),
    ("challenge", seen(503, '<script src="/cdn-cgi/challenge-platform/x.js">', EDGE)),
    # --- 502, 503 and 504
    ("bad_gateway", seen(502, html(502, "Bad gateway"), EDGE, elapsed_seconds=60.1)),
    ("bad_gateway", seen(504, html(504, "Gateway time-out"), EDGE, elapsed_seconds=230)),
    ("body_replaced", seen(502, plain(502), EDGE)),
    ("body_replaced", seen(504, plain(504), EDGE)),
    ("held_then_cut", seen(502, "", EDGE, elapsed_seconds=125.4, wants_stream=True)),
    ("nginx_timeout", seen(504, NGINX.format("504 Gateway Time-out"), (("Server", "nginx/1.27"),))),
    ("nginx_timeout", seen(504, NGINX.format("504 Gateway Time-out"), EDGE)),
    ("bad_gateway", seen(502, NGINX.format("502 Bad Gateway"), (("Server", "nginx/1.27"),))),
    ("proxy_timeout", seen(504, "", (("X-Cache", "Error from cloudfront"), ("X-Amz-Cf-Id", "abc")))),
    ("proxy_timeout", seen(504, "<h1>504 Gateway Time-out</h1>", (("Server", "awselb/2.0"),))),
    ("proxy_timeout", seen(503, "Error 503 first byte timeout", (("X-Served-By", "cache-fra1"),))),
    ("gateway_api_timeout", seen(504, '{"message": "Endpoint request timed out"}', (("x-amz-apigw-id", "abc="),))),
    ("heroku_timeout", seen(503, "<title>Application Error</title>", (("Via", "1.1 vegur"),))),
    ("origin_overloaded", seen(503, '{"code":"queue_full"}', EDGE)),
    # --- bodies, clients, cuts
    ("body_over_edge", seen(413, "<center>413 Payload Too Large</center><hr><center>cloudflare</center>", EDGE)),
    ("body_over_proxy", seen(413, NGINX.format("413 Request Entity Too Large"))),
    ("body_over_app", seen(413, '{"code":"too_large"}', EDGE)),
    ("client_left", seen(499)),
    ("cut_in_silence", seen(200, ": ok", ended=Ended.CUT, last_gap_seconds=60, elapsed_seconds=75)),
    ("cut_at_age", seen(200, ": ok", ended=Ended.CUT, last_gap_seconds=2, elapsed_seconds=900)),
    ("broke_off", seen(200, ": ok", ended=Ended.CUT)),
    # --- nothing of the chain's
    ("unauthorized", seen(401, '{"error":"invalid_api_key"}', EDGE)),
    ("unauthorized", seen(403, '{"code":"forbidden"}', EDGE)),
    ("quota", seen(429, '{"error":{"code":"insufficient_quota"}}', EDGE)),
    ("provider_overloaded", seen(529, '{"type":"overloaded_error"}')),
    ("model_unknown", seen(404, '{"error":{"code":"model_not_found"}}')),
    ("out_of_memory", seen(500, "RuntimeError: CUDA out of memory")),
    ("application_error", seen(500, '{"code":"internal"}', EDGE)),
    ("not_found", seen(404, '{"code":"not_found"}', EDGE)),
    # --- no answer
    ("no_name", seen(None, ended=Ended.NO_NAME)),
    ("refused", seen(None, ended=Ended.REFUSED)),
    ("local_runtime_down", seen(None, ended=Ended.REFUSED, host="127.0.0.1")),
    ("unreachable", seen(None, ended=Ended.UNREACHABLE)),
    ("tls", seen(None, ended=Ended.TLS)),
    ("garbled", seen(None, ended=Ended.GARBLED)),
    ("closed_unanswered", seen(None, ended=Ended.CUT)),
]


@pytest.mark.parametrize(("code", "observation"), ANSWERS, ids=[f"{code}-{n}" for n, (code, _) in enumerate(ANSWERS)])
def test_each_answer_has_its_verdict(code: str, observation: Observation) -> None:
    """By its marks first; a timing only tells apart what the same mark stands for."""
    finding = recognize(observation)

    assert finding is not None
    assert finding.code == code
    assert finding.evidence
    for text in finding.verdict[2:5]:
        assert "{" not in finding.text(finding.text(str(text)))


@pytest.mark.parametrize(
    "observation",
    [seen(200, "{}"), seen(202, "{}", EDGE), seen(304), seen(422, '{"code":"invalid_input"}', EDGE), seen(101)],
)
def test_an_answer_that_is_no_failure_has_none(observation: Observation) -> None:
    """Also none for a request that the application refuses with a reason of its own."""
    assert recognize(observation) is None


def test_who_answered_is_always_told() -> None:
    """Ray and colo, from the header, a page or a document."""
    assert ray_and_colo(seen(524, "", EDGE)) == ("9a1b2c3d4e5f6071", "FRA")
    assert ray_and_colo(seen(524, html(524, "A timeout occurred"))) == ("9a1b2c3d4e5f6071", "")
    assert ray_and_colo(seen(524, document(524))) == ("9a1b2c3d4e5f6071", "")
    assert ray_and_colo(seen(200)) == ("", "")
    finding = recognize(seen(524, "", EDGE, elapsed_seconds=125.34))
    assert finding is not None
    assert finding.evidence[0] == "status 524, after 125.3 s, ray 9a1b2c3d4e5f6071 at FRA"


@pytest.mark.parametrize(("silence", "heartbeat"), [(125, "15"), (60, "15"), (30, "10"), (10, "3"), (1, "1")])
def test_a_heartbeat_is_a_third_of_the_limit(silence: float, heartbeat: str) -> None:
    """And never slower than 15 s."""
    assert heartbeat_for(silence) == heartbeat


# --- texts ------------------------------------------------------------------------------------------------------------

HEAD = "HTTP/2 524 \nserver: cloudflare\ncf-ray: 9a1b2c3d4e5f6071-FRA\ncontent-type: text/plain\n\n"
TEXTS: list[tuple[str | None, str]] = [
    ("edge_read_timeout", HEAD + "error code: 524"),
    ("edge_read_timeout", "< HTTP/2 524 \n< server: cloudflare\n< cf-ray: 9a1b2c3d4e5f6071-FRA\n< \nerror code: 524"),
    ("edge_read_timeout", "HTTP/1.1 200 OK\r\nx: y\r\n\r\n" + HEAD + html(524, "A timeout occurred")),
    ("edge_read_timeout", html(524, "A timeout occurred")),
    ("edge_read_timeout", document(524)),
    ("edge_read_timeout", "openai.APIStatusError: " + document(524)),
    ("edge_read_timeout", "requests.exceptions.HTTPError: 524 Server Error: <none>\nerror code: 524"),
    ("relayed_timeout", html(524, "A timeout occurred", "api.openai.com")),
    ("relayed_timeout", 'Error code: 524 - {"error": {"type": "cf_gateway_timeout"}}'),
    ("edge_read_timeout", "ERR Incoming request ended abruptly: context canceled connIndex=2"),
    (
        "nginx_timeout",
        "2026/11/25 10:00:00 [error] 7#7: *1 upstream timed out (110: Connection timed out) while reading",
    ),
    ("heroku_timeout", 'at=error code=H12 desc="Request timeout" method=POST path="/ocr" service=30000ms status=503'),
    ("gateway_api_timeout", '{"message": "Endpoint request timed out"}'),
    ("body_over_proxy", "client intended to send too large body: 9437184 bytes"),
    ("out_of_memory", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ("out_of_memory", "container ocr-worker exited with code 137"),
    ("quota", "Error code: 429 - {'error': {'code': 'insufficient_quota'}}"),
    ("provider_overloaded", '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'),
    ("model_unknown", "The model `gpt-9` does not exist or you do not have access to it."),
    ("unauthorized", "AuthenticationError: Error code: 401 - Incorrect API key provided"),
    ("client_left", "httpx.ReadTimeout: The read operation timed out"),
    (
        "client_left",
        "TaskCanceledException: The request was canceled due to the configured HttpClient.Timeout of 100 s",
    ),
    ("client_left", "TypeError: fetch failed cause: HeadersTimeoutError UND_ERR_HEADERS_TIMEOUT"),
    ("no_name", "Error: getaddrinfo ENOTFOUND app.example.com"),
    ("tls", "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired"),
    ("local_runtime_down", "connect ECONNREFUSED 127.0.0.1:11434"),
    ("refused", "curl: (7) Failed to connect to app.example.com port 443: Connection refused"),
    ("closed_unanswered", "http.client.RemoteDisconnected: Remote end closed connection without response"),
    ("broke_off", "httpx.RemoteProtocolError: peer closed connection (incomplete chunked read)"),
    ("broke_off", "WebSocket closed: 1006 abnormal closure"),
    ("broke_off", "POST https://app.example.com/upload net::ERR_HTTP2_PROTOCOL_ERROR"),
    ("broke_off", "curl: (92) HTTP/2 stream 1 was not closed cleanly: INTERNAL_ERROR (err 2)"),
    ("closed_unanswered", "POST https://app.example.com/upload net::ERR_CONNECTION_RESET"),
    ("upgrade_stripped", "WebSocket error: Unexpected server response: 200"),
    ("tunnel_down", "error code: 1033"),
    ("bad_gateway", "502 Bad Gateway"),
    (None, "all is well"),
    (None, "{}"),
]


@pytest.mark.parametrize(("code", "text"), TEXTS, ids=[f"{code}-{n}" for n, (code, _) in enumerate(TEXTS)])
def test_each_text_has_its_verdict(code: str | None, text: str) -> None:
    """A page, an answer with its head, a log line, an exception."""
    finding, _ = judge_text(text)

    assert (finding.code if finding else None) == code


def test_a_text_is_judged_by_the_host_that_was_asked() -> None:
    """The same page is one's own edge's, or somebody else's."""
    text = html(524, "A timeout occurred", "upstream.example.org")

    own, _ = judge_text(text, "upstream.example.org")
    foreign, _ = judge_text(text, "app.example.com")

    assert own is not None
    assert own.code == "edge_read_timeout"
    assert foreign is not None
    assert foreign.code == "relayed_timeout"
    assert foreign.values["owner"] == "upstream.example.org"


@pytest.mark.parametrize(
    "text", ["{" * 5000, "<" * 300_000, "\x00" * 1000, "HTTP/1.1 524", '{"status": 1e999}', "é" * 99]
)
def test_a_strange_text_does_no_harm(text: str) -> None:
    """Whatever was pasted: read in bounded time, without an exception."""
    judge_text(text)


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_first_cause_is_the_one_to_act_on() -> None:
    """In the order in which causes hide one another, notes last."""
    codes = ["interim_dropped", "errors_rewritten", "headers_held", "all_held", "upgrade_stripped", "no_name"]

    ordered = [finding.code for finding in in_cause_order([Finding(code) for code in codes])]

    assert ordered[:4] == ["no_name", "upgrade_stripped", "all_held", "errors_rewritten"]
    assert set(ordered[4:]) == {"interim_dropped", "headers_held"}
    assert sorted(Cause) == list(Cause)


def test_every_verdict_says_what_to_change_and_why() -> None:
    """Whole sentences; one change each."""
    for code, verdict in VERDICTS.items():
        assert verdict.change.endswith((".", "}")), code
        assert verdict.why.endswith((".", "}")), code
        assert not verdict.title.endswith("."), code


def test_an_observation_is_judged_as_it_is() -> None:
    """A field that is not known is no field that is zero: an unknown time is no short one."""
    known = seen(502, "", EDGE, elapsed_seconds=125.0, wants_stream=True)

    finding = recognize(replace(known, elapsed_seconds=None))

    assert finding is not None
    assert finding.code == "bad_gateway"
