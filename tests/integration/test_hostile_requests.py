"""Requests that mean no good, thrown at every route: none is a defect of ours, and each refusal says what is wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from gateway.app import ROUTES
from gateway.documents import KindDocument
from gateway.handlers.routes import Route
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS
from tests.jobs import begin, end, event, submit
from tests.serving import AS_ME, KEY, KEYS, Gateway, gateway_for

# More of them, drawn anew each time: OUTLAST_EXAMPLES=20000 pytest tests/integration/test_hostile_requests.py
EXAMPLES: Final = int(os.environ.get("OUTLAST_EXAMPLES", "400"))
KIND: Final = KindDocument(kind="echo", files="optional")
UPSTREAMS: Final = '[[route]]\npath = "/slow/*"\nupstream = "http://127.0.0.1:1/*"\nmode = "async"\n'


@dataclass(frozen=True, slots=True)
class Stage:
    """A gateway with keys, and what can stand in its paths."""

    gateway: Gateway
    names: dict[str, tuple[bytes, ...]]
    token: bytes


@pytest.fixture
async def stage(store: Store, tmp_path: Path) -> AsyncIterator[Stage]:
    """Jobs of mine that have ended, run and wait, one of somebody else's, an upload, and a slow route."""
    routes = tmp_path / "routes.toml"
    routes.write_text(UPSTREAMS)
    for kind in (KIND, *(KindDocument(kind=name, files="optional") for name in ("llm", "http"))):
        await store.register_kind(kind)
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS, routes=routes, run_quiet_seconds=0.05) as gateway:
        ended, running = [(await submit(store, KIND)).id for _ in range(2)]
        over, lease = [await begin(store, "echo") for _ in range(2)]
        made = {"index": "p1", "content_type": "text/html", "value": "<script>"}
        await store.append(over, 1, [event("output", made, "p1")])
        await end(store, over, batch=2)
        token = await store.hand_over(lease, 600, "worker")
        assert token is not None
        foreign = (await submit(store, KIND, owner="other")).id
        headers = AS_ME | {"Tus-Resumable": "1.0.0", "Upload-Length": "9"}
        upload = (await gateway.post("/v1/uploads", headers=headers)).json()["id"]
        jobs = tuple(job.encode() for job in (ended, running, foreign, "a" * 26))
        names = {
            "job": jobs,
            "response": tuple(b"resp_" + job for job in jobs),
            # `form` wants a name: a held request that is accepted would be waited for.
            "kind": (b"form", b"read", b"nobody"),
            "upload": (upload.encode(),),
            "index": (b"p1", b"p2"),
            "name": (b"scan.pdf",),
            "path": (b"index.js", b"index.html"),
        }
        yield Stage(gateway, names, token.encode())


# --- what is thrown -------------------------------------------------------------------------------------------------

