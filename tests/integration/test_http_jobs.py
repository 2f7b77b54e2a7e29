"""Jobs over HTTP: submit, read, wait, list, cancel, retry, delete, and idempotency."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.app import ROUTES
from gateway.documents import KindDocument
from gateway.handlers.context import HUB, STREAMS
from gateway.store import Lease, Store
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.jobs import begin, end, event
from tests.serving import AS_ME, AS_OTHER, KEYS, Gateway, gateway_for

PDF = b"%PDF-1.7 not much of one"
AS_PDF = {"Content-Type": "application/pdf"}


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


async def submit(gateway: Gateway, kind: str = "echo", **options: Any) -> dict[str, Any]:
    """Submit a job that must be accepted; returns its document."""
    answer = await gateway.post(f"/v1/kinds/{kind}/jobs", **{"json": {}} | options)
    assert answer.status == 202, answer.body
    document: dict[str, Any] = answer.json()
    return document


async def test_a_submit_is_accepted_with_its_address(gateway: Gateway) -> None:
    """202, Location, and the document with all urls; a GET finds the job from then on."""
    answer = await gateway.post("/v1/kinds/echo/jobs", json={"input": {"a": 1}, "priority": "high", "tags": ["x/y"]})

    document = answer.json()
    assert answer.status == 202
    assert answer.headers["Location"] == document["urls"]["self"] == f"/v1/jobs/{document['id']}"
    assert (document["state"], document["terminal"], document["priority"]) == ("queued", False, "high")
    assert document["tags"] == ["x/y"]
    again = await gateway.get(document["urls"]["self"])
    assert again.json() == document
    assert "Retry-After" in again.headers
    record = await gateway.store.job(document["id"])
    assert (record.owner, await gateway.store.input_of(record.id)) == ("local", b'{"a":1}')


async def test_an_empty_post_is_an_empty_input(gateway: Gateway) -> None:
    """`curl -X POST` needs no body where the kind needs no input."""
    answer = await gateway.post("/v1/kinds/echo/jobs")

    assert answer.status == 202
    assert await gateway.store.input_of(answer.json()["id"]) == b"{}"


async def test_an_unknown_kind_names_the_known_ones(gateway: Gateway) -> None:
    """404, with what there is."""
    answer = await gateway.post("/v1/kinds/nope/jobs", json={})

    problem = answer.json()
    assert (answer.status, problem["code"]) == (404, "unknown_kind")
    assert "echo" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"input": {}}, ["input.name"]),
        ({"input": {"name": "a" * 11, "more": 1}}, ["input.more", "input.name"]),
        ({"input": {"name": "a", "pages": [1, "two"]}}, ["input.pages.1"]),
        ({"input": {"name": "a"}, "prio": "high"}, ["prio"]),
        ({"input": {"name": "a"}, "priority": "highest", "tags": ["bad tag!"]}, ["priority", "tags.0"]),
        ({"input": [1]}, ["input"]),
        ([], ["body"]),
        ({"input": {"name": "a"}, "webhook": {"url": "https://x"}}, ["webhook"]),
        ({"input": {"name": "a"}, "start_at": "2999-01-01T00:00:00Z"}, ["start_at"]),
    ],
)
async def test_every_wrong_field_is_named(gateway: Gateway, body: object, fields: list[str]) -> None:
    """422 lists what is wrong with which field, in the input and in the options; nothing is ignored."""
    answer = await gateway.post("/v1/kinds/form/jobs", json=body)

    problem = answer.json()
    assert (answer.status, problem["code"]) == (422, "invalid_input")
    assert [error["field"] for error in problem["errors"]] == fields
    assert all(error["message"] for error in problem["errors"])
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": {"a": 1, "a": 2}}',
        b'{"input": {"a": NaN}}',
        b'{"input": {"a": 1e400}}',
        b'{"input": {"a": ' + b"9" * 10_000 + b"}}",
        b'{"input": {"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
        b'{"input": {"a": "\\ud800"}}',
        b'{"input": "\xff"}',
        b'{"input": {',
        b'\xef\xbb\xbf{"input": {}}',
    ],
)
async def test_json_that_two_readers_could_read_differently_is_refused(gateway: Gateway, body: bytes) -> None:
    """400 and nothing else happens, however odd the text."""
    answer = await gateway.post("/v1/kinds/echo/jobs", data=body, headers={"Content-Type": "application/json"})

    assert (answer.status, answer.json()["code"]) == (400, "bad_json")


async def test_an_input_that_is_too_large_is_advised_to_be_a_file(store: Store, tmp_path: Path) -> None:
    """413 says how to send it instead, for a body that is far too large as well."""
    async with gateway_for(store, tmp_path / "b", max_inline_bytes=1024) as gateway:
        large = await gateway.post("/v1/kinds/echo/jobs", json={"input": {"a": "x" * 2000}})
        huge = await gateway.post("/v1/kinds/echo/jobs", json={"input": {"a": "x" * 500_000}})

    for answer in (large, huge):
        assert (answer.status, answer.json()["code"]) == (413, "input_too_large")
        assert "multipart/form-data" in answer.json()["detail"]


async def test_a_large_input_is_checked_without_holding_up_the_loop(gateway: Gateway) -> None:
    """A hundred thousand values go through the schema in a thread."""
    pages: list[Any] = [1] * 60_000 + ["wrong"]

    answer = await gateway.post("/v1/kinds/form/jobs", json={"input": {"name": "a", "pages": pages}})

    assert answer.status == 422
    assert answer.json()["errors"][0]["field"] == "input.pages.60000"


# --- idempotency ----------------------------------------------------------------------------------------------------


async def test_a_large_input_is_for_the_worker_alone(gateway: Gateway) -> None:
    """Who reads, lists or follows a job neither fetches its input nor holds it for as long as a stream is open."""
    document = await submit(gateway, json={"input": {"a": "x" * 200_000}})
    before = (await gateway.store._client.info("stats"))["total_net_output_bytes"]

    for _ in range(5):
        await gateway.get(document["urls"]["self"])
        await gateway.get("/v1/jobs")
        await gateway.get(document["urls"]["events"], headers={"Accept": "application/json"})

    assert (await gateway.store._client.info("stats"))["total_net_output_bytes"] - before < 200_000
    assert len(await gateway.store.input_of(document["id"])) > 200_000


async def test_the_same_key_is_the_same_job(gateway: Gateway) -> None:
    """The meaning of the request counts, not its bytes; the replay says that it is one."""
    headers = {"Idempotency-Key": "one", "Content-Type": "application/json"}

    first = await gateway.post("/v1/kinds/echo/jobs", data=b'{"input":{"a":1,"b":2.0}}', headers=headers)
    second = await gateway.post("/v1/kinds/echo/jobs", data=b'{ "input": {"b":2.0, "a":1} }', headers=headers)

    assert first.json()["id"] == second.json()["id"]
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.headers["Location"] == first.headers["Location"]


@pytest.mark.parametrize("body", [{"input": {"a": 2}}, {"input": {"a": 1}, "priority": "low"}])
async def test_a_key_with_another_request_is_refused(gateway: Gateway, body: object) -> None:
    """422 for another input, and for other options."""
    headers = {"Idempotency-Key": "one"}
    await submit(gateway, json={"input": {"a": 1}}, headers=headers)

    answer = await gateway.post("/v1/kinds/echo/jobs", json=body, headers=headers)

    assert (answer.status, answer.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_key_with_another_file_is_refused_and_its_blob_deleted(gateway: Gateway) -> None:
    """The fingerprint covers the file's digest; a replayed upload leaves no second blob."""
    headers = AS_PDF | {"Idempotency-Key": "one"}
    await submit(gateway, "read", json=None, data=PDF, headers=headers)

    replayed = await gateway.post("/v1/kinds/read/jobs", data=PDF, headers=headers)
    other = await gateway.post("/v1/kinds/read/jobs", data=PDF + b"!", headers=headers)

    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert (other.status, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await gateway.blob_count() == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "schlüssel"])
