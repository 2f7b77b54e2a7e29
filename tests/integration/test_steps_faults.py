"""Steps where something goes wrong: a cancel meets a thread, a step's data is gone, its result is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_core import to_json

from gateway.blobs import Blobs
from gateway.errors import Unavailable
from gateway.protocol import State
from gateway.requests import JobOptions
from gateway.store import JobRecord, Store
from processors import (
    Context,
    Done,
    Processor,
    ProcessorError,
    Rejected,
    Retry,
    StepFailed,
    SyncContext,
    pipeline,
    processor,
    step,
)
from tests.faults import wait_until
from tests.jobs import begin, end, event, fold_log, look_later
from tests.process_kinds import waits_in_a_process
from tests.worker_jobs import end_of, log_of, submit, working

CALLS: list[Any] = []
GO: list[bool] = []


@processor("say", max_attempts=2)
async def say(ctx: Context, input: dict[str, Any]) -> Any:
    """Say a text and return a value."""
    CALLS.append(input.get("text"))
    await ctx.delta(str(input.get("text")))
    return input.get("value", input.get("text"))


@processor("breaks", max_attempts=2)
async def breaks(ctx: Context, input: dict[str, Any]) -> None:
    """Fail at once."""
    raise Rejected("It is broken.", "broken")


@processor("stubborn", cancel_grace_seconds=0.5)
async def stubborn(ctx: Context) -> None:
    """Runs until it is told twice to stop."""
    CALLS.append("stubborn")
    try:
        await asyncio.Event().wait()
    finally:
        CALLS.append("told")
        await asyncio.Event().wait()


@processor("endless")
async def endless(ctx: Context) -> None:
    """Runs until it is cancelled."""
    CALLS.append("endless")
    await asyncio.Event().wait()


@processor("waits_in_a_thread", cancel_grace_seconds=2)
def waits_in_a_thread(ctx: SyncContext) -> None:
    """A plain function whose step never ends."""
    ctx.run("endless")


@processor("waits")
async def waits(ctx: Context) -> None:
    """Its step never ends."""
    await ctx.run("endless")


@processor("hasty", cancel_grace_seconds=0.3)
async def hasty(ctx: Context) -> None:
    """Has less grace than its step."""
    await ctx.run("stubborn")


@processor("unknown_for_each", max_attempts=1)
async def unknown_for_each(ctx: Context) -> None:
    """No worker offers the kind of its steps."""
    await ctx.run_all("nobody_does_this", [{"page": 1}, {"page": 2}])


@processor("does_without")
async def does_without(ctx: Context) -> str:
    """Catch a step's failure, then go on with work of its own."""
    try:
        await ctx.run("breaks")
    except StepFailed:
        CALLS.append("caught")
        await wait_until(lambda: GO)
        return "without"
    return "with"


@processor("again_later")
async def again_later(ctx: Context) -> str:
    """Have a step done, and end at the second attempt."""
    said = str(await ctx.run("say", {"text": "hello"}))
    if ctx.attempt == 1:
        CALLS.append("first attempt")
        await wait_until(lambda: GO)
        raise Retry(0)
    return said


@processor("asks_twice")
async def asks_twice(ctx: Context) -> list[Any]:
    """The same step twice at once, and once more."""
    ask = {"text": "hello"}
    return [*await asyncio.gather(ctx.run("say", ask), ctx.run("say", ask)), await ctx.run("say", ask)]


@processor("uneven")
async def uneven(ctx: Context) -> None:
    """Fan out twice under one name, the second time to fewer, then to none."""
    ctx.plan(say=1, rest=1)
    for count in (5, 2):
        await ctx.run_all("say", [{"text": f"{count} {number}"} for number in range(count)])
    await ctx.run_all("say", [], step="rest")


@processor("with_long_names")
async def with_long_names(ctx: Context) -> None:
    """Its step's outputs differ in their last letters only."""
    await ctx.run("two_outputs", step="a-name-that-takes-half-of-the-place")


@processor("two_outputs")
async def two_outputs(ctx: Context) -> None:
    """Two outputs of long names."""
    for letter in "ab":
        await ctx.output("x" * 60 + letter, letter)


