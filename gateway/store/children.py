"""Jobs that a job is made of: a parent submits children, waits for them, and a takeover finds them again."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from typing import Final

from gateway.errors import LeaseLost, NotFound
from gateway.store.jobs import Jobs, encode_id
from gateway.store.queue import Queue
from gateway.store.records import JobRecord, Lease

# Their ids stand in the parent's record, so that its end finds them.
MAX_CHILDREN: Final = 1000


class Children(Jobs, Queue):
    """A child's id follows from what it is for, so a step that is done again finds the child that did it."""

    async def child_id(self, root: str, step: str, fingerprint: str, turn: int) -> str:
        """The id of the job that does a step of a tree of jobs; `turn` counts how often it was begun anew."""
        text = f"child:{root}:{turn}:{len(step)}:{step}{fingerprint}".encode()
        return encode_id(hmac.new(await self.secret(), text, hashlib.sha256).digest())

    async def wait_for_child(self, lease: Lease, record: JobRecord, child: str) -> None:
        """Note a child, and that its parent only waits: it takes no place under its kind's cap meanwhile.

        Raises `LeaseLost`.
        """
        await self._wait(lease, "1", child)
        await self.leave(lease, record, retry_after_seconds=self.lease_seconds)

    async def go_on(self, lease: Lease) -> None:
        """The parent goes on. Raises `LeaseLost`."""
        await self._wait(lease, "", "")
        await self._run("rejoin", self._keys.kind(lease.kind), (lease.job, lease.attempt))

    async def _wait(self, lease: Lease, waits: str, child: str) -> None:
        answer = await self._run("wait", self._keys.job(lease.job), (lease.attempt, lease.nonce, waits, child))
        if answer == b"lost":
            raise LeaseLost(f"Job {lease.job} is not attempt {lease.attempt}'s any more.")

    async def cancel_children(self, parent: JobRecord, by: str) -> None:
        """Cancel the children of an ended job that are still open."""
        for child in parent.children:
            with suppress(NotFound):
                await self.cancel(child, by, f"its parent {parent.id} has ended")
