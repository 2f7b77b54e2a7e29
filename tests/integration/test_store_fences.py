"""Each check in a script, by the one thing that goes wrong without it; `make mutants` takes them out one by one."""

from __future__ import annotations

import pytest

from gateway.documents import KindDocument
from gateway.errors import LeaseLost
from gateway.event_text import encode_event_tail
from gateway.protocol import START, State
from gateway.store import Lease, Store
from tests.faults import wait_until
from tests.jobs import Ear, begin, end, event, new_job, submit

KIND = KindDocument(kind="echo")


async def types_of(store: Store, job: str) -> list[str]:
    """The types of a job's events."""
    return [entry.type.decode() for entry in (await store.events(job, START)).entries]


async def give_back(store: Store, lease: Lease) -> None:
    """End an attempt with a retry, without leaving."""
    await store.retry(lease, 1, [], {"code": "worker_stopping"}, 0, counts=False)


# --- who may write ------------------------------------------------------------------------------------------------


async def test_a_writer_that_says_another_attempt_is_refused(store: Store) -> None:
    """The attempt is checked by itself: a slot restored from an older copy may know the nonce."""
    await submit(store, KIND)
    lease = await begin(store, "echo")

    with pytest.raises(LeaseLost):
        await store.append(Lease(lease.job, lease.kind, lease.attempt + 1, lease.nonce), 1, [event("log")])


async def test_nobody_writes_to_a_job_that_nobody_runs(store: Store) -> None:
    """The state is checked by itself: an ended or waiting job's nonce is empty, and so may be a broken writer's."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    nobody = Lease(lease.job, lease.kind, lease.attempt, "")
    await give_back(store, lease)

    with pytest.raises(LeaseLost):
        await store.append(nobody, 2, [event("log")])
    await store.leave(lease, record, retry_after_seconds=0)
    again = await begin(store, "echo")
    await end(store, again, batch=1)
    with pytest.raises(LeaseLost):
        await store.append(Lease(again.job, again.kind, again.attempt, ""), 2, [event("log")])


async def test_a_refused_batch_reaches_no_listener(store: Store) -> None:
    """What is not in the log was never published: the live channel brings nothing that a replay wouldn't."""
    record = await submit(store, KIND)
    old = await begin(store, "echo", "old")
    await give_back(store, old)
    await store.leave(old, record, retry_after_seconds=0)
    new = await begin(store, "echo", "new")
    ear = Ear()
    await store.feed.follow(record.id, ear)

    with pytest.raises(LeaseLost):
        await store.append(old, 2, [event("log", {"message": "I am back"})])
    await store.append(new, 1, [event("log", {"message": "mine"})])

    await wait_until(lambda: any(b"mine" in payload for payload in ear.heard))
    assert not any(b"I am back" in payload for payload in ear.heard)
    store.feed.unfollow(record.id, ear)


# --- calls that are sent twice ------------------------------------------------------------------------------------


async def test_a_claim_that_is_sent_twice_takes_no_second_job(store: Store) -> None:
    """The reply was lost: the repeat gets the same jobs."""
    for _ in range(2):
        await submit(store, KIND)
    keys = [*store._keys.kind("echo"), store._keys.claims("echo", "w")]

    first = await store._run("claim", keys, (7, 1, 600))
    again = await store._run("claim", keys, (7, 1, 600))

    assert first == again
    assert await store.depths(["echo"]) == {"echo": (1, 1)}


async def test_a_begin_that_is_sent_twice_is_one_attempt(store: Store) -> None:
    """The nonce tells the repeat from another worker."""
    record = await submit(store, KIND)
    await store.claim("echo", "w", 1)
    arguments = (record.id, "w", "nonce", 600, 15_000, encode_event_tail("started", {"worker": "w"}))

    answers = [(await store._run("begin", store._keys.job(record.id), arguments))[0] for _ in range(2)]

    assert answers == [b"begun", b"begun"]
    assert await types_of(store, record.id) == ["queued", "started"]


async def test_a_submits_input_does_not_come_back(store: Store) -> None:
    """Who submits has it, and it may be the largest part of the record by far."""
    job = await store.job_id("me", None)
    new = new_job(KIND, input_={"text": "x" * 1000})
    arguments = (job, "one", new.fingerprint, encode_event_tail("queued"), *store._fields(new))

    for _ in range(2):
        _, flat = await store._run("create", store._keys.job(job), arguments)
        assert sum(map(len, flat)) < 1000
    assert len(await store.input_of(job)) > 1000


async def test_a_create_that_is_sent_twice_is_not_called_a_replay(store: Store) -> None:
    """Its nonce tells the resend from another submit with the same key."""
    job = await store.job_id("me", "key")
    new = new_job(KIND)

    def arguments(nonce: str) -> tuple[object, ...]:
        return (job, nonce, new.fingerprint, encode_event_tail("queued"), *store._fields(new))

    answers = [
        (await store._run("create", store._keys.job(job), arguments(nonce)))[0] for nonce in ("one", "one", "two")
    ]

    assert answers == [b"created", b"created", b"replayed"]
    assert await types_of(store, job) == ["queued"]