@processor("one_of_two_breaks", max_attempts=1)
async def one_of_two_breaks(ctx: Context) -> Any:
    """Two steps at once, of which one fails at first, and one needs long to stop."""
    return await asyncio.gather(ctx.run("slow_to_stop"), ctx.run("breaks_at_first"))


@processor("slow_to_stop", cancel_grace_seconds=3)
async def slow_to_stop(ctx: Context) -> str:
    """Stops only when it may."""
    CALLS.append("slow_to_stop")
    while not GO:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            CALLS.append("told")
    return "done"


@processor("breaks_at_first")
async def breaks_at_first(ctx: Context) -> str:
    """Broken the first time."""
    if "broke" not in CALLS:
        await wait_until(lambda: CALLS)
        CALLS.append("broke")
        raise Rejected("It is broken.", "broken")
    return "mended"


@processor("passes_much_on")
async def passes_much_on(ctx: Context) -> int:
    """Gives a step more than an event holds."""
    return len(await ctx.run("say", {"text": "much", "value": "x" * 300_000}))


@processor("leaves_a_step", max_running=1, max_attempts=1)
async def leaves_a_step(ctx: Context, input: dict[str, Any]) -> None:
    """Breaks while its step is under way, once another one of its kind has the only place."""

    async def break_down() -> None:
        await wait_until(lambda: "holds" in CALLS)
        raise Rejected("It is broken.", "broken")

    if not input.get("holds"):
        await asyncio.gather(ctx.run("endless"), break_down())
    CALLS.append("holds")
    await wait_until(lambda: GO)


@processor("until_told")
async def until_told(ctx: Context) -> str:
    """Ends when it may."""
    CALLS.append("until_told")
    await wait_until(lambda: GO)
    return "done"


@processor("stumbles", max_attempts=2)
async def stumbles(ctx: Context) -> Any:
    """What it does itself breaks the first time, while its step is under way."""

    async def own_part() -> None:
        await wait_until(lambda: CALLS.count("until_told") == ctx.attempt)
        if ctx.attempt == 1:
            raise Retry(0)
        GO.append(True)

    return (await asyncio.gather(ctx.run("until_told"), own_part()))[0]


@processor("changes_its_mind", max_attempts=1)
async def changes_its_mind(ctx: Context) -> Any:
    """Asks for a step twice, and takes the first wish back."""
    first, second = (asyncio.create_task(ctx.run("until_told")) for _ in range(2))
    await wait_until(lambda: CALLS)
    first.cancel()
    await wait_until(lambda: CALLS.count("until_told") == 2)
    GO.append(True)
    return await second


@processor("outer")
async def outer(ctx: Context) -> Any:
    """A pipeline of a pipeline."""
    return await ctx.run("inner", {"of": ctx.job_id})


@processor("inner")
async def inner(ctx: Context, input: dict[str, Any]) -> Any:
    """A pipeline."""
    return await ctx.run("say", {"text": input["of"]})


@processor("passes_on_in_vain")
async def passes_on_in_vain(ctx: Context) -> str:
    """Can't hand over, and does the work itself."""
    try:
        await ctx.hand_over(float("inf"))
    except OverflowError:
        await asyncio.sleep(0.1)
    return "done here"


@processor("stutters")
async def stutters(ctx: Context) -> None:
    """Breaks off in mid-sentence, once."""
    await ctx.delta("hel" if ctx.attempt == 1 else "hello")
    if ctx.attempt == 1:
        raise Retry(0)


@processor("relays_a_stutter")
async def relays_a_stutter(ctx: Context) -> None:
    """Relay it."""
    await ctx.run("stutters")


@processor("dies", max_attempts=1)
async def dies(ctx: Context) -> None:
    """Done by a worker that dies."""


@processor("needs_it", max_attempts=1)
async def needs_it(ctx: Context) -> None:
    """Its step's worker dies."""
    await ctx.run("dies")


def pick(done: Done) -> dict[str, Any]:
    """What the second step needs of the first one's result."""
    return {"text": done.previous["title"]}


