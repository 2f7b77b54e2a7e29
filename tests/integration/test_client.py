"""The Python client against a real gateway, through a proxy that cuts, stalls and loses replies."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client, File, Subscription
from gateway.client.client import Transport
from gateway.documents import KindDocument
from gateway.edge import Edge, load_profile
from gateway.errors import (
    BadRequest,
    Gone,
    InvalidInput,
    JobFailed,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedType,
)
from gateway.event_text import decode_event, encode_snapshot_data
from gateway.fold import Fold
from gateway.handlers.context import HUB
from gateway.protocol import Cursor, Event, State, format_time
from gateway.store import Lease, Store
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.jobs import begin, end, event, fold_log
from tests.serving import KEY, KEYS, Gateway, gateway_for

TRANSPORTS = pytest.mark.parametrize("transport", ["sse", "websocket"])


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with quick heartbeats."""
    async with gateway_for(store, tmp_path / "blobs", heartbeat_seconds=0.2, retry_seconds=0.1) as gateway:
        yield gateway


@asynccontextmanager
async def client_of(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client that comes back at once, and takes a second of silence for a dead connection."""
    options = {"backoff_seconds": 0.02, "patience_seconds": 20.0, "silence_seconds": 1.0} | options
    async with Client(url, **options) as client:
        yield client


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """A client of the gateway."""
    async with client_of(gateway.url) as client:
        yield client


class Listener:
    """Reads a subscription beside the test."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.events: list[Event] = []
        self._reading = asyncio.create_task(self._read(), name="reads events")

    async def _read(self) -> None:
        async for one in self.subscription:
            self.events.append(one)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the numbered events so far."""
        return [one.id for one in self.events if one.id is not None and one.type != "snapshot"]

    @property
    def types(self) -> list[str]:
        """What happened so far, without what comes when it likes."""
        return [one.type for one in self.events if one.type not in {"position", "liveness"}]

    async def finish(self) -> None:
        """Wait for the end of the loop. Raises what the loop raised."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._reading

    async def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def listening(subscription: Subscription) -> AsyncIterator[Listener]:
    """A listener for the length of the block."""
    listener = Listener(subscription)
    try:
        yield listener
    finally:
        await listener.close()


async def write(store: Store, lease: Lease, batches: int, *, first: int = 1) -> None:
    """Append some events in each of several batches, as a busy worker."""
    for batch in range(first, first + batches):
        await store.append(lease, batch, [event("log", {"message": f"{batch} {part} \u00fc"}) for part in range(5)])


# --- events ---------------------------------------------------------------------------------------------------------


@TRANSPORTS
async def test_connections_that_are_cut_again_and_again_lose_and_repeat_nothing(
    gateway: Gateway, store: Store, transport: Transport
) -> None:
    """The promise, while the job goes on: each event once, in order."""
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url, transport=transport) as client:
        job = await client.submit("echo")
        lease = await begin(store, "echo")
        async with listening(job.events()) as listener:
            for batch in range(1, 61):
                await write(store, lease, 1, first=batch)
                if batch % 10 == 0:
                    # Somewhere between two events, or in the middle of one.
                    await wait_until(lambda: proxy.connections)
                    proxy.cut()
                await asyncio.sleep(0)
            await end(store, lease, batch=61)
            await listener.finish()

        assert listener.numbers == list(range(1, 2 + 300 + 2))
        subscription = listener.subscription
        assert subscription.reconnects >= 1
        assert (subscription.missed, subscription.holes, subscription.repeated) == (0, 0, 0)


@TRANSPORTS
async def test_a_connection_that_stalls_is_made_anew(gateway: Gateway, store: Store, transport: Transport) -> None:
    """Half-open: no error, no end, only silence. The heartbeat shows it."""
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url, transport=transport) as client:
        job = await client.submit("echo")
        lease = await begin(store, "echo")
        async with listening(job.events()) as listener:
            await wait_until(lambda: len(listener.numbers) == 2)
            proxy.stall()
            await write(store, lease, 3)
            await wait_until(lambda: listener.subscription.last_error is not None)
            proxy.resume()
            await end(store, lease, batch=4)
            await listener.finish()

        assert listener.numbers == list(range(1, 19))
        assert listener.subscription.reconnects >= 1


