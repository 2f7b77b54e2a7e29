"""Runs OCR jobs as a worker does: a real store, real blobs, the real runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.blobs import Blobs
from gateway.event_text import decode_event
from gateway.protocol import Event
from gateway.requests import JobOptions
from gateway.store import NewJob, Store, StoredFile
from processors.ocr import Page, ocr
from processors.worker import Worker
from tests import worker_jobs

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

    async def end(self, job: str, seconds: float = 90) -> Outcome:
        """Wait for a job's end."""
        await worker_jobs.end_of(self.store, job, seconds)
        outputs = {event.data["index"]: event for event in map(decode_event, await self.store.outputs(job))}
        blobs = {
            index: await self.blobs.get(f"jobs/{job}/outputs/{event.attempt}-{index}")
            for index, event in outputs.items()
            if "url" in event.data
        }
        log = await worker_jobs.log_of(self.store, job)
        return Outcome(log, {index: event.data for index, event in outputs.items()}, blobs)

    async def read(self, body: bytes | Path, **input_: Any) -> Outcome:
        """Submit a file and wait for the end."""
        return await self.end(await self.submit({"file": body}, **input_))


def working(store: Store, blobs: Blobs, **options: Any) -> AbstractAsyncContextManager[Worker]:
    """A worker that serves OCR, for the length of the block."""
    # The models are loaded when a test needs them; most tests have an engine without any.
    values: dict[str, Any] = {"concurrency": 2, "max_inline_bytes": 200_000} | options
    return worker_jobs.working(store, blobs, [replace(ocr, setup=None)], **values)


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
