r"""A processor in twenty lines: counts the words of a text, and shows how it comes along.

make run MODULES=examples.word_count
outlast submit word-count --input '{"text": "one fish\ntwo fish"}'
"""

import asyncio
from collections import Counter

from pydantic import BaseModel

from processors import Context, processor


class Text(BaseModel):
    text: str
    pause_seconds: float = 0.5


@processor("word-count")
async def word_count(ctx: Context, input: Text) -> dict[str, int]:
    """Count the words of a text, line by line."""
    counts: Counter[str] = Counter()
    lines = input.text.splitlines()
    for number, line in enumerate(lines, 1):
        await asyncio.sleep(input.pause_seconds)  # as if it were hard work
        counts.update(line.lower().split())
        await ctx.output(number, {"line": line, "words": len(line.split())})
        await ctx.progress(number, len(lines), unit="lines")
    return dict(counts)
