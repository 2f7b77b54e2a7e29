"""A job's record in Redis as the document that clients read, and documents as answers."""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web
from pydantic import BaseModel
from pydantic_core import from_json

from gateway.config import Settings
from gateway.documents import FileInfo, JobDocument, JobUrls, Liveness, Problem
from gateway.errors import JobBroke, JobFailed, OutlastError
from gateway.handlers.context import SETTINGS, principal
from gateway.protocol import State, format_time
from gateway.store import JobRecord, Submitted
from gateway.tokens import JobToken, encode_token, split_owner

# Endings that are nobody's input's fault: the same job would have ended the same with any. A processor's own problem
# says the same by its `status`.
_OURS: Final = frozenset({"retries_exhausted", "run_timeout", "start_deadline", "deadline"})


def answer_with(document: BaseModel, *, status: int = 200) -> web.Response:
    """A document as the answer. Nobody may keep it: the next one can be another."""
    return web.Response(
        status=status,
        body=document.model_dump_json().encode(),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def shown_job(request: web.Request, record: JobRecord) -> JobDocument:
    """The job as it is shown to who asks: what a token opens it opens for no longer than it lasts."""
    return job_document(record, request.app[SETTINGS], until=principal(request).expires)


def job_document(record: JobRecord, settings: Settings, *, until: int | None = None) -> JobDocument:
    """The job as `GET /v1/jobs/{id}` answers it. `until` is when its watch URL expires, in seconds since 1970."""
    end = record.end_data()
    # A cancelled job has neither a result nor a problem: it says who ended it, and why.
    extra: dict[str, Any] = {"reason": end.get("reason"), "by": end.get("by")} if "reason" in end else {}
    return JobDocument(
        id=record.id,
        kind=record.kind,
        state=record.state,
        terminal=record.terminal,
        attempt=record.attempt,
        last_event_id=str(record.last),
        created_at=format_time(record.created_ms),
        started_at=_time(record.started_ms),
        ended_at=_time(record.ended_ms),
        expires_at=_time(record.expires_ms),
        progress=from_json(record.progress) if record.progress else None,
        liveness=_liveness(record),
        result=end.get("result"),
        result_url=end.get("result_url"),
        problem=Problem.model_validate(end["problem"]) if "problem" in end else None,
        partial=bool(end.get("partial", False)),
        cancel_requested=record.cancel_by is not None,
        retry_of=record.retry_of,
        parent=record.parent,
        priority=record.priority,
        tags=list(record.tags),
        user=split_owner(record.owner)[1],
        files=[
            FileInfo(name=file.name, content_type=file.content_type, size=file.size, url=file_url(record.id, file.name))
            for file in record.files
        ],
        urls=job_urls(record, settings, until),
        **extra,
    )


def job_headers(submitted: Submitted) -> dict[str, str]:
    """Which job the answer is about, and whether an earlier request had made it already."""
    job = submitted.record.id
    replayed = {"Idempotency-Replayed": "true"} if submitted.replayed else {}
    return {"Location": f"/v1/jobs/{job}", "X-Job-Id": job} | replayed


def job_urls(record: JobRecord, settings: Settings, until: int | None) -> JobUrls:
    """Where to find the rest. `watch` needs no header: an `EventSource` can't send one."""
    base = f"/v1/jobs/{record.id}"
    secret = settings.api_keys.get(split_owner(record.owner)[0])
    watch = f"{base}/events"
    if secret is not None:
        watch += f"?token={encode_token(secret.get_secret_value(), JobToken(record.id, expires=until))}"
    return JobUrls(
        self=base,
        events=f"{base}/events",
        websocket="/v1/ws",
        result=f"{base}/result",
        outputs=f"{base}/outputs",
        cancel=f"{base}/cancel",
        watch=watch,
    )


def file_url(job: str, name: str) -> str:
    """The path of an input file."""
    return f"/v1/jobs/{job}/files/{quote(name, safe='')}"


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else format_time(time_ms)


def _liveness(record: JobRecord) -> Liveness | None:
    if record.state is not State.RUNNING or record.seen_ms is None:
        return None
    # Two clocks are compared here, Redis's and ours: good enough for a person, and nothing is decided by it.
    silent = max(0.0, time.time() - record.seen_ms / 1000)
    return Liveness(worker=record.worker or "", seen_at=format_time(record.seen_ms), silent_seconds=round(silent, 1))


def failure(record: JobRecord) -> OutlastError | None:
    """Why an ended job has no result; None where it has one."""
    end = record.end_data()
    if record.state is State.CANCELLED:
        return JobFailed(f"The job was cancelled, so it has no result: {end.get('reason')}", code="job_cancelled")
    if record.state is not State.FAILED:
        return None
    problem = end.get("problem") or {}
    code = str(problem.get("code"))
    ours = code in _OURS or problem.get("status") == JobBroke.status
    error = (JobBroke if ours else JobFailed)(str(problem.get("detail")), code=code)
    error.extra = {name: value for name, value in problem.items() if name != "status"}
    return error
