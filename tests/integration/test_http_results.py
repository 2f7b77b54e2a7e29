"""Results, outputs and files over HTTP: representations, ranges, ETags, and content that must not run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store import Lease, Store
from tests.jobs import begin, end, event, submit
from tests.serving import Gateway, gateway_for


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


async def running(gateway: Gateway) -> tuple[str, Lease]:
    """A job of the owner `local` in hand, and its path."""
    echo = (await gateway.store.kinds())["echo"]
    record = await submit(gateway.store, echo, owner="local")
    return f"/v1/jobs/{record.id}", await begin(gateway.store, "echo")


def output(index: str, content_type: str, **where: Any) -> Any:
    """An output event as an attempt writes it."""
    return event("output", {"index": index, "content_type": content_type} | where, index)


# --- results --------------------------------------------------------------------------------------------------------


async def test_a_result_is_not_there_before_the_end(gateway: Gateway) -> None:
    """409, with the state and when to ask again."""
    path, lease = await running(gateway)

    answer = await gateway.get(path + "/result")

    assert (answer.status, answer.json()["code"], answer.json()["state"]) == (409, "not_finished", "running")
    assert "Retry-After" in answer.headers
    await end(gateway.store, lease, batch=1)


async def test_a_result_is_its_json(gateway: Gateway) -> None:
    """The value alone, with an ETag that answers 304."""
    path, lease = await running(gateway)
    await end(gateway.store, lease, batch=1, data={"result": {"text": "ü", "n": [1, 2.5, None]}})

    answer = await gateway.get(path + "/result")
    again = await gateway.get(path + "/result", headers={"If-None-Match": answer.headers["ETag"]})
    head = await gateway.ask("HEAD", path + "/result")

    assert answer.json() == {"text": "ü", "n": [1, 2.5, None]}
    assert answer.headers["Content-Type"] == "application/json"
    assert (again.status, again.body) == (304, b"")
    assert (head.status, head.body, head.headers["ETag"]) == (200, b"", answer.headers["ETag"])
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]


@pytest.mark.parametrize(
    ("type_", "data", "code"),
    [
        ("failed", {"problem": {"code": "rejected", "detail": "page 3 is broken"}, "partial": False}, "job_failed"),
        ("cancelled", {"reason": "changed my mind", "by": "local"}, "job_cancelled"),
    ],
)
async def test_a_job_without_a_result_says_why(gateway: Gateway, type_: str, data: dict[str, Any], code: str) -> None:
    """422, with the job's own problem or the reason inside."""
    path, lease = await running(gateway)
    await end(gateway.store, lease, batch=1, type_=type_, data=data)

    problem = (await gateway.get(path + "/result")).json()

    assert (problem["status"], problem["code"], problem["state"]) == (422, code, type_)
    assert data.get("reason", "page 3 is broken") in problem["detail"]
    assert problem.get("problem") == data.get("problem")


async def test_a_large_result_comes_from_its_blob(gateway: Gateway) -> None:
    """In ranges too, as a download manager asks for them."""
    path, lease = await running(gateway)
    data = b'{"text":"' + b"0123456789" * 300_000 + b'"}'
    blob = gateway.blobs.key_for(lease.job)
    await gateway.blobs.put(blob, data, max_bytes=None)
    ending = event("succeeded", {"result_url": path + "/result"})
    record = await gateway.store.job(lease.job)
    await gateway.store.append(lease, 1, [ending], result_blob=blob)
    await gateway.store.leave(lease, record)

    whole = await gateway.get(path + "/result")
    part = await gateway.get(path + "/result", headers={"Range": "bytes=9-28"})
    tail = await gateway.get(path + "/result", headers={"Range": "bytes=-2", "If-Range": whole.headers["ETag"]})
    stale = await gateway.get(path + "/result", headers={"Range": "bytes=-2", "If-Range": '"old"'})
    head = await gateway.ask("HEAD", path + "/result")
    document = (await gateway.get(path)).json()

    assert whole.body == data
    assert (part.status, part.body) == (206, b"01234567890123456789")
    assert part.headers["Content-Range"] == f"bytes 9-28/{len(data)}"
    assert (tail.status, tail.body) == (206, b'"}')
    assert (stale.status, len(stale.body)) == (200, len(data))
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(data)), b"")
    assert document["result_url"] == path + "/result"


async def test_a_range_beyond_the_end_is_refused(gateway: Gateway) -> None:
    """416, and how many bytes there are."""
    path, lease = await running(gateway)
    await end(gateway.store, lease, batch=1, data={"result": "abc"})

    answer = await gateway.get(path + "/result", headers={"Range": "bytes=5-"})

    assert (answer.status, answer.json()["code"], answer.json()["size"]) == (416, "range_not_satisfiable", 5)


async def test_a_result_comes_in_the_form_that_is_asked_for(gateway: Gateway) -> None:
    """An output whose index begins with `result.` is the result in another form."""
    path, lease = await running(gateway)
    await gateway.blobs.put(f"jobs/{lease.job}/outputs/1-result.hocr", b"<html>hocr</html>", max_bytes=None)
    outputs = [
        output("1", "text/plain", value="not this one"),
        output("result.txt", "text/plain", value="Grüße"),
        output("result.hocr", "text/vnd.hocr+html", url=f"{path}/outputs/result.hocr", size=17),
    ]
    await gateway.store.append(lease, 1, outputs)
    await end(gateway.store, lease, batch=2, data={"result": {"a": 1}})

    async def fetch(accept: str) -> tuple[int, str, bytes]:
        answer = await gateway.get(path + "/result", headers={"Accept": accept})
        return answer.status, answer.headers["Content-Type"], answer.body

    assert await fetch("*/*") == (200, "application/json", b'{"a":1}')
    assert await fetch("text/plain") == (200, "text/plain; charset=utf-8", "Grüße".encode())
    assert await fetch("text/plain, application/json;q=0.5") == (200, "text/plain; charset=utf-8", "Grüße".encode())
    assert await fetch("text/html, */*;q=0.1") == (200, "application/json", b'{"a":1}')
    assert await fetch("text/vnd.hocr+html") == (200, "text/vnd.hocr+html; charset=utf-8", b"<html>hocr</html>")
    status, _, body = await fetch("image/png")
    assert status == 406
    assert b"text/plain" in body


