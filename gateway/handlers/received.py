"""What a submit's body holds: JSON, multipart, or a raw file. Files go to the blob store as they come in."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, Self

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.multipart import MultipartReader, content_disposition_filename, parse_content_disposition
from pydantic_core import from_json

from gateway.auth import Principal
from gateway.documents import KindDocument
from gateway.errors import (
    BadRequest,
    Conflict,
    InvalidInput,
    OutlastError,
    RequestError,
    TooLarge,
    Unavailable,
    UnsupportedType,
)
from gateway.handlers import joining
from gateway.handlers.body import ask_for_body, body_chunks, body_too_large, check_length, small_json
from gateway.handlers.context import BLOBS, METRICS, SETTINGS, STORE
from gateway.handlers.filenames import FORM, UNKNOWN, clean_name, guess_type, media_type, unique_name
from gateway.handlers.joining import JOINS, owned_upload
from gateway.handlers.strict_json import read_json
from gateway.handlers.submission import UploadedFile, check_file_allowed, submit
from gateway.handlers.validation import validated
from gateway.requests import MAX_FILES, JobOptions, JobRequest
from gateway.store import JobRecord, StoredFile, Submitted

# As many as tell every type apart that is known by them.
_MAGIC_BYTES: Final = 16
_MAX_PARTS: Final = MAX_FILES + 32
_PART_CHUNK: Final = 256 * 1024
# Room for the options and for white space, on top of the input's own limit.
_JSON_SPARE_BYTES: Final = 64 * 1024
_OPTIONS: Final = frozenset(JobOptions.model_fields)
_SUBMIT_QUERY: Final = frozenset({"input", "options", "filename"})


class Received:
    """What a submit's body held. As a context manager: files that no job has taken over are deleted at its end."""

    def __init__(
        self,
        app: web.Application,
        kind: KindDocument,
        asking: Principal,
        key: str | None,
        request: JobRequest | None = None,
    ) -> None:
        self._blobs = app[BLOBS]
        self._app = app
        self._store = app[STORE]
        self._joins = app[JOINS]
        self._settings = app[SETTINGS]
        self._metrics = app[METRICS]
        self._kind = kind
        self._asking = asking
        self._key = key
        self._job = ""
        self._keys: list[str] = []
        self.request = request or JobRequest()
        self.files: list[UploadedFile] = []

    async def __aenter__(self) -> Self:
        self._job = await self._store.job_id(self._asking.owner, self._key)
        return self

    async def __aexit__(self, *_: object) -> None:
        for key in self._keys:
            # What can't be deleted now is found by the blob collector: no job refers to it.
            with suppress(OutlastError):
                await self._blobs.delete(key)

    def _keep(self) -> None:
        """The job refers to the files now, or it may: they are not ours to delete any more."""
        self._keys.clear()

    async def read(self, request: web.Request) -> None:
        """Read the body. Raises `BadRequest`, `InvalidInput`, `TooLarge`, `UnsupportedType` and `Timeout`."""
        check_length(request, self._settings.max_upload_bytes)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedType("Compressed bodies are not read; send it without Content-Encoding.")
        declared = media_type(request.headers.get("Content-Type"))
        if declared == "application/json" or (declared in {None, UNKNOWN} and not request.can_read_body):
            await self._read_json(request)
        elif declared == "multipart/form-data":
            await self._read_multipart(request)
        elif declared is not None and declared.startswith("multipart/"):
            raise UnsupportedType("Of the multipart types only multipart/form-data is read.")
        else:
            await self._read_raw(request, declared or UNKNOWN)

    async def read_whole(self, request: web.Request, most_text_bytes: int) -> str | None:
        """Read the body as it is, whatever its type: short UTF-8 text is returned, anything else is a file."""
        limit = self._settings.max_upload_bytes
        check_length(request, limit)
        begin = bytearray()
        async with aclosing(body_chunks(request, limit)) as chunks:
            while len(begin) <= most_text_bytes and (chunk := await anext(chunks, b"")):
                begin += chunk
            if not begin:
                return None
            if len(begin) <= most_text_bytes:
                with suppress(UnicodeDecodeError):
                    return begin.decode()
            await self._put("body", UNKNOWN, _joined(bytes(begin), chunks))
        return None

    async def copy(self, old: JobRecord) -> None:
        """Take the input, the options and the files of an earlier job. Raises `NotFound` if a file is gone."""
        text = await self._blobs.get(old.input_blob) if old.input_blob else await self._store.input_of(old.id)
        # A time to start at that is past is no wish any more; every other one holds for the new job too.
        wishes = old.options.model_dump(exclude_unset=True, exclude={"start_at"})
        self.request = JobRequest(input=from_json(text), **wishes)
        for file in old.files:
            key = self._blobs.key_for(self._job)
            size, sha256 = await self._blobs.put(key, self._blobs.stream(file.blob), max_bytes=None)
            self._keys.append(key)
            self.files.append(UploadedFile(replace(file, size=size, blob=key), sha256))

    async def submit(self, *, retry_of: str | None = None, meaning: Any = None) -> Submitted:
        """Make the job of what was received; the files are the job's unless it is certain that there is none.

        `retry_of` and `meaning` are those of `submission.submit`. Raises what that does, and for files that are named
        by their uploads `NotFound` and `Conflict`.
        """
        await self._take_uploads()
        try:
            submitted = await submit(
                self._app,
                self._asking,
                self._kind.kind,
                self.request,
                key=self._key,
                files=self.files,
                job=self._job,
                retry_of=retry_of,
                meaning=meaning,
            )
        except RequestError:
            raise
        except BaseException as error:
            # Only `queue_full` is certain. After anything else the job may have been made: its reply was lost, it not.
            if not (isinstance(error, Unavailable) and error.code == "queue_full"):
                self._keep()
            raise
        if not submitted.replayed:
            self._keep()
        return submitted

    async def _take_uploads(self) -> None:
        until = asyncio.get_running_loop().time() + joining.PATIENCE_SECONDS
        for reference in self.request.files:
            upload = await owned_upload(self._store, reference.upload, self._asking.owner)
            if not upload.complete:
                raise Conflict(
                    f"The upload {upload.id} is not complete: {upload.offset} of {upload.length or 'unknown'} bytes are"
                    " there. Send the rest, then submit again.",
                    code="upload_incomplete",
                    offset=upload.offset,
                )
            if upload.content_type:
                check_file_allowed(self._kind, upload.content_type)
            if upload.length == 0:
                raise _file_empty(upload.name)
            blob, sha256 = await self._joins.joined(upload, until)
            content_type = upload.content_type or guess_type(upload.name, await self._first_bytes(blob))
            check_file_allowed(self._kind, content_type)
            key = self._blobs.key_for(self._job)
            self._keys.append(key)
            await self._blobs.copy(blob, key)
            self._add(upload.name, content_type, upload.offset, key, sha256)

    async def _first_bytes(self, blob: str) -> bytes:
        async with aclosing(self._blobs.stream(blob, 0, _MAGIC_BYTES)) as chunks:
            return await anext(chunks, b"")

    # --- one body of each sort --------------------------------------------------------------------------------------

    async def _read_json(self, request: web.Request) -> None:
        _refuse_query(request, frozenset())
        most = self._settings.max_inline_bytes + _JSON_SPARE_BYTES
        value = await small_json(request, most, _input_too_large(most))
        if not isinstance(value, dict):
            raise InvalidInput(
                'The body is a JSON object such as {"input": {...}, "priority": "high"}.',
                errors=[{"field": "body", "message": "not an object"}],
            )
        self.request = validated(JobRequest, value)

    async def _read_raw(self, request: web.Request, content_type: str) -> None:
        _refuse_query(request, _SUBMIT_QUERY)
        query = request.query
        options = _json_object(query["options"].encode(), "?options=") if "options" in query else {}
        input_ = _json_object(query["input"].encode(), "?input=") if "input" in query else {}
        self.request = _request(options, input_)
        disposition = request.headers.get("Content-Disposition")
        name = query.get("filename") or _disposition_name(disposition) or ""
        await self.store(name, content_type, body_chunks(request, self._settings.max_upload_bytes))

    async def _read_multipart(self, request: web.Request) -> None:
        _refuse_query(request, frozenset())
        await ask_for_body(request)
        options: dict[str, Any] = {}
        input_: dict[str, Any] = {}
        seen: set[str] = set()
        with _multipart_errors():
            reader = await request.multipart()
        for _ in range(_MAX_PARTS):
            with _multipart_errors():
                part = await reader.next()
            if part is None:
                break
            if isinstance(part, MultipartReader):
                raise BadRequest("A part that is multipart itself is not read.", code="bad_multipart")
            name, filename = _part_names(part)
            _check_part(part)
            if name not in {"input", "options"} and filename is not None:
                await self._store_part(request, part, filename)
                continue
            if name not in _OPTIONS | {"input", "options"}:
                known = ", ".join(["input", "options", *sorted(_OPTIONS)])
                raise InvalidInput(
                    f"The part {name[:64]!r} is neither a field nor a file; files have a filename.",
                    errors=[{"field": name[:64], "message": f"unknown field; known: {known}"}],
                )
            if name in seen:
                raise BadRequest(f"The part {name!r} comes twice.", code="bad_multipart")
            seen.add(name)
            text = await self._read_part(request, part)
            if name == "input":
                input_ = _json_object(text, "The part `input`")
            elif name == "options":
                options |= _json_object(text, "The part `options`")
            else:
                options[name] = _option(name, text)
        else:
            raise TooLarge(f"A body has at most {_MAX_PARTS} parts.", code="too_many_files")
        self.request = _request(options, input_)

    async def _store_part(self, request: web.Request, part: BodyPartReader, filename: str) -> None:
        if len(self.files) >= MAX_FILES:
            raise TooLarge(f"A job takes at most {MAX_FILES} files.", code="too_many_files")
        content_type = media_type(part.headers.get("Content-Type")) or UNKNOWN
        await self.store(filename, content_type, self._part_chunks(request, part))

    # --- files ------------------------------------------------------------------------------------------------------

    async def store(self, name: str, content_type: str, chunks: AsyncGenerator[bytes, None]) -> None:
        """Stream a file to the blob store under the job's id. Raises `TooLarge`, `InvalidInput`, `UnsupportedType`."""
        if content_type not in {UNKNOWN, FORM}:
            # Before the first byte is asked for: a client that waits for `100 Continue` need not send it.
            check_file_allowed(self._kind, content_type)
        async with aclosing(chunks):
            first = b""
            # What stands in between may pass a body on in pieces of any size.
            while len(first) < _MAGIC_BYTES and (chunk := await anext(chunks, b"")):
                first += chunk
            if content_type in {UNKNOWN, FORM}:
                content_type = guess_type(name, first, declared=content_type)
                check_file_allowed(self._kind, content_type)
            if not first:
                raise _file_empty(clean_name(name, content_type))
            await self._put(name, content_type, _joined(first, chunks))

    async def _put(self, name: str, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        key = self._blobs.key_for(self._job)
        size, sha256 = await self._blobs.put(key, chunks, max_bytes=self._settings.max_upload_bytes)
        self._keys.append(key)
        self._metrics.count("uploaded_bytes", size)
        self._add(name, content_type, size, key, sha256)

    def _add(self, name: str, content_type: str, size: int, key: str, sha256: str) -> None:
        unique = unique_name(clean_name(name, content_type), {file.stored.name for file in self.files})
        self.files.append(UploadedFile(StoredFile(unique, content_type, size, key), sha256))

    async def _part_chunks(self, request: web.Request, part: BodyPartReader) -> AsyncGenerator[bytes, None]:
        limit = self._settings.max_upload_bytes
        while not part.at_eof():
            with _multipart_errors():
                chunk = await part.read_chunk(_PART_CHUNK)
            if request.content.total_bytes > limit:
                raise body_too_large(limit)
            if chunk:
                yield bytes(chunk)

    async def _read_part(self, request: web.Request, part: BodyPartReader) -> bytes:
        most = self._settings.max_inline_bytes + _JSON_SPARE_BYTES
        text = bytearray()
        async for chunk in self._part_chunks(request, part):
            text += chunk
            if len(text) > most:
                raise _input_too_large(most)
        return bytes(text)


@contextmanager
def _multipart_errors() -> Iterator[None]:
    """What aiohttp's reader raises for a boundary that is missing, a header that is none, a body that breaks off."""
    try:
        yield
    except (ValueError, RuntimeError, AssertionError, LookupError, HttpProcessingError) as error:
        reason = " ".join(str(error).split())[:200] or "it can't be taken apart"
        raise BadRequest(f"The multipart body is broken: {reason}.", code="bad_multipart") from None


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _refuse_query(request: web.Request, known: frozenset[str]) -> None:
    """A misspelt or misplaced option in the address must not be ignored."""
    unknown = sorted(request.query.keys() & (_OPTIONS | _SUBMIT_QUERY) - known)
    if unknown:
        place = "into the JSON body, or into parts of the form" if not known else "into ?options={...}"
        raise InvalidInput(
            f"?{unknown[0]}= is not read here; put it {place}.",
            errors=[{"field": name, "message": "not a query parameter of this request"} for name in unknown],
        )


def _request(options: Mapping[str, Any], input_: dict[str, Any]) -> JobRequest:
    return validated(JobRequest, validated(JobOptions, options).model_dump(exclude_unset=True) | {"input": input_})


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    value = read_json(text, what) if text.strip() else {}
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} is a JSON object.", errors=[{"field": what, "message": "not an object"}])
    return value


