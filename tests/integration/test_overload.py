"""Too much of everything: Redis without memory, and an owner with ten thousand jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from gateway.blobs import Blobs
from gateway.embedded import EmbeddedValkey
from gateway.errors import Unavailable
from gateway.protocol import START, State
from gateway.store import JobRecord, Store
from tests.faults import wait_until
from tests.integration.test_worker import KINDS, working
from tests.jobs import begin, end, event, new_job
from tests.serving import Gateway, gateway_for
from tests.worker_jobs import end_of

_MIB = 1024 * 1024
GATED, ECHO = KINDS["gated"].document, KINDS["echo"].document


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store of its own, whose memory the test fills."""
    async with EmbeddedValkey(tmp_path / "valkey") as server:
        store = await Store.connect(server.url, prefix="full", lease_seconds=0.6)
        for kind in (GATED, ECHO):
            await store.register_kind(kind)
        yield store
        await store.close()


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


async def submit(store: Store, key: str) -> JobRecord:
    """Submit a job under a key."""
    return (await store.submit(await store.job_id("me", key), new_job(ECHO), keyed=True)).record


async def fill(store: Store) -> None:
    """Fill Redis's memory, and leave it full whatever buffers are given back."""
    used = int((await store._client.info("memory"))["used_memory"])
    await store._client.config_set("maxmemory", used + 4 * _MIB)
    number = 0
    with suppress(OutOfMemoryError):
        while True:
            number += 1
            await store._client.set(f"filler:{number}", b"x" * 100_000)
    await store._client.config_set("maxmemory", used + 2 * _MIB)


async def test_new_jobs_are_refused_and_accepted_ones_are_found(gateway: Gateway, store: Store) -> None:
    """503 `store_full` with Retry-After for a new key; the same job for a key that has one."""
    body: dict[str, Any] = {"input": {}}
    headers = {"Idempotency-Key": "before"}
    before = await gateway.post("/v1/kinds/echo/jobs", json=body, headers=headers)
    await fill(store)

    refused = [
        await gateway.post("/v1/kinds/echo/jobs", json=body),
        await gateway.post("/v1/kinds/echo/jobs", json=body, headers={"Idempotency-Key": "after"}),
    ]
    replayed = await gateway.post("/v1/kinds/echo/jobs", json=body, headers=headers)

    for answer in refused:
        assert (answer.status, answer.json()["code"]) == (503, "store_full")
        assert int(answer.headers["Retry-After"]) >= 1
    assert (replayed.status, replayed.json()["id"]) == (202, before.json()["id"])
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert (await gateway.get(before.json()["urls"]["self"])).json()["state"] == "queued"


async def test_accepted_jobs_go_through_every_step(store: Store) -> None:
    """Begun, reported, tried again, taken over, cancelled, ended, and forgotten by the queue."""
    jobs = [await submit(store, str(i)) for i in range(4)]
    await fill(store)

    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("output", {"index": "1", "value": "x" * 1000}, "1")])
    await store.retry(lease, 2, [], {"code": "processor_error"}, 0, counts=True)
    await store.leave(lease, await store.job(lease.job), retry_after_seconds=0)
    await begin(store, "echo", "dead")
    await store.cancel(jobs[-1].id, "me", "enough")

    async def finished() -> bool:
        await store.look(["echo"])
        for claim in await store.claim("echo", "w", 4):
            begun = await store.begin(claim, "w")
            if begun.lease is not None:
                await end(store, begun.lease, batch=1)
        records = await store.read_jobs([job.id for job in jobs])
        return all(record is not None and record.terminal for record in records)

    await wait_until(finished)
    states = [(await store.job(job.id)).state for job in jobs]
    assert states == [State.SUCCEEDED] * 3 + [State.CANCELLED]
    with pytest.raises(Unavailable):
        await submit(store, "new")


async def test_a_worker_that_starts_then_finishes_what_was_accepted(store: Store, tmp_path: Path) -> None:
    """It announces nothing new, shows itself, and looks after the jobs of a worker that died before."""
    gate = tmp_path / "gate"
    gate.touch()
    (tmp_path / "files").mkdir()
    blobs = Blobs.open((tmp_path / "files").as_uri())
    await store.check_place(await blobs.marker())
    made = new_job(GATED, input_={"gate": str(gate)})
    waiting, orphan = [(await store.submit(await store.job_id("me", None), made, keyed=False)).record for _ in range(2)]
    taken = (await begin(store, "gated", "dead")).job
    await fill(store)

    await store.check_place(await blobs.marker())
    async with working(store, blobs, "gated", "echo"):
        await end_of(store, waiting.id)
        await end_of(store, orphan.id)
        assert [worker["kinds"] for worker in await store.workers()] == [["echo", "gated"]]

    types = [entry.type for entry in (await store.events(taken, START)).entries]
    assert types.count(b"retrying") == 1
    assert (await store.job(waiting.id)).state is State.SUCCEEDED
    assert (await store.job(orphan.id)).state is State.SUCCEEDED


async def test_room_again_is_service_again(store: Store) -> None:
    """Nothing has to be restarted."""
    await fill(store)
    with pytest.raises(Unavailable) as refused:
        await submit(store, "a")
    await store._client.config_set("maxmemory", 0)

    assert (await submit(store, "a")).state is State.QUEUED
    assert refused.value.code == "store_full"


async def test_one_owners_backlog_does_not_delay_another_owners_first_job(store: Store) -> None:
    """Of 10,000 jobs not one more is begun: it waits for what runs already, which is one job's length at most."""
    keys = store._keys.kind("echo")
    for start in range(0, 10_000, 1_000):
        await asyncio.gather(
            *(store._run("enqueue", keys, (f"greedy{start + i}", "normal", "greedy", 8, 60_000)) for i in range(1_000))
        )

    for i in range(30):
        for _ in range(3):
            assert (await store.claim("echo", "w", 1))[0].job.startswith("greedy")
        newcomer = (
            await store.submit(await store.job_id("me", None), new_job(ECHO, owner=f"small{i}"), keyed=False)
        ).record
        assert await store.positions([newcomer]) == [(1, None)]
        assert (await store.claim("echo", "w", 1))[0].job == newcomer.id
