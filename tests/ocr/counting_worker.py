"""A worker in a process of its own whose engine notes every line that it reads, so that it can be killed in between.

The environment says where: `OCR_LINES` is the file for the notes, `OCR_GATE` the gate before the lines from page
`OCR_GATED` on.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from gateway.config import load_settings
from processors import ocr as package
from processors.ocr import engines
from processors.worker import run_worker
from tests.ocr.engine import StripeEngine, pass_gate


def note(page: int, line: int) -> None:
    """Write down that a line is read, and wait at the gate."""
    with Path(os.environ["OCR_LINES"]).open("a") as notes:
        notes.write(f"{page} {line}\n")
    if page >= int(os.environ["OCR_GATED"]):
        pass_gate(Path(os.environ["OCR_GATE"]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    engine = StripeEngine(note)
    engines.load = lambda name, languages: engine
    object.__setattr__(package.ocr, "setup", None)
    sys.exit(run_worker(load_settings(), ["processors.ocr"]))
