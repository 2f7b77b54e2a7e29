"""Workers in processes of their own that are killed, stopped and woken: a job ends once, whatever happens to them."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from gateway.protocol import State
from gateway.store import Store
from tests.faults import FaultProxy, wait_until
from tests.integration.test_worker import seen, submit
from tests.processes import runs
from tests.worker_jobs import end_of, log_of
from tests.worker_process import WorkerProcess, worker_process

pytestmark = pytest.mark.lease(0.6)


async def taken_by(store: Store, job: str, attempt: int) -> int:
    """Wait for the output of an attempt at a gated job; returns its worker's process."""

    async def there() -> int | None:
        for event in await log_of(store, job):
            if event.data.get("index") == f"attempt-{attempt}":
                return int(event.data["value"])
        return None

    return int(await wait_until(there))


async def says(worker: WorkerProcess, text: str) -> None:
    """Wait until a worker has logged something."""

    async def said() -> bool:
        return text in worker.said

    await wait_until(said)


async def test_a_killed_workers_job_is_taken_over(store: Store, tmp_path: Path) -> None:
    """The second attempt knows what the first one left."""
    gate = tmp_path / "gate"
    async with worker_process(store, tmp_path) as first:
        job = await submit(store, "gated", {"gate": str(gate)})
        await taken_by(store, job, 1)
        async with worker_process(store, tmp_path):
            first.signal(signal.SIGKILL)
            await taken_by(store, job, 2)
            gate.touch()
            record = await end_of(store, job)

    events = await log_of(store, job)
    assert record.end_data() == {"result": {"attempt": 2, "found": ["attempt-1"]}}
    assert [event.type for event in events if event.type != "output"] == [
        *("queued", "started", "progress", "retrying"),
        *("started", "progress", "succeeded"),
    ]
    assert next(event for event in events if event.type == "retrying").data["problem"]["code"] == "worker_lost"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed worker's programs live on")
@pytest.mark.parametrize("kind", ["parent", "parent_in_a_thread"])
async def test_a_killed_workers_programs_end_with_it(store: Store, tmp_path: Path, kind: str) -> None:
    """Also one that ignores SIGTERM, and what it has started in turn."""
    async with worker_process(store, tmp_path) as killed:
        job = await submit(store, kind)
        pids = [int((await seen(store, job, "output")).data["value"])]
        children = Path(f"/proc/{pids[0]}/task/{pids[0]}/children")
        pids += [int(pid) for pid in await wait_until(lambda: children.read_text().split())]
        killed.signal(signal.SIGKILL)

        await wait_until(lambda: not any(runs(pid) for pid in pids), what="their end")


@pytest.mark.alone
@pytest.mark.parametrize("how", ["paused", "cut off"])
async def test_a_worker_that_comes_back_writes_nothing(store: Store, tmp_path: Path, how: str) -> None:
    """Its job has gone on without it, after the lease and 2 s at most; it lets go of it and works on."""
    gate = tmp_path / "gate"
    async with FaultProxy(store._url) as proxy, worker_process(store, tmp_path, redis_url=proxy.url) as first:
        job = await submit(store, "gated", {"gate": str(gate)})
        await taken_by(store, job, 1)
        async with worker_process(store, tmp_path) as second:
            if how == "paused":
                first.signal(signal.SIGSTOP)
            else:
                proxy.stall()
            gone_at = time.monotonic()
            await taken_by(store, job, 2)
            took = time.monotonic() - gone_at
            gate.touch()
            await end_of(store, job)
            ended = await log_of(store, job)
            second.signal(signal.SIGTERM)
            await second.exit_code()

        first.signal(signal.SIGCONT)
        proxy.resume()
        await says(first, "nothing more is written")
        again = await submit(store, "echo")
        await end_of(store, again)

    assert took < store.lease_seconds + 2
    assert await log_of(store, job) == ended
    assert [event.type for event in ended].count("succeeded") == 1


async def test_a_job_that_kills_its_workers_is_given_up(store: Store, tmp_path: Path) -> None:
    """After as many workers as it may have attempts; the next one is left alone and works on."""
    job = await submit(store, "poison")
    for attempt in (1, 2):
        async with worker_process(store, tmp_path) as worker:
            await taken_by(store, job, attempt)
            assert await worker.exit_code() == -signal.SIGKILL

    async with worker_process(store, tmp_path):
        record = await end_of(store, job)
        await end_of(store, await submit(store, "echo"))

    problem = record.end_data()["problem"]
    assert (problem["code"], problem["cause"], record.attempt) == ("retries_exhausted", "worker_lost", 2)
    types = [event.type for event in await log_of(store, job) if event.type != "output"]
    assert types == ["queued", "started", "retrying", "started", "failed"]


async def test_a_processor_that_blocks_its_loop_keeps_its_job(store: Store, tmp_path: Path) -> None:
    """Leases are renewed from a thread, which also names who holds the loop up; whoever looks finds the job in hand."""
    async with worker_process(store, tmp_path) as worker:
        job = await submit(store, "blocking", {"seconds": 2.5 * store.lease_seconds + 1})

        async def ended() -> bool:
            # Made due, so that each look judges it: a lease that is not renewed is over at the first after its end.
            await store._client.zadd(store._keys.kind("blocking")[1], {job: 0}, xx=True)
            await store.look(["blocking"])
            return (await store.job(job)).terminal

        await wait_until(ended)
        record, said = await store.job(job), worker.said

    assert record.state is State.SUCCEEDED
    assert record.attempt == 1
    assert "by the processor of kind blocking at" in said
    assert "worker_kinds.py" in said


async def test_a_terminated_worker_hands_its_jobs_back(store: Store, tmp_path: Path) -> None:
    """It leaves with exit code 0, and the job burns no attempt."""
    gate = tmp_path / "gate"
    async with worker_process(store, tmp_path) as worker:
        job = await submit(store, "gated", {"gate": str(gate)})
        await taken_by(store, job, 1)
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() == 0

    record = await store.job(job)
    assert (record.state, record.failures) == (State.QUEUED, 0)
    assert (await log_of(store, job))[-1].data["problem"]["code"] == "worker_stopping"
    assert await store.workers() == []


@pytest.mark.slow
async def test_a_worker_leaves_although_a_thread_ignores_it(store: Store, tmp_path: Path) -> None:
    """Its job goes back to the queue all the same, and exit code 1 says that not all was well."""
    async with worker_process(store, tmp_path) as worker:
        job = await submit(store, "stubborn", {"gate": str(tmp_path / "never")})
        pid = (await seen(store, job, "output")).data["value"]
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() == 1

    assert (await store.job(job)).state is State.QUEUED
    assert not runs(pid)


@pytest.mark.slow
async def test_jobs_survive_workers_that_are_killed_one_after_another(store: Store, tmp_path: Path) -> None:
    """Sixty jobs, four workers killed in mid-work: each job ends once, its log without a hole."""
    jobs = [await submit(store, "count", {"to": 20}) for _ in range(60)]
    for i in range(4):
        async with worker_process(store, tmp_path) as worker:
            await end_of(store, jobs[10 * i])
            worker.signal(signal.SIGKILL)
    async with worker_process(store, tmp_path):
        records = [await end_of(store, job) for job in jobs]

    assert {record.state for record in records} == {State.SUCCEEDED}
    for job in jobs:
        events = await log_of(store, job)
        assert events[-1].terminal
        assert len({event.data["index"] for event in events if event.type == "output"}) == 20
