"""Files to submit: where their bytes come from, one multipart body of them, how much of them has been sent."""

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

CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class File:
    """A file to submit: a path, bytes, or a file object opened in binary mode.

    Without a name it is the path's or the file object's own; without a content type it is guessed from the name, and
    where that says nothing, the gateway looks at the first bytes.
    """

    source: Source
    name: str | None = None
    content_type: str | None = None


class Content:
    """A file's bytes, wherever they come from."""

    size: int | None = None
    repeatable = True
    """Whether they can be read a second time."""

    async def read(self, start: int, most: int) -> bytes | memoryview:
        """The bytes from `start`, at most so many; nothing at the end.

        What can't be repeated goes back no further than to the start of the last read. Raises `InvalidInput`.
        """
        raise NotImplementedError

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """All bytes, from the start."""
        sent = 0
        while chunk := await self.read(sent, CHUNK_BYTES):
            sent += len(chunk)
            yield chunk


@dataclass(frozen=True)
class Prepared:
    """A file that is ready to be sent: its name, its type, its bytes."""

    name: str
    content_type: str
    content: Content


class Meter:
    """Tells a listener how much of the files has been sent: never less than before, whatever is sent again."""

    def __init__(self, listener: Progress | None, total: int | None) -> None:
        self._listener = listener
        self._total = total
        self._sent = 0

    def at(self, sent: int) -> None:
        """So many bytes have been sent."""
        if sent > self._sent:
            self._sent = sent
            if self._listener is not None:
                self._listener(sent, self._total)


class Body:
    """A multipart body. `chunks()` yields it; it can be asked again if `repeatable`."""

    def __init__(self, fields: Sequence[tuple[str, bytes]], files: Sequence[Prepared]) -> None:
        boundary = os.urandom(16).hex()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self._parts: list[tuple[bytes, Content, bool]] = []
        lead = f"--{boundary}\r\n"
        for name, value in fields:
            head = f'{lead}Content-Disposition: form-data; name="{name}"\r\n\r\n'
            self._parts.append((head.encode(), _Bytes(memoryview(value)), False))
            lead = f"\r\n--{boundary}\r\n"
        for file in files:
            head = (
                f'{lead}Content-Disposition: form-data; name="file"; filename="{_escaped(file.name)}"\r\n'
                f"Content-Type: {file.content_type}\r\n\r\n"
            )
            self._parts.append((head.encode(), file.content, True))
            lead = f"\r\n--{boundary}\r\n"

    @property
    def size(self) -> int | None:
        """How many bytes the body has; None where a part doesn't know."""
        size = len(self._end)
        for head, content, _ in self._parts:
            if content.size is None:
                return None
            size += len(head) + content.size
        return size

    async def chunks(self, meter: Meter | None = None) -> AsyncIterator[bytes | memoryview]:
        """The body's bytes, from the start. The meter counts what the connection has taken of the files."""
        sent = 0
        for head, content, is_file in self._parts:
            yield head
            async for chunk in content.chunks():
                yield chunk
                if is_file and meter is not None:
                    sent += len(chunk)
                    meter.at(sent)
        yield self._end


class _Bytes(Content):
    def __init__(self, content: memoryview) -> None:
        self._content = content
        self.size = len(content)

    async def read(self, start: int, most: int) -> memoryview:
        return self._content[start : start + most]


class _OnDisk(Content):
    """A file on disk, opened anew for each piece: a body that is given up half-way leaves nothing open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size: int = path.stat().st_size

    async def read(self, start: int, most: int) -> bytes:
        # Not what has been added since: the length has been promised.
        most = min(self.size - start, most)
        chunk: bytes = await _readable(self._path, self._read, start, most) if most > 0 else b""
        if most > 0 and not chunk:
            raise _shorter(self._path)
        return chunk

    def _read(self, start: int, most: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(most)


class _Opened(Content):
    """A file object: from where it stands. A pipe has no size, and of it only the last piece can be read again."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name = name
        self._file = file
        self._last: bytes | memoryview = b""
        self._last_start = 0
        self.repeatable = file.seekable()
        if self.repeatable:
            self._start = file.tell()
            self.size = file.seek(0, os.SEEK_END) - self._start
            file.seek(self._start)

    async def read(self, start: int, most: int) -> bytes | memoryview:
        if self.repeatable:
            most = min((self.size or 0) - start, most)
            chunk: bytes = await self._take(self._seek_and_read, start, most) if most > 0 else b""
            if most > 0 and not chunk:
                raise _shorter(self._name)
            return chunk
        past = start - self._last_start
        if past == len(self._last):
            self._last, self._last_start = memoryview(await self._take(self._file.read, most)), start
            return self._last
        if not 0 <= past < len(self._last):
            raise InvalidInput(f"{self._name} can't be read a second time; submit it as a file.")
        return self._last[past : past + most]

    def _seek_and_read(self, start: int, most: int) -> bytes:
        self._file.seek(self._start + start)
        return self._file.read(most)

    async def _take(self, function: Callable[..., Any], *args: int) -> bytes:
        chunk = await _readable(self._name, function, *args)
        if isinstance(chunk, str):
            raise InvalidInput(f"{self._name} was opened as text; open it in binary mode, 'rb'.")
        return chunk or b""


def as_files(files: Source | File | Sequence[Source | File] | None) -> list[File]:
    """One file or several, as given to `Client.submit`."""
    if files is None:
        return []
    if isinstance(files, File):
        return [files]
    if isinstance(files, (list, tuple)):
        return [file if isinstance(file, File) else File(file) for file in files]
    return [File(cast(Source, files))]


def prepare(files: Sequence[File]) -> list[Prepared]:
    """Open the files, and give each a name and a type. Raises `InvalidInput` for what can't be read."""
    prepared = []
    for number, file in enumerate(files, 1):
        name = file.name or _own_name(file.source) or f"file-{number}"
        content_type = file.content_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        if any(break_ in content_type for break_ in "\r\n"):
            raise InvalidInput(f"{content_type!r} is no content type; it has a line break.")
        prepared.append(Prepared(name, content_type, _content(name, file.source)))
    return prepared


def total_size(files: Sequence[Prepared]) -> int | None:
    """How many bytes the files have together; None where one doesn't know."""
    sizes = [file.content.size for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _content(name: str, source: Source) -> Content:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _Bytes(memoryview(source).cast("B"))
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            return _OnDisk(path)
        except OSError as error:
            raise _unreadable(path, error) from None
    return _Opened(name, source)


async def _readable(what: object, function: Callable[..., Any], *args: object) -> Any:
    """Run a file's own, blocking function in a thread."""
    try:
        return await asyncio.to_thread(function, *args)
    except OSError as error:
        # Not to be taken for an error of the network, which would be tried again.
        raise _unreadable(what, error) from None


def _unreadable(what: object, error: OSError) -> InvalidInput:
    return InvalidInput(f"{what} can't be read: {error.strerror or error}.", code="file_unreadable")


def _shorter(what: object) -> InvalidInput:
    # Its length has been promised; the gateway would wait for the rest.
    return InvalidInput(f"{what} became shorter while it was sent; submit it again.")


def _own_name(source: Source) -> str | None:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    name = getattr(source, "name", None)
    return Path(name).name if isinstance(name, str) else None


def _escaped(name: str) -> str:
    # [spec] "For field names and filenames for file fields, the result of the encoding must be escaped by replacing any
    # 0x0A (LF) bytes with `%0A`, 0x0D (CR) with `%0D` and 0x22 (") with `%22`." (WHATWG HTML, multipart/form-data)
    return name.replace("\n", "%0A").replace("\r", "%0D").replace('"', "%22")
