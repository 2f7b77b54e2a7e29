"""The kind `llm`: asks a language model behind any OpenAI-compatible upstream, and tells what it says as it says it.

Text, reasoning, a refusal and the arguments of each tool call are `delta` events on channels of their own; where a tool
call begins there is an `llm.tool_call`. The result has all of it whole, with the finish reason and the usage.

It speaks through `processors.upstream`, as every built-in kind that calls somebody, and not through the `openai`
package: that brings an HTTP client of its own, which would need the guard on addresses a second time, retries behind
our back, and builds a model object for each token, which is what a worker would spend most of its time on.

Before the first token a failure that may pass is retried, later if the upstream says when. After it the job fails and
keeps what was said: a second answer would begin with other words, and listeners have read these.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from gateway.config import load_settings
from gateway.errors import ConfigurationError
from gateway.sse import Decoder
from gateway.upstreams import Upstreams
from processors.backoff import RETRY_MOST_SECONDS
from processors.context import Context
from processors.errors import ProcessorError, Rejected, Retry
from processors.llm.failures import LlmFailure, broken_off, not_json, refusal, said_in_stream
from processors.llm.reply import LlmResult, Reply
from processors.processor import processor
from processors.upstream import Answer, Upstream, UpstreamError

# With back-off about a quarter of a minute; an upstream that is restarted is there again.
_MAX_TRIES: Final = 5
# A server that says nothing is waited for as long as a model may think, each time. Once more is for one that was stuck
# with that request alone; whoever asks then hears of it after twice that time, and not after five times.
_SILENT_TRIES: Final = 2
# A whole answer that was not streamed, and a list of models.
_MAX_WHOLE_BYTES: Final = 16 * 1024 * 1024
_MODEL: Final = r"^[!-~]{1,200}$"


class LlmInput(BaseModel):
    """What is asked of a model: `messages` or `prompt`, and any other parameter of the upstream's, as it stands.

    A request that is too large for an input comes as the job's file, a JSON object with the same fields.
    """

    model_config = ConfigDict(extra="allow")

    model: str = Field(pattern=_MODEL)
    messages: list[dict[str, Any]] | None = Field(None, description="A chat, as in OpenAI's chat completions.")
    prompt: str | None = Field(None, description="A text to go on with, as in OpenAI's completions.")
    n: int = Field(1, ge=1, le=1, description="A job is one answer; for more, submit more jobs.")
    responses: dict[str, Any] | None = Field(
        None, description="What the door for OpenAI's Responses API was asked besides; not sent to the upstream."
    )

    def asked(self) -> dict[str, Any]:
        """What the upstream is asked."""
        own = {"model": self.model, "messages": self.messages, "prompt": self.prompt}
        dropped = {"stream", "stream_options", "background", "store"}
        passed = {name: value for name, value in (self.model_extra or {}).items() if name not in dropped}
        return passed | {name: value for name, value in own.items() if value is not None}


class LlmModels(BaseModel):
    """The models that can be asked."""

    models: list[str]


class _Llm:
    """The upstream of this worker's settings."""

    def __init__(self, upstream: Upstream, url: str, key: str, models: tuple[str, ...]) -> None:
        self.upstream = upstream
        self.url = url.rstrip("/")
        self.models = models
        self.headers = {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"


@lru_cache(maxsize=1)
def configured() -> _Llm:
    """The model server of this worker's settings. Raises `ConfigurationError`."""
    settings = load_settings()
    if not settings.llm_url:
        raise ConfigurationError("The kind llm needs OUTLAST_LLM_URL, such as http://127.0.0.1:8000/v1.")
    upstream = Upstream(
        Upstreams([settings.llm_url], settings.upstream_networks),
        connect_seconds=settings.upstream_connect_seconds,
        idle_seconds=settings.upstream_idle_seconds,
        max_bytes=settings.max_upstream_bytes,
    )
    return _Llm(upstream, settings.llm_url, settings.llm_key.get_secret_value(), settings.llm_models)


@processor(
    "llm",
    files="optional",
    content_types=["application/json"],
    waits=True,
    max_attempts=_MAX_TRIES + 3,
    run_timeout_seconds=86_400,
    setup=configured,
)
async def llm(ctx: Context, input: LlmInput) -> LlmResult:
    """Asks a language model, and streams its answer."""
    input = await _whole(ctx, input)
    if (input.messages is None) == (input.prompt is None):
        raise Rejected("Ask with `messages` or with `prompt`, and not with both.", status=422)
    if configured().models and input.model not in configured().models:
        known = ", ".join(configured().models)
        raise Rejected(f"There is no model {input.model!r} here; there are: {known}.", "llm_unknown_model", status=422)
    reply = Reply(ctx, input.model)
    try:
        await _ask(input, reply)
    except (LlmFailure, UpstreamError) as error:
        raise _ending(error, ctx.attempt, has_spoken=reply.has_spoken) from error
    return reply.result()


@processor(
    "llm.models",
    listed=False,
    waits=True,
    max_attempts=1,
    run_timeout_seconds=60,
    retention_seconds=60,
    setup=configured,
)
async def llm_models(ctx: Context) -> LlmModels:
    """Lists the models that the kind llm can ask."""
    asked = configured()
    if asked.models:
        return LlmModels(models=list(asked.models))
    try:
        async with asked.upstream.call("GET", f"{asked.url}/models", headers=asked.headers) as answer:
            if answer.status != 200:
                raise await refusal(answer)
            document = _read(await _all(answer))
    except (LlmFailure, UpstreamError) as error:
        raise _ending(error, _MAX_TRIES, has_spoken=False) from error
    listed = document.get("data")
    names = [one.get("id") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return LlmModels(models=sorted(name for name in names if isinstance(name, str) and re.match(_MODEL, name)))


async def _whole(ctx: Context, input: LlmInput) -> LlmInput:
    """The input with what came as a file."""
    if not ctx.files:
        return input
    if len(ctx.files) > 1:
        raise Rejected("A large request comes as one file.", status=422)
    try:
        document = from_json(await ctx.files[0].read())
        return LlmInput.model_validate(document | input.model_dump(exclude_unset=True))
    except (ValueError, TypeError):
        raise Rejected("The file is no JSON object with the fields of an input.", status=422) from None


async def _ask(input: LlmInput, reply: Reply) -> None:
    """Have the upstream answer. Raises `LlmFailure` and `UpstreamError`; cancelling closes the connection."""
    to = configured()
    path = "/chat/completions" if input.prompt is None else "/completions"
    body = to_json(input.asked() | {"stream": True, "stream_options": {"include_usage": True}})
    headers = to.headers | {"Accept": "text/event-stream"}
    async with to.upstream.call("POST", to.url + path, headers=headers, body=body) as answer:
        if answer.status != 200:
            raise await refusal(answer)
        if answer.content_type.partition(";")[0].strip().lower() == "application/json":
            # It doesn't stream.
            reply.take(_read(await _all(answer)))
            await reply.tell()
        else:
            try:
                await _listen(answer, reply)
            except (LlmFailure, UpstreamError):
                # What comes after the answer's end can't take it back.
                if reply.finish_reason is None:
                    raise
    if reply.finish_reason is None:
        raise broken_off()


async def _listen(answer: Answer, reply: Reply) -> None:
    """Hear a stream out, up to `[DONE]` or its end."""
    decoder = Decoder()
    async for piece in answer.pieces():
        try:
            messages = decoder.feed(piece)
        except ValueError:
            raise not_json() from None
        try:
            for message in messages:
                if message.data.startswith("[DONE]"):
                    return
                # Some keep the connection alive with nothing.
                if message.data:
                    reply.take(_read(message.data))
        finally:
            # Once for all that came together; and what was said before a broken chunk is kept.
            await reply.tell()


async def _all(answer: Answer) -> bytes:
    whole = bytearray()
    async for piece in answer.pieces():
        whole += piece
        if len(whole) > _MAX_WHOLE_BYTES:
            raise LlmFailure("upstream_too_large", f"The upstream's answer is over {_MAX_WHOLE_BYTES} bytes.")
    return bytes(whole)


def _read(text: str | bytes) -> dict[str, Any]:
    """A JSON object that is no error."""
    try:
        document = _decoded(text)
    except (ValueError, RecursionError):
        raise not_json() from None
    if not isinstance(document, dict):
        raise not_json()
    if document.get("error"):
        raise said_in_stream(document["error"])
    return document


def _decoded(text: str | bytes) -> Any:
    try:
        return from_json(text)
    except ValueError:
        # The quick one takes no half of a surrogate pair, as a server writes it that cuts text by bytes.
        return json.loads(text)


def _ending(error: LlmFailure | UpstreamError, attempt: int, *, has_spoken: bool) -> ProcessorError:
    """How an attempt ends that got no whole answer."""
    after = error.retry_after_seconds if isinstance(error, LlmFailure) else None
    status = error.status if isinstance(error, LlmFailure) else 500
    if has_spoken:
        return Rejected(f"{error.detail} What the model had said by then is kept.", error.code, status=status)
    waits_too_long = after is not None and after > RETRY_MOST_SECONDS
    tries = _SILENT_TRIES if error.code == "upstream_silent" else _MAX_TRIES
    if not error.passing or waits_too_long or attempt >= tries:
        more: dict[str, Any] = {} if after is None else {"retry_after_seconds": after}
        return Rejected(error.detail, error.code, status=status, **more)
    return Retry(after, error.detail, error.code)
