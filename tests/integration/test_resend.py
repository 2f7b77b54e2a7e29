"""A lost reply makes a client send a script again: whichever it was, logs and pointers are what they would be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.documents import KindDocument
from gateway.protocol import START, State, decode_event
from gateway.requests import JobOptions
from gateway.store import Store
from gateway.store.scripts import _FOLDER, load
from tests.faults import FaultProxy, wait_until
from tests.jobs import begin, end, event, new_job

KIND = KindDocument(kind="echo")
# Of uploads and of attempts that are handed over: these have tests of their own.
ELSEWHERE = {"adopt", "extend", "notice", "seal"}
SCRIPTS = sorted(
    path.stem for path in _FOLDER.glob("*.lua") if not path.stem.startswith("lib_") and path.stem not in ELSEWHERE
)


@pytest.fixture
async def proxy(valkey: str) -> AsyncIterator[FaultProxy]:
    """A proxy before Valkey."""
    async with FaultProxy(valkey) as proxy:
        yield proxy


@pytest.fixture
async def shaky_store(proxy: FaultProxy, prefix: str) -> AsyncIterator[Store]:
    """A store behind the proxy, with keys of its own."""
    store = await Store.connect(proxy.url, prefix=f"{prefix}s", lease_seconds=30)
    await store.register_kind(KIND)
    yield store
    await store.close()


async def history(store: Store) -> dict[str, Any]:
    """Two jobs that go through everything that can happen to a job; returns what is left of it."""
    keys = store._keys.kind("echo")
    one = await store.job_id("me", "key")
    two = await store.job_id("me", None)
    lonely = JobOptions(on_disconnect="cancel")
    for _ in range(2):
        await store.submit(one, new_job(KIND), keyed=True)
    await store.submit(two, new_job(KIND, options=lonely), keyed=False)
    await store.mark(two, "somebody")
    await store.present("worker", ["echo"], 1)
    await store.pause("echo", True)
    await store.pause("echo", False)

    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("output", {"index": "1", "value": 1}, "1")])
    await store.renew(lease)
    await store.retry(lease, 2, [], {"code": "processor_error"}, 0, counts=True)
    await store.leave(lease, await store.job(one), retry_after_seconds=0)

    lease = await begin(store, "echo", "dead")
    await store._client.hset(store._keys.record(one), "lease_until", 1)
    await _look_until(store, one, lambda job: job.state is State.QUEUED)

    lease = await begin(store, "echo")
    await store.cancel(one, "me", "enough")
    await end(store, lease, batch=1, type_="cancelled", data={"by": "me", "reason": "enough"})
    lease = await begin(store, "echo")
    assert lease.job == two
    problem = {"code": "retries_exhausted", "detail": "x"}
    await end(store, lease, batch=1, type_="failed", data={"problem": problem, "partial": False})

    for job in (one, two):
        await store._client.hincrby(store._keys.record(job), "ended", -20_000)
        await _look_until(store, job, lambda _: False, forgotten=True)
    dead = [job.id for job in (await store.dead_jobs("echo", "me"))[0]]
    await store.redone(await store.job(two), "a" * 26)
    return {
        "logs": [await _log(store, job) for job in (one, two)],
        "failures": (await store.job(one)).failures,
        "dead": [dead == [two], await store.count_dead(["echo"])],
        "pointers": [await store._client.zcard(key) for key in keys[:3]],
        "waiting": {name: count for name, count in (await store._client.hgetall(keys[6])).items() if count != b"0"},
        "workers": len(await store.workers()),
        "redone": (await store.job(two)).redone_as,
        "listed": [job.id for job in (await store.jobs("me"))[0]] in ([two, one], [one, two]),
    }


async def _look_until(store: Store, job: str, there: Any, *, forgotten: bool = False) -> None:
    """Let the job be due, and look until something holds of it, or until nothing points to it any more."""
    due = store._keys.kind("echo")[1]
    await store._client.zadd(due, {job: 0})

    async def looked() -> bool:
        await store.look(["echo"])
        if forgotten:
            return await store._client.zscore(due, job) is None
        return bool(there(await store.job(job)))

    await wait_until(looked, 15)


async def _log(store: Store, job: str) -> list[tuple[int | None, str, int | None, dict[str, Any]]]:
    events = [decode_event(entry.text) for entry in (await store.events(job, START)).entries]
    return [(one.id, one.type, one.attempt, one.data) for one in events]


@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_script_whose_reply_was_lost_is_safe_to_send_again(
    store: Store, shaky_store: Store, proxy: FaultProxy, script: str
) -> None:
    """Compared with the same history without a fault."""
    # It also makes the scripts known to the server: what is lost must be an answer, not "never heard of it".
    plain = await history(store)
    proxy.drop_reply(load(script).sha.encode())

    shaky = await history(shaky_store)

    assert proxy.dropped.is_set()
    assert shaky == plain
    assert [len(log) for log in plain["logs"]] == [9, 3]
    assert plain["pointers"] == [0, 0, 0]
