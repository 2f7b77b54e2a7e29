"""The route file: what it says, and that each mistake in it is told with its line and its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app import ROUTES
from gateway.errors import ConfigurationError
from gateway.slow_routes import RESERVED, SlowRoute, load_routes

GOOD = """\
# A comment, so that lines are not routes.
[[route]]
path = "/api/ocr"
upstream = "http://app:8000/api/ocr"
mode = "hold"
timeout = "2h"

[[route]]
path = "/reports/*"
upstream = "https://reports.example.com/v2/*"
mode = "async"
methods = ["POST"]
idempotent = true
"""


def test_the_file_is_read_as_it_is_meant(tmp_path: Path) -> None:
    """Durations have units, everything else has a default."""
    (tmp_path / "routes.toml").write_text(GOOD)

    hold, later = load_routes(tmp_path / "routes.toml")

    assert (hold.mode, hold.timeout, hold.retries, hold.idempotent) == ("hold", 7200, 2, None)
    assert hold.url("/api/ocr?page=1") == "http://app:8000/api/ocr?page=1"
    assert (later.mode, later.methods, later.idempotent) == ("async", ("POST",), True)
    assert later.url("/reports/2026/%2F?x") == "https://reports.example.com/v2/2026/%2F?x"
    assert load_routes(None) == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('mode = "hold"', 'mode = "held"', 5, "mode: Input should be 'hold', 'async' or 'sse'"),
        ('timeout = "2h"', "timeout = 7200", 6, "timeout: give a number and its unit"),
        ('timeout = "2h"', 'timeout = "2 weeks"', 6, "timeout: give a number and its unit"),
        ('timeout = "2h"', 'timeout = "30d"', 6, "timeout: Input should be less than or equal"),
        ('timeout = "2h"', 'time-out = "2h"', 6, "time-out: unknown key; known: path, upstream,"),
        ('path = "/api/ocr"\n', "", 2, "path: this key is missing"),
        ('path = "/api/ocr"', 'path = "api/ocr"', 3, "path: a path looks like"),
        ('path = "/api/ocr"', 'path = "/api/../ocr"', 3, "path: a path looks like"),
        ('path = "/api/ocr"', 'path = "/api/{x}"', 3, "path: a path looks like"),
        ('path = "/api/ocr"', 'path = "/v1/jobs"', 3, "path: /v1 is the gateway's own"),
        ('path = "/api/ocr"', 'path = "/reports/*"', 2, "path and upstream both end in /*"),
        ('"http://app:8000/api/ocr"', '"ftp://app/ocr"', 4, "upstream: 'ftp://app/ocr' is not called"),
        ('"http://app:8000/api/ocr"', '"http://*/api/ocr"', 4, "upstream: name one host"),
        ('methods = ["POST"]', 'methods = ["BREW"]', 12, "methods: Input should be"),
        ('methods = ["POST"]', "key = false", 8, "mode async needs key = true"),
        ('mode = "hold"', "json = false\nkey = false", 2, "json = false needs key = true"),
        ('mode = "hold"', 'mode = "sse"\nmethods = ["HEAD"]', 2, "mode sse takes no HEAD"),
        ('path = "/reports/*"', 'path = "/api/ocr"', 8, "path and upstream"),
        ('mode = "hold"', 'mode = "hold" "sse"', 5, "this is no TOML"),
        ("# A comment", "port = 3 #", 1, "port: only [[route]] stands here"),
        ("[[route]]", "[route]", 0, "write each route under a [[route]]"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_key(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    """Whoever wrote the file finds it at once."""
    file = tmp_path / "routes.toml"
    text = GOOD.partition("\n\n")[0] if new == "[route]" else GOOD
    file.write_text(text.replace(old, new, 1))

    with pytest.raises(ConfigurationError) as error:
        load_routes(file)

    assert message in error.value.detail
    assert str(file) in error.value.detail
    assert f"line {line}" in error.value.detail or not line


def test_two_routes_for_one_path_are_a_mistake(tmp_path: Path) -> None:
    """Unless they serve different methods."""
    file = tmp_path / "routes.toml"
    route = '[[route]]\npath = "/a"\nupstream = "http://app/a"\nmethods = ["{}"]\n'
    file.write_text(route.format("GET") + route.format("POST"))
    assert len(load_routes(file)) == 2
    file.write_text(route.format("GET") + route.format("GET"))
    with pytest.raises(ConfigurationError, match="line 6: path: /a has a route for GET already"):
        load_routes(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Not a stack trace."""
    with pytest.raises(ConfigurationError, match=r"OUTLAST_ROUTES: .*nowhere\.toml can't be read"):
        load_routes(tmp_path / "nowhere.toml")


def test_no_route_can_take_a_path_of_the_gateways_own() -> None:
    """Whatever the gateway serves is reserved."""
    assert {route.path.split("/")[1] for route in ROUTES} <= RESERVED


def test_a_route_leads_to_its_upstream_only() -> None:
    """What comes after the path can't leave it; what it adds to the list is that upstream."""
    route = SlowRoute(path="/a/*", upstream="http://app/b/*")
    assert route.listed == "http://app/b/"
    assert route.url("/a/@evil.example/") == "http://app/b/@evil.example/"
