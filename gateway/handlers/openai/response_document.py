"""A job of the kind `llm` as OpenAI's `response` object, from its record, its result, or what its log holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

from aiohttp import web
from pydantic_core import from_json

from gateway.errors import OutlastError
from gateway.event_text import decode_event
from gateway.handlers.context import STORE
from gateway.handlers.openai.errors import error_document
from gateway.protocol import START, State
from gateway.store import JobRecord

_STATUSES: Final = {
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_TOOL_CALL: Final = "tool_call."


@dataclass(frozen=True, slots=True)
class Asked:
    """What a response's request was, as far as the response says it again."""

    model: str
    kept: dict[str, Any]

    @classmethod
    def read(cls, text: bytes) -> Self:
        """From the job's input, which keeps it."""
        input_ = from_json(text)
        return cls(str(input_.get("model", "")), input_.get("responses") or {})

    @property
    def background(self) -> bool:
        """Whether the caller didn't wait."""
        return bool(self.kept.get("background"))


def response_document(
    record: JobRecord,
    asked: Asked,
    *,
    status: str | None = None,
    result: dict[str, Any] | None = None,
    error: OutlastError | None = None,
    partial: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The response. `partial` are the items of an answer that was never whole."""
    incomplete = _INCOMPLETE.get(result["finish_reason"]) if result is not None else None
    status = status or ("incomplete" if incomplete else _STATUSES[record.state])
    kept = asked.kept
    failed = error is not None and status == "failed"
    said = error_document(error) if error is not None and failed else None
    return {
        "id": response_id(record),
        "object": "response",
        "created_at": record.created_ms // 1000,
        "status": status,
        "background": asked.background,
        "error": None if said is None else {"code": said["code"], "message": said["message"]},
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "instructions": kept.get("instructions"),
        "max_output_tokens": kept.get("max_output_tokens"),
        "metadata": kept.get("metadata") or {},
        "model": asked.model if result is None else result["model"],
        "output": items(record, result) if result is not None else partial or [],
        "parallel_tool_calls": kept.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": kept.get("reasoning") or {"effort": None, "summary": None},
        "store": True,
        "temperature": kept.get("temperature"),
        "text": kept.get("text") or {"format": {"type": "text"}},
        "tool_choice": kept.get("tool_choice") or "auto",
        "tools": kept.get("tools") or [],
        "top_p": kept.get("top_p"),
        "truncation": "disabled",
        "usage": _usage(result["usage"]) if result is not None and result["usage"] else None,
        "user": kept.get("user"),
    }


def response_id(record: JobRecord) -> str:
    """The id that OpenAI's packages know it by."""
    return f"resp_{record.id}"


def item_id(job: str, channel: str) -> str:
    """The id of what a channel's text belongs to."""
    prefix = "rs" if channel == "reasoning" else "fc" if channel.startswith(_TOOL_CALL) else "msg"
    suffix = "" if channel in {"text", "reasoning"} else "_" + channel.removeprefix(_TOOL_CALL)
    return f"{prefix}_{job}{suffix}"


def items(record: JobRecord, result: dict[str, Any]) -> list[dict[str, Any]]:
    """A result's output items, in the order in which they began."""
    return [item(record.id, channel, *_said(result, channel)) for channel in result["channels"]]


def item(
    job: str, channel: str, text: str, call: dict[str, Any] | None = None, status: str = "completed"
) -> dict[str, Any]:
    """One output item: a message, what was thought, or (with `call`) a function that is to be called."""
    head = {"id": item_id(job, channel), "status": status}
    if call is not None:
        return head | {"type": "function_call", "call_id": call["id"], "name": call["name"], "arguments": text}
    parts = [part(channel, text)] if text else []
    if channel == "reasoning":
        return head | {"type": "reasoning", "summary": [], "content": parts}
    return head | {"type": "message", "role": "assistant", "content": parts}


def part(channel: str, text: str) -> dict[str, Any]:
    """The content of an item."""
    match channel:
        case "reasoning":
            return {"type": "reasoning_text", "text": text}
        case "refusal":
            return {"type": "refusal", "refusal": text}
        case _:
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _said(result: dict[str, Any], channel: str) -> tuple[str, dict[str, Any] | None]:
    if channel.startswith(_TOOL_CALL):
        call = next(one for one in result["tool_calls"] if one["channel"] == channel)
        return call["arguments"], call
    return result[channel] or "", None


async def partial_items(app: web.Application, record: JobRecord) -> list[dict[str, Any]]:
    """What the newest attempt had said, from the log: a failure takes nothing back that listeners have read.

    Nothing where the log's begin is not kept any more.
    """
    said: dict[str, list[str]] = {}
    calls: dict[str, dict[str, Any]] = {}
    after = START
    while True:
        page = await app[STORE].events(record.id, after)
        if page.broken:
            return []
        for entry in page.entries:
            match entry.type:
                case b"started":
                    said, calls = {}, {}
                case b"delta":
                    data = decode_event(entry.text).data
                    said.setdefault(data["channel"], []).append(data["text"])
                case b"llm.tool_call":
                    data = decode_event(entry.text).data
                    said.setdefault(f"{_TOOL_CALL}{data['index']}", [])
                    calls[f"{_TOOL_CALL}{data['index']}"] = data
            after = entry.cursor
        if not page.entries or after.number >= page.head.number:
            break
    return [
        item(record.id, channel, "".join(pieces), calls.get(channel), "incomplete") for channel, pieces in said.items()
    ]


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Chat's names for tokens in the words of responses."""
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.get("total_tokens") or prompt + completion,
    }
