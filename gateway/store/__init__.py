"""The store: jobs, their logs, their queues and their live feed in Redis or Valkey. Nobody else knows Redis.

store = await Store.connect("redis://localhost:6379/0")  # or redis+cluster://..., redis+sentinel://...
...
await store.close()
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Self

from gateway.config import Settings
from gateway.errors import ConfigurationError, Unavailable
from gateway.store.children import MAX_CHILDREN
from gateway.store.connection import Durability, translated, until_available
from gateway.store.convoy import Convoy
from gateway.store.feed import Feed, Follower
from gateway.store.handover import Handover
from gateway.store.kinds import Position
from gateway.store.listeners import MARK_SECONDS, Listeners
from gateway.store.log import PAGE_EVENTS, Log, LogPage
from gateway.store.look import Look
from gateway.store.records import (
    Appended,
    Begun,
    Claim,
    JobRecord,
    Lease,
    LogEntry,
    NewJob,
    StoredFile,
    Submitted,
    Upload,
    WriterEvent,
)
from gateway.store.renewer import Renewed, Renewer
from gateway.store.scripts import load
from gateway.store.topology import ClusterSlots
from gateway.store.uploads import Uploads, upload_not_found, wrong_offset
from gateway.store.write_token import WriteToken, read_token

__all__ = [
    "MARK_SECONDS",
    "MAX_CHILDREN",
    "PAGE_EVENTS",
    "Appended",
    "Begun",
    "Claim",
    "Feed",
    "Follower",
    "JobRecord",
    "Lease",
    "LogEntry",
    "LogPage",
    "NewJob",
    "Position",
    "Renewed",
    "Renewer",
    "Store",
    "StoredFile",
    "Submitted",
    "Upload",
    "WriteToken",
    "WriterEvent",
    "read_token",
    "until_available",
    "upload_not_found",
    "wrong_offset",
]


class Store(Log, Look, Uploads, Handover, Listeners):
    """All operations on jobs and uploads. Each raises `Unavailable` while Redis does not answer."""

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        prefix: str = "ol",
        durability: Durability = "redis",
        lease_seconds: float = 30,
        job_deadline_seconds: float = 7 * 86_400,
        tombstone_seconds: float = 7 * 86_400,
    ) -> Self:
        """Connect, check what the servers are, and start the live feed.

        Raises `Unavailable` if nobody answers and `ConfigurationError` for servers that can't be used.
        """
        store = cls(url, prefix, durability)
        store.lease_seconds = lease_seconds
        store.job_deadline_seconds = job_deadline_seconds
        store.tombstone_seconds = tombstone_seconds
        store._wanted = deque()
        store._wake = asyncio.Event()
        store._appends = Convoy(
            load("append"),
            store._topology,
            store._identity,
            partial(store._run, "append"),
            partial(store._called, "append"),
        )
        store._tasks = []
        try:
            await store._meet()
        except BaseException:
            await store.close()
            raise
        store._tasks += [
            asyncio.create_task(store._read_loop(), name="store reads the log"),
            asyncio.create_task(store._appends.keep_going(), name="store sends appends"),
            asyncio.create_task(store.feed.run(), name="store keeps the live feed"),
        ]
        if store._topology.period_seconds is not None:
            store._tasks.append(asyncio.create_task(store._topology.run(), name="store asks where the masters are"))
        return store

    _tasks: list[asyncio.Task[None]]

    async def _meet(self) -> None:
        """Find the servers, and see whether they are what they should be."""
        async with translated():
            if isinstance(self._topology, ClusterSlots):
                await self._topology.check_seeds()
            await self._topology.refresh()
            # Two connections: where two servers answer in turn, they show here.
            await asyncio.gather(*(server.ping() for server in self._client.servers()))
            await asyncio.gather(*(server.ping() for server in self._blocking.servers()))
        await self.info()
        if self._identity.conflict:
            raise ConfigurationError(f"OUTLAST_REDIS_URL: {self._identity.conflict}")

    def renewer(self, worker: str) -> Renewer:
        """A renewer for a worker's thread, with a connection of its own."""
        return Renewer(self._deployment, prefix=self._keys.prefix, lease_seconds=self.lease_seconds, worker=worker)

    @classmethod
    async def connect_when_up(cls, settings: Settings) -> Self:
        """Connect as the settings say, as soon as Redis answers. Raises `ConfigurationError`."""

        async def connect() -> Self:
            return await cls.connect(
                settings.redis_url,
                prefix=settings.prefix,
                durability=settings.durability,
                lease_seconds=settings.lease_seconds,
                job_deadline_seconds=settings.job_deadline_seconds,
                tombstone_seconds=settings.tombstone_seconds,
            )

        return await until_available(connect, "no answer from Redis yet")

    async def close(self) -> None:
        """Stop the feed and close all connections."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        for read in self._wanted:
            if not read.page.done():
                read.page.set_exception(Unavailable("This gateway is closing; come back."))
        for close in (self._client.aclose, self._blocking.aclose, self._topology.close):
            # Each by itself: one that meets a broken connection must not leave the others open.
            with suppress(Unavailable):
                async with translated():
                    await close()
