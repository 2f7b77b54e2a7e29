"""A worker in development: the newest code does the next job."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from gateway.documents import KindDocument
from gateway.store import Store
from tests.faults import wait_until
from tests.jobs import submit
from tests.worker_jobs import end_of

# Longer than any start of a worker, on any machine.
STOP_GRACE_SECONDS = 60.0
MODULE = """
import time
from pathlib import Path
from processors import processor

@processor("edited")
def edited(ctx) -> str:
    if {value!r} == "endless":
        Path("begun").touch()
        while True:
            ctx.check_cancelled()
            time.sleep(0.01)
    return {value!r}
"""


async def a_job(store: Store) -> str:
    """Submit a job."""
    return (await submit(store, KindDocument(kind="edited"))).id


async def result_of(store: Store, job: str) -> Any:
    """Wait for what comes of a job."""
    return (await end_of(store, job, 40)).end_data()["result"]


async def test_a_changed_file_is_used_and_a_broken_one_survived(store: Store, tmp_path: Path) -> None:
    """The worker starts again with each change; a file that can't be read waits for the next one.

    A job in hand is handed to the new code at once, and of many changes the last one counts.
    """
    module = tmp_path / "edited_kind.py"
    module.write_text(MODULE.format(value="first"))
    environment = os.environ | {
        "OUTLAST_REDIS_URL": store._url,
        "OUTLAST_PREFIX": store._keys.prefix,
        "OUTLAST_DATA": str(tmp_path / "data"),
        "OUTLAST_LEASE_SECONDS": "2",
        "OUTLAST_STOP_GRACE_SECONDS": str(STOP_GRACE_SECONDS),
        "PYTHONPATH": os.getcwd(),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "worker", "--reload", "edited_kind"),
        cwd=tmp_path,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        assert await result_of(store, await a_job(store)) == "first"

        module.write_text("def broken(")
        async with asyncio.timeout(40):
            while b"it starts again with the next change" not in await process.stderr.readline():
                pass
        module.write_text(MODULE.format(value="endless"))
        job = await a_job(store)
        await wait_until((tmp_path / "begun").exists, 40, what="the job begins")
        for number in range(20):
            module.write_text(MODULE.format(value=f"{number}"))
        module.write_text(MODULE.format(value="second"))
        assert await result_of(store, job) == "second"
        assert (await store.job(job)).failures == 0
    finally:
        process.send_signal(signal.SIGINT)
        reading = asyncio.create_task(process.stderr.read())
        async with asyncio.timeout(40):
            assert await process.wait() == 0
            await reading
