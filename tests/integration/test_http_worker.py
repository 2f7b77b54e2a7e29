"""The door for workers that are not ours: a write token is all that one needs, and all that it can use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.blobs import GATHER_BYTES
from gateway.documents import KindDocument
from gateway.event_text import decode_event
from gateway.protocol import START, State
from gateway.store import Store
from tests.faults import wait_until
from tests.jobs import hand_over, submit
from tests.serving import AS_ME, KEYS, Answer, Gateway, gateway_for

KIND = KindDocument(kind="echo", max_attempts=2)


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that asks for API keys, which a worker hasn't."""
    await store.register_kind(KIND)
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway:
        yield gateway


class Outside:
    """A worker that knows an address and a token."""

    def __init__(self, gateway: Gateway, job: str, token: str) -> None:
        self.gateway = gateway
        self.job = job
        self.token = token

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}"} | options.pop("headers", {})
        return await self.gateway.ask(method, f"/v1/worker/jobs/{self.job}/{path}", headers=headers, **options)

    async def adopt(self) -> Answer:
        answer = await self.ask("POST", "adopt")
        if answer.status == 200:
            self.token = answer.json()["token"]
        return answer

    async def report(self, *events: tuple[str, dict[str, Any]], batch: int | None = None) -> Answer:
        body: dict[str, Any] = {"events": [{"type": type_, "data": data} for type_, data in events]}
        return await self.ask("POST", "events", json=body | ({} if batch is None else {"batch": batch}))


async def handed_over(gateway: Gateway, **input_: Any) -> Outside:
    """A job on its way to a worker outside."""
    record = await submit(gateway.store, KIND, input_=input_)
    return Outside(gateway, record.id, (await hand_over(gateway.store, "echo"))[1])


async def log_of(store: Store, job: str) -> list[tuple[str, dict[str, Any]]]:
    """The log of a job, without numbers."""
    events = [decode_event(entry.text) for entry in (await store.events(job, START)).entries]
    return [(event.type, event.data) for event in events]


async def test_a_worker_outside_does_a_job_from_its_token_alone(gateway: Gateway) -> None:
    """It gets the input, reports, stores bytes, and ends the job."""
    worker = await handed_over(gateway, text="hello")

    adopted = (await worker.adopt()).json()
    assert adopted["input"] == {"text": "hello"}
    assert adopted["job"]["attempt"] == 1
    first = await worker.report(("progress", {"current": 1, "total": 2}), ("delta", {"text": "hel"}), batch=1)
    stored = await worker.ask("PUT", "outputs/picture", data=b"\x89PNG", headers={"Content-Type": "image/png"})
    await worker.report(("output", stored.json()), ("shop.line", {"sku": 7}), batch=2)
    last = await worker.report(("succeeded", {"result": {"length": 5}}), batch=3)

    assert (first.json()["first"], last.status) == (3, 200)
    record = await gateway.store.job(worker.job)
    assert (record.state, record.end_data()) == (State.SUCCEEDED, {"result": {"length": 5}})
    assert [type_ for type_, _ in await log_of(gateway.store, worker.job)] == [
        *("queued", "started", "progress", "delta", "output", "shop.line", "succeeded")
    ]
    picture = await gateway.get(f"/v1/jobs/{worker.job}/outputs/picture", headers=AS_ME)
    assert (picture.body, picture.headers["Content-Type"]) == (b"\x89PNG", "image/png")
    assert await gateway.store.depths(["echo"]) == {"echo": (0, 0)}


async def test_a_report_that_is_sent_again_is_written_once(gateway: Gateway) -> None:
    """The number of the batch says that it is the same."""
    worker = await handed_over(gateway)
    await worker.adopt()

    answers = [await worker.report(("log", {"message": "once"}), batch=1) for _ in range(3)]

    assert {answer.json()["last"] for answer in answers} == {answers[0].json()["last"]}
    assert len(await log_of(gateway.store, worker.job)) == 3


async def test_a_report_that_skips_a_number_says_so_and_the_missing_one_mends_it(gateway: Gateway) -> None:
    """The worker's own slip is not called a loss of the store's, and ends nothing."""
    worker = await handed_over(gateway)
    await worker.adopt()

    skipped = await worker.report(("log", {"message": "two"}), batch=2)
    assert (skipped.status, skipped.json()["code"]) == (409, "events_lost")
    assert "send the one that is missing" in skipped.json()["detail"]

    for batch, text in enumerate(("one", "two"), 1):
        assert (await worker.report(("log", {"message": text}), batch=batch)).status == 200


