"""Kinds with steps for workers in processes of their own, whose calls are counted in a file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from processors import Context, processor


@processor("paid")
async def paid(ctx: Context, input: dict[str, Any]) -> int:
    """What costs money: each call leaves a line."""
    calls = Path(input["calls"])
    calls.write_text((calls.read_text() if calls.exists() else "") + f"{input['number']}\n")
    return int(input["number"]) + 1


@processor("three_paid")
async def three_paid(ctx: Context, input: dict[str, Any]) -> int:
    """Three steps in a row; its first attempt stops for ever at one of their boundaries."""
    number = 0
    for boundary in range(4):
        if ctx.attempt == 1 and boundary == input["stops_at"]:
            await ctx.output("stopped", boundary)
            await asyncio.Event().wait()
        if boundary < 3:
            number = await ctx.run("paid", {"number": number, "calls": input["calls"]}, step=f"step-{boundary}")
    return number


@processor("waits")
async def waits(ctx: Context, input: dict[str, Any]) -> None:
    """Its step runs until it is cancelled."""
    await ctx.run("runs_on", {})


@processor("runs_on")
async def runs_on(ctx: Context) -> None:
    """Runs until it is cancelled."""
    await asyncio.Event().wait()
