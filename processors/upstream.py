"""The one way out: HTTP requests to upstreams that are listed, at addresses that may be connected to.

The guard's rules are `gateway.upstreams`; here they are asked for each URL, each redirect, and for all addresses of a
name at the moment of connecting. Nothing is kept between two calls: no cookies, no connections, no cached names.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError, TransferEncodingError
from yarl import URL

from gateway.config import load_settings
from gateway.slow_routes import load_routes
from gateway.upstreams import Refused, Target, Upstreams, is_local_name

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
IDEMPOTENT_METHODS: Final = SAFE_METHODS | {"PUT", "DELETE"}
# [spec] What concerns one connection only and is never passed on (RFC 9110, section 7.6.1).
HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
# What we say ourselves: the body's length, and that it is to come as it is, since nothing here unpacks it.
_OURS: Final = frozenset({"host", "content-length", "accept-encoding", "expect"})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS: Final = 5
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# A peer whose machine is gone never says so; the kernel asks after a minute of silence and gives up after another.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


class UpstreamError(Exception):
    """An upstream that could not be called, or gave no whole answer. `code` is stable, `detail` is for the client."""

    def __init__(self, code: str, detail: str, *, sent: bool = True, passing: bool = True) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.sent = sent
        """Whether the upstream may have got the request, and so may have begun to do it."""
        self.passing = passing
        """Whether the same request may fare better later."""


class Answer:
    """What an upstream answered. The body is read once, by `pieces`."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, *, max_bytes: int, idle_seconds: float) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds
        self.url = url
        self.status = response.status
        dropped = HOP_BY_HOP | _named(response.headers.getall("Connection", []))
        self.headers = [
            (name.decode("latin-1").lower(), _readable(value))
            for name, value in response.raw_headers
            if name.decode("latin-1").lower() not in dropped
        ]
        self.length = response.content_length
        """Of the body, as the upstream says; None where it doesn't."""
        self.content_type = response.headers.get("Content-Type", "").strip()
        self.encoded = response.headers.get("Content-Encoding", "identity").strip().lower() != "identity"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `UpstreamError`."""
        size = 0
        if self.length is not None and self.length > self._max_bytes and self._response.method != "HEAD":
            raise self._too_large()
        silence = _Silence(self._response.content, self._idle_seconds)
        try:
            while piece := await silence.next():
                size += len(piece)
                if size > self._max_bytes:
                    raise self._too_large()
                yield piece
        except aiohttp.ClientPayloadError as error:
            raise _broken_body(error, size, self.length) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(
                "upstream_broke_off", f"The upstream closed the connection after {size} bytes of its answer."
            ) from error
        finally:
            silence.end()

    def _too_large(self) -> UpstreamError:
        return UpstreamError(
            "upstream_too_large",
            f"The upstream's answer is larger than {self._max_bytes} bytes (OUTLAST_MAX_UPSTREAM_BYTES).",
            passing=False,
        )


class _Silence:
    """Breaks off the wait for a body's next bytes that lasts too long.

    One timer serves all waits of an answer and only looks when the time may be over: a time-out of its own for each
    would cost a token more than its reading does.
    """

    def __init__(self, body: aiohttp.StreamReader, seconds: float) -> None:
        self._body = body
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._waits_since: float | None = None
        self._had = 0
        self._timer = self._loop.call_later(seconds, self._look)

    async def next(self) -> bytes:
        """What has come, or what comes next; empty at the end. Raises `UpstreamError` for a silence."""
        self._waits_since, self._had = self._loop.time(), self._body.total_bytes
        try:
            return await self._body.readany()
        finally:
            self._waits_since = None

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        # While somebody takes long over what has come, or this whole process stood still, the upstream was not silent.
        since = now
        if self._waits_since is not None and self._body.total_bytes == self._had:
            since = self._waits_since
        if now - since >= self._seconds:
            self._body.set_exception(_silent(self._seconds))
        else:
            self._timer = self._loop.call_at(since + self._seconds, self._look)


class Upstream:
    """Calls what may be called."""

    def __init__(self, allowed: Upstreams, *, connect_seconds: float, idle_seconds: float, max_bytes: int) -> None:
        self._allowed = allowed
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._max_bytes = max_bytes

    @asynccontextmanager
    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Path | None = None,
        patient: bool = False,
    ) -> AsyncIterator[Answer]:
        """Send a request; the answer's head is there when the block begins, and the connection goes at its end.

        A redirect is followed where it stays at the same origin and among what is listed. An upstream may take as long
        as it likes, but not say nothing for `idle_seconds`; with `patient` that counts only once its answer has begun.
        Raises `UpstreamError`, inside the block too; cancelling closes the connection.
        """
        target = self._check(url)
        headers = sendable(headers or {})
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(self._allowed), use_dns_cache=False, force_close=True, socket_factory=_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_seconds),
            skip_auto_headers=("User-Agent", "Content-Type", "Accept"),
        ) as session:
            # A second try of its own would be a second call behind our back.
            session._retry_connection = False
            for hop in range(_MAX_REDIRECTS + 1):
                try:
                    response = await self._send(session, method, url, headers, body, patient=patient)
                except UpstreamError as error:
                    # Whoever redirects has had the request, and may have done it.
                    error.sent = error.sent or hop > 0
                    raise
                try:
                    _check_status(response.status)
                    location = response.headers.get("Location") if response.status in _REDIRECTS else None
                    if location is None:
                        yield Answer(response, url, max_bytes=self._max_bytes, idle_seconds=self._idle_seconds)
                        return
                    url = self._redirected(url, location, target)
                    if response.status == 303 or (response.status in {301, 302} and method == "POST"):
                        # [spec] "a user agent MAY change the request method from POST to GET" (RFC 9110, 15.4.2)
                        method, body = "GET" if method != "HEAD" else method, None
                        headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
                finally:
                    response.close()
            raise UpstreamError(
                "upstream_redirected", f"The upstream redirected more than {_MAX_REDIRECTS} times.", passing=False
            )

    def _check(self, url: str) -> Target:
        try:
            return self._allowed.check(url)
        except Refused as refused:
            raise UpstreamError(refused.code, refused.detail, sent=False, passing=False) from None

    def _redirected(self, url: str, location: str, first: Target) -> str:
        """Where a redirect leads to, if that is allowed."""
        reason = "which is another origin than the one that was called"
        try:
            url = urljoin(url, location).partition("#")[0]
            target = Target.parse(url)
            if target.origin == first.origin:
                self._allowed.check(url)
                return url
            if is_local_name(target.host) and not self._allowed.lists(target):
                raise _redirected_inside(location)
            # Other names are not looked up: nothing is called there either way, and an error that told what a name
            # stands for in our network would tell it to whoever can make an upstream redirect.
            self._allowed.check_host(target.host)
        except Refused as refused:
            if refused.code == "upstream_private":
                raise _redirected_inside(location) from None
            reason = refused.detail
        except ValueError:
            reason = "which is no URL"
        raise UpstreamError(
            "upstream_redirected",
            f"The upstream redirected to {location[:200]!r}, {reason}" + ("" if reason.endswith(".") else "."),
            passing=False,
        )

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Path | None,
        *,
        patient: bool,
    ) -> aiohttp.ClientResponse:
        file = await asyncio.to_thread(body.open, "rb") if isinstance(body, Path) else None
        try:
            async with asyncio.timeout(None if patient else self._idle_seconds):
                return await session.request(
                    method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=body if file is None else file,
                    allow_redirects=False,
                )
        except Refused as refused:
            raise UpstreamError(refused.code, refused.detail, sent=False, passing=False) from None
        except aiohttp.ClientError as error:
            raise _no_answer(error, self._connect_seconds) from error
        except TimeoutError:
            raise _silent(self._idle_seconds) from None
        finally:
            if file is not None:
                file.close()


class _Resolver(AbstractResolver):
    """Looks a name up, and gives its addresses to the connection only if all of them may be connected to."""

    def __init__(self, allowed: Upstreams) -> None:
        self._allowed = allowed
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        self._allowed.check_addresses(host, [one["host"] for one in found])
        return found

    async def close(self) -> None:
        await self._inner.close()


@lru_cache(maxsize=1)
def configured() -> Upstream:
    """The upstreams of this worker's settings, and those of its slow routes. Raises `ConfigurationError`."""
    settings = load_settings()
    routes = load_routes(settings.routes)
    return Upstream(
        Upstreams([*settings.upstreams, *(route.listed for route in routes)], settings.upstream_networks),
        connect_seconds=settings.upstream_connect_seconds,
        idle_seconds=settings.upstream_idle_seconds,
        max_bytes=settings.max_upstream_bytes,
    )