@TRANSPORTS
async def test_a_quiet_job_keeps_its_connection(gateway: Gateway, store: Store, transport: Transport) -> None:
    """Heartbeats alone are life enough."""
    async with client_of(gateway.url, transport=transport) as client:
        job = await client.submit("echo")
        lease = await begin(store, "echo")
        async with listening(job.events()) as listener:
            await wait_until(lambda: len(listener.numbers) == 2)
            began = asyncio.get_running_loop().time()
            await wait_until(lambda: asyncio.get_running_loop().time() > began + 2.5)
            await end(store, lease, batch=1)
            await listener.finish()

        assert listener.subscription.reconnects == 0


async def test_a_gateway_that_is_away_for_a_while_is_waited_for(gateway: Gateway, store: Store) -> None:
    """A restart refuses connections for some seconds; the loop hears nothing of it."""
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url) as client:
        job = await client.submit("echo")
        async with listening(job.events()) as listener:
            await wait_until(lambda: listener.numbers)
            proxy.refuse()
            proxy.cut()
            await wait_until(lambda: proxy.refused >= 3)
            lease = await begin(store, "echo")
            await end(store, lease, batch=1)
            proxy.refuse(False)
            await listener.finish()

        assert listener.numbers == [1, 2, 3]
        assert client.reconnects == 1


@TRANSPORTS
async def test_planned_ends_are_no_ends(store: Store, tmp_path: Path, transport: Transport) -> None:
    """The gateway ends long streams by plan; the loop goes on."""
    async with (
        gateway_for(store, tmp_path / "blobs", stream_max_age_seconds=1, retry_seconds=0.1) as gateway,
        client_of(gateway.url, transport=transport) as client,
    ):
        job = await client.submit("echo")
        lease = await begin(store, "echo")
        async with listening(job.events()) as listener:
            await wait_until(lambda: listener.subscription.reconnects == 2)
            await end(store, lease, batch=1)
            await listener.finish()

        assert listener.numbers == [1, 2, 3]


async def test_a_stream_can_be_resumed_at_another_gateway_over_the_other_transport(
    store: Store, gateway: Gateway, tmp_path: Path
) -> None:
    """Gateways hold no state of a job, and a cursor is good on all of them."""
    async with gateway_for(store, tmp_path / "others") as other, client_of(other.url) as elsewhere:
        async with client_of(gateway.url) as client:
            job = await client.submit("echo")
            lease = await begin(store, "echo")
            await write(store, lease, 2)
            await end(store, lease, batch=3)
            async with listening(job.events()) as listener:
                await listener.finish()
        for event_ in listener.events[:-1]:
            for transport in ("sse", "websocket"):
                rest = [one async for one in elsewhere.events(job.id, event_.cursor, transport=transport)]
                assert [one.id for one in rest] == listener.numbers[event_.id or 0 :]


@TRANSPORTS
async def test_who_has_the_end_already_hears_nothing_more(client: Client, store: Store, transport: Transport) -> None:
    """204, or its like on a socket: the loop ends at once."""
    job = await client.submit("echo")
    ended = await end(store, await begin(store, "echo"), batch=1)

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert [one async for one in job.events(ended.last, transport=transport)] == []


@TRANSPORTS
async def test_a_trimmed_log_is_told_and_built_upon(client: Client, store: Store, transport: Transport) -> None:
    """What is gone is counted; the snapshot and the rest make the same fold as the whole log."""
    job = await client.submit("echo")
    lease = await begin(store, "echo")
    page = await store.events(job.id, Cursor(0))
    fold = fold_log(job.id, [decode_event(entry.text) for entry in page.entries])
    text = "x" * 60_000
    for batch in range(1, 101):
        data = {"channel": "text", "text": text}
        stored = encode_snapshot_data(fold) if batch % 10 == 0 else None
        appended = await store.append(
            lease, batch, [event("delta", data)], fold=stored, fold_cursor=fold.cursor if stored else None
        )
        number, time_ms = appended.last
        fold.apply(Event(id=number, time=format_time(time_ms or 0), job=job.id, attempt=1, type="delta", data=data))
    await end(store, lease, batch=101)

    async with listening(job.events(transport=transport)) as listener:
        await listener.finish()

    assert listener.types[:2] == ["reset", "snapshot"]
    assert listener.subscription.missed > 50
    followed = Fold(job.id)
    for one in listener.events:
        followed = followed.follow(one)
    assert followed.text == fold.text
    assert followed.state is State.SUCCEEDED
    assert (await job.fold()).data() == followed.data()


