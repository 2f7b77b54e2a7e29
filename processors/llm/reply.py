"""A model's answer while it comes: chunks of OpenAI's form in, reports to the context and the whole result out."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, Field
from pydantic_core import to_json

from processors.context import Context
from processors.llm.failures import not_json
from processors.text import clean

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
            self._model = clean(chunk["model"])
        choices = chunk.get("choices")
        if choices is None and isinstance(chunk.get("usage"), dict):
            # Some send the usage by itself.
            return
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
                if isinstance(text, list):
                    self._take_parts(channel, text)
                self._say(channel, text)
        if calls := said.get("tool_calls"):
            if not isinstance(calls, list):
                raise not_json()
            for call in calls:
                self._take_call(call)
        if isinstance(choice.get("logprobs"), dict):
            self._logprobs += [one for one in choice["logprobs"].get("content") or () if isinstance(one, dict)]
        if isinstance(choice.get("finish_reason"), str):
            # Some say an empty one until there is one.
            self.finish_reason = choice["finish_reason"] or self.finish_reason

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

    def _take_parts(self, channel: str, parts: list[Any]) -> None:
        """Read a text that comes as parts, as Mistral's models have it, whose thoughts are parts as well."""
        for part in parts:
            if not isinstance(part, dict):
                raise not_json()
            if isinstance(thoughts := part.get("thinking"), list):
                self._take_parts(REASONING, thoughts)
            self._say(REASONING, part.get("thinking"))
            self._say(channel, part.get("text"))

    def _take_call(self, call: object) -> None:
        if not isinstance(call, dict) or not isinstance(function := call.get("function") or {}, dict):
            raise not_json()
        index, id, name = call.get("index"), call.get("id") or "", function.get("name") or ""
        if index is not None and (not isinstance(index, int) or not 0 <= index < _MAX_TOOL_CALLS):
            raise not_json()
        known = self._known_call(index, id, name) or self._begin_call(index, clean(str(id)), clean(str(name)))
        arguments = function.get("arguments")
        # OpenAI sends JSON as a text; some send what it means.
        self._say(known.channel, to_json(arguments).decode() if isinstance(arguments, dict) else arguments)

    def _known_call(self, index: int | None, id: object, name: object) -> _Call | None:
        """The call that a chunk goes on with; None where it begins one.

        The index says it in OpenAI's form. Some servers leave it out or say 0 for each call, but then name each; others
        make up a new id for each chunk, but name the first only.
        """
        for call in self._calls.values():
            if id and call.id == id:
                return call
        if name and (id or index is None):
            return None
        return self._calls.get(max(self._calls, default=0) if index is None else index)

    def _begin_call(self, index: int | None, id: str, name: str) -> _Call:
        if index is None or index in self._calls:
            index = max(self._calls, default=-1) + 1
            if index >= _MAX_TOOL_CALLS:
                raise not_json()
        call = self._calls[index] = _Call(index, id or f"call_{self._ctx.job_id}_{index}", name)
        self._said[call.channel] = []
        self.has_spoken = True
        self._untold.append(call)
        return call

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
        said = {channel: clean("".join(pieces)) for channel, pieces in self._said.items()}
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
