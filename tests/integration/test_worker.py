"""A worker in the test's own process: what each kind of processor leaves in its job's log."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json

from gateway.blobs import Blobs
from gateway.errors import Unavailable
from gateway.event_text import encode_snapshot_data
from gateway.protocol import TERMINAL, Event, State
from gateway.requests import JobOptions
from gateway.store import Claim, NewJob, Store, StoredFile
from processors import Context
from processors.processor import load_processors, processor
from processors.worker import Worker
from tests import worker_jobs
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import fold_log
from tests.jobs import submit as submit_to
from tests.worker_jobs import end_of, log_of

KINDS = load_processors(["tests.worker_kinds", "examples.word_count"])


@pytest.fixture(autouse=True)
def _no_defects_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What the runtime survives and only logs is a failed test here."""
    yield
    said = [record.getMessage() for record in caplog.get_records("call")]
    defects = ("can't be folded", "can't be written", "broke off", "failed; going on", "failed; trying on")
    assert [line for line in said if any(defect in line for defect in defects)] == []


def working(
    store: Store, blobs: Blobs, *kinds: str, concurrency: int = 4, **options: Any
) -> AbstractAsyncContextManager[Worker]:
    """A worker for the length of the block."""
    return worker_jobs.working(store, blobs, [KINDS[kind] for kind in kinds], concurrency=concurrency, **options)


async def submit(
    store: Store,
    kind: str,
    input_: dict[str, Any] | None = None,
    *,
    files: tuple[StoredFile, ...] = (),
    **options: Any,
) -> str:
    """Submit a job; returns its id."""
    job = await store.job_id("me", None)
    new = NewJob(KINDS[kind].document, "me", input_ or {}, JobOptions(**options), "fingerprint", files)
    return (await store.submit(job, new, keyed=False)).record.id


async def seen(store: Store, job: str, type_: str) -> Event:
    """Wait for an event of a type."""

    async def there() -> Event | None:
        return next((event for event in await log_of(store, job) if event.type == type_), None)

    event: Event = await wait_until(there, what=f"an event {type_}")
    return event


async def test_a_job_runs_and_its_log_is_whole(store: Store, blobs: Blobs) -> None:
    """Queued, started, succeeded; the result is in the last event."""
    async with working(store, blobs, "echo") as worker:
        job = await submit(store, "echo", {"text": "häns"})
        record = await end_of(store, job)

    events = await log_of(store, job)
    assert [event.type for event in events] == ["queued", "started", "succeeded"]
    assert events[1].data == {"worker": worker.name}
    assert events[2].data == {"result": {"text": "häns"}}
    assert events[2].terminal
    assert record.end_data() == events[2].data


async def test_the_readmes_example_works(store: Store, blobs: Blobs) -> None:
    """What a new user copies."""
    async with working(store, blobs, "word-count"):
        job = await submit(store, "word-count", {"text": "one fish\ntwo fish", "pause_seconds": 0})
        record = await end_of(store, job)

    assert record.end_data() == {"result": {"one": 1, "fish": 2, "two": 1}}
    assert record.progress == b'{"current":2,"total":2,"unit":"lines"}'
    assert len(await store.outputs(job)) == 2


