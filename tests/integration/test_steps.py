"""Steps: one job to the client, jobs of their own to the workers, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.blobs import Blobs
from gateway.errors import ConfigurationError
from gateway.protocol import State
from gateway.store import Store
from processors import (
    Context,
    Done,
    ProcessorError,
    Retry,
    StepFailed,
    SyncContext,
    pipeline,
    processor,
    step,
)
from processors.worker import Worker
from tests import step_kinds, worker_jobs
from tests.faults import wait_until
from tests.step_kinds import three_paid
from tests.worker_jobs import end_of, log_of, submit
from tests.worker_process import worker_process

CALLS: list[Any] = []
AT_ONCE: list[int] = [0, 0]
FAILING: set[str] = set()
GATES: set[str] = set()


@processor("double", max_attempts=1)
async def double(ctx: Context, input: dict[str, Any]) -> int:
    """Twice a number; counts its calls, which cost money."""
    CALLS.append(input["number"])
    with at_once():
        await ctx.progress(1, 2)
        await ctx.delta("half ")
        await ctx.output("seen", input["number"])
        await ctx.output("bytes", data=b"%d" % input["number"])
        await ctx.event("shop.counted", {"number": input["number"]})
        await asyncio.sleep(input.get("seconds", 0))
        if str(input["number"]) in FAILING:
            raise ProcessorError("too_expensive", "It costs too much.")
        return 2 * int(input["number"])


@processor("endless", cancel_grace_seconds=2)
async def endless(ctx: Context) -> None:
    """Runs until it is cancelled."""
    CALLS.append("endless")
    await asyncio.Event().wait()


@processor("twice_double", max_attempts=5)
async def twice_double(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
    """Doubles twice; breaks off where it is told to, once in each place."""
    ctx.plan(first=1, second=3)
    breaks = input.get("breaks", 0)
    if ctx.attempt <= breaks and ctx.attempt == 1:
        raise Retry(0)
    first = await ctx.run("double", {"number": input["number"]}, step="first")
    if ctx.attempt <= breaks and ctx.attempt == 2:
        raise Retry(0)
    second = await ctx.run("double", {"number": first}, step="second")
    if ctx.attempt <= breaks and ctx.attempt == 3:
        raise Retry(0)
    return {"first": first, "second": second, "bytes": (await ctx.read_output("first.bytes")).decode()}


@processor("half_planned")
async def half_planned(ctx: Context) -> None:
    """Its plan leaves a step out."""
    ctx.plan(first=1)
    await ctx.run("double", {"number": 1}, step="first")
    await ctx.run("double", {"number": 2}, step="second")


@processor("from_a_thread")
def from_a_thread(ctx: SyncContext, input: dict[str, Any]) -> list[int]:
    """The same from plain code, for several at once."""
    return ctx.run_all("double", [{"number": number, "seconds": 0.2} for number in range(input["count"])], limit=2)


@processor("waits_for_ever", cancel_grace_seconds=6)
async def waits_for_ever(ctx: Context) -> None:
    """Its step never ends."""
    await ctx.run("endless")


@processor("one_at_a_time", max_running=1)
async def one_at_a_time(ctx: Context, input: dict[str, Any]) -> str:
    """Has a step done first where it is to, and holds its place until it may let go of it."""
    name = str(input["name"])
    if step := input.get("step"):
        await ctx.run("gated", {"gate": step})
    CALLS.append(name)
    with at_once():
        await wait_until(lambda: name in GATES)
    if then := input.get("then"):
        await ctx.run("gated", {"gate": then})
    return name


@processor("gated")
async def gated(ctx: Context, input: dict[str, Any]) -> None:
    """A step that ends when it may."""
    await wait_until(lambda: input["gate"] in GATES)


@processor("of_itself", max_running=1)
async def of_itself(ctx: Context, input: dict[str, Any]) -> int:
    """Its steps are of its own kind, down to the last one."""
    below = 0
    if levels := input["levels"]:
        below = sum(await ctx.run_all("of_itself", [input | {"levels": levels - 1, "n": n} for n in (0, 1)]))
    with at_once():
        await asyncio.sleep(0.01)
    return below + 1


@contextmanager
def at_once() -> Iterator[None]:
    """Counted among those that are here at once."""
    AT_ONCE[0] += 1
    AT_ONCE[1] = max(AT_ONCE)
    try:
        yield
    finally:
        AT_ONCE[0] -= 1


def add_up(done: Done) -> dict[str, int]:
    """What the last step of the pipeline gets."""
    return {"number": sum(done.previous) + done.results["first"]}


SUM = pipeline(
    "sum",
    step(double, "first")
    >> step("double", "each", each=lambda done: [{"number": n} for n in range(done.previous)], limit=3, weight=2)
    >> step("double", "last", input=add_up),
    result=int,
)


@processor("add_one")
async def add_one(_: Context, input: dict[str, int]) -> dict[str, int]:
    """What the next step takes as it is."""
    return {"number": input["number"] + 1}


PLAIN = pipeline("plain", add_one >> double, result=int)
CAPPED = (one_at_a_time, gated, of_itself)
KINDS = {
    one.kind: one
    for one in (double, endless, twice_double, half_planned, from_a_thread, waits_for_ever, SUM, PLAIN, add_one)
}


@pytest.fixture(autouse=True)
def _empty() -> None:
    CALLS.clear()
    FAILING.clear()
    GATES.clear()
    AT_ONCE[:] = [0, 0]


def working(store: Store, blobs: Blobs, *, concurrency: int = 1) -> AbstractAsyncContextManager[Worker]:
    """A worker for the length of the block."""
    return worker_jobs.working(store, blobs, KINDS.values(), concurrency=concurrency)


async def test_a_parent_takes_no_place_while_it_waits(store: Store, blobs: Blobs) -> None:
    """In a worker with one place both steps are done, and the client sees one job with all that they said."""
    async with working(store, blobs, concurrency=1):
        job = await submit(store, twice_double, number=3)
        record = await end_of(store, job)

    assert record.end_data() == {"result": {"first": 6, "second": 12, "bytes": "3"}}
    log = await log_of(store, job)
    assert [event.id for event in log] == list(range(1, len(log) + 1))
    assert [event.data["channel"] for event in log if event.type == "delta"] == ["first.text", "second.text"]
    outputs = {event.data["index"]: event.data for event in log if event.type == "output"}
    assert outputs["first.seen"]["value"] == 3
    assert outputs["second.bytes"]["url"] == f"/v1/jobs/{job}/outputs/second.bytes"
    assert [event.data for event in log if event.type == "shop.counted"] == [
        {"number": 3, "step": "first"},
        {"number": 6, "step": "second"},
    ]
    progress = [(event.data["stage"], event.data["current"]) for event in log if event.type == "progress"]
    assert [current for _, current in progress] == sorted(current for _, current in progress)
    assert progress[-1] == ("second", 100)
    listed, _ = await store.jobs("me")
    assert [one.id for one in listed] == [job]


async def test_a_step_that_the_plan_leaves_out_moves_no_bar_past_its_end(store: Store, blobs: Blobs) -> None:
    """The plan's steps are the whole of it."""
    async with working(store, blobs):
        job = await submit(store, half_planned)
        await end_of(store, job)

    said = [event.data["current"] for event in await log_of(store, job) if event.type == "progress"]
    assert max(said) == 100


