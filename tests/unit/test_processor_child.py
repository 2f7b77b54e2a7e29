"""What a child process says to its worker, which may not listen for a while."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from processors.channel import Channel
from processors.child import RemoteContext

ABOUT: dict[str, Any] = {"job_id": "job", "kind": "kind", "attempt": 1, "tags": (), "files": [], "partial": False}


async def test_progress_that_a_busy_worker_does_not_take_is_replaced_and_not_piled_up() -> None:
    """A function may say how far it is in a tight loop, for as long as its worker is held up by another one."""
    ours, theirs = socket.socketpair()
    worker, child = await Channel.over(ours), await Channel.over(theirs)
    context = RemoteContext(child, ABOUT, threading.Event())
    said: list[int] = []
    try:
        for number in range(3000):
            context.progress({"current": number, "message": "x" * 1000})
            await asyncio.sleep(0)
        waiting = len(context._said)

        closing = asyncio.create_task(context.close())
        while not said or said[-1] < 2999:
            match await worker.receive():
                case ("progress", data):
                    said.append(data["current"])
        await closing
    finally:
        worker.close()
        child.close()

    assert waiting <= 2
    assert said == sorted(said)
    assert len(said) < 3000
