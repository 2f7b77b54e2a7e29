"""The kind `http`: calls a slow HTTP upstream and waits for as long as it takes; its answer is the job's result.

While it waits, listeners hear what there is: `http.response` as soon as the upstream has answered with a status and
headers, then the body of a stream (Server-Sent Events, NDJSON, text in chunks) as `delta` events of the channel `body`,
as it comes. A small text is a part of the result; anything else is the output `body`.

A request is repeated only where that is safe: it never reached the upstream, its method is idempotent, it carries an
Idempotency-Key, or its sender says so. What may have been done and is not safe to repeat fails instead.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from processors.backoff import retry_delay
from processors.context import Context
from processors.errors import Rejected, Retry
from processors.processor import processor
from processors.upstream import IDEMPOTENT_METHODS, Answer, UpstreamError, configured

BODY: Final = "body"
# A longer body is an output of its own: the result stands in an event and in the job's record.
INLINE_BYTES: Final = 64 * 1024
# Of a stream that is relayed; the log is no file store. What is longer is in the output, whole.
MAX_RELAYED_BYTES: Final = 4 * 1024 * 1024
_TEXT: Final = re.compile(r"(text/.+|application/(.+\+)?json|application/(x-ndjson|xml|x-www-form-urlencoded)|.+\+xml)")
_STREAMS: Final = frozenset({"text/event-stream", "application/x-ndjson", "application/jsonl", "application/json-seq"})
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]{0,8000}")
_MAX_HEADERS: Final = 100
# What the caller is to blame for; everything else is the upstream's, or nobody's.
_CALLERS: Final = frozenset({"upstream_not_http", "upstream_bad_url", "upstream_not_allowed", "upstream_private"})

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def _checked(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > _MAX_HEADERS:
        raise ValueError(f"there are more than {_MAX_HEADERS}")
    for name, value in headers.items():
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name[:40]!r} is no header's name")
        if _VALUE.fullmatch(value) is None:
            raise ValueError(f"the value of {name} has line breaks or control characters, or is too long")
    return headers


class HttpInput(BaseModel):
    """A request to an upstream. A body that is not text comes as the job's file."""

    model_config = ConfigDict(extra="forbid")

    # The gateway knows this format: a URL that may not be called is refused at the submit, and the path of a slow route
    # becomes its upstream's URL there.
    url: str = Field(
        max_length=8192,
        description="A listed upstream's URL, or the path of a slow route.",
        json_schema_extra={"format": "upstream-url"},
    )
    method: Method = "GET"
    headers: Annotated[dict[str, str], AfterValidator(_checked)] = Field(default_factory=dict)
    body: str | None = Field(None, description="As text; bytes come as the job's file instead.")
    idempotent: bool | None = Field(
        None, description="Whether doing it twice does no harm; by default the method or an Idempotency-Key says so."
    )
    retries: int = Field(2, ge=0, le=4, description="So many more tries, where one is safe.")

    @property
    def is_repeatable(self) -> bool:
        """Whether the upstream may get the request twice."""
        if self.idempotent is not None:
            return self.idempotent
        return self.method in IDEMPOTENT_METHODS or any(name.lower() == "idempotency-key" for name in self.headers)


class HttpResult(BaseModel):
    """An upstream's answer. Exactly one of `text` and `body_url` is set."""

    url: str = Field(description="Where the answer came from, after redirects.")
    status: int
    headers: list[tuple[str, str]] = Field(description="In order, names in lower case, without those of a connection.")
    size: int = Field(description="Bytes of the body.")
    text: str | None = Field(None, description="The body: UTF-8 text of at most 64 KiB.")
    body_url: str | None = Field(None, description="Where the body is: the output `body`.")


