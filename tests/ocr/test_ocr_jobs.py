"""OCR jobs in the real runtime, on a real store; a make-believe engine reads striped pages in no time."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from processors.ocr import engines, pages
from processors.ocr.engines import cores
from processors.ocr.pages import Pixels
from tests.faults import wait_until
from tests.ocr.conftest import Jobs, working
from tests.ocr.documents import STRIPES, encoded, pdf, png_of_size, striped, striped_tiff, text_at
from tests.ocr.engine import StripeEngine, text_of_page
from tests.processes import program
from tests.worker_jobs import log_of

LAYER = b"".join(text_at(72, 720 - 20 * line, f"Line {line} of a text layer that is good.") for line in range(4))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StripeEngine:
    """The engine that this process uses, for any name and language."""
    found = StripeEngine()
    use(monkeypatch, found)
    return found


def use(monkeypatch: pytest.MonkeyPatch, engine: StripeEngine) -> None:
    """Have jobs read by an engine."""
    monkeypatch.setattr(engines, "load", lambda name, languages: engine)


async def test_a_job_publishes_each_page_as_it_is_read(engine: StripeEngine, reading: Jobs) -> None:
    """First its picture, then its lines in order, then the page itself; at last the result in three forms."""
    outcome = await reading.read(striped_tiff(3))

    indexes = [event.data["index"] for event in outcome.events if event.type == "output"]
    for page in (1, 2, 3):
        mine = [index for index in indexes if index.startswith(f"page-{page}") and index[6:7] in ("", ".")]
        assert mine[0] == f"page-{page}.image"
        assert mine[-1] == f"page-{page}"
        batches = [outcome.outputs[index]["value"] for index in mine[1:-1]]
        assert [index.rsplit("-", 1)[1] for index in mine[1:-1]] == [str(at) for at in range(len(batches))]
        assert [line["text"] for batch in batches for line in batch["lines"]] == text_of_page(page).split("\n")
        assert [batch["first"] for batch in batches] == [
            sum(len(batch["lines"]) for batch in batches[:at]) for at in range(len(batches))
        ]
        assert {(batch["width"], batch["height"]) for batch in batches} == {(400, 280)}
        assert outcome.outputs[f"page-{page}"]["value"]["text"] == text_of_page(page)
        assert outcome.outputs[f"page-{page}.image"]["content_type"] == "image/jpeg"
        assert outcome.blobs[f"page-{page}.image"].startswith(b"\xff\xd8")
    assert indexes[-2:] == ["result.txt", "result.hocr"]
    assert outcome.outputs["result.txt"]["value"] == "\f".join(f"{text_of_page(page)}\n" for page in (1, 2, 3))
    assert outcome.outputs["result.txt"]["content_type"] == "text/plain; charset=utf-8"
    assert outcome.outputs["result.hocr"]["content_type"] == "text/vnd.hocr+html; charset=utf-8"
    result = outcome.end.data["result"]
    assert result["text"] == "\n\n".join(text_of_page(page) for page in (1, 2, 3))
    assert result["partial"] is False
    assert "partial" not in outcome.end.data
    first = outcome.pages[0].lines[0]
    assert (first.text, first.confidence) == ("page 1 line 0", 0.99)
    assert first.box == ((20, 30), (380, 30), (380, 60), (20, 60))


async def test_progress_is_told_in_pages_and_lines_with_an_eta(engine: StripeEngine, reading: Jobs) -> None:
    """It begins at none of them and ends at all."""
    outcome = await reading.read(striped_tiff(5))

    told = [event.data for event in outcome.events if event.type == "progress"]
    assert told[0] == {"current": 0, "total": 5, "unit": "pages"}
    assert told[-1]["current"] == 5
    assert told[-1]["eta_seconds"] == 0
    assert told[-1]["message"].endswith("finished")
    assert all(one["eta_seconds"] >= 0 for one in told[1:])
    assert [one["current"] for one in told] == sorted(one["current"] for one in told)


async def test_each_line_is_read_once(engine: StripeEngine, reading: Jobs) -> None:
    """Samples for the page's direction included."""
    await reading.read(striped_tiff(4))

    assert engine.found == dict.fromkeys(range(1, 5), 1)
    assert engine.read_lines == {(page, line): 1 for page in range(1, 5) for line in range(STRIPES)}


