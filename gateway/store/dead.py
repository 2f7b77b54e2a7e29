"""Dead letters: jobs that used up their attempts. They wait for somebody who mends the cause and does them again.

A kind's set holds pointers; each job's record decides. It is no dead letter any more once it is done again, deleted
or expired.
"""

from __future__ import annotations

from typing import Final

from gateway.store.connection import translated
from gateway.store.jobs import Jobs
from gateway.store.records import JobRecord
from gateway.store.scripts import encode_owner
from gateway.tokens import owner_for

# So many per kind: a kind whose every job fails must not fill Redis. The oldest are forgotten; their records are not.
MAX_DEAD: Final = 10_000
_READ: Final = 200


class Dead(Jobs):
    """What the last look at a job leaves behind, if all attempts at it failed."""

    async def bury(self, record: JobRecord, expires_after_ms: int) -> None:
        """Put a job among its kind's dead letters; a second time changes nothing."""
        keys = [*self._keys.kind(record.kind), self._keys.dead(record.kind)]
        await self._run("bury", keys, (record.id, encode_owner(record.owner), expires_after_ms, MAX_DEAD))

    async def redone(self, old: JobRecord, new: str) -> None:
        """Note that an ended job is done again, as another one."""
        await self._run("redo", self._keys.job(old.id), (new,))
        async with translated():
            await self._client.zrem(self._keys.dead(old.kind), f"{old.id}|{encode_owner(old.owner)}")

    async def dead_jobs(
        self, kind: str, owner: str, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[JobRecord], str | None]:
        """An owner's dead letters of a kind, those that are kept longest first, and the next page's cursor, if any.

        Those of its users are among an API key's.
        """
        key, mine = self._keys.dead(kind), encode_owner(owner).encode()
        users = encode_owner(owner_for(owner, "")).encode()
        highest = f"({int(cursor)}" if cursor else "+inf"
        async with translated():
            rows = await self._client.zrevrangebyscore(key, highest, "-inf", withscores=True)
        whose = [(member.partition(b"|")[2], member, int(score)) for member, score in rows]
        rows = [(member, score) for name, member, score in whose if name == mine or name.startswith(users)]
        found: list[JobRecord] = []
        last = 0
        for start in range(0, len(rows), _READ):
            some = rows[start : start + _READ]
            records = await self.read_jobs([member.partition(b"|")[0].decode() for member, _ in some])
            for (_, score), record in zip(some, records, strict=True):
                if record is None or not record.dead:
                    continue
                # Jobs of the same millisecond stay on one page: the cursor is that millisecond.
                if len(found) >= limit and score != last:
                    return found, str(last)
                found.append(record)
                last = score
        return found, None

    async def count_dead(self, kinds: list[str]) -> dict[str, int]:
        """How many dead letters each kind has, of all owners."""
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for kind in kinds:
                pipe.zcard(self._keys.dead(kind))
            counts: list[int] = await pipe.execute()
        return dict(zip(kinds, counts, strict=True))
