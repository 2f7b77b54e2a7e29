"""A job's events over HTTP, as raw bytes and as clients read them: SSE, NDJSON, pages with a long poll."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic_core import from_json

from gateway.documents import KindDocument
from gateway.handlers.context import HUB
from gateway.protocol import Cursor
from gateway.sse import Decoder, Message
from gateway.store import JobRecord, LogPage, Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end, event, submit
from tests.serving import Gateway, gateway_for

KIND = KindDocument(kind="echo")


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with quick heartbeats, in development mode."""
    async with gateway_for(store, tmp_path / "blobs", heartbeat_seconds=0.6, dev=True) as gateway:
        yield gateway


async def job(store: Store) -> JobRecord:
    """A job of the owner of a gateway without keys."""
    return await submit(store, KIND, owner="local")


async def messages(gateway: Gateway, path: str, **headers: str) -> tuple[list[Message], aiohttp.ClientResponse]:
    """All of an SSE stream, to its end."""
    decoder = Decoder()
    found: list[Message] = []
    async with gateway.session.get(gateway.url + path, headers=headers) as response:
        async for piece in response.content.iter_any():
            found += decoder.feed(piece)
    return found, response


@pytest.mark.alone
async def test_a_stream_speaks_at_once_in_two_frames_and_keeps_hops_from_buffering(
    gateway: Gateway, store: Store
) -> None:
    """Headers alone may be held back by an edge: a comment and `retry:` follow them within a second."""
    record = await job(store)
    took = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
        began = asyncio.get_running_loop().time()
        writer.write(f"GET /v1/jobs/{record.id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            first = await reader.readuntil(b"\n\n\r\n")
            second = await reader.readuntil(b"\n\n\r\n")
        took.append(asyncio.get_running_loop().time() - began)
        writer.transport.abort()

    # The machine may be busy elsewhere, though hardly each time.
    assert min(took) < 1
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Type: text/event-stream" in head
    assert b"Cache-Control: no-cache, no-store, no-transform" in head
    assert b"X-Accel-Buffering: no" in head
    assert b"Content-Length" not in head
    assert b"Content-Encoding" not in head
    assert first == b"6\r\n: ok\n\n\r\n"
    assert re.fullmatch(rb"[0-9a-f]+\r\nretry: \d+\n\n\r\n", second)


async def test_silence_is_broken_by_comments(gateway: Gateway, store: Store) -> None:
    """A queued job's stream carries heartbeats that are no events."""
    record = await job(store)
    decoder = Decoder()
    async with gateway.session.get(f"{gateway.url}/v1/jobs/{record.id}/events") as response:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while decoder.comments < 3:
                decoder.feed(await response.content.readany())


async def test_a_stream_is_resumed_after_any_event(gateway: Gateway, store: Store) -> None:
    """`Last-Event-ID: N` continues at N + 1, with the id as it came or with the bare number."""
    record = await job(store)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": str(i)}) for i in range(10)])
    await end(store, lease, batch=2)
    whole, _ = await messages(gateway, f"/v1/jobs/{record.id}/events")
    assert [from_json(one.data)["id"] for one in whole] == list(range(1, 14))

    for number, message in enumerate(whole[:-1], 1):
        for cursor in (message.id, str(number)):
            rest, _ = await messages(gateway, f"/v1/jobs/{record.id}/events", **{"Last-Event-ID": cursor})
            assert rest == whole[number:]
    after, _ = await messages(gateway, f"/v1/jobs/{record.id}/events?after={whole[4].id}")
    assert after == whole[5:]


async def test_a_reconnect_after_the_end_is_told_to_stop(gateway: Gateway, store: Store) -> None:
    """204 ends a browser's reconnecting; the other formats are empty."""
    record = await job(store)
    lease = await begin(store, "echo")
    ended = await end(store, lease, batch=1)
    path = f"/v1/jobs/{record.id}/events"

    for cursor in (str(ended.last), str(ended.last.number)):
        assert (await gateway.get(path, headers={"Last-Event-ID": cursor})).status == 204
    ndjson = await gateway.get(f"{path}?after={ended.last}", headers={"Accept": "application/x-ndjson"})
    assert (ndjson.status, ndjson.body.strip()) == (200, b"")
    page = await gateway.get(f"{path}?after={ended.last}", headers={"Accept": "application/json"})
    assert (page.status, page.json()) == (200, [])


NO_CURSORS = [
    *("-1", "abc", "5x", "1e9", "٣", "5-", "99999999999999999999", "1,2", "01", "+1", " 1", "1 ", "0x1"),
    *("5\r\nX: y", "1\n", "1\0", "1-1-1", "1.1", "../1", "9" * 4000),
]


@pytest.mark.parametrize("cursor", NO_CURSORS, ids=ascii)
@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_a_cursor_that_is_none_is_refused(gateway: Gateway, store: Store, cursor: str, accept: str) -> None:
    """Nonsense is 400 with advice, never 500 and never a guess; over many jobs too, and on the answer's own line."""
    record = await job(store)
    answer = await gateway.get(f"/v1/jobs/{record.id}/events", params={"after": cursor}, headers={"Accept": accept})
    many = await gateway.get("/v1/events", params={"jobs": record.id, "after": cursor})

    for one in (answer, many):
        assert one.status == 400
        assert one.json()["code"] == "bad_cursor"
        assert "X" not in one.headers


@pytest.mark.parametrize("line", [b"-1", b"abc", b"\xd9\xa3", b"9" * 4000, b"1, 2"], ids=ascii)
async def test_a_header_that_is_no_cursor_is_refused(gateway: Gateway, store: Store, line: bytes) -> None:
    """A browser's own header is read as strictly, whatever bytes stand in it."""
    record = await job(store)
    answer = await gateway.raw(
        b"GET /v1/jobs/%b/events HTTP/1.1\r\nHost: 127.0.0.1\r\nLast-Event-ID: %b\r\nConnection: close\r\n\r\n"
        % (record.id.encode(), line)
    )

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"bad_cursor" in answer


async def test_a_cursor_of_another_job_gets_only_its_own_jobs_events(gateway: Gateway, store: Store) -> None:
    """It names content: where it names another job's event, the listener is told by `reset`, never spliced."""
    one, two = await job(store), await job(store)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": "later"})])
    ended = await end(store, lease, batch=2)
    other = two if lease.job == one.id else one
    await store.cancel(other.id, "local", "")
    # Before the other job had an event 2.
    foreign = Cursor(2, (ended.last.time_ms or 0) - 1)

    found, _ = await messages(gateway, f"/v1/jobs/{other.id}/events", **{"Last-Event-ID": str(foreign)})

    assert {from_json(message.data)["job"] for message in found} == {other.id}
    assert [from_json(message.data)["type"] for message in found][:2] == ["reset", "snapshot"]


async def test_a_cursor_in_the_future_is_refused(gateway: Gateway, store: Store) -> None:
    """A bare number beyond the head names nothing."""
    record = await job(store)
    answer = await gateway.get(f"/v1/jobs/{record.id}/events?after=99")
    assert (answer.status, answer.json()["code"]) == (400, "bad_cursor")


async def test_a_cursor_of_another_history_gets_a_reset(gateway: Gateway, store: Store) -> None:
    """What the log doesn't hold is announced; the snapshot carries an id to go on from."""
    record = await job(store)
    lease = await begin(store, "echo")
    await end(store, lease, batch=1)

    found, _ = await messages(gateway, f"/v1/jobs/{record.id}/events?after=2-5")

    assert [from_json(one.data)["type"] for one in found] == ["reset", "snapshot", "queued", "started", "succeeded"]
    assert found[0].id == ""


async def test_live_events_arrive_in_one_stream_with_the_log(gateway: Gateway, store: Store) -> None:
    """A listener that came before the work hears all of it, to the end."""
    record = await job(store)
    listening = asyncio.create_task(messages(gateway, f"/v1/jobs/{record.id}/events"))
    lease = await begin(store, "echo")
    for batch in range(1, 51):
        await store.append(lease, batch, [event("delta", {"channel": "text", "text": "a"})])
    await end(store, lease, batch=51)

    async with asyncio.timeout(PATIENCE_SECONDS):
        found, _ = await listening
    numbered = [from_json(one.data)["id"] for one in found if "id" in from_json(one.data)]
    assert numbered == list(range(1, 54))


async def test_names_are_added_only_on_request(gateway: Gateway, store: Store) -> None:
    """Without `event:` lines one `onmessage` hears everything."""
    record = await job(store)
    await store.cancel(record.id, "local", "")
    plain, _ = await messages(gateway, f"/v1/jobs/{record.id}/events")
    named, _ = await messages(gateway, f"/v1/jobs/{record.id}/events?names=1")

    assert [one.event for one in plain] == ["message", "message"]
    assert [one.event for one in named] == ["queued", "cancelled"]
    assert [one.data for one in plain] == [one.data for one in named]


async def test_a_filter_hides_events_but_moves_the_cursor(gateway: Gateway, store: Store) -> None:
    """Hidden numbers travel as blocks with an id alone; the end is never hidden."""
    record = await job(store)
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("log", {"message": "hidden"})] * 3)
    decoder = Decoder()
    found: list[Message] = []
    async with gateway.session.get(f"{gateway.url}/v1/jobs/{record.id}/events?types=progress") as response:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not decoder.last_event_id.startswith("5-"):
                found += decoder.feed(await response.content.readany())
        assert found == []
        await store.append(lease, 2, [event("progress", {"current": 1})])
        await end(store, lease, batch=3)
        async for piece in response.content.iter_any():
            found += decoder.feed(piece)

    assert [from_json(one.data)["type"] for one in found] == ["progress", "succeeded"]


