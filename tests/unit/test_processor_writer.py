"""The writer: what is gathered, what goes out at once, in which order, and what a bad connection does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_core import from_json

from gateway.errors import EventsLost, LeaseLost, Unavailable
from gateway.event_text import decode_event, encode_event_tail
from gateway.protocol import MAX_BATCH_EVENTS, Cursor, Event, EventType, State
from gateway.store import Appended, JobRecord, Lease, LogEntry, LogPage, WriterEvent
from processors.beat import BEAT_SECONDS, Beat
from processors.writer import (
    MAX_BATCH_BYTES,
    MAX_WAITING_EVENTS,
    PROGRESS_PAUSE_SECONDS,
    Writer,
)
from tests.faults import wait_until

JOB = "a" * 26
TIME_MS = 1_764_000_000_000


def record(**changes: Any) -> JobRecord:
    """The record of a job whose first attempt has just begun."""
    values: dict[str, Any] = {
        "id": JOB,
        "kind": "echo",
        "owner": "me",
        "state": State.RUNNING,
        "attempt": 1,
        "failures": 0,
        "max_attempts": 3,
        "last": Cursor(2, TIME_MS),
        "created_ms": TIME_MS,
        "started_ms": TIME_MS,
        "ended_ms": None,
        "expires_ms": None,
        "not_before_ms": None,
        "priority": "normal",
        "tags": (),
        "files": (),
        "retry_of": None,
        "cancel_by": None,
        "worker": "w",
        "seen_ms": TIME_MS,
        "progress": None,
        "input_blob": None,
        "end": None,
        "result_blob": None,
    }
    return JobRecord(**(values | changes))


class ScriptedLog:
    """A log that does what a test says: it numbers what comes, fails on demand, and waits behind a gate."""

    def __init__(self) -> None:
        self.batches: list[list[WriterEvent]] = []
        self.folds: list[tuple[bytes, Cursor]] = []
        self.retried: list[dict[str, Any]] = []
        self.sent: list[int] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entries: list[LogEntry] = []
        self.last = 2
        self.result_blob: str | None = None

    @property
    def appended(self) -> list[tuple[str, dict[str, Any]]]:
        """Type and data of all that was appended."""
        whole = [from_json(b"{" + event.tail) for batch in self.batches for event in batch]
        return [(event["type"], event["data"]) for event in whole]

    async def append(
        self,
        lease: Lease,
        batch: int,
        events: Sequence[WriterEvent],
        *,
        fold: bytes | None = None,
        fold_cursor: Cursor | None = None,
        result_blob: str | None = None,
    ) -> Appended:
        """Take a batch."""
        self.sent.append(batch)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        if fold is not None and fold_cursor is not None:
            self.folds.append((fold, fold_cursor))
        self.result_blob = result_blob
        first = self.last + 1
        self.last += len(events)
        self.batches.append(list(events))
        return Appended(first, Cursor(self.last, TIME_MS), None)

    async def retry(
        self,
        lease: Lease,
        batch: int,
        events: Sequence[WriterEvent],
        problem: dict[str, Any],
        delay_seconds: float,
        *,
        counts: bool,
    ) -> Appended:
        """Take a batch and put the job back."""
        self.retried.append({"problem": problem, "delay_seconds": delay_seconds, "counts": counts, "batch": batch})
        return await self.append(lease, batch, events)

    async def fold(self, job: str) -> tuple[Cursor, bytes] | None:
        """No fold was stored."""
        return None

    async def events(self, job: str, after: Cursor) -> LogPage:
        """A page of what others wrote."""
        found = [entry for entry in self.entries if entry.number > after.number]
        return LogPage(found, Cursor(self.last, TIME_MS), False)

    def cancel_requested(self) -> None:
        """Write as `cancel` does, between two appends."""
        self.last += 1
        head = f'{{"id":{self.last},"time":"2025-11-24T16:00:00.000Z","job":"{JOB}","attempt":1,'.encode()
        tail = encode_event_tail(EventType.CANCEL_REQUESTED, {"by": "me", "reason": "enough"})
        self.entries.append(LogEntry(self.last, TIME_MS, b"cancel_requested", head + tail))


class Bench:
    """A writer at work over a scripted log."""

    def __init__(self) -> None:
        self.log = ScriptedLog()
        self.requests: list[Event] = []
        self.writer = Writer(self.log, Lease(JOB, "echo", 1, "n"), record(), self.requests.append, Beat())
        self.running = asyncio.create_task(self.writer.run())

    async def output(self, index: int, text: str = "x") -> None:
        """Put an output."""
        data = {"index": str(index), "content_type": "text/plain"}
        await self.writer.put("output", encode_event_tail("output", data | {"value": text}), data, str(index))

    async def end(self) -> None:
        """End the attempt and wait for it."""
        self.writer.end(EventType.SUCCEEDED, {"result": None})
        await self.running


@asynccontextmanager
async def at_work() -> AsyncIterator[Bench]:
    """A bench whose writer is gone afterwards."""
    bench = Bench()
    try:
        yield bench
    finally:
        bench.running.cancel()
        await asyncio.gather(bench.running, return_exceptions=True)


async def is_stuck(wait: Awaitable[Any], *, turns: int = 50) -> bool:
    """Whether something still waits after many turns of the loop."""
    task = asyncio.ensure_future(wait)
    for _ in range(turns):
        await asyncio.sleep(0)
    return not task.done()


async def test_an_output_goes_out_at_once() -> None:
    """A line that was read is on the page while the next one is read."""
    async with at_work() as bench:
        await bench.output(0)
        await wait_until(lambda: bench.log.batches)

        assert bench.log.appended == [("output", {"index": "0", "content_type": "text/plain", "value": "x"})]
        assert bench.log.batches[0][0].index == "0"


async def test_what_comes_during_an_append_goes_out_as_one_batch_after_it() -> None:
    """A slow Redis makes larger batches, not a longer line."""
    async with at_work() as bench:
        bench.log.gate.clear()
        await bench.output(0)
        await wait_until(lambda: bench.log.sent)
        for i in range(1, 6):
            await bench.output(i)
        bench.log.gate.set()
        await wait_until(lambda: len(bench.log.appended) == 6)

        assert [len(batch) for batch in bench.log.batches] == [1, 5]


async def test_a_batch_is_bounded_in_events_and_in_bytes() -> None:
    """One script must not hold Redis for long."""
    async with at_work() as bench:
        bench.log.gate.clear()
        await bench.output(0)
        await wait_until(lambda: bench.log.sent)
        for i in range(1, 101):
            await bench.output(i)
        for i in range(101, 105):
            await bench.output(i, "y" * 100_000)
        bench.log.gate.set()
        await wait_until(lambda: len(bench.log.appended) == 105)

        for batch in bench.log.batches:
            assert len(batch) <= MAX_BATCH_EVENTS
            assert sum(len(event.tail) for event in batch) <= MAX_BATCH_BYTES
        assert [data["index"] for _, data in bench.log.appended] == [str(i) for i in range(105)]


async def test_deltas_are_gathered_and_merged() -> None:
    """A token is not an event: the cost stays flat at high rates."""
    async with at_work() as bench:
        for i in range(300):
            await bench.writer.delta("text", f"{i} ")
            if i % 10 == 0:
                await asyncio.sleep(0.001)
        await bench.writer.flush()

        assert {type_ for type_, _ in bench.log.appended} == {"delta"}
        assert "".join(data["text"] for _, data in bench.log.appended) == "".join(f"{i} " for i in range(300))
        assert len(bench.log.appended) < 15


async def test_the_first_delta_after_a_pause_is_not_held_back() -> None:
    """A slow stream of tokens gains nothing from gathering: it leaves on the very next beat."""
    time = asyncio.get_running_loop().time
    async with at_work() as bench:
        await bench.writer.delta("text", "a")
        await wait_until(lambda: bench.log.appended)
        await wait_until(lambda: time() > bench.writer._delta_due)

        await bench.writer.delta("text", "b")

        assert bench.writer._awaited_beat * BEAT_SECONDS <= time() + BEAT_SECONDS
        await wait_until(lambda: len(bench.log.appended) == 2)
        await bench.writer.delta("text", "c")
        await bench.writer.delta("text", "d")
        await wait_until(lambda: len(bench.log.appended) == 3)
        assert bench.log.appended[2] == ("delta", {"channel": "text", "text": "cd"})


async def test_channels_are_gathered_each_by_itself() -> None:
    """Reasoning and answer don't mix."""
    async with at_work() as bench:
        bench.log.gate.clear()
        await bench.output(0)
        await wait_until(lambda: bench.log.sent)
        for channel in ("reasoning", "text", "reasoning", "text"):
            await bench.writer.delta(channel, channel[0])
        bench.log.gate.set()
        await bench.writer.flush()

        assert bench.log.appended[1:] == [
            ("delta", {"channel": "reasoning", "text": "rr"}),
            ("delta", {"channel": "text", "text": "tt"}),
        ]


