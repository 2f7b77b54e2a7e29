"""A scripted model server: deterministic tokens in OpenAI's form, with switches for all that can go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

MODEL = "scripted"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


class TokenSource:
    """Answers with `tokens`, each a chunk; the switches say what else happens."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[dict[str, Any]] = []
        """The bodies of the requests, in their order."""
        self.authorizations: list[str | None] = []
        self.cancelled = 0
        """Requests whose caller went away before their end."""
        self.tokens: list[str] = ["The", " answer", " is", " 42", "."]
        self.reasoning: list[str] = []
        self.tool_calls: list[tuple[str, list[str]]] = []
        """Functions, and the pieces of their arguments."""
        self.finish_reason = "stop"
        self.pause_seconds = 0.0
        """Between two tokens."""
        self.hold_after: int | None = None
        """Go on after so many tokens only when `go` is set."""
        self.hold_from = 1
        """The first request to which that applies."""
        self.go = asyncio.Event()
        self.cut_after: int | None = None
        """Close the connection after so many tokens."""
        self.end_after: int | None = None
        """End the stream properly after so many tokens, without a finish reason."""
        self.garbage_after: int | None = None
        self.error_after: int | None = None
        self.refusals: list[tuple[int, Any, dict[str, str]]] = []
        """Status, body and headers of the next answers, before the good ones."""
        self.streams = True
        """Whether it knows how to; otherwise it answers with one JSON."""
        self.silent = False
        """Whether it takes requests and doesn't answer."""
        self.script: list[bytes] | None = None
        """What comes instead of chunks of its own, each written by itself; an empty one cuts the connection."""

    @property
    def asked(self) -> int:
        """How many answers were asked for."""
        return len(self.seen)

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.tokens)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Either of the two routes that answer."""
        body = await request.json()
        self.seen.append(body)
        self.authorizations.append(request.headers.get("Authorization"))
        if self.refusals:
            status, document, headers = self.refusals.pop(0)
            return web.json_response(document, status=status, headers=headers)
        try:
            if self.silent:
                await self.go.wait()
            if not self.streams:
                message = {"role": "assistant", "content": self.text}
                choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
                return web.json_response({"model": MODEL, "choices": [choice], "usage": USAGE})
            return await self._stream(request, chat=request.path.endswith("/chat/completions"))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _stream(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        number = self.asked
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        if self.script is not None:
            await _play(self.script, request, response)
            return response

        async def say(delta: dict[str, Any], finish: str | None = None) -> None:
            choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
            choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
            await send({"id": "x", "model": MODEL, "choices": [choice]})

        async def send(document: dict[str, Any]) -> None:
            await response.write(b"data: %b\n\n" % json.dumps(document).encode())

        if chat:
            await say({"role": "assistant", "content": ""})
        for piece in self.reasoning:
            await say({"reasoning_content": piece})
        for index, token in enumerate(self.tokens):
            if index == self.hold_after and number >= self.hold_from:
                await self.go.wait()
            if index == self.cut_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if index == self.end_after:
                await response.write_eof()
                return response
            if index == self.garbage_after:
                await response.write(b'data: {"choices": [{"del\n\n')
            if index == self.error_after:
                await send({"error": {"message": "the GPU is on fire", "code": 500}})
            await say({"content": token})
            if self.pause_seconds:
                await asyncio.sleep(self.pause_seconds)
        for index, (name, pieces) in enumerate(self.tool_calls):
            for position, piece in enumerate(pieces):
                function: dict[str, Any] = {"arguments": piece} | ({} if position else {"name": name})
                call: dict[str, Any] = {"index": index, "function": function}
                await say({"tool_calls": [call | ({} if position else {"id": f"call_{index}", "type": "function"})]})
        await say({}, self.finish_reason)
        await send({"id": "x", "model": MODEL, "choices": [], "usage": USAGE})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(self, _: web.Request) -> web.Response:
        """The list of models."""
        return web.json_response({"object": "list", "data": [{"id": MODEL}, {"id": "another"}]})


async def _play(script: list[bytes], request: web.Request, response: web.StreamResponse) -> None:
    for piece in script:
        await response.write(piece)
        # Each by itself, so that it is received by itself.
        await asyncio.sleep(0.002)
        if not piece:
            assert request.transport is not None
            request.transport.abort()


@asynccontextmanager
async def token_source() -> AsyncIterator[TokenSource]:
    """A model server on a port of its own, for the length of the block."""
    source = TokenSource()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/v1/chat/completions", source.answer)
    app.router.add_post("/v1/completions", source.answer)
    app.router.add_get("/v1/models", source.models)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    source.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield source
    finally:
        source.go.set()
        await runner.cleanup()
