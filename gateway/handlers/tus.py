"""Resumable uploads in parts, below any edge's body limit: the tus protocol 1.0.0, https://tus.io/protocols/resumable-upload.

The core protocol and its extensions creation, creation-with-upload, creation-defer-length, expiration and termination.
A submit then names the upload: `{"files": [{"upload": ID}]}`. Any gateway can take any part: what is known of an upload
is in the store, and every part is a blob of its own.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from aiohttp import web
from pydantic import BaseModel, Field

from gateway.blobs import Writer
from gateway.errors import BadRequest, OutlastError, PreconditionFailed, RequestError, TooLarge, UnsupportedType
from gateway.handlers.body import body_chunks
from gateway.handlers.context import BLOBS, METRICS, SETTINGS, STORE, known_kind, principal
from gateway.handlers.documents import answer_with
from gateway.handlers.filenames import UNKNOWN, clean_name, media_type
from gateway.handlers.joining import new_blob, owned_upload
from gateway.handlers.routes import NO_BODY, Answer, Parameter, Route
from gateway.handlers.submission import check_file_allowed
from gateway.store import Upload, wrong_offset

_VERSION: Final = "1.0.0"
_EXTENSIONS: Final = "creation,creation-with-upload,creation-defer-length,expiration,termination"
_PART_TYPE: Final = "application/offset+octet-stream"
_PATH: Final = "/v1/uploads"
# A long body becomes parts of about this size on its way in. What a connection that breaks off has brought is kept
# anyway; this is what a gateway that dies takes with it.
_PART_BYTES: Final = 8 * 1024 * 1024
_MAX_METADATA: Final = 16


class UploadDocument(BaseModel):
    """An upload as `GET /v1/uploads/{upload}` answers it."""

    id: str = Field(description="What a submit names: `files: [{upload: id}]`.")
    name: str
    content_type: str = Field(description="Empty: known by the first bytes when a job takes it.")
    offset: int = Field(description="So many bytes are there.")
    length: int | None = Field(description="How many there will be; null where that is not known yet.")
    complete: bool
    expires_at: str = Field(description="What no job has taken by then is deleted.")
    url: str


# --- requests ---------------------------------------------------------------------------------------------------------


async def describe_protocol(request: web.Request) -> web.Response:
    """`OPTIONS /v1/uploads`."""
    limit = request.app[SETTINGS].max_upload_bytes
    return web.Response(
        status=204, headers={"Tus-Version": _VERSION, "Tus-Extension": _EXTENSIONS, "Tus-Max-Size": str(limit)}
    )


async def create_upload(request: web.Request) -> web.Response:
    """`POST /v1/uploads`; a body is the first part."""
    _check_version(request)
    limit = request.app[SETTINGS].max_upload_bytes
    length = _number(request, "Upload-Length")
    deferred = request.headers.get("Upload-Defer-Length")
    if (length is None) != (deferred == "1"):
        raise BadRequest(
            "Send Upload-Length with the number of bytes, or Upload-Defer-Length: 1 if it isn't known yet."
        )
    if length is not None and length > limit:
        raise _too_large(limit)
    with_body = request.can_read_body and request.content_length != 0
    if with_body:
        _check_part_type(request)
    metadata = _metadata(request.headers.get("Upload-Metadata", ""))
    content_type = media_type(metadata.get("filetype")) or UNKNOWN
    content_type = "" if content_type == UNKNOWN else content_type
    if (meant := metadata.get("kind")) is not None:
        # What the kind would not take is refused before it is sent.
        principal(request).check("submit", kind=meant)
        kind = await known_kind(request.app[STORE], meant)
        if content_type or kind.files == "none":
            check_file_allowed(kind, content_type)
    # No name at all becomes one when the type is known.
    name = clean_name(given) if (given := metadata.get("filename")) else ""
    upload = await request.app[STORE].create_upload(
        principal(request).owner, name=name, content_type=content_type, length=length
    )
    headers = {"Location": f"{_PATH}/{upload.id}"}
    if with_body:
        upload = await _receive(request, upload)
        headers["Upload-Offset"] = str(upload.offset)
    return _answer(upload, status=201, headers=headers)


async def read_upload(request: web.Request) -> web.Response:
    """`HEAD` and `GET /v1/uploads/{upload}`."""
    upload = await _owned(request)
    headers = {"Upload-Offset": str(upload.offset)}
    if upload.length is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(upload.length)
    return _answer(upload, status=200, headers=headers)


async def extend_upload(request: web.Request) -> web.Response:
    """`PATCH /v1/uploads/{upload}`: the next bytes."""
    _check_version(request)
    _check_part_type(request)
    upload = await _owned(request)
    offset = _number(request, "Upload-Offset")
    if offset is None:
        raise BadRequest("Upload-Offset says where these bytes begin; HEAD says where the upload stands.")
    if offset != upload.offset:
        raise wrong_offset(upload.offset)
    length = _number(request, "Upload-Length")
    if length is not None and length > request.app[SETTINGS].max_upload_bytes:
        raise _too_large(request.app[SETTINGS].max_upload_bytes)
    upload = await _receive(request, upload, length)
    headers = {"Upload-Offset": str(upload.offset), "Upload-Expires": _expires(upload)}
    return web.Response(status=204, headers=headers)


async def delete_upload(request: web.Request) -> web.Response:
    """`DELETE /v1/uploads/{upload}`. A job that has taken the upload keeps its file."""
    _check_version(request)
    upload = await _owned(request)
    await request.app[STORE].delete_upload(upload)
    await request.app[BLOBS].delete_prefix(f"uploads/{upload.id}")
    return web.Response(status=204)


async def override_method(request: web.Request) -> web.Response:
    """`POST /v1/uploads/{upload}`: PATCH and DELETE for where a proxy lets neither pass."""
    # [spec] "X-HTTP-Method-Override [...] MUST be interpreted as the request's method by the Server".
    meant = request.headers.get("X-HTTP-Method-Override")
    if meant == "PATCH":
        return await extend_upload(request)
    if meant == "DELETE":
        return await delete_upload(request)
    raise BadRequest("Use PATCH or DELETE here, or POST with one of them in X-HTTP-Method-Override.")


async def tus_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The header that every answer about uploads has, problems included. A signal handler."""
    if request.path == _PATH or request.path.startswith(f"{_PATH}/"):
        response.headers["Tus-Resumable"] = _VERSION
        if response.status == 412:
            response.headers["Tus-Version"] = _VERSION


