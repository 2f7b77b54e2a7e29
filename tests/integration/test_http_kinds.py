"""Kinds over HTTP and in the shell: how they stand, and pausing them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.cli import Exit, main
from gateway.client import Client
from gateway.documents import KindDocument
from gateway.protocol import State
from gateway.requests import JobOptions
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end, submit
from tests.serving import AS_ME, AS_OTHER, KEYS, Gateway, gateway_for

KIND = KindDocument(kind="echo")


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


async def test_a_kind_says_how_it_stands(gateway: Gateway, store: Store) -> None:
    """Workers, what waits, what runs, and whether it is paused."""
    await store.present("w1", ["echo"], 2)
    for _ in range(3):
        await submit(store, KIND)
    await begin(store, "echo")

    one = (await gateway.get("/v1/kinds/echo")).json()
    listed = {kind["kind"]: kind for kind in (await gateway.get("/v1/kinds")).json()["kinds"]}

    assert (one["workers"], one["waiting"], one["running"], one["paused"]) == (1, 2, 1, False)
    assert listed["echo"] == one
    assert listed["form"]["workers"] == 0


async def test_a_paused_kind_takes_jobs_and_begins_none(gateway: Gateway, store: Store) -> None:
    """What runs goes on; a second pause and a new start of its worker change nothing."""
    await submit(store, KIND)
    lease = await begin(store, "echo")

    paused = await gateway.post("/v1/kinds/echo/pause")
    await gateway.post("/v1/kinds/echo/pause")
    await store.register_kind(KIND)
    accepted = await gateway.post("/v1/kinds/echo/jobs", json={})

    assert (paused.status, paused.json()["paused"]) == (200, True)
    assert accepted.status == 202
    assert await store.claim("echo", "w", 5) == []
    assert (await end(store, lease, batch=1)).state is State.SUCCEEDED
    assert (await gateway.get("/v1/kinds/echo")).json()["paused"] is True


async def test_a_resume_wakes_a_waiting_worker(gateway: Gateway, store: Store) -> None:
    """Nobody has to poll to hear of it."""
    await store.pause("echo", True)
    await submit(store, KIND)
    # The submit's own ring is taken by a worker that then finds nothing.
    await store.wait_for_work(["echo"], 1)
    assert await store.claim("echo", "w", 1) == []
    waiting = asyncio.create_task(store.wait_for_work(["echo"], 100))
    await asyncio.sleep(0)

    resumed = await gateway.post("/v1/kinds/echo/resume")

    assert resumed.json()["paused"] is False
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting
    assert len(await store.claim("echo", "w", 1)) == 1


async def test_a_paused_kinds_jobs_keep_their_deadlines_and_can_be_cancelled(gateway: Gateway, store: Store) -> None:
    """A pause holds back the beginning of work and nothing else."""
    await store.pause("echo", True)
    late = await submit(store, KIND, options=JobOptions(start_deadline_seconds=0.2))
    unwanted = await submit(store, KIND)

    assert (await store.cancel(unwanted.id, "me", "enough")).state is State.CANCELLED

    async def failed() -> bool:
        await store.look(["echo"])
        return (await store.job(late.id)).state is State.FAILED

    await wait_until(failed)


async def test_with_keys_only_an_operator_pauses(store: Store, tmp_path: Path) -> None:
    """It holds up everybody's jobs; the refusal says which setting allows it."""
    async with gateway_for(store, tmp_path / "b", api_keys=KEYS, operators=("me",)) as gateway:
        refused = [await gateway.post(f"/v1/kinds/echo/{verb}", headers=AS_OTHER) for verb in ("pause", "resume")]
        nobody = await gateway.post("/v1/kinds/echo/pause")
        unchanged = await store.paused(["echo"])
        allowed = await gateway.post("/v1/kinds/echo/pause", headers=AS_ME)
        unknown = await gateway.post("/v1/kinds/nope/pause", headers=AS_ME)

    assert [(answer.status, answer.json()["code"]) for answer in refused] == [(403, "operators_only")] * 2
    assert "OUTLAST_OPERATORS" in refused[0].json()["detail"]
    assert nobody.status == 401
    assert unchanged == frozenset()
    assert (allowed.status, allowed.json()["paused"]) == (200, True)
    assert (unknown.status, unknown.json()["code"]) == (404, "unknown_kind")


async def test_the_client_and_the_command_pause_and_resume(
    gateway: Gateway, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """And show it."""
    await submit(store, KIND)
    async with Client(gateway.url, patience_seconds=5) as client:
        assert (await client.pause("echo")).paused
        assert [kind.paused for kind in await client.kinds() if kind.kind == "echo"] == [True]
        assert not (await client.resume("echo")).paused

    async def outlast(*words: str) -> list[str]:
        assert await asyncio.to_thread(main, [*words, "--url", gateway.url]) == Exit.SUCCEEDED
        return capsys.readouterr().out.splitlines()

    assert await outlast("kinds", "pause", "echo") == ["echo is paused; 1 job waits, 0 in hand"]
    listed = [line.split("\t") for line in await outlast("kinds", "list")]
    assert ["echo", "paused", "0", "1", "0"] in [row[:5] for row in listed]
    assert await outlast("kinds", "resume", "echo") == ["echo is open; 1 job waits, 0 in hand"]
    assert await store.paused(["echo"]) == frozenset()
