"""A reporter in a process of its own does a job as any worker would, under the same fence."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.blobs import Blobs
from gateway.config import Settings
from gateway.documents import KindDocument
from gateway.errors import LeaseLost
from gateway.protocol import State
from gateway.requests import JobOptions
from gateway.store import JobRecord, Store
from processors import AsyncReporter, Reporter, Retry
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.jobs import begin, hand_over, new_job, submit
from tests.processes import program
from tests.worker_jobs import log_of

pytestmark = pytest.mark.lease(0.6)
KIND = KindDocument(kind="echo", max_attempts=2)


@pytest.fixture
async def settings(valkey: str, prefix: str, store: Store, tmp_path: Path) -> Settings:
    """The settings of this test's store, as another process reads them."""
    await store.register_kind(KIND)
    return Settings(redis_url=valkey, prefix=prefix, lease_seconds=store.lease_seconds, data=tmp_path)


async def handed_over(store: Store, **input_: Any) -> tuple[str, str]:
    """A job on its way to another process: its id and token."""
    record = await submit(store, KIND, input_=input_)
    return record.id, (await hand_over(store, "echo"))[1]


async def when(store: Store, job: str, *states: State) -> JobRecord:
    """The job once it is in one of these states, looked after meanwhile as a gateway does."""

    async def there() -> JobRecord | None:
        await store.look(["echo"])
        record = await store.job(job)
        return record if record.state in states else None

    record: JobRecord = await wait_until(there)
    return record


