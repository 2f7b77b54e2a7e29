"""Functions that run in child processes: the same reports and endings, and nothing that can't be stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.blobs import Blobs
from gateway.errors import ConfigurationError
from gateway.event_text import decode_event
from gateway.protocol import START, Event, State
from gateway.requests import JobOptions
from gateway.store import NewJob, Store, StoredFile
from processors import ProcessorError, processor
from processors.process import _Child as Child
from processors.processor import load_processors
from processors.worker import Worker
from tests.faults import wait_until
from tests.process_kinds import in_process
from tests.processes import runs
from tests.worker_jobs import end_of, working
from tests.worker_process import worker_process

KINDS = load_processors(["tests.process_kinds"])


@pytest.fixture
async def worker(request: pytest.FixtureRequest, store: Store, blobs: Blobs) -> AsyncIterator[Worker]:
    """A worker with one place, so that jobs come one after another; the kind is `in_process`, or a test's `kind`."""
    of = getattr(request.node, "callspec", None)
    kind = of.params.get("kind", "in_process") if of else "in_process"
    async with working(store, blobs, {KINDS[kind], KINDS["fails_as_a_step"]}) as worker:
        yield worker


async def submit(
    store: Store,
    kind: str,
    options: JobOptions | None = None,
    files: tuple[StoredFile, ...] = (),
    **input_: Any,
) -> str:
    """Submit a job; returns its id."""
    new = NewJob(KINDS[kind].document, "me", input_, options or JobOptions(), "fingerprint", files)
    return (await store.submit(await store.job_id("me", None), new, keyed=False)).record.id


async def output(store: Store, job: str, index: str) -> Any:
    """An output's value, once it is there."""

    async def there() -> Event | None:
        text = await store.output(job, index)
        return None if text is None else decode_event(text)

    event: Event = await wait_until(there)
    return event.data.get("value")


async def test_a_child_does_one_job_after_another_and_loads_once(worker: Worker, store: Store) -> None:
    """It is another process, it reports as any other function, and its setup isn't repeated."""
    results = [(await end_of(store, await submit(store, "in_process", how="well"))).end_data() for _ in range(2)]

    pid = results[0]["result"]["pid"]
    assert pid != os.getpid()
    assert results == [{"result": {"pid": pid, "loaded": [pid]}}] * 2


async def test_reports_come_in_their_order(worker: Worker, store: Store) -> None:
    """Progress before the output that follows it, and all before the end."""
    job = await submit(store, "in_process", how="partly")
    record = await end_of(store, job)

    types = [decode_event(entry.text).type for entry in (await store.events(job, START)).entries]
    assert types == ["queued", "started", "progress", "output", "succeeded"]
    assert record.end_data()["partial"] is True


@pytest.mark.parametrize("kind", ["yields_in_process"])
async def test_a_generator_yields_outputs(worker: Worker, store: Store, kind: str) -> None:
    """As a thread's does."""
    job = await submit(store, kind)
    await end_of(store, job)

    assert await output(store, job, "0") == {"page": 1}
    assert decode_event((await store.output(job, "1")) or b"").data["url"].endswith("/outputs/1")


async def test_files_and_earlier_outputs_are_read(worker: Worker, store: Store, blobs: Blobs) -> None:
    """The worker reads them for the child."""
    await blobs.put("jobs/x/files/0", b"hello", max_bytes=None)
    job = await submit(store, "in_process", files=(StoredFile("a.txt", "text/plain", 5, "jobs/x/files/0"),), how="read")

    result = (await end_of(store, job)).end_data()["result"]

    assert (result["text"], result["path"]) == ("hello", "hello")
    assert int(result["pid"]) == await output(store, job, "pid")


async def test_whatever_a_function_does_its_job_ends_and_the_next_one_is_done(worker: Worker, store: Store) -> None:
    """A child that died is replaced; what an unexpected error says stays in the worker's log."""
    codes = {
        "reject": "nothing_there",
        "reject oddly": "nothing_there",
        "fail a step": "step_was_seen",
        "break": "processor_error",
        "exit": "processor_error",
        "stop iteration": "processor_error",
        "say nothing": "processor_error",
        "return oddly": "processor_error",
        "write garbage": "processor_error",
        "close the channel": "process_died",
        "crash": "process_died",
        "crash with a fork": "process_died",
        "die oddly": "process_died",
    }
    jobs = {how: await submit(store, "in_process", how=how) for how in codes}
    last = await submit(store, "in_process", how="well")

    found = {how: (await end_of(store, job)).end_data()["problem"] for how, job in jobs.items()}

    pids = [await output(store, jobs[how], "pid") for how in ("reject", "return oddly", "write garbage")]
    assert (len(set(pids)), await output(store, jobs["crash"], "pid") in pids) == (1, False)
    assert {how: problem.get("cause", problem["code"]) for how, problem in found.items()} == codes
    assert "secret" not in str(found)
    assert (await end_of(store, last)).state is State.SUCCEEDED


