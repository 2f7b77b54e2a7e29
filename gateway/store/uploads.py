"""Resumable uploads: how far each one is, and the blobs that its bytes are in. The bytes themselves are not here."""

from __future__ import annotations

import secrets
import time
from typing import Final

from gateway.errors import Conflict, NotFound, TooLarge, TooMany
from gateway.requests import MAX_FILES
from gateway.store.connection import Connection, translated
from gateway.store.jobs import encode_id
from gateway.store.records import Upload
from gateway.tokens import split_owner

# Nobody is still sending after a day; what no job has taken by then is deleted.
UPLOAD_SECONDS: Final = 86_400
# Of one owner at once. A job takes at most 64 files, so that several jobs can be on their way in.
MAX_OPEN_UPLOADS: Final = 512
# Of one user, whose token can be stolen: the files of one job.
MAX_USER_UPLOADS: Final = MAX_FILES
# Each is a blob and a line in Redis. With the clients' parts of 8 MiB it is far beyond what a file may be; it bounds
# those who send a byte at a time.
MAX_PARTS: Final = 10_000


class Uploads(Connection):
    """An upload's record and the list of its parts are in one slot; both go when its time is over."""

    async def create_upload(self, owner: str, *, name: str, content_type: str, length: int | None) -> Upload:
        """Begin an upload. `length` in bytes, None where it is not known yet. Raises `TooMany`."""
        upload = encode_id(secrets.token_bytes(16))
        listed = self._keys.uploads(owner)
        most = MAX_OPEN_UPLOADS if split_owner(owner)[1] is None else MAX_USER_UPLOADS
        now = time.time()
        async with translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.zremrangebyscore(listed, "-inf", now)
            pipe.zadd(listed, {upload: now + UPLOAD_SECONDS})
            pipe.zcard(listed)
            pipe.expire(listed, UPLOAD_SECONDS)
            count = (await pipe.execute())[2]
            if count > most:
                await self._client.zrem(listed, upload)
        if count > most:
            raise TooMany(
                f"You have {most} uploads of the last day open; DELETE those that you don't need.",
                code="too_many_uploads",
                retry_after_seconds=60,
            )
        fields: dict[str, str | int] = {
            "owner": owner,
            "name": name,
            "content_type": content_type,
            "length": "" if length is None else length,
            "offset": 0,
        }
        key = self._keys.upload(upload)[0]
        async with translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=fields)
            pipe.expire(key, UPLOAD_SECONDS)
            await pipe.execute()
        return Upload(upload, owner, name, content_type, length, 0, (now + UPLOAD_SECONDS) * 1000, None, "")

    async def upload(self, upload: str) -> Upload:
        """An upload as it is now. Raises `NotFound`, also when its time is over."""
        key = self._keys.upload(upload)[0]
        async with translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(key)
            pipe.pexpiretime(key)
            fields, expires_ms = await pipe.execute()
        if not fields:
            raise upload_not_found(upload)
        text = {name.decode(): value.decode() for name, value in fields.items()}
        return Upload(
            id=upload,
            owner=text["owner"],
            name=text["name"],
            content_type=text["content_type"],
            length=int(text["length"]) if text["length"] else None,
            offset=int(text["offset"]),
            expires_ms=float(expires_ms),
            blob=text.get("blob"),
            sha256=text.get("sha256", ""),
        )

    async def extend_upload(self, upload: str, offset: int, size: int, blob: str, *, length: int | None = None) -> int:
        """Take a part of `size` bytes that begins at `offset`; `length` says how long the whole is.

        Returns the new offset.
        Raises `Conflict` (`wrong_offset`, with the right one as `offset`), `TooLarge` and `NotFound`.
        """
        answer, *rest = await self._run_durably(
            "extend", self._keys.upload(upload), (offset, size, blob, "" if length is None else length, MAX_PARTS)
        )
        if answer == b"unknown":
            raise upload_not_found(upload)
        number = int(rest[0])
        if answer == b"wrong_offset":
            raise wrong_offset(number)
        if answer == b"too_long":
            raise TooLarge(f"The upload is {number} bytes long by its own word; this would be more.", length=number)
        if answer == b"too_many":
            raise TooLarge(
                f"An upload has at most {number} parts; begin again, with larger ones.", code="too_many_parts"
            )
        return number

    async def upload_parts(self, upload: str) -> list[str]:
        """The blobs of an upload's parts, in order; none after they have been joined."""
        async with translated():
            return [blob.decode() for blob in await self._client.lrange(self._keys.upload(upload)[1], 0, -1)]

    async def seal_upload(self, upload: str, blob: str, sha256: str) -> tuple[str, str]:
        """Say in which blob all parts stand joined. Returns the blob that counts, and its digest. Raises `NotFound`."""
        sealed = await self._run("seal", self._keys.upload(upload), (blob, sha256))
        if sealed == [b"unknown"]:
            raise upload_not_found(upload)
        return sealed[0].decode(), sealed[1].decode()

    async def delete_upload(self, upload: Upload) -> None:
        """Forget an upload."""
        async with translated():
            await self._client.delete(*self._keys.upload(upload.id))
            await self._client.zrem(self._keys.uploads(upload.owner), upload.id)

    async def open_uploads(self, uploads: list[str]) -> list[bool]:
        """Which of these are still there."""
        async with translated(), self._client.pipeline(transaction=False) as pipe:
            for upload in uploads:
                pipe.exists(self._keys.upload(upload)[0])
            return [bool(there) for there in await pipe.execute()]


def upload_not_found(upload: str) -> NotFound:
    """What is said of an upload that never was, is another owner's, or is over."""
    return NotFound(
        f"There is no upload {upload[:40]!r}; it was never begun, has expired, or is another owner's. Begin a new one.",
        code="upload_not_found",
    )


def wrong_offset(offset: int) -> Conflict:
    """What is said to a part that doesn't begin where the upload ends."""
    return Conflict(f"The upload stands at byte {offset}; go on from there.", code="wrong_offset", offset=offset)
