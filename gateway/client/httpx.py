"""`httpx` for routes that take longer than anything in between lets a request take: a script changes one line.

    client = httpx.Client(transport=OutlastTransport("http://127.0.0.1:8080"))
    answer = client.post("https://app.example.com/api/report", json={"year": 2026})

The route is any address that the gateway may call (OUTLAST_UPSTREAMS), or one of its slow routes, at its own address.
The gateway calls it as a job of the kind `http` and holds this client's request until the route has answered.
What breaks on the way to the gateway is sent again under the same key, so the route is called once; a large answer that
is cut goes on where it stopped. Needs the extra `httpx`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Generator
from typing import Any, Final

try:
    import httpx
except ModuleNotFoundError:
    raise ModuleNotFoundError("gateway.client.httpx needs httpx: pip install 'outlast[httpx]'", name="httpx") from None

from gateway.client.backoff import Backoff
from gateway.client.download import Download, NoPartError
from gateway.errors import EDGE_STATUSES

# A longer body, or one that is no text, comes as the job's file.
_INLINE_BYTES: Final = 64 * 1024
# The gateway is quiet for 20 s and then sends a space every 15 s: who brings nothing for so long is dead.
_SILENCE_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 15.0
_LATER: Final = frozenset({408, 425, 429, 503, *EDGE_STATUSES})
# Of the answer to this client; the route's own are in the job's result.
_FRAMING: Final = frozenset({"transfer-encoding", "connection", "keep-alive"})

# In an answer's extensions: the connection ended before the body did.
_CUT: Final = "outlast_cut"

# Yields a request, or seconds to wait; is sent the answer, or None where there was none.
_Flow = Generator[httpx.Request | float, httpx.Response | None, httpx.Response]


class JobError(httpx.TransportError):
    """The gateway has no answer of the route's. `problem` says why; its `code` is stable."""

    def __init__(self, problem: dict[str, Any], request: httpx.Request) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or problem.get("code")), request=request)
        self.problem = problem

    @property
    def code(self) -> str:
        """What failed, for programs."""
        return str(self.problem.get("code", "unknown"))


class _Calls:
    """What both transports do, without I/O: which requests go to the gateway, and what their answers mean."""

    def __init__(self, url: str, api_key: str | None, patience_seconds: float) -> None:
        self._base = httpx.URL(url)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._patience_seconds = patience_seconds

    def flow(self, request: httpx.Request) -> _Flow:
        """One call of a route. Raises `JobError`, and `httpx.ConnectError` where no gateway answers."""
        # The same for every try: the first one may have been accepted although its answer was lost.
        headers = {"Idempotency-Key": request.extensions.get("idempotency_key") or os.urandom(16).hex()}
        content = self._content(request)
        document: dict[str, Any] = {}
        while not document:
            answer = yield from self._send("POST", "/v1/kinds/http/run", headers=headers, **content)
            document = _document(answer, request)
            if document.get("error", {}).get("status") == 503:
                # This gateway stops; another one goes on with the same key.
                document = {}
                yield 0.5
        if "error" in document:
            raise JobError(document["error"], request)
        result = document["result"]
        body = (result["text"] or "").encode()
        if result["body_url"] is not None:
            body = yield from self._download(result["body_url"], result["size"], request)
        answered = [(name, value) for name, value in result["headers"] if name.lower() not in _FRAMING]
        return httpx.Response(result["status"], headers=answered, content=None, stream=_Body(body), request=request)

    def _content(self, request: httpx.Request) -> dict[str, Any]:
        headers = {name: value for name, value in request.headers.items() if name not in _OWN}
        wanted: dict[str, Any] = {"url": self._target(request.url), "method": request.method, "headers": headers}
        body = request.content
        if len(body) <= _INLINE_BYTES:
            try:
                if body:
                    wanted["body"] = body.decode()
                return {"json": {"input": wanted}}
            except UnicodeDecodeError:
                pass
        file = ("body", body, "application/octet-stream")
        return {"files": {"file": file}, "data": {"input": json.dumps(wanted)}}

    def _target(self, url: httpx.URL) -> str:
        """What is called: at the gateway's own address a slow route, which goes by its path."""
        ours = (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)
        return url.raw_path.decode("ascii") if ours else str(url.copy_with(fragment=None))

    def _send(
        self, method: str, path: str, download: Download | None = None, **options: Any
    ) -> Generator[Any, Any, httpx.Response]:
        """Send a request until there is an answer of the gateway's, for as long as the patience lasts.

        An answer that was cut is returned only if it brings more of the download.
        """
        backoff = Backoff()
        gives_up_at: float | None = None
        headers = {**self._headers, **options.pop("headers", {})}
        while True:
            timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS).as_dict()
            began = time.monotonic()
            answer: httpx.Response | None = yield httpx.Request(
                method, self._base.join(path), headers=headers, extensions={"timeout": timeout}, **options
            )
            if answer is not None and _CUT in answer.extensions:
                if download is not None and _added(download, answer):
                    return answer
                answer = None
            if answer is not None and answer.status_code not in _LATER:
                return answer
            now = time.monotonic()
            if gives_up_at is None or now - began > _CONNECT_SECONDS:
                # A request that was held for a while had a gateway: the time without one begins now.
                gives_up_at = now + self._patience_seconds
            wish = answer.headers.get("Retry-After", "") if answer is not None else ""
            pause = backoff.next_seconds(float(wish) if wish.isdecimal() else None)
            if now + pause > gives_up_at:
                said = f"it answers {answer.status_code}" if answer is not None else "nobody answers"
                raise httpx.ConnectError(f"The gateway at {self._base} can't be reached: {said}.")
            yield pause

    def _download(self, path: str, size: int, request: httpx.Request) -> Generator[Any, Any, bytes]:
        """A body that is no part of the answer; after a cut only the rest of it is asked for."""
        download = Download()
        while len(download.body) < size:
            # Packed on the way, its bytes would be others than those that a range counts.
            headers = {"Accept-Encoding": "identity", **download.headers}
            answer = yield from self._send("GET", path, download, headers=headers)
            whole = _CUT not in answer.extensions
            if whole and not (_added(download, answer) and len(download.body) == size):
                raise JobError(_problem(answer), request)
        return bytes(download.body)


