"""Turns the files of a job into pages: their number, their pixels, their text layers. Engines come later.

The decoding itself happens in `decoder.py`, in a process of its own that may die or hang; here are its owner and what
comes out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from processors.ocr.decoder import MAX_PAGES, PREVIEW_WIDTH, Problem
from processors.ocr.document import TextChoice
from processors.thread import run_in_thread

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
"""An image: height, width, and 8 bits each for blue, green and red."""
StartProcess = Callable[..., AbstractAsyncContextManager[asyncio.subprocess.Process]]

_DECODER: Final = Path(__file__).with_name("decoder.py")
# To open a file and count its pages; to decode a page. A hostile file takes no longer than this.
OPEN_SECONDS: Final = 20.0
READ_SECONDS: Final = 20.0
# After so many pages that hang or crash the decoder, the others aren't tried: a file may have a thousand such pages.
MAX_FAILURES: Final = 5
# A page's text layer is one line of the answer: 60,000 characters with their boxes at the very most.
_ANSWER_BYTES: Final = 16 * 1024 * 1024
_JPEG_QUALITY: Final = 70


@dataclass(frozen=True, slots=True)
class Leaf:
    """A page before it is read: where it is, and what is wrong with it if that is known already."""

    number: int
    """Counted from 1 over all files."""
    document: int
    page: int
    format: str
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a text layer, in pixels of the page."""

    text: str
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page's content. With `phrases`, the image is only for looking at, and may be smaller than the page."""

    number: int
    width: int
    height: int
    image: Pixels
    phrases: tuple[Phrase, ...] | None = None


class Decoder:
    """The decoding process: started when it is first needed, and again after it died. Use it as a context manager.

    Requests wait for each other: a page takes it a twentieth of the time that it takes an engine.
    """

    def __init__(self, paths: Sequence[Path], start: StartProcess, new_path: Callable[[], Path]) -> None:
        """`start` runs a program as `Context.process` does; `new_path` names places for temporary files."""
        self._paths = paths
        self._start = start
        self._new_path = new_path
        self._process: asyncio.subprocess.Process | None = None
        self._running = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._failures = 0

    async def __aenter__(self) -> Decoder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def leaves(self) -> list[Leaf]:
        """All pages of all files. Raises `Problem` for a file that has none that could be read."""
        found: list[Leaf] = []
        async with self._lock:
            for document, opened in enumerate(await self._open()):
                for page, said in enumerate(opened["pages"]):
                    found.append(Leaf(len(found) + 1, document, page, opened["format"], _problem_in(said)))
        if len(found) > MAX_PAGES:
            raise Problem("input_too_large", f"The files have {len(found)} pages, more than {MAX_PAGES}; split them.")
        return found

    async def read(self, leaf: Leaf, text: TextChoice) -> Sheet:
        """A page's pixels, or its text layer with a small image. Raises `Problem` for a page that can't be read."""
        pixels = self._new_path()
        try:
            async with self._lock:
                said = await self._read(leaf, text, pixels)
            if problem := _problem_in(said):
                raise problem
            image = await run_in_thread(_load, pixels, *said["image"])
        finally:
            pixels.unlink(missing_ok=True)
        phrases = tuple(Phrase(*phrase) for phrase in said["phrases"]) if "phrases" in said else None
        return Sheet(leaf.number, said["width"], said["height"], image, phrases)

    async def _read(self, leaf: Leaf, text: TextChoice, pixels: Path) -> dict[str, Any]:
        if self._failures >= MAX_FAILURES:
            raise Problem(
                "page_unreadable",
                f"Not tried after {MAX_FAILURES} pages that could not be decoded; scan or save it again.",
            )
        try:
            if self._process is None:
                await self._open()
            request = {"document": leaf.document, "read": leaf.page, "text": text, "pixels": str(pixels)}
            return await self._ask(request, READ_SECONDS)
        except TimeoutError:
            detail = f"The page took longer than {READ_SECONDS:g} s to decode; scan or save it again."
            problem = Problem("page_timeout", detail)
        except EOFError:
            problem = Problem(
                "page_unreadable", "The page made its decoder fail; scan it, or save it in another format."
            )
        self._failures += 1
        raise problem

    async def _open(self) -> list[dict[str, Any]]:
        """Start the process and have it open all files."""
        command = (sys.executable, "-P", str(_DECODER))
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        start = self._start(*command, stdin=pipe, stdout=pipe, stderr=null, limit=_ANSWER_BYTES)
        self._process = await self._running.enter_async_context(start)
        opened = []
        for path in self._paths:
            try:
                said = await self._ask({"open": str(path)}, OPEN_SECONDS)
            except TimeoutError:
                raise Problem(
                    "input_timeout", f"The file took longer than {OPEN_SECONDS:g} s to open; save it again."
                ) from None
            except EOFError:
                raise Problem(
                    "input_unreadable", "The file made its decoder fail; save it again, or in another format."
                ) from None
            if problem := _problem_in(said):
                raise problem
            opened.append(said)
        return opened

    async def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One question, one answer; a process that gives none in time is ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        answered = False
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                with contextlib.suppress(ConnectionError):
                    await process.stdin.drain()
                line = await process.stdout.readline()
            if not line.endswith(b"\n"):
                raise EOFError("the decoder has died")
            said: dict[str, Any] = json.loads(line)
            answered = True
        finally:
            # After a question without its answer the next answer would be taken for another's.
            if not answered:
                await self._end()
        if "cause" in said:
            logger.info("the decoder says %s because of %s", said["problem"]["code"], said["cause"])
        return said

    async def _end(self) -> None:
        self._process = None
        await self._running.aclose()


def _problem_in(said: dict[str, Any]) -> Problem | None:
    return Problem(**said["problem"]) if "problem" in said else None


def _load(path: Path, width: int, height: int, stride: int) -> Pixels:
    """The pixels that the decoder wrote, without what fills up its rows."""
    rows = np.fromfile(path, np.uint8, count=height * stride).reshape(height, stride)
    return np.ascontiguousarray(rows[:, : 3 * width]).reshape(height, width, 3)


def preview(image: Pixels) -> bytes:
    """A JPEG to look at, at most `PREVIEW_WIDTH` wide."""
    height, width = image.shape[:2]
    if width > PREVIEW_WIDTH:
        image = cv2.resize(
            image, (PREVIEW_WIDTH, max(1, round(height * PREVIEW_WIDTH / width))), interpolation=cv2.INTER_AREA
        ).astype(np.uint8)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data.tobytes()


def turn(image: Pixels, quarters: int) -> Pixels:
    """The image turned clockwise by quarters of a circle."""
    return np.ascontiguousarray(np.rot90(image, -quarters)) if quarters % 4 else image