@processor("http", files="optional", waits=True, max_attempts=5, run_timeout_seconds=86_400, setup=configured)
async def http(ctx: Context, input: HttpInput) -> HttpResult:
    """Calls a slow HTTP upstream, waits as long as it takes, and keeps its answer."""
    if ctx.attempt > 1 and not input.is_repeatable:
        raise Rejected(
            f"A worker stopped while the upstream had this {input.method}; whether it was done is not known, and it is"
            " not repeated, since that may do it twice. Send an Idempotency-Key that the upstream understands, or set"
            " `idempotent`, if it may be.",
            "upstream_unknown",
            status=500,
        )
    body = await _body(ctx, input)
    tries = 0
    while True:
        try:
            # To wait for a slow answer is what this kind is for; one that has begun may be missed when it falls silent.
            call = configured().call(input.method, input.url, headers=input.headers, body=body, patient=True)
            async with call as answer:
                return await _Reception(ctx, answer).receive()
        except UpstreamError as error:
            tries += 1
            safe = error.passing and (input.is_repeatable or not error.sent)
            if not safe or max(tries, ctx.attempt) > input.retries:
                status = 422 if error.code in _CALLERS else 500
                raise Rejected(error.detail, error.code, status=status) from error
            if error.sent:
                # As another attempt: listeners drop what they have of this one's answer.
                raise Retry(None, error.detail, error.code) from error
            delay = retry_delay(tries)
            await ctx.log(f"{error.detail} The next try is in {delay:.1f} s.", "warning")
            await asyncio.sleep(delay)


async def _body(ctx: Context, input: HttpInput) -> bytes | Path | None:
    if len(ctx.files) > 1 or (ctx.files and input.body is not None):
        raise Rejected("A request has one body: `body`, or one file.", status=422)
    if ctx.files:
        return await ctx.files[0].path()
    return None if input.body is None else input.body.encode()


class _Reception:
    """An answer while it is received."""

    def __init__(self, ctx: Context, answer: Answer) -> None:
        self._ctx = ctx
        self._answer = answer
        media_type = answer.content_type.split(";", 1)[0].strip().lower()
        is_text = _TEXT.fullmatch(media_type) is not None and not answer.encoded
        self._is_text = is_text
        self._relays = is_text and (media_type in _STREAMS or answer.length is None)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._size = 0

    async def receive(self) -> HttpResult:
        """Read the whole body; returns the result."""
        ctx, answer = self._ctx, self._answer
        await ctx.event("http.response", {"status": answer.status, "headers": answer.headers})
        pieces = self._pieces()
        begin = bytearray()
        async for piece in pieces:
            begin += piece
            if len(begin) > INLINE_BYTES:
                break
        result = HttpResult(url=answer.url, status=answer.status, headers=answer.headers, size=0)
        if len(begin) <= INLINE_BYTES and (text := self._as_text(begin)) is not None:
            result.text = text
        else:
            data = bytes(begin) if len(begin) <= INLINE_BYTES else _joined(bytes(begin), pieces)
            await ctx.output(BODY, data=data, content_type=answer.content_type or None)
            result.body_url = f"/v1/jobs/{ctx.job_id}/outputs/{BODY}"
        result.size = self._size
        return result

    def _as_text(self, body: bytearray) -> str | None:
        if not body:
            return ""
        if not self._is_text:
            return None
        try:
            return body.decode()
        except UnicodeDecodeError:
            return None

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The body's pieces, which listeners hear too."""
        async for piece in self._answer.pieces():
            self._size += len(piece)
            if self._relays:
                await self._relay(piece)
            if self._size > INLINE_BYTES:
                await self._ctx.progress(self._size, self._answer.length, unit="bytes")
            yield piece
        if self._relays and (rest := self._decoder.decode(b"", final=True)):
            await self._ctx.delta(rest, BODY)

    async def _relay(self, piece: bytes) -> None:
        if self._size > MAX_RELAYED_BYTES:
            self._relays = False
            await self._ctx.log("The rest of this stream is only in the output `body`, at its end.", "warning")
        elif text := self._decoder.decode(piece):
            await self._ctx.delta(text, BODY)


async def _joined(begin: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begin
    async for piece in rest:
        yield piece
