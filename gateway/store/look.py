"""Looking after open jobs: what is due is judged, and pointers go where the record says they belong.

Every gateway and every worker looks, so that a job ends also when its worker died or none was ever there. The record
decides; a pointer may be double or stale, and costs a look.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from gateway.errors import Gone, NotFound, Unavailable
from gateway.event_text import encode_event_tail
from gateway.protocol import OPEN, EventType
from gateway.store.children import Children
from gateway.store.connection import all_done, translated
from gateway.store.dead import Dead
from gateway.store.deployment import Address
from gateway.store.health import Health
from gateway.store.jobs import LONGEST_LOOK_MS
from gateway.store.kinds import Kinds
from gateway.store.queue import END_GRACE_MS, Queue
from gateway.store.scripts import encode_owner

logger = logging.getLogger(__name__)

# Entries taken at once, and how long until another looker may take them, if this one dies.
_TAKE: Final = 64
_TAKEN_MS: Final = 2_000
# Of one kind in one look. A thousand that end in a second, or fall with one worker, wait for no further look; and who
# has more than that due does not keep other kinds waiting.
_MOST_TAKES: Final = 16
# With the take's 2 s this keeps "lease + 2 s" for a dead worker's job.
LOOK_SECONDS: Final = 0.5
# After a start or an outage, at most: so long workers have for renewing before anybody judges them.
GRACE_SECONDS: Final = 5.0
SWEEP_SECONDS: Final = 3600.0
_SWEEP_AGAIN_SECONDS: Final = 5.0
_SWEEP_WITHOUT_ROOM_SECONDS: Final = 60.0
# Records that are asked for in one pipeline.
_SWEPT: Final = 500
_OPEN: Final = frozenset(state.encode() for state in OPEN)


# Why a job with `on_disconnect: cancel` was cancelled.
ALONE_REASON: Final = "Nobody listened to the job any more, and it was submitted with on_disconnect=cancel."


def _failed(code: str, title: str, detail: str, **extra: Any) -> bytes:
    problem = {"type": f"/docs#problem-{code}", "title": title, "code": code, "detail": detail, **extra}
    return encode_event_tail(EventType.FAILED, {"problem": problem, "partial": False})


_WORKER_LOST: Final = {
    "type": "/docs#problem-worker_lost",
    "title": "The worker was lost",
    "code": "worker_lost",
    "detail": "The worker that had the job stopped answering.",
}
_TAILS: Final = (
    _failed("deadline", "The job was open for too long", "The job did not end before its overall deadline."),
    _failed("run_timeout", "The attempt ran for too long", "The attempt did not end within its run time-out."),
    _failed("start_deadline", "Nobody picked the job up", "No attempt had begun before the start deadline."),
    _failed(
        "retries_exhausted",
        "All attempts failed",
        "The worker that had the job stopped answering, and this was the last attempt.",
        cause="worker_lost",
    ),
    encode_event_tail(EventType.RETRYING, {"problem": _WORKER_LOST, "delay_seconds": 0}),
)


@contextmanager
def _noting(master: Address | None, away: set[Address]) -> Iterator[None]:
    """Note a master that does not answer."""
    try:
        yield
    except Unavailable as error:
        if master is not None and error.code != "store_full":
            away.add(master)
        raise


class Look(Children, Dead, Queue, Kinds, Health):
    """One look is: take what is due, judge each in its own slot, settle its pointers in the kind's slot."""

    async def look(
        self, kinds: Iterable[str], away: set[Address] | None = None, *, within_reach_seconds: float = 1e9
    ) -> int:
        """Look at what is due now; returns how many jobs. Safe to run anywhere, any time, twice at once.

        Nothing is asked of the masters that are `away`, and one that does not answer is put there. What the others hold
        is looked at all the same, then `Unavailable` is raised. `within_reach_seconds` is for how long Redis has been
        there for us: no job is taken for one without listeners as long as these have had no time to come back.
        """
        away = set() if away is None else away
        within_reach_ms = int(within_reach_seconds * 1000)
        return sum(await all_done([self._look_at_kind(kind, away, within_reach_ms) for kind in kinds]))

    async def _look_at_kind(self, kind: str, away: set[Address], within_reach_ms: int) -> int:
        looked = 0
        keys = self._keys.kind(kind)
        for _ in range(_MOST_TAKES):
            master = self._topology.owner(keys[0])
            if master in away:
                break
            with _noting(master, away):
                flat: list[bytes] = await self._run("take", keys, (_TAKE, _TAKEN_MS))
            pairs = [(flat[i].decode(), flat[i + 1].decode()) for i in range(0, len(flat), 2)]
            await all_done([self._look_at(kind, job, token, away, within_reach_ms) for job, token in pairs])
            looked += len(pairs)
            if len(pairs) < _TAKE:
                break
        return looked

    async def _look_at(self, kind: str, job: str, token: str, away: set[Address], within_reach_ms: int) -> None:
        keys = self._keys.job(job)
        master = self._topology.owner(keys[0])
        if master in away:
            return
        with _noting(master, away):
            arguments = (job, *_TAILS, END_GRACE_MS, LONGEST_LOOK_MS, within_reach_ms)
            answer: list[bytes] = await self._run("judge", keys, arguments)
        verdict = answer[0].decode()
        if verdict == "unknown":
            await self._settle(kind, job, token, "drop", 0)
            return
        after_ms, _, priority, owner, attempt, _ = (part.decode() for part in answer[1:7])
        if verdict == "alone":
            # Its own step, the same as anybody's cancel; the second look finds the job asked to stop, or gone.
            with suppress(NotFound, Gone):
                await self.cancel(job, "outlast", ALONE_REASON)
            await self._look_at(kind, job, token, away, within_reach_ms)
            return
        if verdict == "ended":
            await self._finish(job, int(after_ms))
            verdict = "drop"
        await self._settle(kind, job, token, verdict, int(after_ms), priority=priority, owner=owner, attempt=attempt)

    async def _finish(self, job: str, expires_after_ms: int) -> None:
        """The last things of an ended job: each is safe to do twice, and done before its pointers go."""
        record = (await self.read_jobs([job]))[0]
        if record is None:
            return
        await self.list_job(record)
        if record.children:
            await self.end_children(record, max(1, expires_after_ms))
        if record.dead and record.parent is None:
            await self.bury(record, expires_after_ms)

    async def sweep(self, servers: Iterable[str] = (), away: set[Address] | None = None) -> int:
        """Find open jobs without a due entry and give them one; returns how many.

        One process does it for each set of servers: a sweep of those before a failover tells nothing of those after it.
        Masters that are `away` are left out, and one that does not answer is put there.
        """
        away = set() if away is None else away
        found = 0
        of_these = ",".join(sorted(servers))
        # With a word that nobody else has: sent again after a lost reply, it meets itself.
        mine = f"{of_these} {secrets.token_hex(8)}"
        async with translated():
            there: bytes | None = await self._client.set(self._keys.sweeper, mine, nx=True, get=True, px=60_000)
            if there is not None and there.decode() != mine:
                if there.decode().rpartition(" ")[0] == of_these:
                    return 0
                await self._client.set(self._keys.sweeper, mine, px=60_000)
        names: list[bytes] = []
        for address, server in zip(self._topology.masters, self._client.servers(), strict=True):
            if address not in away:
                with _noting(address, away):
                    names += await self._records_at(server)
        for start in range(0, len(names), _SWEPT):
            found += await self._sweep_some(names[start : start + _SWEPT])
        return found

    async def _records_at(self, server: Any) -> list[bytes]:
        async with translated():
            return [name async for name in server.scan_iter(f"{self._keys.prefix}:{{*}}:job", count=500)]

    async def _sweep_some(self, names: Sequence[bytes]) -> int:
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(name, "state", "id", "kind", "owner")
            rows: list[list[bytes]] = await pipe.execute()
            jobs = [tuple(part.decode() for part in job) for state, *job in rows if state in _OPEN]
            for job, kind, _ in jobs:
                pipe.zscore(self._keys.kind(kind)[1], job)
            # An error where the kind's master is away: when it is back, a sweep follows.
            due: list[float | Exception | None] = await pipe.execute(raise_on_error=False)
        lost = [job for job, score in zip(jobs, due, strict=True) if score is None]
        for job, kind, owner in lost:
            # `reserve` sets a due entry only where there is none; room has been found already.
            await self._run("reserve", self._keys.kind(kind), (job, encode_owner(owner), 1 << 52, 1 << 52, 0, 1 << 52))
        return len(lost)

    async def look_loop(self) -> None:
        """Look every half second, and sweep at the start, after a change of server, and hourly; never returns.

        After a start, an outage or a change of server nobody is judged for min(5 s, lease): workers renew first. Nor is
        a job cancelled for want of listeners until these have had their grace, or a minute of it, to come back. Where
        one master of a cluster is away, what the others hold is looked at meanwhile.
        """
        clock = asyncio.get_running_loop().time
        grace = min(GRACE_SECONDS, self.lease_seconds)
        run_ids: frozenset[str] = frozenset()
        away: set[Address] = set()
        sweeps_at = float("-inf")
        connects: int | None = None
        reached_at = clock()
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.75, 1.25))
            away.intersection_update(self._topology.masters)
            try:
                if away or connects != self.feed.connects:
                    now_connects = self.feed.connects
                    answering = await self.answering()
                    if connects != now_connects or away & answering.keys():
                        reached_at = clock()
                        # Counted from their answer, not from their loss: only now can workers renew.
                        await asyncio.sleep(grace)
                        connects, away = now_connects, set(self._topology.masters) - answering.keys()
                        before, run_ids = run_ids, frozenset(str(info.get("run_id")) for info in answering.values())
                        if run_ids - before:
                            sweeps_at = float("-inf")
                if clock() >= sweeps_at:
                    # It may fail again and again, where a master is away that it needs: looking goes on in between.
                    sweeps_at = clock() + _SWEEP_AGAIN_SECONDS
                    found = await self.sweep(run_ids, away)
                    sweeps_at = clock() + SWEEP_SECONDS
                    if found:
                        logger.warning("sweep: %d open jobs had no due entry", found)
                await self.look(await self.kinds(), away, within_reach_seconds=clock() - reached_at)
            except Unavailable as error:
                if error.code == "store_full":
                    # Only the sweep needs room, for what it finds.
                    sweeps_at = clock() + _SWEEP_WITHOUT_ROOM_SECONDS
                elif len(self._topology.masters) == 1:
                    away.update(self._topology.masters)