@asynccontextmanager
async def process(settings: Settings, token: str, how: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that brings the token, once it has reported."""
    environment = os.environ | {
        "OUTLAST_REDIS_URL": settings.redis_url,
        "OUTLAST_PREFIX": settings.prefix,
        "OUTLAST_LEASE_SECONDS": str(settings.lease_seconds),
        "OUTLAST_DATA": str(settings.data),
    }
    command = (sys.executable, "-m", "tests.reporting_process", token, how)
    async with program(*command, env=environment, stderr=None) as started:
        assert started.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await started.stdout.readline() == b"reported\n"
        yield started


async def test_another_process_does_the_job_from_its_token(settings: Settings, store: Store) -> None:
    """It reads the input, reports, and its result is the job's."""
    job, token = await handed_over(store, text="hello")

    async with process(settings, token, "succeed"):
        record = await when(store, job, State.SUCCEEDED, State.FAILED)

    assert record.end_data() == {"result": {"done": "succeed"}}
    log = await log_of(store, job)
    assert [event.type for event in log] == ["queued", "started", "output", "progress", "succeeded"]
    assert log[2].data["value"] == {"text": "hello"}


async def test_a_reporter_keeps_its_job_for_longer_than_a_lease(settings: Settings, store: Store) -> None:
    """It renews from a thread, whatever its code does."""
    job, token = await handed_over(store)

    async with process(settings, token, "hang"):
        with pytest.raises(AssertionError, match="did not come true"):
            await wait_until(lambda: _is_queued(store, job), 3 * store.lease_seconds)


async def _is_queued(store: Store, job: str) -> bool:
    await store.look(["echo"])
    return (await store.job(job)).state is State.QUEUED


async def test_a_killed_reporters_job_is_taken_over(settings: Settings, store: Store) -> None:
    """What it had reported stays, and the next attempt can be handed over anew."""
    job, token = await handed_over(store, text="kept")
    async with process(settings, token, "hang") as killed:
        killed.kill()
        await killed.wait()
    await when(store, job, State.QUEUED)

    _, again = await hand_over(store, "echo")
    async with process(settings, again, "succeed"):
        await when(store, job, State.SUCCEEDED)

    types = [event.type for event in await log_of(store, job)]
    assert [types.count(type_) for type_ in ("retrying", "started", "succeeded")] == [1, 2, 1]


async def test_a_rejection_fails_the_job_at_once(settings: Settings, store: Store) -> None:
    """Exceptions mean what they mean in a processor."""
    job, token = await handed_over(store)

    async with process(settings, token, "reject"):
        record = await when(store, job, State.FAILED)

    assert record.end_data()["problem"]["code"] == "nothing_there"


async def test_a_cancel_ends_the_block_quietly(settings: Settings, store: Store) -> None:
    """The process goes on after it; the job is cancelled once the block has been left."""
    job, token = await handed_over(store)

    async with process(settings, token, "obey") as other:
        await store.cancel(job, "me", "enough")
        await when(store, job, State.CANCELLED)
        assert await other.wait() == 0


async def test_an_async_block_is_cancelled_where_it_awaits(settings: Settings, store: Store) -> None:
    """And the code after it runs on, uncancelled."""
    job, token = await handed_over(store)
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with AsyncReporter(token, settings=settings) as report:
            await report.log("waiting for ever")
            await store.cancel(job, "me", "enough")
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    assert report.cancelled
    assert (await store.job(job)).state is State.CANCELLED


async def test_a_job_that_is_cancelled_while_its_block_is_entered_is_nobodys_to_do(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever enters hears so; the task that did is not cancelled for it."""
    job = await store.job_id("me", None)
    await store.submit(job, replace(new_job(KIND), input_blob="large"), keyed=False)
    _, token = await hand_over(store, "echo")

    read = Blobs.get

    async def slow_input(blobs: Blobs, key: str) -> bytes:
        if key == "large":
            await store.cancel(job, "me", "enough")
            await asyncio.Event().wait()
        return await read(blobs, key)

    monkeypatch.setattr("gateway.blobs.Blobs.get", slow_input)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(LeaseLost, match="asked for its end"):
            await AsyncReporter(token, settings=settings).__aenter__()
        await asyncio.sleep(0)

    assert (await store.job(job)).state is State.CANCELLED


async def test_an_async_block_that_asks_for_a_retry_goes_back_to_the_queue(settings: Settings, store: Store) -> None:
    """The exception goes on to the caller as well."""
    job, token = await handed_over(store)

    with pytest.raises(Retry):
        async with AsyncReporter(token, settings=settings):
            raise Retry(after_seconds=0, detail="The model is busy.", code="model_busy")

    assert (await store.job(job)).state is State.QUEUED
    assert (await log_of(store, job))[-1].data["problem"]["code"] == "model_busy"


async def test_a_message_that_comes_twice_is_done_once(settings: Settings, store: Store) -> None:
    """The second one finds nothing to do, and leaves no thread or task behind."""
    job, token = await handed_over(store)
    async with AsyncReporter(token, settings=settings) as report:
        with pytest.raises(LeaseLost):
            await asyncio.to_thread(Reporter(token, settings=settings).__enter__)
        with pytest.raises(LeaseLost):
            await AsyncReporter(token, settings=settings).__aenter__()
        report.result = "once"

    assert (await store.job(job)).end_data() == {"result": "once"}


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt])
async def test_whatever_leaves_the_block_ends_the_attempt(
    settings: Settings, store: Store, error: type[BaseException]
) -> None:
    """It goes on to the caller, and the job hears of it at once."""
    job, token = await handed_over(store)

    def leave() -> type[BaseException] | None:
        try:
            with Reporter(token, settings=settings):
                raise error
        except BaseException as raised:  # noqa: BLE001 - what is told
            return type(raised)
        return None

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await asyncio.to_thread(leave) is error

    assert (await log_of(store, job))[-1].data["problem"]["code"] == "processor_error"


class TimeLimit(BaseException):
    """What a queue raises in a task that takes too long, wherever it is."""


class Interrupted(Future[Any]):
    """A wait in which that happens."""

    interrupted = False

    def result(self, timeout: float | None = None) -> Any:
        """Broken off once, and as usual from then on."""
        if self.interrupted:
            return super().result(timeout)
        self.interrupted = True
        raise TimeLimit


async def test_a_block_that_was_interrupted_before_it_began_leaves_its_job_to_others(
    settings: Settings, store: Store
) -> None:
    """Nobody leaves it, and yet it doesn't hold the job until the run time-out."""
    job, token = await handed_over(store)
    reporter = Reporter(token, settings=settings)
    reporter._entered = Interrupted()

    with pytest.raises(TimeLimit):
        await asyncio.to_thread(reporter.__enter__)

    await when(store, job, State.QUEUED)
    assert [event.type for event in await log_of(store, job)] == ["queued", "started", "retrying"]


async def test_a_fork_can_not_report_and_is_told(settings: Settings, store: Store) -> None:
    """It would wait for a thread that it doesn't have; the block that it leaves is not its own."""
    job, token = await handed_over(store)

    async with process(settings, token, "fork") as other:
        assert await other.wait() == 0

    record = await store.job(job)
    assert record.end_data() == {"result": {"done": "fork", "fork": "RuntimeError"}}


async def test_a_job_that_can_not_be_read_is_nobodys_to_do(settings: Settings, store: Store) -> None:
    """Its attempt has failed before the block begins, which its log tells."""
    new = new_job(KIND, options=JobOptions(input_url="http://127.0.0.1:9/not-listed"))
    job = (await store.submit(await store.job_id("me", None), new, keyed=False)).record.id
    _, token = await hand_over(store, "echo")

    with pytest.raises(LeaseLost, match="its events tell why"):
        await AsyncReporter(token, settings=settings).__aenter__()

    assert (await log_of(store, job))[-1].type in ("retrying", "failed")


async def test_a_reporter_that_was_cut_off_for_longer_than_its_lease_writes_nothing_more(
    settings: Settings, store: Store
) -> None:
    """Another attempt has the job by then: the block is told and ends quietly."""
    async with FaultProxy(settings.redis_url) as proxy:
        job, token = await handed_over(store)
        elsewhere = settings.model_copy(update={"redis_url": proxy.url})
        async with asyncio.timeout(PATIENCE_SECONDS), AsyncReporter(token, settings=elsewhere) as report:
            await report.output("before", 1)
            await report.outputs()
            proxy.stall()
            await when(store, job, State.QUEUED)
            await begin(store, "echo")
            await report.output("after", 1)
            proxy.resume()
            await asyncio.Event().wait()

    assert report.cancelled
    assert [event.data.get("index") for event in await log_of(store, job) if event.type == "output"] == ["before"]
    assert (await store.job(job)).state is State.RUNNING


async def test_a_cancel_from_outside_goes_on(settings: Settings, store: Store) -> None:
    """Also where the job is cancelled at the same moment: whoever stops the program must not wait in vain."""
    _, token = await handed_over(store)
    report: AsyncReporter | None = None

    async def work() -> None:
        nonlocal report
        report = AsyncReporter(token, settings=settings)
        async with report:
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await wait_until(lambda: report is not None and hasattr(report, "_block"))
    assert report is not None
    report._interrupt()
    working.cancel()

    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(asyncio.CancelledError):
            await working
