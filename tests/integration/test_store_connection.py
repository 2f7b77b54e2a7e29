"""The way to Redis: what is cancelled ends."""

from __future__ import annotations

import asyncio

from gateway.store import Store


async def test_a_cancelled_command_always_ends_its_caller(store: Store) -> None:
    """At whatever point of a command the cancel comes, it is not taken for an answer."""

    async def ask_for_ever() -> None:
        while True:
            await store.heads(["a"])

    for turns in range(200):
        task = asyncio.create_task(ask_for_ever())
        for _ in range(turns % 23):
            await asyncio.sleep(0)

        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=1)

        assert done, f"the cancel after {turns % 23} turns of the loop was swallowed"
