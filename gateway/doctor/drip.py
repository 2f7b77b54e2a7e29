"""What became of a drip: numbered frames, each sent at a known time, and the shape in which they arrived. No I/O.

The two clocks are never compared: only differences on one side with differences on the other.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

_FRAME: Final = re.compile(rb'\{"n":(\d+),"sent_seconds":([0-9.e+-]+),[^{}]*\}')
# Frames within this part of an interval count as come together.
_TOGETHER: Final = 0.25
# A frame is late when it comes this part of an interval after the quickest one.
_LATE: Final = 0.6


class Shape(StrEnum):
    """How frames that were sent one by one came."""

    PACED = "paced"
    HELD = "held"
    """All at once, at the end."""
    BEHIND = "behind"
    """Each came with the next one, or two by two: somebody waits for a second frame before he passes the first."""
    FIRST_HELD = "first_held"
    BATCHED = "batched"
    """In a few heaps: a buffer that is passed on when it is full."""
    UNEVEN = "uneven"
    CUT = "cut"
    """Broke off."""
    ALTERED = "altered"
    """Came whole, but frames are missing, doubled or not readable."""
    FAILED = "failed"
    """Another answer came in the place of the stream."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its number, when it was sent by the sender's clock, when it came by ours."""

    number: int
    sent: float
    came: float


def read_frames(pieces: Iterable[tuple[float, bytes]], encoding: str) -> list[Frame]:
    """The frames in a body's pieces; each came when its last byte did. `encoding` is the `Content-Encoding`."""
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding.strip().lower() in {"gzip", "x-gzip"} else None
    frames: list[Frame] = []
    held = b""
    for came, piece in pieces:
        try:
            held += inflate.decompress(piece) if inflate else piece
        except zlib.error:
            break
        last = 0
        for match in _FRAME.finditer(held):
            last = match.end()
            frames.append(Frame(int(match[1]), float(json.loads(match[2])), came))
        held = held[last:]
    return frames


def shape_of(frames: Sequence[Frame], expected: int, every: float, *, whole: bool) -> Shape:
    """The shape of a drip of `expected` frames, sent `every` so many seconds; `whole`: the answer came to its end."""
    numbers = [frame.number for frame in frames]
    if not whole:
        return Shape.CUT
    if numbers != list(range(1, expected + 1)):
        return Shape.ALTERED
    sent, came = frames[-1].sent - frames[0].sent, frames[-1].came - frames[0].came
    if came < 0.2 * sent:
        return Shape.HELD
    heaps = _heaps(frames, every)
    lags = lags_of(frames)
    late = [lag > _LATE * every for lag in lags]
    if not any(late):
        return Shape.PACED
    if late[0] and not any(late[1:]):
        return Shape.FIRST_HELD
    if max(heaps) <= 2 and (all(late[:-1]) or all(size == 2 for size in heaps[:-1])):
        return Shape.BEHIND
    if len(heaps) <= 0.6 * expected:
        return Shape.BATCHED
    return Shape.UNEVEN


def lags_of(frames: Sequence[Frame]) -> list[float]:
    """How much longer than the quickest frame each was under way, in seconds."""
    ways = [frame.came - frame.sent for frame in frames]
    quickest = min(ways, default=0.0)
    return [way - quickest for way in ways]


def _heaps(frames: Sequence[Frame], every: float) -> list[int]:
    """How many frames came together, heap by heap."""
    heaps = [1]
    for before, frame in pairwise(frames):
        if frame.came - before.came < _TOGETHER * every:
            heaps[-1] += 1
        else:
            heaps.append(1)
    return heaps
