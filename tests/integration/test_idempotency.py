"""Promise 6 over every way to submit: the same key and the same request are one job, whenever and however they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from gateway.store import Store
from tests.faults import wait_until
from tests.serving import AS_ME, AS_OTHER, KEYS, Gateway, gateway_for

_AT_ONCE = 50
_BODY = {"a": 1}
_OTHER_BODY = {"a": 2}


class Submitted(NamedTuple):
    """What a submit was answered."""

    status: int
    job: str | None
    replayed: bool
    code: str | None


Submit = Callable[[Gateway, str, dict[str, Any], dict[str, str]], Awaitable[Submitted]]


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with two owners."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway:
        yield gateway


async def answered(gateway: Gateway, kind: str, headers: dict[str, str], **options: Any) -> Submitted:
    """A submit by HTTP whose answer is JSON."""
    answer = await gateway.post(f"/v1/kinds/{kind}/jobs", headers=headers, **options)
    document = answer.json()
    replayed = answer.headers.get("Idempotency-Replayed") == "true"
    return Submitted(answer.status, document.get("id"), replayed, document.get("code"))


async def as_json(gateway: Gateway, key: str, input_: dict[str, Any], auth: dict[str, str]) -> Submitted:
    """`{"input": ...}`."""
    return await answered(gateway, "echo", auth | {"Idempotency-Key": key}, json={"input": input_})


async def as_multipart(gateway: Gateway, key: str, input_: dict[str, Any], auth: dict[str, str]) -> Submitted:
    """A form with the input and a file; its boundary is another one each time."""
    form = aiohttp.FormData()
    form.add_field("input", json.dumps(input_))
    form.add_field("file", b"%PDF-1.7 scan", filename="scan.pdf", content_type="application/pdf")
    return await answered(gateway, "read", auth | {"Idempotency-Key": key}, data=form)


async def as_raw_body(gateway: Gateway, key: str, input_: dict[str, Any], auth: dict[str, str]) -> Submitted:
    """The file is the body."""
    headers = auth | {"Idempotency-Key": key, "Content-Type": "application/pdf"}
    return await answered(gateway, "read", headers, data=b"%PDF-1.7 " + json.dumps(input_).encode())


async def as_stream(gateway: Gateway, key: str, input_: dict[str, Any], auth: dict[str, str]) -> Submitted:
    """A submit whose answer is the job's own stream, left when its head has come."""
    return await _head(gateway, "echo/jobs", auth | {"Idempotency-Key": key, "Accept": "text/event-stream"}, input_)


async def as_run(gateway: Gateway, key: str, input_: dict[str, Any], auth: dict[str, str]) -> Submitted:
    """The drop-in POST; it waits for the job's end, so the job is cancelled as soon as it is there."""
    cancelling = asyncio.create_task(_cancel_waiting(gateway))
    try:
        return await _head(gateway, "echo/run", auth | {"Idempotency-Key": key}, input_)
    finally:
        cancelling.cancel()
        await asyncio.gather(cancelling, return_exceptions=True)


async def _cancel_waiting(gateway: Gateway) -> None:
    while True:
        for owner in KEYS:
            for record in (await gateway.store.jobs(owner, limit=10))[0]:
                if not record.terminal:
                    await gateway.store.cancel(record.id, owner, "enough")
        await asyncio.sleep(0.02)


async def _head(gateway: Gateway, path: str, headers: dict[str, str], input_: dict[str, Any]) -> Submitted:
    url = f"{gateway.url}/v1/kinds/{path}"
    async with gateway.session.post(url, headers=headers, json={"input": input_}) as response:
        code = (await response.json(content_type=None)).get("code") if response.status >= 400 else None
        job = response.headers.get("Location", "").rpartition("/")[2] or None
        return Submitted(response.status, job, response.headers.get("Idempotency-Replayed") == "true", code)


async def over_websocket(gateway: Gateway, key: str, input_: dict[str, Any], auth: dict[str, str]) -> Submitted:
    """`{"op": "submit"}`."""
    async with gateway.session.ws_connect(f"{gateway.url}/v1/ws", headers=auth) as socket:
        frame = {"op": "submit", "kind": "echo", "input": input_, "idempotency_key": key, "subscribe": False}
        await socket.send_json(frame)
        answer = await socket.receive_json()
    if answer["op"] == "error":
        return Submitted(answer["problem"]["status"], None, False, answer["problem"]["code"])
    return Submitted(202, answer["job"]["id"], answer["replayed"], None)


PATHS = pytest.mark.parametrize(
    "submit", [as_json, as_multipart, as_raw_body, as_stream, as_run, over_websocket], ids=lambda path: path.__name__
)


@PATHS
async def test_the_same_key_is_one_job_and_the_repeat_is_told(gateway: Gateway, submit: Submit) -> None:
    """Another request under it is refused; another owner's is a job of its own."""
    first = await submit(gateway, "key", _BODY, AS_ME)
    again = await submit(gateway, "key", _BODY, AS_ME)
    other = await submit(gateway, "key", _OTHER_BODY, AS_ME)
    foreign = await submit(gateway, "key", _BODY, AS_OTHER)

    assert first.job is not None
    assert first.job == again.job
    assert (first.replayed, again.replayed) == (False, True)
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    assert foreign.job is not None
    assert foreign.job != first.job
    assert not foreign.replayed


@PATHS
async def test_fifty_submits_at_once_are_one_job(gateway: Gateway, submit: Submit) -> None:
    """One of them made it, and all others are told that they repeat it."""
    answers = await asyncio.gather(*(submit(gateway, "storm", _BODY, AS_ME) for _ in range(_AT_ONCE)))

    assert len({answer.job for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert len((await gateway.store.jobs("me", limit=10))[0]) == 1


async def test_a_repeat_counts_while_the_first_request_is_still_on_its_way(gateway: Gateway) -> None:
    """The upload that broke off on the way, and is sent again, overtakes the first: both are answered with one job."""
    half_way, goes_on = asyncio.Event(), asyncio.Event()
    content = b"%PDF-1.7 " + json.dumps(_BODY).encode()

    async def slowly() -> AsyncIterator[bytes]:
        yield content[:5]
        half_way.set()
        await goes_on.wait()
        yield content[5:]

    headers = AS_ME | {"Idempotency-Key": "overtaken", "Content-Type": "application/pdf"}
    first = asyncio.create_task(answered(gateway, "read", headers, data=slowly()))
    await half_way.wait()
    second = await as_raw_body(gateway, "overtaken", _BODY, AS_ME)
    goes_on.set()
    overtaken = await first

    assert overtaken.job == second.job
    assert (second.replayed, overtaken.replayed) == (False, True)
    # The file that came twice is kept once.
    await wait_until(gateway.blob_count)
    assert await gateway.blob_count() == 1


async def test_json_and_websocket_are_the_same_request(gateway: Gateway) -> None:
    """What counts is the meaning: a client may change its transport between two tries."""
    first = await as_json(gateway, "either", _BODY, AS_ME)
    second = await over_websocket(gateway, "either", _BODY, AS_ME)
    third = await as_run(gateway, "either", _BODY, AS_ME)

    assert first.job == second.job == third.job
    assert second.replayed
    assert third.replayed
