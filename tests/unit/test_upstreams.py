"""What may be called and at which addresses: the allow-list, and every way round it that is known."""

from __future__ import annotations

import pytest

from gateway.config import load_settings
from gateway.errors import ConfigurationError
from gateway.upstreams import Refused, Target, Upstreams

LISTED = Upstreams(
    [
        "http://app:8000/api",
        "https://api.example.com/v1/",
        "https://*.example.org",
        "http://127.0.0.1:9000",
        "http://[fd00::1]:9000/",
    ]
)


@pytest.mark.parametrize(
    "url",
    [
        "http://app:8000/api",
        "http://APP:8000/api?x=1",
        "http://app:8000/api/ocr/%41",
        "https://api.example.com/v1/",
        "https://api.example.com:443/v1/jobs",
        "https://a.b.example.org/x",
        "http://127.0.0.1:9000/",
        "http://[fd00::1]:9000/",
    ],
)
def test_what_is_listed_may_be_called(url: str) -> None:
    """The entry itself and all below it; a wildcard stands for names below its own."""
    LISTED.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://app:8000/",
        "http://app:8000/apis",
        "http://app:80/api",
        "https://app:8000/api",
        "http://api.example.com/v1/",
        "https://api.example.com.evil.example/v1/",
        "https://example.org/",
        "https://evilexample.org/",
        "https://evil.example/?https://api.example.com/v1/",
        "http://127.0.0.2:9000/",
        "http://localhost:9000/",
        "http://redis:6379/",
    ],
)
def test_nothing_else_may(url: str) -> None:
    """Another scheme, host, port or path is another upstream."""
    with pytest.raises(Refused) as refused:
        LISTED.check(url)
    assert refused.value.code == "upstream_not_allowed"


@pytest.mark.parametrize(
    "url",
    [
        "http:/app:8000/api",
        "http:///api",
        "http://app:8000/api#fragment",
        "http://me:secret@app:8000/api",
        "http://app:8000@evil.example/api",
        "http://evil.example\\@app:8000/api",
        "http://app:8000/api/../admin",
        "http://app:8000/api/%2e%2e/admin",
        "http://app:8000/api/..%2fadmin",
        "http://app:8000/api/..%5cadmin",
        "http://app:8000/api/..;/admin",
        "http://app:8000/api/%2e.%3bx=1/admin",
        "http://app:8000/api/.",
        "http://app:8000/a b",
        "http://app:8000/api\r\nX-Evil: 1",
        "http://app:8000/\x00",
        "http://app:0/api",
        "http://app:65536/api",
        "http://app:/api:8000",
        "http://127.1:9000/",
        "http://0x7f000001:9000/",
        "http://2130706433:9000/",
        "http://0177.0.0.1:9000/",
        "http://127.0.0.1.:9000/",
        "http://localhost.:9000/",
        "http://[::1",
        "http://[fe80::1%25eth0]:9000/",
        "http://app%2eevil:8000/api",
        "http://ａpp:8000/api",
        "http://api。example。com/v1",
        "http://-app:8000/api",
    ],
)
def test_a_url_that_two_readers_could_read_differently_is_refused(url: str) -> None:
    """Before anything is looked up, and whatever is listed."""
    with pytest.raises(Refused) as refused:
        LISTED.check(url)
    assert refused.value.code == "upstream_bad_url", refused.value.detail


@pytest.mark.parametrize(
    "url",
    [
        "",
        "app:8000/api",
        "//app:8000/api",
        "file:///etc/passwd",
        "gopher://app:8000/api",
        "ftp://app:8000/api",
        "https+unix://app/api",
        "javascript:alert(1)",
    ],
)
def test_a_url_of_another_scheme_is_told_from_a_broken_one(url: str) -> None:
    """One of none as well: the host's name would be taken for it."""
    with pytest.raises(Refused) as refused:
        LISTED.check(url)
    assert refused.value.code == "upstream_not_http", refused.value.detail


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.31.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "168.63.129.16",
    "0.0.0.0",
    "192.0.0.1",
    "198.18.0.1",
    "203.0.113.7",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "::10.0.0.1",
    "64:ff9b::a00:1",
    "64:ff9b:1::a00:1",
    "2002:a00:1::",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_public_name_must_not_lead_into_a_private_network(address: str) -> None:
    """However the address is written, and though another answer is public."""
    with pytest.raises(Refused) as refused:
        LISTED.check_addresses("api.example.com", ["93.184.216.34", address])
    assert refused.value.code == "upstream_private"


def test_public_addresses_are_connected_to() -> None:
    """Also such as carry a public IPv4 address in an IPv6 one."""
    LISTED.check_addresses(
        "api.example.com", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "2002:5db8:d822::1"]
    )


@pytest.mark.parametrize("host", ["app", "ocr.internal", "app.prod.svc", "localhost", "printer.local"])
def test_a_name_that_only_our_network_knows_may_lead_there(host: str) -> None:
    """Whoever lists it means it; a cloud's metadata service, broadcast and nothing at all are meant by nobody."""
    LISTED.check_addresses(host, ["10.1.2.3", "127.0.0.1", "fd00::5"])
    for address in ("169.254.169.254", "0.0.0.0", "224.0.0.1", "fe80::1", "::ffff:169.254.169.254"):
        with pytest.raises(Refused):
            LISTED.check_addresses(host, [address])


def test_a_network_can_be_listed_too() -> None:
    """For public names that lead inside on purpose."""
    inside = Upstreams(["https://api.example.com"], ["10.1.0.0/16", "169.254.0.0/16"])
    inside.check_addresses("api.example.com", ["10.1.2.3", "::ffff:10.1.2.3", "169.254.169.254"])
    with pytest.raises(Refused):
        inside.check_addresses("api.example.com", ["10.2.0.1"])


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://[::ffff:10.0.0.1]/", "http://169.254.169.254/latest"])
def test_any_host_means_any_public_one(url: str) -> None:
    """`*` opens the internet, never the own network; other ports stay closed."""
    everything = Upstreams(["http://*", "https://*/"])
    everything.check("https://93.184.216.34/")
    everything.check("http://anything.example/")
    with pytest.raises(Refused) as refused:
        everything.check(url)
    assert refused.value.code == "upstream_private"
    with pytest.raises(Refused):
        everything.check("http://anything.example:6379/")


def test_the_parts_of_a_url_are_those_that_are_sent() -> None:
    """Case and brackets are evened out, the path and the query stay as they are."""
    assert Target.parse("HTTP://[FD00::0:1]:80/A%20b?C=%2F") == Target("http", "fd00::1", 80, "/A%20b", "?C=%2F")


@pytest.mark.parametrize(
    ("name", "value"),
    [("upstreams", "ftp://x"), ("upstreams", "https://x/?a=1"), ("upstream_networks", "10.1.2.3/16")],
)
def test_a_wrong_entry_stops_the_start(name: str, value: str) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigurationError, match=f"OUTLAST_{name.upper()}: "):
        load_settings(**{name: value})
