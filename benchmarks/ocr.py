"""OCR of a scan of several pages: ours, from submit to the end of the job, against the bare engine called in a loop.

    python -m benchmarks.ocr [--file examples/documents/scan.pdf] [--copies 2] [--rounds 3]

Ours is the whole way: a job in a real Valkey, the worker, decoding in its own process, previews, every line published.
The floor is rapidocr itself with the same settings and all cores for each page, on pages that were decoded before the
clock started. Both are warm, and take turns. The goal is a ratio of at most 1.1. The time to the first line is that of
a single page, from its submit to the time that Redis gave its event.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import itertools
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rapidocr import RapidOCR

from gateway.blobs import Blobs
from gateway.embedded import EmbeddedValkey
from gateway.event_text import decode_event
from gateway.protocol import START, Event
from gateway.requests import JobOptions
from gateway.store import NewJob, Store, StoredFile
from processors.children import Children
from processors.ocr import ocr
from processors.ocr.engines import cores, rapidocr_settings
from processors.ocr.pages import Decoder, Pixels
from processors.worker import Worker

SCAN = Path(__file__).parents[1] / "examples" / "documents" / "scan.pdf"


def bare_rapidocr() -> RapidOCR:
    """The library by itself, with the same settings and all cores for each page."""
    return RapidOCR(params=rapidocr_settings(-1))


def read_in_a_loop(engine: RapidOCR, images: Iterable[Pixels]) -> None:
    """The bare engine called in a loop."""
    for image in images:
        engine(image)


async def decode(path: Path, folder: Path) -> list[Pixels]:
    """All pages of a file, as our own decoder gives them."""
    names = itertools.count()
    async with Decoder([path], Children().start, lambda: folder / str(next(names))) as decoder:
        return [(await decoder.read(leaf, "never")).image for leaf in await decoder.leaves()]


async def run(store: Store, blobs: Blobs, path: Path, copies: int) -> tuple[float, list[Event], float]:
    """Run one job; returns the seconds from its submit to its end, its log, and the time of its submit."""
    job = await store.job_id("me", None)
    files = []
    for copy in range(copies):
        key = blobs.key_for(job)
        size, _ = await blobs.put(key, path.read_bytes(), max_bytes=None)
        files.append(StoredFile(f"{copy}-{path.name}", "application/pdf", size, key))
    started, clock = time.time(), time.monotonic()
    new = NewJob(ocr.document, "me", {"text": "never"}, JobOptions(), "fingerprint", tuple(files))
    await store.submit(job, new, keyed=False)
    events: list[Event] = []
    while not events or not events[-1].terminal:
        page = await store.events(job, events[-1].cursor or START if events else START)
        events += [decode_event(entry.text) for entry in page.entries]
        if not page.entries:
            await asyncio.sleep(0.02)
    if events[-1].type != "succeeded":
        raise SystemExit(f"the job ended with {events[-1].data}")
    return time.monotonic() - clock, events, started


def first_line(events: list[Event], started: float) -> float:
    """Seconds from the submit to the first line."""
    lines = (event for event in events if ".lines-" in str(event.data.get("index")))
    cursor = next(lines).cursor
    assert cursor is not None
    assert cursor.time_ms is not None
    return cursor.time_ms / 1000 - started


async def measure(path: Path, copies: int, rounds: int) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "blobs").mkdir()
        blobs = Blobs.open((folder / "blobs").as_uri())
        images = await decode(path, folder)
        one_page = folder / "page.png"
        await asyncio.to_thread(_save, images[0], one_page)
        bare = bare_rapidocr()
        await asyncio.to_thread(read_in_a_loop, bare, images)
        floors, times, firsts = [], [], []
        async with EmbeddedValkey(folder / "valkey") as server:
            store = await Store.connect(server.url)
            worker = Worker(
                store, blobs, {ocr.kind: ocr}, concurrency=2, stop_grace_seconds=1, max_inline_bytes=256 * 1024
            )
            running = asyncio.create_task(worker.run())
            await worker.ready.wait()
            await run(store, blobs, path, 1)
            for _ in range(rounds):
                clock = time.monotonic()
                await asyncio.to_thread(read_in_a_loop, bare, images * copies)
                floors.append(time.monotonic() - clock)
                seconds, events, _ = await run(store, blobs, path, copies)
                times.append(seconds)
                _, events, started = await run(store, blobs, one_page, 1)
                firsts.append(first_line(events, started))
            worker.stop()
            await running
            await store.close()
    pages = len(images) * copies
    ours, floor = statistics.median(times), statistics.median(floors)
    versions = " ".join(f"{one} {importlib.metadata.version(one)}" for one in ("rapidocr", "onnxruntime", "pypdfium2"))
    print(f"$ python -m benchmarks.ocr {' '.join(sys.argv[1:])}")
    print(f"{platform.platform()}, {cores()} of {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"{path.name}, {pages} pages, median of {rounds} rounds (all: ours {_all(times)}; bare {_all(floors)})")
    print(f"bare engine in a loop   {floor:6.2f} s  {floor / pages:5.2f} s a page")
    print(f"ours, whole job         {ours:6.2f} s  {ours / pages:5.2f} s a page")
    print(f"ratio                   {ours / floor:6.2f}    (goal: at most 1.1)")
    print(f"first line of one page  {statistics.median(firsts):6.2f} s  (goal: under 2)")
    print(f"most memory             {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MB, bare included")


def _save(image: Pixels, path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), image)


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=SCAN)
    parser.add_argument("--copies", type=int, default=2, help="the file so many times in one job")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.file, arguments.copies, arguments.rounds))
