"""A worker in a process of its own, which tests kill, stop and wake."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from gateway.config import load_settings
from gateway.store import Store
from processors.worker import run_worker
from tests.faults import PATIENCE_SECONDS

# Python and its modules take a second of a core; several that start at once on a busy machine take a while.
_START_SECONDS = 2 * PATIENCE_SECONDS


class WorkerProcess:
    """A worker that serves `tests.worker_kinds`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def said(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._process.wait()


@asynccontextmanager
async def worker_process(
    store: Store,
    folder: Path,
    *,
    module: str = "tests.worker_kinds",
    around: str | None = None,
    **settings: float | str,
) -> AsyncIterator[WorkerProcess]:
    """A worker process for the length of the block, ready to claim; `around` is a module that runs it."""
    environment = {
        "OUTLAST_REDIS_URL": store._url,
        "OUTLAST_PREFIX": store._keys.prefix,
        "OUTLAST_LEASE_SECONDS": str(store.lease_seconds),
        "OUTLAST_BLOB_URL": (folder / "blobs").as_uri(),
        "OUTLAST_CONCURRENCY": "2",
        "OUTLAST_STOP_GRACE_SECONDS": "0",
    } | {f"OUTLAST_{name.upper()}": str(value) for name, value in settings.items()}
    (folder / "blobs").mkdir(exist_ok=True)
    before = await _names(store)
    log = folder / f"worker-{os.urandom(4).hex()}.log"
    with log.open("wb") as file:
        modules = [name for name in (around, "tests.worker_process", module) if name is not None]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *modules), env=os.environ | environment, stderr=file
        )
    worker = WorkerProcess(process, log)
    try:
        async with asyncio.timeout(_START_SECONDS):
            # Not by their number: killed ones are still counted for a while.
            while not await _names(store) - before:
                assert process.returncode is None, worker.said
                await asyncio.sleep(0.02)
        yield worker
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _names(store: Store) -> set[str]:
    return {worker["worker"] for worker in await store.workers()}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    sys.exit(run_worker(load_settings(), sys.argv[1:]))
