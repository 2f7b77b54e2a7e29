"""`POST /openai/v1/chat/completions`: a chat's answer, as one JSON or as a stream of chunks."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from gateway.errors import FOR_CLIENTS, OutlastError
from gateway.event_text import decode_event
from gateway.handlers.context import HUB
from gateway.handlers.openai.asking import (
    ANSWERS,
    DISCONNECT,
    IDEMPOTENCY,
    ask,
    check_messages,
    flag,
    held_result,
    read_object,
)
from gateway.handlers.openai.errors import error_body
from gateway.handlers.openai.translation import Translator, begin_stream, delta_of, ended
from gateway.handlers.results import result_of
from gateway.handlers.routes import Route
from gateway.handlers.validation import wrong_field
from gateway.hub import Frame, Pulse
from gateway.protocol import Cursor
from gateway.store import JobRecord

_FORM: Final = "openai.chat"
_FIELDS: Final = {b"text": b"content", b"reasoning": b"reasoning_content", b"refusal": b"refusal"}
_TOOL_CALL: Final = re.compile(rb"tool_call\.([0-9]{1,3})")
_DONE: Final = b"data: [DONE]\n\n"


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /openai/v1/chat/completions`."""
    body = await read_object(request)
    streams = flag(body, "stream")
    options = body.pop("stream_options", None) or {}
    if not isinstance(options, dict):
        raise wrong_field("stream_options", "not an object")
    check_messages(body)
    submitted = await ask(request, body)
    model = str(body.get("model", ""))
    # Images are tens of megabytes, and the answer may take an hour.
    del body
    if not streams:
        return await held_result(request, submitted, _completion)
    response = await begin_stream(request, submitted)
    if (transport := request.transport) is None:
        return response
    chunked = bool(response.chunked) or request.version >= (1, 1)
    listener = _Chunks(request.app[HUB].pulse, transport, submitted.record, model, chunked=chunked)
    listener.say(listener.chunk(b'{"role":"assistant","content":""}'))
    end = await ended(request, listener)
    try:
        if isinstance(end, OutlastError):
            raise end
        listener.say(_last_chunks(listener, await result_of(request.app, end), bool(options.get("include_usage"))))
    except FOR_CLIENTS as error:
        listener.say(listener.error(error))
    await response.write_eof()
    return response


class _Chunks(Translator):
    """Sends `chat.completion.chunk` objects."""

    def __init__(
        self, pulse: Pulse, transport: asyncio.WriteTransport, record: JobRecord, model: str, *, chunked: bool
    ) -> None:
        super().__init__(pulse, transport, record, chunked=chunked)
        self.head = to_json(_head(record, "chat.completion.chunk", model))[:-1]

    def chunk(self, delta: bytes, finish_reason: bytes = b"null") -> bytes:
        """A chunk with one choice."""
        return b'data: %b,"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (
            self.head,
            delta,
            finish_reason,
        )

    def delta(self, frame: Frame) -> bytes:
        return frame.form(_FORM, self._translate)

    def _translate(self, frame: Frame) -> bytes:
        channel, text = delta_of(frame.text)
        if (field := _FIELDS.get(channel)) is not None:
            return self.chunk(b'{"%b":%b}' % (field, text))
        if (match := _TOOL_CALL.fullmatch(channel)) is not None:
            return self.chunk(b'{"tool_calls":[{"index":%b,"function":{"arguments":%b}}]}' % (match[1], text))
        return b""

    def tool_call(self, frame: Frame) -> bytes:
        data = decode_event(frame.text).data
        function = {"name": data["name"], "arguments": ""}
        call = {"index": data["index"], "id": data["id"], "type": "function", "function": function}
        return self.chunk(to_json({"tool_calls": [call]}))

    def snapshot(self, cursor: Cursor, text: dict[str, str]) -> bytes:
        return b"".join(
            self.chunk(b'{"%b":%b}' % (_FIELDS[channel.encode()], to_json(said))) for channel, said in text.items()
        )

    def error(self, error: OutlastError) -> bytes:
        return b"data: %b\n\n" % error_body(error)


def _last_chunks(listener: _Chunks, result: dict[str, Any], with_usage: bool) -> bytes:
    end = listener.chunk(b"{}", to_json(result["finish_reason"]))
    if with_usage:
        end += b'data: %b,"choices":[],"usage":%b}\n\n' % (listener.head, to_json(result["usage"]))
    return end + _DONE


def _head(record: JobRecord, object_: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{record.id}",
        "object": object_,
        "created": record.created_ms // 1000,
        "model": model,
    }


async def _completion(record: JobRecord, result: dict[str, Any] | None, _: OutlastError | None) -> dict[str, Any]:
    """A whole answer."""
    assert result is not None
    message: dict[str, Any] = {"role": "assistant", "content": result["text"] or None, "refusal": result["refusal"]}
    if result["reasoning"] is not None:
        message["reasoning_content"] = result["reasoning"]
    if result["tool_calls"]:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in result["tool_calls"]
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": result["logprobs"], "refusal": None} if result["logprobs"] else None,
        "finish_reason": result["finish_reason"],
    }
    return _head(record, "chat.completion", result["model"]) | {"choices": [choice], "usage": result["usage"]}


routes: Final = (
    Route(
        "POST",
        "/openai/v1/chat/completions",
        chat_completions,
        "Chat, as in OpenAI's API",
        "For OpenAI's packages with this gateway as their `base_url`. `stream` sends chunks as they come and ends with"
        " `[DONE]`; otherwise the answer is held and white space comes before it.",
        responses=ANSWERS,
        parameters=(IDEMPOTENCY, DISCONNECT),
        held=True,
    ),
)
