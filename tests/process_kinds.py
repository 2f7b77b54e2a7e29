"""Kinds that run in child processes, as a module that the child imports."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from processors import Rejected, SyncContext, processor

LOADED: list[int] = []


class Work(BaseModel):
    """What to do."""

    how: str
    amount: int = 0


def load() -> None:
    """What takes long and is done once."""
    LOADED.append(os.getpid())


@processor("in_process", run_in="process", setup=load, max_attempts=1, cancel_grace_seconds=0.3)
def in_process(ctx: SyncContext, work: Work) -> dict[str, Any]:
    """Do as asked, and tell which process did it."""
    ctx.progress(1, 2, message="begun")
    ctx.output("pid", os.getpid())
    match work.how:
        case "reject":
            raise Rejected("There is nothing in it.", "nothing_there")
        case "break":
            raise ZeroDivisionError("a secret path")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "read":
            found = ctx.read_output("pid").decode()
            return {"text": ctx.files[0].read().decode(), "path": ctx.files[0].path().read_text(), "pid": found}
        case "obey":
            while True:
                ctx.check_cancelled()
                time.sleep(0.01)
        case "ignore":
            while True:
                time.sleep(0.01)
        case "children":
            with ctx.process("sleep", "60") as sleeping:
                ctx.output("sleeping", sleeping.pid)
                sleeping.wait()
    ctx.partial = work.how == "partly"
    return {"pid": os.getpid(), "loaded": LOADED}


@processor("little_memory", run_in="process", memory_bytes=1024 * 1024 * 1024, max_attempts=1)
def little_memory(ctx: SyncContext, work: Work) -> int:
    """Take so much memory."""
    return len(bytearray(work.amount))


@processor("yields_in_process", run_in="process")
def yields_in_process(ctx: SyncContext) -> Iterator[Any]:
    """Each value is an output."""
    yield {"page": 1}
    yield b"bytes"
