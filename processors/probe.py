"""The kind `probe`: a job without any work but its events, by which `outlast verify` tells how they are delivered."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, ConfigDict, Field

from processors.context import Context
from processors.processor import processor


class ProbeInput(BaseModel):
    """How many events, how fast, how large; small enough that nobody is harmed by a job of the kind."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(20, ge=0, le=1000, description="Events to write.")
    interval_seconds: float = Field(0.1, ge=0, le=60, description="Pause before each of them.")
    padding: int = Field(0, ge=0, le=65_536, description="Characters that each of them carries besides.")


@processor(
    "probe",
    listed=False,
    max_waiting=1000,
    max_waiting_per_owner=200,
    run_timeout_seconds=300,
    retention_seconds=3600,
)
async def probe(ctx: Context, input: ProbeInput) -> dict[str, int]:
    """Write numbered events at a steady pace; `outlast verify` checks their delivery."""
    padding = "." * input.padding
    for step in range(1, input.steps + 1):
        await asyncio.sleep(input.interval_seconds)
        await ctx.event("probe.step", {"step": step, "of": input.steps, "padding": padding})
    return {"steps": input.steps}
