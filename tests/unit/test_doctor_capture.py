"""What the doctor is given: curl commands, HAR files, texts; told apart, read, and without their secrets."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.doctor.capture import capture, secrets_of
from gateway.doctor.curl import parse_curl
from gateway.doctor.redact import HIDDEN, redact, redact_url
from gateway.errors import InvalidInput


def never() -> str:
    """Standard input that must not be read."""
    raise AssertionError("stdin was read")


# --- curl -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "method", "url", "body"),
    [
        ("curl https://a.example/x", "GET", "https://a.example/x", b""),
        ("$ curl a.example", "GET", "http://a.example", b""),
        ("curl -d a=1 -d b=2 https://a.example", "POST", "https://a.example", b"a=1&b=2"),
        ("curl -XPUT --data-raw '@x' https://a.example", "PUT", "https://a.example", b"@x"),
        ("curl -G -d q=1 'https://a.example/?p=0'", "GET", "https://a.example/?p=0&q=1", b""),
        ("curl --json '{\"a\": 1}' https://a.example", "POST", "https://a.example", b'{"a": 1}'),
        ("curl -sSN -o /dev/null -m 300 --url https://a.example/x", "GET", "https://a.example/x", b""),
        ("curl -I https://a.example", "HEAD", "https://a.example", b""),
        ("curl 'https://a.example' \\\n  -H 'Accept: text/html' \\\n  --compressed", "GET", "https://a.example", b""),
        ("curl https://a.example --data $'{\"a\":1}'", "POST", "https://a.example", b'{"a":1}'),
        ("curl --request=DELETE https://a.example", "DELETE", "https://a.example", b""),
    ],
)
def test_a_curl_command_is_a_request(command: str, method: str, url: str, body: bytes) -> None:
    """As a person pastes it, or a browser copies it."""
    request = parse_curl(command)

    assert (request.method, request.url, request.body) == (method, url, body)


def test_a_curl_commands_headers_are_its_own() -> None:
    """Those that a connection decides are left out."""
    request = parse_curl("curl -u me:hunter22 -b 's=1' -A me/1 -H 'Accept: a' -H 'Host: x' -k -F f=@scan.pdf a.example")

    basic = base64.b64encode(b"me:hunter22").decode()
    assert request.headers == {"Authorization": f"Basic {basic}", "Cookie": "s=1", "User-Agent": "me/1", "Accept": "a"}
    assert request.insecure
    assert request.files == ["f=@scan.pdf"]
    assert request.method == "POST"
    assert request.secrets == ["hunter22"]


@pytest.mark.parametrize("command", ["curl", "curl -s", "curl 'https://a.example", "curl ftp://a.example"])
def test_half_a_curl_command_says_what_is_missing(command: str) -> None:
    """Not an exception of a parser's."""
    with pytest.raises(InvalidInput, match=r"paste all of it|http://"):
        capture([f"{command} "], never)


# --- HAR --------------------------------------------------------------------------------------------------------------


def entry(url: str, status: int, **more: Any) -> dict[str, Any]:
    """One entry of a HAR file."""
    content = {"text": more.pop("text", ""), "encoding": more.pop("encoding", "")}
    headers = [{"name": name, "value": value} for name, value in more.pop("headers", {}).items()]
    request = {"method": more.pop("method", "GET"), "url": url, "headers": headers, "bodySize": more.pop("sent", 0)}
    answer = {"status": status, "headers": [{"name": "CF-RAY", "value": "ab-FRA"}], "content": content}
    return {"request": request, "response": answer, "time": more.pop("time", 10.0)}


def har(*entries: dict[str, Any]) -> str:
    """A HAR file."""
    return json.dumps({"log": {"version": "1.2", "entries": list(entries)}})


def test_of_a_har_file_the_failure_is_taken() -> None:
    """Not the missing icon, and not the slowest that came."""
    text = har(
        entry("https://a.example/favicon.ico", 404),
        entry("https://a.example/slow", 200, time=300_000),
        entry(
            "https://a.example/ocr?token=s3cret",
            524,
            time=125_400,
            text=base64.b64encode(b"error code: 524").decode(),
            encoding="base64",
            method="POST",
            headers={"Authorization": "Bearer topsecret1", "Sec-Ch-Ua": "x"},
        ),
    )

    captured = capture(["-"], lambda: text)

    assert captured.source == "har"
    assert captured.finding is not None
    assert captured.finding.code == "edge_read_timeout"
    assert captured.summary == f"POST https://a.example/ocr?token={HIDDEN} -> 524 after 125.4 s"
    assert captured.headers == {"Authorization": "Bearer topsecret1"}
    assert "topsecret1" in captured.secrets


