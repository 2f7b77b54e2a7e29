"""Runs OCR jobs as a worker does: a real store, real blobs, the real runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.blobs import Blobs
from gateway.event_text import decode_event
from gateway.protocol import START, Event
from gateway.requests import JobOptions
from gateway.store import JobRecord, NewJob, Store, StoredFile
from processors.ocr import Page, ocr
from processors.worker import Worker
from tests.faults import wait_until

DOCUMENTS = Path(__file__).parents[2] / "examples" / "documents"


@dataclass
class Outcome:
    """What a job left."""

    events: list[Event]
    outputs: dict[str, dict[str, Any]]
    blobs: dict[str, bytes]

    @property
    def end(self) -> Event:
        """The terminal event."""
        return self.events[-1]

    @property
    def problem(self) -> dict[str, Any]:
        """Why the job failed."""
        assert self.end.type == "failed", self.end
        problem: dict[str, Any] = self.end.data["problem"]
        return problem

    @property
    def pages(self) -> list[Page]:
        """The pages of the result."""
        assert self.end.type == "succeeded", self.end
        return [Page.model_validate(page) for page in self.end.data["result"]["pages"]]


class Jobs:
    """Submits OCR jobs and follows them."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self.store = store
        self.blobs = blobs

    async def submit(self, files: Mapping[str, bytes | Path], **input_: Any) -> str:
        """Submit a job; the content types say nothing."""
        job = await self.store.job_id("me", None)
        stored = []
        for name, body in files.items():
            key = self.blobs.key_for(job)
            data = body.read_bytes() if isinstance(body, Path) else body
            size, _ = await self.blobs.put(key, data, max_bytes=None)
            stored.append(StoredFile(name, "application/octet-stream", size, key))
        new = NewJob(ocr.document, "me", input_, JobOptions(), "fingerprint", tuple(stored))
        return (await self.store.submit(job, new, keyed=False)).record.id

    async def log(self, job: str) -> list[Event]:
        """All events of a job so far."""
        events: list[Event] = []
        while True:
            page = await self.store.events(job, events[-1].cursor or START if events else START)
            if not page.entries:
                return events
            events += [decode_event(entry.text) for entry in page.entries]

    async def end(self, job: str, seconds: float = 90) -> Outcome:
        """Wait for a job's end."""

        async def ended() -> JobRecord | None:
            record = await self.store.job(job)
            return record if record.terminal else None

        await wait_until(ended, seconds, what=f"the end of {job}")
        outputs = {event.data["index"]: event for event in map(decode_event, await self.store.outputs(job))}
        blobs = {
            index: await self.blobs.get(f"jobs/{job}/outputs/{event.attempt}-{index}")
            for index, event in outputs.items()
            if "url" in event.data
        }
        return Outcome(await self.log(job), {index: event.data for index, event in outputs.items()}, blobs)

    async def read(self, body: bytes | Path, **input_: Any) -> Outcome:
        """Submit a file and wait for the end."""
        return await self.end(await self.submit({"file": body}, **input_))


@asynccontextmanager
async def working(store: Store, blobs: Blobs, **options: Any) -> AsyncIterator[Worker]:
    """A worker that serves OCR, for the length of the block."""
    values: dict[str, Any] = {"concurrency": 2, "stop_grace_seconds": 0.0, "max_inline_bytes": 200_000} | options
    # The models are loaded when a test needs them; most tests have an engine without any.
    worker = Worker(store, blobs, {ocr.kind: replace(ocr, setup=None)}, **values)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(90):
            await worker.ready.wait()
        yield worker
    finally:
        worker.stop()
        async with asyncio.timeout(10):
            await running


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """An empty blob store."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    return Blobs.open(folder.as_uri())


@pytest.fixture
async def jobs(store: Store, blobs: Blobs) -> Jobs:
    """Where jobs are submitted; nobody works on them yet."""
    await store.register_kind(ocr.document)
    return Jobs(store, blobs)


@pytest.fixture
async def reading(jobs: Jobs) -> AsyncIterator[Jobs]:
    """Jobs that a worker works on."""
    async with working(jobs.store, jobs.blobs):
        yield jobs


def error_rate(read: Iterable[str] | str, truth: Iterable[str] | str) -> float:
    """Characters that must be changed to make one text of the other, relative to the truth; spaces run together."""
    one, other = (" ".join((" ".join(text) if not isinstance(text, str) else text).split()) for text in (read, truth))
    return _distance(one, other) / max(1, len(other))


def _distance(one: str, other: str) -> int:
    """The edit distance, with one bit per character of `one` (Hyyrö 2001): a page takes a millisecond."""
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for at, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << at
    mask, last, distance = (1 << len(one)) - 1, 1 << (len(one) - 1), len(one)
    more, less = mask, 0
    for character in other:
        equal = places.get(character, 0)
        vertical = equal | less
        horizontal = (((equal & more) + more) ^ more) | equal
        up, down = less | ~(horizontal | more) & mask, more & horizontal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & mask, (down << 1) & mask
        more, less = (down | ~(vertical | up)) & mask, up & vertical
    return distance