@pytest.mark.parametrize("kind", ["little_memory"])
async def test_memory_has_its_limit(worker: Worker, store: Store, kind: str) -> None:
    """What is over it fails with a code of its own, and the next job is done."""
    problem = (await end_of(store, await submit(store, kind, how="take", amount=4 * 1024**3))).end_data()["problem"]

    assert problem["cause"] == "out_of_memory"
    assert (await end_of(store, await submit(store, kind, how="take", amount=10))).state is State.SUCCEEDED


@pytest.mark.parametrize("kind", ["little_memory"])
async def test_a_child_without_memory_to_hear_with_says_so(
    worker: Worker, store: Store, blobs: Blobs, kind: str
) -> None:
    """The function has taken all, and then asks for a file; it is not called a crash."""
    await blobs.put("jobs/x/files/0", b"x" * (32 << 20), max_bytes=None)
    file = StoredFile("a.txt", "text/plain", 32 << 20, "jobs/x/files/0")

    problem = (await end_of(store, await submit(store, kind, files=(file,), how="hoard", amount=8 << 20))).end_data()

    assert problem["problem"]["cause"] == "out_of_memory"


async def test_what_is_too_large_for_a_message_is_an_error_and_no_silence(
    worker: Worker, store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function that asked for a file hears that it has to read it by its path, and goes on."""
    monkeypatch.setattr("processors.channel.MAX_MESSAGE_BYTES", 100_000)
    await blobs.put("jobs/x/files/0", b"x" * 200_000, max_bytes=None)
    file = StoredFile("a.txt", "text/plain", 200_000, "jobs/x/files/0")

    job = await submit(store, "in_process", files=(file,), how="read by path")

    assert (await end_of(store, job)).end_data()["result"]["read"] == ["ValueError", 200_000]


@pytest.mark.parametrize("code", ["process_died", "out_of_memory"])
async def test_who_killed_a_child_is_told_apart(
    worker: Worker, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """The system counts whom it ends for want of memory, in any container; the signal is the same as of anybody."""
    counts = tmp_path / "vmstat"
    counts.write_text("pgfault 9\noom_kill 3\npgmajfault 7\n")
    monkeypatch.setattr("processors.process._COUNTS", counts)
    job = await submit(store, "in_process", how="obey")
    pid = await output(store, job, "pid")

    counts.write_text(f"pgfault 9\noom_kill {4 if code == 'out_of_memory' else 3}\npgmajfault 7\n")
    os.kill(pid, signal.SIGKILL)

    problem = (await end_of(store, job)).end_data()["problem"]
    assert problem["cause"] == code
    assert ("no memory left" if code == "out_of_memory" else "by signal SIGKILL") in problem["detail"]


async def test_a_child_that_was_killed_between_two_jobs_is_nobodys_failure(worker: Worker, store: Store) -> None:
    """The next job gets another one."""
    pid = (await end_of(store, await submit(store, "in_process", how="well"))).end_data()["result"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: not any(child.alive for child in worker._processes._idle["in_process"]))

    assert (await end_of(store, await submit(store, "in_process", how="well"))).state is State.SUCCEEDED


def kill(pid: int) -> None:
    """Kill a process and wait for its death, without a turn of the event loop."""
    os.kill(pid, signal.SIGKILL)
    while runs(pid):
        time.sleep(0.001)


async def test_a_child_whose_death_nobody_has_noticed_yet_is_called_dead() -> None:
    """As one that dies a moment later is."""
    child = await Child.start(KINDS["in_process"])
    assert await child.is_ready()
    kill(child._process.pid)

    about = {"job_id": "job", "kind": "in_process", "attempt": 1, "tags": (), "partial": False}
    context: Any = SimpleNamespace(**about, files=(), cancelled=False)
    with pytest.raises(ProcessorError) as failed:
        await child.run(context, ())
    await child.kill()

    assert failed.value.code == "process_died"


async def test_what_a_function_says_after_its_end_is_in_no_other_job(worker: Worker, store: Store) -> None:
    """A thread that it leaves behind writes nothing any more, and a late cancel stops nobody else."""
    first = await submit(store, "in_process", how="report later")
    await end_of(store, first)
    following = await submit(store, "in_process", how="wait")
    await end_of(store, following)

    log = [decode_event(entry.text) for entry in (await store.events(following, START)).entries]
    assert [event.data["index"] for event in log if event.type == "output"] == ["pid"]


@pytest.mark.parametrize(
    ("kind", "how", "same"), [("patient_in_process", "obey", True), ("in_process", "ignore", False)]
)
async def test_a_cancelled_function_stops_or_is_killed(
    worker: Worker, store: Store, kind: str, how: str, same: bool
) -> None:
    """It is told first; one that goes on all the same ends with its process, and the next job is done."""
    job = await submit(store, kind, how=how)
    pid = await output(store, job, "pid")
    await store.cancel(job, "me", "enough")

    assert (await end_of(store, job)).state is State.CANCELLED
    assert runs(pid) is same
    following = await end_of(store, await submit(store, kind, how="well"))
    assert (following.end_data()["result"]["pid"] == pid) is same


async def test_a_function_that_runs_for_too_long_ends_with_its_process(worker: Worker, store: Store) -> None:
    """Its job fails in time, whatever it does meanwhile."""
    job = await submit(store, "in_process", JobOptions(run_timeout_seconds=0.3), how="ignore")
    pid = await output(store, job, "pid")

    assert (await end_of(store, job)).end_data()["problem"]["code"] == "run_timeout"
    await wait_until(lambda: not runs(pid))


@pytest.mark.parametrize(
    ("kind", "how", "same"),
    [
        ("patient_in_process", "start a program", True),
        ("in_process", "leave a program", False),
        ("in_process", "leave a program and crash", False),
    ],
)
async def test_what_a_child_started_ends_with_it(worker: Worker, store: Store, kind: str, how: str, same: bool) -> None:
    """A program is told to end; what is left when the process ends, by itself or killed, ends with it."""
    job = await submit(store, kind, how=how)
    pid, sleeping = [await output(store, job, index) for index in ("pid", "sleeping")]
    await store.cancel(job, "me", "enough")
    await end_of(store, job)

    await wait_until(lambda: not runs(sleeping))
    assert runs(pid) is same


async def test_a_start_that_is_broken_off_leaves_nothing() -> None:
    """At whatever moment."""
    before = open_files()
    for turns in range(100):
        starting = asyncio.create_task(Child.start(KINDS["in_process"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        if starting.done():
            break
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
    await (await starting).kill()

    assert turns > 2
    await wait_until(lambda: open_files() == before, what="what was opened to be closed")


def open_files() -> int:
    """How many files, sockets and pipes this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def test_no_child_outlives_a_killed_worker(store: Store, tmp_path: Path) -> None:
    """Neither one that holds its interpreter, so that it can hear nothing, nor what it has started."""
    async with worker_process(store, tmp_path, module="tests.lone_process_kind") as killed:
        job = await submit(store, "in_process", how="leave a program")
        pids = [await output(store, job, index) for index in ("pid", "sleeping")]
        killed.signal(signal.SIGKILL)

        await wait_until(lambda: not any(runs(pid) for pid in pids), what="their end")


async def test_no_child_outlives_its_worker(store: Store, blobs: Blobs) -> None:
    """Also idle ones."""
    async with working(store, blobs, {KINDS["in_process"]}):
        pid = (await end_of(store, await submit(store, "in_process", how="well"))).end_data()["result"]["pid"]

    assert not runs(pid)


def test_what_can_not_run_in_a_process_is_refused_where_it_is_decorated() -> None:
    """Not when the first job comes."""

    def local(ctx: Any) -> None: ...

    async def coroutine(ctx: Any) -> None: ...

    def lifespan() -> Iterator[None]:
        yield

    for function, options, message in [
        (local, {"run_in": "process"}, "at the top of a module"),
        (coroutine, {"run_in": "process"}, "async"),
        (local, {"run_in": "elsewhere"}, "thread"),
        (local, {"memory_bytes": 1}, "run_in"),
        (in_process.function, {"run_in": "process", "setup": lifespan}, "generator"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            processor("refused", **options)(function)  # type: ignore[arg-type]