@TRANSPORTS
async def test_a_snapshot_comes_first_where_it_is_asked_for(client: Client, store: Store, transport: Transport) -> None:
    """Then the rest of the log; together they are the fold."""
    job = await client.submit("echo")
    lease = await begin(store, "echo")
    await write(store, lease, 2)
    await end(store, lease, batch=3)

    async with listening(job.events(snapshot=True, transport=transport)) as listener:
        await listener.finish()

    fold = Fold(job.id)
    for one in listener.events:
        fold = fold.follow(one)
    assert listener.types[0] == "snapshot"
    assert fold.terminal


async def test_only_the_types_that_were_asked_for_come(client: Client, store: Store) -> None:
    """And the terminal event always."""
    job = await client.submit("echo")
    lease = await begin(store, "echo")
    await store.append(lease, 1, [event("a.b", {"n": 1}), event("log", {}), event("a.b", {"n": 2})])
    await end(store, lease, batch=2)

    assert [one.type async for one in job.events(types=["a.b"])] == ["a.b", "a.b", "succeeded"]


@TRANSPORTS
async def test_an_expired_job_is_gone(client: Client, store: Store, transport: Transport) -> None:
    """410, over either transport, and of `job` and `result` too."""
    job = await client.submit("echo", retention_seconds=1)
    await end(store, await begin(store, "echo"), batch=1)

    async def expired() -> bool:
        try:
            await client.job(job)
        except Gone:
            return True
        return False

    await wait_until(expired)
    with pytest.raises(Gone):
        [one async for one in job.events(transport=transport)]
    with pytest.raises(Gone):
        await job.result()


async def test_cancelling_the_loop_leaves_the_job_alone(client: Client, store: Store, gateway: Gateway) -> None:
    """A listener that goes is nobody's wish to end the work."""
    job = await client.submit("echo")
    async with listening(job.events()) as listener:
        await wait_until(lambda: listener.numbers)

    hub = gateway.app[HUB]
    await wait_until(lambda: not hub.listeners)
    assert (await job.refresh()).state is State.QUEUED


# --- submit ---------------------------------------------------------------------------------------------------------


async def test_a_lost_answer_makes_no_second_job(gateway: Gateway, store: Store) -> None:
    """The job was made, the reply was lost: the repeat finds it by its key."""
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url) as client:
        proxy.drop_reply(b"POST /v1/kinds/echo/jobs")
        job = await client.submit("echo", {"a": 1})

        assert proxy.dropped.is_set()
        assert job.replayed
        assert [one.id async for one in client.jobs()] == [job.id]


async def test_options_reach_the_job(client: Client) -> None:
    """As JSON, and beside files as a part of their own."""
    options: dict[str, Any] = {"priority": "low", "tags": ["a", "b/c"], "run_timeout_seconds": 5.5}

    plain = await client.submit("form", {"name": "x"}, **options)
    with_file = await client.submit("form", {"name": "x"}, files=b"%PDF-1.7", **options)

    for job in (plain, with_file):
        assert (job.document.priority, job.document.tags) == ("low", ["a", "b/c"])
    assert [file.name for file in with_file.document.files] == ["file-1"]
    with pytest.raises(InvalidInput) as refused:
        await client.submit("form", {"name": "x"}, webhook="http://x")
    assert refused.value.errors[0]["field"] == "webhook"


