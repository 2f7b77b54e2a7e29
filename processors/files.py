"""The files that came with a job, as its processor reads them: whole, or as a path on this machine.

A file's bytes are a client's: its name and content type are claims, and nothing here trusts them. The name never
becomes a part of a path.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from processors.thread import Portal

if TYPE_CHECKING:
    from gateway.blobs import Blobs
    from gateway.store.records import StoredFile

_COPY_CHUNK_BYTES = 1024 * 1024


class Workspace:
    """A folder of an attempt's own, made when it is first needed and removed when the attempt is over."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._made = 0

    def new_path(self) -> Path:
        """A path in the folder that nothing is at yet."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="outlast-"))
        self._made += 1
        return self._folder / str(self._made)

    async def remove(self) -> None:
        """Delete the folder with all that is in it."""
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


class InputFile:
    """A file of the job. `name` and `content_type` are what the client said, `size` is what arrived, in bytes."""

    def __init__(self, stored: StoredFile, blobs: Blobs, workspace: Workspace) -> None:
        self.name = stored.name
        self.content_type = stored.content_type
        self.size = stored.size
        self.stored = stored
        """Where its bytes are. The runtime's to read, not the processor's."""
        self._blobs = blobs
        self._workspace = workspace
        self._copy: Path | None = None
        self._copying = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<file {self.name!r}, {self.content_type}, {self.size} bytes>"

    async def read(self) -> bytes:
        """The whole file. Prefer `path` for what may be large."""
        return await self._blobs.get(self.stored.blob)

    async def path(self) -> Path:
        """Where the file is on this machine, for reading only; gone after the attempt if it had to be copied here.

        The path's name says nothing about the file: tell its format by its content.
        """
        local = self._blobs.local_path(self.stored.blob)
        if local is not None:
            return local
        async with self._copying:
            if self._copy is None:
                self._copy = await self._fetch()
            return self._copy

    @asynccontextmanager
    async def open_path(self) -> AsyncIterator[Path]:
        """The same as `path`, with a copy removed at the end of the block already."""
        yield await self.path()
        copy, self._copy = self._copy, None
        if copy is not None:
            await asyncio.to_thread(copy.unlink, missing_ok=True)

    async def _fetch(self) -> Path:
        path = self._workspace.new_path()
        with path.open("wb") as copy:
            waiting = bytearray()
            async for chunk in self._blobs.stream(self.stored.blob):
                waiting += chunk
                if len(waiting) >= _COPY_CHUNK_BYTES:
                    await asyncio.to_thread(copy.write, waiting)
                    waiting = bytearray()
            await asyncio.to_thread(copy.write, waiting)
        return path


class SyncInputFile:
    """An `InputFile` for code that runs in a thread: the same names, without `await`."""

    def __init__(self, file: InputFile, portal: Portal) -> None:
        self.name = file.name
        self.content_type = file.content_type
        self.size = file.size
        self._file = file
        self._portal = portal

    def __repr__(self) -> str:
        return repr(self._file)

    def read(self) -> bytes:
        """The whole file. Prefer `path` for what may be large."""
        return self._portal.call(self._file.read)

    def path(self) -> Path:
        """Where the file is on this machine, for reading only; gone after the attempt if it had to be copied here."""
        return self._portal.call(self._file.path)

    @contextmanager
    def open_path(self) -> Iterator[Path]:
        """The same as `path`, for symmetry with `InputFile`."""
        yield self.path()
