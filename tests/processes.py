"""Processes of tests: programs that end with the block they run in, and what this machine's system says of others."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.faults import PATIENCE_SECONDS


@asynccontextmanager
async def program(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program for the length of the block, killed if it still runs then; `options` are asyncio's.

    Its stdout and stderr are pipes unless they say otherwise.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, **({"stdout": pipe, "stderr": pipe} | options))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ran(*command: str, **environment: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a program that ends by itself."""
    async with program(*command, env=os.environ | environment) as process, asyncio.timeout(2 * PATIENCE_SECONDS):
        printed, complained = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode(), complained.decode()


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and whose parent hasn't asked yet is there as a name only."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        # It has gone just now; or this is no Linux, where the signal's answer is all there is.
        return sys.platform != "linux"
    return state != "Z"
