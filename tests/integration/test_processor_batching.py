"""Kinds that do several jobs in one call: full batches under load, and each job its own result."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.blobs import Blobs
from gateway.errors import ConfigurationError
from gateway.protocol import State
from gateway.store import Store
from processors import Context, Processor, Rejected, SyncContext, processor
from tests.faults import wait_until
from tests.worker_jobs import end_of, submit, working


class Text(BaseModel):
    """A text to embed."""

    text: str


CALLS: list[list[str]] = []
# Made anew for each test, since it belongs to the event loop that uses it.
GATES: list[asyncio.Event] = []
LATCHES: list[threading.Event] = []


@processor("embed", max_batch=4, max_wait_seconds=0.2, max_attempts=1)
def embed(contexts: list[SyncContext], inputs: list[Text]) -> list[int | Exception]:
    """Lengths instead of vectors."""
    CALLS.append([one.text for one in inputs])
    for ctx in contexts:
        ctx.progress(1, 1)
    if any(one.text == "break" for one in inputs):
        raise ZeroDivisionError
    if any(one.text == "exit" for one in inputs):
        sys.exit("enough")
    if any(one.text == "lose" for one in inputs):
        return [0] * (len(inputs) - 1)
    if any(one.text == "end" for one in inputs):
        return [StopIteration()] * len(inputs)
    return [Rejected("There is nothing in it.", "empty_text") if not one.text else len(one.text) for one in inputs]


@processor("wait_together", max_batch=2, max_wait_seconds=20)
async def wait_together(contexts: list[Context], inputs: list[dict[str, Any]]) -> list[int]:
    """Done when the test says so."""
    CALLS.append([str(len(contexts))])
    await contexts[0].log("begun")
    await GATES[0].wait()
    for ctx in contexts:
        await ctx.output("seen", len(contexts))
        await ctx.progress(1, 1)
    return [len(contexts)] * len(contexts)


@processor("in_a_thread", max_batch=2, max_wait_seconds=1, cancel_grace_seconds=0.1, max_attempts=1)
def in_a_thread(contexts: list[SyncContext]) -> list[int]:
    """Done when the test says so, whatever it is told."""
    CALLS.append([ctx.job_id for ctx in contexts])
    assert LATCHES[0].wait(20)
    for ctx in contexts:
        ctx.progress(1, 1)
        ctx.output("seen", len(contexts))
    return [len(contexts)] * len(contexts)


@processor("patient", max_batch=2, max_wait_seconds=60)
async def patient(contexts: list[Context]) -> list[int]:
    """Never begins with one job only."""
    CALLS.append([])
    return [0] * len(contexts)


@processor("has_steps", max_batch=2, max_wait_seconds=0.05, max_attempts=1)
async def has_steps(contexts: list[Context]) -> list[Any]:
    """Has a step done for each of its jobs."""
    return [await ctx.run("patient") for ctx in contexts]


@pytest.fixture(autouse=True)
def _empty() -> None:
    CALLS.clear()
    GATES[:] = [asyncio.Event()]
    LATCHES[:] = [threading.Event()]


async def test_jobs_that_wait_are_done_in_full_batches(store: Store, blobs: Blobs) -> None:
    """One place in the worker is enough; each job has its own result."""
    texts = ["x" * n for n in range(1, 11)]
    jobs = [await submit(store, embed, text=text) for text in texts]

    async with working(store, blobs, [embed]):
        results = [(await end_of(store, job)).end_data()["result"] for job in jobs]

    assert results == list(range(1, 11))
    assert sorted(text for call in CALLS for text in call) == texts
    assert max(len(call) for call in CALLS) == 4
    assert len(CALLS) <= 4


async def test_a_lone_job_does_not_wait_for_others_for_long(store: Store, blobs: Blobs) -> None:
    """The time to gather is bounded."""
    async with working(store, blobs, [embed]):
        job = await submit(store, embed, text="alone")

        assert (await end_of(store, job)).end_data() == {"result": 5}


async def test_one_jobs_error_is_its_own_and_a_raised_one_is_everybodys(store: Store, blobs: Blobs) -> None:
    """A result that is an exception fails that job alone."""
    good, empty = await submit(store, embed, text="good"), await submit(store, embed, text="")
    async with working(store, blobs, [embed]):
        assert (await end_of(store, good)).state is State.SUCCEEDED
        assert (await end_of(store, empty)).end_data()["problem"]["code"] == "empty_text"

        for text in ("break", "lose", "end", "exit"):
            broken = await submit(store, embed, text=text)
            assert (await end_of(store, broken)).end_data()["problem"]["cause"] == "processor_error"
        assert (await end_of(store, await submit(store, embed, text="good"))).state is State.SUCCEEDED


@pytest.mark.parametrize("of", [wait_together, in_a_thread])
async def test_a_cancelled_job_leaves_its_batch_to_the_others(store: Store, blobs: Blobs, of: Processor) -> None:
    """It ends at once; the function may report of it all the same, and the rest of the batch is done."""
    jobs = [await submit(store, of) for _ in range(2)]
    async with working(store, blobs, [of]):
        await wait_until(lambda: CALLS)
        await store.cancel(jobs[1], "me", "enough")
        assert (await end_of(store, jobs[1])).state is State.CANCELLED
        GATES[0].set()
        LATCHES[0].set()

        assert (await end_of(store, jobs[0])).end_data() == {"result": 2}
    assert await store.output(jobs[0], "seen") is not None
    assert await store.output(jobs[1], "seen") is None


@pytest.mark.lease(0.6)
async def test_a_batch_that_can_not_be_ended_swallows_no_more_jobs(store: Store, blobs: Blobs) -> None:
    """What waits behind it is sent elsewhere, nothing more is begun, and once it returns all goes on."""
    jobs = [await submit(store, in_a_thread) for _ in range(3)]
    async with working(store, blobs, [in_a_thread]):
        await wait_until(lambda: CALLS)
        for job in CALLS[0]:
            await store.cancel(job, "me", "enough")
        [waiting] = [job for job in jobs if job not in CALLS[0]]

        problem = (await end_of(store, waiting)).end_data()["problem"]
        late = await submit(store, in_a_thread)
        assert problem["cause"] == "batch_stuck"
        assert [(await end_of(store, job)).state for job in CALLS[0]] == [State.CANCELLED] * 2
        assert (await store.job(late)).state is State.QUEUED

        LATCHES[0].set()
        assert (await end_of(store, late)).end_data() == {"result": 1}


async def test_a_stopping_worker_hands_back_what_gathers(store: Store, blobs: Blobs) -> None:
    """A job whose batch has not begun is another worker's, at once."""
    job = await submit(store, patient)
    async with working(store, blobs, [patient]):
        await wait_until(lambda: _runs(store, job))

    record = await store.job(job)
    assert (record.state, record.failures) == (State.QUEUED, 0)
    assert not CALLS