PIECES: Final = st.sampled_from(
    [
        *(b"", b"%00", b"%FF", b"\xff", b"\xc3\xa9", b"%ED%A0%80", b"%25", b"%", b"%zz", b"%E2%80%AE", b"\\", b";a"),
        *(b"..%2f..%2fetc%2fpasswd", b"%2e%2e", b".", b"%0d%0aX-Evil:%20y", b"%0aX-Evil:%20y", b"*", b"{", b"}:{"),
        *(b"a" * 300, b"-1", b"9" * 40, b"1e400", b"NaN", b"0000000509999999", b"<script>", b"'\"", b"null", b"0"),
    ]
)
QUERIES: Final = st.sampled_from(
    [
        *(b"after", b"types", b"snapshot", b"names", b"cut", b"token", b"state", b"kind", b"tag", b"cursor", b"limit"),
        *(b"jobs", b"input", b"options", b"filename", b"stream", b"starting_after", b"key", b"priority", b"%FF"),
    ]
)
QUERY_VALUES: Final = st.one_of(
    PIECES,
    st.sampled_from([b"%7B%7D", b"%7B%22a%22:NaN%7D", b"%5B" * 300, b"true", b"1.2.3", b",,,", b"a.b,c", b"\xd9\xa3"]),
)
HEADERS: Final = st.sampled_from(
    [
        *(b"Accept", b"Content-Type", b"Last-Event-ID", b"Idempotency-Key", b"Range", b"If-Range", b"If-None-Match"),
        *(b"Content-Encoding", b"Content-Disposition", b"Upgrade", b"Connection", b"Sec-WebSocket-Key", b"Origin"),
        *(b"Sec-WebSocket-Version", b"Sec-WebSocket-Protocol", b"Sec-Fetch-Site", b"Host", b"X-Request-ID", b"CF-Ray"),
        *(b"Tus-Resumable", b"Upload-Length", b"Upload-Offset", b"Upload-Defer-Length", b"Upload-Metadata", b"Cookie"),
        *(b"X-HTTP-Method-Override", b"X-Forwarded-For", b"Outlast-On-Disconnect", b"Prefer", b"If-Modified-Since"),
        *(b"Authorization", b"Transfer-Encoding", b"Access-Control-Request-Method", b"TE", b"Expect"),
    ]
)
HEADER_VALUES: Final = st.sampled_from(
    [
        *(b"", b"-1", b"9" * 50, b"1e400", b"\xff\xfe", b"\xc3\xa9", b"a" * 7000, b"*", b"*/*", b"null", b"true"),
        *(b"text/event-stream", b"application/x-ndjson", b"application/json; charset=utf-16", b"multipart/form-data"),
        *(b'multipart/form-data; boundary="', b"multipart/form-data; boundary=x", b"text/\xff", b"bytes=-5", b"gzip"),
        *(
            b"bytes=5-1",
            b"bytes=0-0,2-3",
            b"bytes=99999999999999999-",
            b"br",
            b"zstd",
            b"wait=-1",
            b"wait=x",
            b"wait=0",
        ),
        *(b"https://evil.example", b"https://\xff", b"websocket", b"Upgrade", b"1.0.0", b"filename YQ==", b"kind /w=="),
        *(b"filename Li4vLi4vZXRj,filetype dGV4dC9odG1sDQpYLUV2aWw6IHk=", b'attachment; filename="../../x"', b"PATCH"),
        *(b"attachment; filename*=UTF-8''%ff%0d%0aX-Evil: y", b'W/"x"', b"1-2-3", b"17-17", b"0-0", b"DELETE", b"\t"),
        *(b"outlast.v1, outlast.key.%%%", b"Bearer", b"Basic x", b"q=0;q=;", b"a;q=1.5,b;q=--", b"%s%n", b"chunked"),
        *(b"100-continue",),
    ]
)
PART: Final = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n'
BODIES: Final = st.sampled_from(
    [
        *(
            b"",
            b"{}",
            b"[]",
            b"null",
            b'"x"',
            b"{",
            b'{"input":null}',
            b'{"input":{"a":NaN}}',
            b'{"a":1,"a":2}',
            b"\n" * 99,
        ),
        *(
            b'{"input":{"a":"\\ud800"}}',
            b'{"input":{"a":"\\u0000"}}',
            b'{"input":{"a":1e999}}',
            b"\xff\xfe{}",
            b"\xef\xbb\xbf{}",
        ),
        *(
            b'{"input":' + b'{"a":' * 5000,
            b'{"input":{"a":' + b"[" * 300 + b"]" * 300 + b"}}",
            b'{"input":{"a":' + b"9" * 5000 + b"}}",
        ),
        *(b'{"start_at":"9999-12-31T23:59:59Z"}', b'{"start_at":"0001-01-01T00:00:00+14:00"}', b'{"start_at":1e18}'),
        *(
            b'{"run_timeout_seconds":1e308}',
            b'{"tags":["a}:b{","*"]}',
            b'{"tags":["a\\n"]}',
            b'{"retention_seconds":-1}',
        ),
        *(
            b'{"input_url":"http://[::1"}',
            b'{"files":[{"upload":"../x"}]}',
            b'{"reason":""}',
            b'{"reason":"\\r\\nX-Evil: y"}',
        ),
        *(
            PART + b"\r\nabc\r\n--x--",
            b"--x--",
            b"--x\r\n\r\n\r\n--x--",
            b"--x\r\nX: \xff\r\n\r\n\r\n--x--",
            b"--x\r\n" * 99,
        ),
        *(PART.replace(b'"a"', b'"a\0b"') + b"\r\nabc\r\n--x--", PART.replace(b'"a"', b'"\xff"') + b"\r\nabc\r\n--x--"),
        *(
            PART.replace(b'; filename="a"', b"") + b"\r\n\xff\r\n--x--",
            PART.replace(b"f-data", b"\xff") + b"\r\n\r\n--x--",
        ),
        *(
            b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n{}\r\n--x--',
            PART + b"Content-Length: -5\r\n\r\na\r\n--x--",
        ),
        *(
            b'--x\r\nContent-Disposition: form-data; name="tags"\r\n\r\n["\\ud800"]\r\n--x--',
            PART + b"Content-Type: a\r\n\r\na\r\n--x--",
        ),
        *(
            b'{"messages":[1]}',
            b'{"messages":[{}],"stream":5}',
            b'{"model":{},"messages":[{}]}',
            b'{"stream_options":[]}',
        ),
        *(
            b'{"input":[{"role":"user","content":[{"type":[]}]}]}',
            b'{"input":[{"role":{},"content":"x"}]}',
            b'{"input":[5]}',
        ),
        *(
            b'{"input":"x","tools":[{"type":[]}]}',
            b'{"input":"x","tool_choice":5,"tools":[{}]}',
            b'{"input":"x","text":[]}',
        ),
        *(b'{"input":"x","truncation":{}}', b'{"input":"x","include":{"a":1}}', b'{"input":[{"type":{}}],"model":"m"}'),
        *(
            b'{"events":[{"type":"a.b\\n"}]}',
            b'{"events":[{"type":"progress","data":{"current":-1}}]}',
            b'{"events":5}',
        ),
        *(
            b'{"batch":99999999999999999999,"events":[{"type":"log","data":{"message":"x"}}]}',
            b'{"events":[{"type":"failed"}]}',
        ),
        *(
            b'{"events":[{"type":"output","data":{"index":"p1","source":"/v1/jobs/x/outputs/y"}}]}',
            b'{"batch":9,"events":[]}',
        ),
    ]
)
METHODS: Final = st.sampled_from(
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"QUERY"]
)
STRAY: Final = st.sampled_from([b"/nothing", b"//", b"/v1/", b"/v1/jobs//events", b"/slow/a", b"/slow/%2e%2e", b"*"])
# A stream of what a request asks for is no refusal, and `/_probe/silent` is silent as asked.
THROWN: Final = st.sampled_from([route for route in ROUTES if not route.path.startswith("/_probe")])


