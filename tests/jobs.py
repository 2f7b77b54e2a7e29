"""What tests do with a store: submit a job, begin it as a worker would, end it, hear of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.documents import KindDocument
from gateway.event_text import encode_event_tail
from gateway.fold import Fold
from gateway.protocol import Event, State
from gateway.requests import JobOptions
from gateway.store import Claim, JobRecord, Lease, NewJob, Store, WriterEvent
from tests.faults import wait_until


def new_job(
    kind: KindDocument,
    *,
    owner: str = "me",
    input_: dict[str, Any] | None = None,
    options: JobOptions | None = None,
    fingerprint: str = "same",
) -> NewJob:
    """A job to submit."""
    return NewJob(kind, owner, input_ or {}, options or JobOptions(), fingerprint)


async def submit(
    store: Store,
    kind: KindDocument,
    *,
    owner: str = "me",
    input_: dict[str, Any] | None = None,
    options: JobOptions | None = None,
) -> JobRecord:
    """Submit a job without a key."""
    job = await store.job_id(owner, None)
    return (await store.submit(job, new_job(kind, owner=owner, input_=input_, options=options), keyed=False)).record


async def begin(store: Store, kind: str, worker: str = "worker") -> Lease:
    """Claim and begin the next job of a kind."""
    [claim] = await store.claim(kind, worker, 1)
    return await begin_claim(store, claim, worker)


async def begin_claim(store: Store, claim: Claim, worker: str = "worker") -> Lease:
    """Begin what was claimed, and hold its lease."""
    begun = await store.begin(claim, worker)
    assert begun.lease is not None, begun
    await store.hold(claim, begun.lease)
    return begun.lease


async def hand_over(store: Store, kind: str, *, seconds: float = 60) -> tuple[Lease, str]:
    """Claim and begin the next job of a kind, and hand it over: the attempt's lease, and its token."""
    lease = await begin(store, kind)
    token = await store.hand_over(lease, seconds, "worker")
    assert token is not None
    return lease, token


def fold_log(job: str, events: Iterable[Event]) -> Fold:
    """The fold of a whole log."""
    fold = Fold(job)
    for one in events:
        fold.apply(one)
    return fold


def event(type_: str, data: dict[str, Any] | None = None, index: str = "") -> WriterEvent:
    """An event as an attempt's writer makes it."""
    return WriterEvent(type_, encode_event_tail(type_, data), index)


async def end(
    store: Store, lease: Lease, *, batch: int, type_: str = "succeeded", data: dict[str, Any] | None = None
) -> JobRecord:
    """Write the terminal event, and leave as a worker would."""
    await store.append(lease, batch, [event(type_, data if data is not None else {"result": None})])
    record = await store.job(lease.job)
    await store.leave(lease, record)
    return record


async def look_later(store: Store, record: JobRecord, *, seconds: float = 20) -> None:
    """Look at a job as if so much time had passed since its end."""
    await store._client.hincrby(store._keys.record(record.id), "ended", int(-seconds * 1000))
    await store._client.zadd(store._keys.kind(record.kind)[1], {record.id: 0})
    await store.look([record.kind])


async def run_out(store: Store, record: JobRecord) -> None:
    """Let the lease of a running attempt be over, as if its time had passed, and a look take the job from it."""

    async def taken() -> bool:
        now = await store.job(record.id)
        if (now.state, now.attempt) != (State.RUNNING, record.attempt):
            return True
        await store._client.hset(store._keys.record(record.id), "lease_until", 0)
        await store._client.zadd(store._keys.kind(record.kind)[1], {record.id: 0})
        await store.look([record.kind])
        return False

    # A renewal that was on its way may come in between.
    await wait_until(taken)


async def use_up(store: Store, kind: KindDocument, **options: Any) -> JobRecord:
    """Submit a job, let its last attempt fail, and let a look do its last things: a dead letter."""
    record = await submit(store, kind, **options)
    lease = await begin(store, kind.kind)
    problem = {
        "code": "retries_exhausted",
        "cause": "model_busy",
        "detail": "All 3 attempts failed. The last one: busy",
    }
    record = await end(store, lease, batch=1, type_="failed", data={"problem": problem, "partial": False})
    await look_later(store, record)
    return await store.job(record.id)


class Ear:
    """A follower of a job's live feed that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.gaps = 0

    def on_message(self, payload: bytes) -> None:
        """Keep it."""
        self.heard.append(payload)

    def on_gap(self) -> None:
        """Messages may have been lost."""
        self.gaps += 1

    @property
    def events(self) -> list[bytes]:
        """The events in it, without the marks of renewals."""
        lines = [line for payload in self.heard for line in payload.split(b"\n")]
        return [line for line in lines if not line.startswith(b"seen")]