LIST_HANDED_ON = pipeline("list_handed_on", step(say) >> step(say, "second"), max_attempts=1)
MISSING_FIELD = pipeline("missing_field", step(say) >> step(say, "second", input=pick), max_attempts=1)
NO_JSON = pipeline("no_json", step(say) >> step(say, "second", input=lambda _: {"scan": b"\xff"}), max_attempts=1)
WRONG_RESULT = pipeline("wrong_result", step(say), result=int, max_attempts=1)
REFUSED = pipeline("refused", step(say) >> step("typed"), max_attempts=1)


@processor("typed")
async def typed(ctx: Context, input: dict[str, int]) -> None:
    """Takes numbers only."""


@pytest.fixture(autouse=True)
def _empty() -> None:
    CALLS.clear()
    GO.clear()


async def only_child(store: Store, job: str) -> JobRecord:
    """The job's one step, once there is one."""

    async def there() -> JobRecord | None:
        children = await store.read_jobs(list((await store.job(job)).children))
        return children[0] if children else None

    record: JobRecord = await wait_until(there)
    return record


@pytest.mark.parametrize("parent", [waits_in_a_thread, waits_in_a_process], ids=lambda one: one.kind)
async def test_a_cancel_reaches_the_step_of_plain_code(store: Store, blobs: Blobs, parent: Processor) -> None:
    """Code in a thread or a child process hears of it while it waits in `ctx.run`."""
    async with working(store, blobs, [endless, parent]):
        job = await submit(store, parent)
        await wait_until(lambda: CALLS)
        await store.cancel(job, "me", "enough")
        record = await end_of(store, job)

    child = await only_child(store, job)
    assert [one.state for one in (record, child)] == [State.CANCELLED] * 2
    assert (child.ended_ms or 0) <= (record.ended_ms or 0)
    assert [event.data for event in await log_of(store, job) if event.type == "log"] == []


async def test_a_step_that_ignores_its_cancel_costs_its_parents_worker_no_place(store: Store, blobs: Blobs) -> None:
    """The parent's grace is over before its step has stopped; the books of the worker's places stay right."""
    async with working(store, blobs, [hasty, stubborn], concurrency=2) as worker:
        job = await submit(store, hasty)
        await wait_until(lambda: CALLS)
        await store.cancel(job, "me", "enough")
        await end_of(store, job)
        await wait_until(lambda: not worker._tasks)
        assert (repr(worker._places), worker._places.free) == ("<places: {} taken, {} aside, 0 come back>", 2)


async def test_a_step_that_is_left_behind_costs_its_parents_worker_no_place(store: Store, blobs: Blobs) -> None:
    """Its parent ends while another job has the place under their kind's cap: the step waits for none any more."""
    async with working(store, blobs, [leaves_a_step, endless], concurrency=3) as worker:
        job = await submit(store, leaves_a_step)
        await wait_until(lambda: "endless" in CALLS)
        other = await submit(store, leaves_a_step, holds=True)
        await end_of(store, job)
        GO.append(True)
        await end_of(store, other)
        await wait_until(lambda: not worker._tasks)
        assert [task for task in asyncio.all_tasks() if "Context.run" in repr(task.get_coro())] == []
        assert (repr(worker._places), worker._places.free) == ("<places: {} taken, {} aside, 0 come back>", 3)


@pytest.mark.parametrize(
    ("parent", "attempts"), [(stumbles, 2), (changes_its_mind, 1)], ids=lambda one: getattr(one, "kind", None)
)
async def test_a_step_that_its_parent_broke_off_is_begun_anew(
    store: Store, blobs: Blobs, parent: Processor, attempts: int
) -> None:
    """Whoever needs it later: that it was stopped says nothing about the step."""
    async with working(store, blobs, [parent, until_told]):
        record = await end_of(store, await submit(store, parent))

    assert (record.attempt, record.end_data()) == (attempts, {"result": "done"})
    assert CALLS == ["until_told"] * 2