async def test_an_adoption_whose_answer_was_lost_is_sent_again(gateway: Gateway) -> None:
    """Under its key it is the same one; whoever comes with another key is a second writer, and refused."""
    worker = await handed_over(gateway, text="hello")

    first, again, other = [
        await worker.ask("POST", "adopt", headers={"Idempotency-Key": key}) for key in ("mine", "mine", "another")
    ]

    assert (first.status, again.status, other.status, other.json()["code"]) == (200, 200, 409, "lease_lost")
    assert again.json()["input"] == {"text": "hello"}
    for answer, batch in ((first, 1), (again, 2)):
        worker.token = answer.json()["token"]
        assert (await worker.report(("log", {"message": "mine"}), batch=batch)).status == 200


async def test_a_shell_that_counts_nothing_can_report(gateway: Gateway) -> None:
    """Neither an adoption nor batches: the token that was handed over is good as it is."""
    worker = await handed_over(gateway)

    for text in ("one", "two"):
        assert (await worker.report(("log", {"message": text}))).status == 200
    assert (await worker.report(("succeeded", {}))).status == 200

    assert (await gateway.store.job(worker.job)).end_data() == {"result": None}


async def test_reports_at_once_of_a_shell_that_counts_nothing_are_all_written(gateway: Gateway) -> None:
    """None is taken for another one's repeat."""
    worker = await handed_over(gateway)

    answers = await asyncio.gather(*(worker.report(("log", {"message": str(number)})) for number in range(20)))

    assert [answer.status for answer in answers] == [200] * 20
    said = [data["message"] for type_, data in await log_of(gateway.store, worker.job) if type_ == "log"]
    assert sorted(said, key=int) == [str(number) for number in range(20)]


async def test_a_cancel_reaches_a_worker_outside_with_its_next_report(gateway: Gateway) -> None:
    """Also with one that says nothing but that it lives."""
    worker = await handed_over(gateway)
    await worker.adopt()
    await gateway.post(f"/v1/jobs/{worker.job}/cancel", headers=AS_ME)

    assert (await worker.report()).json()["cancel_requested_by"] == "me"
    await worker.report(("cancelled", {"reason": "as asked"}), batch=1)

    assert (await gateway.store.job(worker.job)).state is State.CANCELLED


async def test_whoever_lost_the_job_can_write_nothing(gateway: Gateway) -> None:
    """The token that was used up, a second adopter, and anything after the end: 409, and the log stays as it is."""
    worker = await handed_over(gateway)
    stale = Outside(gateway, worker.job, worker.token)
    await worker.adopt()
    refused = [await stale.adopt(), await stale.report(("log", {"message": "x"})), await stale.report()]
    refused.append(await stale.ask("PUT", "outputs/x", data=b"x"))
    await worker.report(("succeeded", {}), batch=1)
    refused.append(await worker.report(("log", {"message": "after the end"}), batch=2))

    assert [(answer.status, answer.json()["code"]) for answer in refused] == [(409, "lease_lost")] * 5
    assert [type_ for type_, _ in await log_of(gateway.store, worker.job)] == ["queued", "started", "succeeded"]


async def test_a_slow_upload_that_outlives_its_attempt_replaces_nothing(gateway: Gateway) -> None:
    """Its bytes would stand where the log tells of others; nothing of them is left behind."""
    worker = await handed_over(gateway)
    await worker.adopt()
    await worker.ask("PUT", "outputs/page", data=b"in time")
    here = await gateway.blob_count()
    ended = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"too late" * GATHER_BYTES
        await ended.wait()

    async def is_half_there() -> bool:
        return await gateway.blob_count() > here

    slow = asyncio.create_task(worker.ask("PUT", "outputs/page", data=slowly()))
    await wait_until(is_half_there, what="a half of the upload")
    await worker.report(("succeeded", {}), batch=1)
    ended.set()

    answer = await slow
    assert (answer.status, answer.json()["code"]) == (409, "lease_lost")
    assert await gateway.blobs.get(f"jobs/{worker.job}/outputs/1-page") == b"in time"
    assert await gateway.blob_count() == here


