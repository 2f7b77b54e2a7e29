"""Files on their way to the gateway: read in pieces, put into a multipart body, counted for a progress bar."""

from __future__ import annotations

import asyncio
import mimetypes
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from gateway.errors import InvalidInput

Source = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
# Called with the bytes that were sent, and with how many there are: None where a pipe doesn't say.
Progress = Callable[[int, int | None], None]

_CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class File:
    """A file to submit: a path, bytes, or a file object opened in binary mode.

    Without a name it is the path's or the file object's own; without a content type it is guessed from the name, and
    where that says nothing, the gateway looks at the first bytes.
    """

    source: Source
    name: str | None = None
    content_type: str | None = None


class Body:
    """A multipart body. `chunks()` yields it; it can be asked again if `repeatable`."""

    def __init__(self, fields: Sequence[tuple[str, bytes]], files: Sequence[File]) -> None:
        boundary = os.urandom(16).hex()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self._parts: list[tuple[bytes, _Part]] = []
        lead = f"--{boundary}\r\n"
        for name, value in fields:
            head = f'{lead}Content-Disposition: form-data; name="{name}"\r\n\r\n'
            self._parts.append((head.encode(), _BytesPart(memoryview(value))))
            lead = f"\r\n--{boundary}\r\n"
        for number, file in enumerate(files, 1):
            name = file.name or _own_name(file.source) or f"file-{number}"
            content_type = file.content_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
            head = (
                f'{lead}Content-Disposition: form-data; name="file"; filename="{_escaped(name)}"\r\n'
                f"Content-Type: {content_type}\r\n\r\n"
            )
            if any(break_ in content_type for break_ in "\r\n"):
                raise InvalidInput(f"{content_type!r} is no content type; it has a line break.")
            self._parts.append((head.encode(), _part(name, file.source)))
            lead = f"\r\n--{boundary}\r\n"

    @property
    def size(self) -> int | None:
        """How many bytes the body has; None where a part doesn't know."""
        size = len(self._end)
        for head, part in self._parts:
            if part.size is None:
                return None
            size += len(head) + part.size
        return size

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent a second time."""
        return all(part.repeatable for _, part in self._parts)

    async def chunks(self, progress: Progress | None = None) -> AsyncIterator[bytes | memoryview]:
        """The body's bytes, from the start. The progress counts what the connection has taken."""
        total = self.size
        sent = 0

        def count(chunk: bytes | memoryview) -> None:
            nonlocal sent
            sent += len(chunk)
            if progress is not None:
                progress(sent, total)

        for head, part in self._parts:
            yield head
            count(head)
            async for chunk in part.chunks():
                yield chunk
                count(chunk)
        yield self._end
        count(self._end)


class _Part:
    """A part's content."""

    size: int | None = None
    repeatable = True

    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Its bytes, from the start."""
        raise NotImplementedError


class _BytesPart(_Part):
    def __init__(self, content: memoryview) -> None:
        self._content = content
        self.size = len(content)

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        for start in range(0, len(self._content), _CHUNK_BYTES):
            yield self._content[start : start + _CHUNK_BYTES]


class _PathPart(_Part):
    """A file on disk, opened anew for each piece: a body that is given up half-way leaves nothing open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        sent, size = 0, self.size or 0
        while sent < size:
            chunk = await _readable(self._path, self._read, sent, min(size - sent, _CHUNK_BYTES))
            if not chunk:
                # The length has been promised; the gateway would wait for the rest.
                raise InvalidInput(f"{self._path} became shorter while it was sent; submit it again.")
            sent += len(chunk)
            yield chunk

    def _read(self, start: int, most: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(most)


class _StreamPart(_Part):
    """A file object: from where it stands, and again if it can seek. A pipe can be sent once, and has no size."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name = name
        self._file = file
        self.repeatable = file.seekable()
        if self.repeatable:
            self._start = file.tell()
            self.size = file.seek(0, os.SEEK_END) - self._start
            file.seek(self._start)

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        if self.repeatable:
            self._file.seek(self._start)
        left = self.size
        while left is None or left > 0:
            most = _CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)
            chunk = await _readable(self._name, self._file.read, most)
            if isinstance(chunk, str):
                raise InvalidInput(f"{self._name} was opened as text; open it in binary mode, 'rb'.")
            if not chunk:
                if left is not None:
                    raise InvalidInput(f"{self._name} became shorter while it was sent; submit it again.")
                return
            if left is not None:
                left -= len(chunk)
            yield chunk


def as_files(files: Source | File | Sequence[Source | File] | None) -> list[File]:
    """One file or several, as given to `Client.submit`."""
    if files is None:
        return []
    if isinstance(files, File):
        return [files]
    if isinstance(files, (list, tuple)):
        return [file if isinstance(file, File) else File(file) for file in files]
    return [File(cast(Source, files))]


def _part(name: str, source: Source) -> _Part:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _BytesPart(memoryview(source).cast("B"))
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            return _PathPart(path)
        except OSError as error:
            raise _unreadable(path, error) from None
    return _StreamPart(name, source)


async def _readable(what: object, function: Callable[..., Any], *args: object) -> Any:
    """Run a file's own, blocking function in a thread."""
    try:
        return await asyncio.to_thread(function, *args)
    except OSError as error:
        # Not to be taken for an error of the network, which would be tried again.
        raise _unreadable(what, error) from None


def _unreadable(what: object, error: OSError) -> InvalidInput:
    return InvalidInput(f"{what} can't be read: {error.strerror or error}.", code="file_unreadable")


def _own_name(source: Source) -> str | None:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    name = getattr(source, "name", None)
    return Path(name).name if isinstance(name, str) else None


def _escaped(name: str) -> str:
    # [spec] "For field names and filenames for file fields, the result of the encoding must be escaped by replacing any
    # 0x0A (LF) bytes with `%0A`, 0x0D (CR) with `%0D` and 0x22 (") with `%22`." (WHATWG HTML, multipart/form-data)
    return name.replace("\n", "%0A").replace("\r", "%0D").replace('"', "%22")
