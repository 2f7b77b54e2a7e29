"""A job's file by its URL (`input_url`): fetched by the worker, under the guard of `processors.upstream`."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from gateway.blobs import Blobs
from gateway.store import StoredFile
from processors.errors import ProcessorError, Rejected
from processors.upstream import UpstreamError, configured

_UNKNOWN: Final = "application/octet-stream"


async def fetch_input(url: str, job: str, blobs: Blobs, content_types: Sequence[str]) -> StoredFile:
    """Store the file behind a URL as one of the job's. Raises `ProcessorError`, `Rejected` where a retry can't help."""
    try:
        async with configured().call("GET", url) as answer:
            if not 200 <= answer.status < 300:
                detail = f"The server of `input_url` answered {answer.status} instead of the file."
                kind = ProcessorError if answer.status >= 500 or answer.status == 429 else Rejected
                raise _said(kind, "input_url_failed", detail)
            name = _name(url)
            content_type = answer.content_type.split(";", 1)[0].strip().lower()
            if content_type in {"", _UNKNOWN}:
                content_type = mimetypes.guess_type(name)[0] or _UNKNOWN
            _check_type(content_type, content_types)
            key = blobs.key_for(job)
            size, _ = await blobs.put(key, answer.pieces(), max_bytes=None)
    except UpstreamError as error:
        raise _said(ProcessorError if error.passing else Rejected, error.code, error.detail) from error
    return StoredFile(name, content_type, size, key)


def _said(kind: type[ProcessorError], code: str, detail: str) -> ProcessorError:
    return Rejected(detail, code) if kind is Rejected else ProcessorError(code, detail)


def _check_type(content_type: str, allowed: Sequence[str]) -> None:
    """Raises `Rejected` for a type that the kind doesn't read; one that nobody knows is the processor's to judge."""
    main = content_type.partition("/")[0]
    if allowed and content_type != _UNKNOWN and not {content_type, f"{main}/*", "*/*"} & set(allowed):
        raise Rejected(
            f"The file behind `input_url` is {content_type}; this kind reads {', '.join(allowed)}.", "unsupported_type"
        )


def _name(url: str) -> str:
    last = unquote(urlsplit(url).path.rpartition("/")[2])
    return re.sub(r"[^\w.()+ -]", "_", last).strip(". ")[:100] or "file"