async def test_ndjson_is_one_event_a_line_without_blank_lines(gateway: Gateway, store: Store) -> None:
    """The heartbeat is a space: a blank line would break parsers."""
    record = await job(store)
    lease = await begin(store, "echo")

    url = f"{gateway.url}/v1/jobs/{record.id}/events?types=log"
    async with gateway.session.get(url, headers={"Accept": "application/x-ndjson"}) as answer:
        body = await answer.content.readexactly(2)
        await end(store, lease, batch=1)
        body += await answer.content.read()

    assert answer.headers["Content-Type"] == "application/x-ndjson"
    lines = body.split(b"\n")
    assert lines[-1] == b""
    assert all(line.strip() for line in lines[:-1])
    assert lines[0].startswith(b"  ")
    assert [from_json(line)["type"] for line in lines[:-1]] == ["succeeded"]


async def test_a_page_is_an_array_and_a_long_poll_waits_for_the_first_event(gateway: Gateway, store: Store) -> None:
    """`?wait=` returns with the event, not after the time."""
    record = await job(store)
    path = f"/v1/jobs/{record.id}/events"
    page = await gateway.get(path, headers={"Accept": "application/json"})
    assert [one["type"] for one in page.json()] == ["queued"]
    cursor = page.headers["Last-Event-ID"]
    assert Cursor.parse(cursor) == record.last

    waiting = asyncio.create_task(gateway.get(f"{path}?after={cursor}&wait=50", headers={"Accept": "application/json"}))
    await wait_until(lambda: gateway.server and store.feed.connected)
    lease = await begin(store, "echo")
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await waiting
    assert answer.json()[0]["type"] == "started"

    started = asyncio.get_running_loop().time()
    none = await gateway.get(
        f"{path}?after={answer.headers['Last-Event-ID']}&wait=0.3", headers={"Accept": "application/json"}
    )
    assert none.json() == []
    assert asyncio.get_running_loop().time() - started >= 0.25
    await end(store, lease, batch=1)


