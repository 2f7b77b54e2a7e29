"""The connections to the origin: opened when needed, kept for the next request, ended when they have been idle."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gateway.edge.clock import Clock
from gateway.edge.failures import Refused
from gateway.edge.profile import Profile
from gateway.edge.wire import Wire
from gateway.errors import ConfigurationError

# As cloudflared's keepAliveConnections: what comes back beyond it is closed.
_MAX_IDLE: Final = 100


@dataclass(slots=True)
class Link:
    """A connection to the origin in the hands of one request."""

    wire: Wire
    reused: bool


class Origin:
    """One origin, `http://host:port`."""

    def __init__(self, url: str, profile: Profile, clock: Clock) -> None:
        self._host, self._port, self.netloc = _address(url)
        self._profile = profile
        self._clock = clock
        self._idle: list[tuple[float, Wire]] = []

    async def link(self, *, fresh: bool = False) -> Link:
        """A connection, a used one where there is one. Raises `Refused`."""
        while self._idle and not fresh:
            since, wire = self._idle.pop()
            if self._is_usable(since, wire):
                return Link(wire, reused=True)
            wire.close()
        timers, errors = self._profile.timers, self._profile.errors
        try:
            async with self._clock.limit(timers.connect_seconds):
                loop = asyncio.get_running_loop()
                _, wire = await loop.create_connection(Wire, self._host, self._port)
        except TimeoutError:
            raise Refused(errors.connect_timeout, "connect_timeout") from None
        except OSError as error:
            reason = "unknown_name" if isinstance(error, socket.gaierror) else "refused"
            raise Refused(errors.refused, reason) from None
        return Link(wire, reused=False)

    def _is_usable(self, since: float, wire: Wire) -> bool:
        idle = self._profile.timers.origin_idle_seconds
        if idle and self._clock.now() - since > idle:
            return False
        # What an origin says that was not asked belongs to no request.
        return not wire.waiting and (not wire.ended or self._profile.request.reuse_race)

    def give_back(self, link: Link) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) >= _MAX_IDLE:
            link.wire.close()
        else:
            self._idle.append((self._clock.now(), link.wire))

    def sweep(self) -> None:
        """Close those that nobody can use any more."""
        kept = [(since, wire) for since, wire in self._idle if self._is_usable(since, wire)]
        for entry in self._idle:
            if entry not in kept:
                entry[1].close()
        self._idle = kept

    def cut(self) -> None:
        """Reset all that are idle."""
        for _, wire in self._idle:
            wire.abort()
        self._idle.clear()


def _address(url: str) -> tuple[str, int, str]:
    """An origin's host, its port, and both as a Host header says them. Raises `ConfigurationError`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", 80 if parts.port is None else parts.port
        # A name with an empty or too long label can't be looked up.
        is_one = parts.scheme == "http" and bool(host.encode("idna")) and port > 0 and "@" not in parts.netloc
    except ValueError:
        is_one = False
    if not is_one or parts.path.strip("/") or parts.query:
        raise ConfigurationError(f"The origin is http://HOST:PORT, without a path, not {url!r}.")
    return host, port, parts.netloc
