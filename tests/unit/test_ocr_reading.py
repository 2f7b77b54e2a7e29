"""How one page is read: which way up it lies, how closely it is looked at, how its lines are gathered."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from processors.context import Context
from processors.ocr.document import Line, Page
from processors.ocr.engines import Reading
from processors.ocr.layout import Quad, arrange
from processors.ocr.pages import Pixels
from processors.ocr.reading import BATCH_LINES, LineBatches, View, look, read_row


class MarkEngine:
    """Reads pages of bars: black at the side where a line begins, grey elsewhere. Notes what it was asked."""

    doubt = 0.9
    least = 0.5

    def __init__(self, needed_detail: int = 0, confidence: float = 0.98) -> None:
        self.needed_detail = needed_detail
        self.confidence = confidence
        self.details: list[int] = []
        self.reads = 0

    def find(self, image: Pixels, detail: int) -> list[Quad]:
        """The bars: everything that isn't white, row by row or column by column."""
        self.details.append(detail)
        ink = image[:, :, 0] < 250
        along_rows = ink.any(axis=1).mean() < ink.any(axis=0).mean()
        inked = ink.any(axis=1) if along_rows else ink.any(axis=0)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], inked, [False]]).astype(int)))
        quads = []
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            across = np.flatnonzero(ink[start:end].any(axis=0) if along_rows else ink[:, start:end].any(axis=1))
            low, high = int(across[0]), int(across[-1]) + 1
            box = (low, start, high, end) if along_rows else (start, low, end, high)
            left, top, right, bottom = box
            quads.append(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32))
        return quads

    def read(self, phrase: Pixels) -> Reading:
        """Sure only of a bar that begins black at its left, seen in enough detail."""
        self.reads += 1
        height, width = phrase.shape[:2]
        upright = width > height and phrase[height // 2, 3, 0] < 60
        good = upright and self.details[-1] >= self.needed_detail
        return Reading(f"bar of {width}", self.confidence if good else 0.6)


def bars(count: int = 5) -> Pixels:
    """A page of bars of different lengths."""
    page = np.full((400, 300, 3), 255, np.uint8)
    for bar in range(count):
        top, right = 40 + 60 * bar, 250 - 20 * bar
        page[top : top + 20, 30:right] = 128
        page[top : top + 20, 30:50] = 0
    return page


def test_a_page_that_lies_well_costs_nothing_to_look_at() -> None:
    """One look, and each phrase read once: the samples are lines that are needed anyway."""
    engine = MarkEngine()

    view = look(engine, bars(), None)
    rows, _ = arrange(view.quads, 300, 400)
    lines = [read_row(engine, view, row) for row in rows]

    assert view.quarters == 0
    assert engine.details == [736]
    assert engine.reads == 5
    assert [line.text for line in lines if line] == [
        "bar of 220",
        "bar of 200",
        "bar of 180",
        "bar of 160",
        "bar of 140",
    ]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_page_on_its_side_or_its_head_is_turned_upright(quarters: int) -> None:
    """Boxes and image alike."""
    engine = MarkEngine()
    lying = np.ascontiguousarray(np.rot90(bars(), quarters))

    view = look(engine, lying, None)

    assert view.quarters == quarters
    assert np.array_equal(view.image, bars())
    rows, skew = arrange(view.quads, 300, 400)
    assert skew == pytest.approx(0, abs=0.5)
    lines = [read_row(engine, view, row) for row in rows]
    assert [line and line.text for line in lines] == [f"bar of {220 - 20 * bar}" for bar in range(5)]
    assert [line and line.box[0] for line in lines] == [(30, 40 + 60 * bar) for bar in range(5)]


def test_a_page_that_reads_badly_either_way_stays_as_it_is() -> None:
    """Handwriting, or a bad photo: no direction is clearly better."""
    view = look(MarkEngine(confidence=0.62), bars(), 736)

    assert view.quarters == 0
    assert len(view.quads) == 5


def test_small_print_is_looked_at_more_closely() -> None:
    """Until it is read well, or the image has no more to show."""
    engine = MarkEngine(needed_detail=1200)
    page = np.repeat(np.repeat(bars(), 8, axis=0), 8, axis=1)
    page[::40] = 255  # thin bars: low at the size of a first look

    view = look(engine, page, None)

    assert engine.details == [736, 1288]
    assert view.sureness > 0.9


def test_a_detail_that_was_asked_for_is_kept() -> None:
    """Though it reads badly."""
    engine = MarkEngine(needed_detail=1200)

    look(engine, np.repeat(np.repeat(bars(), 8, axis=0), 8, axis=1), 400)

    assert set(engine.details) == {400}


def test_a_blank_page_is_looked_at_once_more_if_it_can_show_more() -> None:
    """And not again: the backs of scanned sheets are blank."""
    engine = MarkEngine()

    assert look(engine, np.full((400, 300, 3), 255, np.uint8), None).quads == []
    assert engine.details == [736]
    assert look(engine, np.full((1600, 1200, 3), 255, np.uint8), None).quads == []
    assert engine.details == [736, 736, 1288]


def test_a_line_is_joined_from_its_phrases_and_doubtful_ones_are_left_out() -> None:
    """What is no text after all doesn't spoil the line; its confidence counts characters."""
    readings = {0: Reading("Total", 0.9), 1: Reading("@", 0.2), 2: Reading("12.50", 1.0), 3: Reading("", 0.0)}
    quads = [np.array([[x, 10], [x + 60, 10], [x + 60, 40], [x, 40]], np.float32) for x in (0, 100, 200, 300)]
    view = View(np.full((60, 400, 3), 255, np.uint8), quads, known=readings)
    [row], _ = arrange(quads, 400, 60)

    line = read_row(MarkEngine(), view, row)

    assert line == Line(text="Total 12.50", box=((0, 10), (360, 10), (360, 40), (0, 40)), confidence=0.95)
    view.known = {at: Reading("", 0.0) for at in range(4)}
    assert read_row(MarkEngine(), view, row) is None


def test_a_note_at_the_margin_is_read_upwards_or_downwards() -> None:
    """Whichever is surer."""
    page = np.full((400, 300, 3), 255, np.uint8)
    page[100:300, 20:40] = 128
    page[280:300, 20:40] = 0  # begins at the bottom: it runs upwards
    quad = np.array([[20, 100], [40, 100], [40, 300], [20, 300]], np.float32)
    engine = MarkEngine()
    engine.details = [736]
    [row], _ = arrange([quad], 300, 400)

    line = read_row(engine, View(page, [quad]), row)

    assert line is not None
    assert (line.text, line.confidence) == ("bar of 200", 0.98)


class Published:
    """A context that keeps what is published."""

    def __init__(self) -> None:
        self.outputs: list[tuple[str, Any]] = []

    async def output(self, index: str, value: Any = None, **_: Any) -> None:
        """Keep it."""
        self.outputs.append((index, value))

    @property
    def sizes(self) -> list[tuple[str, int, int]]:
        """Index, lines before, and lines of each batch."""
        return [(index, value["first"], len(value["lines"])) for index, value in self.outputs]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr("processors.ocr.reading.time.monotonic", lambda: now[0])
    return now


def batches(ctx: Published) -> LineBatches:
    """The batches of page 3."""
    return LineBatches(cast(Context, ctx), Page(page=3, width=400, height=300))


LINE = Line(text="line", box=((0, 0), (9, 0), (9, 9), (0, 9)), confidence=0.5)


async def test_the_first_line_is_published_at_once_and_the_others_in_eights(clock: list[float]) -> None:
    """As long as they come fast."""
    ctx = Published()
    one = batches(ctx)

    for _ in range(20):
        await one.add(LINE)
    assert ctx.sizes == [
        ("page-3.lines-0", 0, 1),
        ("page-3.lines-1", 1, BATCH_LINES),
        ("page-3.lines-2", 9, BATCH_LINES),
    ]

    await one.finish(0)
    assert ctx.sizes[3:] == [("page-3.lines-3", 17, 3)]


async def test_slow_lines_are_published_as_time_passes(clock: list[float]) -> None:
    """At most every 150 ms."""
    ctx = Published()
    one = batches(ctx)

    for _ in range(6):
        await one.add(LINE)
        clock[0] += 0.06
    assert ctx.sizes == [("page-3.lines-0", 0, 1), ("page-3.lines-1", 1, 3)]


async def test_batches_that_an_earlier_attempt_left_are_emptied(clock: list[float]) -> None:
    """It may have cut the same lines into more of them; nobody may see a line twice."""
    ctx = Published()
    one = batches(ctx)

    await one.add(LINE)
    await one.finish(stale=3)

    assert ctx.sizes == [("page-3.lines-0", 0, 1), ("page-3.lines-1", 1, 0), ("page-3.lines-2", 1, 0)]
    assert ctx.outputs[0][1]["lines"] == [{"text": "line", "box": ((0, 0), (9, 0), (9, 9), (0, 9)), "confidence": 0.5}]
