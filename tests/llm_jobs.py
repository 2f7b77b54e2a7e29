"""A worker for the kind `llm` in front of a scripted model server, and jobs for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest

from gateway.blobs import Blobs
from gateway.event_text import decode_event
from gateway.protocol import START, Event
from gateway.requests import JobOptions
from gateway.store import JobRecord, NewJob, Store, StoredFile
from processors import Processor
from processors import llm as kind
from processors.llm import llm, llm_models
from processors.worker import Worker
from tests.token_source import MODEL
from tests.worker_jobs import end_of, working

KEY = "sk-scripted-key"
ASK: list[dict[str, Any]] = [{"role": "user", "content": "What is the answer?"}]


class Asking:
    """Submits jobs of the kind `llm` and follows them."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self.store = store
        self.blobs = blobs

    async def submit(self, *, file: bytes | None = None, kind: str = "llm", **input_: Any) -> str:
        """Submit a job; without any input, the usual question."""
        job = await self.store.job_id("me", None)
        files: tuple[StoredFile, ...] = ()
        if file is not None:
            key = self.blobs.key_for(job)
            size, _ = await self.blobs.put(key, file, max_bytes=None)
            files = (StoredFile("request.json", "application/json", size, key),)
        asked = {"model": MODEL} | (input_ or {"messages": ASK})
        document = (llm if kind == "llm" else llm_models).document
        new = NewJob(document, "me", asked if kind == "llm" else {}, JobOptions(), "fingerprint", files)
        return (await self.store.submit(job, new, keyed=False)).record.id

    async def end(self, job: str) -> JobRecord:
        """The job when it has ended."""
        return await end_of(self.store, job)

    async def result(self, **input_: Any) -> dict[str, Any]:
        """The result of a job that must succeed."""
        record = await self.end(await self.submit(**input_))
        assert record.state == "succeeded", record.end_data()
        result: dict[str, Any] = record.end_data()["result"]
        return result

    async def problem(self, **input_: Any) -> dict[str, Any]:
        """The problem of a job that must fail."""
        record = await self.end(await self.submit(**input_))
        assert record.state == "failed", record.end_data()
        problem: dict[str, Any] = record.end_data()["problem"]
        return problem

    async def events(self, job: str) -> list[Event]:
        """All events of a job so far."""
        return [decode_event(entry.text) for entry in (await self.store.events(job, START)).entries]

    async def said(self, job: str, channel: str = "text") -> str:
        """A channel's text so far."""
        deltas = [event.data for event in await self.events(job) if event.type == "delta"]
        return "".join(delta["text"] for delta in deltas if delta["channel"] == channel)


class ModelServer(Protocol):
    """What a worker is told of a model server."""

    url: str


@asynccontextmanager
async def llm_worker(
    store: Store,
    blobs: Blobs,
    source: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    models: str = "",
    *,
    beside: Sequence[Processor] = (),
) -> AsyncIterator[Worker]:
    """A worker that asks this model server, for the length of the block."""
    for name, value in {"URL": source.url, "KEY": KEY, "MODELS": models}.items():
        monkeypatch.setenv(f"OUTLAST_LLM_{name}", value)
    kind.configured.cache_clear()
    try:
        async with working(store, blobs, (llm, llm_models, *beside), concurrency=32) as worker:
            yield worker
    finally:
        kind.configured.cache_clear()
