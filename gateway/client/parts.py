"""Files that go to the gateway in parts: each below an edge's body limit, after a cut from where the gateway stands.

The tus protocol, as `docs/http.md` has it under "Large files".
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gateway.client.backoff import Patience
from gateway.client.subscription import may_pass
from gateway.client.upload import CHUNK_BYTES, Meter, Prepared
from gateway.errors import Conflict, NotFound, OutlastError, TooLarge

if TYPE_CHECKING:
    from gateway.client.connection import Connection

# A part that a line brings through in a second even where it is slow, and that every edge takes: nginx's limit is 1 MB.
LEAST_PART_BYTES: Final = 256 * 1024
_TUS: Final = {"Tus-Resumable": "1.0.0"}


class Parts:
    """Uploads through one connection. A part that fails is followed by smaller ones, one that passes by larger ones."""

    def __init__(
        self, connection: Connection, *, part_bytes: int, first_bytes: int, patience_seconds: float | None
    ) -> None:
        self._connection = connection
        self._most = part_bytes
        self._size = min(first_bytes, part_bytes)
        self._patience_seconds = patience_seconds

    async def send(self, kind: str, file: Prepared, meter: Meter, before: int = 0) -> str:
        """Upload a file for a job of this kind; returns the upload's id. `before`: what the meter had until here.

        Raises what the gateway refuses, and `Unreachable` where nothing comes through until the patience is over.
        """
        try:
            return await self._send(kind, file, meter, before)
        except NotFound as error:
            # The gateway has forgotten it: it expired, or Redis lost it. From the start then, but not for ever.
            if error.code != "upload_not_found" or not file.content.repeatable:
                raise
            return await self._send(kind, file, meter, before)

    async def delete(self, upload: str) -> None:
        """Give an upload up. It is no matter if that fails: it would expire."""
        with suppress(OutlastError):
            await self._connection.request("DELETE", f"/v1/uploads/{upload}", headers=_TUS, repeatable=False)

    async def _send(self, kind: str, file: Prepared, meter: Meter, before: int) -> str:
        path = await self._begin(kind, file)
        patience = self._connection.patience(self._patience_seconds)
        offset = 0
        while offset != file.content.size:
            piece = await file.content.read(offset, self._size)
            try:
                await self._patch(path, offset, piece, partial(_advance, meter, before + offset))
            except Conflict as error:
                # An earlier connection's bytes came through after all.
                if offset == (offset := _known_offset(error.extra, error)):
                    raise
            except TooLarge as error:
                self._shrink(error)
            except OutlastError as error:
                if not may_pass(error):
                    raise
                self._size = max(LEAST_PART_BYTES, self._size // 2)
                reached = await self._offset(path, patience, error)
                if reached > offset:
                    patience.progressed()
                offset = reached
            else:
                if not piece:
                    break  # The end of a pipe: now the gateway knows the length too.
                offset += len(piece)
                meter.at(before + offset)
                patience.progressed()
                self._size = min(self._size * 2, self._most)
        return path.rpartition("/")[2]

    async def _begin(self, kind: str, file: Prepared) -> str:
        said = {"filename": file.name, "filetype": file.content_type, "kind": kind}
        pairs = [f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in said.items()]
        size = file.content.size
        length = {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
        headers = {**_TUS, **length, "Upload-Metadata": ",".join(pairs)}
        answer = await self._connection.request(
            "POST", "/v1/uploads", headers=headers, patience_seconds=self._patience_seconds
        )
        return f"/v1/uploads/{answer.json()['id']}"

    async def _patch(self, path: str, offset: int, piece: bytes | memoryview, report: Callable[[int], None]) -> None:
        headers = {
            **_TUS,
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(len(piece)),
            "Upload-Offset": str(offset),
        }
        if not piece:
            headers["Upload-Length"] = str(offset)
        body = partial(_slices, memoryview(piece), report)
        await self._connection.request("PATCH", path, headers=headers, body=body, repeatable=False)

    async def _offset(self, path: str, patience: Patience, error: OutlastError) -> int:
        """Where the gateway stands, once it answers again."""
        while True:
            await patience.wait(error)
            try:
                answer = await self._connection.request("GET", path, repeatable=False)
            except OutlastError as again:
                if not may_pass(again):
                    raise
                error = again
            else:
                return _known_offset(answer.json(), error)

    def _shrink(self, error: TooLarge) -> None:
        """After an edge's 413: its limit is below this size. Raises an error that is the gateway's own."""
        if error.code != "http_413" or self._size <= LEAST_PART_BYTES:
            raise error
        self._size = self._most = max(LEAST_PART_BYTES, self._size // 2)


def _known_offset(document: Mapping[str, Any], error: OutlastError) -> int:
    offset = document.get("offset")
    if not isinstance(offset, int):
        raise error
    return offset


def _advance(meter: Meter, before: int, sent: int) -> None:
    meter.at(before + sent)


async def _slices(piece: memoryview, report: Callable[[int], None]) -> AsyncIterator[memoryview]:
    """A part in chunks. The report says what the connection has taken."""
    for start in range(0, len(piece), CHUNK_BYTES):
        yield piece[start : start + CHUNK_BYTES]
        report(min(start + CHUNK_BYTES, len(piece)))
