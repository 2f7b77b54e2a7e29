"""The blob collector: deletes the files of jobs that are gone, and of uploads that never became a job."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from typing import Final

from gateway.blobs import Blobs
from gateway.errors import Gone, NotFound, Unavailable
from gateway.store import Store

logger = logging.getLogger(__name__)

# An upload may take hours before its job is made; after a day nobody is still sending.
ORPHAN_SECONDS: Final = 86_400.0
_PAUSE_SECONDS: Final = 3600.0
_ASKED_AT_ONCE: Final = 200


async def collect_loop(store: Store, blobs: Blobs) -> None:
    """Collect about every hour; never returns. Any number of processes may do it at once."""
    while True:
        # Jittered: gateways that were started together should not list a large bucket together.
        await asyncio.sleep(_PAUSE_SECONDS * random.uniform(0.5, 1.5))
        try:
            deleted = await collect(store, blobs)
        except Unavailable as error:
            logger.warning("files are not collected now: %s", error.detail)
        else:
            if deleted:
                logger.info("deleted the files of %d jobs and uploads that are gone", deleted)


async def collect(store: Store, blobs: Blobs, *, orphan_seconds: float = ORPHAN_SECONDS) -> int:
    """Delete what no job refers to and what is left of uploads; returns of how many. Raises `Unavailable`."""
    return await _collect_uploads(store, blobs) + await _collect_jobs(store, blobs, orphan_seconds)


async def _collect_uploads(store: Store, blobs: Blobs) -> int:
    """An upload's record is there before its first blob and tells when its time is over: no record, no upload."""
    deleted = 0
    for asked in _some(list(await blobs.newest("uploads"))):
        for upload, is_open in zip(asked, await store.open_uploads(asked), strict=True):
            if not is_open:
                await blobs.delete_prefix(f"uploads/{upload}")
                deleted += 1
    return deleted


async def _collect_jobs(store: Store, blobs: Blobs, orphan_seconds: float) -> int:
    deleted = 0
    changed_at = await blobs.newest("jobs")
    for asked in _some(list(changed_at)):
        for job, record in zip(asked, await store.read_jobs(asked), strict=True):
            if record is None and (time.time() - changed_at[job] > orphan_seconds or await _is_gone(store, job)):
                await blobs.delete_prefix(f"jobs/{job}")
                deleted += 1
    return deleted


def _some(names: list[str]) -> Iterator[list[str]]:
    """So many of them at a time as are asked for at once."""
    for start in range(0, len(names), _ASKED_AT_ONCE):
        yield names[start : start + _ASKED_AT_ONCE]


async def _is_gone(store: Store, job: str) -> bool:
    """Whether there was such a job: its files go at once. One that never was may still be on its way in."""
    try:
        await store.job(job)
    except Gone:
        return True
    except NotFound:
        return False
    return False
