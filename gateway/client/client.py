"""The Python client: submit a job, follow its events through every cut, fetch its result."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote, urlsplit

from gateway.client.backoff import Backoff
from gateway.client.credentials import Credentials
from gateway.client.subscription import Subscription
from gateway.client.upload import File, Progress, Source, as_files, prepare
from gateway.errors import ConfigurationError, JobFailed
from gateway.fold import Fold
from gateway.protocol import START, Cursor, Event, State

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gateway.client.connection import Connection
    from gateway.client.credentials import ApiKey, Token
    from gateway.documents import JobDocument, KindStatus

Transport = Literal["sse", "websocket"]

# One long poll: below the 100 s after which an edge gives up, and below the gateway's own limit.
_WAIT_SECONDS: Final = 25
_PAGE_JOBS: Final = 100
# Below every edge's limit that we know of (Cloudflare's is 100 MB), and what a good line sends in a second.
PART_BYTES: Final = 8 * 1024 * 1024


class Job:
    """A job, as the gateway last described it: `id`, `kind`, `state`, and all else in `document`."""

    def __init__(self, client: Client, document: JobDocument, *, replayed: bool = False) -> None:
        self._client = client
        self.document = document
        self.replayed = replayed
        """Whether an earlier request with the same key had made it already."""

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.kind} {self.state.value}>"

    @property
    def id(self) -> str:
        """The job's id."""
        return self.document.id

    @property
    def kind(self) -> str:
        """What work it is."""
        return self.document.kind

    @property
    def state(self) -> State:
        """Where it stood when it was last asked for."""
        return self.document.state

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.document.terminal

    def events(self, after: Cursor | str | None = None, **options: Any) -> Subscription:
        """`Client.events` of this job."""
        return self._client.events(self, after, **options)

    async def result(self, **options: Any) -> Any:
        """`Client.result` of this job."""
        return await self._client.result(self, **options)

    async def cancel(self, **options: Any) -> Job:
        """`Client.cancel` of this job."""
        return await self._client.cancel(self, **options)

    async def retry(self, **options: Any) -> Job:
        """`Client.retry` of this job."""
        return await self._client.retry(self, **options)

    async def fold(self) -> Fold:
        """`Client.fold` of this job."""
        return await self._client.fold(self)

    def outputs(self, after: int = 0) -> AsyncIterator[Event]:
        """`Client.outputs` of this job."""
        return self._client.outputs(self, after)

    async def refresh(self) -> Job:
        """The job as it is now."""
        return await self._client.job(self)


