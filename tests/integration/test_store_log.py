"""The event log: numbers without holes, one writer at a time, every script safe to send twice."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from pydantic_core import from_json

from gateway.documents import KindDocument
from gateway.errors import BadRequest, EventsLost, LeaseLost
from gateway.protocol import START, Cursor, State
from gateway.store import LogEntry, Store
from tests.jobs import begin, end, event, submit

pytestmark = pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True)
KIND = KindDocument(kind="echo")


async def whole_log(store: Store, job: str) -> list[LogEntry]:
    """A job's log from the start."""
    entries: list[LogEntry] = []
    while page := (await store.events(job, entries[-1].cursor if entries else START)).entries:
        entries += page
    return entries


async def test_events_are_numbered_without_holes_and_say_what_they_are(store: Store) -> None:
    """The text in the log is the whole event, and its id is its place."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("progress", {"current": 1, "total": 2}), event("log", {"message": "\u2028\n"})])
    await end(store, lease, batch=2, data={"result": {"text": "done"}})

    entries = await whole_log(store, record.id)

    texts = [from_json(entry.text) for entry in entries]
    assert [text["id"] for text in texts] == [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert [text["type"] for text in texts] == ["queued", "started", "progress", "log", "succeeded"]
    assert [text["attempt"] for text in texts] == [0, 1, 1, 1, 1]
    assert all(text["job"] == record.id for text in texts)
    assert texts[3]["data"] == {"message": "\u2028\n"}
    assert [text.get("terminal", False) for text in texts] == [False] * 4 + [True]
    times = [entry.time_ms for entry in entries]
    assert times == sorted(times)


async def test_writers_that_do_not_count_write_beside_each_other(store: Store) -> None:
    """What one sends is never taken for a repeat of what another one has."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")

    await asyncio.gather(*(store.append(lease, None, [event("log", {"message": text})]) for text in "abc"))
    await store.append(lease, 4, [event("log", {"message": "counted"})])

    assert [entry.number for entry in await whole_log(store, record.id)] == [1, 2, 3, 4, 5, 6]


async def test_a_batch_that_is_sent_twice_is_written_once(store: Store) -> None:
    """A client resends after a lost reply: the repeat gets the first answer."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")

    first = await store.append(lease, 1, [event("log", {"message": "a"})])
    again = await store.append(lease, 1, [event("log", {"message": "a"})])
    ended = await store.append(lease, 2, [event("succeeded", {"result": 1})])
    end_again = await store.append(lease, 2, [event("succeeded", {"result": 1})])

    assert first == again
    assert ended == end_again
    assert [entry.number for entry in await whole_log(store, record.id)] == [1, 2, 3, 4]


async def test_appends_of_one_moment_go_out_together_and_fail_alone(store: Store) -> None:
    """Many streams cost one write to Redis, not one each; who has lost its lease hears of that, and nobody else."""
    records = [await submit(store, KIND) for _ in range(40)]
    leases = [await begin(store, "echo") for _ in records]
    lost = dataclasses.replace(leases[7], nonce="another")

    async def reads() -> int:
        each = [await server.info("stats") for server in store._client.servers()]
        return sum(int(stats["total_reads_processed"]) for stats in each)

    before = await reads()
    answers = await asyncio.gather(
        *(store.append(lease, 1, [event("log", {"message": lease.job})]) for lease in [*leases, lost]),
        return_exceptions=True,
    )
    read = await reads() - before

    assert isinstance(answers.pop(), LeaseLost)
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    if len(store._client.servers()) == 1:
        # The nodes of a cluster read what the others say, too.
        assert read < 20
    for lease in leases:
        [*_, last] = await whole_log(store, lease.job)
        assert from_json(last.text)["data"] == {"message": lease.job}


async def test_appends_that_go_out_together_teach_a_new_server_their_script(store: Store) -> None:
    """A server that was restarted has forgotten its scripts: each append is written, and once."""
    records = [await submit(store, KIND) for _ in range(5)]
    leases = [await begin(store, "echo") for _ in records]
    for server in store._client.servers():
        await server.script_flush()

    await asyncio.gather(*(store.append(lease, 1, [event("log", {"message": "a"})]) for lease in leases))

    for record in records:
        assert [entry.type for entry in await whole_log(store, record.id)] == [b"queued", b"started", b"log"]


async def test_an_append_that_is_cancelled_before_it_left_is_not_written(store: Store) -> None:
    """Its writer has gone, and would not know of it."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")

    answer = asyncio.ensure_future(store.append(lease, 1, [event("log", {"message": "a"})]))
    answer.cancel()
    await store.append(lease, 1, [event("log", {"message": "b"})])

    [*_, last] = await whole_log(store, record.id)
    assert from_json(last.text)["data"] == {"message": "b"}


