"""The decoding process and its owner: what comes over, and what happens when it dies or hangs."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from processors.children import Children
from processors.ocr import pages
from processors.ocr.decoder import MAX_PAGES, Problem
from processors.ocr.pages import Decoder, Sheet, preview, turn
from tests.faults import wait_until
from tests.ocr.documents import encoded, pdf, png_of_size, striped, striped_tiff, text_at

Opener = Callable[..., AbstractAsyncContextManager[Decoder]]


class Started:
    """Starts processes as a context does, and remembers them."""

    def __init__(self) -> None:
        self.processes: list[asyncio.subprocess.Process] = []
        self._children = Children()

    @asynccontextmanager
    async def __call__(self, *command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
        async with self._children.start(*command, **options) as process:
            self.processes.append(process)
            yield process


@pytest.fixture
def started() -> Started:
    """The processes of the test."""
    return Started()


@pytest.fixture
def opened(tmp_path: Path, started: Started) -> Opener:
    """Makes a decoder for files of these contents."""
    names: Iterator[int] = itertools.count()

    def make(*bodies: bytes) -> Decoder:
        paths = []
        for body in bodies:
            paths.append(tmp_path / f"file-{next(names)}")
            paths[-1].write_bytes(body)
        return Decoder(paths, started, lambda: tmp_path / f"pixels-{next(names)}")

    return make


async def all_of(decoder: Decoder) -> list[Sheet | str]:
    """All pages, or the codes of their problems."""
    found: list[Sheet | str] = []
    for leaf in await decoder.leaves():
        try:
            found.append(await decoder.read(leaf, "auto"))
        except Problem as problem:
            found.append(problem.code)
    return found


async def test_pages_are_counted_over_all_files(opened: Opener) -> None:
    """A PDF, a TIFF of two pages and a photo make four pages."""
    layer = text_at(72, 700, "A text layer that can be taken as it is.")
    async with opened(pdf([layer]), striped_tiff(2), encoded(striped(3), "PNG")) as decoder:
        leaves = await decoder.leaves()
        sheets = await all_of(decoder)

    assert [(leaf.number, leaf.document, leaf.page, leaf.format) for leaf in leaves] == [
        (1, 0, 0, "pdf"),
        (2, 1, 0, "tiff"),
        (3, 1, 1, "tiff"),
        (4, 2, 0, "png"),
    ]
    first, *stripes = sheets
    assert isinstance(first, Sheet)
    assert first.phrases is not None
    assert first.phrases[0].text == "A text layer that can be taken as it is."
    for page, sheet in enumerate(stripes, 1):
        assert isinstance(sheet, Sheet)
        assert np.array_equal(sheet.image[:, :, 0], np.asarray(striped(page)))
        assert sheet.phrases is None


async def test_nothing_is_left_behind(opened: Opener, started: Started, tmp_path: Path) -> None:
    """Neither the pixels in files nor the process."""
    async with opened(striped_tiff(3)) as decoder:
        await all_of(decoder)

    assert [path.name for path in tmp_path.iterdir()] == ["file-0"]
    assert [process.returncode is None for process in started.processes] == [False]


async def test_a_process_that_dies_costs_one_page(opened: Opener, started: Started) -> None:
    """The next page has a new one."""
    async with opened(striped_tiff(3)) as decoder:
        leaves = await decoder.leaves()
        os.kill(started.processes[0].pid, signal.SIGKILL)
        await started.processes[0].wait()
        with pytest.raises(Problem) as caught:
            await decoder.read(leaves[0], "auto")
        sheet = await decoder.read(leaves[1], "auto")

    assert caught.value.code == "page_unreadable"
    assert np.array_equal(sheet.image[:, :, 0], np.asarray(striped(2)))
    assert len(started.processes) == 2


async def test_a_page_that_takes_too_long_is_given_up(
    opened: Opener, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the process that is at it is ended."""
    async with opened(striped_tiff(2)) as decoder:
        leaves = await decoder.leaves()
        os.kill(started.processes[0].pid, signal.SIGSTOP)
        with monkeypatch.context() as short:
            short.setattr(pages, "READ_SECONDS", 0.2)
            with pytest.raises(Problem) as caught:
                await decoder.read(leaves[0], "auto")
        sheet = await decoder.read(leaves[1], "auto")

    assert caught.value.code == "page_timeout"
    assert started.processes[0].returncode == -signal.SIGKILL
    assert sheet.number == 2