async def test_an_event_does_not_overtake_the_deltas_before_it() -> None:
    """The order is the author's."""
    async with at_work() as bench:
        for _ in range(2):
            await bench.writer.delta("text", "a")
            await bench.output(0)
        await bench.writer.flush()

        assert [type_ for type_, _ in bench.log.appended] == ["delta", "output", "delta", "output"]


async def test_a_delta_that_is_too_long_for_an_event_is_split() -> None:
    """Control characters make six bytes of one, and the event must stay under its limit."""
    async with at_work() as bench:
        text = "\x00" * 100_000
        await bench.writer.delta("text", text)
        await bench.writer.flush()

        assert "".join(data["text"] for _, data in bench.log.appended) == text


async def test_text_that_no_utf8_can_carry_does_not_break_the_stream() -> None:
    """Half of a surrogate pair comes out of some tokenizers."""
    async with at_work() as bench:
        await bench.writer.delta("text", "a\ud83db")
        await bench.writer.flush()

        assert bench.log.appended == [("delta", {"channel": "text", "text": "a?b"})]


@pytest.mark.usefixtures("patient_clock")
async def test_progress_is_sent_ten_times_a_second_and_the_latest_wins() -> None:
    """A loop may report each of its million steps."""
    async with at_work() as bench:
        loop = asyncio.get_running_loop()
        started = loop.time()
        step = 0
        while loop.time() - started < 3.5 * PROGRESS_PAUSE_SECONDS:
            step += 1
            bench.writer.progress({"current": step})
            await asyncio.sleep(0)
        await wait_until(lambda: bench.log.appended[-1][1]["current"] == step)

        currents = [data["current"] for _, data in bench.log.appended]
        assert currents == sorted(currents)
        assert 4 <= len(currents) <= 5


