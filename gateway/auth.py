"""Who makes a request: API keys, tokens, and whether a browser's page may ask at all.

Without keys the gateway listens on loopback only, and everybody who gets there is the owner `local`. Then the danger
is a web page: any page in the user's browser can reach 127.0.0.1, so foreign origins and foreign host names are
refused. A token limits whoever sends one there too, so that a page behaves as it will where there are keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from inspect import unwrap
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import BadRequest, Forbidden, TokenExpired, TooMany, Unauthorized, encodable
from gateway.metrics import Metrics
from gateway.tokens import JobToken, Right, Token, looks_like_token, owner_for, read_token, signing_key, split_owner

logger = logging.getLogger(__name__)

LOCAL: Final = "local"
# The subprotocols of a browser's WebSocket: it can't send headers, so the key travels as a protocol's name.
SUBPROTOCOL: Final = "outlast.v1"
_KEY_SUBPROTOCOL: Final = "outlast.key."
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# Keys in an address end up in logs, histories and Referer headers.
_KEY_PARAMETERS: Final = frozenset({"api_key", "apikey", "key", "access_token"})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Origins that are logged when they are refused; any page that a user opens can make requests.
_LOGGED_ORIGINS: Final = 100


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose request it is, and the token by which, if it was no API key: that one limits what it may do."""

    owner: str
    token: Token | None = None

    @property
    def expires(self) -> int | None:
        """When this ends, in seconds since 1970; None for an API key, and for a watch URL's token."""
        return None if self.token is None else self.token.expires

    def owns(self, owner: str) -> bool:
        """Whether jobs of this owner are its own. An API key's are also those of its users."""
        return owner == self.owner or split_owner(owner)[0] == self.owner

    def check(self, right: Right | None, *, job: str | None = None, kind: str | None = None) -> None:
        """Raises `Forbidden` where there is a token and it doesn't allow this; None: what only an API key does."""
        if self.token is not None:
            self.token.check(right, job, kind)


PRINCIPAL: Final = web.RequestKey("principal", Principal)


class Keyring:
    """The API keys, kept as digests."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = [(_digest(secret), name) for name, secret in keys.items()]
        # Without keys a token guards nothing, and anybody can make one: what it allows holds all the same.
        self._signing = [(signing_key(secret), name) for name, secret in (keys or {LOCAL: ""}).items()]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner_of(self, key: str) -> str | None:
        """The name of a key, or None. Takes the same time wherever and whether a key matches."""
        digest, owner = _digest(key), None
        for known, name in self._digests:
            if hmac.compare_digest(known, digest):
                owner = name
        return owner

    def principal_of(self, token: str) -> Principal | None:
        """In whose name a token speaks, and how far; None for one that no key in force has signed."""
        read = read_token(token, self._signing)
        if read is None:
            return None
        name, said = read
        return Principal(name if isinstance(said, JobToken) else owner_for(name, said.user), said)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Failures:
    """Counts wrong keys per address, in windows of a minute: a client that keeps on guessing hears 429.

    A good key is always let in: behind a proxy all clients share one address, and one of them must not be able to
    lock the others out. What keeps a key from being guessed is its length.
    """

    WINDOW_SECONDS: Final = 60.0
    MOST: Final = 30
    # An attacker with many addresses must not fill the memory; the oldest are forgotten.
    _ADDRESSES: Final = 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def add(self, address: str) -> float | None:
        """Count a failure. Returns the seconds until the window's end if there were too many."""
        now = self._clock()
        began, count = self._failed.pop(address, (now, 0))
        if now - began >= self.WINDOW_SECONDS:
            began, count = now, 0
        self._failed[address] = (began, count + 1)
        if len(self._failed) > self._ADDRESSES:
            self._failed.popitem(last=False)
        return began + self.WINDOW_SECONDS - now if count >= self.MOST else None


