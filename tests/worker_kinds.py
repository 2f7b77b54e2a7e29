"""Kinds that tests let real workers do. A gate is a file: the processor goes on once the test has made it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from processors import Context, ProcessorError, Rejected, Retry, SyncContext, processor
from tests.faults import PATIENCE_SECONDS, wait_until


class Gate(BaseModel):
    """An input that names a gate."""

    gate: Path

    async def passed(self) -> None:
        """Wait for the gate."""
        await wait_until(self.gate.exists, math.inf)


class Even(BaseModel):
    """An input of which only the model knows all that it asks."""

    number: int

    @field_validator("number")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it is odd")
        return value


@processor("echo")
async def echo(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
    """Return the input."""
    return input


@processor("even")
async def even(ctx: Context, input: Even) -> int:
    """Return an even number."""
    return input.number


@processor("count", max_attempts=10)
async def count(ctx: Context, input: dict[str, int]) -> AsyncIterator[dict[str, int]]:
    """Yield numbers."""
    for i in range(input["to"]):
        await ctx.progress(i + 1, input["to"], unit="numbers")
        yield {"number": i}


@processor("thread")
def thread(ctx: SyncContext, input: dict[str, int]) -> str:
    """Report all there is to report from a thread."""
    for i in range(input["to"]):
        ctx.progress(i + 1, input["to"])
    ctx.output("line", {"text": "hello"})
    ctx.delta("a")
    ctx.delta("b")
    ctx.log("done")
    ctx.event("thread.done", {"name": "it"})
    assert list(ctx.outputs()) == ["line"]
    return threading.current_thread().name


@processor("thread-count")
def thread_count(ctx: SyncContext, input: dict[str, int]) -> Iterator[bytes]:
    """Yield bytes from a thread."""
    for i in range(input["to"]):
        yield bytes([i])


@processor("gated", cancel_grace_seconds=1)
async def gated(ctx: Context, input: Gate) -> dict[str, Any]:
    """Leave an output, wait, and tell what was there at the start."""
    found = sorted(await ctx.outputs())
    await ctx.progress(1, 2)
    await ctx.output(f"attempt-{ctx.attempt}", os.getpid())
    await input.passed()
    return {"attempt": ctx.attempt, "found": found}


@processor("blocking")
async def blocking(ctx: Context, input: dict[str, float]) -> str:
    """Do what no processor should."""
    await ctx.output("before", 1)
    time.sleep(input["seconds"])  # noqa: ASYNC251 - what is tested
    await ctx.output("after", 1)
    return "done"


@processor("failing", max_attempts=2)
async def failing(ctx: Context, input: dict[str, str]) -> str:
    """Fail as asked, in each attempt or only in the first."""
    await ctx.delta("some text")
    if ctx.attempt > 1 and input.get("then") == "succeed":
        return "after all"
    match input["how"]:
        case "rejected":
            raise Rejected("There is no page 7.", "no_such_page")
        case "retry":
            raise Retry(after_seconds=0.05)
        case "processor_error":
            raise ProcessorError("model_busy", "The model is busy.")
        case "unexpected":
            raise RuntimeError("a secret: hunter2")
        case "cancelled":
            raise asyncio.CancelledError
        case "exit":
            sys.exit("a secret: hunter2")
        case _:
            return 1  # type: ignore[return-value] # no str: refused by its own type


@processor("big")
async def big(ctx: Context, input: dict[str, int]) -> dict[str, str]:
    """Publish large values."""
    await ctx.output("value", {"text": "v" * input["bytes"]})
    await ctx.output("result.txt", "t" * input["bytes"], content_type="text/plain")
    await ctx.output("image", data=b"\x89PNG", content_type="image/png")
    assert await ctx.read_output("image") == b"\x89PNG"
    assert len(await ctx.read_output("value")) > input["bytes"]
    ctx.partial = True
    return {"text": "r" * input["bytes"]}


@processor("slow", run_timeout_seconds=0.2)
async def slow(ctx: Context) -> None:
    """Run for too long."""
    await ctx.output("something", 1)
    await asyncio.Event().wait()


@processor("stubborn", cancel_grace_seconds=0.2)
def stubborn(ctx: SyncContext, input: Gate) -> str:
    """A thread that asks nobody, though not for ever: one that a failed test leaves behind would hold up all others."""
    ctx.output("pid", os.getpid())
    until = time.monotonic() + 2 * PATIENCE_SECONDS
    while not input.gate.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return "done"


@processor("polite", cancel_grace_seconds=0.5)
def polite(ctx: SyncContext) -> None:
    """A thread that asks."""
    ctx.output("begun", 1)
    while True:
        ctx.check_cancelled()
        time.sleep(0.01)


# With a child of its own.
STUBBORN = """
import signal, subprocess, time
signal.signal(15, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"])
print(1, flush=True)
time.sleep(600)
"""


@processor("parent_in_a_thread")
def parent_in_a_thread(ctx: SyncContext) -> None:
    """Run a child that ignores SIGTERM, and wait for it."""
    with ctx.process(sys.executable, "-c", STUBBORN, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        ctx.output("pid", child.pid)
        child.wait()


@processor("parent", cancel_grace_seconds=0.3)
async def parent(ctx: Context) -> None:
    """Run a child that ignores SIGTERM, and wait for it whatever comes."""
    async with ctx.process(sys.executable, "-c", STUBBORN, stdout=asyncio.subprocess.PIPE) as child:
        assert child.stdout is not None
        await child.stdout.readline()
        await ctx.output("pid", child.pid)
        while child.returncode is None:
            try:
                await child.wait()
            except asyncio.CancelledError:
                await ctx.log("cancelled, but the child goes on")


@processor("files", files="required")
async def files(ctx: Context) -> list[dict[str, Any]]:
    """Tell what came along."""
    found = []
    for file in ctx.files:
        async with file.open_path() as path:
            text = path.read_text()
        assert (await file.read()).decode() == text
        found.append({"name": file.name, "size": file.size, "text": text})
    return found


@processor("chatty")
async def chatty(ctx: Context, input: dict[str, int]) -> None:
    """Publish many lines and much text; fail the first attempts if asked to."""
    for i in range(input["lines"]):
        await ctx.output(i, i)
        await ctx.delta("some text ", channel="lines")
        await ctx.progress(i, input["lines"])
        if i % 10 == 0:
            await asyncio.sleep(0.001)
    if ctx.attempt <= input.get("failures", 0):
        raise Retry(after_seconds=0)


@processor("swallowing", cancel_grace_seconds=0.1)
async def swallowing(ctx: Context, input: dict[str, int]) -> None:
    """Ignore some cancels."""
    await ctx.output("begun", 1)
    for _ in range(input["cancels"]):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@processor("poison", max_attempts=2)
async def poison(ctx: Context) -> None:
    """Take the worker down, as a crash in a library's native code does."""
    await ctx.output(f"attempt-{ctx.attempt}", os.getpid())
    await ctx.outputs()
    os.kill(os.getpid(), signal.SIGKILL)


@processor("capped", max_running=2)
async def capped(ctx: Context, input: Gate) -> None:
    """Wait where two of the kind may be, over all workers."""
    await ctx.output("begun", 1)
    await input.passed()


@processor("alone", concurrency=1)
async def alone(ctx: Context, input: Gate) -> None:
    """Wait where nobody else of the kind may be."""
    await ctx.output("begun", 1)
    await input.passed()
