"""From phrases to lines in reading order. Pure geometry: no images, no engine.

A phrase is a piece of text that an engine (or a PDF) sees as one; a line may consist of several. Phrases that stand in
columns of prose are read column by column, all others row by row, so the rows of a table stay together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from processors.ocr.document import Box

Quad = NDArray[np.float32]
"""Four corners of a phrase, clockwise from the corner where its text begins: shape (4, 2)."""

# A gutter between columns: so wide, in heights of the page's lines.
_GUTTER: Final = 0.8
# What makes prose of a column: at least so many lines, half of them at least so wide, in heights of a line.
_PROSE_LINES: Final = 4
_PROSE_WIDTH: Final = 8.0
# Phrases that reach over a gutter are headings, as long as they are so few of all.
_HEADINGS: Final = 0.3
# Pages nest no deeper: newspapers have six columns or so, and hostile pages must not recurse without end.
_DEPTH: Final = 4
# Lines lean within these; a phrase that leans more was turned on purpose (a stamp, a margin note).
_MAX_SKEW: Final = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """The phrases of one line, from left to right, by their place in the list that was given."""

    phrases: tuple[int, ...]
    box: Box
    gaps: tuple[float, ...]
    """The space before each phrase but the first, in heights of the line."""


class _Place(NamedTuple):
    """A phrase on the page with its skew taken out."""

    phrase: int
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def arrange(quads: Sequence[Quad], width: int, height: int) -> tuple[list[Row], float]:
    """Put phrases into lines and the lines into reading order. Returns the page's skew in degrees clockwise as well.

    `width` and `height` are the page's: no box leaves it.
    """
    if not quads:
        return [], 0.0
    skew = skew_of(quads)
    # The page is turned back about its corner, put in order, and the lines' boxes turned forth again.
    turn = _rotation(-skew)
    places = []
    for index, quad in enumerate(quads):
        x, y = (quad @ turn).T
        places.append(_Place(index, float(x.min()), float(y.min()), float(x.max()), float(y.max())))
    back = _rotation(skew)
    rows = [_row(row, back, width, height) for row in _in_order(places, _DEPTH)]
    return rows, round(skew, 2)


def skew_of(quads: Sequence[Quad]) -> float:
    """How much the lines lean, in degrees clockwise: the median of the phrases' upper edges, weighted by length."""
    angles, weights = [], []
    for quad in quads:
        (dx, dy), side = quad[1] - quad[0], quad[3] - quad[0]
        length, height = math.hypot(dx, dy), math.hypot(*side)
        angle = math.degrees(math.atan2(dy, dx))
        # Short phrases say nothing: their boxes are as wide as they are high.
        if length >= 3 * height and abs(angle) <= _MAX_SKEW:
            angles.append(angle)
            weights.append(length)
    if not angles:
        return 0.0
    order = np.argsort(angles)
    summed = np.cumsum(np.asarray(weights)[order])
    return float(angles[int(order[np.searchsorted(summed, summed[-1] / 2)])])


def join(texts: Sequence[str], gaps: Sequence[float]) -> str:
    """The text of a line from its phrases' texts: a space between them, but not between ideographs that stand close."""
    line = ""
    for text, gap in zip(texts, (0.0, *gaps), strict=True):
        if not text:
            continue
        close = line and gap < 1.0 and _is_ideograph(line[-1]) and _is_ideograph(text[0])
        line += text if not line or close else f" {text}"
    return line


def _is_ideograph(character: str) -> bool:
    return "\u3000" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef"


def _rotation(degrees: float) -> NDArray[np.float64]:
    """A matrix that turns row vectors clockwise as seen on a screen, where y grows downwards."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _row(places: Sequence[_Place], back: NDArray[np.float64], width: int, height: int) -> Row:
    left, top = min(place.left for place in places), min(place.top for place in places)
    right, bottom = max(place.right for place in places), max(place.bottom for place in places)
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) @ back
    points = [(min(max(round(x), 0), width), min(max(round(y), 0), height)) for x, y in corners.tolist()]
    one = _typical_height(places)
    gaps = tuple((after.left - before.right) / one for before, after in pairwise(places))
    return Row(tuple(place.phrase for place in places), (points[0], points[1], points[2], points[3]), gaps)


def _in_order(places: list[_Place], depth: int) -> list[list[_Place]]:
    """Rows in reading order: column by column where there are columns of prose."""
    gutter = _gutter(places) if depth else None
    if gutter is None:
        return _rows(places)
    crossing = sorted((one for one in places if one.left < gutter < one.right), key=lambda one: one.middle)
    rows = []
    rest = [one for one in places if not one.left < gutter < one.right]
    # A heading ends the columns above it and begins new ones.
    for heading in [*_rows(crossing), None]:
        limit = math.inf if heading is None else min(one.middle for one in heading)
        above = [one for one in rest if one.middle < limit]
        rest = [one for one in rest if one.middle >= limit]
        for side in ([one for one in above if one.right <= gutter], [one for one in above if one.left >= gutter]):
            rows += _in_order(side, depth - 1)
        if heading is not None:
            rows.append(heading)
    return rows


def _gutter(places: list[_Place]) -> float | None:
    """The x of a gutter between two columns of prose, if there is one."""
    if len(places) < 2 * _PROSE_LINES:
        return None
    height = _typical_height(places)
    lefts = np.array([place.left for place in places])
    rights = np.array([place.right for place in places])
    left, right = float(lefts.min()), float(rights.max())
    step = max(height / 2, (right - left) / 500)
    xs = np.arange(left + _PROSE_WIDTH * height, right - _PROSE_WIDTH * height, step)
    if not xs.size:
        return None
    # Looked for is a stripe of a gutter's width that as few phrases as possible reach into.
    margin = _GUTTER * height / 2
    crossing = ((lefts < xs[:, None] + margin) & (rights > xs[:, None] - margin)).sum(axis=1)
    fewest = crossing.min()
    if fewest > _HEADINGS * len(places):
        return None
    best = xs[crossing == fewest]
    gutter = float(best[len(best) // 2])
    sides = [one for one in places if one.right <= gutter], [one for one in places if one.left >= gutter]
    if not all(_is_prose(side, height) for side in sides):
        return None
    tops, bottoms = [min(one.top for one in s) for s in sides], [max(one.bottom for one in s) for s in sides]
    beside = min(bottoms) - max(tops)
    return gutter if beside >= 0.5 * min(b - t for t, b in zip(tops, bottoms, strict=True)) else None


def _is_prose(side: list[_Place], height: float) -> bool:
    if len(side) < _PROSE_LINES:
        return False
    return float(np.median([place.width for place in side])) >= _PROSE_WIDTH * height


def _rows(places: Sequence[_Place]) -> list[list[_Place]]:
    """Rows from top to bottom, each from left to right.

    A phrase joins the row whose last phrase it stands beside; only neighbours are compared, so a line may sag.
    """
    rows: list[list[_Place]] = []
    for place in sorted(places, key=lambda one: one.left):
        best, best_overlap = None, 0.5
        for row in rows:
            last = row[-1]
            lower = min(last.height, place.height)
            if place.left < last.right - lower:
                continue
            overlap = (min(last.bottom, place.bottom) - max(last.top, place.top)) / max(lower, 1e-6)
            if overlap > best_overlap:
                best, best_overlap = row, overlap
        if best is None:
            rows.append([place])
        else:
            best.append(place)
    return sorted(rows, key=lambda row: (sum(place.middle for place in row) / len(row), row[0].left))


def _typical_height(places: Sequence[_Place]) -> float:
    return max(float(np.median([place.height for place in places])), 1.0)