async def test_cut_ends_a_connection_without_a_word_and_resuming_loses_nothing(gateway: Gateway, store: Store) -> None:
    """In development `?cut=` shows the resume work; the stream ends in the middle, as a network's cut does."""
    record = await job(store)
    lease = await begin(store, "echo")
    decoder = Decoder()
    found: list[Message] = []
    with pytest.raises(aiohttp.ClientPayloadError):  # noqa: PT012 - the cut comes somewhere in the reading
        async with gateway.session.get(f"{gateway.url}/v1/jobs/{record.id}/events?cut=0.3s") as response:
            async for piece in response.content.iter_any():
                found += decoder.feed(piece)
    await end(store, lease, batch=1)

    rest, _ = await messages(gateway, f"/v1/jobs/{record.id}/events", **{"Last-Event-ID": decoder.last_event_id})

    numbers = [from_json(one.data).get("id") for one in found + rest]
    assert [number for number in numbers if number] == [1, 2, 3]


async def test_a_stream_ends_by_plan_with_advice_to_come_back(store: Store, tmp_path: Path) -> None:
    """Resuming is exercised every day: `closing` and `retry:` come before the end."""
    async with gateway_for(store, tmp_path / "blobs", stream_max_age_seconds=1) as gateway:
        record = await job(store)
        async with asyncio.timeout(PATIENCE_SECONDS):
            found, _ = await messages(gateway, f"/v1/jobs/{record.id}/events")

    assert from_json(found[0].data)["type"] == "queued"
    closing = from_json(found[-1].data)
    assert (closing["type"], closing["data"]["reason"]) == ("closing", "max_age")
    assert found[-1].id == found[0].id