def presented_key(request: web.Request) -> str | None:
    """The API key of a request: `Authorization: Bearer`, or a browser's WebSocket subprotocol."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    for header in request.headers.getall("Sec-WebSocket-Protocol", ()):
        for offered in header.split(","):
            encoded = offered.strip()
            if encoded.startswith(_KEY_SUBPROTOCOL):
                return _decode_key(encoded.removeprefix(_KEY_SUBPROTOCOL))
    return None


def _decode_key(encoded: str) -> str | None:
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def authentication(
    keys: Keyring, public: Collection[object], rights: Mapping[object, Right], metrics: Metrics
) -> Middleware:
    """A middleware that finds the principal of each request, or refuses it.

    `public` are handlers that need none; `rights` says which a token must have for a handler. The others ask for a key.
    """
    failures = Failures()

    def refuse(request: web.Request, reason: str, detail: str) -> Exception:
        metrics.count("auth_failures", reason=reason)
        wait = failures.add(request.remote or "")
        if wait is not None:
            return TooMany(
                "Too many requests with a wrong API key came from this address; wait, and check the key.",
                code="too_many_failures",
                retry_after_seconds=wait,
            )
        return Unauthorized(detail)

    def authenticate(request: web.Request) -> Principal:
        if keys and (in_query := _KEY_PARAMETERS & request.query.keys()):
            raise BadRequest(
                f"An API key doesn't belong into the address (?{min(in_query)}=): addresses are logged. Send it as"
                " `Authorization: Bearer ...`, and change this key.",
                code="key_in_query",
            )
        key, job = presented_key(request), request.match_info.get("job")
        if key is not None and (owner := keys.owner_of(key)) is not None:
            return Principal(owner)
        # A token comes where a key would stand, or in the address of an `EventSource`.
        token = request.query.get("token") if key is None and job is not None else key
        if token is not None and looks_like_token(token):
            return authenticate_token(request, token, in_address=key is None)
        if not keys:
            return Principal(LOCAL)
        if key is not None:
            raise refuse(request, "wrong_key", "This API key is not known; check it, or ask for a new one.")
        if token is not None:
            raise refuse(request, "wrong_token", "That is no token; use the watch URL as it came.")
        raise refuse(request, "no_key", "Send an API key: `Authorization: Bearer ...`.")

    def authenticate_token(request: web.Request, token: str, *, in_address: bool) -> Principal:
        principal = keys.principal_of(token)
        if principal is None:
            raise refuse(
                request,
                "wrong_token",
                "This token is not known: it was changed on the way, or the API key that it was made with is not in"
                " force any more. Fetch a fresh one.",
            )
        if principal.expires is not None and time.time() >= principal.expires:
            # No guess: the signature is good. A page whose token has expired must not lock out its neighbours.
            metrics.count("auth_failures", reason="expired_token")
            raise TokenExpired("This token has expired; fetch a fresh one from where this one came from.")
        # A stream's handler is wrapped by what counts its places.
        right = rights.get(unwrap(request.match_info.handler))
        if in_address and not (right == "read" and isinstance(principal.token, JobToken)):
            raise Forbidden(
                "In an address a token reads one job and does nothing else, since addresses are logged; send it as"
                " `Authorization: Bearer ...`."
            )
        principal.check(right, job=request.match_info.get("job"), kind=request.match_info.get("kind"))
        return principal

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        # What matches no route is answered 404 or 405 to anybody: which routes there are is no secret.
        if request.match_info.http_exception is None and request.match_info.handler not in public:
            request[PRINCIPAL] = authenticate(request)
        return await handler(request)

    return authenticated


def is_foreign_origin(origin: str, host: str, fetch_site: str, allowed: Collection[str]) -> bool:
    """Whether a request comes from a page that is neither ours nor allowed.

    `origin`, `host` and `fetch_site` are the headers `Origin`, `Host` and `Sec-Fetch-Site`; empty where missing. No
    `Origin` means no page, or a page's plain GET, whose answer the page can't read.
    """
    if not origin:
        return False
    if origin in allowed:
        return False
    # A page can't set this header. It is right also behind a proxy that changes `Host`.
    if fetch_site == "same-origin":
        return False
    # Not `urlsplit`: it raises for what begins like an IPv6 address and is none.
    return origin == "null" or origin.partition("://")[2].lower() != host.lower()


def is_foreign_host(host: str, allowed: Collection[str]) -> bool:
    """Whether a `Host` header names something else than this machine or an allowed origin.

    A page at evil.example whose name is made to point to 127.0.0.1 is of the same origin as we are, for the browser
    (DNS rebinding); the name in `Host` is what gives it away.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return True
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return False
    return name not in {urlsplit(origin).hostname for origin in allowed}


def origin_guard(keys: Keyring, allowed: Collection[str], public: Collection[object]) -> Middleware:
    """A middleware that refuses foreign pages, WebSockets included, before anything is read or done.

    A browser hides the refusal from the page, and so from who writes it: the log tells it, once for each origin.
    """
    logged: set[str] = set()

    def log(origin: str) -> None:
        if origin not in logged and len(logged) < _LOGGED_ORIGINS:
            logged.add(origin)
            logger.warning("refused a page of the origin %s; OUTLAST_ALLOWED_ORIGINS names those that may come", origin)

    def check(request: web.Request) -> None:
        headers = request.headers
        # Not `request.host`: without the header that asks the name server, and everybody waits for its answer.
        host, fetch_site = headers.get("Host", ""), headers.get("Sec-Fetch-Site", "")
        if is_foreign_origin(headers.get("Origin", ""), host, fetch_site, allowed) or (
            # A form on a foreign page, in a browser that hides its origin.
            fetch_site == "cross-site" and "Origin" not in headers and request.method not in _SAFE_METHODS
        ):
            origin = encodable(headers.get("Origin", "unknown")[:200])
            log(origin)
            raise Forbidden(
                f"A page of the origin {origin} may not use this gateway; if it should, add the origin to"
                " OUTLAST_ALLOWED_ORIGINS.",
                code="foreign_origin",
            )
        if not keys and is_foreign_host(host, allowed):
            raise Forbidden(
                f"This gateway has no API keys, so it answers on this machine's own names only, not on"
                f" {host[:200]!r}. Set OUTLAST_API_KEYS, or add the address to OUTLAST_ALLOWED_ORIGINS.",
                code="foreign_host",
            )

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        missed = request.match_info.http_exception
        unanswered = isinstance(missed, web.HTTPMethodNotAllowed)
        is_preflight = unanswered and "Access-Control-Request-Method" in request.headers
        if is_preflight or (missed is None and request.match_info.handler not in public):
            check(request)
        return await handler(request)

    return guarded
