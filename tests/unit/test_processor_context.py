"""The context: what becomes of what an author reports, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from gateway.blobs import Blobs
from gateway.protocol import MAX_EVENT_BYTES
from gateway.store import JobRecord, StoredFile
from processors import Context, InputFile
from processors.context import MAX_LOG_CHARACTERS
from processors.thread import run_in_thread
from tests.faults import PATIENCE_SECONDS
from tests.unit.test_processor_writer import JOB, Bench, at_work, record

INLINE_BYTES = 1000


class Reader:
    """The part of the store that a context reads outputs from."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    async def outputs(self, job: str) -> list[bytes]:
        """The newest event of each index."""
        found = {}
        for batch in self._bench.log.batches:
            for event in batch:
                if event.type == "output":
                    found[event.index] = b'{"id":3,"job":"%b","attempt":1,' % job.encode() + event.tail
        return list(found.values())

    async def output(self, job: str, index: str) -> bytes | None:
        """The newest event of an index."""
        return next((text for text in await self.outputs(job) if from_json(text)["data"]["index"] == index), None)


async def no_hand_over(seconds: float) -> str:
    """These tests hand nothing over; tests/integration/test_worker_handover.py does."""
    raise NotImplementedError


class Desk:
    """A context over a scripted log, and blobs in a folder."""

    def __init__(self, bench: Bench, blobs: Blobs, of: JobRecord) -> None:
        self.bench = bench
        self.blobs = blobs
        store: Any = Reader(bench)
        self.context = Context(
            of, bench.writer, store=store, blobs=blobs, max_inline_bytes=INLINE_BYTES, hand_over=no_hand_over
        )

    async def appended(self) -> list[tuple[str, dict[str, Any]]]:
        """All that was reported so far, as it stands in the log."""
        await self.bench.writer.flush()
        return self.bench.log.appended


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A desk for a job with one file."""
    blobs = Blobs.open(tmp_path.as_uri())
    await blobs.put(f"jobs/{JOB}/1", b"hello", max_bytes=None)
    file = StoredFile("a.txt", "text/plain", 5, f"jobs/{JOB}/1")
    async with at_work() as bench:
        desk = Desk(bench, blobs, record(files=(file,), tags=("t",)))
        yield desk
        await desk.context.workspace.remove()


async def test_an_output_is_any_value_that_pydantic_can_write(desk: Desk) -> None:
    """Models, paths and times included; the index may be a number."""

    class Line(BaseModel):
        text: str

    await desk.context.output(7, Line(text="hé"))
    await desk.context.output("x", {"path": Path("/a"), "nan": float("nan")})

    assert await desk.appended() == [
        ("output", {"index": "7", "content_type": "application/json", "value": {"text": "hé"}}),
        ("output", {"index": "x", "content_type": "application/json", "value": {"path": "/a", "nan": None}}),
    ]


@pytest.mark.parametrize("index", ["", ".hidden", "a/b", "a b", "é", "-1", "x" * 65, "x\n", -1])
async def test_an_index_that_could_not_stand_in_a_path_is_refused(desk: Desk, index: str | int) -> None:
    """It is a part of urls and of blob keys."""
    with pytest.raises(ValueError, match="is no output index"):
        await desk.context.output(index, 1)


async def test_a_value_and_data_at_once_are_refused(desk: Desk) -> None:
    """Which of them would count?"""
    with pytest.raises(ValueError, match="not both"):
        await desk.context.output(1, 1, data=b"1")


async def test_what_no_json_can_say_is_the_authors_error(desk: Desk) -> None:
    """It is raised where it was reported, and the log is as it was."""
    with pytest.raises(ValueError, match="serialize"):
        await desk.context.output(1, object())

    assert await desk.appended() == []


@pytest.mark.parametrize("size", [INLINE_BYTES - 2, INLINE_BYTES - 1])
async def test_the_limit_for_inline_values_is_exact(desk: Desk, size: int) -> None:
    """One byte more makes a blob of it."""
    await desk.context.output(1, "x" * size)

    [(_, data)] = await desk.appended()
    assert ("url" in data) == (size + 2 > INLINE_BYTES)


async def test_an_output_at_the_largest_inline_limit_still_fits_an_event(desk: Desk) -> None:
    """The setting may be as large as an event, which is more than its value."""
    store: Any = Reader(desk.bench)
    context = Context(
        record(),
        desk.bench.writer,
        store=store,
        blobs=desk.blobs,
        max_inline_bytes=MAX_EVENT_BYTES,
        hand_over=no_hand_over,
    )
    for size in range(MAX_EVENT_BYTES - 1100, MAX_EVENT_BYTES, 100):
        await context.output("x" * 64, "y" * size, content_type="application/" + "z" * 100)

    assert len(await desk.appended()) == 11


async def test_large_values_and_bytes_are_read_back(desk: Desk) -> None:
    """A later attempt finds them where an earlier one left them."""
    await desk.context.output("large", {"text": "x" * 5000})
    await desk.context.output("text", "y" * 5000, content_type="text/plain")
    await desk.context.output("image", data=b"\x89PNG", content_type="image/png")
    await desk.context.output("small", [1, 2])

    outputs = await desk.context.outputs()

    assert set(outputs) == {"large", "text", "image", "small"}
    assert outputs["image"] == {
        "index": "image",
        "content_type": "image/png",
        "url": f"/v1/jobs/{JOB}/outputs/image",
        "size": 4,
    }
    assert await desk.context.read_output("large") == to_json({"text": "x" * 5000})
    assert await desk.context.read_output("text") == b"y" * 5000
    assert await desk.context.read_output("image") == b"\x89PNG"
    assert await desk.context.read_output("small") == b"[1,2]"
    with pytest.raises(KeyError):
        await desk.context.read_output("nothing")


@pytest.mark.parametrize("in_a_batch", [False, True])
async def test_bytes_after_the_end_replace_nothing(desk: Desk, in_a_batch: bool) -> None:
    """A thread that was left running may still put some, as may a batch that goes on for its other jobs."""
    await desk.context.output("page", data=b"in time")
    await desk.appended()
    if in_a_batch:
        desk.context.share([desk.context])
    desk.bench.writer.close()

    late = desk.context.output("page", data=b"too late")
    if in_a_batch:
        await late
    else:
        with pytest.raises(asyncio.CancelledError):
            await late

    assert await desk.blobs.get(f"jobs/{JOB}/outputs/{desk.context.attempt}-page") == b"in time"


async def test_progress_never_falls(desk: Desk) -> None:
    """Pages that are read side by side report as they come."""
    for current in (3, 1, 4.5, 2):
        await desk.context.progress(current, 10, unit="pages", message="a\ud800", stage=None)
        await desk.bench.writer.flush()

    assert [data["current"] for _, data in await desk.appended()] == [3, 3, 4.5, 4.5]
    assert (await desk.appended())[0][1] == {"current": 3, "total": 10, "unit": "pages", "message": "a?"}


async def test_numbers_of_other_libraries_are_numbers(desk: Desk) -> None:
    """An array's length is no `int` of Python's; what a path says is its text."""
    numpy = pytest.importorskip("numpy")
    odd: Any = Path("a.pdf")
    await desk.context.progress(numpy.int64(3), numpy.float32(4), message=odd, eta_seconds=numpy.float32(1.5))

    said = {"current": 3, "total": 4, "message": "a.pdf", "eta_seconds": 1.5}
    assert await desk.appended() == [("progress", said)]


async def test_a_log_message_is_cut_at_its_limit(desk: Desk) -> None:
    """A dumped document is no log line."""
    await desk.context.log("x" * (MAX_LOG_CHARACTERS + 1), "error")

    [(_, data)] = await desk.appended()
    assert data == {"level": "error", "message": "x" * MAX_LOG_CHARACTERS + "…"}


async def test_an_event_of_ones_own_needs_a_dot(desk: Desk) -> None:
    """The plain words are the protocol's, now and later."""
    await desk.context.event("invoice.line", {"sum": 3})
    with pytest.raises(ValueError, match="needs a dot"):
        await desk.context.event("succeeded", {})
    with pytest.raises(ValueError, match="is no event type"):
        await desk.context.event('x."}', {})

    assert await desk.appended() == [("invoice.line", {"sum": 3})]


