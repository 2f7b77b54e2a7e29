"""Blobs: the bytes that are too large for Redis. A local folder, or an object store such as S3, by URL.

Keys are `jobs/{job id}/...` and `uploads/{upload id}/...`, so that all of one is deleted at once. Nothing here knows
what is in a blob, and nothing is ever executed or unpacked. obstore's plain calls run in threads: its asyncio calls
come back on threads of its own, which abort the process if the interpreter ends in that moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import shutil
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, Self, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, ObjectStore, from_url

from gateway.errors import ConfigurationError, NotFound, TooLarge, Unavailable

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Chunks of an upload are gathered to this size before they go to a thread: a network chunk each would cost more for
# the way there and back than for the writing.
GATHER_BYTES: Final = 1024 * 1024
# One read. A slow client holds no more than this, and no request to the object store stays open while it dawdles.
READ_BYTES: Final = 1024 * 1024
# S3 takes no part below 5 MiB. Times the parts on their way at once, it is what an upload may hold in memory.
_REMOTE_PART_BYTES: Final = 8 * 1024 * 1024
_PARTS_AT_ONCE: Final = 2
# Not asyncio's default threads, of which there are few and which look up host names too: a slow object store must not
# stand in anybody's way.
_THREADS: Final = ThreadPoolExecutor(32, thread_name_prefix="blobs")
_MARKER_KEY: Final = "outlast-marker"
# What can stand in a path of any store and any file system as it is.
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_OWNED_KEY: Final = re.compile(r"^(?:jobs|uploads)/([a-z0-9]{1,64})/", re.ASCII)


class Blobs:
    """All blobs of one place. Each operation raises `Unavailable` while the place does not answer."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        self._part_bytes = _REMOTE_PART_BYTES if folder is None else GATHER_BYTES

    @classmethod
    def open(cls, url: str) -> Self:
        """The place that a URL names: `file:///folder` (made if missing), `s3://bucket/path`, `gs://`, `az://`.

        Credentials come from the environment, as that store's own tools read them.
        Raises `ConfigurationError` for a URL that names none.
        """
        parts = urlsplit(url)
        try:
            if parts.scheme == "file":
                if parts.netloc not in {"", "localhost"}:
                    raise ValueError("a file URL has three slashes: file:///folder")
                folder = Path(unquote(parts.path))
                # What people send is nobody else's on this machine; a folder that is there keeps its mode, for groups.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                return cls(LocalStore(folder, automatic_cleanup=True), folder)
            return cls(from_url(url))
        except (BaseError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"OUTLAST_BLOB_URL: {url!r} can't be used ({error}); use file:///folder or s3://bucket/path"
            ) from None

    @staticmethod
    def key_for(job_id: str) -> str:
        """A new key for a blob of this job."""
        return f"jobs/{job_id}/{secrets.token_hex(8)}"

    @staticmethod
    def output_key(job_id: str, attempt: int | None, index: str) -> str:
        """The key of the bytes that an attempt publishes under an index."""
        return f"jobs/{job_id}/outputs/{attempt}-{index}"

    # --- one blob -----------------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        max_bytes: int | None,
        still_wanted: Callable[[], Awaitable[object]] | None = None,
    ) -> tuple[int, str]:
        """Store a blob, replacing what has the key; returns its size and its SHA-256 in hexadecimal.

        A stream is never held whole. Raises `TooLarge` as soon as there are more than `max_bytes`, and what
        `still_wanted` raises, which is asked when all bytes are there and nobody sees them yet. After an error, an
        error of the stream or a cancellation nothing of it is left behind, and nobody ever sees a part of it.
        """
        writer = self.writer(key)
        try:
            async for chunk in _chunks(body):
                await writer.write(chunk)
                if max_bytes is not None and writer.size > max_bytes:
                    raise TooLarge(f"This is larger than the limit of {max_bytes} bytes.")
            if still_wanted is not None:
                await still_wanted()
            return await writer.finish()
        except BaseException:
            await asyncio.shield(writer.discard())
            raise

    def writer(self, key: str) -> Writer:
        """A blob that is written piece by piece; nobody sees it before its `finish`."""
        return Writer(_Upload(self._store, _checked(key), self._part_bytes))

    async def copy(self, source: str, target: str) -> None:
        """Put a blob under another key as well, without its bytes coming through here where the place can do that.

        In a folder both are one file, which is never written to. Raises `NotFound`.
        """
        try:
            await _in_thread(obstore.copy, self._store, _checked(source), _checked(target))
        except Unavailable:
            # A file system without hard links, or an object over what the store copies at once.
            await self.put(target, self.stream(source), max_bytes=None)

    async def get(self, key: str) -> bytes:
        """A whole blob. Raises `NotFound`."""
        return await _in_thread(lambda: bytes(obstore.get(self._store, _checked(key)).bytes()))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """A blob's bytes from `start` up to but without `end`, in pieces. Raises `NotFound`."""
        size = await self.size(key)
        end = size if end is None else min(end, size)
        while start < end:
            stop = min(start + READ_BYTES, end)
            yield bytes(await _in_thread(obstore.get_range, self._store, key, start=start, end=stop))
            start = stop

    async def size(self, key: str) -> int:
        """A blob's size in bytes. Raises `NotFound`."""
        return (await _in_thread(obstore.head, self._store, _checked(key)))["size"]

    def local_path(self, key: str) -> Path | None:
        """Where the blob is in a local folder, for reading only; None where there is no such folder."""
        path = _checked(key)
        return None if self._folder is None else self._folder / path

    async def delete(self, key: str) -> None:
        """Delete a blob; one that isn't there is deleted already."""
        with suppress(NotFound):
            await _in_thread(obstore.delete, self._store, _checked(key))

    # --- many ---------------------------------------------------------------------------------------------------

    async def delete_prefix(self, prefix: str) -> None:
        """Delete all blobs below `prefix` (`jobs/{id}`), and what uploads that broke off left there."""
        await _in_thread(self._delete_prefix, _checked(prefix))

    def _delete_prefix(self, prefix: str) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder / prefix, ignore_errors=True)
        # A listing names at most a thousand, and none that was deleted since it began.
        elif keys := [entry["path"] for page in obstore.list(self._store, prefix) for entry in page]:
            obstore.delete(self._store, keys)

    async def newest(self, top: Literal["jobs", "uploads"]) -> dict[str, float]:
        """The jobs or uploads that have blobs, each with the time of its newest one in seconds since 1970."""
        return await _in_thread(self._newest_local if self._folder is not None else self._newest_remote, top)

    def _newest_local(self, top: str) -> dict[str, float]:
        """A walk, not a listing: a listing leaves out the halves of uploads that died with their process."""
        assert self._folder is not None
        newest: dict[str, float] = {}
        for folder in _entries(self._folder / top):
            with suppress(OSError):  # Deleted while we look.
                times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
                newest[folder.name] = max(times)
        return newest

    def _newest_remote(self, top: str) -> dict[str, float]:
        newest: dict[str, float] = {}
        for page in obstore.list(self._store, top):
            for entry in page:
                match = _OWNED_KEY.match(entry["path"])
                if match is not None:
                    changed_at = entry["last_modified"].timestamp()
                    newest[match[1]] = max(changed_at, newest.get(match[1], 0.0))
        return newest

    async def marker(self) -> str:
        """The id of this place, made at the first call: two processes that read the same one share their blobs."""
        with suppress(NotFound):
            return (await self.get(_MARKER_KEY)).decode()
        await _in_thread(self._make_marker, secrets.token_hex(16))
        return (await self.get(_MARKER_KEY)).decode()

    def _make_marker(self, marker: str) -> None:
        # Another process may make one in the same moment; the first one counts.
        with suppress(AlreadyExistsError):
            try:
                obstore.put(self._store, _MARKER_KEY, marker.encode(), mode="create")
            except NotSupportedError:
                obstore.put(self._store, _MARKER_KEY, marker.encode())


