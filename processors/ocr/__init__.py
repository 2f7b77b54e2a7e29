"""The kind `ocr`: reads scans, photos and PDFs, and publishes their lines as they are read.

Outputs, by index: `page-3.image` (a picture of the page, upright), then `page-3.lines-0`, `page-3.lines-1`, ... (its
lines as they come), then `page-3` (the finished page, or the problem that it has). The result has all pages;
`result.txt` and `result.hocr` are the same as plain text and as hOCR. An attempt that follows another one reads only
the pages that are not finished. `decoder` and `pages` make pages of files, `engines` read them, `layout` puts lines in
order, `reading` reads one page, `formats` writes results.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from processors.context import Context
from processors.errors import ProcessorError, Rejected
from processors.ocr import engines
from processors.ocr.decoder import Problem
from processors.ocr.document import Box, Line, LineBatch, OcrInput, OcrResult, Page, PageProblem
from processors.ocr.engines import Engine, cores, warm_up
from processors.ocr.formats import HOCR, TEXT, hocr, plain_text
from processors.ocr.pages import Decoder, Leaf
from processors.ocr.reading import read_sheet, report_problem, take_text_layer
from processors.processor import processor

__all__ = ["Box", "Line", "LineBatch", "OcrInput", "OcrResult", "Page", "PageProblem", "ocr", "warm_up"]

CONTENT_TYPES: Final = ("application/pdf", "image/png", "image/jpeg", "image/tiff", "image/webp")

_OUTPUT: Final = re.compile(r"page-([0-9]+)(\.lines-[0-9]+)?", re.ASCII)
# The codes of problems that another attempt may not have: such a page is read again.
_PASSING: Final = frozenset({"page_failed"})


@processor("ocr", files="required", content_types=CONTENT_TYPES, setup=warm_up)
async def ocr(ctx: Context, input: OcrInput) -> OcrResult:
    """Reads the text of scans, photos and PDFs, line by line, with the place of each line."""
    engine = await ctx.in_thread(engines.load, input.engine, input.languages)
    paths = [await file.path() for file in ctx.files]
    if not paths:
        raise Rejected("The job has no file; submit it with at least one.", "input_empty")
    async with Decoder(paths, ctx.process, ctx.workspace.new_path) as decoder:
        try:
            leaves = await decoder.leaves()
        except Problem as problem:
            raise Rejected(problem.detail, problem.code) from problem
        _refuse_hopeless(leaves)
        if input.text == "only" and any(leaf.format != "pdf" for leaf in leaves):
            raise Rejected(
                "Only PDFs have a text layer; submit images with `text` set to `auto`.",
                "input_unsupported",
                errors=[{"field": "text", "message": "`only` is for PDFs"}],
            )
        job = _Job(ctx, input, engine, decoder, leaves)
        pages = await job.run()
    if all(page.problem is not None for page in pages):
        _give_up(pages)
    ctx.partial = any(page.problem is not None for page in pages)
    await ctx.output("result.txt", await ctx.in_thread(plain_text, pages), content_type=TEXT)
    await ctx.output("result.hocr", await ctx.in_thread(hocr, pages, input.engine), content_type=HOCR)
    return OcrResult(pages=pages, text="\n\n".join(page.text for page in pages if page.text), partial=ctx.partial)


class _Job:
    """The pages of a job while they are read."""

    def __init__(self, ctx: Context, input: OcrInput, engine: Engine, decoder: Decoder, leaves: list[Leaf]) -> None:
        self._ctx = ctx
        self._input = input
        self._engine = engine
        self._decoder = decoder
        self._leaves = leaves
        self._finished: dict[int, Page] = {}
        self._stale_batches: Counter[int] = Counter()
        self._progress = _Progress(ctx, len(leaves))

    async def run(self) -> list[Page]:
        """Read all pages that are not read yet; returns all, in order."""
        await self._recall()
        await self._progress.start(len(self._finished))
        left = iter([leaf for leaf in self._leaves if leaf.number not in self._finished])
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_most_pages(), len(self._leaves))):
                group.create_task(self._read_pages(left))
        return [self._finished[leaf.number] for leaf in self._leaves]

    async def _recall(self) -> None:
        """Take over what earlier attempts finished."""
        if self._ctx.attempt == 1:
            return
        texts = []
        for index, data in (await self._ctx.outputs()).items():
            match = _OUTPUT.fullmatch(index)
            if match is not None and match[2]:
                self._stale_batches[int(match[1])] += 1
            elif match is not None:
                # Large pages are blobs.
                texts.append(data["value"] if "value" in data else await self._ctx.read_output(index))
        for page in await self._ctx.in_thread(_pages_in, texts):
            if page.problem is None or page.problem.code not in _PASSING:
                self._finished[page.page] = page

    async def _read_pages(self, left: Iterator[Leaf]) -> None:
        for leaf in left:
            async with _room():
                self._finished[leaf.number] = await self._read_page(leaf)
            await self._progress.finish(leaf.number)

    async def _read_page(self, leaf: Leaf) -> Page:
        try:
            if leaf.problem is not None:
                raise leaf.problem
            sheet = await self._decoder.read(leaf, self._input.text)
            if sheet.phrases is not None:
                return await take_text_layer(self._ctx, sheet, sheet.phrases)
            return await read_sheet(
                self._ctx,
                sheet,
                self._engine,
                self._input.detail,
                stale_batches=self._stale_batches[leaf.number],
                tell=lambda done, of: self._progress.lines(leaf.number, done, of),
            )
        except* Problem as group:
            # Lines are read side by side, so there may be more of it than one.
            problem = _first(group)
        return await report_problem(self._ctx, leaf.number, problem.code, problem.detail)


def _most_pages() -> int:
    """How many pages are in memory at once, over all jobs: while each core reads one, the next one is decoded."""
    return cores() + 1


# A page's pixels live as long as it is being read. A worker has one loop; its tests have one after the other.
_rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def _room() -> asyncio.Semaphore:
    """To be held while a page is in memory. Who waits longest is next, so jobs take turns."""
    return _rooms.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_most_pages()))


class _Progress:
    """How far the job is, in pages and parts of pages, and when it will be done."""

    def __init__(self, ctx: Context, total: int) -> None:
        self._ctx = ctx
        self._total = total
        self._found = 0
        self._finished = 0
        self._parts: dict[int, float] = {}
        self._began = time.monotonic()

    async def start(self, found: int) -> None:
        """Begin the clock; `found` pages were finished by earlier attempts."""
        self._found = found
        self._began = time.monotonic()
        await self._report(None)

    async def lines(self, page: int, done: int, of: int) -> None:
        """Say how many of a page's lines are read."""
        self._parts[page] = done / of
        await self._report(f"page {page}, line {done} of {of}")

    async def finish(self, page: int) -> None:
        """Say that a page is finished."""
        self._parts.pop(page, None)
        self._finished += 1
        await self._report(f"page {page} finished")

    async def _report(self, message: str | None) -> None:
        done = self._finished + sum(self._parts.values())
        left = self._total - self._found - done
        eta = (time.monotonic() - self._began) / done * left if done else None
        await self._ctx.progress(
            round(self._found + done, 2),
            self._total,
            unit="pages",
            message=message,
            eta_seconds=None if eta is None else round(eta, 1),
        )


def _pages_in(texts: Iterable[Any]) -> list[Page]:
    """The pages that these outputs hold. One that another release wrote may not fit; then it is read again."""
    pages = []
    for text in texts:
        with contextlib.suppress(ValidationError):
            pages.append(Page.model_validate_json(text) if isinstance(text, bytes) else Page.model_validate(text))
    return pages


def _first(group: BaseExceptionGroup[Problem]) -> Problem:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _refuse_hopeless(leaves: list[Leaf]) -> None:
    """Refuse a job none of whose pages can be read, before any work is done."""
    problems = [leaf.problem for leaf in leaves if leaf.problem is not None]
    if len(problems) == len(leaves):
        raise Rejected(problems[0].detail, problems[0].code.replace("page_", "input_"))


def _give_up(pages: list[Page]) -> NoReturn:
    """End a job none of whose pages could be read."""
    problems = [page.problem for page in pages if page.problem is not None]
    passing = next((problem for problem in problems if problem.code in _PASSING), None)
    if passing is not None:
        raise ProcessorError(passing.code, passing.detail)
    raise Rejected(problems[0].detail, problems[0].code.replace("page_", "input_"))