async def test_progress_that_waits_goes_before_any_other_event() -> None:
    """A listener that has an output has the progress that was reported before it."""
    async with at_work() as bench:
        bench.writer.progress({"current": 1})
        await wait_until(lambda: bench.log.appended)
        bench.writer.progress({"current": 2})
        bench.writer.progress({"current": 3})
        await bench.output(0)
        bench.writer.progress({"current": 4})
        await bench.end()

        assert [data.get("current", type_) for type_, data in bench.log.appended] == [1, 3, "output", 4, "succeeded"]


async def test_the_end_and_what_waited_go_in_one_append() -> None:
    """Nobody sees a job that has ended without its last outputs."""
    async with at_work() as bench:
        bench.log.gate.clear()
        await bench.output(0)
        await wait_until(lambda: bench.log.sent)
        await bench.writer.delta("text", "a")
        bench.writer.progress({"current": 1})
        bench.writer.end(EventType.SUCCEEDED, {"result_url": "/r"}, "jobs/x/result-1")
        bench.log.gate.set()
        await bench.running

        assert [event.type for event in bench.log.batches[-1]] == ["progress", "delta", "succeeded"]
        assert bench.log.result_blob == "jobs/x/result-1"


async def test_after_the_end_nothing_is_taken() -> None:
    """An event after the terminal one would be refused by the store."""
    async with at_work() as bench:
        await bench.end()

        with pytest.raises(asyncio.CancelledError):
            await bench.output(0)
        with pytest.raises(asyncio.CancelledError):
            await bench.writer.delta("text", "a")
        bench.writer.progress({"current": 1})
        bench.writer.log("info", "late")
        assert len(bench.log.appended) == 1