async def test_a_kind_of_which_nobody_can_say_anything_keeps_no_other_waiting(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster the master of one kind's queue may be away while those of the others are there."""
    claim = store.claim

    async def claim_of_the_others(kind: str, worker: str, limit: int) -> list[Claim]:
        if kind == "echo":
            raise Unavailable("its master is away")
        return await claim(kind, worker, limit)

    monkeypatch.setattr(store, "claim", claim_of_the_others)
    async with working(store, blobs, "echo", "even"):
        assert (await end_of(store, await submit(store, "even", {"number": 2}))).state is State.SUCCEEDED


async def test_an_async_generators_values_become_outputs(store: Store, blobs: Blobs) -> None:
    """With the progress that was reported before each of them."""
    async with working(store, blobs, "count"):
        job = await submit(store, "count", {"to": 3})
        await end_of(store, job)

    events = await log_of(store, job)
    assert [event.type for event in events[2:]] == ["progress", "output"] * 3 + ["succeeded"]
    assert [event.data["value"] for event in events if event.type == "output"] == [{"number": i} for i in range(3)]
    assert [event.data["index"] for event in events if event.type == "output"] == ["0", "1", "2"]
    assert events[-1].data == {"result": None}


async def test_a_plain_function_reports_from_its_thread(store: Store, blobs: Blobs) -> None:
    """All that an async function can report, in the same order."""
    async with working(store, blobs, "thread"):
        job = await submit(store, "thread", {"to": 10_000})
        await end_of(store, job)

    events = await log_of(store, job)
    assert events[-1].data == {"result": f"thread {job}"}
    last = [event for event in events if event.type == "progress"][-1]
    assert last.data == {"current": 10_000, "total": 10_000}
    others = [event.type for event in events if event.type not in ("progress", "delta")]
    assert others == ["queued", "started", "output", "log", "thread.done", "succeeded"]
    assert "".join(event.data["text"] for event in events if event.type == "delta") == "ab"


async def test_bytes_that_a_plain_generator_yields_become_blobs(store: Store, blobs: Blobs) -> None:
    """A client gets a url, and the gateway finds the blob by attempt and index."""
    async with working(store, blobs, "thread-count"):
        job = await submit(store, "thread-count", {"to": 2})
        await end_of(store, job)

    outputs = [event for event in await log_of(store, job) if event.type == "output"]
    assert outputs[1].data == {
        "index": "1",
        "content_type": "application/octet-stream",
        "url": f"/v1/jobs/{job}/outputs/1",
        "size": 1,
    }
    assert await blobs.get(f"jobs/{job}/outputs/1-1") == b"\x01"


async def test_large_values_become_blobs(store: Store, blobs: Blobs) -> None:
    """The log holds references; a text keeps its own form."""
    size = 2 * 1024 * 1024
    async with working(store, blobs, "big"):
        job = await submit(store, "big", {"bytes": size})
        record = await end_of(store, job)

    outputs = {event.data["index"]: event.data for event in await log_of(store, job) if event.type == "output"}
    assert outputs["value"]["url"] == f"/v1/jobs/{job}/outputs/value"
    assert outputs["value"]["size"] == size + len('{"text":""}')
    assert await blobs.get(f"jobs/{job}/outputs/1-result.txt") == b"t" * size
    assert record.end_data() == {"result_url": f"/v1/jobs/{job}/result", "partial": True}
    assert record.result_blob == f"jobs/{job}/result-1"
    assert len(await blobs.get(record.result_blob)) == size + len('{"text":""}')


async def test_files_and_a_large_input_come_from_the_blobs(store: Store, blobs: Blobs) -> None:
    """A processor reads them whole or by a path."""
    await blobs.put("jobs/x/1", b"hello", max_bytes=None)
    async with working(store, blobs, "files"):
        job = await submit(store, "files", files=(StoredFile("../a.txt", "text/plain", 5, "jobs/x/1"),))
        record = await end_of(store, job)

    assert record.end_data() == {"result": [{"name": "../a.txt", "size": 5, "text": "hello"}]}


async def test_what_only_the_model_knows_is_rejected_by_field(store: Store, blobs: Blobs) -> None:
    """The gateway's schema can't say that a number is even."""
    async with working(store, blobs, "even"):
        job = await submit(store, "even", {"number": 3})
        record = await end_of(store, job)

    problem = record.end_data()["problem"]
    assert problem["code"] == "rejected"
    assert problem["errors"] == [{"field": "number", "message": "Value error, it is odd"}]


async def test_rejected_fails_at_once(store: Store, blobs: Blobs) -> None:
    """One attempt, its own code, and `partial` says that there is some text."""
    async with working(store, blobs, "failing"):
        job = await submit(store, "failing", {"how": "rejected"})
        record = await end_of(store, job)

    assert record.attempt == 1
    assert record.end_data()["problem"]["code"] == "no_such_page"
    assert record.end_data()["partial"] is True


@pytest.mark.usefixtures("early_looks")
async def test_an_error_is_tried_again_after_a_pause(store: Store, blobs: Blobs) -> None:
    """The second attempt is another attempt of the same log."""
    async with working(store, blobs, "failing"):
        job = await submit(store, "failing", {"how": "unexpected", "then": "succeed"})
        await end_of(store, job)

    events = await log_of(store, job)
    assert [event.type for event in events] == [
        *("queued", "started", "delta", "retrying"),
        *("started", "delta", "succeeded"),
    ]
    assert 0.5 <= events[3].data["delay_seconds"] <= 1
    assert "hunter2" not in str(events)
    assert events[4].attempt == 2


@pytest.mark.parametrize("how", ["retry", "processor_error", "unexpected", "cancelled", "exit", "wrong_type"])
@pytest.mark.usefixtures("early_looks")
async def test_failures_use_the_attempts_up(store: Store, blobs: Blobs, how: str) -> None:
    """After the kind's limit the job fails, and says what the last attempt failed of."""
    async with working(store, blobs, "failing"):
        job = await submit(store, "failing", {"how": how})
        record = await end_of(store, job)

    causes = {"retry": "retry_requested", "processor_error": "model_busy"}
    problem = record.end_data()["problem"]
    assert (problem["code"], problem["cause"]) == ("retries_exhausted", causes.get(how, "processor_error"))
    assert record.attempt == 2


async def test_a_jobs_attempts_are_those_that_its_kind_had_at_the_submit(store: Store, blobs: Blobs) -> None:
    """A look and a worker elsewhere know no other number: a newer release's would not be the same for all three."""
    async with working(store, blobs, "failing"):
        job = await store.job_id("me", None)
        kind = KINDS["failing"].document.model_copy(update={"max_attempts": 1})
        await store.submit(job, NewJob(kind, "me", {"how": "unexpected"}, JobOptions(), "fingerprint"), keyed=False)
        record = await end_of(store, job)

    assert (record.attempt, record.dead) == (1, True)


async def test_an_attempt_that_runs_too_long_fails(store: Store, blobs: Blobs) -> None:
    """Another one would, too."""
    async with working(store, blobs, "slow"):
        job = await submit(store, "slow")
        record = await end_of(store, job)

    assert record.end_data()["problem"]["code"] == "run_timeout"
    assert record.end_data()["partial"] is True
    assert record.attempt == 1


async def test_a_job_can_ask_for_its_own_time_out(store: Store, blobs: Blobs) -> None:
    """Shorter than its kind's."""
    async with working(store, blobs, "polite"):
        job = await submit(store, "polite", run_timeout_seconds=0.1)
        record = await end_of(store, job)

    assert record.end_data()["problem"]["code"] == "run_timeout"


async def test_a_thread_that_hangs_does_not_keep_its_job_open(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """The job fails after the grace; the place is free only when the thread has returned."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "stubborn", "echo", concurrency=1):
        job = await submit(store, "stubborn", {"gate": str(gate)}, run_timeout_seconds=0.1)
        record = await end_of(store, job)
        waiting = await submit(store, "echo")
        assert not (await store.job(waiting)).terminal
        gate.touch()
        await end_of(store, waiting)

    assert record.end_data()["problem"]["code"] == "run_timeout"
    assert [event.type for event in await log_of(store, job)][-2:] == ["log", "failed"]


@pytest.mark.parametrize("kind", ["gated", "polite"])
async def test_a_running_job_hears_of_its_cancel_at_once(
    valkey: str, prefix: str, blobs: Blobs, tmp_path: Path, kind: str
) -> None:
    """Over the live channel, long before the next renewal; a thread is told through its context."""
    store = await Store.connect(valkey, prefix=prefix, lease_seconds=300)
    async with working(store, blobs, kind):
        job = await submit(store, kind, {"gate": str(tmp_path / "never")})
        await seen(store, job, "output")
        await store.cancel(job, "me", "changed my mind")
        record = await end_of(store, job)

    assert record.state is State.CANCELLED
    assert record.end_data() == {"by": "me", "reason": "changed my mind"}
    assert [event.type for event in await log_of(store, job)][-2:] == ["cancel_requested", "cancelled"]
    await store.close()


@pytest.mark.lease(0.6)
async def test_a_thread_that_ignores_its_cancel_loses_its_lease(
    store: Store, blobs: Blobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then a look ends the job: it is cancelled, and the log tells why that took so long."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "stubborn"):
        job = await submit(store, "stubborn", {"gate": str(gate)})
        await seen(store, job, "output")
        await store.cancel(job, "me", "now")
        record = await end_of(store, job)
        gate.touch()

    events = await log_of(store, job)
    assert record.state is State.CANCELLED
    assert [event.type for event in events][-4:] == ["cancel_requested", "log", "log", "cancelled"]
    assert "still runs 0.2 s after" in events[-3].data["message"]
    assert "its lease is given up" in events[-2].data["message"]
    assert "its lease is given up" in caplog.text


async def test_an_async_function_that_swallows_its_cancel_is_told_again(store: Store, blobs: Blobs) -> None:
    """It gets `CancelledError` until it ends, and the log tells why that took so long."""
    async with working(store, blobs, "swallowing"):
        job = await submit(store, "swallowing", {"cancels": 2})
        await seen(store, job, "output")
        await store.cancel(job, "me", "now")
        record = await end_of(store, job)

    assert record.state is State.CANCELLED
    assert [event.type for event in await log_of(store, job)][-3:] == ["cancel_requested", "log", "cancelled"]


async def test_children_do_not_outlive_a_cancelled_job(store: Store, blobs: Blobs) -> None:
    """SIGTERM first, SIGKILL after the grace."""
    async with working(store, blobs, "parent"):
        job = await submit(store, "parent")
        pid = (await seen(store, job, "output")).data["value"]
        await store.cancel(job, "me", "now")
        record = await end_of(store, job)

    assert record.state is State.CANCELLED
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    messages = [event.data["message"] for event in await log_of(store, job) if event.type == "log"]
    assert messages[0] == "cancelled, but the child goes on"
    assert "1 of its child processes were killed" in messages[1]


async def test_a_queued_job_is_cancelled_and_never_begins(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """Also while the worker is busy with another one."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "gated", concurrency=1):
        first = await submit(store, "gated", {"gate": str(gate)})
        await seen(store, first, "output")
        second = await submit(store, "gated", {"gate": str(gate)})
        await store.cancel(second, "me", "no need")
        assert (await store.job(second)).state is State.CANCELLED
        gate.touch()
        await end_of(store, first)

    assert [event.type for event in await log_of(store, second)] == ["queued", "cancelled"]


async def test_a_job_is_cancelled_while_it_waits_for_its_next_attempt(store: Store, blobs: Blobs) -> None:
    """No attempt begins after that."""
    async with working(store, blobs, "failing"):
        job = await submit(store, "failing", {"how": "unexpected"})
        await seen(store, job, "retrying")
        await store.cancel(job, "me", "no need")
        record = await end_of(store, job)

    assert record.state is State.CANCELLED
    assert record.attempt == 1


async def test_a_stopping_worker_waits_for_its_attempts(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """What ends within the grace is not thrown away; nothing new is claimed meanwhile."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "gated", stop_grace_seconds=30) as worker:
        job = await submit(store, "gated", {"gate": str(gate)})
        await seen(store, job, "output")
        worker.stop()
        later = await submit(store, "gated", {"gate": str(gate)})
        gate.touch()
        record = await end_of(store, job)

    assert record.end_data() == {"result": {"attempt": 1, "found": []}}
    assert (await store.job(later)).state is State.QUEUED


async def test_a_stopping_worker_hands_its_jobs_back(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """The next worker takes them at once, and no attempt was burnt."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "gated"):
        job = await submit(store, "gated", {"gate": str(gate)})
        await seen(store, job, "output")

    record = await store.job(job)
    assert (record.state, record.failures) == (State.QUEUED, 0)
    gate.touch()
    async with working(store, blobs, "gated"):
        record = await end_of(store, job)

    events = await log_of(store, job)
    assert [event.type for event in events if event.type != "output"] == [
        *("queued", "started", "progress", "retrying"),
        *("started", "progress", "succeeded"),
    ]
    retrying = next(event for event in events if event.type == "retrying")
    assert retrying.data["problem"]["code"] == "worker_stopping"
    assert retrying.data["delay_seconds"] == 0
    assert record.end_data() == {"result": {"attempt": 2, "found": ["attempt-1"]}}


async def test_a_second_stop_does_not_wait(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """Who presses Ctrl-C twice means it."""
    async with working(store, blobs, "gated", stop_grace_seconds=600) as worker:
        job = await submit(store, "gated", {"gate": str(tmp_path / "never")})
        await seen(store, job, "output")
        worker.stop()
        worker.stop()

    assert (await store.job(job)).state is State.QUEUED


async def test_a_full_worker_leaves_jobs_in_the_queue(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """Another worker could have begun them."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "gated", concurrency=2):
        jobs = [await submit(store, "gated", {"gate": str(gate)}) for _ in range(5)]
        await seen(store, jobs[0], "output")
        await seen(store, jobs[1], "output")
        assert (await store.depths(["gated"]))["gated"] == (3, 2)
        gate.touch()
        for job in jobs:
            await end_of(store, job)


async def test_a_cap_holds_over_several_workers(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """Six jobs, two workers with four places each, two at once; an end anywhere lets the next one in."""
    gates = [tmp_path / str(i) for i in range(6)]
    async with working(store, blobs, "capped"), working(store, blobs, "capped"):
        jobs = [await submit(store, "capped", {"gate": str(gate)}) for gate in gates]
        most = 0
        for gate in gates:

            async def two_run() -> bool:
                nonlocal most
                records = await store.read_jobs(jobs)
                states = [record.state for record in records if record is not None]
                most = max(most, states.count(State.RUNNING))
                left = len(jobs) - sum(state in TERMINAL for state in states)
                return states.count(State.RUNNING) == min(2, left)

            await wait_until(two_run)
            # Jobs begin in their order, so one of the two that run waits for this gate.
            gate.touch()
        for job in jobs:
            await end_of(store, job)

    assert most == 2


async def test_a_kinds_own_limit_leaves_room_for_others(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """A model that fits into the memory once must not run twice."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "alone", "echo", concurrency=4):
        jobs = [await submit(store, "alone", {"gate": str(gate)}) for _ in range(2)]
        await seen(store, jobs[0], "output")
        await end_of(store, await submit(store, "echo"))
        assert (await store.depths(["alone"]))["alone"] == (1, 1)
        gate.touch()
        for job in jobs:
            await end_of(store, job)


@pytest.mark.parametrize("in_thread", [True, False])
async def test_a_kind_is_set_up_before_it_is_announced(store: Store, blobs: Blobs, in_thread: bool) -> None:
    """Once, whatever it takes; nobody submits to a worker that is still loading its model."""
    called: list[bool] = []
    loop = asyncio.get_running_loop()

    async def look() -> None:
        called.append("model" in await store.kinds())

    def look_from_a_thread() -> None:
        asyncio.run_coroutine_threadsafe(look(), loop).result()

    async def run(ctx: Context) -> None: ...

    setup = look_from_a_thread if in_thread else look
    kinds = {name: processor(name, setup=setup)(run) for name in ("model", "other-model")}
    worker = Worker(store, blobs, kinds, concurrency=1, stop_grace_seconds=0, max_inline_bytes=1024)
    running = asyncio.create_task(worker.run())
    await worker.ready.wait()
    worker.stop()
    await running

    assert called == [False]
    assert "model" in await store.kinds()


async def test_a_failed_set_up_ends_the_worker(store: Store, blobs: Blobs) -> None:
    """It must not take jobs that it can't do."""

    def setup() -> None:
        raise FileNotFoundError("model.onnx")

    async def run(ctx: Context) -> None: ...

    kinds = {"model": processor("model", setup=setup)(run)}
    worker = Worker(store, blobs, kinds, concurrency=1, stop_grace_seconds=0, max_inline_bytes=1024)

    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        await worker.run()
    assert "model" not in await store.kinds()


@pytest.mark.parametrize("in_thread", [True, False])
async def test_a_setup_ends_what_it_has_begun(store: Store, blobs: Blobs, in_thread: bool) -> None:
    """Once, after the last attempt; that one of them fails keeps none of the others from it."""
    done: list[str] = []

    async def lifespan() -> AsyncIterator[None]:
        done.append("loaded")
        yield
        done.append("closed")

    def lifespan_in_a_thread() -> Iterator[None]:
        done.append("loaded")
        yield
        done.append("closed")

    def fails_at_its_end() -> Iterator[None]:
        yield
        raise RuntimeError("no")

    async def run(ctx: Context) -> None:
        done.append("worked")

    setup = lifespan_in_a_thread if in_thread else lifespan
    kinds = {name: processor(name, setup=setup)(run) for name in ("model", "other-model")}
    kinds["broken"] = processor("broken", setup=fails_at_its_end)(run)
    worker = Worker(store, blobs, kinds, concurrency=1, stop_grace_seconds=5, max_inline_bytes=1024)
    running = asyncio.create_task(worker.run())
    await worker.ready.wait()
    job = (await submit_to(store, kinds["model"].document)).id
    await seen(store, job, "started")
    worker.stop()
    await running

    assert done == ["loaded", "worked", "closed"]


@pytest.mark.parametrize("in_thread", [True, False])
async def test_a_worker_that_is_being_set_up_can_be_stopped(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, in_thread: bool
) -> None:
    """It announces nothing; a thread that loads for ever is left behind, which ends the process the hard way."""
    monkeypatch.setattr("processors.worker._LET_GO_SECONDS", 0.1)
    begun, go = threading.Event(), threading.Event()

    async def load() -> None:
        begun.set()
        await asyncio.Event().wait()

    def load_in_a_thread() -> None:
        begun.set()
        assert go.wait(100)

    async def run(ctx: Context) -> None: ...

    kinds = {"model": processor("model", setup=load_in_a_thread if in_thread else load)(run)}
    worker = Worker(store, blobs, kinds, concurrency=1, stop_grace_seconds=0, max_inline_bytes=1024)
    running = asyncio.create_task(worker.run())
    await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)

    worker.stop()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await running
    go.set()

    assert worker.stuck == in_thread
    assert "model" not in await store.kinds()


async def test_many_jobs_of_one_kind_do_not_starve_another(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """With one place, kinds take turns."""
    gate = tmp_path / "gate"
    gate.touch()
    many = [await submit(store, "gated", {"gate": str(gate)}) for _ in range(12)]
    one = await submit(store, "echo")
    async with working(store, blobs, "gated", "echo", concurrency=1):
        record = await end_of(store, one)
        for job in many:
            await end_of(store, job)

    begun = [(await store.job(job)).started_ms or 0 for job in many]
    assert len([ms for ms in begun if ms < (record.started_ms or 0)]) <= 2


async def test_a_job_whose_events_redis_lost_starts_again(store: Store, blobs: Blobs, tmp_path: Path) -> None:
    """The attempt's numbers don't fit any more; that is no failure of its processor."""
    gate = tmp_path / "gate"
    async with working(store, blobs, "gated"):
        job = await submit(store, "gated", {"gate": str(gate)})
        await seen(store, job, "output")
        # As an older copy of the record would have it, after a failover.
        await store._client.hset(store._keys.record(job), "batch", 0)
        gate.touch()
        record = await end_of(store, job)

    assert (record.attempt, record.failures) == (2, 0)
    retrying = next(event for event in await log_of(store, job) if event.type == "retrying")
    assert retrying.data["problem"]["code"] == "events_lost"


@pytest.mark.lease(0.6)
async def test_a_worker_lets_go_of_a_job_that_is_not_its_own_any_more(
    store: Store, blobs: Blobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal tells it, also when its processor writes nothing."""
    async with working(store, blobs, "gated"):
        job = await submit(store, "gated", {"gate": str(tmp_path / "never")})
        await seen(store, job, "output")
        await store._client.hset(store._keys.record(job), "nonce", "another's")

        async def told() -> bool:
            return "not this attempt's any more" in caplog.text

        with caplog.at_level("INFO"):
            await wait_until(told)


@pytest.mark.parametrize("failures", [0, 1])
async def test_the_stored_fold_is_the_fold_of_the_log(store: Store, blobs: Blobs, failures: int) -> None:
    """Also of a later attempt's writer, which goes on from what an earlier one stored."""
    async with working(store, blobs, "chatty"):
        job = await submit(store, "chatty", {"lines": 400, "failures": failures})
        await end_of(store, job)

    stored = await store.fold(job)
    assert stored is not None
    cursor, text = stored
    folded = fold_log(job, [event for event in await log_of(store, job) if (event.id or 0) <= cursor.number])
    assert cursor.number > 500 * (failures + 1)
    assert from_json(text) == from_json(encode_snapshot_data(folded))


async def test_kinds_are_announced_and_stay_known(store: Store, blobs: Blobs) -> None:
    """A gateway validates by them also when no worker runs."""
    async with working(store, blobs, "even", "echo") as worker:
        [present] = await store.workers()
        assert present["worker"] == worker.name
        assert present["kinds"] == ["echo", "even"]

    assert set(await store.kinds()) == {"even", "echo"}
    assert await store.workers() == []


HEALTHY = {"is": "well"}


def look_after_the_device() -> None:
    """Raises while the device is gone, and says nothing while it hangs."""
    if HEALTHY["is"] == "gone":
        raise RuntimeError("the device is gone")
    while HEALTHY["is"] == "hanging":
        time.sleep(0.01)


@processor("needs_a_device", health=look_after_the_device)
async def needs_a_device(ctx: Context) -> str:
    """Works on the device."""
    return "done"


@pytest.mark.parametrize("how", ["gone", "hanging"])
async def test_an_unwell_kind_is_left_alone_until_it_is_well(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its jobs wait, its worker doesn't count, and the other kinds of the worker go on."""
    monkeypatch.setattr("processors.worker.HEALTH_SECONDS", 0.05)
    monkeypatch.setattr("processors.worker.PRESENCE_SECONDS", 0.05)
    monkeypatch.setitem(KINDS, "needs_a_device", needs_a_device)
    monkeypatch.setitem(HEALTHY, "is", how)

    async def serving() -> list[str]:
        return sorted({kind for worker in await store.workers() for kind in worker["kinds"]})

    async with working(store, blobs, "needs_a_device", "word-count"):
        await wait_until(lambda: _is(serving(), ["word-count"]))
        job = await submit(store, "needs_a_device")
        await end_of(store, await submit(store, "word-count", {"text": "a b"}))
        assert (await store.job(job)).state is State.QUEUED

        monkeypatch.setitem(HEALTHY, "is", "well")
        assert (await end_of(store, job)).end_data() == {"result": "done"}


async def test_a_health_check_that_hangs_does_not_hold_up_the_stop(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is left behind, and counted."""
    monkeypatch.setattr("processors.worker._LET_GO_SECONDS", 0.1)
    monkeypatch.setitem(KINDS, "needs_a_device", needs_a_device)
    monkeypatch.setitem(HEALTHY, "is", "hanging")

    async with working(store, blobs, "needs_a_device") as worker:
        await wait_until(lambda: worker._asked)

    monkeypatch.setitem(HEALTHY, "is", "well")
    assert worker.stuck == 1


async def _is(answer: Any, expected: object) -> bool:
    return bool(await answer == expected)
