"""Jobs handed over to real Celery workers through a real broker: done, delivered twice, killed and taken over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import redis.asyncio as redis

from examples import celery_app
from gateway.blobs import Blobs
from gateway.protocol import State
from gateway.store import Store
from processors import load_processors
from tests.faults import wait_until
from tests.jobs import submit
from tests.worker_jobs import end_of, log_of, working

KINDS = load_processors(["examples.celery_app"])
# A worker of Celery takes seconds to start where other tests use the cores.
PATIENCE_SECONDS = 45.0

pytestmark = [pytest.mark.timeout(150), pytest.mark.lease(2.0)]


@pytest.fixture
async def broker(valkey: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[redis.Redis]:
    """Celery's broker: another database of the same server, empty."""
    path = unquote(urlsplit(valkey).path)
    url = f"redis+socket://{path}?virtual_host=1"
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    monkeypatch.setitem(celery_app.app.conf, "broker_url", url)
    async with redis.Redis(unix_socket_path=path, db=1) as client:
        await client.flushdb()
        yield client


@pytest.fixture
async def _processor(store: Store, blobs: Blobs, broker: redis.Redis) -> AsyncIterator[None]:
    """A worker of ours with one place, which hands the jobs over."""
    async with working(store, blobs, KINDS.values()):
        yield
    await asyncio.to_thread(celery_app.app.close)


class CeleryWorker:
    """A worker of Celery: a process with a child that does the tasks, both of one group."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def said(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def owns(self, pid: int) -> bool:
        """Whether a process is of its group."""
        return os.getpgid(pid) == self.process.pid

    def kill(self) -> None:
        """The machine loses power."""
        os.killpg(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def celery_worker(store: Store, folder: Path, name: str) -> AsyncIterator[CeleryWorker]:
    """A worker of Celery for the length of the block, once it takes tasks."""
    settings = {
        "OUTLAST_REDIS_URL": store._url,
        "OUTLAST_PREFIX": store._keys.prefix,
        "OUTLAST_LEASE_SECONDS": str(store.lease_seconds),
        "OUTLAST_BLOB_URL": (folder / "blobs").as_uri(),
    }
    command = ("celery", "-A", "examples.celery_app", "worker", "--pool", "prefork", "--concurrency", "1")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO")
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command, *quiet, "--hostname", f"{name}@here"),
            env=os.environ | settings,
            stderr=file,
            stdout=file,
            start_new_session=True,
        )
    worker = CeleryWorker(process, log)
    try:
        await wait_until(lambda: " ready." in worker.said or process.returncode, PATIENCE_SECONDS, what=f"{name}")
        assert process.returncode is None, worker.said
        yield worker
    finally:
        if process.returncode is None:
            worker.kill()
        await process.wait()


@asynccontextmanager
async def two_workers(store: Store, folder: Path) -> AsyncIterator[list[CeleryWorker]]:
    """Two workers of Celery, started at once."""
    async with AsyncExitStack() as both:
        starting = [both.enter_async_context(celery_worker(store, folder, name)) for name in ("one", "two")]
        yield await asyncio.gather(*starting)


async def pictures_of(store: Store, job: str) -> list[tuple[str, int]]:
    """The outputs in a job's log: what, and by which process."""
    events = [event for event in await log_of(store, job) if event.type == "output"]
    return [(event.data["value"]["name"], event.data["value"]["worker"]) for event in events]


@pytest.mark.usefixtures("_processor")
async def test_a_message_that_celery_delivers_twice_is_done_once(
    store: Store, broker: redis.Redis, tmp_path: Path
) -> None:
    """The very same message, to two workers: one does the job, the other finds that there is nothing to do."""
    job = (await submit(store, KINDS["thumbnails"].document, input_={"names": ["cat", "dog"], "seconds_each": 0.1})).id
    [message] = await wait_until(lambda: broker.lrange("celery", 0, -1), PATIENCE_SECONDS, what="the message")
    await broker.rpush("celery", message)

    async with two_workers(store, tmp_path) as workers:
        record = await end_of(store, job, PATIENCE_SECONDS)
        done = " succeeded in "
        await wait_until(
            lambda: sum(worker.said.count(done) for worker in workers) == 2, PATIENCE_SECONDS, what="both tasks' end"
        )

    assert (record.state, record.end_data()) == (State.SUCCEEDED, {"result": {"pictures": 2}})
    assert [name for name, _ in await pictures_of(store, job)] == ["cat", "dog"]
    assert [event.type for event in await log_of(store, job) if event.type != "progress"] == [
        *("queued", "started", "output", "output", "succeeded")
    ]


@pytest.mark.usefixtures("_processor")
async def test_a_killed_celery_workers_job_is_taken_over_by_another(store: Store, tmp_path: Path) -> None:
    """Killed with all its processes in the middle: the second worker does what the first had left."""
    async with two_workers(store, tmp_path) as workers:
        names = ["cat", "dog", "cow"]
        job = (await submit(store, KINDS["thumbnails"].document, input_={"names": names, "seconds_each": 0.6})).id
        pictures = await wait_until(lambda: pictures_of(store, job), PATIENCE_SECONDS, what="the first picture")
        pid = pictures[0][1]
        [killed] = [worker for worker in workers if worker.owns(pid)]
        killed.kill()
        record = await end_of(store, job, PATIENCE_SECONDS)

        assert (record.state, record.attempt) == (State.SUCCEEDED, 2), [worker.said for worker in workers]
        pictures = await pictures_of(store, job)
        assert [name for name, _ in pictures] == names
        assert pictures[0][1] == pid
        assert all(next(other for other in workers if other is not killed).owns(by) for _, by in pictures[1:])
    [lost] = [event.data["problem"]["code"] for event in await log_of(store, job) if event.type == "retrying"]
    assert lost == "worker_lost"