def _added(download: Download, answer: httpx.Response) -> bool:
    """Whether an answer brings more of a body."""
    try:
        return download.add(answer.status_code, answer.headers, answer.content)
    except NoPartError:
        return False


# What this client says of itself and of its connection; the upstream's own are made by the gateway.
_OWN: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body as the route sent it, for either kind of client. httpx unpacks what its headers say is packed."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Any:
        yield self._body

    async def __aiter__(self) -> Any:
        yield self._body


class OutlastTransport(httpx.BaseTransport):
    """For `httpx.Client`. The client's own time-outs don't apply: that is what this is for.

    `patience_seconds` is how long the gateway may be away. A request's `extensions={"idempotency_key": ...}` lets a
    script that was started again find its call. Bodies are held in memory, in both directions.
    """

    def __init__(self, url: str, *, api_key: str | None = None, patience_seconds: float = 60.0) -> None:
        self._calls = _Calls(url, api_key, patience_seconds)
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Call a route through the gateway."""
        request.read()
        flow = self._calls.flow(request)
        step = _next(flow, None)
        while not isinstance(step, httpx.Response):
            step = _next(flow, self._take(step))
        return step

    def _take(self, step: httpx.Request | float) -> httpx.Response | None:
        if not isinstance(step, httpx.Request):
            time.sleep(step)
            return None
        content = bytearray()
        try:
            answer = self._inner.handle_request(step)
        except httpx.TransportError:
            return None
        try:
            for piece in answer.iter_bytes():
                content += piece
        except httpx.TransportError:
            return _received(answer, content, cut=True)
        finally:
            answer.close()
        return _received(answer, content)

    def close(self) -> None:
        """Close the connections to the gateway."""
        self._inner.close()


class AsyncOutlastTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`; otherwise as `OutlastTransport`. Cancelling a call leaves the job alone."""

    def __init__(self, url: str, *, api_key: str | None = None, patience_seconds: float = 60.0) -> None:
        self._calls = _Calls(url, api_key, patience_seconds)
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Call a route through the gateway."""
        await request.aread()
        flow = self._calls.flow(request)
        step = _next(flow, None)
        while not isinstance(step, httpx.Response):
            step = _next(flow, await self._take(step))
        return step

    async def _take(self, step: httpx.Request | float) -> httpx.Response | None:
        if not isinstance(step, httpx.Request):
            await asyncio.sleep(step)
            return None
        content = bytearray()
        try:
            answer = await self._inner.handle_async_request(step)
        except httpx.TransportError:
            return None
        try:
            async for piece in answer.aiter_bytes():
                content += piece
        except httpx.TransportError:
            return _received(answer, content, cut=True)
        finally:
            await answer.aclose()
        return _received(answer, content)

    async def aclose(self) -> None:
        """Close the connections to the gateway."""
        await self._inner.aclose()


def _next(flow: _Flow, given: httpx.Response | None) -> httpx.Request | float | httpx.Response:
    """What a flow wants next, or what it returns."""
    try:
        return flow.send(given)
    except StopIteration as end:
        answer: httpx.Response = end.value
        return answer


def _received(answer: httpx.Response, content: bytearray, *, cut: bool = False) -> httpx.Response:
    """An answer with what came of its body, unpacked."""
    headers = [(name, value) for name, value in answer.headers.items() if name != "content-encoding"]
    return httpx.Response(
        answer.status_code, headers=headers, content=bytes(content), extensions={_CUT: True} if cut else {}
    )


def _document(answer: httpx.Response, request: httpx.Request) -> dict[str, Any]:
    """The ended job's document. Raises `JobError` for an answer that is none: the request was refused."""
    try:
        document = answer.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and ("result" in document or "error" in document):
        return document
    raise JobError(_problem(answer), request)


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return problem
    return {
        "code": f"http_{answer.status_code}",
        "detail": f"Something answered {answer.status_code} in the gateway's place.",
    }
