"""Reads one page with an engine: finds out how it lies, then publishes its lines as they are read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import numpy as np

from processors.context import Context
from processors.ocr.decoder import Problem
from processors.ocr.document import LARGEST_DETAIL, Line, LineBatch, Page, PageProblem, compact, text_of
from processors.ocr.engines import DETAIL, Engine, Reading, cores, cut
from processors.ocr.layout import Quad, Row, arrange, join
from processors.ocr.pages import Phrase, Pixels, Sheet, preview, turn

logger = logging.getLogger(__name__)

# How lines are gathered: a screen shows eight at once or one every 0.15 s as well as it shows single ones.
BATCH_LINES: Final = 8
BATCH_SECONDS: Final = 0.15
# So many phrases show how a page lies. They are read first, and not again if it lies well.
_SAMPLES: Final = 3
# Another way of lying or looking must be so much better to be taken.
_CLEARLY: Final = 0.08
# Looking closer is worth its time where the phrases that were found are so low, in pixels of what was looked at.
_LOW: Final = 15.0
_CLOSER: Final = 1.75

T = TypeVar("T")
_DEGREES: Final[dict[int, Literal[0, 90, 180, 270]]] = {0: 0, 1: 90, 2: 180, 3: 270}


@dataclass(slots=True)
class View:
    """A page as it is read: upright, with the phrases that were found on it, and those of them read already."""

    image: Pixels
    quads: list[Quad]
    quarters: int = 0
    """By how many quarters it was turned clockwise."""
    known: dict[int, Reading] = field(default_factory=dict)

    @property
    def sureness(self) -> float:
        """The mean confidence of what was read so far; long texts count more."""
        weights = [max(1, len(reading.text)) for reading in self.known.values()]
        summed = sum(weight * reading.confidence for weight, reading in zip(weights, self.known.values(), strict=True))
        return summed / sum(weights) if weights else 0.0


def look(engine: Engine, image: Pixels, detail: int | None) -> View:
    """Find the phrases on a page and turn it upright; look closer at small print unless `detail` is given.

    The first look is good for nearly every page, and costs nothing: its samples are readings that are needed anyway.
    Only where they come out badly are other directions and closer looks tried.
    """
    view = _first_look(engine, image, 0, detail or DETAIL)
    if view.sureness >= engine.doubt or (not view.quads and detail):
        return view
    best = _turned(engine, view, detail or DETAIL)
    asked = detail or DETAIL
    while detail is None and best.sureness < engine.doubt and _looks_small(best, asked):
        asked = min(LARGEST_DETAIL, int(asked * _CLOSER))
        closer = _first_look(engine, best.image, best.quarters, asked)
        if closer.sureness < engine.doubt:
            closer = _turned(engine, closer, asked)
        if best.quads and closer.sureness < best.sureness + _CLEARLY:
            break
        best = closer
    return best


def _first_look(engine: Engine, image: Pixels, quarters: int, detail: int) -> View:
    view = View(image, engine.find(image, detail), quarters)
    if _share_of_tall(view.quads) <= 0.5:
        view.known = _read_samples(engine, view, 0)
    return view


def _turned(engine: Engine, view: View, detail: int) -> View:
    """The view turned so that its samples read well, if there is such a direction."""
    sideways = _share_of_tall(view.quads) > 0.5
    tries = {way: _read_samples(engine, view, way) for way in ((1, 3) if sideways else (2,))}
    best = max((View(view.image, view.quads, way, known) for way, known in tries.items()), key=lambda one: one.sureness)
    if best.sureness < view.sureness + _CLEARLY:
        return view
    image, quarters = turn(view.image, best.quarters), (view.quarters + best.quarters) % 4
    if sideways:
        # Boxes are found a little better in lines that run from left to right.
        return _first_look(engine, image, quarters, detail)
    height, width = image.shape[:2]
    quads = [np.roll(np.array([width, height], np.float32) - quad, 2, axis=0) for quad in view.quads]
    return View(image, quads, quarters, best.known)


def _read_samples(engine: Engine, view: View, quarters: int) -> dict[int, Reading]:
    """Read the phrases that say most, as they would be on the page turned clockwise by `quarters`."""

    def worth(index: int) -> float:
        # Long ones, but not so long that they take much more time than they tell.
        length, height = sorted(_sides(view.quads[index]), reverse=True)
        return min(length, 14 * height)

    chosen = sorted(range(len(view.quads)), key=worth, reverse=True)[:_SAMPLES]
    return {index: engine.read(turn(cut(view.image, view.quads[index]), quarters)) for index in chosen}


def _share_of_tall(quads: list[Quad]) -> float:
    """How much of the text, by length, stands in boxes that are higher than wide: lines of a page on its side."""
    tall = whole = 0.0
    for quad in quads:
        width, height = _sides(quad)
        length = max(width, height) - min(width, height)
        whole += length
        tall += length if height > width else 0
    return tall / whole if whole else 0.0


def _looks_small(view: View, detail: int) -> bool:
    """Whether there may be print too small to be seen at this detail."""
    long = max(view.image.shape[:2])
    if detail >= min(long, LARGEST_DETAIL):
        return False
    if not view.quads:
        # Blank pages are common, and print so small that the first look sees nothing at all is not: one more will do.
        return detail == DETAIL
    return bool(np.median([min(_sides(quad)) for quad in view.quads]) * detail / long < _LOW)


def _sides(quad: Quad) -> tuple[float, float]:
    return float(np.linalg.norm(quad[1] - quad[0])), float(np.linalg.norm(quad[3] - quad[0]))


def read_row(engine: Engine, view: View, row: Row) -> Line | None:
    """Read the phrases of a line; None if there is nothing to read in it after all."""
    read: list[tuple[Reading, float]] = []
    for index, gap in zip(row.phrases, (0.0, *row.gaps), strict=True):
        reading = view.known.get(index) or _read_phrase(engine, view.image, view.quads[index])
        if reading.text and reading.confidence >= engine.least:
            read.append((reading, gap))
    if not read:
        return None
    weights = [len(reading.text) for reading, _ in read]
    sure = sum(weight * reading.confidence for weight, (reading, _) in zip(weights, read, strict=True)) / sum(weights)
    text = join([reading.text for reading, _ in read], [gap for _, gap in read[1:]])
    return Line(text=text, box=row.box, confidence=round(min(max(sure, 0.0), 1.0), 3))


def _read_phrase(engine: Engine, image: Pixels, quad: Quad) -> Reading:
    """Read a phrase; one that is much higher than wide may be a note at the margin that runs upwards or downwards."""
    width, height = _sides(quad)
    phrase = cut(image, quad)
    reading = engine.read(phrase)
    if height < 1.5 * width or reading.confidence >= engine.doubt:
        return reading
    return max(reading, *(engine.read(turn(phrase, way)) for way in (1, 3)), key=lambda one: one.confidence)


class LineBatches:
    """Publishes a page's lines in order, a few at a time; the first one at once."""

    def __init__(self, ctx: Context, page: Page) -> None:
        self._ctx = ctx
        self._page = page
        self._waiting: list[Line] = []
        self._published = 0
        self._batches = 0
        self._next = 0.0

    async def add(self, line: Line) -> None:
        """Take the next line; publish it with the others that wait if it is time to."""
        self._waiting.append(line)
        if len(self._waiting) >= BATCH_LINES or time.monotonic() >= self._next:
            await self._publish()

    async def finish(self, stale: int) -> None:
        """Publish what is left, and empty the later ones of the `stale` batches that an earlier attempt left."""
        if self._waiting:
            await self._publish()
        for batch in range(self._batches, stale):
            await self._put(batch, [])

    async def _publish(self) -> None:
        lines, self._waiting = self._waiting, []
        await self._put(self._batches, lines)
        self._batches += 1
        self._published += len(lines)
        self._next = time.monotonic() + BATCH_SECONDS

    async def _put(self, batch: int, lines: list[Line]) -> None:
        page = self._page
        said = LineBatch(page=page.page, width=page.width, height=page.height, first=self._published, lines=lines)
        await self._ctx.output(f"page-{page.page}.lines-{batch}", compact(said))