async def test_a_function_that_only_reports_lets_the_loop_turn(desk: Desk) -> None:
    """Its events go out while it still runs, and other attempts go on."""

    async def report(report_one: Callable[[int], Any]) -> None:
        for i in range(200):
            before = len(desk.bench.log.batches)
            for _ in range(100):
                await report_one(i)
            if len(desk.bench.log.batches) > before:
                return
        raise AssertionError("nothing went out")

    async with asyncio.timeout(PATIENCE_SECONDS):
        await report(lambda i: desk.context.output(i, i))
        await report(lambda i: desk.context.delta("x"))


async def test_heavy_work_runs_in_a_thread_and_may_report(desk: Desk) -> None:
    """Through the context's other face."""

    def heavy(factor: int) -> tuple[str, int]:
        desk.context.sync.output("from-the-thread", factor)
        return threading.current_thread().name, 6 * factor

    name, product = await desk.context.in_thread(heavy, 7)

    assert (name, product) == (f"echo {JOB}", 42)
    assert (await desk.appended())[0][1]["value"] == 7


async def test_a_stopped_attempt_is_seen_from_everywhere(desk: Desk) -> None:
    """By asking, or by the exception."""
    desk.context.check_cancelled()
    desk.context.stop()

    assert desk.context.cancelled
    assert desk.context.sync.cancelled
    with pytest.raises(asyncio.CancelledError):
        desk.context.check_cancelled()