# --- outputs --------------------------------------------------------------------------------------------------------


async def test_outputs_are_the_newest_of_each_index_in_order(gateway: Gateway) -> None:
    """While the job runs already; `?after=` goes on from a number."""
    path, lease = await running(gateway)
    await gateway.store.append(
        lease, 1, [output("1", "application/json", value=n) for n in (1, 2)] + [output("2", "text/plain", value="x")]
    )

    page = (await gateway.get(path + "/outputs")).json()
    rest = (await gateway.get(path + f"/outputs?after={page['outputs'][0]['id']}")).json()
    wrong = await gateway.get(path + "/outputs?after=x")

    assert [(entry["data"]["index"], entry["data"]["value"]) for entry in page["outputs"]] == [("1", 2), ("2", "x")]
    assert page["next"] is None
    assert [entry["data"]["index"] for entry in rest["outputs"]] == ["2"]
    assert (wrong.status, wrong.json()["code"]) == (400, "bad_cursor")
    await end(gateway.store, lease, batch=2)


async def test_many_outputs_come_in_pages(gateway: Gateway) -> None:
    """Each at most about a mebibyte; together they are all, once."""
    path, lease = await running(gateway)
    for batch in range(1, 31):
        await gateway.store.append(lease, batch, [output(f"p{batch}", "text/plain", value="x" * 100_000)])

    seen: list[str] = []
    pages = 0
    after: int | None = 0
    while after is not None:
        answer = await gateway.get(path + f"/outputs?after={after}")
        assert len(answer.body) < 1_200_000
        page = answer.json()
        seen += [entry["data"]["index"] for entry in page["outputs"]]
        pages, after = pages + 1, page["next"]

    assert seen == [f"p{batch}" for batch in range(1, 31)]
    assert pages >= 3
    await end(gateway.store, lease, batch=31)


async def test_one_output_is_its_value_or_its_bytes(gateway: Gateway) -> None:
    """JSON as JSON, text as text, a blob as its bytes; the same index again is another ETag."""
    path, lease = await running(gateway)
    await gateway.blobs.put(f"jobs/{lease.job}/outputs/1-pic", b"\x89PNG....", max_bytes=None)
    await gateway.store.append(
        lease,
        1,
        [
            output("j", "application/json", value={"a": [1]}),
            output("t", "text/plain", value="line"),
            output("pic", "image/png", url=f"{path}/outputs/pic", size=8),
        ],
    )

    value = await gateway.get(path + "/outputs/j")
    text = await gateway.get(path + "/outputs/t")
    picture = await gateway.get(path + "/outputs/pic", headers={"Range": "bytes=0-3"})
    missing = await gateway.get(path + "/outputs/none")
    await gateway.store.append(lease, 2, [output("j", "application/json", value={"a": [1]})])
    again = await gateway.get(path + "/outputs/j", headers={"If-None-Match": value.headers["ETag"]})

    assert value.json() == {"a": [1]}
    assert (text.body, text.headers["Content-Type"]) == (b"line", "text/plain; charset=utf-8")
    assert (picture.status, picture.body, picture.headers["Content-Type"]) == (206, b"\x89PNG", "image/png")
    assert picture.headers["Content-Disposition"].startswith("inline")
    assert missing.status == 404
    assert again.status == 200
    await end(gateway.store, lease, batch=3)


@pytest.mark.parametrize(
    "content_type",
    ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/pdf", "x/y", "TEXT/HTML"],
)
async def test_what_could_run_is_a_download(gateway: Gateway, content_type: str) -> None:
    """A result with a script in it is not shown in our origin; and if it were, it could do nothing."""
    path, lease = await running(gateway)
    await gateway.store.append(lease, 1, [output("x", content_type, value="<script>alert(1)</script>")])

    answer = await gateway.get(path + "/outputs/x")

    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    await end(gateway.store, lease, batch=2)


async def test_a_content_type_can_not_break_out_of_its_header(gateway: Gateway) -> None:
    """A processor's odd content type is served as bytes."""
    path, lease = await running(gateway)
    await gateway.store.append(lease, 1, [output("x", "text/plain\r\nSet-Cookie: a=b", value="x")])

    answer = await gateway.get(path + "/outputs/x")

    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/octet-stream")
    assert "Set-Cookie" not in answer.headers
    await end(gateway.store, lease, batch=2)


async def test_an_input_file_keeps_its_name_and_type(gateway: Gateway) -> None:
    """Also a name that ASCII can't say; a name that isn't there is 404."""
    headers = {"Content-Type": "image/png"}
    answer = await gateway.post("/v1/kinds/read/jobs?filename=Seite „1“.png", data=b"\x89PNG\r\n", headers=headers)
    [file] = answer.json()["files"]

    got = await gateway.get(file["url"])
    missing = await gateway.get(answer.json()["urls"]["self"] + "/files/other.png")

    assert (got.body, got.headers["Content-Type"]) == (b"\x89PNG\r\n", "image/png")
    assert "filename*=UTF-8''Seite%20%E2%80%9E1%E2%80%9C.png" in got.headers["Content-Disposition"]
    assert missing.status == 404