async def test_a_key_that_is_none_is_refused(gateway: Gateway, key: str) -> None:
    """400 says what a key looks like."""
    answer = await gateway.post("/v1/kinds/echo/jobs", json={}, headers={"Idempotency-Key": key})

    assert (answer.status, answer.json()["code"]) == (400, "bad_idempotency_key")


async def test_a_hundred_submits_with_one_key_are_one_job(gateway: Gateway) -> None:
    """At once, each over a connection of its own."""
    answers = await asyncio.gather(
        *(gateway.post("/v1/kinds/echo/jobs", json={}, headers={"Idempotency-Key": "race"}) for _ in range(100))
    )

    assert {answer.status for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 99


async def test_a_repeated_stream_post_never_submits(gateway: Gateway) -> None:
    """With its key it resumes that job after the cursor; without one it is refused, naming the events."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
    document = await submit(gateway, headers={"Idempotency-Key": "one"})
    await gateway.post(f"{document['urls']['cancel']}")

    resumed = await gateway.post("/v1/kinds/echo/jobs", json={}, headers=headers | {"Idempotency-Key": "one"})
    refused = await gateway.post("/v1/kinds/echo/jobs", json={}, headers=headers)
    unknown = await gateway.post("/v1/kinds/echo/jobs", json={}, headers=headers | {"Idempotency-Key": "two"})

    assert resumed.status == 200
    assert b'"type":"cancelled"' in resumed.body
    assert b'"type":"queued"' not in resumed.body
    assert (refused.status, refused.json()["code"]) == (409, "resubmitted_stream")
    assert "/v1/jobs/{id}/events" in refused.json()["detail"]
    assert unknown.status == 404
    assert len((await gateway.get("/v1/jobs")).json()["jobs"]) == 1


async def test_a_submit_can_be_its_own_stream(gateway: Gateway) -> None:
    """One POST: submitted, followed to its end, with the job's address in the headers."""

    async def finish() -> None:
        lease: Lease = await wait_until(lambda: try_begin(gateway.store))
        await end(gateway.store, lease, batch=1, data={"result": 42})

    async with asyncio.TaskGroup() as group:
        group.create_task(finish())
        answer = await gateway.post("/v1/kinds/echo/jobs", json={}, headers={"Accept": "text/event-stream"})

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Location"].startswith("/v1/jobs/")
    assert b'"type":"succeeded"' in answer.body


async def try_begin(store: Store) -> Lease | None:
    """Begin the next echo job, if one waits."""
    return await begin(store, "echo") if (await store.depths(["echo"]))["echo"][0] else None


async def test_a_lost_answer_of_redis_makes_no_second_job(valkey: str, prefix: str, tmp_path: Path) -> None:
    """The store asks again and finds its own job: 202 as if nothing had happened, the file kept, one job."""
    async with FaultProxy(valkey) as proxy:
        store = await Store.connect(proxy.url, prefix=prefix, lease_seconds=0.6)
        try:
            async with gateway_for(store, tmp_path / "b") as gateway:
                proxy.drop_reply(b'"type":"queued"')
                document = await submit(gateway, "read", json=None, data=PDF, headers=AS_PDF)

                assert proxy.dropped.is_set()
                assert len((await gateway.get("/v1/jobs")).json()["jobs"]) == 1
                assert (await gateway.get(document["files"][0]["url"])).body == PDF
        finally:
            await store.close()


# --- waiting --------------------------------------------------------------------------------------------------------


async def test_prefer_wait_answers_with_the_ended_job(gateway: Gateway) -> None:
    """200 as soon as the job has ended, on a submit and on a GET alike."""

    async def finish() -> None:
        lease: Lease = await wait_until(lambda: try_begin(gateway.store))
        await end(gateway.store, lease, batch=1, data={"result": {"n": 1}})

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(finish())
        answer = await gateway.post("/v1/kinds/echo/jobs", json={}, headers={"Prefer": "respond-async, wait=50"})

    assert (answer.status, answer.json()["state"]) == (200, "succeeded")
    assert answer.json()["result"] == {"n": 1}
    assert answer.headers["Preference-Applied"] == "wait=50"


async def test_prefer_wait_gives_up_in_time(gateway: Gateway) -> None:
    """202 with the open job where it does not end."""
    answer = await gateway.post("/v1/kinds/echo/jobs", json={}, headers={"Prefer": "wait=1"})

    assert (answer.status, answer.json()["state"]) == (202, "queued")


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        *(("", {"Prefer": f"wait={wait}"}) for wait in ("-1", "abc", "1.5", "١")),
        ("?types=PDF!", {"Accept": "text/event-stream"}),
    ],
)
async def test_a_wish_that_is_none_is_refused_before_anything_is_done(
    gateway: Gateway, query: str, headers: dict[str, str]
) -> None:
    """400, and no job."""
    answer = await gateway.post(f"/v1/kinds/echo/jobs{query}", json={}, headers=headers)

    assert answer.status == 400
    assert (await gateway.get("/v1/jobs")).json()["jobs"] == []


