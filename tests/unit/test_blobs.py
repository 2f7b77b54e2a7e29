"""Blobs in a local folder and in an object store: whole, in parts, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.blobs import GATHER_BYTES, READ_BYTES, Blobs
from gateway.errors import ConfigurationError, NotFound, TooLarge, Unavailable

JOB = "a" * 26
MIB = 1024 * 1024


@pytest.fixture(params=["file", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """A local folder, and an object store that behaves as remote ones do."""
    return Blobs.open(tmp_path.as_uri() if request.param == "file" else "memory:///")


@pytest.fixture
def local(tmp_path: Path) -> Blobs:
    """Blobs in a folder."""
    return Blobs.open((tmp_path / "blobs").as_uri())


def files(folder: Path) -> list[str]:
    """All files below a folder, with those that a listing hides."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    """A body that arrives in chunks of these sizes."""
    for size in sizes:
        yield os.urandom(1) * size


def test_a_new_folder_is_its_owners_alone_and_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    """Scans and invoices lie in it; who shares it with a group makes it beforehand."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o750)

    for folder in (shared, tmp_path / "new"):
        Blobs.open(folder.as_uri())

    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (shared, tmp_path / "new")] == [0o750, 0o700]


async def test_what_is_put_can_be_read(blobs: Blobs) -> None:
    """Size, digest and bytes are those of the body."""
    key = Blobs.key_for(JOB)

    size, digest = await blobs.put(key, b"some bytes", max_bytes=None)

    assert (size, digest) == (10, hashlib.sha256(b"some bytes").hexdigest())
    assert await blobs.get(key) == b"some bytes"
    assert await blobs.size(key) == 10


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (GATHER_BYTES,), (GATHER_BYTES, 1), (60_000,) * 200])
async def test_a_stream_arrives_whole(blobs: Blobs, sizes: tuple[int, ...]) -> None:
    """Bodies of no chunk, one and many are stored byte by byte as they came."""
    sent = [chunk async for chunk in pieces(*sizes)]

    async def body() -> AsyncIterator[bytes]:
        for chunk in sent:
            yield chunk

    size, digest = await blobs.put("jobs/x/1", body(), max_bytes=None)

    whole = b"".join(sent)
    assert (size, digest) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert await blobs.get("jobs/x/1") == whole


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 1), (5, 5), (1, READ_BYTES + 2), (READ_BYTES - 1, READ_BYTES + 1), (3 * MIB, None), (0, 99 * MIB)],
)
async def test_a_range_is_what_was_asked_for(blobs: Blobs, start: int, end: int | None) -> None:
    """Ranges across reads, empty ones, and ones past the end are the same as slices."""
    whole = os.urandom(2 * MIB + 17)
    await blobs.put("jobs/x/1", whole, max_bytes=None)

    assert b"".join([part async for part in blobs.stream("jobs/x/1", start, end)]) == whole[start:end]


async def test_a_body_over_the_limit_is_refused_at_once(tmp_path: Path, local: Blobs) -> None:
    """The limit is noticed while the body still comes, and no byte of it stays."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += MIB
            yield bytes(MIB)

    with pytest.raises(TooLarge, match="5000000"):
        await local.put("jobs/x/1", endless(), max_bytes=5_000_000)

    assert read <= 6 * MIB
    assert files(tmp_path) == []


async def test_a_body_of_exactly_the_limit_is_taken(blobs: Blobs) -> None:
    """The limit is the largest size that is allowed."""
    assert (await blobs.put("jobs/x/1", bytes(1000), max_bytes=1000))[0] == 1000


async def test_a_body_that_breaks_off_leaves_nothing(tmp_path: Path, local: Blobs) -> None:
    """The stream's own error comes out, and the parts that were written are gone."""

    async def broken() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MIB)
        raise ConnectionResetError("the client left")

    with pytest.raises(ConnectionResetError):
        await local.put("jobs/x/1", broken(), max_bytes=None)

    assert files(tmp_path) == []