async def test_files_arrive_as_they_were(client: Client, tmp_path: Path) -> None:
    """Bytes, names and types, of several files in one submit."""
    large = tmp_path / "Gr\u00fc\u00dfe \u6f22 1.pdf"
    content = b"%PDF-1.7 " + bytes(range(256)) * 20_000
    large.write_bytes(content)
    reports: list[tuple[int, int | None]] = []

    job = await client.submit(
        "read",
        files=[large, File(b"\x89PNG\r\n\x1a\n", name='odd "name".png')],
        on_upload=lambda sent, total: reports.append((sent, total)),
    )

    first, second = job.document.files
    assert (first.name, first.content_type, first.size) == (large.name, "application/pdf", len(content))
    assert second.content_type == "image/png"
    assert await client.fetch(first.url) == content
    assert reports[-1][0] == reports[-1][1]
    assert len(reports) > 10


async def test_a_download_that_is_cut_goes_on_where_it_stopped(gateway: Gateway) -> None:
    """Cut twice by an edge, each byte comes once."""
    content = b"%PDF-1.7 " + bytes(range(256)) * 1000
    async with Edge(load_profile("direct"), gateway.url) as edge, client_of(edge.url) as client:
        job = await client.submit("read", files=[File(content, name="a.pdf")])
        edge.fault("drop_after_bytes", times=2, method="GET", path="/v1/jobs/", bytes=100_000)
        assert await client.fetch(job.document.files[0].url) == content
        parts = [(record.status, record.passed_bytes) for record in edge.requests if record.method == "GET"]

    assert parts == [(200, 100_000), (206, 100_000), (206, len(content) - 200_000)]


async def test_an_upload_that_is_cut_goes_on_in_parts(gateway: Gateway, tmp_path: Path) -> None:
    """Under the same key: one job, with whole files; nothing of the upload is left."""
    path = tmp_path / "scan.pdf"
    content = b"%PDF-1.7 " + bytes(2_000_000)
    path.write_bytes(content)
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url) as client:
        cuts = 0

        def cut(sent: int, total: int | None) -> None:
            nonlocal cuts
            if sent > 1_000_000 and cuts < 2:
                cuts += 1
                proxy.cut()

        job = await client.submit("read", files=path, on_upload=cut)

        assert cuts == 2
        assert [one.id async for one in client.jobs()] == [job.id]
        digest = hashlib.sha256(await client.fetch(job.document.files[0].url)).digest()
    assert digest == hashlib.sha256(content).digest()
    assert await gateway.blob_count() == 1
    assert await gateway.blobs.newest("uploads") == {}


async def test_what_is_too_large_is_heard_before_it_is_sent(store: Store, tmp_path: Path) -> None:
    """The gateway refuses by the announced length; nothing of the body travels."""
    path = tmp_path / "large.pdf"
    with path.open("wb") as file:
        file.truncate(60_000_000)
    sent: list[int] = []
    async with (
        gateway_for(store, tmp_path / "blobs", max_upload_bytes=1_000_000) as gateway,
        client_of(gateway.url) as client,
    ):
        with pytest.raises(TooLarge, match="1000000"):
            await client.submit("read", files=path, on_upload=lambda done, total: sent.append(done))
    assert sent == []


async def test_what_is_wrong_is_named(client: Client) -> None:
    """The gateway's words, as our errors."""
    with pytest.raises(NotFound, match="echo"):
        await client.submit("ecco")
    with pytest.raises(InvalidInput) as wrong:
        await client.submit("form", {"name": "far too long a name"})
    assert wrong.value.errors[0]["field"] == "input.name"
    with pytest.raises(UnsupportedType, match="takes no files"):
        await client.submit("echo", files=b"x")
    with pytest.raises(InvalidInput, match="needs a file"):
        await client.submit("read")
    with pytest.raises(BadRequest, match="beyond the last event"):
        [one async for one in client.events((await client.submit("echo")).id, "99")]


