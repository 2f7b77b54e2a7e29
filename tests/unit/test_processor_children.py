"""Child processes: none outlives its block or its attempt."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from processors.children import Children
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.processes import runs

STUBBORN = (
    "import os, signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
    "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); time.sleep(600)"
)


async def test_a_child_is_killed_at_the_end_of_its_block() -> None:
    """With all that it started."""
    children = Children()
    async with children.start(sys.executable, "-c", STUBBORN, stdout=asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(await process.stdout.readline())

    assert process.returncode == -9
    await wait_until(lambda: not runs(grandchild))


async def test_a_child_that_ended_by_itself_keeps_its_exit_code() -> None:
    """Nothing is signalled then."""
    children = Children()
    async with children.start(sys.executable, "-c", "raise SystemExit(3)") as process:
        assert await process.wait() == 3
    assert children.kill() == 0


async def test_children_are_asked_first_and_killed_then() -> None:
    """As an attempt that is to stop does it, from outside of the block."""
    children = Children()
    async with children.start(sys.executable, "-c", STUBBORN, stdout=asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        assert children.terminate() == 1
        assert process.returncode is None
        assert children.kill() == 1
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.wait() == -9


async def test_a_program_that_may_not_be_signalled_keeps_no_signal_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that runs as somebody else, as `sudo` does."""
    children = Children()
    async with children.start("sleep", "600") as foreign, children.start("sleep", "600") as own:
        killpg = os.killpg

        def refused(group: int, number: int) -> None:
            if group == foreign.pid:
                raise PermissionError
            killpg(group, number)

        with monkeypatch.context() as patched:
            patched.setattr(os, "killpg", refused)
            assert children.terminate() == 2
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await own.wait() == -15
        assert foreign.returncode is None


def test_a_thread_has_the_same() -> None:
    """With `Popen` in its hands."""
    children = Children()
    with children.start_sync(sys.executable, "-c", STUBBORN, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert runs(grandchild)

    assert process.returncode == -9
    assert not runs(process.pid)


async def test_a_program_that_is_not_there_says_so() -> None:
    """The author's `except FileNotFoundError` works as with asyncio."""
    with pytest.raises(FileNotFoundError):
        async with Children().start("/no/such/program"):
            raise AssertionError
