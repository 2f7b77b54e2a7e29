"""The promises, checked after every step of random histories: submits, crashes, takeovers, cancels, lost pointers,
kinds that are paused, and listeners that come and go.

Hypothesis draws the histories, a real server runs them. Time passes when a rule says so: leases of crashed workers are
put into the past, and what is due is made due now.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic_core import from_json

from gateway.documents import KindDocument
from gateway.errors import EventsLost, KeyReused, LeaseLost
from gateway.event_text import decode_event, encode_event_tail
from gateway.protocol import START, TERMINAL, TERMINAL_TYPES, Cursor, State
from gateway.requests import JobOptions
from gateway.store import Claim, JobRecord, Lease, Store
from gateway.store.jobs import encode_id
from tests.jobs import event, fold_log, new_job

T = TypeVar("T")
pytestmark = pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True)
KIND = KindDocument(kind="machine", max_attempts=3)
ALONE_ENDS = JobOptions(on_disconnect="cancel", disconnect_grace_seconds=600)
# More histories, drawn anew each time: OUTLAST_EXAMPLES=1000 pytest tests/integration/test_store_machine.py
EXAMPLES = int(os.environ.get("OUTLAST_EXAMPLES", "40"))


@dataclass
class Attempt:
    """A worker's view of a job in hand."""

    lease: Lease
    record: JobRecord
    batch: int = 0
    crashed: bool = False
    over: bool = False
    rewound: bool = False
    """Whether Redis lost some of what it had acknowledged to it: it may hear `gap`, or find that it never began."""


@dataclass
class Listener:
    """Somebody's place in a job's log, and the texts that they were given since the start or the last `reset`."""

    job: str
    cursor: Cursor = START
    heard: list[bytes] = field(default_factory=list)


@dataclass
class Accepted:
    """A job that got its 202."""

    key: str | None
    numbers: list[int] = field(default_factory=list)
    alone_ends: bool = False
    """Whether it is to be cancelled when nobody listens."""
    marked_by: set[str] = field(default_factory=set)
    """The gateways that serve it to somebody now."""
    was_alone: bool = False
    """Whether nobody has listened for longer than its grace, and nobody has come back since."""