async def test_an_attempt_that_has_lost_its_job_leaves_the_steps_to_the_one_that_has_it(
    store: Store, blobs: Blobs
) -> None:
    """It breaks before it has heard of the loss."""

    @processor("overtaken", max_attempts=1)
    async def overtaken(ctx: Context) -> None:
        """Another attempt takes the job while the step is under way."""

        async def break_down() -> None:
            await wait_until(lambda: CALLS)
            await store._client.hset(store._keys.record(ctx.job_id), "nonce", "another attempt's")
            raise ProcessorError("broken", "It is broken.")

        await asyncio.gather(ctx.run("endless"), break_down())

    async with working(store, blobs, [overtaken, endless]) as worker:
        job = await submit(store, overtaken)
        child = await only_child(store, job)
        await wait_until(lambda: CALLS)
        await wait_until(lambda: all(attempt.lease.job != job for attempt in worker._attempts))
        assert (await store.job(child.id)).cancel_by is None


async def test_a_store_that_is_away_when_a_step_ends_costs_its_parent_no_attempt(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at any other moment: it is asked again."""
    asked: list[str] = []
    read = store.job

    async def away_once(job: str) -> JobRecord:
        record = await read(job)
        if record.parent is not None:
            asked.append(job)
            if len(asked) == 1:
                raise Unavailable("Redis is away.")
        return record

    monkeypatch.setattr(store, "job", away_once)
    async with working(store, blobs, [asks_twice, say], concurrency=4):
        record = await end_of(store, await submit(store, asks_twice))

    assert (record.attempt, len(asked)) == (1, 4)


async def test_a_fan_out_that_is_rejected_says_why(store: Store, blobs: Blobs) -> None:
    """As one step does, and not as a processor that broke."""
    async with working(store, blobs, [unknown_for_each]):
        record = await end_of(store, await submit(store, unknown_for_each))

    problem = record.end_data()["problem"]
    assert problem["code"] == "unknown_kind"
    assert problem["step"] in {"nobody_does_this.0", "nobody_does_this.1"}


async def test_who_catches_a_steps_failure_is_in_hand_again(store: Store, blobs: Blobs) -> None:
    """It goes on with work of its own, and counts under its kind's cap."""
    async with working(store, blobs, [does_without, breaks]):
        job = await submit(store, does_without)
        await wait_until(lambda: "caught" in CALLS)

        async def in_hand() -> bool:
            return await store.depths(["does_without"]) == {"does_without": (0, 1)}

        await wait_until(in_hand)
        await store.look(["does_without"])
        assert await in_hand()
        GO.append(True)
        assert (await end_of(store, job)).end_data() == {"result": "without"}


async def test_a_waiting_parent_is_handed_back_at_once(store: Store, blobs: Blobs) -> None:
    """A stopping worker leaves nothing that waits for a lease to run out."""
    async with working(store, blobs, [waits, endless]):
        job = await submit(store, waits)
        await wait_until(lambda: CALLS)

    assert await store.depths(["waits", "endless"]) == {"waits": (1, 0), "endless": (1, 0)}
    assert [(await store.job(one)).state for one in (job, (await only_child(store, job)).id)] == [State.QUEUED] * 2


async def test_a_step_whose_data_is_gone_is_begun_anew(store: Store, blobs: Blobs) -> None:
    """Somebody erased it between two attempts of its parent."""
    async with working(store, blobs, [again_later, say]):
        job = await submit(store, again_later)
        await wait_until(lambda: "first attempt" in CALLS)
        await store.delete(await only_child(store, job))
        GO.append(True)
        record = await end_of(store, job)

    assert record.end_data() == {"result": "hello"}
    assert CALLS == ["hello", "first attempt", "hello"]


@pytest.mark.lease(0.6)
async def test_a_step_that_is_erased_while_its_parent_waits_is_begun_anew(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will ever say how it ended."""
    monkeypatch.setattr("processors.steps._LOOK_AGAIN_SECONDS", 0.3)
    async with working(store, blobs, [waits, endless]):
        job = await submit(store, waits)
        await wait_until(lambda: CALLS)
        child = await only_child(store, job)
        await store.cancel(child.id, "me", "x")
        keys = store._keys.job(child.id)
        await store._client.delete(*keys[:5])
        await wait_until(lambda: CALLS.count("endless") == 2)
        assert ((await store.job(job)).state, (await store.job(job)).attempt) == (State.RUNNING, 1)


async def test_one_step_that_is_asked_for_twice_is_told_once(store: Store, blobs: Blobs) -> None:
    """At once or one after the other: one job, one text."""
    async with working(store, blobs, [asks_twice, say], concurrency=4):
        job = await submit(store, asks_twice)
        record = await end_of(store, job)

    assert record.end_data() == {"result": ["hello"] * 3}
    assert CALLS == ["hello"]
    assert [event.data["text"] for event in await log_of(store, job) if event.type == "delta"] == ["hello"]


async def test_no_fan_out_moves_the_bar_past_its_plan_or_stops_it_short(store: Store, blobs: Blobs) -> None:
    """A name that is used twice is one part, and a part without any step is done."""
    async with working(store, blobs, [uneven, say], concurrency=4):
        job = await submit(store, uneven)
        await end_of(store, job)

    said = [event.data["current"] for event in await log_of(store, job) if event.type == "progress"]
    assert said == sorted(said)
    assert max(value for value in said if value < 100) <= 50
    assert said[-1] == 100


async def test_a_steps_large_input_stands_in_no_record(store: Store, blobs: Blobs) -> None:
    """It may be the whole result of the step before it, and records are read again and again."""
    async with working(store, blobs, [passes_much_on, say]):
        job = await submit(store, passes_much_on)
        assert (await end_of(store, job)).end_data() == {"result": 300_000}

    [child] = (await store.job(job)).children
    record = await store.job(child)
    assert await store.input_of(record.id) == b""
    assert record.input_blob is not None
    assert len(await blobs.get(record.input_blob)) > 300_000


async def test_outputs_of_long_names_are_both_kept(store: Store, blobs: Blobs) -> None:
    """Cut to what an index may have, they stay two."""
    async with working(store, blobs, [with_long_names, two_outputs]):
        job = await submit(store, with_long_names)
        await end_of(store, job)

    outputs = {event.data["index"]: event.data["value"] for event in await log_of(store, job) if event.type == "output"}
    assert sorted(outputs.values()) == ["a", "b"]
    assert all(len(index) <= 64 for index in outputs)


@pytest.mark.parametrize(
    ("parent", "code", "at"),
    [
        (LIST_HANDED_ON, "step_input", "second"),
        (MISSING_FIELD, "step_input", "second"),
        (NO_JSON, "step_input", "second"),
        (REFUSED, "rejected", "typed"),
        (WRONG_RESULT, "step_result", "say"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
async def test_a_result_that_the_next_step_refuses_names_that_step(
    store: Store, blobs: Blobs, parent: Processor, code: str, at: str
) -> None:
    """It has a code of its own, is not tried again, and what was said stays."""
    async with working(store, blobs, [parent, say, typed]):
        job = await submit(store, parent, text="hello", value=[1, 2] if parent is LIST_HANDED_ON else {"no": "title"})
        record = await end_of(store, job)

    problem = record.end_data()["problem"]
    assert (problem["code"], problem["step"], record.attempt) == (code, at, 1)
    assert record.end_data()["partial"] is True
    assert [event.data["text"] for event in await log_of(store, job) if event.type == "delta"] == ["hello"]


async def test_a_steps_data_is_kept_as_long_as_its_parents_and_no_longer(store: Store, blobs: Blobs) -> None:
    """However long the parent is open: a later attempt finds it; then it goes with the parent."""
    async with working(store, blobs, [again_later, say]):
        job = await submit(store, again_later, options=JobOptions(retention_seconds=60))
        await wait_until(lambda: "first attempt" in CALLS)
        child = store._keys.record((await only_child(store, job)).id)
        assert await store._client.ttl(child) > store.job_deadline_seconds
        GO.append(True)
        await look_later(store, await end_of(store, job))
        assert 0 < await store._client.ttl(child) <= 60


async def test_a_retry_waits_for_no_step_that_the_failed_job_had_to_stop(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the failed job that still runs has been cancelled; the retry begins its own."""
    monkeypatch.setattr("processors.steps._CANCEL_WAIT_SECONDS", 0.2)
    async with working(store, blobs, [one_of_two_breaks, slow_to_stop, breaks_at_first], concurrency=4):
        job = await submit(store, one_of_two_breaks)
        await end_of(store, job)
        # Also where the function had left it behind, as `gather` does with what it runs when one of it fails.
        assert "told" in CALLS
        again = await submit(store, one_of_two_breaks, retry_of=job)
        await wait_until(lambda: CALLS.count("slow_to_stop") == 2)
        GO.append(True)
        record = await end_of(store, again)

    assert record.end_data() == {"result": ["done", "mended"]}


async def test_pipelines_of_pipelines_never_wait_for_each_others_places(
    store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as a worker lets wait are all outer ones; the inner ones are begun all the same."""
    monkeypatch.setattr("processors.places.MAX_ASIDE", 2)
    async with working(store, blobs, [outer, inner, say]):
        jobs = [await submit(store, outer) for _ in range(5)]
        assert [(await end_of(store, job)).end_data()["result"] for job in jobs] == jobs


async def test_a_hand_over_that_was_refused_leaves_the_attempt_its_own(store: Store, blobs: Blobs) -> None:
    """It goes on by itself, and its result counts."""
    async with working(store, blobs, [passes_on_in_vain]):
        record = await end_of(store, await submit(store, passes_on_in_vain))

    assert (record.attempt, record.end_data()) == (1, {"result": "done here"})


async def test_an_erased_job_takes_its_steps_with_it(store: Store, blobs: Blobs) -> None:
    """Their inputs and texts are its own."""
    async with working(store, blobs, [outer, inner, say]):
        record = await end_of(store, await submit(store, outer))
    child = await store.job(record.children[0])

    erased = await store.delete(record)

    assert erased == [record.id, child.id, child.children[0]]
    assert await store.read_jobs(erased) == [None] * 3


async def test_the_text_of_a_step_that_was_tried_again_stands_by_itself(store: Store, blobs: Blobs) -> None:
    """Behind what the attempt before had said it would make no sense; and that is not lost either."""
    async with working(store, blobs, [relays_a_stutter, stutters]):
        job = await submit(store, relays_a_stutter)
        await end_of(store, job)

    text = [(event.data["channel"], event.data["text"]) for event in await log_of(store, job) if event.type == "delta"]
    assert text == [("stutters.text", "hel"), ("stutters.text.2", "hello")]


@pytest.mark.lease(0.6)
async def test_a_step_whose_worker_dies_fails_its_job_by_name_and_what_it_said_is_kept(
    store: Store, blobs: Blobs
) -> None:
    """Its last attempt was lost with its worker."""
    await store.register_kind(dies.document)
    async with working(store, blobs, [needs_it]):
        job = await submit(store, needs_it)
        await only_child(store, job)
        lease = await begin(store, "dies")
        await store.append(lease, 1, [event("delta", {"channel": "text", "text": "hel"})])
        said = (await end_of(store, job)).end_data()

    problem = said["problem"]
    assert (problem["code"], problem["cause"], problem["step"]) == ("retries_exhausted", "worker_lost", "dies")
    assert said["partial"] is True
    assert [event.data["text"] for event in await log_of(store, job) if event.type == "delta"] == ["hel"]


async def test_a_takeover_tells_what_a_steps_trimmed_log_said(store: Store, blobs: Blobs) -> None:
    """Text and outputs are in its fold and among its outputs, though their events are gone."""
    await store.register_kind(dies.document)
    async with working(store, blobs, [needs_it]):
        job = await submit(store, needs_it)
        child = (await only_child(store, job)).id
    lease = await begin(store, "dies")
    await store.append(lease, 1, [event("delta", {"text": "hello"}), event("output", {"index": "1", "value": 1}, "1")])
    fold = fold_log(child, await log_of(store, child))
    await store.append(lease, 2, [event("delta", {"text": " you"})], fold=to_json(fold.data()), fold_cursor=fold.cursor)
    await store._client.xtrim(store._keys.events(child), minid=f"{fold.cursor.number}-0", approximate=False)
    async with working(store, blobs, [needs_it]):
        await end(store, lease, batch=3)
        await end_of(store, job)

    log = await log_of(store, job)
    assert "".join(event.data["text"] for event in log if event.type == "delta") == "hello you"
    assert [event.data["index"] for event in log if event.type == "output"] == ["dies.1"]