# --- receiving --------------------------------------------------------------------------------------------------------


async def _receive(request: web.Request, upload: Upload, length: int | None = None) -> Upload:
    """Take the request's body into the upload, and keep what has come if it breaks off. Returns the upload after it."""
    receiver = _Receiver(request.app, upload, length)
    try:
        async for chunk in body_chunks(request, request.app[SETTINGS].max_upload_bytes):
            await receiver.take(chunk)
    except BaseException:
        with suppress(OutlastError):
            await asyncio.shield(receiver.settle())
        raise
    await receiver.settle()
    return await request.app[STORE].upload(upload.id)


class _Receiver:
    """One body on its way into an upload. Each part is a blob that the store's record takes in when it is whole."""

    def __init__(self, app: web.Application, upload: Upload, length: int | None) -> None:
        self._store = app[STORE]
        self._blobs = app[BLOBS]
        self._metrics = app[METRICS]
        self._id = upload.id
        self._offset = upload.offset
        self._said = length
        self._limit = length if length is not None else upload.length
        self._most = app[SETTINGS].max_upload_bytes
        self._key = ""
        self._writer: Writer | None = None
        self._commit_task: asyncio.Task[None] | None = None

    async def take(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `TooLarge` where they are more than was said, and `Conflict`."""
        if self._writer is None:
            self._key = new_blob(self._id)
            self._writer = self._blobs.writer(self._key)
        ahead = self._offset + self._writer.size + len(chunk)
        if self._limit is not None and ahead > self._limit:
            raise TooLarge(f"The upload is {self._limit} bytes long by its own word; this would be more.")
        if ahead > self._most:
            raise _too_large(self._most)
        await self._writer.write(chunk)
        if self._writer.size >= _PART_BYTES:
            await self._commit()

    async def settle(self) -> None:
        """Commit what is there, after a commit that a cancellation has left running."""
        if self._commit_task is not None:
            await asyncio.wait([self._commit_task])
            if self._commit_task.exception() is not None:
                return
        if self._writer is not None or self._said is not None:
            await self._commit()

    async def _commit(self) -> None:
        # In a task: a cancellation half-way would leave open whether the part was taken.
        self._commit_task = asyncio.create_task(self._commit_part(), name=f"part of upload {self._id}")
        await asyncio.shield(self._commit_task)

    async def _commit_part(self) -> None:
        key, size = self._key or new_blob(self._id), 0
        if self._writer is not None:
            size, _ = await self._writer.finish()
        try:
            self._offset = await self._store.extend_upload(self._id, self._offset, size, key, length=self._said)
        except RequestError:
            # Another connection's bytes came first, or the upload has gone.
            await self._blobs.delete(key)
            raise
        finally:
            self._writer, self._key, self._said = None, "", None
        self._metrics.count("uploaded_bytes", size)


# --- headers and answers ----------------------------------------------------------------------------------------------


async def _owned(request: web.Request) -> Upload:
    return await owned_upload(request.app[STORE], request.match_info["upload"], principal(request).owner)


def _check_version(request: web.Request) -> None:
    # [spec] "If the version specified by the Client is not supported by the Server, it MUST respond with the 412
    # Precondition Failed status and MUST include the Tus-Version header into the response."
    if request.headers.get("Tus-Resumable") != _VERSION:
        raise PreconditionFailed(f"Uploads speak the tus protocol; send the header Tus-Resumable: {_VERSION}.")


def _check_part_type(request: web.Request) -> None:
    if media_type(request.headers.get("Content-Type")) != _PART_TYPE:
        raise UnsupportedType(f"The bytes of an upload come with Content-Type: {_PART_TYPE}.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedType("Compressed bodies are not read; send it without Content-Encoding.")


def _number(request: web.Request, name: str) -> int | None:
    text = request.headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise BadRequest(f"{name} is a number of bytes; not {text[:20]!r}.")
    return int(text)


def _metadata(header: str) -> dict[str, str]:
    """[spec] "one or more comma-separated key-value pairs. The key and value MUST be separated by a space. [...] The
    value MUST be Base64 encoded."
    """
    metadata: dict[str, str] = {}
    pairs = [pair.split() for pair in header.split(",") if pair.strip()]
    if len(pairs) > _MAX_METADATA:
        raise BadRequest(f"Upload-Metadata has at most {_MAX_METADATA} pairs.")
    for pair in pairs:
        try:
            name, value = pair[0], base64.b64decode(pair[1], validate=True).decode() if len(pair) > 1 else ""
        except (binascii.Error, UnicodeDecodeError):
            raise BadRequest(f"The value of {pair[0][:40]!r} in Upload-Metadata is no base64 of UTF-8.") from None
        metadata[name] = value
    return metadata


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"A file has at most {limit} bytes (OUTLAST_MAX_UPLOAD_BYTES).", limit_bytes=limit)


def _expires(upload: Upload) -> str:
    return format_datetime(datetime.fromtimestamp(upload.expires_ms // 1000, UTC), usegmt=True)


def _answer(upload: Upload, *, status: int, headers: dict[str, str]) -> web.Response:
    expires = datetime.fromtimestamp(upload.expires_ms / 1000, UTC)
    document = UploadDocument(
        id=upload.id,
        name=upload.name,
        content_type=upload.content_type,
        offset=upload.offset,
        length=upload.length,
        complete=upload.complete,
        expires_at=f"{expires:%Y-%m-%dT%H:%M:%S}Z",
        url=f"{_PATH}/{upload.id}",
    )
    answer = answer_with(document, status=status)
    answer.headers.update({"Upload-Expires": _expires(upload), **headers})
    return answer


# --- routes -----------------------------------------------------------------------------------------------------------

_NUMBER: Final = {"type": "integer", "minimum": 0}
_TUS: Final = Parameter("Tus-Resumable", f"`{_VERSION}`.", place="header")
_OFFSET: Final = {"Upload-Offset": "So many bytes are there.", "Upload-Expires": "When it is deleted."}
_LENGTH: Final = Parameter("Upload-Length", "How many bytes it will be.", _NUMBER, "header")

routes: Final = (
    Route(
        "OPTIONS",
        _PATH,
        describe_protocol,
        "Ask what of the tus protocol is spoken",
        responses={204: Answer("In Tus-Version, Tus-Extension and Tus-Max-Size.", content_types=NO_BODY)},
        right="submit",
    ),
    Route(
        "POST",
        _PATH,
        create_upload,
        "Begin a resumable upload",
        "The tus protocol, so that its clients work. A body is the first part. When all of it is there, a submit names"
        ' it: `{"files": [{"upload": "..."}]}`. It is kept for a day.',
        other_bodies=(_PART_TYPE,),
        responses={
            201: Answer("The upload is open.", UploadDocument, headers={"Location": "The upload.", **_OFFSET}),
        },
        parameters=(
            _TUS,
            _LENGTH,
            Parameter("Upload-Defer-Length", "`1`: the length comes later, with a PATCH.", place="header"),
            Parameter("Upload-Metadata", "`filename`, `filetype`, `kind`, each value in base64.", place="header"),
        ),
        right="submit",
    ),
    Route(
        "GET",
        f"{_PATH}/{{upload}}",
        read_upload,
        "Ask how far an upload is",
        "HEAD says it in headers alone.",
        responses={200: Answer("The upload.", UploadDocument, headers=_OFFSET)},
        right="submit",
    ),
    Route(
        "PATCH",
        f"{_PATH}/{{upload}}",
        extend_upload,
        "Send the next bytes of an upload",
        "What came before the connection broke off is kept: ask for the offset, go on from there. 409 names the right"
        " offset.",
        other_bodies=(_PART_TYPE,),
        responses={204: Answer("They are kept.", content_types=NO_BODY, headers=_OFFSET)},
        parameters=(_TUS, Parameter("Upload-Offset", "Where these bytes begin.", _NUMBER, "header"), _LENGTH),
        right="submit",
    ),
    Route(
        "DELETE",
        f"{_PATH}/{{upload}}",
        delete_upload,
        "Give an upload up",
        "A job that has taken it keeps its file.",
        responses={204: Answer("It is gone.", content_types=NO_BODY)},
        parameters=(_TUS,),
        right="submit",
    ),
    Route(
        "POST",
        f"{_PATH}/{{upload}}",
        override_method,
        "PATCH or DELETE an upload where a proxy lets neither pass",
        other_bodies=(_PART_TYPE,),
        responses={204: Answer("As for the method that is meant.", content_types=NO_BODY)},
        parameters=(_TUS, Parameter("X-HTTP-Method-Override", "`PATCH` or `DELETE`.", place="header")),
        right="submit",
    ),
)
