"""Every script may be sent twice: Redis did it, the reply is lost, and redis-py sends the same bytes again.

One long story uses every script that there is. It is lived once in peace, and once for each script with the first reply
to that script lost on the way; what then stands in Redis must be the same.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import gateway.store
from gateway.documents import KindDocument
from gateway.protocol import START
from gateway.requests import JobOptions
from gateway.store import Store
from gateway.store.scripts import load
from tests.faults import FaultProxy, wait_until
from tests.jobs import begin, end, event, new_job

KIND = KindDocument(kind="echo", max_attempts=2)
MAIN, QUEUED, POISON, WATCHED = ("a" * 26, "b" * 26, "c" * 26, "d" * 26)
SCRIPTS = sorted(
    path.stem for path in (Path(gateway.store.__file__).parent / "lua").glob("*.lua") if path.stem[:4] != "lib_"
)


async def story(store: Store) -> dict[str, Any]:
    """What happens; returns what the store answered."""
    await store.register_kind(KIND)
    answers: dict[str, Any] = {}

    async def submit(job: str, **options: Any) -> None:
        submitted = await store.submit(job, new_job(KIND, options=JobOptions(**options)), keyed=False)
        answers[f"submit {job[0]}"] = submitted.replayed, submitted.record.state

    # A job that fails, is handed over in its second attempt, and ends.
    await submit(MAIN)
    lease = await begin(store, "echo")
    logged = [event("progress", {"current": 1}), event("output", {"index": "x", "value": 1}, "x")]
    answers["first"] = (await store.append(lease, 1, logged)).last.number
    answers["second"] = (await store.append(lease, 2, [event("log", {"message": "m"})])).last.number
    answers["uncounted"] = (await store.append(lease, None, [event("log", {"message": "uncounted"})])).last.number
    renewer = store.renewer("worker")
    answers["renewed"] = (await asyncio.to_thread(renewer.renew, [lease]))[MAIN]
    renewer.close()
    await store.retry(lease, 4, [], {"code": "x"}, 0, counts=True)
    await store.leave(lease, await store.job(MAIN), retry_after_seconds=0, ran_seconds=1)
    await store.pause("echo", True)
    answers["claimed while paused"] = await store.claim("echo", "worker", 1)
    await store.pause("echo", False)
    await store.present("worker", ["echo"], 1)
    lease = await begin(store, "echo")
    await store.wait_for_child(lease, await store.job(MAIN), "f" * 26)
    await store.go_on(lease)
    answers["children"] = (await store.job(MAIN)).children
    await store.hand_over(lease, 60, "worker")
    begun, _ = await store.adopt(lease, "adopter")
    assert begun.lease is not None
    await store.append(begun.lease, 1, [event("log", {"message": "adopted"})])
    answers["end"] = (await end(store, begun.lease, batch=2)).state

    # One that somebody watches.
    await submit(WATCHED, on_disconnect="cancel", start_at="2100-01-01T00:00:00Z")
    await store.mark(WATCHED, "gateway", 60)

    # One that is given up, laid among the dead by a look, and done again.
    await submit(POISON)
    lease = await begin(store, "echo")
    await store._client.hset(store._keys.record(POISON), "lease_until", 1)
    await until_looked_at(store, lambda: _is(store, POISON, "queued"))
    await begin(store, "echo")
    await store._client.hset(store._keys.record(POISON), "lease_until", 1)
    await until_looked_at(store, lambda: _is(store, POISON, "failed"))
    await store._client.hincrby(store._keys.record(POISON), "ended", -20_000)
    await until_looked_at(store, lambda: _buried(store))
    answers["dead"] = [record.id for record in (await store.dead_jobs("echo", "me"))[0]]
    await store.redone(await store.job(POISON), "e" * 26)

    # One that is cancelled in the queue.
    await submit(QUEUED)
    answers["cancelled"] = (await store.cancel(QUEUED, "me", "enough")).state
    await store.use_child(await store.job(QUEUED), MAIN)
    answers["parent"] = (await store.job(QUEUED)).parent

    return answers | await story_of_an_upload(store)


async def story_of_an_upload(store: Store) -> dict[str, Any]:
    """A file in parts."""
    upload = await store.create_upload("me", name="scan", content_type="image/png", length=None)
    extended = await store.extend_upload(upload.id, 0, 10, "blob 1", length=20)
    again = await store.extend_upload(upload.id, 10, 10, "blob 2")
    parts = await store.upload_parts(upload.id)
    sealed = await store.seal_upload(upload.id, "whole", "digest")
    return {"extended": extended, "extended again": again, "parts": parts, "sealed": sealed}


async def until_looked_at(store: Store, predicate: Callable[[], Awaitable[bool]]) -> None:
    """Look until something is so; a look whose reply was lost comes again two seconds later."""

    async def so() -> bool:
        await store._client.zadd(store._keys.kind("echo")[1], {POISON: 0}, xx=True)
        await store.look(["echo"])
        return await predicate()

    await wait_until(so)


async def _is(store: Store, job: str, state: str) -> bool:
    return (await store.job(job)).state == state


async def _buried(store: Store) -> bool:
    return (await store.count_dead(["echo"]))["echo"] == 1


async def picture(store: Store) -> dict[str, Any]:
    """What stands in Redis, but for times and random texts."""
    seen: dict[str, Any] = {}
    for job in (MAIN, QUEUED, POISON, WATCHED):
        entries = (await store.events(job, START)).entries
        seen[f"log {job[0]}"] = [
            (entry.number, entry.type, re.sub(rb'"time":"[^"]*"', b'"time":""', entry.text)) for entry in entries
        ]
        record = await store._client.hgetall(store._keys.record(job))
        kept = (
            "state",
            "attempt",
            "failures",
            "last",
            "bytes",
            "batch",
            "worker",
            "progress",
            "end",
            "redone_as",
            "waits",
        )
        seen[f"record {job[0]}"] = {name: record.get(name.encode()) for name in kept}
        seen[f"outputs {job[0]}"] = len(await store.outputs(job))
        seen[f"marks {job[0]}"] = await store._client.zrange(store._keys.job(job)[4], 0, -1)
    queue, due, running, fair, _, kind, waiting = store._keys.kind("echo")
    seen["queue"] = await store._client.zrange(queue, 0, -1, withscores=True)
    seen["due"] = sorted(await store._client.zrange(due, 0, -1))
    seen["running"] = await store._client.zrange(running, 0, -1, withscores=True)
    seen["fair"] = await store._client.zrange(fair, 0, -1, withscores=True)
    seen["waiting"] = await store._client.hgetall(waiting)
    seen["kind"] = await store._client.hmget(kind, "virtual_now", "paused", "ran_ms")
    seen["dead"] = await store._client.zrange(store._keys.dead("echo"), 0, -1)
    seen["listed"] = sorted(await store._client.zrange(store._keys.owner("me"), 0, -1))
    return seen


# Besides the first append: one of a writer that doesn't count, the one that ends an attempt, and the one that gives it
# back.
LATER = {
    "append (uncounted)": b'"message":"uncounted"',
    "append (retrying)": b'"type":"retrying"',
    "append (end)": b'"type":"succeeded"',
}


@pytest.mark.parametrize("script", [*SCRIPTS, *LATER])
async def test_a_script_whose_reply_is_lost_changes_nothing_twice(valkey: str, prefix: str, script: str) -> None:
    """Sent again, it gives the first answer, and logs, records and pointers are the same as without the loss."""
    peace = await Store.connect(valkey, prefix=f"{prefix}-p", lease_seconds=600)
    try:
        for name in SCRIPTS:
            # Then each is named by its digest, in both lives.
            await peace._client.script_load(load(name).text)
        expected = await story(peace), await picture(peace)
    finally:
        await peace.close()
    async with FaultProxy(valkey) as proxy:
        store = await Store.connect(proxy.url, prefix=prefix, lease_seconds=600)
        try:
            proxy.drop_reply(LATER.get(script) or load(script).sha.encode())
            lived = await story(store), await picture(store)
            assert proxy.dropped.is_set(), "the story doesn't use this script: let it"
        finally:
            await store.close()

    assert lived == expected


async def test_a_sweep_whose_first_reply_is_lost_is_done(valkey: str, prefix: str) -> None:
    """It doesn't take itself for another process that sweeps: nobody would, for an hour."""
    async with FaultProxy(valkey) as proxy:
        store = await Store.connect(proxy.url, prefix=prefix)
        try:
            await store.submit(MAIN, new_job(KIND), keyed=False)
            await store._client.delete(*store._keys.kind("echo"))
            proxy.drop_reply(store._keys.sweeper.encode())

            assert await store.sweep() == 1
            assert proxy.dropped.is_set()
            assert await store.sweep() == 0
        finally:
            await store.close()
