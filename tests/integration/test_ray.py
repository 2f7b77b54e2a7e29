"""Jobs handed over to a real Ray, started here: an actor does them, and one that dies is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.blobs import Blobs
from gateway.protocol import State
from gateway.store import Store
from processors import load_processors
from tests.faults import wait_until
from tests.jobs import submit
from tests.worker_jobs import end_of, working

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.lease(2.0),
    # Ray lets go of the processes that it has started before they have ended.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Ray starts a dozen processes, and each of them loads half of Python's packages.
PATIENCE_SECONDS = 180.0


@pytest.fixture
async def ray_app(store: Store, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """The example, served by a worker with one place; its setup starts Ray."""
    ray = pytest.importorskip("ray", reason="make test SLOW=1 installs it")
    from examples import ray_app

    kinds = load_processors(["examples.ray_app"])
    for name, value in {
        "OUTLAST_REDIS_URL": store._url,
        "OUTLAST_PREFIX": store._keys.prefix,
        "OUTLAST_LEASE_SECONDS": str(store.lease_seconds),
        "OUTLAST_BLOB_URL": (tmp_path / "blobs").as_uri(),
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        async with working(store, blobs, kinds.values()):
            yield ray_app
    finally:
        await asyncio.to_thread(ray.shutdown)


async def test_a_ray_actor_does_the_job_and_a_killed_one_is_replaced(store: Store, ray_app: Any) -> None:
    """One actor for all jobs, in a process of its own; killed in the middle of one, Ray makes another for the rest."""
    ray, kind = ray_app.ray, ray_app.embed.document
    first = (await submit(store, kind, input_={"texts": ["a cat", "a dog"]})).id
    record = await end_of(store, first, PATIENCE_SECONDS)
    assert (record.state, record.end_data()) == (State.SUCCEEDED, {"result": {"texts": 2, "dimensions": 26}})

    pid = await asyncio.to_thread(lambda: ray.get(ray_app.embedder().pid.remote()))
    assert pid != os.getpid()
    second = (await submit(store, kind, input_={"texts": ["word"] * 3_000})).id

    async def begun() -> bool:
        return bool(await store.outputs(second))

    await wait_until(begun, PATIENCE_SECONDS, what="the first output")
    os.kill(pid, signal.SIGKILL)
    record = await end_of(store, second, PATIENCE_SECONDS)

    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
    assert record.end_data()["result"]["texts"] == 3_000