async def test_an_ended_job_takes_no_more_events(store: Store) -> None:
    """There is one terminal event, and it is the last."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await end(store, lease, batch=1)

    with pytest.raises(LeaseLost):
        await store.append(lease, 2, [event("log", {"message": "late"})])

    assert len(await whole_log(store, record.id)) == 3


async def test_a_writer_of_an_earlier_attempt_is_fenced_out(store: Store) -> None:
    """Attempt and nonce are checked in the script, never the clock."""
    record = await submit(store, KIND)
    old = await begin(store, "echo", "old")
    await store.retry(old, 1, [], {"code": "worker_stopping"}, 0, counts=False)
    await store.leave(old, record, retry_after_seconds=0)
    new = await begin(store, "echo", "new")

    with pytest.raises(LeaseLost):
        await store.append(old, 2, [event("log", {"message": "I am back"})])
    with pytest.raises(LeaseLost):
        await store.append(
            type(new)(new.job, new.kind, new.attempt, old.nonce), 1, [event("log", {"message": "forged"})]
        )

    await store.append(new, 1, [event("log", {"message": "mine"})])
    assert [entry.type for entry in await whole_log(store, record.id)] == [
        b"queued",
        b"started",
        b"retrying",
        b"started",
        b"log",
    ]


async def test_a_batch_that_skips_one_says_that_events_were_lost(store: Store) -> None:
    """Redis lost acknowledged writes: the writer must not go on as if they were there."""
    await submit(store, KIND)
    lease = await begin(store, "echo")

    with pytest.raises(EventsLost):
        await store.append(lease, 2, [event("log", {"message": "where is batch 1?"})])


async def test_a_log_is_read_from_every_cursor(store: Store) -> None:
    """A cursor with a time proves its event; one without is believed."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": str(i)}) for i in range(20)])
    entries = await whole_log(store, record.id)

    for entry in entries:
        for cursor in (entry.cursor, Cursor(entry.number)):
            assert (await store.events(record.id, cursor)).entries == entries[entry.number :]
    limited = await store.events(record.id, START, 5)
    assert limited.entries == entries[:5]
    assert limited.head == entries[-1].cursor


async def test_a_cursor_that_names_another_event_is_told_so(store: Store) -> None:
    """A number that was used again after a failover doesn't match its time."""
    record = await submit(store, KIND)

    assert (await store.events(record.id, Cursor(1, 5))).broken
    assert (await store.events(record.id, Cursor(9, 5))).broken == "rewritten"
    with pytest.raises(BadRequest) as beyond:
        await store.events(record.id, Cursor(9))
    assert beyond.value.code == "bad_cursor"


async def test_a_long_log_is_trimmed_to_the_last_fold_but_one(store: Store) -> None:
    """Trimming is announced to those whose place is gone, and spares all that a snapshot builds on."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    text = "x" * 50_000
    folds: list[Cursor] = []
    last = Cursor(2)
    for batch in range(1, 121):
        folded = batch % 10 == 0
        if folded:
            folds.append(last)
        appended = await store.append(
            lease,
            batch,
            [event("log", {"message": text})],
            fold=b'{"cursor":"%s"}' % str(last).encode() if folded else None,
            fold_cursor=last if folded else None,
        )
        last = appended.last
        if len(folds) > 1:
            # Who has just got the snapshot before this one goes on from there.
            assert (await store.events(record.id, folds[-2], 1)).broken is None

    page = await store.events(record.id, START)
    assert page.broken == "trimmed"
    stored = await store.fold(record.id)
    assert stored is not None
    assert stored[0] == folds[-1]
    after_fold = await store.events(record.id, stored[0])
    assert after_fold.entries[0].number == stored[0].number + 1
    kept = await store._client.xrange(store._keys.events(record.id), "-", "+", count=1)
    assert int(kept[0][0].split(b"-")[0]) in {fold.number for fold in folds[:-1]}


async def test_outputs_are_kept_by_index_and_the_newest_wins(store: Store) -> None:
    """The same index replaces; the order is that of the events."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.append(
        lease,
        1,
        [
            event("output", {"index": "a", "value": 1}, "a"),
            event("output", {"index": "b", "value": 2}, "b"),
            event("output", {"index": "a", "value": 3}, "a"),
        ],
    )

    outputs = [from_json(text) for text in await store.outputs(record.id)]

    assert [(output["id"], output["data"]["index"], output["data"]["value"]) for output in outputs] == [
        (4, "b", 2),
        (5, "a", 3),
    ]
    one = await store.output(record.id, "a")
    assert one is not None
    assert from_json(one)["id"] == 5
    assert await store.output(record.id, "c") is None


async def test_the_record_knows_the_newest_progress_and_the_end(store: Store) -> None:
    """A GET needs no log: the record has what it shows."""
    record = await submit(store, KIND)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("progress", {"current": 1}), event("progress", {"current": 2})])
    assert from_json((await store.job(record.id)).progress or b"") == {"current": 2}

    ended = await end(store, lease, batch=2, type_="failed", data={"problem": {"code": "x"}, "partial": True})

    assert ended.state is State.FAILED
    assert ended.end_data() == {"problem": {"code": "x"}, "partial": True}
    assert ended.expires_ms is not None
    assert ended.ended_ms is not None
    assert ended.expires_ms > ended.ended_ms
