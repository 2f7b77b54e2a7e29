"""A model's answer while it comes: chunks of OpenAI's form in, reports to the context and the whole result out."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, Field

from processors.context import Context
from processors.llm.failures import not_json

TEXT: Final = "text"
REASONING: Final = "reasoning"
REFUSAL: Final = "refusal"
# Servers disagree about the name of the reasoning; nobody sends both.
_CHANNELS: Final = (("reasoning_content", REASONING), ("reasoning", REASONING), ("content", TEXT), ("refusal", REFUSAL))
# A channel each; a model that loops must not make more.
_MAX_TOOL_CALLS: Final = 128


class ToolCall(BaseModel):
    """A function that the model wants to be called. `arguments` is the model's text: JSON, if it does as it should."""

    id: str
    name: str
    arguments: str
    channel: str = Field(description="Of the deltas with its arguments.")


class LlmResult(BaseModel):
    """A model's whole answer."""

    model: str = Field(description="As the upstream says it.")
    text: str
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    channels: list[str] = Field(description="All channels that it spoke on, in the order in which they began.")
    finish_reason: str = Field(description="`stop`, `length`, `tool_calls`, `content_filter` or the upstream's own.")
    usage: dict[str, Any] | None = Field(None, description="Tokens, as the upstream counts them.")
    logprobs: list[dict[str, Any]] | None = Field(None, description="Where they were asked for.")


class _Call:
    def __init__(self, index: int, id: str, name: str) -> None:
        self.index = index
        self.channel = f"tool_call.{index}"
        self.id = id
        self.name = name


class Reply:
    """Takes the chunks one after the other, and tells in one go what those said that came together."""

    def __init__(self, ctx: Context, model: str) -> None:
        self.finish_reason: str | None = None
        self.has_spoken = False
        """Whether listeners have heard anything of this answer."""
        self._ctx = ctx
        self._model = model
        self._said: dict[str, list[str]] = {}
        self._untold: list[tuple[str, list[str]] | _Call] = []
        self._calls: dict[int, _Call] = {}
        self._usage: dict[str, Any] | None = None
        self._logprobs: list[dict[str, Any]] = []

    def take(self, chunk: dict[str, Any]) -> None:
        """Read one chunk. Raises `LlmFailure` for what is nothing of OpenAI's form."""
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        if isinstance(chunk.get("model"), str) and chunk["model"]:
            self._model = chunk["model"]
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise not_json()
        for choice in choices:
            if not isinstance(choice, dict):
                raise not_json()
            self._take_choice(choice)

    def _take_choice(self, choice: dict[str, Any]) -> None:
        # A chunk of a chat, a whole chat answer, or (with neither) a completion.
        said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        if not isinstance(said, dict):
            raise not_json()
        for field, channel in _CHANNELS:
            if text := said.get(field):
                self._say(channel, text)
        if calls := said.get("tool_calls"):
            if not isinstance(calls, list):
                raise not_json()
            for position, call in enumerate(calls):
                self._take_call(position, call)
        if isinstance(choice.get("logprobs"), dict):
            self._logprobs += [one for one in choice["logprobs"].get("content") or () if isinstance(one, dict)]
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]

    def _say(self, channel: str, text: object) -> None:
        if not isinstance(text, str) or not text:
            return
        self.has_spoken = True
        self._said.setdefault(channel, []).append(text)
        last = self._untold[-1] if self._untold else None
        if isinstance(last, tuple) and last[0] == channel:
            last[1].append(text)
        else:
            self._untold.append((channel, [text]))

    def _take_call(self, position: int, call: object) -> None:
        if not isinstance(call, dict) or not isinstance(function := call.get("function") or {}, dict):
            raise not_json()
        index = call.get("index", position)
        if not isinstance(index, int) or not 0 <= index < _MAX_TOOL_CALLS:
            raise not_json()
        known = self._calls.get(index)
        if known is None:
            id, name = call.get("id") or f"call_{self._ctx.job_id}_{index}", function.get("name") or ""
            known = self._calls[index] = _Call(index, str(id), str(name))
            self._said[known.channel] = []
            self.has_spoken = True
            self._untold.append(known)
        self._say(known.channel, function.get("arguments"))

    async def tell(self) -> None:
        """Report what the chunks said since the last time, in its order; a channel's tokens as one text."""
        untold, self._untold = self._untold, []
        for one in untold:
            if isinstance(one, _Call):
                await self._ctx.event("llm.tool_call", {"index": one.index, "id": one.id, "name": one.name})
            else:
                channel, pieces = one
                await self._ctx.delta("".join(pieces), channel)

    def result(self) -> LlmResult:
        """All of it."""
        said = {channel: "".join(pieces) for channel, pieces in self._said.items()}
        return LlmResult(
            model=self._model,
            text=said.get(TEXT, ""),
            reasoning=said.get(REASONING),
            refusal=said.get(REFUSAL),
            tool_calls=[
                ToolCall(id=call.id, name=call.name, arguments=said[call.channel], channel=call.channel)
                for _, call in sorted(self._calls.items())
            ],
            channels=list(said),
            finish_reason=self.finish_reason or "stop",
            usage=self._usage,
            logprobs=self._logprobs or None,
        )
