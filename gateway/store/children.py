"""Jobs that a job is made of: a parent submits children, waits for them, and a takeover finds them again."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from typing import Final

from gateway.errors import Gone, NotFound
from gateway.protocol import TERMINAL
from gateway.requests import MAX_RETENTION_SECONDS
from gateway.store.connection import translated
from gateway.store.jobs import Jobs, encode_id
from gateway.store.queue import Queue
from gateway.store.records import JobRecord, Lease

# Their ids stand in the parent's record, so that its end finds them.
MAX_CHILDREN: Final = 1000
# A step that still runs when its data is to be erased: long enough for its last look.
_ERASED_MS: Final = 60_000


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

    async def go_on(self, lease: Lease, *, at_once: bool = False) -> bool:
        """The parent is in hand again, if its kind's cap leaves it a place or `at_once`; tells whether it is.

        Asked again and again it gets the next place, before any new job. Raises `LeaseLost`.
        """
        # Only who has the lease may ask: what stands among the jobs in hand after its end is found by nobody.
        await self._wait(lease, "", "")
        if await self._run("rejoin", self._keys.kind(lease.kind), (lease.job, lease.attempt, int(at_once))):
            return True
        await self._wait(lease, "1", "")
        return False

    async def _wait(self, lease: Lease, waits: str, child: str) -> None:
        answer = await self._run("wait", self._keys.job(lease.job), (lease.attempt, lease.nonce, waits, child))
        if answer == b"lost":
            raise lease.lost()

    async def end_children(self, parent: JobRecord, keep_ms: int) -> None:
        """The last things of an ended job's steps: those that are open are cancelled, and all are kept as long as it.

        A step that a later job of the chain has found is that one's, and left alone.
        """
        for child in await self._own(parent):
            if not child.terminal:
                with suppress(NotFound, Gone):
                    await self.cancel(child.id, "outlast", f"its parent {parent.id} has ended")
            await self._run("keep", self._keys.job(child.id), (keep_ms, ""))
            await self.end_children(child, keep_ms)

    async def use_child(self, child: JobRecord, parent: str) -> None:
        """Note that a step is another job's from now on: it is kept as long as that one may be open."""
        await self._run("keep", self._keys.job(child.id), (int(MAX_RETENTION_SECONDS * 1000), parent))

    async def delete(self, record: JobRecord) -> list[str]:
        """Erase an ended job's data and that of its steps; returns whose. Their ids answer 410 from then on."""
        assert record.state in TERMINAL
        erased = [record.id]
        for child in await self._own(record):
            if child.terminal:
                erased += await self.delete(child)
        await self.end_children(record, _ERASED_MS)
        async with translated():
            await self._client.delete(*self._keys.job(record.id)[:5])
            await self._client.zrem(self._keys.owner(record.owner), record.id)
        return erased

    async def _own(self, parent: JobRecord) -> list[JobRecord]:
        children = await self.read_jobs(list(parent.children)) if parent.children else []
        return [child for child in children if child is not None and child.parent == parent.id]