async def read_sheet(
    ctx: Context,
    sheet: Sheet,
    engine: Engine,
    detail: int | None,
    *,
    stale_batches: int,
    tell: Callable[[int, int], Awaitable[None]],
) -> Page:
    """Read a page and publish its picture, its lines as they come, and itself. `tell` hears of lines read, and of all.

    Cancelling it waits for the lines that are being read, which take a tenth of a second or so.
    """
    view = await _work(ctx, look, engine, sheet.image, detail)
    height, width = view.image.shape[:2]
    rows, skew = await _work(ctx, arrange, view.quads, width, height)
    page = Page(
        page=sheet.number, width=width, height=height, source="ocr", rotation=_DEGREES[view.quarters], skew=skew
    )
    await _show(ctx, page, view.image)
    batches = LineBatches(ctx, page)
    reading: deque[asyncio.Task[Line | None]] = deque()
    done = 0

    async def take() -> None:
        nonlocal done
        line = await reading.popleft()
        done += 1
        if line is not None:
            page.lines.append(line)
            await batches.add(line)
        await tell(done, len(rows))

    async with asyncio.TaskGroup() as group:
        for row in rows:
            reading.append(group.create_task(_work(ctx, read_row, engine, view, row)))
            # A page alone has all cores; more lines at once than that would only wait.
            if len(reading) >= cores():
                await take()
        while reading:
            await take()
    await batches.finish(stale_batches)
    return await _finish(ctx, page)