async def test_several_jobs_share_one_connection_and_one_cursor(gateway: Gateway, store: Store) -> None:
    """The cursor is their numbers in the query's order, joined by dots."""
    one, two = await job(store), await job(store)
    path = f"/v1/events?jobs={one.id},{two.id}"
    lease = await begin(store, "echo")
    first = one if lease.job == one.id else two
    await end(store, lease, batch=1)
    second = await begin(store, "echo")
    await store.append(second, 1, [event("log", {"message": "m"})])
    await end(store, second, batch=2)

    whole, _ = await messages(gateway, path)
    by_job: dict[str, list[int]] = {one.id: [], two.id: []}
    for message in whole:
        text = from_json(message.data)
        by_job[text["job"]].append(text["id"])
        assert message.id == f"{len(by_job[one.id])}.{len(by_job[two.id])}"
    assert by_job == {first.id: [1, 2, 3], second.job: [1, 2, 3, 4]}

    for place, message in enumerate(whole[:-1], 1):
        rest, _ = await messages(gateway, path, **{"Last-Event-ID": message.id})
        assert sorted(one.data for one in rest) == sorted(one.data for one in whole[place:])
    assert (await gateway.get(path, headers={"Last-Event-ID": whole[-1].id})).status == 204


async def test_jobs_that_are_not_there_leave_the_others_theirs(gateway: Gateway, store: Store) -> None:
    """One that has expired, an id that never was, another owner's job: a word about each, once, and then the rest."""
    expired, there, other = await job(store), await job(store), await submit(store, KIND, owner="somebody")
    await store.cancel(expired.id, "local", "")
    assert (await gateway.ask("DELETE", f"/v1/jobs/{expired.id}")).status == 204
    await store.cancel(there.id, "local", "")
    never = "a" * 26
    path = f"/v1/events?types=log&jobs={expired.id},{never},{there.id},{other.id},%FF"

    whole, _ = await messages(gateway, path)
    events = [from_json(message.data) for message in whole]
    problems = {one["job"]: one["data"]["problem"] for one in events if one["type"] == "missing"}

    assert [message.id for message in whole] == ["x.0.0.0.0", "x.x.0.0.0", "x.x.0.x.0", "x.x.0.x.x", "x.x.2.x.x"]
    assert list(problems)[:3] == [expired.id, never, other.id]
    codes = [(problem["status"], problem["code"]) for problem in problems.values()]
    assert codes == [(410, "expired"), *[(404, "job_not_found")] * 3]
    assert problems[other.id]["detail"].replace(other.id, never) == problems[never]["detail"]
    assert (events[-1]["job"], events[-1]["terminal"]) == (there.id, True)

    for place, message in enumerate(whole[:-1], 1):
        rest, _ = await messages(gateway, path, **{"Last-Event-ID": message.id})
        assert [one.id for one in rest] == [one.id for one in whole[place:]]
    for done in (whole[-1].id, "x.x.x.x.x"):
        assert (await gateway.get(path, headers={"Last-Event-ID": done})).status == 204
    alone = await gateway.get(f"/v1/events?jobs={expired.id},{never}")
    assert (alone.status, alone.json()["code"]) == (410, "expired")


async def test_one_job_whose_newest_events_redis_lost_leaves_the_others_theirs(gateway: Gateway, store: Store) -> None:
    """A number that the job has no more is announced, as on a stream of its own, and is no error of all."""
    lost, other = await job(store), await job(store)
    for one in (lost, other):
        await store.cancel(one.id, "local", "")

    rest, _ = await messages(gateway, f"/v1/events?jobs={lost.id},{other.id}&after=7.1")

    of = {
        one.id: [from_json(row.data)["type"] for row in rest if from_json(row.data)["job"] == one.id]
        for one in (lost, other)
    }
    assert of == {lost.id: ["reset", "snapshot", "queued", "cancelled"], other.id: ["cancelled"]}


