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

from gateway.errors import LeaseLost
from processors.context import Context, SyncContext
from processors.errors import ProcessorError, Rejected, Retry
from processors.files import InputFile, SyncInputFile
from processors.processor import Processor, load_processors, processor
from processors.reporter import AsyncReporter, Reporter
from processors.worker import run_worker

__all__ = [
    "AsyncReporter",
    "Context",
    "InputFile",
    "LeaseLost",
    "Processor",
    "ProcessorError",
    "Rejected",
    "Reporter",
    "Retry",
    "SyncContext",
    "SyncInputFile",
    "load_processors",
    "processor",
    "run_worker",
]