async def test_a_cancelled_put_leaves_nothing(tmp_path: Path, local: Blobs) -> None:
    """Wherever the cancellation hits, also while a thread writes, no file stays."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield bytes(GATHER_BYTES)

    finished = 0
    for step in range(40):
        putting = asyncio.create_task(local.put(f"jobs/x/{step}", body(), max_bytes=None))
        for _ in range(step * 2):
            await asyncio.sleep(0)
            await asyncio.to_thread(lambda: None)
        putting.cancel()
        try:
            await putting
            finished += 1
        except asyncio.CancelledError:
            pass

    assert len(files(tmp_path)) == finished < 40


async def test_a_blob_is_not_seen_before_it_is_whole(local: Blobs) -> None:
    """A reader finds no blob, never a part of one."""
    seen = []

    async def body() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(GATHER_BYTES)
            with pytest.raises(NotFound):
                await local.size("jobs/x/1")
            seen.append(True)

    await local.put("jobs/x/1", body(), max_bytes=None)

    assert len(seen) == 4
    assert await local.size("jobs/x/1") == 4 * GATHER_BYTES


async def test_a_missing_blob_is_not_found(blobs: Blobs) -> None:
    """Reading says so in our words; deleting is content."""
    with pytest.raises(NotFound):
        await blobs.get("jobs/x/1")
    with pytest.raises(NotFound):
        await blobs.size("jobs/x/1")
    with pytest.raises(NotFound):
        [part async for part in blobs.stream("jobs/x/1")]
    await blobs.delete("jobs/x/1")


async def test_a_local_blob_has_a_path_and_a_remote_one_has_none(blobs: Blobs, tmp_path: Path) -> None:
    """A folder's file can be read where it is."""
    await blobs.put("jobs/x/1", b"here", max_bytes=None)

    path = blobs.local_path("jobs/x/1")

    if path is not None:
        assert path.read_bytes() == b"here"
        assert path.is_relative_to(tmp_path)
    else:
        assert files(tmp_path) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "jobs/../x", "jobs/./x", "jobs//x", "jobs/x/", "a\n", "ä"])
async def test_a_key_that_leads_elsewhere_is_refused(blobs: Blobs, key: str) -> None:
    """No operation takes a key that is not a plain relative path."""
    with pytest.raises(ValueError, match="no key"):
        await blobs.put(key, b"", max_bytes=None)
    with pytest.raises(ValueError, match="no key"):
        await blobs.get(key)
    with pytest.raises(ValueError, match="no key"):
        await blobs.size(key)
    with pytest.raises(ValueError, match="no key"):
        await blobs.delete(key)
    with pytest.raises(ValueError, match="no key"):
        blobs.local_path(key)


async def test_all_of_a_job_is_deleted_and_nothing_else(blobs: Blobs, tmp_path: Path) -> None:
    """A prefix means a folder: a job whose id begins with the same characters is another job."""
    for key in ("jobs/x/1", "jobs/x/outputs/2", "jobs/xy/1"):
        await blobs.put(key, b"1", max_bytes=None)

    await blobs.delete_prefix("jobs/x")

    assert list(await blobs.newest("jobs")) == ["xy"]
    assert not (tmp_path / "jobs" / "x").exists()
    await blobs.delete_prefix("jobs/x")


async def test_the_collector_sees_each_job_with_its_newest_time(blobs: Blobs) -> None:
    """A job is named once, however many blobs it has, with the time of the last change."""
    before = time.time() - 2
    for key in ("jobs/x/1", "jobs/x/2", "jobs/y/1"):
        await blobs.put(key, b"1", max_bytes=None)
    await blobs.marker()

    found = await blobs.newest("jobs")

    assert found.keys() == {"x", "y"}
    assert all(before <= changed_at <= time.time() + 2 for changed_at in found.values())


async def test_the_collector_finds_what_a_killed_process_left(local: Blobs, tmp_path: Path) -> None:
    """Half an upload of a process that died is no blob, but it is seen and deleted with its job."""
    half = tmp_path / "blobs" / "jobs" / "x" / "1#1"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")

    assert list(await local.newest("jobs")) == ["x"]
    await local.delete_prefix("jobs/x")

    assert files(tmp_path) == []


async def test_a_place_keeps_its_marker(blobs: Blobs) -> None:
    """The same id at each call, also when many processes ask first at the same moment."""
    markers = await asyncio.gather(*(blobs.marker() for _ in range(10)))

    assert len(set(markers)) == 1
    assert markers[0] == await blobs.marker()


async def test_two_places_have_different_markers(tmp_path: Path) -> None:
    """An id tells one place from another."""
    one, other = Blobs.open((tmp_path / "1").as_uri()), Blobs.open((tmp_path / "2").as_uri())

    assert await one.marker() != await other.marker()


@pytest.mark.parametrize("url", ["nonsense", "file://host/folder", "gopher://x", "s3://", ""])
def test_a_url_that_names_no_place_says_which_setting_is_wrong(url: str) -> None:
    """The message names the variable and shows good values."""
    with pytest.raises(ConfigurationError, match="OUTLAST_BLOB_URL"):
        Blobs.open(url)


async def test_a_place_that_fails_is_unavailable(local: Blobs, tmp_path: Path) -> None:
    """An error of the disk comes out as ours, with advice to come back, and without the disk's words."""
    (tmp_path / "blobs" / "jobs").write_text("a file in the way", encoding="utf-8")

    with pytest.raises(Unavailable, match="Try again later") as caught:
        await local.put("jobs/x/1", b"1", max_bytes=None)

    assert caught.value.code == "blobs_unavailable"
    assert caught.value.retry_after_seconds


async def test_a_folder_with_odd_characters_works(tmp_path: Path) -> None:
    """Spaces and percent signs in a folder's name survive the way through a URL."""
    folder = tmp_path / "a b%20ü#"
    blobs = Blobs.open(folder.as_uri())

    await blobs.put("jobs/x/1", b"1", max_bytes=None)

    assert files(folder) == ["jobs/x/1"]