@pytest.mark.parametrize(
    ("sent", "body", "files"),
    [
        ({"postData": {"text": '{"year": 2026}'}, "bodySize": 14}, b'{"year": 2026}', ()),
        ({"bodySize": 0}, b"", ()),
        ({"postData": {"mimeType": "multipart/form-data"}, "bodySize": 7_000_000}, b"", ("the request's body",)),
    ],
)
def test_a_har_files_request_is_repeated_with_its_body(
    sent: dict[str, Any], body: bytes, files: tuple[str, ...]
) -> None:
    """Browsers leave out what was a file; then there is nothing that could be repeated."""
    one = entry("https://a.example/ocr", 524, method="POST")
    one["request"] |= sent

    captured = capture(["-"], lambda: har(one))

    assert (captured.method, captured.body, captured.files) == ("POST", body, files)


def test_a_request_that_never_came_back_is_the_failure_of_a_har_file() -> None:
    """A browser writes status 0."""
    captured = capture(["-"], lambda: har(entry("https://a.example/", 200), entry("https://a.example/x", 0)))

    assert captured.finding is not None
    assert captured.finding.code == "closed_unanswered"


@pytest.mark.parametrize("text", ['{"log":{"entries":[]}}', '{"log":{"entries":[{}]}}', '{"log":{"entries":'])
def test_a_har_file_without_a_request_says_so(text: str) -> None:
    """And how to get one."""
    with pytest.raises(InvalidInput, match=r"network panel|record while"):
        capture(["-"], lambda: text)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_each_kind_of_target_is_known(tmp_path: Path) -> None:
    """An address, a quoted command, a file, standard input, and an address beside a text."""
    error = tmp_path / "error.txt"
    error.write_text("error code: 524")

    assert capture(["https://a.example/x"], never).source == "url"
    assert capture(["curl https://a.example"], never).source == "curl"
    assert capture([str(error)], never).source == "text"
    assert capture([], lambda: "error code: 524").source == "text"
    both = capture(["https://a.example/x", "-"], lambda: "error code: 524")
    assert (both.source, both.url, both.host) == ("text", "https://a.example/x", "a.example")
    assert both.finding is not None


@pytest.mark.parametrize(
    "targets",
    [["nothing-here"], ["ftp://a.example"], ["https://"], ["http://a:x/"], ["https://a", "https://b"], ["-", "-"]],
)
def test_what_is_none_of_these_says_so(targets: list[str]) -> None:
    """With what is taken."""
    with pytest.raises(InvalidInput):
        capture(targets, lambda: "error code: 524")


def test_an_empty_text_says_what_to_give() -> None:
    """`outlast doctor < /dev/null`."""
    with pytest.raises(InvalidInput, match="give an address"):
        capture([], lambda: " \n")


# --- secrets ----------------------------------------------------------------------------------------------------------

SECRET = "Zx9secretsecretZx9"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"< authorization: Basic {SECRET}",
        f"curl -H 'X-Api-Key: {SECRET}' https://a.example",
        f"Cookie: session={SECRET}; theme={SECRET}",
        f"set-cookie: a={SECRET}; Path=/",
        f"https://me:{SECRET}@a.example/x",
        f"https://a.example/x?token={SECRET}&page=2",
        f"https://a.example/x?key={SECRET}",
        f'{{"api_key": "{SECRET}"}}',
        f"OPENAI_API_KEY={SECRET}",
        f"x-outlast-probe: {SECRET}",
        f"password={SECRET}",
        f"headers={{'X-Auth-Token': '{SECRET}'}}",
        "sk-Zx9secretsecretZx9",
        "ghp_Zx9secretsecretZx9secret",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.Zx9secret",
    ],
)
def test_secrets_are_left_out(text: str) -> None:
    """Wherever people paste them."""
    assert "Zx9secret" not in redact(text)
    assert HIDDEN in redact(text)


def test_a_known_secret_is_left_out_wherever_it_stands() -> None:
    """Also where nothing tells that it is one."""
    assert redact("the word hunter22 in a sentence", ["hunter22"]) == f"the word {HIDDEN} in a sentence"


@pytest.mark.parametrize(
    "text",
    [
        "error code: 524",
        "status 524, after 125.3 s, ray 9a1b2c3d4e5f6071 at FRA",
        "POST https://a.example/api/ocr",
        "Set OUTLAST_HEARTBEAT_SECONDS=15.",
        "upstream timed out (110: Connection timed out)",
        "Content-Type: application/json",
    ],
)
def test_what_helps_stays(text: str) -> None:
    """A report of nothing but holes helps nobody."""
    assert redact(text) == text


def test_of_headers_only_secrets_are_left_out() -> None:
    """The word gzip in a report must not become a hole because a header said it."""
    headers = {
        "Accept-Encoding": "gzip",
        "CF-Access-Client-Secret": "Zx9secretZx9",
        "Authorization": "Bearer abcdefgh1",
    }

    assert secrets_of(headers) == ["Zx9secretZx9", "abcdefgh1"]


def test_an_address_keeps_its_shape_only() -> None:
    """Values of a query may be anything; numbers are kept."""
    url = "https://me:pw@a.example:8443/t/0123456789abcdef0123456789abcdef01/x?page=2&q=name&flag#part"

    assert redact_url(url) == f"https://a.example:8443/t/{HIDDEN}/x?page=2&q={HIDDEN}&flag"
