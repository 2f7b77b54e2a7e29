"""What every handler reaches for: the application's parts, whose request it is, and that owner's job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from gateway.auth import PRINCIPAL, Principal
from gateway.blobs import Blobs
from gateway.config import Settings
from gateway.documents import KindDocument
from gateway.errors import BadRequest, Forbidden, Gone, NotFound, RequestError
from gateway.hub import Hub
from gateway.limits import StreamLimit
from gateway.metrics import Metrics
from gateway.protocol import JOB_PATTERN
from gateway.store import JobRecord, Store
from gateway.tokens import JobToken, SubmitToken

SETTINGS: Final = web.AppKey("settings", Settings)
STORE: Final = web.AppKey("store", Store)
BLOBS: Final = web.AppKey("blobs", Blobs)
HUB: Final = web.AppKey("hub", Hub)
# mypy takes no protocol class where an instance's class is expected.
METRICS: Final = web.AppKey[Metrics]("metrics")
STREAMS: Final = web.AppKey("streams", StreamLimit)
OPENAPI: Final = web.AppKey("openapi", bytes)
DOCS: Final = web.AppKey("docs", str)


# Longer waits are asked for again: below what any hop between here and the client waits for a byte.
_MAX_WAIT_SECONDS: Final = 50.0
_BARE_WAIT_SECONDS: Final = 25.0
# Who has asked again within this time is a load balancer that goes by the answer.
_WATCHED_SECONDS: Final = 60.0


@dataclass(slots=True)
class Readiness:
    """Whether a load balancer should send requests here, and whether one asks."""

    draining: bool = False
    """This gateway is about to stop: it says so on /readyz and still serves."""
    closing: bool = False
    """Its streams are being closed: new ones go elsewhere."""
    _first_asked: float | None = None
    _last_asked: float | None = None

    def asked(self, now: float) -> None:
        """Somebody asked and heard that this gateway is ready."""
        if self._first_asked is None:
            self._first_asked = now
        elif now - self._first_asked > 1:
            # Whoever started us asked until the first good answer; from then on it is somebody who keeps on asking.
            self._last_asked = now

    def is_watched(self, now: float) -> bool:
        """Whether a load balancer goes by /readyz, so that it must be given time to see a change."""
        return self._last_asked is not None and now - self._last_asked < _WATCHED_SECONDS


READINESS: Final = web.AppKey("readiness", Readiness)

_JOB: Final = re.compile(JOB_PATTERN, re.ASCII)


def principal(request: web.Request) -> Principal:
    """In whose name the request is made, and by which token, if by any."""
    return request[PRINCIPAL]


async def owned_job(request: web.Request) -> JobRecord:
    """The record of the job in the request's path.

    Raises `NotFound` also for another owner's job: that it exists is nobody else's business. Raises `Gone` once the
    job has expired.
    """
    store = request.app[STORE]
    record = await owned(store, request.match_info["job"], principal(request))
    if record.options.grace_seconds is not None and not record.terminal:
        # Who asks again and again listens too, though no connection stays open.
        await store.mark(record.id, "asked", 0)
    return record


async def owned(store: Store, job: str, principal: Principal) -> JobRecord:
    """A job that the principal may read.

    Raises `NotFound`, `Gone`, and `Forbidden` for a job that its token doesn't open.
    """
    [found] = await owned_jobs(store, [job], principal)
    if isinstance(found, RequestError):
        raise found
    return found


async def owned_jobs(store: Store, jobs: Sequence[str], principal: Principal) -> list[JobRecord | RequestError]:
    """Jobs of the principal; in the place of one that can't be had, the error that `owned` raises."""
    possible = [job for job in jobs if _JOB.fullmatch(job)]
    found = dict(zip(possible, await store.find_jobs(possible), strict=True)) if possible else {}
    return [await _if_owned(store, job, found.get(job), principal) for job in jobs]


