"""Reading a request's body: asked for when all that can be refused without it has been, and counted as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from gateway.errors import TooLarge
from gateway.handlers.context import SETTINGS
from gateway.handlers.strict_json import read_json


async def body_chunks(request: web.Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, counted as they come in."""
    await ask_for_body(request)
    content = request.content
    while chunk := await content.readany():
        if content.total_bytes > limit:
            raise body_too_large(limit)
        yield chunk


async def small_json(request: web.Request, most: int, too_large: TooLarge) -> Any:
    """An optional small JSON body; an empty object where there is none.

    Raises `too_large` for more than `most` bytes, and what `read_json` does.
    """
    body = bytearray()
    async for chunk in body_chunks(request, request.app[SETTINGS].max_upload_bytes):
        body += chunk
        if len(body) > most:
            raise too_large
    return read_json(body, "The body") if body.strip() else {}


async def ask_for_body(request: web.Request) -> None:
    """Ask for the body, if the client waits to be asked: all that can be refused without it has been."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # aiohttp's own way: the interim answer is no part of the final one.
        request.writer.output_size = 0


async def expect_later(request: web.Request) -> None:
    """aiohttp's answer to `Expect` comes before any check; ours comes when the body is read (`ask_for_body`)."""


def check_length(request: web.Request, limit: int) -> None:
    """Raise `TooLarge` for a body that says itself that it is larger than this."""
    if request.content_length is not None and request.content_length > limit:
        raise body_too_large(limit)


def body_too_large(limit: int) -> TooLarge:
    """What a body of more bytes than `limit` is answered with."""
    return TooLarge(
        f"The body is larger than the limit of {limit} bytes (OUTLAST_MAX_UPLOAD_BYTES).", limit_bytes=limit
    )
