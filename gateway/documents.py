"""Documents that the gateway answers: jobs, kinds, problems, as pydantic models.

No I/O here, as in `gateway.protocol`, which needs no pydantic.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.protocol import DAY_SECONDS, KIND_PATTERN, Priority, State


class WireModel(BaseModel):
    """What all models of the wire have in common: each is built at its first use, since few programs use them all."""

    model_config = ConfigDict(defer_build=True)


class EventDocument(WireModel):
    """One event of a job's log, or a transient one, which has no `id`. Unknown types and fields pass through."""

    model_config = ConfigDict(extra="allow")

    id: int | None = None
    time: str | None = None
    job: str
    attempt: int | None = None
    type: str
    data: dict[str, Any] = Field(default_factory=dict)
    terminal: bool = False


class FileInfo(WireModel):
    """A file that belongs to a job. `url` is a path on the gateway."""

    name: str
    content_type: str
    size: int
    url: str


class JobUrls(WireModel):
    """Where to find the rest; path references, so that TLS in front of us can't make them wrong."""

    self: str
    events: str
    websocket: str
    result: str
    outputs: str
    cancel: str
    watch: str


class Problem(WireModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str = ""
    status: int | None = None
    code: str
    detail: str = ""


class Liveness(WireModel):
    """When the worker that has the job last showed that it lives."""

    worker: str
    seen_at: str
    silent_seconds: float


class JobDocument(WireModel):
    """A job as `GET /v1/jobs/{id}` answers it."""

    model_config = ConfigDict(extra="allow")

    id: str
    kind: str
    state: State
    terminal: bool
    attempt: int
    last_event_id: str = Field(description="The cursor of the newest event, N-T.")
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    expires_at: str | None = None
    progress: dict[str, Any] | None = None
    liveness: Liveness | None = None
    result: Any = None
    result_url: str | None = Field(None, description="Where the result is, if it is too large to stand here.")
    problem: Problem | None = None
    partial: bool = False
    cancel_requested: bool = False
    retry_of: str | None = None
    parent: str | None = Field(None, description="The job that this one is a step of.")
    priority: Priority = "normal"
    tags: list[str] = Field(default_factory=list)
    user: str | None = Field(None, description="For whom it was submitted, where that was done with a token.")
    files: list[FileInfo] = Field(default_factory=list)
    urls: JobUrls


class JobList(WireModel):
    """A page of jobs, newest first. `cursor` asks for the next page, also where this one is short or empty; null at
    the end.
    """

    jobs: list[JobDocument]
    cursor: str | None


class KindDocument(WireModel):
    """A kind of work as `GET /v1/kinds` shows it and `ol:kinds` keeps it."""

    model_config = ConfigDict(extra="ignore")

    kind: Annotated[str, Field(pattern=KIND_PATTERN)]
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})
    result_schema: dict[str, Any] | None = None
    files: Literal["none", "optional", "required"] = "none"
    content_types: list[str] = Field(default_factory=list, description="Content types of files that it reads.")
    listed: bool = Field(True, description="Whether people are offered it; one that is only a step of others is not.")
    max_attempts: int = 3
    run_timeout_seconds: float = 3600
    start_deadline_seconds: float | None = None
    retention_seconds: float = DAY_SECONDS
    max_running: int | None = Field(None, description="At most so many at once over all workers.")
    max_waiting: int = 10_000
    max_waiting_per_owner: int = 10_000


class KindStatus(KindDocument):
    """A kind, and how it stands now. One without a worker takes jobs all the same, and so does a paused one."""

    workers: int = Field(0, description="Workers that showed themselves in the last seconds and do this kind.")
    paused: bool = Field(False, description="Whether its jobs wait until somebody resumes it.")
    waiting: int = Field(0, description="Jobs in its queue.")
    running: int = Field(0, description="Jobs in hand.")


class KindList(WireModel):
    """All known kinds, by name."""

    kinds: list[KindStatus]
