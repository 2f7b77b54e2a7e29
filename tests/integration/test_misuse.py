"""Bad input and misuse: a clear answer, and not a byte in Redis is another one afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.documents import KindDocument
from gateway.store import Store
from tests.jobs import begin, end, hand_over, submit
from tests.serving import Answer, Gateway, gateway_for

KIND = KindDocument(kind="echo")


@dataclass(frozen=True, slots=True)
class Scene:
    """A gateway, and jobs that are in a state each."""

    gateway: Gateway
    queued: str
    running: str
    ended: str
    cancelled: str
    token: str
    """With which the ended job was reported."""

    async def events(self, after: str, accept: str = "text/event-stream") -> Answer:
        """The queued job's events after a cursor."""
        path = f"/v1/jobs/{self.queued}/events"
        return await self.gateway.get(path, params={"after": after}, headers={"Accept": accept})

    async def socket(self, after: str) -> dict[str, Any]:
        """The problem with which a subscription after a cursor is answered."""
        async with self.gateway.session.ws_connect(f"{self.gateway.url}/v1/ws") as socket:
            await socket.send_json({"op": "subscribe", "ref": "1", "job": self.queued, "after": after})
            answer: dict[str, Any] = await socket.receive_json()
            return answer

    async def report(self, *events: dict[str, Any]) -> Answer:
        """Report as the worker of the job that has ended."""
        path, headers = f"/v1/worker/jobs/{self.ended}/events", {"Authorization": f"Bearer {self.token}"}
        return await self.gateway.post(path, headers=headers, json={"events": list(events)})


@pytest.fixture
async def scene(store: Store, tmp_path: Path) -> AsyncIterator[Scene]:
    """One job of each state; the one that has ended was another worker's by its token."""
    ids = [(await submit(store, KIND, owner="local")).id for _ in range(2)]
    over, token = await hand_over(store, "echo")
    running = await begin(store, "echo")
    await end(store, over, batch=1)
    cancelled = await submit(store, KIND, owner="local")
    await store.cancel(cancelled.id, "local", "enough")
    queued = await submit(store, KIND, owner="local")
    assert {over.job, running.job} == set(ids)
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield Scene(gateway, queued.id, running.job, over.job, cancelled.id, token)


_READ: dict[bytes, tuple[Any, ...]] = {
    b"hash": ("HGETALL",),
    b"string": ("GET",),
    b"list": ("LRANGE", 0, -1),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
}


async def everything(store: Store) -> dict[bytes, Any]:
    """What all keys hold, and whether each has a time to live."""
    found = {}
    for server in store._client.servers():
        async for key in server.scan_iter(f"{store._keys.prefix}:*"):
            command, *rest = _READ[await server.type(key)]
            found[key] = (await server.ttl(key) > 0, await server.execute_command(command, key, *rest))
    return found


Misuse = Callable[[Scene], Awaitable[Answer]]
MISUSES: dict[str, tuple[Misuse, int, str]] = {
    "a cursor in the future": (lambda scene: scene.events("99"), 400, "bad_cursor"),
    "a cursor in the future, as lines": (lambda scene: scene.events("99", "application/x-ndjson"), 400, "bad_cursor"),
    "a cursor in the future, as a page": (lambda scene: scene.events("99", "application/json"), 400, "bad_cursor"),
    "a negative cursor": (lambda scene: scene.events("-1"), 400, "bad_cursor"),
    "a cursor that is no number": (lambda scene: scene.events("x"), 400, "bad_cursor"),
    "a result asked for too early": (
        lambda scene: scene.gateway.get(f"/v1/jobs/{scene.running}/result"), 409, "not_finished"
    ),
    "an event reported after the end": (
        lambda scene: scene.report({"type": "log", "data": {"message": "late"}}), 409, "lease_lost"
    ),
    "a second end": (lambda scene: scene.report({"type": "succeeded", "data": {"result": 2}}), 409, "lease_lost"),
    "a redrive of a job that waits": (
        lambda scene: scene.gateway.post(f"/v1/jobs/{scene.queued}/retry"), 409, "still_open"
    ),
    "a redrive of a job that runs": (
        lambda scene: scene.gateway.post(f"/v1/jobs/{scene.running}/retry"), 409, "still_open"
    ),
}  # fmt: skip


@pytest.mark.parametrize("misuse", MISUSES)
async def test_misuse_is_answered_clearly_and_changes_nothing(scene: Scene, store: Store, misuse: str) -> None:
    """A status, a stable code, and words that say what to do."""
    act, status, code = MISUSES[misuse]
    before = await everything(store)

    answer = await act(scene)

    problem = answer.json()
    assert (answer.status, problem["code"], len(problem["detail"]) > 20) == (status, code, True)
    assert await everything(store) == before


async def test_a_cancelled_job_that_is_cancelled_again_is_answered_as_it_is(scene: Scene, store: Store) -> None:
    """That is no mistake: the first answer may have been lost. The first reason stays, and nothing is written."""
    before = await everything(store)

    answer = await scene.gateway.post(f"/v1/jobs/{scene.cancelled}/cancel", json={"reason": "other words"})

    assert (answer.status, answer.json()["state"]) == (200, "cancelled")
    assert b"other words" not in answer.body
    assert await everything(store) == before


async def test_a_cursor_of_another_job_is_told_by_reset_and_changes_nothing(scene: Scene, store: Store) -> None:
    """It is no error to be fixed by whoever listens: what follows is whole, and of this job only."""
    cursor = (await store.job(scene.ended)).last
    before = await everything(store)

    path = f"/v1/jobs/{scene.cancelled}/events"
    answer = await scene.gateway.get(path, headers={"Last-Event-ID": str(cursor)})

    assert answer.status == 200
    assert answer.body.count(b'"type":"reset"') == 1
    assert scene.ended.encode() not in answer.body
    assert await everything(store) == before


@pytest.mark.parametrize("after", ["99", "-1", "x"])
async def test_a_wrong_cursor_over_a_websocket_changes_nothing(scene: Scene, store: Store, after: str) -> None:
    """The same words as over HTTP, with the request's own reference."""
    before = await everything(store)

    answer = await scene.socket(after)

    assert (answer["op"], answer["ref"], answer["problem"]["code"]) == ("error", "1", "bad_cursor")
    assert await everything(store) == before
