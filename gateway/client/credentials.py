"""What a client shows to the gateway: an API key, or a token, which is fetched anew when its time is over."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from gateway.errors import ConfigurationError

ApiKey = str | Callable[[], str | Awaitable[str | None] | None] | None
# A token, or what the gateway answered to `POST /v1/tokens`; None: there is none.
Given = str | Mapping[str, Any] | None
Token = str | Callable[[], Given | Awaitable[Given]] | None

# So much of a token's life is used; the rest is for clocks, and for requests that are on their way.
_USED_SHARE: Final = 0.8


class Shown(NamedTuple):
    """What goes with one request. `fresh`: it was fetched for this one, so that there is no better one."""

    text: str | None
    fresh: bool

    @property
    def headers(self) -> dict[str, str]:
        """The header that says who asks."""
        return {"Authorization": f"Bearer {self.text}"} if self.text else {}


class Credentials:
    """A key or a token, each a text or a function, plain or async, that is asked for one.

    A function for keys is asked before each request. One for tokens is asked for the first, and again when the token's
    time is over.
    """

    def __init__(self, api_key: ApiKey = None, token: Token = None) -> None:
        if api_key is not None and token is not None:
            raise ConfigurationError("A client has an API key or a token, not both.")
        self._api_key = api_key
        self._token = token
        self._kept: tuple[str, float] | None = None
        self._fetching = asyncio.Lock()

    async def get(self) -> Shown:
        """What to show now. Many that ask at once wait for one token; what a function raises is raised.

        Raises `ConfigurationError` where it answers something else than a token.
        """
        if not callable(self._token):
            key = self._token if self._api_key is None else self._api_key
            return Shown(await _asked(key) if callable(key) else key, fresh=True)
        if (kept := self._still_good()) is not None:
            return Shown(kept, fresh=False)
        async with self._fetching:
            if (kept := self._still_good()) is not None:
                return Shown(kept, fresh=True)
            began = time.monotonic()
            given = await _asked(self._token)
            if given is None or isinstance(given, str):
                text, seconds = given, float("inf")
            elif isinstance(text := given.get("token"), str):
                seconds = float(given.get("expires_seconds", "inf"))
            else:
                raise ConfigurationError(
                    "What `token` answered holds no token; let it answer what the gateway said to POST /v1/tokens."
                )
            self._kept = (text, began + _USED_SHARE * seconds) if text else None
            return Shown(text, fresh=True)

    def renews(self, shown: Shown) -> bool:
        """Whether what was refused can be asked for again with a fresh token."""
        if shown.fresh:
            return False
        if self._kept is not None and self._kept[0] == shown.text:
            # Unless another request has done so already.
            self._kept = None
        return True

    def _still_good(self) -> str | None:
        return self._kept[0] if self._kept is not None and time.monotonic() < self._kept[1] else None


async def _asked(source: Callable[[], Any]) -> Any:
    given = source()
    return await given if inspect.isawaitable(given) else given
