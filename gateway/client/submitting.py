"""A submit with files: in one multipart body while that is small and nothing is in its way, else in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pydantic_core import to_json, to_jsonable_python

from gateway.client.parts import LEAST_PART_BYTES, Parts
from gateway.client.subscription import may_pass
from gateway.client.upload import Body, Meter, Prepared, Progress, total_size
from gateway.errors import OutlastError, TooLarge, Unreachable

if TYPE_CHECKING:
    from gateway.client.answers import Answer
    from gateway.client.connection import Connection

# A smaller body is sent before an answer to "may I" would be there.
_EXPECT_BYTES: Final = 1024 * 1024


class Submit:
    """One submit: the same job whichever way its files go, for the gateway takes it for the same request."""

    def __init__(
        self,
        connection: Connection,
        kind: str,
        input_: Any,
        options: Mapping[str, Any],
        *,
        key: str,
        patience_seconds: float | None,
    ) -> None:
        self._connection = connection
        self._kind = kind
        self._path = f"/v1/kinds/{quote(kind, safe='')}/jobs"
        self._input = to_jsonable_python({} if input_ is None else input_)
        self._options = to_jsonable_python(options)
        self._headers = {"Accept": "application/json", "Idempotency-Key": key}
        self._patience_seconds = patience_seconds

    async def send(self, files: Sequence[Prepared], *, part_bytes: int, on_upload: Progress | None) -> Answer:
        """Send it. More than `part_bytes` go in parts at once, less only after a 413, an edge's answer or a cut."""
        if not files:
            return await self._send_json([])
        total = total_size(files)
        meter = Meter(on_upload, total)
        first_bytes = part_bytes
        if total is not None and total <= part_bytes:
            try:
                return await self._send_form(files, meter, repeatable=total <= LEAST_PART_BYTES)
            except TooLarge as error:
                if error.code != "http_413":
                    raise
                first_bytes = max(LEAST_PART_BYTES, total // 2)
            except OutlastError as error:
                if not may_pass(error) or total <= LEAST_PART_BYTES:
                    raise
                if not isinstance(error, Unreachable):
                    # The gateway's own "later": the way is good.
                    await self._connection.patience(self._patience_seconds).wait(error)
                first_bytes = LEAST_PART_BYTES
        return await self._send_parts(files, meter, part_bytes, first_bytes)

    async def _send_json(self, uploads: Sequence[str]) -> Answer:
        files = {"files": [{"upload": upload} for upload in uploads]} if uploads else {}
        return await self._connection.request(
            "POST",
            self._path,
            headers={**self._headers, "Content-Type": "application/json"},
            body=to_json({**self._options, "input": self._input, **files}),
            patience_seconds=self._patience_seconds,
        )

    async def _send_form(self, files: Sequence[Prepared], meter: Meter, *, repeatable: bool) -> Answer:
        body = Body([("input", to_json(self._input)), ("options", to_json(self._options))], files)
        size = body.size or 0
        return await self._connection.request(
            "POST",
            self._path,
            headers={**self._headers, "Content-Type": body.content_type, "Content-Length": str(size)},
            body=partial(body.chunks, meter),
            repeatable=repeatable,
            expect=size > _EXPECT_BYTES,
            patience_seconds=self._patience_seconds,
        )

    async def _send_parts(self, files: Sequence[Prepared], meter: Meter, part_bytes: int, first_bytes: int) -> Answer:
        parts = Parts(
            self._connection,
            part_bytes=part_bytes,
            first_bytes=first_bytes,
            patience_seconds=self._patience_seconds,
        )
        uploads: list[str] = []
        before = 0
        for file in files:
            uploads.append(await parts.send(self._kind, file, meter, before))
            before += file.content.size or 0
        answer = await self._send_json(uploads)
        for upload in uploads:
            await parts.delete(upload)
        return answer
