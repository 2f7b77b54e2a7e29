"""The write token: a lease made portable, so that any process may write a job's events under the same fence.

It is the lease as text, with a time after which nobody takes it any more and a signature with the store's own secret,
so that a gateway refuses a made-up one without asking Redis. What it allows is decided by the append script, which
checks the attempt and the nonce.

    w1~JOB~KIND~ATTEMPT~NONCE~EXPIRES~SIGNATURE
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final, NamedTuple

from gateway.errors import WriteTokenNeeded
from gateway.protocol import JOB_PATTERN, KIND_PATTERN
from gateway.store.records import Lease

_TOKEN: Final = re.compile(
    rf"w1~({JOB_PATTERN[1:-1]})~({KIND_PATTERN[1:-1]})~([1-9][0-9]{{0,8}})~([0-9a-f]{{16}})~([0-9]{{1,12}})~([\w-]{{43}})",
    re.ASCII,
)


class WriteToken(NamedTuple):
    """What a token says: the lease, and when it ends (seconds since 1970)."""

    lease: Lease
    expires: int


def encode_token(secret: bytes, lease: Lease, expires: int) -> str:
    """A lease as a token."""
    text = f"w1~{lease.job}~{lease.kind}~{lease.attempt}~{lease.nonce}~{expires}"
    return f"{text}~{_sign(secret, text)}"


def read_token(token: str) -> WriteToken:
    """What a token says, whoever signed it: whoever holds Redis itself needs no signature.

    Raises `WriteTokenNeeded` for what is no token.
    """
    return _parse(token)[0]


def check_token(secret: bytes, token: str, now: float) -> WriteToken:
    """What a token says. Raises `WriteTokenNeeded` for one that is made up or too old."""
    said, signed, signature = _parse(token)
    if not hmac.compare_digest(_sign(secret, signed), signature):
        raise WriteTokenNeeded("The write token's signature is wrong; use the token as the processor was given it.")
    if now >= said.expires:
        raise WriteTokenNeeded("The write token is too old: the attempt that it was made for is over.")
    return said


def _parse(token: str) -> tuple[WriteToken, str, str]:
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise WriteTokenNeeded("That is no write token; a processor gets one from `ctx.hand_over` and passes it on.")
    job, kind, attempt, nonce, expires, signature = match.groups()
    return WriteToken(Lease(job, kind, int(attempt), nonce), int(expires)), token.rpartition("~")[0], signature


def _sign(secret: bytes, text: str) -> str:
    digest = hmac.new(secret, b"write token " + text.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
