"""A machine that loses its power: with `durability=disk`, whatever was acknowledged is on the disk by then."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.documents import KindDocument
from gateway.protocol import State
from gateway.store import Store
from tests.faults import wait_until
from tests.jobs import begin, end, submit
from tests.power import PoweredRedis, can_be_watched

KIND = KindDocument(kind="echo")


async def test_what_was_acknowledged_survives_the_loss_of_all_that_was_not_synced(tmp_path: Path, prefix: str) -> None:
    """Accepted and ended jobs are there at the next start; an end whose write was not synced is not confirmed."""
    if not await asyncio.to_thread(can_be_watched):
        pytest.skip("this system tells nobody what a process syncs")
    async with PoweredRedis(tmp_path / "redis") as server:
        store = await Store.connect(server.url, prefix=prefix, durability="disk")
        try:
            assert (await store.info())["warnings"] == []
            await store.register_kind(KIND)
            for _ in range(2):
                await submit(store, KIND)
            one, other = [await begin(store, "echo") for _ in range(2)]
            accepted = await asyncio.gather(*(submit(store, KIND) for _ in range(20)))
            await end(store, one, batch=1)
            server.hold_syncs()
            ending = asyncio.create_task(end(store, other, batch=1))
            await wait_until(lambda: server.held, what="a sync that is held back")
            assert not ending.done()
            await server.cut()
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        finally:
            await store.close()
        again = server.after_the_cut()
        await again.start()
        store = await Store.connect(server.url, prefix=prefix)
        try:
            assert [(await store.job(lease.job)).state for lease in (one, other)] == [State.SUCCEEDED, State.RUNNING]
            assert {(await store.job(job.id)).state for job in accepted} == {State.QUEUED}
        finally:
            await store.close()
            await again.close()