def _option(name: str, text: bytes) -> Any:
    """An option that is a part of its own: JSON where it looks like a list, else its text."""
    if name == "tags":
        stripped = text.strip()
        if stripped.startswith(b"["):
            return read_json(stripped, "The part `tags`")
        return [tag.strip() for tag in _text(name, stripped).split(",") if tag.strip()]
    with suppress(ValueError):
        value = from_json(text)
        if isinstance(value, str | None):
            return value
    return _text(name, text).strip()


def _text(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"The part {name!r} is not UTF-8.", code="bad_multipart") from None


def _file_empty(name: str) -> InvalidInput:
    return InvalidInput(
        f"The file {name!r} is empty.",
        code="file_empty",
        errors=[{"field": "file", "message": "the file has no bytes"}],
    )


def _input_too_large(most: int) -> TooLarge:
    return TooLarge(
        f"The JSON is larger than {most} bytes. Send what is large as a file: multipart/form-data with an `input` part"
        " and the file.",
        code="input_too_large",
    )


def _disposition_name(header: str | None) -> str | None:
    if header is None:
        return None
    with warnings.catch_warnings():
        # A header that can't be read is as good as none.
        warnings.simplefilter("ignore")
        _, parameters = parse_content_disposition(header)
        return content_disposition_filename(parameters, "filename")


def _part_names(part: BodyPartReader) -> tuple[str, str | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name, filename = part.name, part.filename
    if name is None and filename is None:
        raise BadRequest("A part of the form has no name.", code="bad_multipart")
    return name or "", filename


def _check_part(part: BodyPartReader) -> None:
    encoding = part.headers.get("Content-Transfer-Encoding", "binary").lower()
    if encoding not in {"binary", "8bit", "7bit"} or "Content-Encoding" in part.headers:
        raise BadRequest("The parts of a form are sent as they are, without an encoding.", code="bad_multipart")
