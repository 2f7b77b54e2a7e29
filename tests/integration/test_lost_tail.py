"""A Redis that comes back with an older copy of a job, and a feed that loses messages: nobody hears a wrong story.

The kind's slot with an older copy is a step of `test_store_machine.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.blobs import Blobs
from gateway.documents import KindDocument
from gateway.hub import Hub
from gateway.metrics import NoMetrics
from gateway.protocol import START
from gateway.requests import JobOptions
from gateway.store import NewJob, Store
from processors.worker import Worker
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.integration.test_failover import Listening, paced
from tests.jobs import begin, end, event, submit
from tests.worker_jobs import log_of

STEPS = 20


@asynccontextmanager
async def hub_of(store: Store) -> AsyncIterator[Hub]:
    """A hub with a short heartbeat for the length of the block."""
    hub = Hub(store, heartbeat_seconds=0.5, write_stall_seconds=20, write_buffer_bytes=256 * 1024, metrics=NoMetrics())
    running = asyncio.create_task(hub.run())
    try:
        yield hub
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def copy_of(store: Store, job: str) -> dict[str, bytes | None]:
    """What a replica has of a job's slot."""
    return {key: await store._client.dump(key) for key in store._keys.job(job)[:6]}


async def fail_over(store: Store, copy: dict[str, bytes | None]) -> None:
    """The slot is as it was; everybody's connection to the old master is gone."""
    async with store._client.pipeline(transaction=True) as pipe:
        for key, value in copy.items():
            pipe.delete(key)
            if value is not None:
                pipe.restore(key, 0, value)
        await pipe.execute()
    await store._client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")


@pytest.mark.parametrize("copied", ["queued", "running"])
@pytest.mark.parametrize("restored", ["running", "ended"])
async def test_a_job_whose_slot_lost_its_tail_ends_once_and_its_listener_is_told(
    valkey: str, prefix: str, blobs: Blobs, copied: str, restored: str
) -> None:
    """Accepted = ended; the log is whole; the listener saw whole rows, and a `reset` between them."""
    store = await Store.connect(valkey, prefix=prefix, lease_seconds=1.5)
    worker = Worker(store, blobs, {"paced": paced}, concurrency=1, stop_grace_seconds=0.0, max_inline_bytes=64 * 1024)
    running: asyncio.Task[None] | None = None
    try:
        async with hub_of(store) as hub:
            job = await store.job_id("me", None)
            await store.register_kind(paced.document)
            new = NewJob(paced.document, "me", {"to": STEPS}, JobOptions(), "fingerprint", ())
            record = (await store.submit(job, new, keyed=False)).record
            listener = Listening(hub)
            hub.open(listener)
            await hub.start(hub.place(listener, record, START))
            copy = await copy_of(store, job)
            running = asyncio.create_task(worker.run())
            await wait_until(lambda: len(listener.numbers) > 5)
            if copied == "running":
                copy = await copy_of(store, job)
            seen = len(listener.numbers)
            await wait_until(lambda: len(listener.numbers) > seen + 3 or listener.closed.done())
            if restored == "ended":
                await asyncio.wait_for(asyncio.shield(listener.closed), PATIENCE_SECONDS)

            await fail_over(store, copy)
            if restored == "ended":
                # An end is looked at once more, ten seconds later; here at once.
                await wait_until(lambda: _due(store, job))

            async def ended() -> bool:
                return (await store.job(job)).terminal

            await wait_until(ended, what="the end")
            events = await log_of(store, job)
            assert [event.type for event in events if event.terminal] == ["succeeded"]
            if restored == "running":
                await asyncio.wait_for(asyncio.shield(listener.closed), PATIENCE_SECONDS)
                assert listener.rows[-1][-1] == events[-1].id
                assert len(listener.rows) == 2
                assert [type_ for type_, _, _ in listener.unnumbered].count("reset") == 1
            else:
                # Whoever comes back with the cursor of an end that is lost hears of another one.
                again = Listening(hub)
                hub.open(again)
                await hub.start(hub.place(again, await store.job(job), listener.cursors[-1]))
                await asyncio.wait_for(again.closed, PATIENCE_SECONDS)
                assert again.unnumbered[0][0] == "reset"
                assert again.rows[-1] == list(range(again.rows[-1][0], (events[-1].id or 0) + 1))
            for row in listener.rows:
                assert row == list(range(row[0], row[0] + len(row)))
    finally:
        worker.stop()
        if running is not None:
            await running
        await store.close()


async def _due(store: Store, job: str) -> bool:
    return bool(await store._client.zadd(store._keys.kind("paced")[1], {job: 0}, xx=True, ch=True))


async def test_a_feed_that_loses_every_message_delays_and_loses_nothing(valkey: str, prefix: str) -> None:
    """Pub/sub is the fast path only: what it doesn't bring is found in the log, a heartbeat later."""
    async with FaultProxy(valkey) as proxy:
        # The feed takes no notice of words that it doesn't know.
        proxy.rewrite(b"smessage", b"lmessage")
        deaf = await Store.connect(proxy.url, prefix=prefix)
        store = await Store.connect(valkey, prefix=prefix)
        try:
            async with hub_of(deaf) as hub:
                kind = KindDocument(kind="echo")
                await store.register_kind(kind)
                record = await submit(store, kind)
                listener = Listening(hub)
                hub.open(listener)
                await hub.start(hub.place(listener, record, START))
                lease = await begin(store, "echo")
                for batch in range(1, 31):
                    await store.append(lease, batch, [event("log", {"message": str(batch)})])
                await end(store, lease, batch=31)

                await asyncio.wait_for(listener.closed, PATIENCE_SECONDS)
                assert listener.numbers == list(range(1, 34))
                assert deaf.feed.reconnects == 0
        finally:
            await deaf.close()
            await store.close()