async def test_a_file_full_of_such_pages_is_given_up(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand pages of twenty seconds each would be a day's work."""
    monkeypatch.setattr(pages, "READ_SECONDS", 0.0)
    async with opened(striped_tiff(pages.MAX_FAILURES + 3)) as decoder:
        codes = await all_of(decoder)

    assert codes == ["page_timeout"] * pages.MAX_FAILURES + ["page_unreadable"] * 3


async def test_cancelling_a_read_ends_the_process(opened: Opener, started: Started) -> None:
    """Its answer would be taken for that to the next question."""
    async with opened(striped_tiff(2)) as decoder:
        leaves = await decoder.leaves()
        os.kill(started.processes[0].pid, signal.SIGSTOP)
        reading = asyncio.create_task(decoder.read(leaves[0], "auto"))
        await asyncio.sleep(0)
        await wait_until(decoder._lock.locked, what="the question")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        sheet = await decoder.read(leaves[1], "auto")

    assert started.processes[0].returncode == -signal.SIGKILL
    assert sheet.number == 2


async def test_pages_read_at_once_wait_for_each_other(opened: Opener) -> None:
    """Each gets its own pixels."""
    async with opened(striped_tiff(8)) as decoder:
        sheets = await asyncio.gather(*(decoder.read(leaf, "auto") for leaf in await decoder.leaves()))

    assert [int(sheet.image[45, 200, 0]) for sheet in sheets] == [10 * page for page in range(1, 9)]


async def test_a_bomb_is_refused_in_no_time(opened: Opener) -> None:
    """3.6 thousand million pixels in 200 bytes."""
    started_at = time.monotonic()
    async with opened(png_of_size(60_000, 60_000)) as decoder:
        [leaf] = await decoder.leaves()

    assert leaf.problem is not None
    assert leaf.problem.code == "page_too_large"
    assert time.monotonic() - started_at < 20


async def test_a_picture_in_a_pdf_that_needs_too_much_memory_is_that_pages_problem(opened: Opener) -> None:
    """pdfium would take 10 GB for it; its process may not. The next page is read as if nothing had been."""
    bomb = (
        b"q 500 0 0 500 50 200 cm BI /W 60000 /H 60000 /BPC 8 /CS /RGB /F /RL ID " + b"\x81\xff" * 4000 + b"\x80 EI Q"
    )
    async with opened(pdf([bomb, text_at(72, 700, "The second page can be read all the same.")])) as decoder:
        first, second = await all_of(decoder)

    assert isinstance(first, Sheet) or first in ("page_unreadable", "page_too_large", "page_timeout")
    assert isinstance(second, Sheet)


async def test_too_many_pages_in_all_files_are_refused(opened: Opener) -> None:
    """Though each file has few enough."""
    body = pdf([b""] * (MAX_PAGES // 2 + 1))
    async with opened(body, body) as decoder:
        with pytest.raises(Problem) as caught:
            await decoder.leaves()

    assert caught.value.code == "input_too_large"


async def test_a_file_that_cannot_be_opened_names_its_problem(opened: Opener) -> None:
    """Encrypted, empty, something else: see the decoder's tests."""
    async with opened(pdf([b""], encrypted=True)) as decoder:
        with pytest.raises(Problem) as caught:
            await decoder.leaves()

    assert caught.value.code == "input_encrypted"


def test_a_preview_is_a_jpeg_of_bounded_width() -> None:
    """As high as its proportions say; small images stay as they are."""
    wide = cv2.imdecode(np.frombuffer(preview(np.full((1000, 3000, 3), 200, np.uint8)), np.uint8), cv2.IMREAD_COLOR)
    small = cv2.imdecode(np.frombuffer(preview(np.full((50, 80, 3), 200, np.uint8)), np.uint8), cv2.IMREAD_COLOR)

    assert wide is not None
    assert small is not None
    assert wide.shape == (400, 1200, 3)
    assert small.shape == (50, 80, 3)


@pytest.mark.parametrize(("quarters", "place"), [(0, (0, 0)), (1, (0, -1)), (2, (-1, -1)), (3, (-1, 0)), (4, (0, 0))])
def test_turning_is_clockwise(quarters: int, place: tuple[int, int]) -> None:
    """The corner at the top left goes to the top right first."""
    image = np.asarray(Image.new("RGB", (6, 4), "white")).copy()
    image[0, 0] = 0

    turned = turn(image, quarters)

    assert turned[place].max() == 0
    assert turned.flags["C_CONTIGUOUS"]