async def test_a_thread_is_told_once_by_its_next_report(desk: Desk) -> None:
    """After that it can still say that it has cleaned up."""
    sync = desk.context.sync
    desk.context.stop()

    def work() -> None:
        try:
            sync.output("never", 1)
        except asyncio.CancelledError:
            sync.log("cleaned up")
            sync.progress(1)

    await run_in_thread(work)

    assert [type_ for type_, _ in await desk.appended()] == ["log", "progress"]


async def test_a_file_is_read_whole_or_by_its_path(desk: Desk) -> None:
    """In a local folder without a copy."""
    [file] = desk.context.files

    async with file.open_path() as path:
        assert path.read_text() == "hello"
    assert await file.read() == b"hello"
    assert await file.path() == path
    assert (file.name, file.content_type, file.size) == ("a.txt", "text/plain", 5)
    assert desk.context.tags == ("t",)


async def test_a_remote_file_is_copied_and_the_copy_removed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the block, or with the attempt."""
    monkeypatch.setattr(desk.blobs, "local_path", lambda key: None)
    [file] = desk.context.files

    async with file.open_path() as path:
        assert path.read_text() == "hello"
    assert not path.exists()
    kept, again = await asyncio.gather(file.path(), file.path())
    assert kept == again
    assert kept.read_text() == "hello"
    await desk.context.workspace.remove()
    assert not kept.parent.exists()


async def test_a_thread_reads_files_too(desk: Desk) -> None:
    """The same names without `await`."""
    [file] = desk.context.sync.files

    def work() -> tuple[bytes, str]:
        with file.open_path() as path:
            assert path == file.path()
            return file.read(), path.read_text()

    assert await run_in_thread(work) == (b"hello", "hello")
    assert repr(file) == "<file 'a.txt', text/plain, 5 bytes>"


async def test_a_files_name_never_becomes_a_path(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is whatever a client sent."""
    monkeypatch.setattr(desk.blobs, "local_path", lambda key: None)
    stored = StoredFile("../../etc/passwd", "text/plain", 5, f"jobs/{JOB}/1")
    path = await InputFile(stored, desk.blobs, desk.context.workspace).path()

    assert "passwd" not in str(path)