async def test_giving_a_job_back_sends_what_waited_first() -> None:
    """The next attempt, and who watches, have all that this one found."""
    async with at_work() as bench:
        bench.writer.progress({"current": 1})
        bench.writer.retry({"code": "x"}, 2.5, counts=False)
        await bench.running

        assert bench.log.retried == [{"problem": {"code": "x"}, "delay_seconds": 2.5, "counts": False, "batch": 1}]
        assert [type_ for type_, _ in bench.log.appended] == ["progress"]


async def test_too_much_that_waits_holds_the_author_up() -> None:
    """A slow Redis slows the work, not the memory."""
    async with at_work() as bench:
        bench.log.gate.clear()
        for i in range(MAX_WAITING_EVENTS + 1):
            await bench.output(i)
        assert await is_stuck(bench.output(999))
        assert await is_stuck(bench.writer.delta("text", "a"))

        bench.log.gate.set()
        await wait_until(lambda: ("delta", {"channel": "text", "text": "a"}) in bench.log.appended)


async def test_large_events_fill_the_line_sooner() -> None:
    """The bound is of bytes as well."""
    async with at_work() as bench:
        bench.log.gate.clear()
        for i in range(6):
            await bench.output(i, "y" * 200_000)
        assert await is_stuck(bench.output(7))
        bench.log.gate.set()
        await wait_until(lambda: len(bench.log.appended) == 7)


async def test_a_batch_without_an_answer_is_sent_again_under_its_number(caplog: pytest.LogCaptureFixture) -> None:
    """The script knows the repeat; another number would write it twice."""
    async with at_work() as bench:
        bench.log.failures = [Unavailable("away"), Unavailable("still away")]
        await bench.output(0)
        await wait_until(lambda: bench.log.appended)
        await bench.output(1)
        await wait_until(lambda: len(bench.log.appended) == 2)

        assert bench.log.sent == [1, 1, 1, 2]
        assert "still away" in caplog.text


async def test_text_that_left_on_the_beat_is_sent_again_like_any_other_batch() -> None:
    """It leaves without the flusher, which sees to what goes wrong with it; what is said meanwhile comes after it."""
    async with at_work() as bench:
        bench.log.failures = [Unavailable("away")]
        await bench.writer.delta("text", "a")
        await wait_until(lambda: bench.log.sent)
        await bench.writer.delta("text", "b")
        await wait_until(lambda: len(bench.log.appended) == 2)

        assert bench.log.sent == [1, 1, 2]
        assert [data["text"] for _, data in bench.log.appended] == ["a", "b"]


async def test_text_that_is_said_while_text_is_under_way_leaves_with_its_answer() -> None:
    """Without anything else that would wake the flusher."""
    async with at_work() as bench:
        bench.log.gate.clear()
        await bench.writer.delta("text", "a")
        await wait_until(lambda: bench.log.sent)
        await bench.writer.delta("text", "b")
        # Its beat comes and goes.
        await wait_until(lambda: bench.writer._on_the_beat)
        bench.log.gate.set()
        await wait_until(lambda: len(bench.log.appended) == 2)

        assert [data["text"] for _, data in bench.log.appended] == ["a", "b"]
        await bench.end()
        assert bench.log.sent == [1, 2, 3]


async def test_all_channels_leave_on_a_beat_also_those_beyond_one_batch() -> None:
    """Nothing else would wake the flusher for the rest."""
    async with at_work() as bench:
        for channel in range(MAX_BATCH_EVENTS + 1):
            await bench.writer.delta(str(channel), "a")
        await wait_until(lambda: len(bench.log.appended) == MAX_BATCH_EVENTS + 1)

        assert bench.log.sent == [1, 2]


async def test_an_end_waits_for_the_text_that_left_on_the_beat() -> None:
    """Or its number would be taken twice."""
    async with at_work() as bench:
        bench.log.gate.clear()
        await bench.writer.delta("text", "a")
        await wait_until(lambda: bench.log.sent)
        bench.writer.end(EventType.SUCCEEDED, {"result": None})
        bench.log.gate.set()
        await bench.running

        assert [type_ for type_, _ in bench.log.appended] == ["delta", "succeeded"]
        assert bench.log.sent == [1, 2]


@pytest.mark.parametrize("error", [LeaseLost("lost"), EventsLost("gap")])
async def test_text_that_left_on_the_beat_ends_the_writer_of_a_lost_lease(error: Exception) -> None:
    """Nobody puts anything that would find it out later."""
    async with at_work() as bench:
        bench.log.failures = [error]
        await bench.writer.delta("text", "a")
        with pytest.raises(type(error)):
            await bench.running