def sendable(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers without those that concern one connection only, and with what we say ourselves."""
    dropped = HOP_BY_HOP | _OURS | _named([value for name, value in headers.items() if name.lower() == "connection"])
    kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
    return kept | {"Accept-Encoding": "identity"}


def _named(values: list[str]) -> frozenset[str]:
    """The headers that a `Connection` header names."""
    return frozenset(name.strip().lower() for value in values for name in value.split(","))


def _readable(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    # [spec] "Field values containing other CTL characters are also invalid; however, recipients MAY retain such
    # characters for the sake of robustness" (RFC 9110, 5.5): the gateway, who passes them on, may not send them.
    return _CONTROLS.sub(" ", text)


def _check_status(status: int) -> None:
    """Raises `UpstreamError` for what is no final status (RFC 9110, 15): nobody could be sent it.

    A 101 would make every hop to the client pass on bytes of whatever it takes the new protocol for.
    """
    if not 200 <= status <= 599:
        raise UpstreamError("upstream_garbage", f"The upstream answered with the status {status}, which is no answer.")


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        # Not on every system, and it is a help only.
        with suppress(OSError, AttributeError):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def _redirected_inside(location: str) -> UpstreamError:
    return UpstreamError(
        "upstream_redirected_private",
        f"The upstream redirected to {location[:200]!r}, which is no public address; it was not called.",
        passing=False,
    )


def _silent(seconds: float) -> UpstreamError:
    detail = f"The upstream said nothing for {seconds:g} s (OUTLAST_UPSTREAM_IDLE_SECONDS)."
    return UpstreamError("upstream_silent", detail)


def _no_answer(error: aiohttp.ClientError, connect_seconds: float) -> UpstreamError:
    """Why there is no answer at all, from what aiohttp raised."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            detail = f"The upstream took no connection within {connect_seconds:g} s."
            return UpstreamError("upstream_connect_timeout", detail, sent=False)
        case aiohttp.ClientConnectorDNSError():
            return UpstreamError("upstream_unreachable", "The upstream's name is not known here.", sent=False)
        case aiohttp.ClientSSLError():
            detail = "The upstream's certificate can't be trusted, or it speaks no TLS."
            return UpstreamError("upstream_tls", detail, sent=False, passing=False)
        case aiohttp.ClientConnectorError():
            # The number only: what the system says beside it holds addresses of our network.
            reason = f": {os.strerror(error.errno).lower()}" if error.errno else ""
            return UpstreamError("upstream_unreachable", f"The upstream takes no connections{reason}.", sent=False)
        case aiohttp.ClientResponseError():
            detail = f"What the upstream answered is no HTTP: {_one_line(error.message)}"
            return UpstreamError("upstream_garbage", detail)
        case aiohttp.InvalidURL():
            return UpstreamError("upstream_bad_url", "The URL can't be called.", sent=False, passing=False)
        case _:
            return UpstreamError("upstream_broke_off", "The upstream closed the connection before it answered.")


def _broken_body(error: aiohttp.ClientPayloadError, size: int, length: int | None) -> UpstreamError:
    cause: BaseException | None = error.__cause__ or error.__context__
    if isinstance(cause, ContentLengthError) or (length is not None and size < length):
        detail = f"The upstream announced {length} bytes and closed the connection after {size}."
        return UpstreamError("upstream_wrong_length", detail)
    if isinstance(cause, HttpProcessingError) and not _is_cut_off(cause):
        detail = f"The upstream's answer can't be read after {size} bytes: {_one_line(cause.message)}"
        return UpstreamError("upstream_garbage", detail)
    return UpstreamError("upstream_broke_off", f"The upstream closed the connection after {size} bytes of its answer.")


def _is_cut_off(cause: HttpProcessingError) -> bool:
    return isinstance(cause, TransferEncodingError) and "Not enough data" in str(cause)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:200]
