"""What the client sees of a step: the events of its job, told as events of the job that it is a step of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gateway.event_text import encode_event_tail
from gateway.protocol import Event, EventType

if TYPE_CHECKING:
    from processors.context import Context
    from processors.writer import Writer

_MAX_NAME: Final = 64
_DIGEST_CHARACTERS: Final = 12


class Relay:
    """Turns a child's events into its parent's, under the step's name."""

    def __init__(self, context: Context, writer: Writer, step: str, advance: Callable[..., None]) -> None:
        """`advance(fraction, message=...)` is told how far the step is."""
        self._context = context
        self._writer = writer
        self._step = step
        self._advance = advance
        self._telling = ""
        self._told = False

    async def event(self, event: Event) -> None:
        """Pass one event on."""
        data = event.data
        match event.type:
            case EventType.PROGRESS:
                total, current = data.get("total"), data.get("current") or 0
                fraction = min(1.0, current / total) if total else 0.0
                self._advance(fraction, message=data.get("message"))
            case EventType.DELTA:
                await self.text(str(data.get("channel", "text")), str(data.get("text", "")))
            case EventType.OUTPUT:
                await self._output(data)
            case EventType.LOG:
                await self._context.log(f"{self._step}: {data.get('message', '')}", data.get("level", "info"))
            case EventType.RETRYING:
                detail = (data.get("problem") or {}).get("detail", "")
                await self._context.log(f"{self._step} is tried again: {detail}", "warning")
            case EventType.STARTED:
                if self._told and event.attempt is not None:
                    # A new attempt at the step tells its text anew; behind what is there it would make no sense.
                    self._telling = f".{event.attempt}"
                self._advance(0.0)
            case type_ if "." in type_:
                await self._context.event(type_, data | {"step": self._step})

    async def text(self, channel: str, text: str) -> None:
        """Pass text on."""
        self._told = True
        await self._context.delta(text, _within(f"{self._step}.{channel}{self._telling}"))

    async def _output(self, data: dict[str, Any]) -> None:
        index = _within(f"{self._step}.{data.get('index')}")
        relayed = data | {"index": index, "step": self._step}
        if "url" in data:
            # The bytes are not copied: they stay the child's, which is kept as long.
            url = f"/v1/jobs/{self._context.job_id}/outputs/{index}"
            relayed |= {"url": url, "source": data.get("source", data["url"])}
        await self._writer.put(EventType.OUTPUT, encode_event_tail(EventType.OUTPUT, relayed), relayed, index)


def _within(name: str) -> str:
    """A name as short as an index or a channel must be; two that are cut stay two."""
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{name[: _MAX_NAME - len(digest) - 1]}-{digest}"
