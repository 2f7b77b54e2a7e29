"""Resumable uploads as files: whose an upload is, and all of its parts as one blob with one digest."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final

from gateway.blobs import Blobs
from gateway.errors import NotFound, OutlastError
from gateway.protocol import JOB_PATTERN
from gateway.store import Store, Upload, upload_not_found

_UPLOAD: Final = re.compile(JOB_PATTERN, re.ASCII)


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


async def joined(store: Store, blobs: Blobs, upload: Upload) -> tuple[str, str]:
    """The blob that holds a complete upload's bytes, and their SHA-256. Raises `NotFound` once the upload has gone.

    The first call copies the parts behind each other, which takes as long as reading and writing the file does, in the
    memory of two pieces; later ones find the blob. Two at once both do the work, and the first one's is kept.
    """
    if upload.blob is not None:
        return upload.blob, upload.sha256
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


async def _bytes_of(blobs: Blobs, parts: Sequence[str]) -> AsyncIterator[bytes]:
    for part in parts:
        async for chunk in blobs.stream(part):
            yield chunk


async def _forget(blobs: Blobs, keys: Sequence[str]) -> None:
    for key in keys:
        # What can't be deleted now goes with the upload.
        with suppress(OutlastError):
            await blobs.delete(key)
