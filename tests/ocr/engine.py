"""A make-believe engine for striped pages: no models, and the test says what it does."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from processors.ocr.engines import Reading
from processors.ocr.layout import Quad
from processors.ocr.pages import Pixels
from tests.ocr.documents import STRIPES

DEADLINE_SECONDS = 20


class StripeEngine:
    """Reads `page 3 line 1` from a stripe of grey 31; counts what it is asked."""

    doubt = 0.9
    least = 0.5

    def __init__(self, on_read: Callable[[int, int], None] = lambda page, line: None) -> None:
        self.found: Counter[int] = Counter()
        self.read_lines: Counter[tuple[int, int]] = Counter()
        self.threads: set[threading.Thread] = set()
        self._on_read = on_read

    def find(self, image: Pixels, detail: int) -> list[Quad]:
        """The stripes."""
        self.threads.add(threading.current_thread())
        self.found[int(image[45, 200, 0]) // 10] += 1
        return [
            np.array([[20, top], [380, top], [380, top + 30], [20, top + 30]], np.float32)
            for top in range(30, 30 + 40 * STRIPES, 40)
        ]

    def read(self, phrase: Pixels) -> Reading:
        """Page and line, from the grey in the middle."""
        self.threads.add(threading.current_thread())
        page, line = divmod(int(phrase[phrase.shape[0] // 2, phrase.shape[1] // 2, 0]), 10)
        self.read_lines[page, line] += 1
        self._on_read(page, line)
        return Reading(f"page {page} line {line}", 0.99)


def text_of_page(page: int) -> str:
    """What the engine reads on a page."""
    return "\n".join(f"page {page} line {line}" for line in range(STRIPES))


def pass_gate(gate: Path) -> None:
    """Wait until the test has made a file."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not gate.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"nobody made {gate}")
        time.sleep(0.005)
