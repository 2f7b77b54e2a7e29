"""What a processor's author needs: the decorator, the context, and what to raise. The rest is the runtime.

    from pydantic import BaseModel
    from processors import Context, processor

    class Greeting(BaseModel):
        name: str

    @processor("greet")
    async def greet(ctx: Context, input: Greeting) -> str:
        await ctx.progress(1, 1)
        return f"Hello, {input.name}!"

`outlast worker its.module` serves it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gateway.errors import LeaseLost
from processors.context import Context, SyncContext
from processors.errors import ProcessorError, Rejected, Retry, StepFailed
from processors.files import InputFile, SyncInputFile
from processors.pipeline import pipeline, step
from processors.processor import Processor, load_processors, processor
from processors.row import Done

if TYPE_CHECKING:
    from processors.reporter import AsyncReporter, Reporter
    from processors.worker import run_worker

__all__ = [
    "AsyncReporter",
    "Context",
    "Done",
    "InputFile",
    "LeaseLost",
    "Processor",
    "ProcessorError",
    "Rejected",
    "Reporter",
    "Retry",
    "StepFailed",
    "SyncContext",
    "SyncInputFile",
    "load_processors",
    "pipeline",
    "processor",
    "run_worker",
    "step",
]


# The runtime, with Redis and all: a module of processors, and a child process that runs one, need none of it.
_RUNTIME = {
    "AsyncReporter": "processors.reporter",
    "Reporter": "processors.reporter",
    "run_worker": "processors.worker",
}


def __getattr__(name: str) -> Any:
    if name not in _RUNTIME:
        raise AttributeError(f"module 'processors' has no attribute {name!r}")

    return getattr(import_module(_RUNTIME[name]), name)
