"""Tokens for pages: what an API key hands on, for one job or one kind, and for a short time."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web
from pydantic import BaseModel, Field

from gateway.errors import TooLarge
from gateway.handlers.body import small_json
from gateway.handlers.context import SETTINGS, STORE, known_kind, owned, principal
from gateway.handlers.documents import answer_with
from gateway.handlers.routes import Answer, Route
from gateway.handlers.validation import validated
from gateway.protocol import format_time
from gateway.requests import TokenRequest
from gateway.tokens import JobToken, SubmitToken, Token, encode_token

_MAX_BODY: Final = 16 * 1024
_LONG_BODY: Final = f"What a token is to allow is said in at most {_MAX_BODY} bytes."


class TokenDocument(BaseModel):
    """A token, for a page to send as `Authorization: Bearer`."""

    token: str
    expires_at: str = Field(description="By this gateway's clock.")
    expires_seconds: int = Field(description="How long that is, for who has another clock.")


async def create_token(request: web.Request) -> web.Response:
    """`POST /v1/tokens`."""
    asked = validated(TokenRequest, await small_json(request, _MAX_BODY, TooLarge(_LONG_BODY)))
    store, asking = request.app[STORE], principal(request)
    # Rounded up: it is good for at least as long as was asked for.
    expires = int(time.time()) + asked.expires_seconds + 1
    token: Token
    if asked.job is not None:
        # A mistyped id is found here, not by a page.
        record = await owned(store, asked.job, asking)
        token = JobToken(record.id, asked.cancel, expires)
    else:
        assert asked.kind is not None
        assert asked.user is not None
        kind = await known_kind(store, asked.kind)
        token = SubmitToken(kind.kind, asked.user, asked.max_waiting, expires)
    key = request.app[SETTINGS].api_keys.get(asking.owner)
    return answer_with(
        TokenDocument(
            token=encode_token(key.get_secret_value() if key is not None else "", token),
            expires_at=format_time(expires * 1000),
            expires_seconds=asked.expires_seconds,
        )
    )


routes: Final = (
    Route(
        "POST",
        "/v1/tokens",
        create_token,
        "Make a token for a page",
        "For a page that others open, in the place of your API key, which stays on your server. With `job` it reads"
        " that job; with `kind` and `user` it submits to the kind, and reads and cancels what this user submitted so."
        " Nothing is stored: a token ends when its time is over, or your key is taken out of force.",
        request=TokenRequest,
        responses={200: Answer("The token.", TokenDocument)},
    ),
)