async def take_text_layer(ctx: Context, sheet: Sheet, phrases: tuple[Phrase, ...]) -> Page:
    """Publish a page whose text was there already."""
    lines, skew = await _work(ctx, _lines_of, phrases, sheet.width, sheet.height)
    page = Page(page=sheet.number, width=sheet.width, height=sheet.height, source="text-layer", skew=skew, lines=lines)
    await _show(ctx, page, sheet.image)
    return await _finish(ctx, page)


def _lines_of(phrases: tuple[Phrase, ...], width: int, height: int) -> tuple[list[Line], float]:
    quads = [
        np.array(
            [[one.left, one.top], [one.right, one.top], [one.right, one.bottom], [one.left, one.bottom]], np.float32
        )
        for one in phrases
    ]
    rows, skew = arrange(quads, width, height)
    lines = [
        Line(text=join([phrases[at].text for at in row.phrases], row.gaps), box=row.box, confidence=None)
        for row in rows
    ]
    return lines, skew


async def _work(ctx: Context, function: Callable[..., T], *args: Any) -> T:
    """Do the engine's part in a thread; if it fails, that is this page's problem."""
    try:
        return await ctx.in_thread(function, *args)
    except Exception as error:
        logger.exception("job %s: %s failed", ctx.job_id, getattr(function, "__name__", function))
        raise Problem("page_failed", "The engine failed on this page; submit it again.") from error


async def report_problem(ctx: Context, number: int, code: str, detail: str) -> Page:
    """Publish a page that can't be read."""
    logger.info("page %d: %s: %s", number, code, detail)
    return await _finish(ctx, Page(page=number, problem=PageProblem(code=code, detail=detail)))


async def _show(ctx: Context, page: Page, image: Pixels) -> None:
    """Publish the page's picture, before its lines, so that a browser can draw boxes on it."""
    picture = await ctx.in_thread(preview, image)
    await ctx.output(f"page-{page.page}.image", data=picture, content_type="image/jpeg")


async def _finish(ctx: Context, page: Page) -> Page:
    """Publish a page as finished: an attempt that comes later doesn't read it again."""
    page.text = text_of(page.lines)
    await ctx.output(f"page-{page.page}", compact(page))
    return page