# --- pointers -----------------------------------------------------------------------------------------------------


async def test_a_reservation_is_due_before_there_is_a_job(store: Store) -> None:
    """Whoever dies after it leaves something to be looked at."""
    keys = store._keys.kind("echo")
    await store._run("reserve", keys, ("a" * 26, "me", 1, 1, 30_000, 1))

    assert await store._client.zscore(keys[1], "a" * 26)


async def test_a_look_that_was_overtaken_by_a_claim_moves_nothing(store: Store) -> None:
    """Its token is not the due entry's any more: else the job would be in the queue while somebody has it in hand."""
    record = await submit(store, KIND)
    keys = store._keys.kind("echo")
    await store._client.zadd(keys[1], {record.id: 0})
    _, token = await store._run("take", keys, (64, 2_000))
    await store.claim("echo", "w", 1)

    settled = await store._settle("echo", record.id, token.decode(), "queue", 0, priority="normal", owner="me")

    assert not settled
    assert await store.depths(["echo"]) == {"echo": (0, 1)}


async def test_a_worker_that_leaves_late_does_not_free_anothers_place(store: Store) -> None:
    """Else a kind's cap would be overrun."""
    kind = KindDocument(kind="echo", max_running=1)
    await store.register_kind(kind)
    record = await submit(store, kind)
    late = await begin(store, "echo", "late")
    await give_back(store, late)
    await store._client.zrem(store._keys.kind("echo")[2], record.id)
    await store._client.zadd(store._keys.kind("echo")[1], {record.id: 0})
    await store.look(["echo"])
    await begin(store, "echo", "next")
    await submit(store, kind)

    await store.leave(late, record)

    assert await store.claim("echo", "third", 1) == []


async def test_a_second_pointer_to_a_running_job_begins_nothing(store: Store) -> None:
    """Pointers may be double: who has the job keeps it, also after its lease, until a look takes it away."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store._client.hset(store._keys.record(record.id), "lease_until", 1)
    await store._client.zadd(store._keys.kind("echo")[0], {f"{record.id}|normal|me": 0})

    [claim] = await store.claim("echo", "other", 1)
    begun = await store.begin(claim, "other")

    assert begun.outcome == "held"
    await end(store, lease, batch=1)
    assert await types_of(store, record.id) == ["queued", "started", "succeeded"]


@pytest.mark.parametrize("leaves", ["to wait for a child", "for good"])
async def test_a_hold_that_comes_late_takes_no_place(store: Store, leaves: str) -> None:
    """It was on its way while its attempt left: nobody would take the job out of hand before its lease is over."""
    record = await submit(store, KIND)
    [claim] = await store.claim("echo", "worker", 1)
    lease = (await store.begin(claim, "worker")).lease
    assert lease is not None

    if leaves == "for good":
        await end(store, lease, batch=1)
    else:
        await store.wait_for_child(lease, record, "c" * 26)
    await store.hold(claim, lease)

    assert await store.depths(["echo"]) == {"echo": (0, 0)}


@pytest.mark.parametrize(("found", "place"), [("running", 0), ("aside", 1)])
async def test_a_look_that_comes_late_leaves_a_place_as_it_is(store: Store, found: str, place: int) -> None:
    """It has judged the job, and before it says so the job leaves its place, or has it again."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    if found == "aside":
        await store.wait_for_child(lease, record, "c" * 26)
    look = str(await store._client.zscore(store._keys.kind("echo")[1], record.id))

    if found == "aside":
        assert await store.go_on(lease)
    else:
        await store.wait_for_child(lease, record, "c" * 26)
    settled = await store._settle("echo", record.id, look, found, 60_000, attempt=lease.attempt)

    assert not settled
    assert await store.depths(["echo"]) == {"echo": (0, place)}


async def test_a_replayed_submit_of_a_job_in_hand_queues_nothing(store: Store) -> None:
    """A replay does all the steps again, and the last one sees that there is nothing to do."""
    job = await store.job_id("me", "key")
    await store.submit(job, new_job(KIND), keyed=True)
    await store.claim("echo", "w", 1)

    assert (await store.submit(job, new_job(KIND), keyed=True)).replayed

    assert await store.depths(["echo"]) == {"echo": (0, 1)}


async def test_a_cancel_after_the_end_changes_nothing(store: Store) -> None:
    """There is one end."""
    record = await submit(store, KIND)
    ended = await end(store, await begin(store, "echo"), batch=1)

    again = await store.cancel(record.id, "me", "too late")

    assert (again.state, again.last, again.cancel_by) == (State.SUCCEEDED, ended.last, None)
