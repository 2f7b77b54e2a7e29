"""Resumable uploads as files: whose an upload is, and all of its parts as one blob with one digest."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final

from aiohttp import web

from gateway.blobs import Blobs
from gateway.errors import NotFound, OutlastError, Unavailable
from gateway.protocol import JOB_PATTERN
from gateway.store import Store, Upload, upload_not_found

_UPLOAD: Final = re.compile(JOB_PATTERN, re.ASCII)
# So long a submit is silent at most, below any hop's limit.
PATIENCE_SECONDS: Final = 20.0
_AT_ONCE: Final = 16


async def owned_upload(store: Store, upload: str, owner: str) -> Upload:
    """An owner's upload. Raises `NotFound`, also for another owner's: that it exists is nobody else's business."""
    if _UPLOAD.fullmatch(upload) is None:
        raise upload_not_found(upload)
    record = await store.upload(upload)
    if record.owner != owner:
        raise upload_not_found(upload)
    return record


def new_blob(upload: str) -> str:
    """A new key for a blob of this upload."""
    return f"uploads/{upload}/{secrets.token_hex(8)}"


class Joins:
    """The joins of one gateway: one for each upload, which goes on when the submit that began it has gone.

    At most 16 copy at once; more wait for their turn, of one owner no more than it has uploads.
    """

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._joining: dict[str, asyncio.Task[tuple[str, str]]] = {}

    async def joined(self, upload: Upload, until: float) -> tuple[str, str]:
        """The blob that holds a complete upload's bytes, and their SHA-256.

        The first call copies the parts behind each other, which takes as long as reading and writing the file does, in
        the memory of two pieces; later ones find the blob. Raises `NotFound` once the upload has gone, and
        `Unavailable` if it is not done when the loop's clock says `until`: then the copying goes on.
        """
        if upload.blob is not None:
            return upload.blob, upload.sha256
        join = self._joining.get(upload.id)
        if join is None:
            join = self._joining[upload.id] = asyncio.create_task(self._join(upload), name=f"join of {upload.id}")
            join.add_done_callback(lambda ended: self._ended(upload.id, ended))
        done, _ = await asyncio.wait([join], timeout=max(0, until - asyncio.get_running_loop().time()))
        if not done:
            raise Unavailable(
                f"The parts of the upload {upload.id} are being put together, which takes a while for"
                f" {upload.length} bytes; submit it again.",
                code="upload_joining",
                retry_after_seconds=random.uniform(2, 4),
            )
        return join.result()

    def _ended(self, upload: str, join: asyncio.Task[tuple[str, str]]) -> None:
        del self._joining[upload]
        # Whoever waited has heard of a failure; the next submit begins anew.
        _ = join.cancelled() or join.exception()

    async def close(self) -> None:
        """End what is under way; another gateway, or the next submit, begins it again."""
        joins = list(self._joining.values())
        for join in joins:
            join.cancel()
        await asyncio.gather(*joins, return_exceptions=True)

    async def _join(self, upload: Upload) -> tuple[str, str]:
        """On several gateways at once, each does the work, and the first one's is kept."""
        async with self._places:
            store, blobs = self._store, self._blobs
            parts = await store.upload_parts(upload.id)
            key = new_blob(upload.id)
            try:
                size, digest = await blobs.put(key, _bytes_of(blobs, parts), max_bytes=None)
            except NotFound:
                size, digest = -1, ""
            if size != upload.length:
                # Somebody else has joined them in the meantime and deleted the parts.
                await _forget(blobs, [key])
                now = await store.upload(upload.id)
                if now.blob is None:
                    raise upload_not_found(upload.id)
                return now.blob, now.sha256
            blob, sha256 = await store.seal_upload(upload.id, key, digest)
            await _forget(blobs, parts if blob == key else [key])
            return blob, sha256


JOINS: Final = web.AppKey("joins", Joins)


async def _bytes_of(blobs: Blobs, parts: Sequence[str]) -> AsyncIterator[bytes]:
    for part in parts:
        async for chunk in blobs.stream(part):
            yield chunk


async def _forget(blobs: Blobs, keys: Sequence[str]) -> None:
    for key in keys:
        # What can't be deleted now goes with the upload.
        with suppress(OutlastError):
            await blobs.delete(key)