async def _if_owned(
    store: Store, job: str, found: JobRecord | NotFound | Gone | None, principal: Principal
) -> JobRecord | RequestError:
    try:
        principal.check("read", job=job)
        if isinstance(found, JobRecord | Gone) and principal.owns(found.owner):
            if isinstance(found, JobRecord) and isinstance(principal.token, SubmitToken):
                principal.check("read", kind=await _submitted_kind(store, found))
            return found
    except (Forbidden, NotFound, Gone) as error:
        return error
    # The same whether it is another owner's or was never made.
    return NotFound(f"There is no job {job[:40]!r}; it was never made, or it is another owner's.", code="job_not_found")


async def _submitted_kind(store: Store, record: JobRecord) -> str:
    """The kind of the job that was submitted: a step has one of its own. Raises `NotFound` and `Gone`."""
    while record.parent is not None:
        record = await store.job(record.parent)
    return record.kind


async def place_owner(request: web.Request, record: JobRecord | None = None) -> str:
    """Of whom a stream or a wait takes a place: of who asks, but with a job's token of the job's owner.

    That may be a user, whose pages have such a token of each job.
    """
    asking = principal(request)
    if not isinstance(asking.token, JobToken):
        return asking.owner
    found = record or (await owned_jobs(request.app[STORE], [asking.token.job], asking))[0]
    return found.owner if isinstance(found, JobRecord | Gone) else asking.owner


async def wait_for_end(request: web.Request, record: JobRecord, seconds: float) -> JobRecord:
    """The job when it has ended, or as it is after some seconds. The wait takes one of its owner's places.

    Raises `TooMany`, `NotFound` and `Gone`.
    """
    if record.terminal or not seconds:
        return record
    with request.app[STREAMS].place(await place_owner(request, record)):
        return await ended_within(request, record, seconds)


async def ended_within(request: web.Request, record: JobRecord, seconds: float) -> JobRecord:
    """The same for those who have a place, or need none. Raises `NotFound` and `Gone`."""
    if record.terminal or not seconds:
        return record
    await request.app[HUB].wait_for_end(record, seconds)
    return await owned(request.app[STORE], record.id, principal(request))


async def known_kind(store: Store, name: str) -> KindDocument:
    """A kind by its name. Raises `NotFound`, naming the kinds that there are."""
    kinds = await store.kinds()
    kind = kinds.get(name)
    if kind is None:
        known = ", ".join(sorted(kinds)[:50]) or "none yet; start a worker"
        raise NotFound(f"There is no kind {name[:64]!r}. Known kinds: {known}.", code="unknown_kind")
    return kind


def requested_preferences(request: web.Request) -> dict[str, str]:
    """What `Prefer` asks for (RFC 7240): names in lower case, the value empty where there is none."""
    preferences: dict[str, str] = {}
    for header in request.headers.getall("Prefer", ()):
        for part in header.split(","):
            name, _, value = part.split(";", 1)[0].partition("=")
            # [spec] "If any preference is specified more than once, only the first instance is to be considered."
            preferences.setdefault(name.strip().lower(), value.strip().strip('"'))
    return preferences


def preferred_wait(request: web.Request) -> float | None:
    """The seconds of `Prefer: wait=N`, at most 50; 25 for a bare `wait`; None where it isn't asked for."""
    value = requested_preferences(request).get("wait")
    if value is None:
        return None
    if value == "":
        return _BARE_WAIT_SECONDS
    if not (value.isascii() and value.isdigit()):
        raise BadRequest(f"Prefer: wait= takes whole seconds, such as wait=25; not {value[:20]!r}.")
    return min(float(value[:6]), _MAX_WAIT_SECONDS)


def requested_wait(request: web.Request) -> float:
    """The seconds of `?wait=N`, at most 50; 0 where it isn't given."""
    return requested_seconds(request, "wait", _MAX_WAIT_SECONDS) or 0


def requested_seconds(request: web.Request, name: str, most: float) -> float | None:
    """A query parameter in seconds, such as `wait=25` or `cut=5s`; None where it is not given."""
    text = request.query.get(name)
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)s?", text, re.ASCII)
    if match is None:
        raise BadRequest(f"?{name}= takes seconds, such as {name}=25; not {text[:40]!r}.")
    return min(float(match[1]), most)