async def test_no_step_is_done_twice_however_often_its_parent_is_tried(store: Store, blobs: Blobs) -> None:
    """Broken off before, between and after its steps; calls = steps."""
    async with working(store, blobs):
        record = await end_of(store, await submit(store, twice_double, number=3, breaks=3))

    assert record.attempt == 4
    assert record.end_data()["result"]["second"] == 12
    assert CALLS == [3, 6]


@pytest.mark.parametrize("boundary", range(4))
@pytest.mark.lease(0.6)
async def test_a_takeover_finds_what_its_dead_worker_had_done(store: Store, tmp_path: Path, boundary: int) -> None:
    """Killed before, between and after its steps; another worker ends the job, and calls = steps."""
    calls = tmp_path / "calls"
    async with worker_process(store, tmp_path, module="tests.step_kinds") as worker:
        job = await submit(store, three_paid, calls=str(calls), stops_at=boundary)
        await wait_until(lambda: store.output(job, "stopped"))
        worker.signal(signal.SIGKILL)

    async with worker_process(store, tmp_path, module="tests.step_kinds"):
        record = await end_of(store, job)

    assert (record.attempt, record.end_data()) == (2, {"result": 3})
    assert calls.read_text().split() == ["0", "1", "2"]


async def test_a_failed_step_fails_its_parent_by_name_and_a_retry_pays_for_it_alone(store: Store, blobs: Blobs) -> None:
    """The job that does the failed one again finds the first step done."""
    FAILING.add("6")
    async with working(store, blobs):
        job = await submit(store, twice_double, number=3)
        problem = (await end_of(store, job)).end_data()["problem"]
        assert (problem["code"], problem["cause"], problem["step"]) == ("retries_exhausted", "too_expensive", "second")

        FAILING.clear()
        again = await end_of(store, await submit(store, twice_double, retry_of=job, number=3))

    assert again.end_data()["result"]["second"] == 12
    assert CALLS == [3, 6, 6]


async def test_several_at_once_keep_their_order_and_the_limit(store: Store, blobs: Blobs) -> None:
    """From a thread as well."""
    async with working(store, blobs, concurrency=8):
        record = await end_of(store, await submit(store, from_a_thread, count=7))

    assert record.end_data() == {"result": [0, 2, 4, 6, 8, 10, 12]}
    assert AT_ONCE[1] == 2