@pytest.mark.parametrize("error", [LeaseLost("lost"), EventsLost("gap")])
async def test_a_lost_lease_ends_the_writer_at_once(error: Exception) -> None:
    """Nothing more may be written, and nobody may wait for it."""
    async with at_work() as bench:
        bench.log.gate.clear()
        bench.log.failures = [error]
        for i in range(MAX_WAITING_EVENTS + 1):
            await bench.output(i)
        waiting = asyncio.create_task(bench.output(999))
        bench.log.gate.set()

        with pytest.raises(type(error)):
            await bench.running
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert bench.log.sent == [1]


async def test_a_job_whose_events_were_lost_is_handed_back() -> None:
    """No failure of its processor."""
    async with at_work() as bench:
        bench.log.failures = [EventsLost("gap")]
        await bench.output(0)
        with pytest.raises(EventsLost):
            await bench.running

        await bench.writer.hand_back({"code": "events_lost"})

        assert bench.log.retried[0]["counts"] is False


async def test_a_cancel_request_between_two_batches_is_heard() -> None:
    """The numbers tell that somebody else wrote, and the log tells what."""
    async with at_work() as bench:
        await bench.output(0)
        await wait_until(lambda: bench.log.appended)
        bench.log.cancel_requested()
        await bench.output(1)
        await wait_until(lambda: bench.requests)

        assert bench.requests[0].data == {"by": "me", "reason": "enough"}


async def test_a_cancel_request_before_text_that_left_on_the_beat_is_heard() -> None:
    """Its answer's number tells of it, as that of any other batch."""
    async with at_work() as bench:
        await bench.output(0)
        await wait_until(lambda: bench.log.appended)
        bench.log.cancel_requested()
        await bench.writer.delta("text", "a")
        await wait_until(lambda: bench.requests)
        await bench.end()

        assert [type_ for type_, _ in bench.log.appended] == ["output", "delta", "succeeded"]


async def test_a_silent_attempt_hears_of_a_cancel_request_when_told_to_listen() -> None:
    """A renewal's answer says only that there is one."""
    async with at_work() as bench:
        bench.log.cancel_requested()
        bench.writer.listen()
        await wait_until(lambda: bench.requests)
        await bench.output(0)
        await wait_until(lambda: bench.log.appended)

        assert len(bench.requests) == 1


async def test_flush_returns_when_all_before_it_is_in_the_log() -> None:
    """Also what was held back."""
    async with at_work() as bench:
        await bench.output(0)
        await bench.writer.delta("text", "a")
        bench.writer.progress({"current": 1})

        await bench.writer.flush()

        assert [type_ for type_, _ in bench.log.appended] == ["output", "progress", "delta"]


async def test_a_fold_is_sent_along_every_500_events() -> None:
    """A snapshot is the stored fold: nobody reads the log back for it."""
    async with at_work() as bench:
        for i in range(1200):
            await bench.output(i)
        await bench.writer.flush()
        await bench.end()

        assert len(bench.log.folds) == 2
        for text, cursor in bench.log.folds:
            data = from_json(text)
            assert data["cursor"] == str(cursor)
            assert data["outputs"] == cursor.number - 2
            assert data["state"] == "running"


async def test_a_fold_is_sent_along_after_64_kib_of_log() -> None:
    """Long events make a long read."""
    async with at_work() as bench:
        await bench.output(0, "y" * 70_000)
        await bench.writer.flush()
        await bench.output(1)
        await bench.writer.flush()

        assert [cursor.number for _, cursor in bench.log.folds] == [3]


async def test_events_decode_as_what_was_put() -> None:
    """What the writer encodes is what the protocol reads."""
    async with at_work() as bench:
        bench.writer.log("warning", "slow\ud800")
        await bench.writer.flush()

        head = f'{{"id":3,"time":"2025-11-24T16:00:00.000Z","job":"{JOB}","attempt":1,'.encode()
        event = decode_event(head + bench.log.batches[0][0].tail)
        assert (event.type, event.data) == ("log", {"level": "warning", "message": "slow?"})
