"""What tests do with a worker in their own process: have it for a while, give it jobs, and see what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from gateway.blobs import Blobs
from gateway.event_text import decode_event
from gateway.protocol import START, Event
from gateway.requests import JobOptions
from gateway.store import JobRecord, NewJob, Store
from processors import Processor
from processors.worker import Worker
from tests.faults import PATIENCE_SECONDS, wait_until


@asynccontextmanager
async def working(
    store: Store, blobs: Blobs, kinds: Iterable[Processor], *, concurrency: int = 1, **options: Any
) -> AsyncIterator[Worker]:
    """A worker for the length of the block, once it is ready."""
    values: dict[str, Any] = {"stop_grace_seconds": 0.0, "max_inline_bytes": 64 * 1024} | options
    worker = Worker(store, blobs, {one.kind: one for one in kinds}, concurrency=concurrency, **values)
    running = asyncio.create_task(worker.run())
    try:
        # Models may be loaded, and child processes started, while other tests have the cores.
        async with asyncio.timeout(3 * PATIENCE_SECONDS):
            await worker.ready.wait()
        yield worker
    finally:
        worker.stop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running


async def submit(
    store: Store, of: Processor, *, retry_of: str | None = None, options: JobOptions | None = None, **input_: Any
) -> str:
    """Submit a job; returns its id."""
    await store.register_kind(of.document)
    new = NewJob(of.document, "me", input_, options or JobOptions(), "fingerprint", retry_of=retry_of)
    return (await store.submit(await store.job_id("me", None), new, keyed=False)).record.id


async def end_of(store: Store, job: str, seconds: float = PATIENCE_SECONDS) -> JobRecord:
    """A job at its end."""

    async def ended() -> JobRecord | None:
        record = await store.job(job)
        return record if record.terminal else None

    record: JobRecord = await wait_until(ended, seconds, what=f"the end of {job}")
    return record


async def log_of(store: Store, job: str) -> list[Event]:
    """A job's whole log, which must be numbered 1..n."""
    events: list[Event] = []
    while True:
        page = await store.events(job, events[-1].cursor or START if events else START)
        if not page.entries:
            break
        events += [decode_event(entry.text) for entry in page.entries]
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.terminal for event in events[:-1]] == [False] * (len(events) - 1)
    return events