class Machine(RuleBasedStateMachine):
    """Submitters, workers and looks, any of which may stop between two steps."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = self.run(Store.connect(url, prefix="m" + secrets.token_hex(4), lease_seconds=600))
        self.run(self.store.register_kind(KIND))
        self.accepted: dict[str, Accepted] = {}
        self.attempts: list[Attempt] = []
        self.keys = self.store._keys.kind(KIND.kind)
        self.copy: dict[str, bytes | None] = {}
        self.job_copies: dict[str, dict[str, tuple[bytes | None, int]]] = {}
        self.listeners: list[Listener] = []
        self.made = 0
        self.paused = self.paused_in_copy = False

    def _new_id(self, owner: str, key: str | None) -> str:
        """Ids that depend on the history alone: a failing one must fail again to be made smaller."""
        self.made += key is None
        return encode_id(hashlib.sha256(f"{owner}:{key}:{self.made if key is None else ''}".encode()).digest())

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(alone_end=st.lists(st.booleans(), min_size=2, max_size=4))
    def there_is_work(self, alone_end: list[bool]) -> None:
        """A history without jobs has little to show."""
        for alone_ends in alone_end:
            self.submit(None, "ann", alone_ends)

    # --- submitting -------------------------------------------------------------------------------------------

    @rule(key=st.none() | st.sampled_from("abcd"), owner=st.sampled_from(["ann", "bob"]), alone_ends=st.booleans())
    def submit(self, key: str | None, owner: str, alone_ends: bool) -> None:
        """A submit, or the automatic retry of one: the same key is the same job."""
        job = self._new_id(owner, key)
        new = new_job(KIND, owner=owner, options=ALONE_ENDS if alone_ends else None)
        submitted = self.run(self.store.submit(job, new, keyed=key is not None))
        assert submitted.replayed == (job in self.accepted)
        self.accepted.setdefault(job, Accepted(key, alone_ends=alone_ends))

    @rule(owner=st.sampled_from(["ann", "bob"]), steps=st.integers(1, 2))
    def submitter_dies(self, owner: str, steps: int) -> None:
        """The gateway stops after `reserve`, or after `create`: the second one made a job that must end."""
        job = self._new_id(owner, None)
        self.run(self.store._run("reserve", self.keys, (job, owner, 1000, 1000, 30_000, 1000)))
        if steps == 2:
            new = new_job(KIND, owner=owner)
            fields = self.store._fields(new)
            arguments = (job, "nonce", new.fingerprint, encode_event_tail("queued"), *fields)
            assert self.run(self.store._run("create", self.store._keys.job(job), arguments))[0] == b"created"
            self.accepted[job] = Accepted(None)

    @precondition(lambda self: any(job.key for job in self.accepted.values()))
    @rule(data=st.data())
    def key_reused(self, data: st.DataObject) -> None:
        """The same key with another body changes nothing."""
        job = data.draw(st.sampled_from([job for job, one in self.accepted.items() if one.key]))
        with pytest.raises(KeyReused):
            self.run(self.store.submit(job, new_job(KIND, fingerprint="other"), keyed=True))

    # --- working ----------------------------------------------------------------------------------------------

    def claim(self, limit: int) -> None:
        """A worker claims and begins."""
        for claim in self._claim("worker", limit):
            self._begin(claim)

    # Twice, so that a third of all histories is not about jobs that nobody begins.
    claim_one = rule(limit=st.just(1))(claim)
    claim_some = rule(limit=st.integers(1, 3))(claim)

    def _claim(self, worker: str, limit: int) -> list[Claim]:
        claims = self.run(self.store.claim(KIND.kind, worker, limit))
        assert not (claims and self.paused), "claimed while its kind is paused"
        return claims

    def _begin(self, claim: Claim, *, hold: bool = True) -> Attempt | None:
        begun = self.run(self.store.begin(claim, "worker"))
        if begun.lease is None or begun.record is None:
            return None
        attempt = Attempt(begun.lease, begun.record)
        self.attempts.append(attempt)
        if hold:
            self.run(self.store.hold(claim, begun.lease))
        return attempt

    @rule(begin=st.booleans())
    def worker_dies_early(self, begin: bool) -> None:
        """A worker stops between claim and begin, or between begin and hold."""
        for claim in self._claim("dying", 1):
            if begin and (attempt := self._begin(claim, hold=False)) is not None:
                attempt.crashed = True

    def _draw(self, data: st.DataObject) -> Attempt:
        return data.draw(st.sampled_from(self.attempts))

    def _holds(self, attempt: Attempt) -> bool:
        fields = self.run(self._fields_of(attempt.lease.job, "state", "attempt", "nonce"))
        return not attempt.over and fields == ["running", str(attempt.lease.attempt), attempt.lease.nonce]

    async def _fields_of(self, job: str, *names: str) -> list[str]:
        values = await self.store._client.hmget(self.store._keys.record(job), *names)
        return [(value or b"").decode() for value in values]

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), count=st.integers(0, 3), twice=st.booleans(), ending=st.sampled_from(["", "", "end", "fail"]))
    def append(self, data: st.DataObject, count: int, twice: bool, ending: str) -> None:
        """An attempt writes; if it has lost its job, it must be refused, also after it was thought dead."""
        attempt = self._draw(data)
        holds = self._holds(attempt)
        events = [event("log", {"message": "m"})] * count
        if ending == "end":
            events.append(event("succeeded", {"result": 1}))
        elif ending == "fail":
            events.append(event("failed", {"problem": {"code": "x"}, "partial": False}))
        before = self.run(self.store.job(attempt.lease.job)).last
        try:
            first = self.run(self.store.append(attempt.lease, attempt.batch + 1, events))
        except (LeaseLost, EventsLost):
            assert not holds or attempt.rewound
            assert self.run(self.store.job(attempt.lease.job)).last == before
            return
        assert holds
        attempt.batch += 1
        if twice:
            assert self.run(self.store.append(attempt.lease, attempt.batch, events)) == first
        if ending:
            attempt.over = True
            if not attempt.crashed:
                self.run(self.store.leave(attempt.lease, attempt.record))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), counts=st.booleans(), leaves=st.booleans(), twice=st.booleans())
    def give_back(self, data: st.DataObject, counts: bool, leaves: bool, twice: bool) -> None:
        """A retry or a release, maybe sent again after a lost reply; the worker may die before it has left."""
        attempt = self._draw(data)
        holds = self._holds(attempt)
        try:
            for _ in range(1 + twice):
                self.run(self.store.retry(attempt.lease, attempt.batch + 1, [], {"code": "x"}, 0, counts=counts))
        except (LeaseLost, EventsLost):
            assert not holds or attempt.rewound
            return
        assert holds
        attempt.batch += 1
        attempt.over = True
        if leaves:
            self.run(self.store.leave(attempt.lease, attempt.record, retry_after_seconds=0))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def late_leave(self, data: st.DataObject) -> None:
        """A worker that was paused leaves long after another has the job."""
        attempt = self._draw(data)
        if attempt.over or not self._holds(attempt):
            self.run(self.store.leave(attempt.lease, attempt.record))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A worker dies or is paused: it renews no more, and may wake up later."""
        self._draw(data).crashed = True

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Anybody may ask, any time, any number of times."""
        self.run(self.store.cancel(data.draw(st.sampled_from(list(self.accepted))), "ann", "enough"))

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        """An operator stops the kind: nothing is claimed. Or lets it go on: then waiting jobs ring for a worker."""
        self.run(self.store.pause(KIND.kind, paused))
        self.paused = paused
        if paused:
            self.claim(1)
            # Idle workers have heard all that rang before.
            self.run(self._hear_rings())
        waiting, rings = self.run(self._waiting())
        assert paused or not waiting or rings

    async def _hear_rings(self) -> None:
        await self.store._client.delete(self.keys[4])

    async def _waiting(self) -> tuple[int, int]:
        return await self.store._client.zcard(self.keys[0]), await self.store._client.llen(self.keys[4])

    # --- what happens by itself -------------------------------------------------------------------------------

    @rule()
    def time_passes(self) -> None:
        """Leases of crashed workers run out, and everything due is due now."""
        self.run(self._pass_time())

    async def _pass_time(self) -> None:
        client = self.store._client
        for attempt in self.attempts:
            name = self.store._keys.record(attempt.lease.job)
            nonce = (await client.hget(name, "nonce") or b"").decode()
            if attempt.crashed and nonce == attempt.lease.nonce:
                await client.hset(name, "lease_until", 1)
        for job in await client.zrange(self.keys[1], 0, -1):
            await client.zadd(self.keys[1], {job: 0})

    @rule(times=st.integers(1, 3))
    def look(self, times: int) -> None:
        """Lookers look, several at once."""

        async def all_at_once() -> None:
            await asyncio.gather(*(self.store.look([KIND.kind]) for _ in range(times)))

        self.run(all_at_once())

    @rule()
    def keep_a_copy(self) -> None:
        """What a replica has of the kind's slot."""

        async def copy() -> None:
            self.copy = {key: await self.store._client.dump(key) for key in self.keys}

        self.run(copy())
        self.paused_in_copy = self.paused

    @precondition(lambda self: self.copy)
    @rule()
    def fail_over(self) -> None:
        """The kind's slot comes back as it was a while ago; a sweep finds open jobs that it doesn't know."""

        async def restore() -> None:
            for key, value in self.copy.items():
                await self.store._client.delete(key)
                if value is not None:
                    await self.store._client.restore(key, 0, value)
            await self.store._client.delete(self.store._keys.sweeper)
            await self.store.sweep()

        self.run(restore())
        self.paused = self.paused_in_copy

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def keep_a_copy_of_a_job(self, data: st.DataObject) -> None:
        """What a replica has of a job's slot."""
        job = data.draw(st.sampled_from(list(self.accepted)))

        async def copy() -> None:
            client = self.store._client
            keys = self.store._keys.job(job)[:6]
            self.job_copies[job] = {key: (await client.dump(key), max(0, await client.pttl(key))) for key in keys}

        self.run(copy())

    @precondition(lambda self: self.job_copies)
    @rule(data=st.data())
    def a_job_fails_over(self, data: st.DataObject) -> None:
        """A job's slot comes back as it was a while ago: its newest events are lost, its numbers are used again."""
        job = data.draw(st.sampled_from(list(self.job_copies)))

        async def restore() -> None:
            client = self.store._client
            for key, (value, ttl) in self.job_copies[job].items():
                await client.delete(key)
                if value is not None:
                    await client.restore(key, ttl, value)
            await client.delete(self.store._keys.sweeper)
            await self.store.sweep()
            # An event's time is its content's mark: one that takes a lost one's place is not of the same millisecond.
            await asyncio.sleep(0.002)

        self.run(restore())
        accepted = self.accepted[job]
        accepted.numbers = []
        # Gateways renew their marks before anybody is judged again; that somebody came and left may be lost for good.
        for gateway in accepted.marked_by:
            self.run(self.store.mark(job, gateway, 600))
        accepted.was_alone = accepted.was_alone or not accepted.marked_by
        for attempt in self.attempts:
            if attempt.lease.job == job:
                attempt.rewound = attempt.crashed = True

    # --- listening --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        """Somebody begins to listen."""
        self.listeners.append(Listener(data.draw(st.sampled_from(list(self.accepted)))))

    @precondition(lambda self: self.listeners)
    @rule(data=st.data(), limit=st.integers(1, 4))
    def come_back(self, data: st.DataObject, limit: int) -> None:
        """A listener returns with its cursor, and gets what follows, or is told that it can't be spliced."""
        self._read_on(data.draw(st.sampled_from(self.listeners)), limit)

    def _read_on(self, listener: Listener, limit: int) -> None:
        page = self.run(self.store.events(listener.job, listener.cursor, limit))
        log = [entry.text for entry in self.run(self.store.events(listener.job, START)).entries]
        if page.broken:
            assert listener.heard != log[: len(listener.heard)], "told of a break where there is none"
            listener.heard, listener.cursor = [], START
            return
        listener.heard += [entry.text for entry in page.entries]
        listener.cursor = page.entries[-1].cursor if page.entries else listener.cursor
        assert listener.heard == log[: len(listener.heard)], "spliced"

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), gateway=st.sampled_from(["one", "two"]), comes=st.booleans())
    def gateway_marks(self, data: st.DataObject, gateway: str, comes: bool) -> None:
        """A gateway begins to serve a job to somebody, or its last listener has left it."""
        job = data.draw(st.sampled_from(list(self.accepted)))
        accepted = self.accepted[job]
        if not comes and gateway not in accepted.marked_by:
            return
        self.run(self.store.mark(job, gateway, 600 if comes else 0))
        (accepted.marked_by.add if comes else accepted.marked_by.discard)(gateway)
        if self.run(self._fields_of(job, "cancel_by")) != ["outlast"]:
            accepted.was_alone = False

    @rule()
    def a_grace_passes(self) -> None:
        """All jobs are old; who has no listener now has had none for long: a look asks for that job's end.

        Also at a paused kind.
        """
        alone = [job for job, one in self.accepted.items() if one.alone_ends and not one.marked_by]
        for job in alone:
            self.accepted[job].was_alone = True

        async def pass_and_look() -> None:
            client, keys = self.store._client, self.store._keys
            for job in self.accepted:
                await client.hset(keys.record(job), "created", 1)
            for job in alone:
                # 5 listeners: who -> when the mark ends.
                await client.delete(keys.job(job)[4])
            await self._pass_time()
            await self.store.look([KIND.kind])

        self.run(pass_and_look())
        for job in alone:
            state, asked = self.run(self._fields_of(job, "state", "cancel_by"))
            assert asked or State(state) in TERMINAL, f"{job} goes on for nobody"

    # --- what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def every_log_is_whole(self) -> None:
        """Numbers 1..n, at most one end and nothing after it, attempts in order, and the record says the same."""
        for job, accepted in self.accepted.items():
            page = self.run(self.store.events(job, START))
            events = [decode_event(entry.text) for entry in page.entries]
            assert [one.id for one in events] == list(range(1, len(events) + 1))
            assert accepted.numbers == [one.id for one in events][: len(accepted.numbers)]
            accepted.numbers = [one.id for one in events if one.id is not None]
            ends = [one for one in events if one.type in TERMINAL_TYPES]
            assert len(ends) <= 1
            assert not ends or (events[-1] is ends[0] and ends[0].terminal)
            tries = [one.attempt or 0 for one in events]
            assert tries == sorted(tries)
            record = self.run(self.store.job(job))
            # The fold refuses every change that the transition table doesn't have.
            fold = fold_log(job, events)
            assert fold.state == record.state
            assert fold.attempt == record.attempt

    @invariant()
    def the_living_keep_their_jobs(self) -> None:
        """No look, claim or failover of pointers takes a job from a worker that renews."""
        for attempt in self.attempts:
            assert attempt.crashed or attempt.over or self._holds(attempt)

    @invariant()
    def listeners_keep_their_jobs(self) -> None:
        """Only a job that asked for it is ended for want of listeners, and only if nobody has listened for long."""
        for job, asked in zip(self.accepted, self.run(self._asked_by()), strict=True):
            accepted = self.accepted[job]
            assert asked != b"outlast" or (accepted.alone_ends and accepted.was_alone)

    async def _asked_by(self) -> list[bytes | None]:
        client, name = self.store._client, self.store._keys.record
        return list(await asyncio.gather(*(client.hget(name(job), "cancel_by") for job in self.accepted)))

    def teardown(self) -> None:
        """The kind goes on, and everybody dies; one good worker and the looks bring every job to its one end."""
        for attempt in self.attempts:
            attempt.crashed = True
        try:
            self.pause(False)
            self.run(self._finish())
            self.every_log_is_whole()
            for listener in self.listeners:
                for _ in range(2):
                    self._read_on(listener, 1000)
                assert decode_event(listener.heard[-1]).terminal
            for job in self.accepted:
                assert self.run(self.store.job(job)).terminal, f"{job} is stuck"
            counts = self.run(self.store._client.hgetall(self.keys[6]))
            assert all(int(count) == 0 for count in counts.values()), counts
        finally:
            self.run(self._clean())
            self.loop.close()

    async def _finish(self) -> None:
        for _ in range(60):
            await self._pass_time()
            await self.store.look([KIND.kind])
            for claim in await self.store.claim(KIND.kind, "good", 100):
                begun = await self.store.begin(claim, "good")
                if begun.lease is not None and begun.record is not None:
                    await self.store.append(begun.lease, 1, [event("succeeded", {"result": 1})])
                    await self.store.leave(begun.lease, begun.record)
            records = await self.store.read_jobs(list(self.accepted))
            if all(record is not None and record.terminal for record in records):
                return

    async def _clean(self) -> None:
        for server in self.store._client.servers():
            async for key in server.scan_iter(f"{self.store._keys.prefix}:*"):
                await server.delete(key)
        await self.store.close()


@pytest.mark.timeout(300)
def test_promises_hold_in_random_histories(redis_url: str) -> None:
    """Nothing lost, nothing twice, one end each, whoever dies at whatever step."""
    run_state_machine_as_test(
        lambda: Machine(redis_url),  # type: ignore[arg-type]  # any factory will do, its type says a class
        settings=settings(
            # The same scripts run in a cluster: there it is about where they are sent.
            max_examples=EXAMPLES if redis_url.startswith("unix") else EXAMPLES // 4,
            stateful_step_count=40,
            deadline=None,
            derandomize="OUTLAST_EXAMPLES" not in os.environ,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_the_data_of_an_event_is_cut_out_of_its_tail_exactly(redis_url: str) -> None:
    """The record's `progress` and `end` are the events' own data, also where they contain the marker."""
    machine = Machine(redis_url)
    try:
        machine.submit(None, "ann", False)
        machine.claim(1)
        attempt = machine.attempts[0]
        tricky = {"message": '"data":{}', "deep": {"data": {"x": [1, 2]}}}
        machine.run(machine.store.append(attempt.lease, 1, [event("progress", tricky)]))
        assert from_json(machine.run(machine.store.job(attempt.lease.job)).progress or b"") == tricky
    finally:
        machine.teardown()