async def test_a_failed_attempt_is_tried_again_up_to_the_kinds_limit(gateway: Gateway) -> None:
    """The kind's own limit counts, as it was at the submit, whoever did the attempts."""
    worker = await handed_over(gateway)
    await gateway.store.register_kind(KIND.model_copy(update={"max_attempts": 9}))
    failure = {"problem": {"code": "model_busy", "detail": "The model is busy."}, "delay_seconds": 0}
    await worker.report(("retrying", failure))
    assert (await gateway.store.job(worker.job)).state is State.QUEUED

    _, worker.token = await hand_over(gateway.store, "echo")
    await worker.report(("output", {"index": "1", "value": 1}), ("retrying", failure))

    record = await gateway.store.job(worker.job)
    assert (record.state, record.end_data()["partial"]) == (State.FAILED, True)
    assert (
        record.end_data()["problem"] | {"code": "retries_exhausted", "cause": "model_busy"}
        == record.end_data()["problem"]
    )


@pytest.mark.parametrize(
    ("events", "field"),
    [
        ([{"type": "queued", "data": {}}], "events.0.type"),
        ([{"type": "started", "data": {}}], "events.0.type"),
        ([{"type": "progress", "data": {"current": "many"}}], "events.0.data.current"),
        ([{"type": "progress", "data": {"current": 1, "colour": "red"}}], "events.0.data.colour"),
        ([{"type": "output", "data": {"index": "a/b", "value": 1}}], "events.0.data.index"),
        ([{"type": "output", "data": {"index": "a", "url": "http://evil.example/"}}], "events.0.data.url"),
        ([{"type": "failed", "data": {}}], "events.0.data.problem"),
        ([{"type": "failed", "data": {"problem": {"detail": "x", "type": 5}}}], "events.0.data.problem.type"),
        ([{"type": "failed", "data": {"problem": {"detail": "x", "status": "oops"}}}], "events.0.data.problem.status"),
        (
            [{"type": "retrying", "data": {"problem": {"detail": "x", "status": 200}}}],
            "events.0.data.problem.status",
        ),
        ([{"type": "succeeded", "data": {}}, {"type": "log", "data": {"message": "x"}}], "events.0.type"),
        ([{"type": "a.b", "data": {"x": "y" * 300_000}}], "events.0.data"),
        ([{"type": "a\n.b"}], "events.0.type"),
    ],
)
async def test_a_wrong_report_names_the_field_and_writes_nothing(
    gateway: Gateway, events: list[dict[str, Any]], field: str
) -> None:
    """A report is taken whole or not at all."""
    worker = await handed_over(gateway)

    answer = await worker.ask("POST", "events", json={"events": events})

    assert answer.status == 422
    assert answer.json()["errors"][0]["field"] == field
    assert len(await log_of(gateway.store, worker.job)) == 2


async def test_a_log_that_is_full_takes_only_its_end(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody folds and trims it: a worker that reports for ever would fill Redis for all."""
    monkeypatch.setattr("gateway.handlers.worker._MAX_LOG_BYTES", 2000)
    worker = await handed_over(gateway)

    answers = [await worker.report(("log", {"message": "x" * 500})) for _ in range(5)]
    renewed = await worker.report()
    ended = await worker.report(("succeeded", {"result": 1}))

    assert [answer.status for answer in answers] == [200, 200, 200, 413, 413]
    assert answers[-1].json()["code"] == "log_full"
    assert (renewed.status, ended.status) == (200, 200)
    assert (await gateway.store.job(worker.job)).state is State.SUCCEEDED


async def test_a_token_is_good_for_its_own_job_only(gateway: Gateway) -> None:
    """And an API key is none."""
    one, other = await handed_over(gateway), await handed_over(gateway)
    one.job, other.token = other.job, "k" * 24

    assert (await one.adopt()).status == 404
    for refused in (await other.adopt(), await gateway.post(f"/v1/worker/jobs/{one.job}/events")):
        problem = refused.json()
        assert (refused.status, problem["code"]) == (401, "write_token")
        assert problem["title"] == "The attempt's write token is needed"


@pytest.mark.parametrize("path", ["PUT {}/outputs/scan", "POST {}/events"])
async def test_a_worker_that_waits_to_be_asked_for_its_bytes_is_asked(gateway: Gateway, path: str) -> None:
    """`Expect: 100-continue`, which many clients send before a large body; unasked, some would wait for ever."""
    worker = await handed_over(gateway)
    method, _, place = path.format(f"/v1/worker/jobs/{worker.job}").partition(" ")
    head = f"{method} {place} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n"

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(f"{head}Authorization: Bearer {worker.token}\r\nContent-Length: 2\r\n\r\n".encode())
    asked = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"{}")
    taken = await reader.read()
    writer.transport.abort()

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert taken.startswith(b"HTTP/1.1 200 ")