async def test_a_get_can_wait_for_the_end(gateway: Gateway) -> None:
    """`?wait=` answers at the end, not after the time."""
    document = await submit(gateway)

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        waiting = group.create_task(gateway.get(f"{document['urls']['self']}?wait=50"))
        await wait_until(lambda: gateway.app[HUB].listeners)
        await gateway.post(document["urls"]["cancel"])

    assert waiting.result().json()["state"] == "cancelled"


async def test_a_client_that_leaves_frees_what_it_waited_with(gateway: Gateway) -> None:
    """Soon after its going nothing of it is left."""
    document = await submit(gateway)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    writer.write(f"GET {document['urls']['self']}?wait=50 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    hub = gateway.app[HUB]
    await wait_until(lambda: hub.listeners)

    writer.transport.abort()

    await wait_until(lambda: not hub.listeners)
    assert len(gateway.app[STREAMS]) == 0


# --- lists ----------------------------------------------------------------------------------------------------------


async def test_the_list_shows_own_jobs_newest_first(gateway: Gateway) -> None:
    """By state, kind and tag, page after page, each job once."""
    first = await submit(gateway, json={"tags": ["a"]})
    second = await submit(gateway, "form", json={"input": {"name": "x"}, "tags": ["a", "b"]})
    await gateway.post(first["urls"]["cancel"])

    async def ids(query: str) -> list[str]:
        return [job["id"] for job in (await gateway.get(f"/v1/jobs{query}")).json()["jobs"]]

    assert set(await ids("")) == {first["id"], second["id"]}
    assert await ids("?state=cancelled") == [first["id"]]
    assert await ids("?kind=form") == [second["id"]]
    assert await ids("?tag=b") == [second["id"]]
    assert await ids("?tag=c") == []


async def test_the_list_goes_on_with_its_cursor(gateway: Gateway) -> None:
    """Twenty jobs in pages of about three."""
    made = {(await submit(gateway))["id"] for _ in range(20)}

    seen: list[str] = []
    query = "?limit=3"
    while True:
        page = (await gateway.get(f"/v1/jobs{query}")).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["cursor"] is None:
            break
        query = f"?limit=3&cursor={page['cursor']}"

    assert len(seen) == len(made)
    assert set(seen) == made


@pytest.mark.parametrize(
    "query", ["state=done", "limit=0", "limit=201", "limit=0000000500", "limit=x", "cursor=abc", "cursor=1e9"]
)
async def test_a_list_refuses_what_it_does_not_understand(gateway: Gateway, query: str) -> None:
    """400 with the allowed values."""
    assert (await gateway.get(f"/v1/jobs?{query}")).status == 400


# --- cancel, retry, delete ------------------------------------------------------------------------------------------


async def test_a_queued_job_is_cancelled_at_once(gateway: Gateway) -> None:
    """200, with the reason that was given; a second cancel changes nothing."""
    document = await submit(gateway)

    answer = await gateway.post(document["urls"]["cancel"], json={"reason": "changed my mind"})
    again = await gateway.post(document["urls"]["cancel"], json={"reason": "twice"})

    assert (answer.status, answer.json()["state"], answer.json()["reason"]) == (200, "cancelled", "changed my mind")
    assert again.json() == answer.json()


async def test_a_running_job_is_told_and_its_end_can_be_waited_for(gateway: Gateway) -> None:
    """202 until the worker has stopped; `Prefer: wait` is the proof."""
    document = await submit(gateway)
    lease = await begin(gateway.store, "echo")

    asked = await gateway.post(document["urls"]["cancel"])
    # Less than a bare `wait` stands for.
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        proof = group.create_task(gateway.post(document["urls"]["cancel"], headers={"Prefer": "wait"}))
        await wait_until(lambda: gateway.app[HUB].listeners)
        await end(gateway.store, lease, batch=1, type_="cancelled", data={"reason": "asked", "by": "local"})

    assert (asked.status, asked.json()["cancel_requested"]) == (202, True)
    assert (proof.result().status, proof.result().json()["state"]) == (200, "cancelled")


@pytest.mark.parametrize("body", [b'{"reson": "x"}', b'{"reason": 7}'])
async def test_a_cancel_with_a_wrong_field_is_refused(gateway: Gateway, body: bytes) -> None:
    """422, and the job goes on."""
    document = await submit(gateway)

    answer = await gateway.post(document["urls"]["cancel"], data=body)

    assert answer.status == 422
    assert (await gateway.store.job(document["id"])).cancel_by is None


async def test_a_retry_is_a_new_job_with_copies_of_the_files(gateway: Gateway) -> None:
    """Same input, options and bytes, under ids of its own: the old job may be deleted."""
    headers = AS_PDF | {"Content-Disposition": 'attachment; filename="scan.pdf"'}
    old = await submit(gateway, "read", json=None, data=PDF, headers=headers, params={"options": '{"tags":["t"]}'})
    refused = await gateway.post(f"{old['urls']['self']}/retry")
    await gateway.post(old["urls"]["cancel"])

    answer = await gateway.post(f"{old['urls']['self']}/retry", headers={"Idempotency-Key": "again"})
    replayed = await gateway.post(f"{old['urls']['self']}/retry", headers={"Idempotency-Key": "again"})

    new = answer.json()
    assert (refused.status, refused.json()["code"]) == (409, "still_open")
    assert (answer.status, new["retry_of"], new["tags"]) == (202, old["id"], ["t"])
    assert answer.headers["Location"] == new["urls"]["self"] != old["urls"]["self"]
    assert replayed.json()["id"] == new["id"]
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert (await gateway.ask("DELETE", old["urls"]["self"])).status == 204
    assert (await gateway.get(new["files"][0]["url"])).body == PDF
    assert await gateway.blob_count() == 1


async def test_a_delete_erases_an_ended_job(gateway: Gateway) -> None:
    """409 while it is open; then its data and files are gone, and its id answers 410 for good."""
    document = await submit(gateway, "read", json=None, data=PDF, headers=AS_PDF)
    path = document["urls"]["self"]

    early = await gateway.ask("DELETE", path)
    await gateway.post(document["urls"]["cancel"])
    done = await gateway.ask("DELETE", path)

    assert (early.status, early.json()["code"]) == (409, "still_open")
    assert (done.status, done.body) == (204, b"")
    assert await gateway.blob_count() == 0
    for address in (path, document["urls"]["result"], document["urls"]["events"]):
        answer = await gateway.get(address)
        assert (answer.status, answer.json()["code"]) == (410, "expired")
    assert (await gateway.get("/v1/jobs")).json()["jobs"] == []


# --- owners ---------------------------------------------------------------------------------------------------------


async def test_another_owner_sees_nothing(store: Store, tmp_path: Path) -> None:
    """404 on every route, the same as for an id that never was."""
    async with gateway_for(store, tmp_path / "b", api_keys=KEYS) as gateway:
        document = await submit(gateway, headers=AS_ME)
        path = document["urls"]["self"]
        never = await gateway.get(f"/v1/jobs/{'a' * 26}", headers=AS_OTHER)
        routes = [(route.method, route.path) for route in ROUTES if "{job}" in route.path and not route.public]
        asked = [*routes, ("GET", "/v1/jobs/{job}?wait=1"), ("GET", "/v1/events?jobs={job}")]
        answers = [
            await gateway.ask(
                method, re.sub(r"\{(index|name)\}", "x", path).format(job=document["id"]), headers=AS_OTHER
            )
            for method, path in asked
        ]
        async with gateway.session.ws_connect(f"{gateway.url}/v1/ws", headers=AS_OTHER) as socket:
            for op in ("subscribe", "cancel"):
                await socket.send_json({"op": op, "job": document["id"]})
                problem = (await socket.receive_json())["problem"]
                assert problem["detail"].replace(document["id"], "a" * 26) == never.json()["detail"]
        listed = await gateway.get("/v1/jobs", headers=AS_OTHER)
        await gateway.post(document["urls"]["cancel"], headers=AS_ME)
        await gateway.ask("DELETE", path, headers=AS_ME)
        gone = await gateway.get(path, headers=AS_OTHER)

    assert len(answers) > 10
    for answer in [*answers, gone]:
        assert (answer.status, answer.json()["code"]) == (404, "job_not_found")
        assert answer.json()["detail"].replace(document["id"], "a" * 26) == never.json()["detail"]
    assert listed.json()["jobs"] == []


async def test_the_same_key_of_two_owners_is_two_jobs(store: Store, tmp_path: Path) -> None:
    """An Idempotency-Key belongs to its owner."""
    async with gateway_for(store, tmp_path / "b", api_keys=KEYS) as gateway:
        mine = await submit(gateway, headers=AS_ME | {"Idempotency-Key": "one"})
        theirs = await submit(gateway, headers=AS_OTHER | {"Idempotency-Key": "one"})

    assert mine["id"] != theirs["id"]


@pytest.mark.parametrize("job", ["x", "A" * 26, "a" * 27, "..", "%00" * 26, "a}:b{" + "a" * 21])
async def test_an_id_that_can_be_none_is_just_not_found(gateway: Gateway, job: str) -> None:
    """It never gets near a key in Redis."""
    answer = await gateway.get(f"/v1/jobs/{job}")

    assert answer.status == 404


# --- queues ---------------------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_new_jobs_and_keeps_the_accepted(gateway: Gateway) -> None:
    """503 for the kind's bound, 429 for the owner's; a replay of an accepted job is never refused."""
    await gateway.store.register_kind(KindDocument(kind="small", max_waiting=1))
    await gateway.store.register_kind(KindDocument(kind="mine", max_waiting_per_owner=1))
    first = await submit(gateway, "small", headers={"Idempotency-Key": "one"})
    await submit(gateway, "mine")

    full = await gateway.post("/v1/kinds/small/jobs", json={})
    owner_full = await gateway.post("/v1/kinds/mine/jobs", json={})
    replay = await gateway.post("/v1/kinds/small/jobs", json={}, headers={"Idempotency-Key": "one"})

    assert (full.status, full.json()["code"]) == (503, "queue_full")
    assert (owner_full.status, owner_full.json()["code"]) == (429, "owner_queue_full")
    assert int(full.headers["Retry-After"]) >= 1
    assert (replay.status, replay.json()["id"]) == (202, first["id"])


async def test_the_document_follows_the_job(gateway: Gateway) -> None:
    """Progress, the worker's sign of life, then the problem."""
    document = await submit(gateway)
    lease = await begin(gateway.store, "echo", "w1")
    await gateway.store.append(lease, 1, [event("progress", {"current": 3, "total": 10})])

    running = (await gateway.get(document["urls"]["self"])).json()
    problem = {"code": "rejected", "detail": "no"}
    await end(gateway.store, lease, batch=2, type_="failed", data={"problem": problem, "partial": True})
    failed = (await gateway.get(document["urls"]["self"])).json()

    assert (running["state"], running["progress"]) == ("running", {"current": 3, "total": 10})
    assert running["liveness"]["worker"] == "w1"
    assert running["liveness"]["silent_seconds"] < 5
    assert (failed["state"], failed["terminal"], failed["partial"]) == ("failed", True, True)
    assert failed["problem"]["code"] == "rejected"
    assert failed["liveness"] is None
    assert failed["expires_at"] > failed["ended_at"]
