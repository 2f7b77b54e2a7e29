"""Keys, tokens, and who counts as foreign."""

from __future__ import annotations

import pytest

from gateway.auth import Failures, Keyring, Principal, is_foreign_host, is_foreign_origin
from gateway.tokens import JobToken, SubmitToken, encode_token

KEYS = {"a": "a" * 20, "b": "b" * 20}
ALLOWED = frozenset({"https://app.example", "http://local.test:3000"})


def test_a_key_names_its_owner_and_nothing_else_does() -> None:
    """Also not a part of it, nor text that is no UTF-8."""
    keyring = Keyring(KEYS)

    assert keyring.owner_of("a" * 20) == "a"
    assert keyring.owner_of("b" * 20) == "b"
    assert [keyring.owner_of(key) for key in ("", "a" * 19, "a" * 21, "c" * 20, "\ud800")] == [None] * 5


def test_a_keyring_without_keys_asks_for_none() -> None:
    """It is false, and knows nobody."""
    assert not Keyring({})
    assert Keyring(KEYS)
    assert Keyring({}).owner_of("") is None


def test_a_token_speaks_in_the_name_of_the_key_that_signed_it() -> None:
    """And of its user, where it has one; it goes when the key goes, and the key can't be read from it."""
    keyring, signed = Keyring(KEYS), SubmitToken("ocr", "user-1", 10, 99)
    watch, submit = encode_token(KEYS["a"], JobToken("a" * 26)), encode_token(KEYS["b"], signed)

    assert keyring.principal_of(watch) == Principal("a", JobToken("a" * 26))
    assert keyring.principal_of(submit) == Principal("b/user-1", signed)
    assert Keyring({"a": "x" * 20}).principal_of(watch) is None
    assert KEYS["b"] not in submit


def test_an_api_keys_jobs_are_also_those_of_its_users_and_nobody_elses() -> None:
    """A user is no key: no name of a key has a slash, and one that another begins with is another."""
    me, user = Principal("me"), Principal("me/anna")

    assert [me.owns(owner) for owner in ("me", "me/anna", "mee", "mee/anna", "other/me")] == [True, True] + [False] * 3
    assert [user.owns(owner) for owner in ("me/anna", "me", "me/ann", "me/anna/x", "other/anna")] == [True] + [
        False
    ] * 4


@pytest.mark.parametrize(
    ("origin", "host", "fetch_site", "foreign"),
    [
        ("", "127.0.0.1:8080", "", False),
        ("", "127.0.0.1:8080", "cross-site", False),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "", False),
        ("https://JOBS.example", "jobs.example", "", False),
        ("https://app.example", "jobs.example", "cross-site", False),
        ("https://jobs.example", "127.0.0.1:8080", "same-origin", False),
        ("https://jobs.example", "127.0.0.1:8080", "", True),
        ("http://127.0.0.1:8081", "127.0.0.1:8080", "same-site", True),
        ("https://evil.example", "127.0.0.1:8080", "cross-site", True),
        ("https://app.example.evil", "127.0.0.1:8080", "", True),
        ("null", "127.0.0.1:8080", "", True),
        ("null", "null", "", True),
        ("nonsense", "nonsense", "", True),
        ("http://[", "127.0.0.1:8080", "", True),
    ],
)
def test_a_foreign_origin_is_told_from_our_own(origin: str, host: str, fetch_site: str, foreign: bool) -> None:
    """By what a page can't forge: Origin, Host and Sec-Fetch-Site."""
    assert is_foreign_origin(origin, host, fetch_site, ALLOWED) is foreign


@pytest.mark.parametrize(
    ("host", "foreign"),
    [
        ("localhost", False),
        ("LOCALHOST:8080", False),
        ("127.0.0.1:1", False),
        ("[::1]:8080", False),
        ("a.localhost", False),
        ("app.example", False),
        ("app.example:8443", False),
        ("local.test", False),
        ("evil.example", True),
        ("127.0.0.1.evil.example", True),
        ("localhost.evil.example", True),
        ("0.0.0.0:8080", True),
        ("[::2]", True),
        ("[x", True),
        ("", True),
    ],
)
def test_a_foreign_host_is_told_from_this_machine(host: str, foreign: bool) -> None:
    """A name that only points here is not this machine's own."""
    assert is_foreign_host(host, ALLOWED) is foreign


def test_wrong_keys_are_counted_by_address_and_forgotten_after_a_minute() -> None:
    """Thirty in a window; the wait is what is left of it."""
    now = 100.0
    failures = Failures(clock=lambda: now)

    assert [failures.add("x") for _ in range(Failures.MOST)] == [None] * Failures.MOST
    now += 20
    assert failures.add("x") == 40
    assert failures.add("y") is None
    now += 40
    assert failures.add("x") is None


def test_addresses_do_not_fill_the_memory() -> None:
    """The oldest is forgotten when there are too many."""
    failures = Failures(clock=lambda: 0.0)
    for _ in range(Failures.MOST):
        failures.add("first")

    for number in range(10_000):
        failures.add(str(number))

    assert failures.add("first") is None
