"""Processors for the page's tests: they publish what OCR publishes, at a pace that a test asks for.

A gate is a file, as in `tests.worker_kinds`: a job that has one ends when the test has made it, however late that is.
"""

from __future__ import annotations

import asyncio
import io
import math
from pathlib import Path

from PIL import Image, ImageDraw
from pydantic import BaseModel, Field

from processors import Context, Rejected, processor
from tests.faults import wait_until

WIDTH, HEIGHT = 620, 877


class Paper(BaseModel):
    """What to publish. All of it has defaults, so that a dropped file starts the job."""

    pages: int = Field(2, ge=1, le=50)
    lines: int = Field(6, ge=1, le=500)
    pause_seconds: float = Field(0.02, description="Between two lines.")
    broken_page: int | None = Field(None, description="This page is published with a problem.")
    gate: str = Field("", description="The last line waits for this file.")


@processor("paper", files="required", content_types=["image/*", "application/pdf"], concurrency=4)
async def paper(ctx: Context, input: Paper) -> dict[str, int]:
    """Publish pages line by line, as OCR does."""
    await ctx.progress(0, input.pages, unit="pages")
    for page in range(1, input.pages + 1):
        await ctx.output(f"page-{page}.image", data=picture(page, input.lines), content_type="image/jpeg")
        lines = []
        for number in range(input.lines):
            await asyncio.sleep(input.pause_seconds)
            if (page, number) == (input.pages, input.lines - 1):
                await _opened(input.gate)
            lines.append(line(page, number, input.lines))
            sheet = {"page": page, "width": WIDTH, "height": HEIGHT}
            await ctx.output(f"page-{page}.lines-{number}", {**sheet, "first": number, "lines": lines[-1:]})
        if page == input.broken_page:
            problem = {"code": "page_unreadable", "detail": "The picture of this page is damaged."}
            await ctx.output(f"page-{page}", {"page": page, "lines": [], "text": "", "problem": problem})
        else:
            text = "\n".join(str(one["text"]) for one in lines)
            await ctx.output(f"page-{page}", {**sheet, "source": "ocr", "lines": lines, "text": text})
        await ctx.progress(page, input.pages, unit="pages", eta_seconds=(input.pages - page) * 0.5)
    await ctx.output("result.txt", data=b"All of it.\n", content_type="text/plain")
    return {"pages": input.pages}


def line(page: int, number: int, count: int) -> dict[str, object]:
    """One line as OCR publishes it. Its text must never become markup."""
    top = 20 + number * (HEIGHT - 40) // count
    bottom = top + max(4, (HEIGHT - 40) // count - 6)
    box = [[30, top], [560, top], [560, bottom], [30, bottom]]
    return {"text": f"<b>Page {page}</b>, line {number + 1}", "box": box, "confidence": 0.99}


def picture(page: int, count: int) -> bytes:
    """A page with grey bars where its lines are."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for number in range(count):
        top = 20 + number * (HEIGHT - 40) // count
        draw.rectangle((34, top + 3, 540, top + max(5, (HEIGHT - 40) // count - 9)), fill="#999")
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


class Story(BaseModel):
    """What to tell."""

    prompt: str
    words: int = 40
    pause_seconds: float = 0.01
    fails: bool = False
    gate: str = Field("", description="The last word waits for this file.")


@processor("story", concurrency=4)
async def story(ctx: Context, input: Story) -> dict[str, int]:
    """Tell a story, word by word."""
    for number in range(input.words):
        if number == input.words - 1:
            await _opened(input.gate)
        await ctx.delta(f"{input.prompt} {number} ")
        await asyncio.sleep(input.pause_seconds)
    if input.fails:
        raise Rejected("The story has no end; try another prompt.", code="story_lost")
    return {"words": input.words}


async def _opened(gate: str) -> None:
    if gate:
        await wait_until(Path(gate).exists, math.inf)
