"""Kinds that run in child processes, as a module that the child imports."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from processors import Context, Rejected, StepFailed, SyncContext, processor

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
    more = WAYS[work.how](ctx) or {}
    ctx.partial = work.how == "partly"
    return {"pid": os.getpid(), "loaded": LOADED} | more


@processor("patient_in_process", run_in="process", max_attempts=1, cancel_grace_seconds=30)
def patient_in_process(ctx: SyncContext, work: Work) -> dict[str, Any]:
    """The same, for what obeys in its own time, however busy the machine is."""
    done: dict[str, Any] = in_process.function(ctx, work)
    return done


def read(ctx: SyncContext) -> dict[str, Any]:
    """Read all that can be read."""
    found = ctx.read_output("pid").decode()
    return {"text": ctx.files[0].read().decode(), "path": ctx.files[0].path().read_text(), "pid": found}


def read_by_path(ctx: SyncContext) -> dict[str, Any]:
    """Read a file whole, which is too large for that."""
    try:
        ctx.files[0].read()
    except ValueError as error:
        return {"read": [type(error).__name__, ctx.files[0].path().stat().st_size]}
    return {}


def reject(_: SyncContext) -> None:
    """Say no."""
    raise Rejected("There is nothing in it.", "nothing_there")


def reject_oddly(_: SyncContext) -> None:
    """Say no, with something in it that can't be pickled."""
    raise Rejected("There is nothing in it.", "nothing_there", why=lambda: None)


def fail_a_step(ctx: SyncContext) -> None:
    """See that a step fails, as it is."""
    try:
        ctx.run("fails_as_a_step", {})
    except StepFailed as error:
        raise Rejected("The step failed.", "step_was_seen", of=error.step) from None


def break_down(_: SyncContext) -> None:
    """An error that nobody expects."""
    raise ZeroDivisionError("a secret path")


class Unspeakable(Exception):
    """An error that can't even say what it is."""

    def __str__(self) -> str:
        raise ZeroDivisionError


def say_nothing(_: SyncContext) -> None:
    """Raise it."""
    raise Unspeakable


def write_garbage(_: SyncContext) -> None:
    """Write where only the runtime should."""
    os.write(int(sys.argv[1]), b"\xff" * 100)
    time.sleep(60)


def close_the_channel(_: SyncContext) -> None:
    """Close what is not its own, as programs do that become daemons."""
    os.close(int(sys.argv[1]))
    time.sleep(60)


def crash(_: SyncContext) -> None:
    """Read where there is no memory."""
    ctypes.string_at(0)


def crash_with_a_fork(ctx: SyncContext) -> None:
    """Crash, and leave this end of the channel open in another process."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    crash(ctx)


def obey(ctx: SyncContext) -> None:
    """Go on until it is told to stop."""
    while True:
        ctx.check_cancelled()
        time.sleep(0.01)


def ignore(_: SyncContext) -> None:
    """Go on whatever it is told."""
    while True:
        time.sleep(0.01)


def start_a_program(ctx: SyncContext) -> None:
    """Wait for another program."""
    with ctx.process("sleep", "60") as sleeping:
        ctx.output("sleeping", sleeping.pid)
        sleeping.wait()
    ctx.check_cancelled()


def leave_a_program(ctx: SyncContext) -> None:
    """Start another program behind the runtime's back, and hold the interpreter, so that no thread of ours runs."""
    ctx.output("sleeping", subprocess.Popen(["sleep", "60"]).pid)
    ctypes.PyDLL(None).sleep(60)


def leave_a_program_and_crash(ctx: SyncContext) -> None:
    """Start another program, and end before it."""
    ctx.output("sleeping", subprocess.Popen(["sleep", "60"]).pid)
    crash(ctx)


def report_later(ctx: SyncContext) -> None:
    """Leave a thread that goes on reporting."""

    def report() -> None:
        for number in range(100):
            time.sleep(0.01)
            ctx.output(f"late-{number}", number)

    threading.Thread(target=report).start()


WAYS: dict[str, Callable[[SyncContext], Any]] = {
    "well": lambda _: None,
    "partly": lambda _: None,
    "read": read,
    "read by path": read_by_path,
    "reject": reject,
    "reject oddly": reject_oddly,
    "fail a step": fail_a_step,
    "break": break_down,
    "exit": lambda _: sys.exit("a secret path"),
    "stop iteration": lambda _: next(iter(())),
    "say nothing": say_nothing,
    "return oddly": lambda _: {"pid": lambda: None},
    "write garbage": write_garbage,
    "close the channel": close_the_channel,
    "crash": crash,
    "crash with a fork": crash_with_a_fork,
    "die oddly": lambda _: os.kill(os.getpid(), signal.SIGRTMIN + 3),
    "obey": obey,
    "ignore": ignore,
    "start a program": start_a_program,
    "leave a program": leave_a_program,
    "leave a program and crash": leave_a_program_and_crash,
    "report later": report_later,
    "wait": lambda _: time.sleep(0.5),
}


@processor("fails_as_a_step")
async def fails_as_a_step(ctx: Context) -> None:
    """Say no."""
    raise Rejected("No.")


@processor("little_memory", run_in="process", memory_bytes=1024 * 1024 * 1024, max_attempts=1)
def little_memory(ctx: SyncContext, work: Work) -> int:
    """Take so much memory, or all that there is and then a file."""
    if work.how == "take":
        return len(bytearray(work.amount))
    hoard: list[bytearray] = []
    try:
        while True:
            hoard.append(bytearray(work.amount))
    except MemoryError:
        return len(ctx.files[0].read())


@processor("yields_in_process", run_in="process")
def yields_in_process(ctx: SyncContext) -> Iterator[Any]:
    """Each value is an output."""
    yield {"page": 1}
    yield b"bytes"


@processor("waits_in_a_process", run_in="process", cancel_grace_seconds=3)
def waits_in_a_process(ctx: SyncContext) -> None:
    """A step that never ends."""
    ctx.run("endless")