class Client:
    """`async with Client("http://127.0.0.1:8080", api_key=...) as client: ...`

    What it raises is in `gateway.errors`: `JobFailed` for a job without a result, `Unreachable` where nobody answered
    for `patience_seconds` (None: never for streams, which then try for ever), the other classes for what the gateway
    refused. Requests are repeated until then, submits under one Idempotency-Key, so that none makes a job twice.

    Cancelling a coroutine of the client, or leaving a loop over events, ends the waiting and closes its connection. It
    never ends the job: `cancel` does.

    `api_key` may be a function, plain or async, that is asked before each request. `token`, in the place of a key, is a
    token or a function that fetches one, which is asked again when the token's time is over; what it raises is raised.

    A connection that brings nothing for `silence_seconds`, not even one of the gateway's heartbeats (every 15 s), is
    taken for dead and made anew. `on_reconnect` is called with the subscription whenever a stream was opened again;
    `reconnects` counts that.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: ApiKey = None,
        token: Token = None,
        transport: Transport = "sse",
        patience_seconds: float | None = 60.0,
        silence_seconds: float = 45.0,
        backoff_seconds: float = 1.0,
        part_bytes: int = PART_BYTES,
        on_reconnect: Callable[[Subscription], None] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"{url!r} is no address of a gateway, such as http://127.0.0.1:8080.")
        self.url = url.rstrip("/")
        self.reconnects = 0
        self._credentials = Credentials(api_key, token)
        self._transport = transport
        self._patience_seconds = patience_seconds
        self._silence_seconds = silence_seconds
        self._backoff_seconds = backoff_seconds
        self._part_bytes = part_bytes
        self._on_reconnect = on_reconnect
        self._entered: Connection | None = None

    async def __aenter__(self) -> Self:
        from gateway.client.connection import Connection  # noqa: PLC0415 - aiohttp's import takes longer than all else

        self._entered = Connection(
            self.url,
            self._credentials,
            silence_seconds=self._silence_seconds,
            patience_seconds=self._patience_seconds if self._patience_seconds is not None else float("inf"),
            backoff_seconds=self._backoff_seconds,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._entered = self._connection, None
        await connection.close()

    # --- jobs -----------------------------------------------------------------------------------------------------

    async def submit(
        self,
        kind: str,
        input: Mapping[str, Any] | BaseModel | None = None,
        *,
        files: Source | File | Sequence[Source | File] | None = None,
        idempotency_key: str | None = None,
        on_upload: Progress | None = None,
        patience_seconds: float | None = None,
        **options: Any,
    ) -> Job:
        """Submit a job; when this returns, it is kept.

        `files` are paths, bytes or file objects, or `File(...)` with a name and a type. What is larger than
        `part_bytes` goes in parts, and so does what an edge refuses or a cut breaks off; `on_upload(sent, total)` is
        told how many of the files' bytes have gone, never fewer than before. `options` are those of the HTTP API:
        `priority`, `tags`, `start_at`, `run_timeout_seconds`, ... Cancelling it leaves open whether the job was
        accepted: submit again with the same `idempotency_key` to find out.
        """
        from gateway.client.submitting import Submit  # noqa: PLC0415 - its pydantic_core would be half of the import

        key = idempotency_key or os.urandom(16).hex()
        chosen = {name: value for name, value in options.items() if value is not None}
        submit = Submit(self._connection, kind, input, chosen, key=key, patience_seconds=patience_seconds)
        answer = await submit.send(prepare(as_files(files)), part_bytes=self._part_bytes, on_upload=on_upload)
        replayed = answer.headers.get("Idempotency-Replayed") == "true"
        return Job(self, answer.job(), replayed=replayed)

    def events(
        self,
        job: Job | str,
        after: Cursor | str | None = None,
        *,
        transport: Transport | None = None,
        snapshot: bool = False,
        types: Sequence[str] | None = None,
    ) -> Subscription:
        """A job's events, each once and in order, until the terminal one; what is cut is resumed.

        `after` is the cursor of the last event that you have. `snapshot` begins with the state so far instead of the
        log's first event. `types` leaves all others out, but for terminal events, `reset` and `snapshot`. The answer
        tells how the connection is doing: `reconnects`, `received`, `missed`, `state`.

        A `reset` means that events are gone; the `snapshot` that follows replaces all that you have.
        """
        # Imported here because it needs aiohttp, which the client has imported when it was entered.
        from gateway.client.transports import open_sse, open_websocket  # noqa: PLC0415

        open_ = open_sse if (transport or self._transport) == "sse" else open_websocket
        return Subscription(
            _id(job),
            partial(open_, self._connection, _id(job), types),
            after=_cursor(after),
            snapshot=snapshot,
            contiguous=types is None,
            backoff=Backoff(self._backoff_seconds),
            patience_seconds=self._patience_seconds,
            on_reconnect=self._reconnected,
        )

    async def result(self, job: Job | str, *, accept: str = "application/json") -> Any:
        """Wait for the job's end and return its result: JSON parsed, text as `str`, anything else as `bytes`.

        `accept` asks for another representation, such as `text/plain`. Raises `JobFailed` if the job failed or was
        cancelled (`code` is then `job_cancelled`).
        """
        ended = await self._wait(job)
        document = ended.document
        if document.state is not State.SUCCEEDED:
            raise _job_failed(document)
        if accept == "application/json" and document.result_url is None:
            return document.result
        answer = await self._connection.request("GET", f"/v1/jobs/{ended.id}/result", headers={"Accept": accept})
        if answer.content_type == "application/json":
            return answer.json()
        return answer.body.decode() if answer.content_type.startswith("text/") else answer.body

    async def run(self, kind: str, input: Mapping[str, Any] | BaseModel | None = None, **options: Any) -> Any:
        """Submit a job and return its result. Cancelling it leaves the job running."""
        job = await self.submit(kind, input, **options)
        return await self.result(job)

    async def cancel(self, job: Job | str, *, reason: str | None = None, wait: bool = False) -> Job:
        """Ask for the job's end. A running job ends when its processor notices; with `wait` this returns after that.

        A job that has ended is returned as it is, so look at its `state`.
        """
        headers = {"Content-Type": "application/json"}
        if wait:
            headers["Prefer"] = f"wait={_WAIT_SECONDS}"
        answer = await self._connection.request(
            "POST",
            f"/v1/jobs/{_id(job)}/cancel",
            headers=headers,
            body=json.dumps({} if reason is None else {"reason": reason}).encode(),
        )
        asked = Job(self, answer.job())
        return await self._wait(asked) if wait and not asked.terminal else asked

    async def retry(self, job: Job | str, *, idempotency_key: str | None = None) -> Job:
        """Do an ended job again: a new job with the same input, options and files, whose `retry_of` is the old one.

        Raises `Conflict` (`still_open`) while the old one has not ended.
        """
        answer = await self._connection.request(
            "POST",
            f"/v1/jobs/{_id(job)}/retry",
            headers={"Idempotency-Key": idempotency_key or os.urandom(16).hex()},
        )
        replayed = answer.headers.get("Idempotency-Replayed") == "true"
        return Job(self, answer.job(), replayed=replayed)

    async def job(self, job: Job | str) -> Job:
        """The job as it is now."""
        return Job(self, (await self._connection.request("GET", f"/v1/jobs/{_id(job)}")).job())

    async def jobs(
        self,
        *,
        state: State | str | None = None,
        kind: str | None = None,
        tag: str | None = None,
        user: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Job]:
        """Your own jobs, newest first; the next page is fetched as the loop goes on.

        Those that your users submitted with tokens are among them; `user` asks for one's alone.
        """
        query = {"state": state and str(state), "kind": kind, "tag": tag, "user": user}
        async for job in self._listed("/v1/jobs", query, limit):
            yield job

    async def dead(self, kind: str, *, limit: int | None = None) -> AsyncIterator[Job]:
        """Your own jobs of a kind that used up their attempts and that nobody has done again, newest first."""
        async for job in self._listed(f"/v1/kinds/{quote(kind, safe='')}/dead", {}, limit):
            yield job

    async def _listed(self, path: str, query: Mapping[str, str | None], limit: int | None) -> AsyncIterator[Job]:
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            size = _PAGE_JOBS if left is None else min(left, _PAGE_JOBS)
            chosen = {**query, "cursor": cursor, "limit": size}
            page = (await self._connection.request("GET", path, query=chosen)).jobs()
            for document in page.jobs:
                yield Job(self, document)
            left = None if left is None else left - len(page.jobs)
            cursor = page.cursor
            if cursor is None:
                return

    async def outputs(self, job: Job | str, after: int = 0) -> AsyncIterator[Event]:
        """The newest `output` event of each index so far, in the order of the log."""
        next_: int | None = after
        while next_ is not None:
            path = f"/v1/jobs/{_id(job)}/outputs"
            answer = await self._connection.request("GET", path, query={"after": next_})
            events, next_ = answer.outputs()
            for event in events:
                yield event

    async def fold(self, job: Job | str) -> Fold:
        """What the job's log amounts to now: state, progress, text by channel."""
        current = await self.job(job)
        head = Cursor.parse(current.document.last_event_id)
        fold = Fold(current.id)
        async with aclosing(aiter(self.events(current, snapshot=True))) as events:
            async for event in events:
                fold = fold.follow(event)
                if fold.cursor.number >= head.number:
                    break
        return fold

    async def make_token(
        self,
        *,
        kind: str | None = None,
        user: str | None = None,
        max_waiting: int | None = None,
        job: Job | str | None = None,
        cancel: bool | None = None,
        expires_seconds: int | None = None,
    ) -> dict[str, Any]:
        """A token for a page that holds no key, as JSON for it: `token`, `expires_at`, `expires_seconds`.

        Either for a `kind` and the `user` who submits to it, or for reading one `job`, and for cancelling it with
        `cancel`. Needs an API key.
        """
        named = None if job is None else _id(job)
        asked = {"kind": kind, "user": user, "max_waiting": max_waiting, "job": named, "cancel": cancel}
        chosen = {**asked, "expires_seconds": expires_seconds}
        answer = await self._connection.request(
            "POST",
            "/v1/tokens",
            headers={"Content-Type": "application/json"},
            body=json.dumps({name: value for name, value in chosen.items() if value is not None}).encode(),
        )
        token: dict[str, Any] = answer.json()
        return token

    async def kinds(self) -> list[KindStatus]:
        """The kinds of work that this gateway knows."""
        return (await self._connection.request("GET", "/v1/kinds")).kinds()

    async def pause(self, kind: str) -> KindStatus:
        """Let no worker begin jobs of a kind. Where the gateway has API keys, only its operators may."""
        return await self._operate(kind, "pause")

    async def resume(self, kind: str) -> KindStatus:
        """Let workers begin jobs of a kind again."""
        return await self._operate(kind, "resume")

    async def _operate(self, kind: str, verb: str) -> KindStatus:
        path = f"/v1/kinds/{quote(kind, safe='')}/{verb}"
        return (await self._connection.request("POST", path)).kind()

    async def fetch(self, path: str, *, accept: str = "*/*") -> bytes:
        """The bytes at one of the gateway's own addresses, such as the `url` of an output."""
        if not path.startswith("/") or path.startswith("//"):
            raise ConfigurationError(f"{path!r} is no path on the gateway; it begins with one slash.")
        return (await self._connection.request("GET", path, headers={"Accept": accept})).body

    # --- inside ---------------------------------------------------------------------------------------------------

    @property
    def _connection(self) -> Connection:
        if self._entered is None:
            raise RuntimeError("the client is not open; use it as `async with Client(url) as client:`")
        return self._entered

    async def _wait(self, job: Job | str) -> Job:
        if isinstance(job, Job) and job.terminal:
            return job
        path = f"/v1/jobs/{_id(job)}"
        while True:
            document = (await self._connection.request("GET", path, query={"wait": _WAIT_SECONDS})).job()
            if document.terminal:
                return Job(self, document)

    def _reconnected(self, subscription: Subscription) -> None:
        self.reconnects += 1
        if self._on_reconnect is not None:
            self._on_reconnect(subscription)


def _job_failed(document: JobDocument) -> JobFailed:
    if document.state is State.CANCELLED:
        reason = (document.model_extra or {}).get("reason") or "no reason was given"
        return JobFailed(f"The job was cancelled: {reason}", code="job_cancelled", job=document.id)
    problem = document.problem
    why = problem.detail or problem.title or problem.code if problem else "it says no reason"
    return JobFailed(
        f"The job failed: {why}", job=document.id, problem=problem.model_dump(exclude_none=True) if problem else {}
    )


def _id(job: Job | str) -> str:
    return job.id if isinstance(job, Job) else quote(job, safe="")


def _cursor(after: Cursor | str | None) -> Cursor:
    if after is None or after == "":
        return START
    return Cursor.parse(after) if isinstance(after, str) else after