async def test_a_batch_in_a_thread_that_hangs_does_not_hold_up_the_stop(store: Store, blobs: Blobs) -> None:
    """Its job is handed back, and what can't be ended is left behind, and counted."""
    job = await submit(store, in_a_thread)
    async with working(store, blobs, [in_a_thread]) as worker:
        await wait_until(lambda: CALLS)

    assert worker.stuck
    assert (await store.job(job)).state is State.QUEUED
    LATCHES[0].set()


async def _runs(store: Store, job: str) -> bool:
    return (await store.job(job)).state is State.RUNNING


def test_the_kinds_schema_is_of_one_job() -> None:
    """Clients know nothing of batches."""
    assert embed.document.input_schema["properties"].keys() == {"text"}
    assert embed.document.result_schema == {"type": "integer"}


def test_what_can_not_be_batched_is_refused() -> None:
    """Where it is decorated."""

    def one(ctx: Any, input: Text) -> int:
        return 0

    def many(contexts: Any) -> Any:
        yield 1

    with pytest.raises(ConfigurationError, match="lists"):
        processor("refused", max_batch=2)(one)
    with pytest.raises(ConfigurationError, match="generator"):
        processor("refused", max_batch=2)(many)


async def test_a_batch_has_no_steps_and_says_so(store: Store, blobs: Blobs, caplog: pytest.LogCaptureFixture) -> None:
    """One job's cancel would break off its step, and with it the function that does all of them."""
    async with working(store, blobs, [has_steps, patient]):
        record = await end_of(store, await submit(store, has_steps))

    assert record.end_data()["problem"]["cause"] == "processor_error"
    assert "to no batch" in caplog.text
    assert record.children == ()
