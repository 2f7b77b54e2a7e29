"""What a token says as text, and what it allows."""

from __future__ import annotations

import re
import string
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.auth import Principal
from gateway.errors import Forbidden
from gateway.requests import TokenRequest
from gateway.tokens import (
    JobToken,
    Right,
    SubmitToken,
    Token,
    encode_token,
    owner_for,
    read_token,
    signing_key,
    split_owner,
)

JOB = "a" * 26
NAMES = {"a": "a" * 20, "b": "b" * 20}
SIGNING = [(signing_key(secret), name) for name, secret in NAMES.items()]
TEXT = string.ascii_letters + string.digits + "~._@+|:=-\n é"


LETTERS = string.ascii_lowercase + string.digits
JOBS = st.text(LETTERS, min_size=26, max_size=26)
KINDS = st.builds(str.__add__, st.sampled_from(string.ascii_lowercase), st.text(LETTERS + "_.-", max_size=63))
USERS = st.builds(str.__add__, st.sampled_from(LETTERS), st.text(LETTERS + "ABC._@+|:=-", max_size=127))
EXPIRES = st.integers(1, 10**12 - 1)
TOKENS = st.one_of(
    st.builds(JobToken, JOBS, st.booleans(), st.none() | EXPIRES),
    st.builds(SubmitToken, KINDS, USERS, st.integers(1, 10_000), EXPIRES),
)


@given(token=TOKENS, name=st.sampled_from(sorted(NAMES)))
def test_a_token_is_read_as_it_was_written(token: Token, name: str) -> None:
    """By whoever has the key; it fits into a header and a subprotocol's base64."""
    text = encode_token(NAMES[name], token)

    assert read_token(text, SIGNING) == (name, token)
    assert read_token(text, [(signing_key("another key"), "a")]) is None
    assert re.fullmatch(r"[!-~]+", text)
    assert len(text) < 300


@given(token=TOKENS, at=st.integers(0, 400), put=st.text(TEXT, max_size=3), cut=st.integers(0, 3))
def test_a_token_that_was_changed_is_none(token: Token, at: int, put: str, cut: int) -> None:
    """Wherever, and however little: its time, its user, its right, its signature."""
    text = encode_token(NAMES["a"], token)
    at = min(at, len(text))
    changed = text[:at] + put + text[at + cut :]

    assert changed == text or read_token(changed, SIGNING) is None


@given(
    token=TOKENS,
    right=st.none() | st.sampled_from(get_args(Right)),
    job=st.none() | JOBS,
    kind=st.none() | KINDS,
)
def test_a_token_allows_nothing_but_its_own(
    token: Token, right: Right | None, job: str | None, kind: str | None
) -> None:
    """Whatever is asked for: another job, another kind, what only a key does, and what it was not given."""
    principal = Principal("a", token)

    with suppress(Forbidden):
        principal.check(right, job=job, kind=kind)
        if isinstance(token, JobToken):
            assert right == "read" or (right == "cancel" and token.cancel)
            assert job in {None, token.job}
        else:
            assert right in {"read", "cancel", "submit"}
            assert kind in {None, token.kind}


def test_a_token_allows_its_own() -> None:
    """The same seen from the other side, and a key everything."""
    for right in ("read", "cancel"):
        JobToken(JOB, cancel=True).check(right, JOB, None)
    for allowed in get_args(Right):
        SubmitToken("ocr", "u", 1, 1).check(allowed, None, "ocr")
    Principal("a").check(None)
    with pytest.raises(Forbidden):
        JobToken(JOB).check("cancel", JOB, None)


@given(key=st.text(LETTERS + "._@-", min_size=1, max_size=64), user=USERS)
def test_no_user_is_taken_for_a_key_or_for_another_keys_user(key: str, user: str) -> None:
    """The owner of a user's jobs comes apart in one way."""
    assert split_owner(owner_for(key, user)) == (key, user)
    assert split_owner(key) == (key, None)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "name one of them"),
        ({"job": JOB, "kind": "ocr"}, "name one of them"),
        ({"kind": "ocr"}, "say for which user"),
        ({"kind": "ocr", "user": "a/b"}, "pattern"),
        ({"kind": "ocr", "user": "a~b"}, "pattern"),
        ({"kind": "ocr", "user": "u", "cancel": True}, "cancel means nothing"),
        ({"job": JOB, "user": "u"}, "user means nothing"),
        ({"job": JOB, "max_waiting": 3}, "max_waiting means nothing"),
        ({"job": "../x"}, "pattern"),
        ({"job": JOB, "expires_seconds": 86_401}, "less than or equal"),
        ({"job": JOB, "expires_seconds": 9}, "greater than or equal"),
        ({"job": JOB, "scope": "all"}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], says: str) -> None:
    """A token that allows something else than was meant would be found out too late."""
    with pytest.raises(ValidationError, match=says):
        TokenRequest.model_validate(asked)
