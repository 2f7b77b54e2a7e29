"""Kinds and workers: what work there is, and who says that they do it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from gateway.documents import KindDocument
from gateway.errors import ConfigurationError, Unavailable
from gateway.store.connection import Connection, translated
from gateway.store.records import JobRecord
from gateway.store.scripts import encode_owner

_CACHE_SECONDS = 1.0
# A worker that has not shown itself for this long is no longer counted as present.
PRESENCE_SECONDS = 15.0


class Position(NamedTuple):
    """A job's place in its kind's queue, from 1, and in how many seconds it begins, as far as anybody can tell.

    Both are None for a job that is not in the queue. There is no estimate without a worker, while the kind is paused,
    and before its first attempt has ended.
    """

    position: int | None
    eta_seconds: float | None


_NOWHERE: Final = Position(None, None)


def _position(rank: int | Exception | None, turn_seconds: float | None) -> Position | None:
    if isinstance(rank, Exception):
        return None
    if rank is None:
        return _NOWHERE
    return Position(rank + 1, None if turn_seconds is None else round((rank + 1) * turn_seconds, 1))


async def _time(server: Any) -> tuple[int, int]:
    """A server's own clock."""
    seconds, microseconds = await server.execute_command("TIME")
    return int(seconds), int(microseconds)


class Kinds(Connection):
    """Kinds are kept when no worker runs: a known kind without a worker takes jobs all the same."""

    _kinds_cache: tuple[float, dict[str, KindDocument]] = (float("-inf"), {})

    async def register_kind(self, document: KindDocument) -> None:
        """Make a kind known to all gateways, or replace what was known of it.

        Writes only what has changed: a worker that starts again must begin also where Redis has no memory left.
        """
        text, hash_key = document.model_dump_json().encode(), self._keys.kind(document.kind)[5]
        cap = b"" if document.max_running is None else str(document.max_running).encode()
        async with translated():
            if await self._client.hget(self._keys.kinds, document.kind) != text:
                await self._client.hset(self._keys.kinds, document.kind, text)
            known = await self._client.hget(hash_key, "max_running") or b""
            if cap and known != cap:
                await self._client.hset(hash_key, "max_running", cap)
            elif known and not cap:
                await self._client.hdel(hash_key, "max_running")
        self._kinds_cache = (float("-inf"), {})

    async def pause(self, kind: str, paused: bool) -> None:
        """Let no worker begin jobs of a kind, or let them again. Jobs are taken all the same, and wait."""
        await self._run("pause", self._keys.kind(kind), (int(paused),))

    async def paused(self, kinds: list[str]) -> frozenset[str]:
        """Which of these kinds are paused."""
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for kind in kinds:
                pipe.hget(self._keys.kind(kind)[5], "paused")
            rows = await pipe.execute()
        return frozenset(kind for kind, paused in zip(kinds, rows, strict=True) if paused == b"1")

    async def kinds(self) -> dict[str, KindDocument]:
        """All known kinds by name, at most a second old; what was known last while Redis does not say.

        In a cluster their master may be away, and their jobs be elsewhere.
        """
        read_at, kinds = self._kinds_cache
        if time.monotonic() - read_at < _CACHE_SECONDS:
            return kinds
        try:
            async with translated():
                stored: dict[bytes, bytes] = await self._client.hgetall(self._keys.kinds)
            kinds = {name.decode(): KindDocument.model_validate_json(text) for name, text in sorted(stored.items())}
        except Unavailable:
            if not kinds:
                raise
        self._kinds_cache = (time.monotonic(), kinds)
        return kinds

    async def positions(self, jobs: list[JobRecord]) -> list[Position | None]:
        """Each job's place in its kind's queue, all in one batch; None where that is at a master that is away."""
        kinds = sorted({job.kind for job in jobs})
        served: set[str] = set()
        with suppress(Unavailable):
            served = {kind for worker in await self.workers() for kind in worker["kinds"]}
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for kind in kinds:
                keys = self._keys.kind(kind)
                pipe.zcount(keys[2], 0, "+inf")
                pipe.hmget(keys[5], "paused", "ran_ms")
            for job in jobs:
                pipe.zrank(self._keys.kind(job.kind)[0], f"{job.id}|{job.priority}|{encode_owner(job.owner)}")
            rows = await pipe.execute(raise_on_error=False)
        turns: dict[str, float] = {}
        for i, kind in enumerate(kinds):
            running, said = rows[2 * i : 2 * i + 2]
            if isinstance(running, Exception) or isinstance(said, Exception):
                continue
            paused, ran_ms = said
            if kind in served and paused != b"1" and ran_ms:
                # While jobs wait, the places that the kind has are those that are taken.
                turns[kind] = int(ran_ms) / 1000 / max(1, running)
        ranks = rows[2 * len(kinds) :]
        return [_position(rank, turns.get(job.kind)) for job, rank in zip(jobs, ranks, strict=True)]

    async def present(self, worker: str, kinds: list[str], concurrency: int) -> None:
        """Say that a worker lives; call it every few seconds."""
        member = to_json({"worker": worker, "kinds": sorted(kinds), "concurrency": concurrency})
        await self._run("present", [self._keys.workers], (member, int(10 * PRESENCE_SECONDS)))

    async def absent(self, worker: str, kinds: list[str], concurrency: int) -> None:
        """Say that a worker is leaving."""
        member = to_json({"worker": worker, "kinds": sorted(kinds), "concurrency": concurrency})
        async with translated():
            await self._client.zrem(self._keys.workers, member)

    async def workers(self) -> list[dict[str, Any]]:
        """The workers that showed themselves lately: `worker`, `kinds`, `concurrency`, `seen_seconds` ago."""
        async with translated():
            seconds, _ = await self._client.at(self._keys.workers, _time)
            rows = await self._client.zrangebyscore(
                self._keys.workers, seconds - PRESENCE_SECONDS, "+inf", withscores=True
            )
        return [from_json(member) | {"seen_seconds": max(0.0, seconds - score)} for member, score in rows]

    async def check_place(self, marker: str) -> None:
        """Make sure that a blob store is the one in which the jobs' files are: the first that any process named.

        Raises `ConfigurationError` for another one: its process would find no file and lose what it writes.
        """
        async with translated():
            stored: bytes | None = await self._client.get(self._keys.place)
            if stored is None:
                await self._client.set(self._keys.place, marker, nx=True)
                stored = await self._client.get(self._keys.place)
        known = (stored or b"").decode()
        if known != marker:
            raise ConfigurationError(
                "OUTLAST_BLOB_URL: this is not the place where the files of the jobs in Redis are (its marker is"
                f" {marker}, theirs is {known}). Give all gateways and workers the same one. If the old files are gone"
                f" for good, delete the key {self._keys.place} in Redis."
            )
