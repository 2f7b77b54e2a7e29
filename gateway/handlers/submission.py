"""Submitting a job: the same steps for every transport, once its body has been read."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from gateway.auth import Principal
from gateway.documents import KindDocument
from gateway.errors import BadRequest, Forbidden, InvalidInput, TooLarge, UnsupportedType
from gateway.handlers.context import METRICS, SETTINGS, STORE, known_kind
from gateway.handlers.validation import Validators, refused_url, wrong_field
from gateway.requests import JobOptions, JobRequest
from gateway.slow_routes import SlowRoute, find_route
from gateway.store import NewJob, StoredFile, Submitted
from gateway.tokens import SubmitToken
from gateway.upstreams import Refused, Upstreams

VALIDATORS: Final = web.AppKey("validators", Validators)
SLOW_ROUTES: Final = web.AppKey("slow_routes", tuple[SlowRoute, ...])
HTTP: Final = "http"

# [spec] RFC 8941, section 3.3.3: what a header's string can hold.
_KEY: Final = re.compile(r"^[\x20-\x7e]{1,255}$", re.ASCII)


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file whose bytes are in the blob store already."""

    stored: StoredFile
    sha256: str


async def submit(
    app: web.Application,
    asking: Principal,
    kind: str,
    body: JobRequest,
    *,
    key: str | None,
    job: str,
    files: Sequence[UploadedFile] = (),
    retry_of: str | None = None,
    meaning: Any = None,
) -> Submitted:
    """Check a request and make its job, or find the job that its Idempotency-Key has made before.

    `meaning` says what makes two requests the same where the gateway itself has made the input, which then needs no
    check. Nor does the input of an earlier job, `retry_of`: it was accepted, and its URL may be listed for a slow route
    alone. A call of the kind `http` names such a route by its path. `job` is the new job's id, under which the files
    are stored already. Cancelling it leaves open whether the job was accepted.
    Raises `NotFound` for an unknown kind, `Forbidden` for what a token doesn't allow, `InvalidInput`, `TooLarge`,
    `UnsupportedType`, and what `Store.submit` does.
    """
    store = app[STORE]
    asking.check("submit", kind=kind)
    document = await known_kind(store, kind)
    token = asking.token if isinstance(asking.token, SubmitToken) else None
    if token is not None and retry_of is None:
        # Before a slow route says how long it may take: that is not asked for by the page.
        check_modest(document, body)
    if body.input_url is not None:
        app[VALIDATORS].check_url("input_url", body.input_url)
    check_files(document, files, by_url=body.input_url is not None)
    check_size(body.input, app[SETTINGS].max_inline_bytes)
    if meaning is None and retry_of is None:
        routed = _routed(app[SLOW_ROUTES], body) if kind == HTTP else None
        body = routed or body
        await app[VALIDATORS].check(document, body.input, urls=routed is None)
    options = JobOptions.model_validate(body.model_dump(include=set(JobOptions.model_fields), exclude_unset=True))
    check_start(options, store.job_deadline_seconds)
    new = NewJob(
        kind=document,
        owner=asking.owner,
        input=body.input,
        options=options,
        fingerprint=fingerprint(kind, options, body.input if meaning is None else meaning, files, retry_of),
        files=tuple(file.stored for file in files),
        retry_of=retry_of,
        max_waiting=token.max_waiting if token is not None else None,
    )
    submitted = await store.submit(job, new, keyed=key is not None)
    app[METRICS].count("jobs_submitted", kind=kind, outcome="replayed" if submitted.replayed else "new")
    return submitted


def _routed(routes: tuple[SlowRoute, ...], body: JobRequest) -> JobRequest | None:
    """A call whose URL is a slow route's path, as the route makes it; None for other URLs. Raises `InvalidInput`."""
    path, method = body.input.get("url"), body.input.get("method", "GET")
    if not isinstance(path, str) or not path.startswith("/"):
        return None
    try:
        route = find_route(routes, method, path)
        if route is None:
            raise Refused(
                "upstream_not_allowed",
                f"{str(method)[:20]} {path[:200]} is no slow route of this gateway; OUTLAST_ROUTES names their file.",
            )
        url = route.url(path)
        Upstreams([route.listed]).check(url)
    except Refused as refused:
        raise refused_url("input.url", refused) from None
    own = {"retries": route.retries, "idempotent": route.idempotent}
    patience = {"run_timeout_seconds": route.timeout, "on_disconnect": route.on_disconnect}
    wished = {name: getattr(body, name) for name in body.model_fields_set}
    return body.model_copy(update=patience | wished | {"input": own | body.input | {"url": url}})