async def test_a_cancel_reaches_the_step(store: Store, blobs: Blobs) -> None:
    """The step has stopped before its parent says that it has."""
    async with working(store, blobs):
        job = await submit(store, waits_for_ever)
        await wait_until(lambda: CALLS)
        await store.cancel(job, "me", "enough")
        record = await end_of(store, job)

    [child] = record.children
    assert record.state is State.CANCELLED
    stopped = await store.job(child)
    assert (stopped.state, stopped.ended_ms or 0) <= (State.CANCELLED, record.ended_ms or 0)


@pytest.mark.lease(0.6)
async def test_the_end_of_a_parent_without_a_worker_ends_its_steps(store: Store, tmp_path: Path) -> None:
    """All workers are dead: the cancel finds the step by the parent's record."""
    async with worker_process(store, tmp_path, module="tests.step_kinds") as worker:
        job = await submit(store, step_kinds.waits)

        async def step_runs() -> bool:
            children = await store.read_jobs(list((await store.job(job)).children))
            return any(child is not None and child.state is State.RUNNING for child in children)

        await wait_until(step_runs)
        worker.signal(signal.SIGKILL)
    children = (await store.job(job)).children

    async def both_waiting() -> bool:
        await store.look(["waits", "runs_on"])
        return all(one is not None and one.state is State.QUEUED for one in await store.read_jobs([job, *children]))

    await wait_until(both_waiting)
    await store.cancel(job, "me", "enough")

    assert [(await store.job(one)).state for one in (job, *children)] == [State.CANCELLED] * 2


@pytest.mark.lease(0.6)
async def test_a_waiting_parent_takes_no_place_under_its_kinds_cap(store: Store, blobs: Blobs) -> None:
    """`max_running` counts those that do something; a look doesn't put the parent back among them."""
    async with working(store, blobs, concurrency=2):
        await submit(store, waits_for_ever)
        await wait_until(lambda: CALLS)

        async def only_the_step_is_in_hand() -> bool:
            await store.look(KINDS)
            depths = await store.depths(["waits_for_ever", "endless"])
            return depths == {"waits_for_ever": (0, 0), "endless": (0, 1)}

        await wait_until(only_the_step_is_in_hand)
        for _ in range(20):
            assert await only_the_step_is_in_hand()
            await asyncio.sleep(store.lease_seconds / 10)


@pytest.mark.lease(0.6)
async def test_a_parent_goes_on_when_its_kinds_cap_has_a_place_and_before_anything_new(
    store: Store, blobs: Blobs
) -> None:
    """Another job has the only place meanwhile, and a third one has waited for it longer than the parent."""
    async with worker_jobs.working(store, blobs, CAPPED, concurrency=4):
        parent, other = await parent_and_other(store)
        third = await submit(store, one_at_a_time, name="third")
        GATES.add("step")
        await wait_until(lambda: waits_to_go_on(store, parent))
        for _ in range(10):
            # No look makes it more, or sends the parent away.
            await store._client.zadd(store._keys.kind("one_at_a_time")[1], {parent: 0}, xx=True)
            await store.look(["one_at_a_time"])
            assert await waits_to_go_on(store, parent)
            assert await depths(store, one_at_a_time=(1, 1))
            await asyncio.sleep(store.lease_seconds / 10)
        assert CALLS == ["other"]

        GATES.add("other")
        await wait_until(lambda: len(CALLS) > 1)
        assert CALLS == ["other", "parent"]

        GATES.update({"parent", "third"})
        assert [(await end_of(store, job)).state for job in (parent, other, third)] == [State.SUCCEEDED] * 3
    assert AT_ONCE[1] == 1


@pytest.mark.parametrize("then", [None, "then"], ids=["ends", "waits for a step itself"])
async def test_a_parent_hears_of_a_place_that_is_left_in_its_own_worker(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, then: str | None
) -> None:
    """It asks at once, and not only when it would ask again anyway."""
    for name in ("_ASK_FIRST_SECONDS", "_ASK_AGAIN_SECONDS"):
        monkeypatch.setattr(f"processors.steps.{name}", 3600)
    async with worker_jobs.working(store, blobs, CAPPED, concurrency=4):
        parent, other = await parent_and_other(store, then=then)
        GATES.add("step")
        await wait_until(lambda: waits_to_go_on(store, parent))

        GATES.update({"other", "parent"})

        assert (await end_of(store, parent)).state is State.SUCCEEDED
        GATES.add("then")
        assert (await end_of(store, other)).state is State.SUCCEEDED


