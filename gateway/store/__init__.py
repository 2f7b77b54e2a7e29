"""The store: jobs, their logs, their queues and their live feed in Redis or Valkey. Nobody else knows Redis.

store = await Store.connect("redis://localhost:6379/0")  # or redis+cluster://..., redis+sentinel://...
...
await store.close()
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Self

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


logger = logging.getLogger(__name__)


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
        store._keep(store._read_loop(), "store reads the log")
        store._keep(store._appends.keep_going(), "store sends appends")
        store._keep(store.feed.run(), "store keeps the live feed")
        if store._topology.period_seconds is not None:
            store._keep(store._topology.run(), "store asks where the masters are")
        return store

    _tasks: list[asyncio.Task[None]]

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run what goes on until `close`."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_tell_of_failure)
        self._tasks.append(task)

    async def _meet(self) -> None:
        """Find the servers, and see whether they are what they should be."""
        async with translated():
            if isinstance(self._topology, ClusterSlots):
                await self._topology.check_seeds()
            await self._topology.refresh()
            if not isinstance(self._topology, ClusterSlots):
                # Two connections: where two servers answer in turn, they show here.
                for client in (self._client, self._blocking):
                    await client.ping()
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
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for read in self._wanted:
            if not read.page.done():
                read.page.set_exception(Unavailable("This gateway is closing; come back."))
        for close in (self._client.aclose, self._blocking.aclose, self._topology.close):
            # Each by itself: one that meets a broken connection must not leave the others open.
            with suppress(Unavailable):
                async with translated():
                    await close()


def _tell_of_failure(task: asyncio.Task[None]) -> None:
    """A defect in what should never end is told when it happens, not when somebody closes the store."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s: it has failed; start this process again", task.get_name(), exc_info=error)
