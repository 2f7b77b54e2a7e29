"""Appends by the quick way: what goes wrong there goes round, and is written once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.documents import KindDocument
from gateway.errors import Unavailable
from gateway.protocol import START
from gateway.store import Store, convoy
from tests.faults import FaultProxy, wait_until
from tests.jobs import begin, event, submit

KIND = KindDocument(kind="echo")


@pytest.fixture
async def store(proxy: FaultProxy, prefix: str) -> AsyncIterator[Store]:
    """A store at the end of that line, whose appends have their connection."""
    store = await Store.connect(proxy.url, prefix=prefix)
    await wait_until(lambda: has_connection(store))
    yield store
    await store.close()


def has_connection(store: Store) -> bool:
    """Whether appends can go by the quick way."""
    return any(road._wire is not None for road in store._appends._roads.values())


async def written_once(store: Store, jobs: list[str]) -> bool:
    """Whether each job has the one event that was appended to it."""
    logs = [(await store.events(job, START)).entries for job in jobs]
    return all([entry.type for entry in log] == [b"queued", b"started", b"log"] for log in logs)


async def test_appends_whose_answers_are_lost_go_round_and_are_written_once(store: Store, proxy: FaultProxy) -> None:
    """The server has done them: the repeats get the first answers. Later ones find a new connection."""
    leases = [(await submit(store, KIND), await begin(store, "echo"))[1] for _ in range(8)]
    proxy.drop_reply(b"EVALSHA")

    await asyncio.gather(*(store.append(lease, 1, [event("log", {"message": "a"})]) for lease in leases))

    assert proxy.dropped.is_set()
    assert await written_once(store, [lease.job for lease in leases])
    await wait_until(lambda: has_connection(store))


async def test_appends_on_a_connection_that_fell_silent_go_round(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reset tells of a machine that is gone."""
    monkeypatch.setattr(convoy, "SOCKET_TIMEOUT_SECONDS", 0.3)
    await submit(store, KIND)
    lease = await begin(store, "echo")
    [road] = store._appends._roads.values()
    silent = road._wire
    # The time-out was chosen when the connection began to stand.
    proxy.cut()
    await wait_until(lambda: road._wire not in {None, silent})

    proxy.black_hole()
    answer = asyncio.ensure_future(store.append(lease, 1, [event("log", {"message": "a"})]))
    await wait_until(lambda: road._under_way)
    await wait_until(lambda: not road._under_way)
    proxy.resume()
    await answer

    assert await written_once(store, [lease.job])


async def test_an_append_without_a_connection_goes_round(store: Store, proxy: FaultProxy) -> None:
    """The quick way is no condition: redis-py's connections go on, or come back sooner."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    [road] = store._appends._roads.values()
    proxy.refuse()
    assert road._wire is not None
    road._wire.abort()
    await wait_until(lambda: road._wire is None)

    await store.append(lease, 1, [event("log", {"message": "a"})])

    assert await written_once(store, [lease.job])
    proxy.refuse(False)


async def test_an_append_that_goes_round_is_given_up_with_its_caller(store: Store, proxy: FaultProxy) -> None:
    """Nothing of it succeeds when nobody counts on it any more."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    [road] = store._appends._roads.values()
    proxy.refuse()
    proxy.cut()
    await wait_until(lambda: road._wire is None)
    answer = asyncio.ensure_future(store.append(lease, 1, [event("log", {"message": "a"})]))
    await wait_until(_going_round)
    [task] = _going_round()

    answer.cancel()

    await asyncio.wait({answer})
    assert task.cancelling()
    proxy.refuse(False)


async def test_an_append_that_a_closing_store_had_under_way_is_told_so(store: Store, proxy: FaultProxy) -> None:
    """Who waits for an answer gets one."""
    await submit(store, KIND)
    lease = await begin(store, "echo")
    proxy.stall()
    [road] = store._appends._roads.values()
    answer = asyncio.ensure_future(store.append(lease, 1, [event("log", {"message": "a"})]))
    await wait_until(lambda: road._under_way)

    await store.close()

    with pytest.raises(Unavailable):
        await answer
    proxy.resume()


def _going_round() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task.get_name() == "store append by the ordinary way"}
