"""What a read document is written as besides JSON: plain text and hOCR."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from processors.ocr.document import Box, Line, Page

TEXT: Final = "text/plain; charset=utf-8"
HOCR: Final = "text/vnd.hocr+html; charset=utf-8"

# XML has no place for these, not even escaped (XML 1.0, section 2.2).
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def plain_text(pages: Sequence[Page]) -> str:
    """The text with a form feed between pages, as other programs that make text of documents have it."""
    return "\f".join(f"{page.text}\n" if page.text else "" for page in pages)


def hocr(pages: Sequence[Page], engine: str) -> str:
    """The pages as hOCR 1.2: XHTML that says where each line and word stands.

    Engines tell where lines stand; words are placed in them by their share of the line's characters.
    """
    return "".join(_hocr(pages, engine))


def _hocr(pages: Sequence[Page], engine: str) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"'
    yield ' "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
    yield '<html xmlns="http://www.w3.org/1999/xhtml">\n<head>\n<title>OCR result</title>\n'
    yield '<meta http-equiv="Content-Type" content="text/html;charset=utf-8"/>\n'
    yield f'<meta name="ocr-system" content="{_text(f"outlast, {engine}")}"/>\n'
    yield '<meta name="ocr-capabilities" content="ocr_page ocr_line ocrx_word"/>\n'
    yield f'<meta name="ocr-number-of-pages" content="{len(pages)}"/>\n</head>\n<body>\n'
    for page in pages:
        yield f"<div class='ocr_page' id='page_{page.page}'"
        yield f" title='bbox 0 0 {page.width} {page.height}; ppageno {page.page - 1}'>\n"
        if page.problem is not None:
            yield f"<!-- {_text(page.problem.code)} -->\n"
        for number, line in enumerate(page.lines, 1):
            yield from _line(line, f"{page.page}_{number}")
        yield "</div>\n"
    yield "</body>\n</html>\n"


def _line(line: Line, name: str) -> Iterator[str]:
    (x0, y0), (x1, y1) = line.box[0], line.box[1]
    title = f"bbox {_bounds(line.box)}"
    # hOCR counts angles counter-clockwise.
    angle = -math.degrees(math.atan2(y1 - y0, x1 - x0))
    if abs(angle) >= 0.1:
        title += f"; textangle {angle:.1f}"
    yield f"<span class='ocr_line' id='line_{name}' title='{title}'>"
    confidence = "" if line.confidence is None else f"; x_wconf {round(line.confidence * 100)}"
    words = line.text.split()
    length, start = len(" ".join(words)), 0
    spans = []
    for number, word in enumerate(words, 1):
        box = _part(line.box, start / length, (start + len(word)) / length)
        spans.append(
            f"<span class='ocrx_word' id='word_{name}_{number}' title='bbox {_bounds(box)}{confidence}'>"
            f"{_text(word)}</span>"
        )
        start += len(word) + 1
    yield " ".join(spans)
    yield "</span>\n"


def _part(box: Box, start: float, end: float) -> Box:
    """The part of a line's box between two shares of its length."""
    top_left, top_right, bottom_right, bottom_left = box

    def between(one: tuple[int, int], other: tuple[int, int], share: float) -> tuple[int, int]:
        return round(one[0] + (other[0] - one[0]) * share), round(one[1] + (other[1] - one[1]) * share)

    return (
        between(top_left, top_right, start),
        between(top_left, top_right, end),
        between(bottom_left, bottom_right, end),
        between(bottom_left, bottom_right, start),
    )


def _bounds(box: Box) -> str:
    xs, ys = [x for x, _ in box], [y for _, y in box]
    return f"{min(xs)} {min(ys)} {max(xs)} {max(ys)}"


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text))