async def parent_and_other(store: Store, **of_other: Any) -> tuple[str, str]:
    """A parent that waits for its step, and a job that has the place under their kind's cap meanwhile."""
    parent = await submit(store, one_at_a_time, name="parent", step="step")
    await wait_until(lambda: depths(store, one_at_a_time=(0, 0), gated=(0, 1)))
    other = await submit(store, one_at_a_time, name="other", **of_other)
    await wait_until(lambda: CALLS == ["other"])
    return parent, other


async def depths(store: Store, **wanted: tuple[int, int]) -> bool:
    """Whether so many of each kind wait and are in hand."""
    return await store.depths(list(wanted)) == wanted


async def waits_to_go_on(store: Store, job: str) -> bool:
    """Whether a parent has asked for a place, and there was none; at once wrong if it has gone on."""
    assert "parent" not in CALLS
    score = await store._client.zscore(store._keys.kind("one_at_a_time")[2], job)
    return score is not None and score < 0


async def test_a_parent_that_waits_to_go_on_is_cancelled_at_once(store: Store, blobs: Blobs) -> None:
    """Whoever has only its ending to say needs no place for it, and leaves none taken."""
    async with worker_jobs.working(store, blobs, CAPPED, concurrency=4):
        parent, _ = await parent_and_other(store)
        GATES.add("step")
        await wait_until(lambda: waits_to_go_on(store, parent))

        await store.cancel(parent, "me", "enough")

        assert (await end_of(store, parent)).state is State.CANCELLED
        await wait_until(lambda: depths(store, one_at_a_time=(0, 1)))
        GATES.add("other")


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_steps_of_ones_own_kind_under_a_cap_of_one_come_to_an_end(
    store: Store, blobs: Blobs, concurrency: int
) -> None:
    """Nobody holds a place while it waits for another one."""
    async with worker_jobs.working(store, blobs, CAPPED, concurrency=concurrency):
        jobs = [await submit(store, of_itself, levels=2, n=n) for n in range(2)]
        assert [(await end_of(store, job)).end_data()["result"] for job in jobs] == [7] * 2
    assert AT_ONCE[1] == 1


async def test_a_worker_holds_so_many_waiting_parents_and_no_more(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take no place, but memory; the steps themselves are still begun."""
    monkeypatch.setattr("processors.places.MAX_ASIDE", 2)
    async with working(store, blobs, concurrency=4):
        parents = []
        for _ in range(2):
            parents.append(await submit(store, waits_for_ever))
            await wait_until(lambda: len(CALLS) == len(parents))
        third = await submit(store, waits_for_ever)
        await end_of(store, await submit(store, double, number=1))
        assert (await store.job(third)).state is State.QUEUED

        await store.cancel(parents[0], "me", "enough")
        await wait_until(lambda: CALLS.count("endless") == 3)


async def test_a_pipeline_hands_results_on(store: Store, blobs: Blobs) -> None:
    """A row of steps, one of them for each of several inputs."""
    async with working(store, blobs, concurrency=4):
        record = await end_of(store, await submit(store, SUM, number=2))

    # 2 -> 4; 0, 1, 2, 3 -> 0, 2, 4, 6; 12 + 4 -> 32
    assert record.end_data() == {"result": 32}
    assert sorted(CALLS) == [0, 1, 2, 2, 3, 16]
    assert SUM.document.description == "first >> each >> last."
    assert SUM.document.result_schema == {"type": "integer"}


async def test_processors_stand_in_a_row_as_they_are(store: Store, blobs: Blobs) -> None:
    """A step that is nothing but its kind needs no more words."""
    async with working(store, blobs):
        record = await end_of(store, await submit(store, PLAIN, number=2))

    assert record.end_data() == {"result": 6}
    assert PLAIN.document.description == "add_one >> double."
    assert [one.name for one in (step("a") >> add_one >> double).steps] == ["a", "add_one", "double"]


def test_a_pipeline_with_two_steps_of_one_name_is_refused() -> None:
    """Their events could not be told apart."""
    with pytest.raises(ConfigurationError, match="two steps"):
        pipeline("refused", step("a") >> step("b") >> step("a"))


@pytest.mark.parametrize(
    "wrong", [{"name": "page 1/2"}, {"name": ""}, {"name": "x" * 65}, {"weight": 0}, {"limit": 0}], ids=str
)
def test_a_step_that_could_never_be_done_is_refused_where_it_is_written(wrong: dict[str, Any]) -> None:
    """Not by every job."""
    with pytest.raises(ConfigurationError, match="step"):
        step("a", **wrong)


def test_a_failed_step_keeps_only_a_code_that_is_one() -> None:
    """What a step says is another program's."""
    assert StepFailed("ocr", "job", {"code": "input_empty", "detail": "x"}).code == "input_empty"
    assert StepFailed("ocr", "job", {"code": "Not a code", "detail": "x"}).code == "step_failed"
