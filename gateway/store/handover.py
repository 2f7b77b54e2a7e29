"""Handing an attempt over to a process that is no worker of ours: a Celery task, a Ray actor, a script elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from contextlib import suppress
from typing import Any

from gateway.errors import LeaseLost, Unavailable
from gateway.store.jobs import Jobs, read_record
from gateway.store.records import Begun, Lease
from gateway.store.write_token import WriteToken, check_token, encode_token


class Handover(Jobs):
    """The worker makes a token and lets go; whoever brings the token adopts the attempt, once."""

    lease_seconds: float

    async def hand_over(self, lease: Lease, seconds: float, worker: str) -> str | None:
        """Keep an attempt's lease for so long without renewals, and return the token that adopts it.

        Until the token is used nobody has the job in hand, so a cancel ends it at once. None where somebody has asked
        for its end already: nothing is handed over. Raises `LeaseLost` if the attempt has the job no more.
        """
        token = await self._token(lease)
        return None if await self._renew(lease, seconds, worker, "over") is not None else token

    async def renew(self, lease: Lease) -> str | None:
        """Renew a lease for whoever has its token; returns who asked to cancel the job, if anybody.

        Raises `LeaseLost`.
        """
        return await self._renew(lease, self.lease_seconds, "", "taken")

    async def _renew(self, lease: Lease, seconds: float, worker: str, hand: str) -> str | None:
        arguments = (lease.attempt, lease.nonce, int(seconds * 1000), worker, hand)
        answer = await self._run("renew", self._keys.job(lease.job), arguments)
        if answer[0] == b"lost":
            raise lease.lost()
        return answer[1].decode() or None

    async def _nonce(self, lease: Lease, key: str) -> str:
        text = f"adopt:{lease.job}:{lease.nonce}:{key}".encode()
        return hmac.new(await self.secret(), text, hashlib.sha256).hexdigest()[:16]

    async def _token(self, lease: Lease) -> str:
        # No attempt lives longer than its job may; how long this one has is the lease's business.
        return encode_token(await self.secret(), lease, int(time.time() + self.job_deadline_seconds))

    async def check_write_token(self, token: str) -> WriteToken:
        """What a token says. Raises `WriteTokenNeeded` for one that is made up or too old."""
        return check_token(await self.secret(), token, time.time())

    async def adopt(self, lease: Lease, worker: str, *, key: str | None = None) -> tuple[Begun, str]:
        """Take a handed-over attempt, with a lease of the usual length, and the token of the new lease.

        The same `key` again is the same adoption, whose answer was lost. Raises `LeaseLost` where another one took it,
        the time to do so is over, or the job has ended.
        """
        nonce = secrets.token_hex(8) if key is None else await self._nonce(lease, key)
        answer: list[Any] = await self._run(
            "adopt",
            self._keys.job(lease.job),
            (lease.job, lease.attempt, lease.nonce, nonce, int(self.lease_seconds * 1000), worker),
        )
        if answer[0] == b"ended":
            raise LeaseLost(f"Job {lease.job} has ended: it is {answer[1].decode()}.")
        if answer[0] != b"adopted":
            raise LeaseLost(f"Attempt {lease.attempt} at job {lease.job} is somebody else's, or was given up.")
        record, input_ = read_record(answer[1])
        mine = Lease(lease.job, lease.kind, lease.attempt, nonce)
        # Its entry says when the time for the hand-over is over, which may be long after the new lease's end.
        with suppress(Unavailable):
            # The attempt is adopted, whatever comes of this: without it a dead adopter's job only waits for longer.
            await self._run("notice", self._keys.kind(lease.kind), (lease.job, int(self.lease_seconds * 1000)))
        return Begun("begun", mine, record, input_), await self._token(mine)
