"""Deadlines: no job stays open for ever, also where nobody serves its kind."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.documents import KindDocument
from gateway.errors import LeaseLost
from gateway.protocol import State
from gateway.requests import JobOptions
from gateway.store import JobRecord, Store
from tests.faults import wait_until
from tests.jobs import begin, event, submit
from tests.worker_jobs import end_of

KIND = KindDocument(kind="echo")


async def failed(store: Store, job: str) -> JobRecord:
    """Look until a job has failed."""

    async def over() -> JobRecord | None:
        await store.look(await store.kinds())
        record = await store.job(job)
        return record if record.terminal else None

    record: JobRecord = await wait_until(over)
    assert record.state is State.FAILED
    return record


def code_of(record: JobRecord) -> str:
    """Why a job failed."""
    return str(record.end_data()["problem"]["code"])


async def test_a_job_of_a_kind_that_nobody_serves_expires(valkey: str, prefix: str) -> None:
    """A gateway's look loop is enough: there is no worker, and never was one. A job for later doesn't stay longer."""
    store = await Store.connect(valkey, prefix=prefix, lease_seconds=0.3, job_deadline_seconds=0.5)
    nobody = KindDocument(kind="nobody")
    await store.register_kind(nobody)
    looking = asyncio.create_task(store.look_loop(), name="looks")
    try:
        later = JobOptions(start_at=datetime.now(UTC) + timedelta(hours=1))
        jobs = [await submit(store, nobody, options=options) for options in (JobOptions(), later)]
        records = [await end_of(store, job.id) for job in jobs]
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await store.close()

    assert [(record.state, code_of(record)) for record in records] == [(State.FAILED, "deadline")] * 2


async def test_the_overall_deadline_ends_a_job_under_a_living_lease(valkey: str, prefix: str) -> None:
    """Its worker hears of it with its next report, which is not written."""
    store = await Store.connect(valkey, prefix=prefix, lease_seconds=30, job_deadline_seconds=0.4)
    await store.register_kind(KIND)
    job = await submit(store, KIND)
    lease = await begin(store, "echo")

    # Under a living lease the next look comes with the lease's end; here it comes now.
    async def due() -> bool:
        await store._client.zadd(store._keys.kind("echo")[1], {job.id: 0})
        await store.look(["echo"])
        return (await store.job(job.id)).terminal

    await wait_until(due)
    record = await store.job(job.id)
    with pytest.raises(LeaseLost):
        await store.append(lease, 1, [event("log", {"message": "late"})])

    assert code_of(record) == "deadline"
    assert (await store.job(job.id)).last == record.last
    await store.close()


async def test_an_attempt_whose_worker_can_not_end_it_is_timed_out_by_a_look(store: Store) -> None:
    """Such as one whose event loop is blocked for good, while its lease is renewed."""
    job = await submit(store, KIND)
    await begin(store, "echo")
    await store._client.hset(store._keys.record(job.id), mapping={"run_deadline": 1, "lease_until": 1 << 52})
    await store._client.zadd(store._keys.kind("echo")[1], {job.id: 0})

    assert code_of(await failed(store, job.id)) == "run_timeout"


@pytest.mark.parametrize(("kinds", "jobs"), [(0.3, None), (3600, 0.3), (None, 0.3)])
async def test_a_start_deadline_is_the_jobs_own_or_its_kinds(
    store: Store, kinds: float | None, jobs: float | None
) -> None:
    """The job's own goes before its kind's."""
    kind = KindDocument(kind="echo", start_deadline_seconds=kinds)

    job = await submit(store, kind, options=JobOptions(start_deadline_seconds=jobs))

    assert code_of(await failed(store, job.id)) == "start_deadline"


async def test_a_job_that_has_begun_once_has_kept_its_start_deadline(store: Store) -> None:
    """A retry may come later than that."""
    job = await submit(store, KIND, options=JobOptions(start_deadline_seconds=0.3))
    lease = await begin(store, "echo")
    await store.retry(lease, 1, [], {"code": "x"}, 0.5, counts=True)
    await store.leave(lease, job, retry_after_seconds=0.5)

    async def back() -> bool:
        await store.look(["echo"])
        return (await store.depths(["echo"]))["echo"][0] == 1

    await wait_until(back)
    assert (await store.job(job.id)).state is State.QUEUED
