"""Claiming work, beginning attempts, and leaving them: the worker's way through a kind's pointers."""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from typing import Any, Final

from gateway.event_text import encode_event_tail
from gateway.protocol import EventType
from gateway.store.connection import Connection, translated
from gateway.store.jobs import LONGEST_LOOK_MS, read_record
from gateway.store.records import Begun, Claim, JobRecord, Lease
from gateway.store.scripts import encode_owner

# Above this many kinds a worker polls only: each would hold a blocked connection.
MAX_BELLS: Final = 8
# An end is looked at once more after this: a failover may lose a write that was just acknowledged.
END_GRACE_MS: Final = 10_000
# What an attempt may need over its run time-out until its own worker has ended it.
_RUN_GRACE_MS: Final = 15_000


class Queue(Connection):
    """A worker claims what it can begin now, begins it, holds it while it runs, and leaves it when it is over."""

    lease_seconds: float
    _claims = itertools.count(time.time_ns())

    async def claim(self, kind: str, worker: str, limit: int) -> list[Claim]:
        """Take up to `limit` jobs of a kind. A job that is not begun within the hold time goes back to the queue."""
        keys = [*self._keys.kind(kind), self._keys.claims(kind, worker)]
        hold_ms = int(min(5.0, self.lease_seconds) * 1000)
        flat: list[bytes] = await self._run("claim", keys, (next(self._claims), limit, hold_ms))
        return [Claim(flat[i].decode(), kind, flat[i + 1].decode()) for i in range(0, len(flat), 2)]

    async def wait_for_work(self, kinds: list[str], timeout_seconds: float) -> None:
        """Wait until a kind's bell rings, or the time is over. Cancelling it may lose a ring, which is harmless."""
        # In a cluster the bells of several kinds can't be waited for by one command, but by one for each.
        groups = self._blocking.together([self._keys.bell(kind) for kind in kinds[:MAX_BELLS]])
        waits = [asyncio.ensure_future(self._blocking.blpop(group, timeout=timeout_seconds)) for group in groups]
        try:
            async with translated():
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in done:
                    wait.result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def begin(self, claim: Claim, worker: str) -> Begun:
        """Begin an attempt at a claimed job, with the event `started`; or say why not."""
        nonce = secrets.token_hex(8)
        started = encode_event_tail(EventType.STARTED, {"worker": worker})
        answer: list[Any] = await self._run(
            "begin",
            self._keys.job(claim.job),
            (claim.job, worker, nonce, int(self.lease_seconds * 1000), _RUN_GRACE_MS, started),
        )
        outcome = answer[0].decode()
        if outcome == "begun":
            record, input_ = read_record(answer[1])
            return Begun(outcome, Lease(claim.job, claim.kind, record.attempt, nonce), record, input_)
        if outcome == "unknown":
            await self._settle(claim.kind, claim.job, claim.token, "drop", 0)
        elif outcome == "ended":
            await self._settle(claim.kind, claim.job, claim.token, "later", END_GRACE_MS)
        elif outcome == "early":
            await self._settle(claim.kind, claim.job, claim.token, "later", int(answer[1]))
        return Begun(outcome)

    async def hold(self, claim: Claim, lease: Lease, *, grace_seconds: float | None = None) -> None:
        """Note a begun attempt in the kind's slot: in hand, and due when its lease is over, or its listeners' grace."""
        after_ms = int(min(self.lease_seconds, grace_seconds or self.lease_seconds) * 1000)
        await self._settle(claim.kind, claim.job, claim.token, "running", after_ms, attempt=lease.attempt)

    async def leave(
        self,
        lease: Lease,
        record: JobRecord,
        *,
        retry_after_seconds: float | None = None,
        ran_seconds: float = 0,
    ) -> None:
        """Take a job out of hand when its attempt is over: for good, or back to the queue after a delay.

        `ran_seconds` goes into what waiting jobs of the kind are told; 0 for an attempt that was broken off.
        """
        if retry_after_seconds is None:
            where, after_ms = "later", END_GRACE_MS
        elif retry_after_seconds > 0:
            where, after_ms = "later", int(retry_after_seconds * 1000)
        else:
            where, after_ms = "queue", LONGEST_LOOK_MS
        await self._run(
            "leave",
            self._keys.kind(lease.kind),
            (
                lease.job,
                lease.attempt,
                where,
                after_ms,
                record.priority,
                encode_owner(record.owner),
                math.ceil(ran_seconds * 1000),
            ),
        )

    async def _settle(
        self,
        kind: str,
        job: str,
        token: str,
        where: str,
        after_ms: int,
        *,
        priority: str = "",
        owner: str = "",
        attempt: int | str = 0,
    ) -> bool:
        arguments = (job, token, where, after_ms, priority, encode_owner(owner), attempt)
        return bool(await self._run("settle", self._keys.kind(kind), arguments))