async def test_the_engine_never_works_on_an_event_loop(engine: StripeEngine, reading: Jobs) -> None:
    """It holds its thread for as long as it takes."""
    await reading.read(striped_tiff(2))

    assert engine.threads
    assert threading.main_thread() not in engine.threads
    assert threading.current_thread() not in engine.threads


async def test_no_more_pages_are_in_memory_than_can_be_read(
    engine: StripeEngine, reading: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are cores, and the one that is decoded meanwhile; over all jobs together."""
    loaded: list[weakref.ref[Pixels]] = []
    most = 0
    load = pages._load

    def counted(*args: Any) -> Pixels:
        nonlocal most
        image = load(*args)
        gc.collect()
        loaded.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in loaded))
        return image

    monkeypatch.setattr(pages, "_load", counted)

    both = [await reading.submit({"file": striped_tiff(8)}) for _ in range(2)]
    outcomes = [await reading.end(job) for job in both]

    assert [len(outcome.pages) for outcome in outcomes] == [8, 8]
    assert 1 < most <= cores() + 1


async def test_a_text_layer_is_taken_as_it_is(engine: StripeEngine, reading: Jobs) -> None:
    """No engine is asked; the page has a picture and lines all the same."""
    outcome = await reading.read(pdf([LAYER, LAYER]))

    assert not engine.found
    assert [page.source for page in outcome.pages] == ["text-layer"] * 2
    assert outcome.pages[0].text == "\n".join(f"Line {line} of a text layer that is good." for line in range(4))
    assert [line.confidence for line in outcome.pages[0].lines] == [None] * 4
    assert {index for index in outcome.outputs if index.startswith("page-1")} == {"page-1", "page-1.image"}


async def test_several_files_are_read_as_one_document(engine: StripeEngine, reading: Jobs) -> None:
    """Their pages are counted on."""
    job = await reading.submit(
        {"one": striped_tiff(2), "two": encoded(striped(3), "PNG"), "three": pdf([LAYER])}, languages=["en"]
    )
    outcome = await reading.end(job)

    assert [(page.page, page.source) for page in outcome.pages] == [
        (1, "ocr"),
        (2, "ocr"),
        (3, "ocr"),
        (4, "text-layer"),
    ]
    assert [page.text for page in outcome.pages[:3]] == [text_of_page(page) for page in (1, 2, 3)]


async def test_a_page_that_cannot_be_read_does_not_spoil_the_others(engine: StripeEngine, reading: Jobs) -> None:
    """It is named, with its problem, and the result is partial."""
    huge = Image.new("1", (40_000, 2_100))
    body = encoded(striped(1), "TIFF", save_all=True, append_images=[huge, striped(3)])

    outcome = await reading.read(body)

    assert [page.problem and page.problem.code for page in outcome.pages] == [None, "page_too_large", None]
    assert outcome.pages[2].text == text_of_page(3)
    assert outcome.end.data["partial"] is True
    assert outcome.end.data["result"]["partial"] is True
    assert outcome.outputs["page-2"]["value"]["problem"]["code"] == "page_too_large"
    assert outcome.outputs["result.txt"]["value"].split("\f")[1] == ""


async def test_an_engine_that_fails_on_a_page_does_not_spoil_the_others(
    monkeypatch: pytest.MonkeyPatch, reading: Jobs
) -> None:
    """Whatever it raises; what it raises is logged and not sent."""

    def fail_on_the_second(page: int, line: int) -> None:
        if (page, line) == (2, 4):
            raise RuntimeError("a secret: hunter2")

    use(monkeypatch, StripeEngine(fail_on_the_second))

    outcome = await reading.read(striped_tiff(3))

    assert [page.problem and page.problem.code for page in outcome.pages] == [None, "page_failed", None]
    assert outcome.end.data["partial"] is True
    assert "hunter2" not in str([event.data for event in outcome.events])


@pytest.mark.usefixtures("early_looks")
async def test_an_engine_that_fails_on_every_page_fails_the_attempt(
    monkeypatch: pytest.MonkeyPatch, reading: Jobs
) -> None:
    """The next one reads all pages again, and may be luckier."""
    fails = Counter({1: 1, 2: 1})

    def fail_once(page: int, line: int) -> None:
        if line == 5 and fails[page]:
            fails[page] -= 1
            raise RuntimeError("out of luck")

    use(monkeypatch, StripeEngine(fail_once))

    outcome = await reading.read(striped_tiff(2))

    retrying = next(event for event in outcome.events if event.type == "retrying")
    assert retrying.data["problem"]["code"] == "page_failed"
    assert [page.text for page in outcome.pages] == [text_of_page(1), text_of_page(2)]
    assert outcome.end.attempt == 2


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "input_empty"),
        (b"no picture", "input_unsupported"),
        (encoded(striped(1), "PNG")[:400], "input_unreadable"),
        (png_of_size(60_000, 60_000), "input_too_large"),
        (pdf([b""], encrypted=True), "input_encrypted"),
        (pdf([b""], size="90000 90000"), "input_too_large"),
    ],
)
async def test_what_cannot_be_read_at_all_fails_at_once(
    engine: StripeEngine, reading: Jobs, body: bytes, code: str
) -> None:
    """In the first attempt, with a code and advice."""
    outcome = await reading.end(await reading.submit({"file": body}))

    assert outcome.problem["code"] == code
    assert outcome.end.attempt == 1
    assert outcome.problem["detail"].endswith(".")
    assert not engine.found


async def test_one_broken_file_among_others_is_refused_before_any_work(engine: StripeEngine, reading: Jobs) -> None:
    """The submitter can mend it, and would otherwise pay for the rest twice."""
    outcome = await reading.end(await reading.submit({"good": striped_tiff(2), "bad": b"?"}))

    assert outcome.problem["code"] == "input_unsupported"
    assert not engine.found


async def test_only_text_is_for_pdfs(engine: StripeEngine, reading: Jobs) -> None:
    """An image has no layer; a PDF without one has an empty text."""
    image = await reading.read(striped_tiff(1), text="only")
    empty = await reading.read(pdf([b"0 0 0 rg 9 9 99 99 re f"]), text="only")

    assert image.problem["code"] == "input_unsupported"
    assert [(page.source, page.text, page.problem) for page in empty.pages] == [("text-layer", "", None)]
    assert not engine.found


async def test_an_unknown_language_is_rejected(reading: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the languages that there are."""
    outcome = await reading.read(striped_tiff(1), languages=["xx"])

    assert outcome.problem["code"] == "language_unavailable"
    assert outcome.problem["errors"] == [{"field": "languages", "message": "'xx' is not available"}]


@pytest.mark.parametrize(
    "input_", [{"engine": "abbyy"}, {"detail": 10}, {"text": "maybe"}, {"langauges": ["en"]}, {"languages": "en"}]
)
async def test_an_input_that_does_not_fit_is_rejected(
    engine: StripeEngine, reading: Jobs, input_: dict[str, Any]
) -> None:
    """A field that isn't known is a mistake, not a wish to be ignored."""
    assert (await reading.read(striped_tiff(1), **input_)).problem["code"] == "rejected"


async def test_a_cancelled_job_stops_between_two_lines(
    monkeypatch: pytest.MonkeyPatch, reading: Jobs, tmp_path: Path
) -> None:
    """Long before its last one; the decoding process and the files are gone."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    reads: list[tuple[int, int]] = []

    def note(page: int, line: int) -> None:
        reads.append((page, line))
        if line >= 3:
            # A line takes its time, as with a real engine.
            threading.Event().wait(0.05)

    use(monkeypatch, StripeEngine(note))
    job = await reading.submit({"file": striped_tiff(20)})
    await wait_until(lambda: len(reads) > 10, what="lines")
    assert any(scratch.iterdir())

    await reading.store.cancel(job, "me", "enough")
    outcome = await reading.end(job)
    at_the_end = len(reads)

    assert outcome.end.type == "cancelled"
    assert at_the_end < 20 * STRIPES
    await wait_until(lambda: not _decoders() and not any(scratch.iterdir()), what="the end of the decoder")
    assert len(reads) == at_the_end


def _decoders() -> list[str]:
    """The decoding processes that are children of this one."""
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if "decoder.py" in line]


async def test_a_job_that_a_stopping_worker_hands_back_is_read_on(monkeypatch: pytest.MonkeyPatch, jobs: Jobs) -> None:
    """Its finished pages are taken over, also where they were too large to stand in the log."""

    def take_time(page: int, line: int) -> None:
        threading.Event().wait(0.03 if page > 3 else 0)

    slow = StripeEngine(take_time)
    use(monkeypatch, slow)
    job = await jobs.submit({"scan": striped_tiff(9)})

    async with working(jobs.store, jobs.blobs, max_inline_bytes=300) as worker:

        async def three_are_finished() -> bool:
            indexes = {event.data["index"] for event in await log_of(jobs.store, job) if event.type == "output"}
            return {"page-1", "page-2", "page-3"} <= indexes

        await wait_until(three_are_finished, what="three pages")
        worker.stop()
    async with working(jobs.store, jobs.blobs):
        outcome = await jobs.end(job)

    assert (
        next(event for event in outcome.events if event.type == "retrying").data["problem"]["code"] == "worker_stopping"
    )
    assert "url" in outcome.outputs["page-1"]
    assert [page.text for page in outcome.pages] == [text_of_page(page) for page in range(1, 10)]
    assert [slow.found[page] for page in (1, 2, 3)] == [1, 1, 1]


# --- a worker that is killed --------------------------------------------------------------------------------------


@asynccontextmanager
async def counting_worker(jobs: Jobs, folder: Path, gated: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process for the length of the block, whose engine waits before the lines from page `gated` on."""
    environment = {
        "OUTLAST_REDIS_URL": jobs.store._url,
        "OUTLAST_PREFIX": jobs.store._keys.prefix,
        "OUTLAST_LEASE_SECONDS": str(jobs.store.lease_seconds),
        "OUTLAST_BLOB_URL": (folder / "blobs").as_uri(),
        "OUTLAST_STOP_GRACE_SECONDS": "0",
        "OCR_LINES": str(folder / "lines"),
        "OCR_GATE": str(folder / "gate"),
        "OCR_GATED": str(gated),
    }
    command = (sys.executable, "-m", "tests.ocr.counting_worker")
    async with program(*command, env=os.environ | environment, stdout=None, stderr=None) as process:
        yield process


@pytest.mark.lease(0.6)
async def test_a_worker_that_takes_over_does_not_read_finished_pages_again(jobs: Jobs, tmp_path: Path) -> None:
    """The first one is killed in the middle of page 4; engine calls are counted per page over both."""
    notes = tmp_path / "lines"

    def reads() -> Counter[tuple[int, int]]:
        lines = notes.read_text().splitlines() if notes.exists() else []
        return Counter((int(page), int(line)) for page, line in (one.split() for one in lines))

    job = await jobs.submit({"scan": striped_tiff(7)})
    async with counting_worker(jobs, tmp_path, gated=4) as first:

        async def begun_the_fourth() -> bool:
            outputs = [event.data["index"] for event in await log_of(jobs.store, job) if event.type == "output"]
            return {"page-1", "page-2", "page-3"} <= set(outputs) and any(page == 4 for page, _ in reads())

        await wait_until(begun_the_fourth, what="three pages and a part of the fourth")
        first.send_signal(signal.SIGKILL)
        await first.wait()
    before = reads()
    (tmp_path / "gate").touch()
    async with counting_worker(jobs, tmp_path, gated=4):
        outcome = await jobs.end(job, seconds=30)

    finished = {event.data["index"] for event in outcome.events if event.type == "output" and event.attempt == 1}
    pages_done = [page for page in range(1, 8) if f"page-{page}" in finished]
    assert pages_done == [1, 2, 3]
    for page in pages_done:
        assert {line: reads()[page, line] for line in range(STRIPES)} == dict.fromkeys(range(STRIPES), 1)
    for page in range(4, 8):
        assert all(reads()[page, line] == before[page, line] + 1 for line in range(STRIPES))
    assert [page.text for page in outcome.pages] == [text_of_page(page) for page in range(1, 8)]
    assert outcome.end.attempt == 2
    told = [event.data["current"] for event in outcome.events if event.type == "progress" and event.attempt == 2]
    assert told[0] == 3
    for page in range(1, 8):
        batches = [outcome.outputs[index] for index in outcome.outputs if index.startswith(f"page-{page}.lines-")]
        texts = [line["text"] for batch in batches for line in batch["value"]["lines"]]
        assert sorted(texts) == text_of_page(page).split("\n")
