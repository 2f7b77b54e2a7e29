"""The client's HTTP: one aiohttp session, requests that are repeated where that is safe, and errors that are ours.

Imported when a client is entered, so that `import gateway.client` waits for no aiohttp.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import aiohttp

from gateway.client.answers import Answer
from gateway.client.backoff import Backoff, Patience
from gateway.client.credentials import Credentials
from gateway.client.download import Download, NoPartError
from gateway.client.subscription import may_pass
from gateway.errors import ConfigurationError, JobBroke, OutlastError, Unauthorized, Unreachable, error_from_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")
BodyChunks = Callable[[], AsyncIterator[bytes | memoryview]]

_CONNECT_SECONDS: Final = 15.0
# How long to wait for `100 Continue`: what stands in between may not know it.
_CONTINUE_SECONDS: Final = 10.0
_READ_BYTES: Final = 256 * 1024


class Connection:
    """The session with one gateway."""

    def __init__(
        self,
        base: str,
        credentials: Credentials,
        *,
        silence_seconds: float,
        patience_seconds: float,
        backoff_seconds: float,
    ) -> None:
        self.base = base
        self.silence_seconds = silence_seconds
        self._credentials = credentials
        self._patience_seconds = patience_seconds
        self._backoff_seconds = backoff_seconds
        self._session = aiohttp.ClientSession(
            # Streams live as long as they like; that they are alive is watched here, by what they bring.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            # Every stream is a connection. aiohttp's 100 would make the next one wait without a word.
            connector=aiohttp.TCPConnector(limit=0),
            read_bufsize=_READ_BYTES,
            raise_for_status=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "outlast-python"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def patience(self, seconds: float | None = None) -> Patience:
        """A new patience; the client's own where no other is asked for."""
        return Patience(Backoff(self._backoff_seconds), self._patience_seconds if seconds is None else seconds)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | float | None] | None = None,
        headers: Mapping[str, str] | None = None,
        body: BodyChunks | bytes | None = None,
        repeatable: bool = True,
        expect: bool = False,
        patience_seconds: float | None = None,
    ) -> Answer:
        """Send a request and read the whole answer.

        Where no answer of the gateway's came, or it says "later", the request is sent again, with pauses, for as long
        as the patience lasts. So it must be one that may be repeated; else say so. `expect` asks before a large body
        is sent whether it will be taken. An answer to a GET that was cut goes on where it stopped.
        """
        patience, download = self.patience(patience_seconds), Download()
        while True:
            there = len(download.body)
            try:
                return await self._authorized(
                    partial(self._request_once, method, path, query or {}, body, download=download, expect=expect),
                    {**(headers or {}), **download.headers},
                )
            except OutlastError as error:
                if not (repeatable and may_pass(error)):
                    raise
                if error.code == "upload_joining" or len(download.body) > there:
                    patience.progressed()
                await patience.wait(error)
                expect = False

    async def _request_once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int | float | None],
        body: BodyChunks | bytes | None,
        headers: Mapping[str, str],
        *,
        download: Download,
        expect: bool,
    ) -> Answer:
        wait = float(query.get("wait") or 0)
        clock = asyncio.get_running_loop().time
        failures: list[Exception] = []
        with translated(failures):
            async with asyncio.timeout(wait + self.silence_seconds) as limit:

                async def watched(chunks: AsyncIterator[bytes | memoryview]) -> AsyncGenerator[bytes | memoryview]:
                    try:
                        async for chunk in chunks:
                            # Silence is what ends a request, not its length.
                            limit.reschedule(clock() + self.silence_seconds)
                            yield chunk
                    except Exception as error:
                        failures.append(error)
                        raise
                    limit.reschedule(clock() + self.silence_seconds)

                if expect:
                    limit.reschedule(clock() + _CONTINUE_SECONDS)
                async with self._session.request(
                    method,
                    self.base + path,
                    params={name: str(value) for name, value in query.items() if value is not None},
                    headers=headers,
                    data=watched(body()) if callable(body) else body,
                    expect100=expect,
                    allow_redirects=False,
                ) as response:
                    is_part = method == "GET" and response.status in {200, 206, 416}
                    content = bytearray()
                    try:
                        async for chunk in response.content.iter_any():
                            limit.reschedule(clock() + self.silence_seconds)
                            content += chunk
                    except BaseException:
                        with suppress(NoPartError):
                            if is_part:
                                download.add(response.status, response.headers, content)
                        raise
                    if is_part and download.headers:
                        _complete(download, response, content)
                        content = download.body
                    status = 200 if response.status == 206 else response.status
                    answer = Answer(status, response.headers, bytes(content))
                    if answer.status >= 300:
                        # The rest of a body that was refused is not sent.
                        response.close()
        refuse(answer.status, answer.headers, answer.body)
        return answer

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncGenerator[tuple[int, AsyncGenerator[bytes]]]:
        """Open an answer that goes on: its status, and its chunks as they come.

        Raises `Unreachable` where nothing comes for `silence_seconds`.
        """
        response = await self._authorized(partial(self._open_stream, path, query), headers)
        try:
            accepted = headers.get("Accept", "")
            if response.status == 200 and not response.headers.get("Content-Type", "").startswith(accepted):
                raise Unreachable(
                    "Something answered in the gateway's place: its content is"
                    f" {response.headers.get('Content-Type', 'nothing')}, not {accepted}."
                )
            async with aclosing(self._chunks(response)) as chunks:
                yield response.status, chunks
        finally:
            # Not released into the pool: the rest of a stream is of no use to the next request.
            response.close()

    async def _open_stream(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        with translated():
            async with asyncio.timeout(self.silence_seconds):
                response = await self._session.get(
                    self.base + path, params=query, headers=headers, allow_redirects=False
                )
        try:
            if response.status not in {200, 204}:
                with translated():
                    async with asyncio.timeout(self.silence_seconds):
                        body = await response.read()
                refuse(response.status, response.headers, body)
        except BaseException:
            response.close()
            raise
        return response

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        while True:
            with translated():
                async with asyncio.timeout(self.silence_seconds):
                    chunk = await response.content.readany()
            if not chunk:
                return
            yield chunk

    @asynccontextmanager
    async def websocket(self, path: str, *, max_bytes: int) -> AsyncGenerator[aiohttp.ClientWebSocketResponse]:
        """Open a WebSocket. Receiving from it raises `TimeoutError` where nothing, not even a ping, comes."""
        socket = await self._authorized(partial(self._open_socket, path, max_bytes), {})
        try:
            yield socket
        finally:
            await socket.close()

    async def _open_socket(
        self, path: str, max_bytes: int, headers: Mapping[str, str]
    ) -> aiohttp.ClientWebSocketResponse:
        with translated():
            async with asyncio.timeout(self.silence_seconds):
                return await self._session.ws_connect(
                    self.base + path,
                    headers=headers,
                    max_msg_size=max_bytes,
                    compress=0,
                    # The gateway's pings are answered by aiohttp, and count as signs of life.
                    autoping=True,
                    # Who leaves need not wait long for a goodbye.
                    timeout=aiohttp.ClientWSTimeout(ws_receive=self.silence_seconds, ws_close=0.5),
                )

    async def _authorized(self, ask: Callable[[Mapping[str, str]], Awaitable[T]], headers: Mapping[str, str]) -> T:
        """Ask with these headers and the key or the token, and once more if that one's time is over."""
        while True:
            shown = await self._credentials.get()
            try:
                return await ask({**headers, **shown.headers})
            except Unauthorized:
                if not self._credentials.renews(shown):
                    raise


def _complete(download: Download, response: aiohttp.ClientResponse, content: bytearray) -> None:
    try:
        download.add(response.status, response.headers, content)
    except NoPartError:
        raise Unreachable("What came after a cut was no part of the answer; it is asked for anew.") from None


def refuse(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raise what an answer other than 2xx stands for."""
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        place = headers.get("Location", "elsewhere")
        raise ConfigurationError(f"The address redirects to {place[:200]!r}; give the client that address.")
    if theirs := headers.get("X-Upstream-Status"):
        # It would look as if the gateway said "later", and nothing would change by asking again.
        raise JobBroke(
            f"The upstream answered {theirs}, which comes as {status}, since an edge would replace it; its body is in"
            " the job's result.",
            code="upstream_status",
        )
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    raise error_from_answer(
        status, problem if isinstance(problem, dict) else None, _retry_after(headers.get("Retry-After"))
    )


@contextmanager
def translated(failures: Sequence[Exception] = ()) -> Iterator[None]:
    """aiohttp's errors, and silence, as ours. `failures` are what the body raised, which aiohttp takes for its own."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - what is not aiohttp's is raised as it is
        raise (failures[0] if failures else _translate(error)) from None


def _translate(error: Exception) -> Exception:
    match error:
        case OutlastError():
            return error
        case TimeoutError():
            return Unreachable("Nothing came from the gateway for too long; the connection is taken for dead.")
        case aiohttp.WSServerHandshakeError():
            return _refused_handshake(error)
        case aiohttp.InvalidURL():
            return ConfigurationError(f"{error} is no address of a gateway, such as http://127.0.0.1:8080.")
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return Unreachable(
                f"The gateway's certificate can't be trusted, or it speaks no TLS: {error}. Check the address.",
                code="tls_failed",
            )
        case aiohttp.ClientConnectorError():
            # Its own text tells of the client's settings and of Python's calls, and not what is wrong.
            reason = f"{error.host}:{error.port}: {_system_words(error.os_error)}"
            return Unreachable(f"The connection to the gateway failed: {reason}. Is it running, at this address?")
        case aiohttp.ClientError() | OSError() | EOFError():
            reason = str(error) or type(error).__name__
            return Unreachable(f"The connection to the gateway failed: {reason}. Is it running, at this address?")
        case _:
            return error


def _system_words(error: OSError) -> str:
    """What the system says of an error. A name that isn't known has no number of the system's, but words of its own."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def _refused_handshake(error: aiohttp.WSServerHandshakeError) -> OutlastError:
    if error.status < 400:
        return Unreachable(
            f"Something answered the WebSocket handshake with {error.status}: what stands in between may not let"
            ' WebSockets pass. Use transport="sse".',
            code="websocket_refused",
        )
    retry_after = error.headers.get("Retry-After") if error.headers is not None else None
    return error_from_answer(error.status, None, _retry_after(retry_after))


def _retry_after(header: str | None) -> float | None:
    """`Retry-After` in seconds; its date form is not used by the gateway."""
    text = (header or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else None