async def test_keys_open_what_is_their_owners(store: Store, tmp_path: Path) -> None:
    """401 without one; another owner's job is not found, over either transport."""
    async with (
        gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway,
        client_of(gateway.url, api_key=KEY) as mine,
        client_of(gateway.url, api_key=KEYS["other"]) as other,
        client_of(gateway.url) as nobody,
    ):
        job = await mine.submit("echo")
        for transport in ("sse", "websocket"):
            with pytest.raises(Unauthorized):
                [one async for one in nobody.events(job.id, transport=transport)]
            with pytest.raises(NotFound):
                [one async for one in other.events(job.id, transport=transport)]
        with pytest.raises(Unauthorized):
            await nobody.kinds()
        assert [one async for one in other.jobs()] == []


# --- results --------------------------------------------------------------------------------------------------------


async def test_a_result_is_waited_for_and_comes_in_its_forms(client: Client, store: Store) -> None:
    """JSON, or what the processor left beside it."""
    job = await client.submit("echo")
    waiting = asyncio.create_task(job.result())
    lease = await begin(store, "echo")
    text = {"index": "result.txt", "content_type": "text/plain; charset=utf-8", "value": "Gr\u00fc\u00dfe"}
    await store.append(lease, 1, [event("output", text, index="result.txt")])
    await end(store, lease, batch=2, data={"result": {"text": "Gr\u00fc\u00dfe"}})

    assert await waiting == {"text": "Gr\u00fc\u00dfe"}
    assert await job.result(accept="text/plain") == "Gr\u00fc\u00dfe"
    assert await job.result(accept="text/plain;q=0.1, application/json") == {"text": "Gr\u00fc\u00dfe"}
    assert [one.data["index"] async for one in job.outputs()] == ["result.txt"]


async def test_a_job_that_failed_is_an_error_with_its_problem(client: Client, store: Store) -> None:
    """Over `result` and over the terminal event alike."""
    problem = {"type": "/docs#problem-rejected", "title": "Rejected", "code": "rejected", "detail": "It is encrypted."}
    job = await client.submit("echo")
    await end(store, await begin(store, "echo"), batch=1, type_="failed", data={"problem": problem, "partial": False})

    with pytest.raises(JobFailed, match="It is encrypted") as raised:
        await job.result()

    assert raised.value.job_problem["code"] == "rejected"


async def test_a_cancel_is_waited_for(client: Client, store: Store) -> None:
    """A queued job ends at once, a running one when its worker notices."""
    running = await client.submit("echo")
    lease = await begin(store, "echo")
    waiting = asyncio.create_task(running.cancel(wait=True))
    await wait_until(lambda: _asked_to_stop(store, running.id))
    await end(store, lease, batch=1, type_="cancelled", data={"reason": "asked", "by": "local"})
    assert (await waiting).state is State.CANCELLED

    queued = await client.submit("echo")
    assert (await queued.cancel(reason="not needed")).state is State.CANCELLED
    with pytest.raises(JobFailed, match="not needed") as raised:
        await queued.result()
    assert raised.value.code == "job_cancelled"


async def _asked_to_stop(store: Store, job: str) -> bool:
    return (await store.job(job)).cancel_by is not None


async def test_jobs_and_kinds_are_listed(client: Client) -> None:
    """Newest first, over as many pages as it takes."""
    made = [(await client.submit("echo", tags=["even" if number % 2 == 0 else "odd"])).id for number in range(7)]

    listed = [job.id async for job in client.jobs()]
    even = [job.id async for job in client.jobs(tag="even", state=State.QUEUED, limit=3)]

    assert listed == made[::-1]
    assert even == made[::-1][::2][:3]
    assert {"echo", "form", "read"} <= {kind.kind for kind in await client.kinds()}


async def test_a_store_that_is_away_is_told_when_patience_ends(valkey: str, prefix: str, tmp_path: Path) -> None:
    """503 is waited for; then it is an error that says what is away."""
    async with FaultProxy(valkey) as redis:
        store = await Store.connect(redis.url, prefix=prefix)
        await store.register_kind(KindDocument(kind="echo"))
        async with gateway_for(store, tmp_path / "blobs") as gateway:
            async with client_of(gateway.url, patience_seconds=1, backoff_seconds=0.1) as client:
                job = await client.submit("echo")
                redis.refuse()
                redis.cut()
                with pytest.raises(Unavailable):
                    await client.job(job)
            redis.refuse(False)
        await store.close()
