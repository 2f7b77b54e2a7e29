"""A call of a processor's function: what it is given, how its style is run, and what its result is in the log."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from gateway.blobs import Blobs
from gateway.store import JobRecord
from processors.batching import Batches
from processors.context import Context, as_output
from processors.errors import Rejected, said_by
from processors.process import Processes
from processors.processor import Processor, Style
from processors.thread import run_in_thread


@dataclass(frozen=True, slots=True)
class Result:
    """What a processor returned, as it goes into `succeeded`."""

    data: dict[str, Any]
    blob: str | None


class Call:
    """One attempt's call. All of it but what runs in a thread belongs to the event loop."""

    def __init__(
        self,
        processor: Processor,
        record: JobRecord,
        context: Context,
        *,
        input_: bytes,
        blobs: Blobs,
        processes: Processes,
        batches: Batches,
    ) -> None:
        self._processor = processor
        self._record = record
        self._input = input_
        self._context = context
        self._blobs = blobs
        self._processes = processes
        self._batches = batches

    async def run(self) -> Result:
        """Read the input, run the function, encode its result. Raises what the function does, and `Rejected`."""
        arguments = await self._read_arguments()
        if self._record.options.input_url is not None:
            # Its HTTP client takes a quarter of a second to import, and few workers ever need it.
            from processors.fetching import fetch_input  # noqa: PLC0415

            url, types = self._record.options.input_url, self._processor.document.content_types
            self._context.add_file(await fetch_input(url, self._record.id, self._blobs, types))
        return await self._encode(await self._result_of(arguments))

    async def _result_of(self, arguments: tuple[Any, ...]) -> Any:
        """Run the function in its own style."""
        context, function = self._context, self._processor.function
        name = f"{self._record.kind} {self._record.id}"
        result: Any = None
        if self._processor.max_batch:
            return await self._batches.run(self._processor, context, arguments)
        match self._processor.style:
            case Style.ASYNC:
                result = await function(context, *arguments)
            case Style.THREAD:
                result = await run_in_thread(function, context.sync, *arguments, name=name)
                if inspect.isawaitable(result):
                    raise TypeError(f"{self._processor} is no async function, but returned something to await")
            case Style.PROCESS:
                result = await self._processes.run(self._processor, context, arguments)
            case Style.ASYNC_GENERATOR:
                index = 0
                async with contextlib.aclosing(function(context, *arguments)) as values:
                    async for value in values:
                        await context.output(index, **as_output(value))
                        index += 1
            case Style.THREAD_GENERATOR:
                await run_in_thread(self._drain, arguments, name=name)
        return result

    def _drain(self, arguments: tuple[Any, ...]) -> None:
        """Run a plain generator to its end, in a thread."""
        with contextlib.closing(self._processor.function(self._context.sync, *arguments)) as values:
            for index, value in enumerate(values):
                self._context.sync.output(index, **as_output(value))

    async def _read_arguments(self) -> tuple[Any, ...]:
        adapter = self._processor.input_adapter
        if adapter is None:
            return ()
        blob = self._record.input_blob
        text = self._input if blob is None else await self._blobs.get(blob)
        try:
            return (adapter.validate_json(text),)
        except ValidationError as error:
            # The gateway has checked the schema; this is what only the model itself knows.
            raise Rejected("The input is not valid; see errors.", errors=said_by(error)) from None

    async def _encode(self, result: Any) -> Result:
        adapter = self._processor.result_adapter
        if adapter is None:
            text = to_json(result, inf_nan_mode="null")
        else:
            text = adapter.dump_json(adapter.validate_python(result))
        partial = {"partial": True} if self._context.partial else {}
        if len(text) <= self._context.inline_bytes:
            return Result({"result": from_json(text)} | partial, None)
        key = f"jobs/{self._record.id}/result-{self._record.attempt}"
        await self._blobs.put(key, text, max_bytes=None)
        return Result({"result_url": f"/v1/jobs/{self._record.id}/result"} | partial, key)