async def test_a_log_that_is_long_in_coming_keeps_no_other_waiting(
    gateway: Gateway, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be large, or its master away: the other jobs of the connection have theirs meanwhile."""
    slow, quick = await job(store), await job(store)
    for one in (slow, quick):
        await store.cancel(one.id, "local", "")
    read, come = store.events, asyncio.Event()

    async def slowly(of: str, *where: Any) -> LogPage:
        if of == slow.id:
            await come.wait()
        return await read(of, *where)

    monkeypatch.setattr(store, "events", slowly)
    decoder = Decoder()
    told: list[str] = []
    async with gateway.session.get(f"{gateway.url}/v1/events?jobs={slow.id},{quick.id}") as response:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for piece in response.content.iter_any():
                told += [from_json(message.data)["job"] for message in decoder.feed(piece)]
                if len(told) == 2:
                    come.set()

    assert told == [quick.id] * 2 + [slow.id] * 2


async def test_an_end_that_is_read_again_is_not_the_end_of_another_job(gateway: Gateway, store: Store) -> None:
    """A gap in the feed makes every log be read again, also that of a job whose end was sent."""
    ended, open_ = await job(store), await job(store)
    await store.cancel(ended.id, "local", "")
    hub = gateway.app[HUB]
    decoder = Decoder()
    told: list[tuple[str, str]] = []
    async with gateway.session.get(f"{gateway.url}/v1/events?jobs={ended.id},{open_.id}") as response:

        async def hear(type_: str, record: JobRecord) -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (type_, record.id) not in told:
                    piece = await response.content.readany()
                    assert piece, "the stream has ended"
                    told.extend(
                        (one["type"], one["job"]) for one in map(from_json, (m.data for m in decoder.feed(piece)))
                    )

        await hear("cancelled", ended)
        await hear("queued", open_)
        hub._watches[ended.id].on_gap()
        await wait_until(lambda: not hub._tasks)
        await store.cancel(open_.id, "local", "")
        await hear("cancelled", open_)


@pytest.mark.alone
async def test_a_client_that_goes_frees_its_subscription_within_a_second(gateway: Gateway, store: Store) -> None:
    """aiohttp lets a handler run on after its client has gone, unless it is told otherwise."""
    record = await job(store)
    hub = gateway.app[HUB]
    took = []
    for _ in range(3):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
        writer.write(f"GET /v1/jobs/{record.id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await wait_until(lambda: len(hub.listeners) == 1)

        began = asyncio.get_running_loop().time()
        writer.transport.abort()

        await wait_until(lambda: not hub.listeners)
        took.append(asyncio.get_running_loop().time() - began)
    # The machine may be busy elsewhere, though hardly each time.
    assert min(took) < 1


async def test_http_1_0_gets_the_stream_without_chunks(gateway: Gateway, store: Store) -> None:
    """Some health checks and old proxies speak HTTP/1.0: the end of the connection is the end of the stream."""
    record = await job(store)
    await store.cancel(record.id, "local", "")

    answer = await gateway.raw(f"GET /v1/jobs/{record.id}/events HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())

    head, body = answer.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head
    assert [from_json(one.data)["type"] for one in Decoder().feed(body)] == ["queued", "cancelled"]


async def test_a_redis_outage_leaves_streams_open_and_loses_nothing(
    valkey: str, prefix: str, tmp_path: Path, store: Store
) -> None:
    """While Redis is away heartbeats go on; afterwards the listener gets what it missed."""
    from tests.faults import FaultProxy

    async with FaultProxy(valkey) as proxy:
        behind = await Store.connect(proxy.url, prefix=prefix, lease_seconds=0.6)
        try:
            async with gateway_for(behind, tmp_path / "blobs", heartbeat_seconds=0.5) as gateway:
                record = await job(store)
                lease = await begin(store, "echo")
                decoder = Decoder()
                found: list[Message] = []
                async with gateway.session.get(f"{gateway.url}/v1/jobs/{record.id}/events") as response:
                    while len(found) < 2:
                        found += decoder.feed(await response.content.readany())
                    proxy.refuse()
                    proxy.cut()
                    comments = decoder.comments
                    await store.append(lease, 1, [event("log", {"message": "while nobody could hear"})])
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        while decoder.comments < comments + 2:
                            found += decoder.feed(await response.content.readany())
                    proxy.refuse(False)
                    await end(store, lease, batch=2)
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        async for piece in response.content.iter_any():
                            found += decoder.feed(piece)
        finally:
            await behind.close()
    numbers = [from_json(one.data).get("id") for one in found]
    assert [number for number in numbers if number] == [1, 2, 3, 4]