Asked = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]
"""A method, a path with `{names}` of the stage's left in it, headers and a body."""


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """Anything."""
    route: Route | None = draw(st.one_of(THROWN, THROWN, THROWN, st.none()))
    path = draw(STRAY) if route is None else route.path.encode()
    for name in re.findall(rb"\{\w+\}", path):
        if draw(st.integers(0, 3)) == 0:
            path = path.replace(name, draw(PIECES))
    if draw(st.integers(0, 9)) == 0:
        path += draw(PIECES)
    if query := draw(st.lists(st.tuples(QUERIES, QUERY_VALUES), max_size=2)):
        path += b"?" + b"&".join(b"%b=%b" % pair for pair in query)
    method = draw(METHODS) if route is None or draw(st.integers(0, 9)) == 0 else route.method.encode()
    headers = draw(st.lists(st.tuples(HEADERS, HEADER_VALUES), max_size=2))
    body = draw(BODIES) if method in {b"POST", b"PUT", b"PATCH"} else b""
    return method, path, headers, body


def on_the_wire(stage: Stage, asked: Asked, pick: int) -> bytes:
    """The request's bytes; `pick` chooses among the stage's names."""
    method, path, headers, body = asked
    for name in re.findall(rb"\{(\w+)\}", path):
        known = stage.names[name.decode()]
        path = path.replace(b"{%b}" % name, known[pick % len(known)])
    key = stage.token if b"/worker/" in path else KEY.encode()
    given = {name for name, _ in headers}
    usual = [
        (b"Host", b"localhost"),
        (b"Authorization", b"Bearer " + key),
        (b"Tus-Resumable", b"1.0.0"),
        (b"Content-Type", b"multipart/form-data; boundary=x" if body.startswith(b"--x") else b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Connection", b"close"),
    ]
    if b"Transfer-Encoding" in given:
        usual = [pair for pair in usual if pair[0] != b"Content-Length"]
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    lines = [b"%b: %b" % pair for pair in (*(pair for pair in usual if pair[0] not in given), *headers)]
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), *lines, b"", body])


