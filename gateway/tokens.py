"""Tokens for pages: what one allows, as text, signed with a key that is derived from an API key.

So every gateway knows a token, nothing is stored, and it goes when the key goes. It says everything itself:

    t1~job~JOB~read~EXPIRES~SIGNATURE               reads one job; with `cancel` it may end it as well
    t1~kind~KIND~USER~WAITING~EXPIRES~SIGNATURE     submits to one kind for one user, and reads and cancels those jobs

EXPIRES is in seconds since 1970, `0` in the token of a watch URL: that one is good for as long as the key is. It is the
clock of the gateway that made the token, and each gateway compares it with its own: clocks that are a minute apart make
tokens a minute longer or shorter, and nothing else goes by them.

A user's jobs have an owner of their own, the key's name and the user behind a slash, which no key's name has. So all
that holds between owners holds between users: ids that derive from an Idempotency-Key, uploads, bounds, the queue.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final, Literal

from gateway.errors import Forbidden
from gateway.protocol import JOB_PATTERN, KIND_PATTERN

Right = Literal["read", "cancel", "submit"]

USER_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._@+|:=-]{0,127}$"
_PREFIX: Final = "t1~"
_TOKEN: Final = re.compile(
    rf"t1~(?:job~({JOB_PATTERN[1:-1]})~(read|cancel)|kind~({KIND_PATTERN[1:-1]})~({USER_PATTERN[1:-1]})~([1-9][0-9]{{0,5}}))"
    r"~(0|[1-9][0-9]{0,11})~([\w-]{43})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class JobToken:
    """Opens one job. `expires` in seconds since 1970; None: as long as the key is in force."""

    job: str
    cancel: bool = False
    expires: int | None = None

    def check(self, right: Right | None, job: str | None, kind: str | None) -> None:
        """Raises `Forbidden` for what the token doesn't allow; None as a right: what only an API key does."""
        if right != "read" and not (right == "cancel" and self.cancel):
            allowed = "reads and cancels" if self.cancel else "reads"
            raise Forbidden(f"This token {allowed} one job and does nothing else; send an API key, or another token.")
        if job is not None and job != self.job:
            raise Forbidden("This token is another job's; fetch one for this job.")


@dataclass(frozen=True, slots=True)
class SubmitToken:
    """Opens one kind to one user: to submit, and to read and cancel what was submitted so."""

    kind: str
    user: str
    max_waiting: int
    expires: int

    def check(self, right: Right | None, job: str | None, kind: str | None) -> None:
        """Raises `Forbidden` for what the token doesn't allow; None as a right: what only an API key does."""
        if right is None:
            raise Forbidden(f"This token is for jobs of the kind {self.kind} alone; send an API key.")
        if kind is not None and kind != self.kind:
            raise Forbidden(f"This token is for the kind {self.kind}, not for {kind[:64]}; fetch one for that.")


Token = JobToken | SubmitToken


def owner_for(key: str, user: str) -> str:
    """Who owns the jobs of an API key's user."""
    return f"{key}/{user}"


def split_owner(owner: str) -> tuple[str, str | None]:
    """The name of an owner's API key, and the user, if the jobs were submitted with a user's token."""
    key, slash, user = owner.partition("/")
    return key, user if slash else None


def encode_token(secret: str, token: Token) -> str:
    """A token as text. `secret` is the API key in whose name it speaks."""
    if isinstance(token, JobToken):
        said = f"job~{token.job}~{'cancel' if token.cancel else 'read'}"
    else:
        said = f"kind~{token.kind}~{token.user}~{token.max_waiting}"
    text = f"{_PREFIX}{said}~{token.expires or 0}"
    return f"{text}~{_sign(signing_key(secret), text)}"


def looks_like_token(text: str) -> bool:
    """Whether it is meant as a token, good or not."""
    return text.startswith(_PREFIX)


def read_token(text: str, keys: list[tuple[bytes, str]]) -> tuple[str, Token] | None:
    """The name of the API key that signed a token, and what it says; None for one that none of the keys signed.

    `keys` are signing keys and names. Whether the token has expired is not looked at.
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        return None
    signed, _, signature = text.rpartition("~")
    signer = None
    for key, name in keys:
        if hmac.compare_digest(_sign(key, signed), signature):
            signer = name
    if signer is None:
        return None
    job, what, kind, user, waiting, expires, _ = match.groups()
    if job is not None:
        return signer, JobToken(job, what == "cancel", int(expires) or None)
    return signer, SubmitToken(kind, user, int(waiting), int(expires))


def signing_key(secret: str) -> bytes:
    """What tokens of an API key are signed with: who learns it has not learnt the key."""
    return hmac.new(secret.encode(), b"outlast token", hashlib.sha256).digest()


def _sign(key: bytes, text: str) -> str:
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
