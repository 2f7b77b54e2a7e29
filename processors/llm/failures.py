"""What a model server's refusals and broken answers mean: one code each, and whether to try again."""

from __future__ import annotations

import logging
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any, Final

from pydantic_core import from_json

from processors.upstream import Answer

logger = logging.getLogger("outlast.worker")

_MAX_BODY_BYTES: Final = 64 * 1024
_MAX_SAID: Final = 500
# By OpenAI's code, or by how vLLM, llama.cpp, Ollama and others say it.
_CONTEXT: Final = re.compile(
    r"context_length_exceeded|exceed_context_size|context (length|size|window)|maximum (model|context) length"
    r"|prompt is too long|too many tokens",
    re.I,
)
_MODEL: Final = re.compile(
    r"model_not_found|model .{0,200}(not found|does ?n[o']t exist|not exist|unknown)", re.I | re.S
)
# What no waiting mends: an empty account.
_QUOTA: Final = re.compile(r"insufficient_quota|billing", re.I)


class LlmFailure(Exception):
    """No answer, or only a part of one. `code` is stable, `detail` is for the client."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        passing: bool = False,
        status: int = 500,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.passing = passing
        """Whether the same request may fare better later."""
        self.status = status
        """422 where the request is to blame, 500 where it isn't."""
        self.retry_after_seconds = retry_after_seconds


def broken_off() -> LlmFailure:
    """The stream ended in the midst of an answer."""
    return LlmFailure("llm_broke_off", "The upstream's stream ended before the model's answer did.", passing=True)


def not_json() -> LlmFailure:
    """A chunk, or the whole answer, is not what it should be."""
    return LlmFailure("llm_garbage", "What the upstream sent is no JSON of OpenAI's form.", passing=True)


def said_in_stream(error: Any) -> LlmFailure:
    """An error in the midst of a stream that had begun with 200."""
    code = error.get("code") if isinstance(error, dict) else None
    return _failure(code if isinstance(code, int) else 500, error, None)


async def refusal(answer: Answer) -> LlmFailure:
    """What another status than 200 means."""
    body = bytearray()
    async for piece in answer.pieces():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            break
    error: Any = None
    try:
        document = from_json(body)
        error = document.get("error", document.get("message")) if isinstance(document, dict) else None
    except ValueError:
        pass
    headers = dict(answer.headers)
    return _failure(answer.status, error, _retry_after(headers.get("retry-after-ms"), headers.get("retry-after")))


def _failure(status: int, error: Any, retry_after: float | None) -> LlmFailure:
    said = error.get("message") if isinstance(error, dict) else error
    said = re.sub(r"\s+", " ", said).strip()[:_MAX_SAID] if isinstance(said, str) else ""
    marks = f"{error.get('code')} {error.get('type')} {said}" if isinstance(error, dict) else said
    detail = f"The upstream answered {status}" + (f": {said}" if said else ".")
    if status in {401, 403}:
        # Its text may show a part of our key; the client can do nothing with it anyway.
        logger.error("the model server refuses OUTLAST_LLM_KEY: %s", detail)
        return LlmFailure("llm_unauthorized", "The upstream refuses the gateway's key; its operator has to mend that.")
    if status == 429:
        passing = _QUOTA.search(marks) is None
        return LlmFailure("llm_rate_limited", detail, passing=passing, retry_after_seconds=retry_after)
    if _CONTEXT.search(marks):
        return LlmFailure("llm_context_too_long", detail, status=422)
    if _MODEL.search(marks) and (status in {400, 404, 500}):
        return LlmFailure("llm_unknown_model", detail, status=422)
    if status in {408, 409, 425} or status >= 500:
        return LlmFailure("llm_upstream_failed", detail, passing=True, retry_after_seconds=retry_after)
    return LlmFailure("llm_refused", detail, status=422)


def _retry_after(milliseconds: str | None, text: str | None) -> float | None:
    """How long the upstream asks to wait; None where it doesn't say, or not so that it can be read."""
    if milliseconds is not None and milliseconds.isascii() and milliseconds.isdigit():
        return int(milliseconds[:9]) / 1000
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text, re.ASCII):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