async def answer_to(gateway: Gateway, request: bytes) -> tuple[int, bytes, bytes]:
    """The status, the head and, where its length was told, the body of what is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            writer.write(request)
            status, head = 100, b""
            while status == 100:
                head = await reader.readuntil(b"\r\n\r\n")
                status = int(head.split(b" ", 2)[1])
            length = re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", head.lower())
            sends_none = request.startswith(b"HEAD ") or length is None
            return status, head, b"" if sends_none else await reader.readexactly(int(length[1]))  # type: ignore[index]
    finally:
        writer.transport.abort()


SUBMIT: Final = b"/v1/kinds/{kind}/jobs"


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="OUTLAST_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(asked=requests(), pick=st.integers(0, 3))
# Each of these was a 500 once.
@example(asked=(b"GET", b"/\xff", [], b""), pick=0)
@example(asked=(b"GET", b"/v1/jobs", [(b"Origin", b"https://\xff")], b""), pick=0)
@example(asked=(b"GET", b"/v1/jobs", [(b"Origin", b"http://[")], b""), pick=0)
@example(asked=(b"GET", b"/nothing", [(b"Expect", b"\xff")], b""), pick=0)
@example(asked=(b"POST", SUBMIT, [], b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n{}\r\n--x--'), pick=0)
@example(asked=(b"POST", SUBMIT, [], PART.replace(b'"a"', b'"a\0b"') + b"\r\nabc\r\n--x--"), pick=0)
@example(asked=(b"POST", b"/openai/v1/chat/completions", [], b'{"messages":[1],"stream":true}'), pick=0)
@example(asked=(b"POST", b"/openai/v1/responses", [], b'{"input":[{"role":"user","content":[{"type":[]}]}]}'), pick=0)
async def test_no_request_is_a_defect_and_each_refusal_is_a_problem(
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    asked: Asked,
    pick: int,
) -> None:
    """No 500, nothing of a traceback in the log, no header of the client's own, and words that say what is wrong."""
    caplog.clear()
    request = on_the_wire(stage, asked, pick)

    status, head, body = await answer_to(stage.gateway, request)

    assert status < 500 or status == 503, (request, body)
    assert b"\r\nx-evil" not in head.lower(), (request, head)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR], request
    # A log file takes no half characters.
    assert all(record.getMessage().encode() for record in caplog.records), request
    # 416 is aiohttp's own answer to a range of one of the page's files.
    if status >= 400 and status != 416 and not request.startswith(b"HEAD "):
        document = from_json(body)
        if b" /openai/" in request and "error" in document:
            assert document["error"]["message"], request
        else:
            assert (document["status"], bool(document["code"]), bool(document["detail"])) == (status, True, True), (
                request
            )
