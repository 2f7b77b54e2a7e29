"""A plain relay of Server-Sent Events, as it is often built: a POST starts the work, a GET hears what is published.

There is no log, no key, no heartbeat and no job once the work is done. `outlast verify` must tell what that breaks.
Its switches add a fault, or take one away, so that each check can be seen to fail for its own reason only.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

_LINES_FOR_ONE = 10_000
# Before its first event, so that who listens at once misses none, also on a machine that is busy with much else.
_BEGINS_AFTER_SECONDS = 1.5
# The part of a step's time that it takes: a whole job ends well within what is waited for it.
_PACE = 0.5


@dataclass(slots=True)
class Work:
    """One job, as long as its work goes on."""

    id: str
    state: str = "running"
    listeners: dict[int, asyncio.Queue[bytes | None]] = field(default_factory=dict)
    published: list[bytes] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Relay:
    """The relay; `keeps_jobs`, `keeps_log`, `keeps_keys` mend it, the others break it further."""

    def __init__(
        self,
        *,
        keeps_jobs: bool = False,
        keeps_log: bool = False,
        keeps_keys: bool = False,
        cancels_on_disconnect: bool = False,
        one_queue: bool = False,
        late_writer: bool = False,
    ) -> None:
        self.keeps_jobs = keeps_jobs
        self.keeps_log = keeps_log
        self.keeps_keys = keeps_keys
        self.cancels_on_disconnect = cancels_on_disconnect
        self.one_queue = one_queue
        self.late_writer = late_writer
        self.started = 0
        self._jobs: dict[str, Work] = {}
        self._keys: dict[str, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        """The application."""
        app = web.Application()
        app.router.add_post("/v1/kinds/{kind}/jobs", self._submit)
        app.router.add_post("/v1/kinds/{kind}/run", self._run)
        app.router.add_get("/v1/jobs/{job}", self._read)
        app.router.add_get("/v1/jobs/{job}/events", self._events)
        app.router.add_get("/healthz", self._healthz)
        return app

    async def close(self) -> None:
        """End all work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        job, headers = self._start(request, (await request.json())["input"])
        if request.headers.get("Accept") == "text/event-stream":
            return await self._stream(request, job, {"Location": f"/v1/jobs/{job.id}"})
        document = {"id": job.id, "state": job.state, "terminal": False}
        return web.json_response(document, status=202, headers=headers)

    async def _run(self, request: web.Request) -> web.Response:
        job, _ = self._start(request, (await request.json())["input"])
        try:
            await job.ended.wait()
        finally:
            self._abandon(job)
        return web.json_response({"id": job.id, "state": job.state, "terminal": True})

    def _start(self, request: web.Request, input_: dict[str, Any]) -> tuple[Work, dict[str, str]]:
        key = request.headers.get("Idempotency-Key", "")
        if self.keeps_keys and key in self._keys:
            return self._keys[key], {"Idempotency-Replayed": "true"}
        job = self._keys[key] = Work(secrets.token_hex(13))
        self._jobs[job.id] = job
        self.started += 1
        job.task = asyncio.create_task(self._work(job, input_), name=f"relay {job.id}")
        self._tasks.add(job.task)
        return job, {}

    def _abandon(self, job: Work) -> None:
        """End the work whose last listener has left, where that is how it is done here."""
        if self.cancels_on_disconnect and not job.listeners and job.task is not None and not job.ended.is_set():
            job.state = "cancelled"
            job.ended.set()
            job.task.cancel()

    async def _read(self, request: web.Request) -> web.Response:
        job = self._jobs.get(request.match_info["job"])
        if job is None:
            raise web.HTTPNotFound
        if request.query.get("wait"):
            with suppress(TimeoutError):
                async with asyncio.timeout(float(request.query["wait"])):
                    await job.ended.wait()
        last = json.loads(job.published[-1])["id"] if job.published else 0
        document = {"id": job.id, "state": job.state, "terminal": job.ended.is_set(), "last_event_id": str(last)}
        return web.json_response(document)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        job = self._jobs.get(request.match_info["job"])
        if job is None:
            raise web.HTTPNotFound
        return await self._stream(request, job, {})

    async def _stream(self, request: web.Request, job: Work, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(1 if self.one_queue else _LINES_FOR_ONE)
        if self.keeps_log:
            after = int((request.headers.get("Last-Event-ID") or "0").partition("-")[0])
            queue = asyncio.Queue()
            for text in [*job.published[after:], *([None] if job.ended.is_set() else [])]:
                queue.put_nowait(text)
        job.listeners[id(queue)] = queue
        try:
            while (text := await queue.get()) is not None:
                number = json.loads(text)["id"]
                await response.write(b"id: %d\ndata: %b\n\n" % (number, text))
        finally:
            job.listeners.pop(id(queue), None)
            self._abandon(job)
        return response

    async def _work(self, job: Work, input_: dict[str, Any]) -> None:
        steps = input_["steps"]
        await asyncio.sleep(_BEGINS_AFTER_SECONDS)
        for step in range(1, steps + 1):
            await asyncio.sleep(_PACE * input_["interval_seconds"])
            await self._publish(job, step, "probe.step", {"step": step, "padding": "." * input_.get("padding", 0)})
        job.state = "succeeded"
        await self._publish(job, steps + 1, "succeeded", {}, terminal=True)
        job.ended.set()
        for queue in tuple(job.listeners.values()):
            await queue.put(None)
        if not (self.keeps_jobs or self.keeps_log):
            del self._jobs[job.id]

    async def _publish(
        self, job: Work, number: int, type_: str, data: dict[str, Any], *, terminal: bool = False
    ) -> None:
        attempt = 1 if self.late_writer and number % 2 else 2
        event = {
            "id": number,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "job": job.id,
            "attempt": attempt,
            "type": type_,
            "data": data,
        } | ({"terminal": True} if terminal else {})
        text = json.dumps(event).encode()
        job.published.append(text)
        for queue in tuple(job.listeners.values()):
            # With room for one event in each queue, the slowest listener sets the pace for all.
            await queue.put(text)


@asynccontextmanager
async def relay(**switches: bool) -> AsyncIterator[tuple[Relay, str]]:
    """A relay that is being served, and its address."""
    made = Relay(**switches)
    runner = web.AppRunner(made.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield made, f"http://127.0.0.1:{port}"
    finally:
        await made.close()
        await runner.cleanup()