def fingerprint(
    kind: str, options: JobOptions, input_: Any, files: Sequence[UploadedFile], retry_of: str | None = None
) -> str:
    """What makes two requests the same: the meaning, never the raw bytes, which a client's library may vary."""
    meaning = {
        "kind": kind,
        "options": options.model_dump(mode="json", exclude_defaults=True),
        "input": input_,
        "files": [[file.stored.name, file.stored.content_type, file.sha256] for file in files],
        "retry_of": retry_of,
    }
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def requested_key(request: web.Request) -> str | None:
    """A request's Idempotency-Key. Raises `BadRequest` as `checked_key`."""
    return checked_key(request.headers.get("Idempotency-Key"))


def checked_key(key: str | None) -> str | None:
    """An Idempotency-Key. Raises `BadRequest` for one that could not stand in a header."""
    if key is not None and _KEY.fullmatch(key) is None:
        raise BadRequest(
            "An Idempotency-Key has 1 to 255 printable ASCII characters; a UUID is a good one.",
            code="bad_idempotency_key",
        )
    return key


def check_start(options: JobOptions, deadline_seconds: float) -> None:
    """Raises `InvalidInput` for a job that would be open for too long before it may begin."""
    if options.start_at is None or options.start_at.timestamp() - time.time() < deadline_seconds:
        return
    raise wrong_field(
        "start_at",
        f"no job is open for longer than {deadline_seconds:g} s (OUTLAST_JOB_DEADLINE_SECONDS): submit it later",
    )


def check_modest(kind: KindDocument, options: JobOptions) -> None:
    """Raises `Forbidden` where a page asks for more than its kind gives by itself: that is for an API key to ask."""
    too_much = {
        "priority": options.priority == "high",
        # What waits for its time is in no queue, so no bound on what waits counts it.
        "start_at": options.start_at is not None,
        "start_deadline_seconds": (options.start_deadline_seconds or 0) > (kind.start_deadline_seconds or math.inf),
        "run_timeout_seconds": (options.run_timeout_seconds or 0) > kind.run_timeout_seconds,
        "retention_seconds": (options.retention_seconds or 0) > kind.retention_seconds,
        # The listed upstreams are for all kinds, and what is behind one need not be for who has the page open.
        "input_url": options.input_url is not None,
    }
    if wrong := [name for name, is_more in too_much.items() if is_more]:
        raise Forbidden(
            f"{wrong[0]}: with a token a job gets no more than the kind {kind.kind} gives by itself; leave it out, or"
            " submit with an API key."
        )


def check_size(input_: Any, most: int) -> None:
    """Raises `TooLarge` for an input that is too large to stand in the job's record."""
    size = len(to_json(input_))
    if size > most:
        raise TooLarge(
            f"The input is {size} bytes of JSON; at most {most} are taken inline. Send what is large as a file:"
            " multipart/form-data with an `input` part and the file.",
            code="input_too_large",
        )


def check_files(kind: KindDocument, files: Sequence[UploadedFile], *, by_url: bool = False) -> None:
    """Raises `InvalidInput` and `UnsupportedType` where the files are not what the kind reads.

    `by_url`: there is one more, of which nobody knows anything before the worker has fetched it.
    """
    if by_url and kind.files == "none":
        raise UnsupportedType(f"The kind {kind.kind} takes no files, so no `input_url`.", code="file_not_allowed")
    if kind.files == "required" and not files and not by_url:
        raise InvalidInput(
            f"The kind {kind.kind} needs a file: send it as the body with its Content-Type, or as a part of"
            " multipart/form-data.",
            code="file_required",
            errors=[{"field": "file", "message": "a file is required"}],
        )
    for file in files:
        check_file_allowed(kind, file.stored.content_type)


def check_file_allowed(kind: KindDocument, content_type: str) -> None:
    """Raises `UnsupportedType` unless the kind reads files of this type; asked before the file is read."""
    if kind.files == "none":
        raise UnsupportedType(
            f'The kind {kind.kind} takes no files; send application/json: {{"input": {{...}}}}.',
            code="file_not_allowed",
        )
    if kind.content_types and not any(_matches(content_type, allowed) for allowed in kind.content_types):
        raise UnsupportedType(
            f"The kind {kind.kind} does not read {content_type}; it reads {', '.join(kind.content_types)}."
            " If the file is one of these, say so in its Content-Type."
        )


def _matches(content_type: str, allowed: str) -> bool:
    if allowed in {"*/*", "*"}:
        return True
    if allowed.endswith("/*"):
        return content_type.startswith(allowed[:-1])
    return content_type == allowed.lower()
