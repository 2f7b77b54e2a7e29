"""A write token says what was put into it, until its time is over, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.errors import WriteTokenNeeded
from gateway.protocol import JOB_PATTERN, KIND_PATTERN
from gateway.store import Lease, WriteToken, read_token
from gateway.store.write_token import check_token, encode_token

SECRET = b"s" * 32
LEASES = st.builds(
    Lease,
    st.from_regex(JOB_PATTERN[1:-1], fullmatch=True),
    st.from_regex(KIND_PATTERN[1:-1], fullmatch=True),
    st.integers(1, 999_999_999),
    st.from_regex("[0-9a-f]{16}", fullmatch=True),
)


@given(LEASES, st.integers(1, 10**12 - 1))
def test_a_token_is_taken_until_its_time_is_over(lease: Lease, expires: int) -> None:
    """And only by who has the secret; without it, it can still be read."""
    token = encode_token(SECRET, lease, expires)

    assert read_token(token) == check_token(SECRET, token, expires - 1) == WriteToken(lease, expires)
    with pytest.raises(WriteTokenNeeded, match="too old"):
        check_token(SECRET, token, expires)
    with pytest.raises(WriteTokenNeeded, match="signature"):
        check_token(b"another", token, expires - 1)


@given(LEASES, st.integers(0), st.characters())
def test_a_token_with_another_character_anywhere_is_refused(lease: Lease, place: int, character: str) -> None:
    """Whatever it is, it is that refusal and no other error."""
    token = encode_token(SECRET, lease, 2_000_000_000)
    place %= len(token)
    changed = token[:place] + character + token[place + 1 :]
    assume(changed != token)

    with pytest.raises(WriteTokenNeeded):
        check_token(SECRET, changed, 1_000_000_000)


@given(st.text())
def test_any_other_text_is_no_token(text: str) -> None:
    """A header may hold anything."""
    with pytest.raises(WriteTokenNeeded):
        read_token(text)