class Writer:
    """One blob on its way in. After a cancellation `finish` and `discard` still work: no byte is lost or doubled."""

    def __init__(self, upload: _Upload) -> None:
        self._upload = upload
        self._gathered = bytearray()
        self.size = 0
        """Bytes that were handed over."""

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        self._gathered += chunk
        self.size += len(chunk)
        if len(self._gathered) >= GATHER_BYTES:
            self._hand_over()
            await _in_thread(self._upload.write)

    async def finish(self) -> tuple[int, str]:
        """Make the blob visible; returns its size and its SHA-256 in hexadecimal."""
        self._hand_over()
        return self.size, await _in_thread(self._upload.finish)

    async def discard(self) -> None:
        """Leave nothing behind, however far it got."""
        # It waits for a write that a cancellation left running in its thread; the thread can't be stopped.
        await _in_thread(self._upload.discard)

    def _hand_over(self) -> None:
        # Before any `await`: a cancelled call to a thread may or may not take place, its bytes must not depend on it.
        self._upload.waiting.append(bytes(self._gathered))
        self._gathered.clear()


class _Upload:
    """The part of a writer that works in threads: one call at a time, whoever was cancelled meanwhile."""

    def __init__(self, store: ObjectStore, key: str, part_bytes: int) -> None:
        self._store = store
        self._key = key
        # Until it is closed a writer's blob can't be seen, and one that is dropped takes its parts back.
        self._writer: Any = obstore.open_writer(store, key, buffer_size=part_bytes, max_concurrency=_PARTS_AT_ONCE)
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        self._finished = False
        self.waiting: deque[bytes] = deque()
        """What is to be written; at most one piece, unless writing was cancelled."""

    def write(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        while self.waiting:
            data = self.waiting.popleft()
            if data:
                self._digest.update(data)
                self._writer.write(data)

    def finish(self) -> str:
        """Write what waits and make the blob visible. Returns the digest of all of it."""
        with self._lock:
            self._write()
            self._finished = True
            self._writer.close()
            return self._digest.hexdigest()

    def discard(self) -> None:
        """Leave nothing behind, however far it got."""
        with self._lock:
            self._writer = None
            if self._finished:
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, self._key)


def _checked(key: str) -> str:
    """The key, if it can't lead out of the place. The keys are ours, so anything else is a defect, not a request."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"{key!r} is no key of a blob")
    return key


async def _chunks(body: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(body, AsyncIterable):
        async for chunk in body:
            yield chunk
    else:
        yield body


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


async def _in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call obstore in a thread, and turn its errors into ours. Cancelling doesn't stop the call."""
    try:
        return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(function, *args, **kwargs))
    except FileNotFoundError:
        raise NotFound("There is no such file.") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        logger.error("the file store refuses access: %s", error)
    except (BaseError, OSError) as error:
        logger.error("the file store does not answer: %s: %s", type(error).__name__, error)
    raise Unavailable(
        "The file store does not answer. Try again later.", code="blobs_unavailable", retry_after_seconds=5
    )
