"""What chaos lets workers do: little work, many events, every way to end.

Each line says which attempt wrote it and its place in that attempt, so that the log itself shows a lost or foreign one.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from processors import Context, Rejected, Retry, processor

# So many that no job runs out of attempts because of what was done to its workers.
_MANY = 100


class Work(BaseModel):
    """How many lines, how long between two of them, and how often it fails before it succeeds."""

    lines: int
    pause_seconds: float = 0
    failures: int = 0


async def _write(ctx: Context, work: Work) -> None:
    for line in range(work.lines):
        await ctx.event("chaos.line", {"attempt": ctx.attempt, "line": line})
        if work.pause_seconds:
            await asyncio.sleep(work.pause_seconds)


@processor("burst", max_attempts=_MANY)
async def burst(ctx: Context, input: Work) -> dict[str, int]:
    """Write all lines at once."""
    await _write(ctx, input)
    return {"lines": input.lines, "attempt": ctx.attempt}


@processor("steady", max_attempts=_MANY)
async def steady(ctx: Context, input: Work) -> dict[str, int]:
    """Write one line after the other, with progress and text between them."""
    await ctx.progress(0, input.lines)
    await ctx.delta("some text")
    await _write(ctx, input)
    return {"lines": input.lines, "attempt": ctx.attempt}


@processor("flaky", max_attempts=_MANY)
async def flaky(ctx: Context, input: Work) -> dict[str, int]:
    """Fail the first attempts, with a delay before the next."""
    await _write(ctx, input)
    if ctx.attempt <= input.failures:
        raise Retry(after_seconds=0.7)
    return {"lines": input.lines, "attempt": ctx.attempt}


@processor("stubborn", max_attempts=_MANY, cancel_grace_seconds=2)
async def stubborn(ctx: Context, input: Work) -> dict[str, int]:
    """Take a second to stop when told to: time for a fault to meet a job whose cancel is asked but not done."""
    try:
        await _write(ctx, input)
    except asyncio.CancelledError:
        await asyncio.sleep(1)
        raise
    return {"lines": input.lines, "attempt": ctx.attempt}


@processor("forsaken", max_attempts=_MANY)
async def forsaken(ctx: Context, input: Work) -> dict[str, int]:
    """Go on for longer than anybody means to wait: nobody listens, so it has to be cancelled."""
    await _write(ctx, input)
    return {"lines": input.lines, "attempt": ctx.attempt}


@processor("refused", max_attempts=_MANY)
async def refused(ctx: Context, input: Work) -> None:
    """End as failed."""
    await _write(ctx, input)
    raise Rejected("This is how it ends.", "refused")
