"""The hops' own error pages: the formats and markers by which clients and doctors know them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.edge.pages import Occasion, make_page

OCCASION = Occasion(
    status=524,
    code=524,
    cause="read_timeout",
    host='app.test"<b>',
    accept="*/*",
    ray="0123456789abcdef",
    client="192.0.2.1",
    now=datetime(2026, 11, 25, tzinfo=UTC),
    silent_seconds=125,
    marked=True,
)


def page(brand: str = "cloudflare", **changes: object) -> tuple[dict[str, str], str]:
    """The headers and the text of a page."""
    made = make_page(brand, replace(OCCASION, **changes))  # type: ignore[arg-type]
    headers = {name.lower(): value for name, value in made.headers.items}
    assert int(headers["content-length"]) == len(made.body)
    return headers, made.body.decode()


@pytest.mark.parametrize(
    ("accept", "type_"),
    [
        ("", "text/plain; charset=UTF-8"),
        ("*/*", "text/plain; charset=UTF-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=UTF-8"),
        ("application/json", "application/json; charset=utf-8"),
        ("application/problem+json, application/json", "application/problem+json; charset=utf-8"),
        ("text/html;q=0.5, application/json", "application/json; charset=utf-8"),
        ("application/json;q=x, text/html", "text/html; charset=UTF-8"),
    ],
)
def test_the_form_is_what_the_client_accepts(accept: str, type_: str) -> None:
    """Text for those that say nothing."""
    assert page(accept=accept)[0]["content-type"] == type_


def test_the_plain_form_is_the_line_that_clients_look_for() -> None:
    """Sixteen bytes."""
    headers, text = page()

    assert text == "error code: 524"
    assert headers["cf-error-type"] == "524"
    assert headers["cache-control"].startswith("private, max-age=0, no-store")


def test_the_json_form_has_the_known_members() -> None:
    """It invites clients to send again what is still running."""
    headers, text = page(accept="application/json")
    document = json.loads(text)

    assert document["status"] == document["error_code"] == 524
    assert document["title"] == "Error 524: A timeout occurred"
    assert document["error_name"] == "origin_response_timeout"
    assert document["error_category"] == "origin"
    assert document["cloudflare_error"] is document["retryable"] is document["owner_action_required"] is True
    assert document["retry_after"] == 120
    assert document["instance"] == document["ray_id"] == "0123456789abcdef"
    assert document["zone"] == OCCASION.host
    assert "125-second Proxy Read Timeout window" in document["detail"]
    assert document["timestamp"] == "2026-11-25T00:00:00Z"
    assert {"type", "what_you_should_do", "footer"} <= document.keys()
    assert document["simulated"] is True
    assert headers["retry-after"] == "120"


def test_the_html_form_has_the_markers_and_no_way_in() -> None:
    """The host's name is the client's own text."""
    _, text = page(accept="text/html")

    assert "<title>app.test&quot;&lt;b&gt; | 524: A timeout occurred</title>" in text
    assert 'id="cf-wrapper"' in text
    assert 'id="cf-error-details"' in text
    assert "Error code 524" in text
    assert "/cdn-cgi/styles/main.css" in text
    assert "5xx-error-landing?utm_source=errorcode_524&amp;utm_campaign=app.test%22%3Cb%3E" in text
    assert "Cloudflare Ray ID: <strong>0123456789abcdef</strong>" in text
    assert "<b>" not in text
    assert "Simulated by" in text


@pytest.mark.parametrize("accept", ["", "text/html", "application/json"])
@pytest.mark.parametrize("brand", ["none", "cloudflare", "nginx", "alb", "heroku", "api-gateway"])
def test_without_marks_no_page_says_that_it_is_simulated(brand: str, accept: str) -> None:
    """With them nearly all do: a line of 16 bytes has no room."""
    assert not re.search("simul|outlast", page(brand, accept=accept, marked=False)[1], re.IGNORECASE)


@pytest.mark.parametrize(
    ("brand", "status", "marker"),
    [
        ("nginx", 504, "<center><h1>504 Gateway Time-out</h1></center>"),
        ("nginx", 413, "<title>413 Request Entity Too Large</title>"),
        ("alb", 502, "<center><h1>502 Bad Gateway</h1></center>"),
        ("heroku", 503, "<title>Application Error</title>"),
        ("api-gateway", 504, '"message": "Endpoint request timed out"'),
        ("cloudflare", 413, "<hr><center>cloudflare</center>"),
    ],
)
def test_each_hop_has_its_own_page(brand: str, status: int, marker: str) -> None:
    """By which it is told from the others."""
    assert marker in page(brand, status=status, code=status)[1]


@pytest.mark.parametrize(("brand", "server"), [("nginx", "nginx"), ("alb", "awselb/2.0"), ("heroku", "Heroku")])
def test_each_hop_names_its_server(brand: str, server: str) -> None:
    """In the header."""
    assert page(brand, status=503, code=503)[0]["server"] == server
