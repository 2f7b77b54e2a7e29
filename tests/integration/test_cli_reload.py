"""A worker in development: the newest code does the next job."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from gateway.documents import KindDocument
from gateway.store import JobRecord, Store
from tests.faults import wait_until
from tests.jobs import submit

MODULE = """
from processors import processor

@processor("edited")
def edited(ctx) -> str:
    return {value!r}
"""


async def result_of_a_job(store: Store) -> Any:
    """Submit a job and wait for what comes of it."""
    job = (await submit(store, KindDocument(kind="edited"))).id

    async def ended() -> JobRecord | None:
        record = await store.job(job)
        return record if record.terminal else None

    record: JobRecord = await wait_until(ended, 20)
    return record.end_data()["result"]


async def test_a_changed_file_is_used_and_a_broken_one_survived(store: Store, tmp_path: Path) -> None:
    """The worker starts again with each change; a file that can't be read waits for the next one."""
    module = tmp_path / "edited_kind.py"
    module.write_text(MODULE.format(value="first"))
    environment = os.environ | {
        "OUTLAST_REDIS_URL": store._url,
        "OUTLAST_PREFIX": store._keys.prefix,
        "OUTLAST_DATA": str(tmp_path / "data"),
        "OUTLAST_LEASE_SECONDS": "2",
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
        assert await result_of_a_job(store) == "first"

        module.write_text("def broken(")
        async with asyncio.timeout(20):
            while b"it starts again with the next change" not in await process.stderr.readline():
                pass
        module.write_text(MODULE.format(value="second"))
        assert await result_of_a_job(store) == "second"
    finally:
        process.send_signal(signal.SIGINT)
        reading = asyncio.create_task(process.stderr.read())
        async with asyncio.timeout(20):
            assert await process.wait() == 0
            await reading
