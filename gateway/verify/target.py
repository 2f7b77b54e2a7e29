"""The deployment under test, as plain HTTP: nothing is repeated, resumed or put right here, unlike in the client."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from gateway.errors import ConfigurationError, Unauthorized, Unreachable
from gateway.verify.report import Broken

TAG: Final = "outlast-verify"
# A job that is submitted for this long from now occupies no worker; it is cancelled at the end of the run.
_AHEAD_SECONDS: Final = 3600
_RETENTION_SECONDS: Final = 3600
# A plain answer: submits and reads take milliseconds, and an edge gives up before this.
_ANSWER_SECONDS: Final = 30.0
_SMALL_BUFFER_BYTES: Final = 4096
_SMALL_SEGMENT_BYTES: Final = 536
_MOST_BODY_SHOWN: Final = 160


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def document(self) -> dict[str, Any]:
        """The body's JSON object. Raises `Broken` if it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Broken(f"answered {self.status} with what is no JSON object: {shown(self.body)}")
        return value

    @property
    def code(self) -> str | None:
        """The problem's code, where the answer is a problem document."""
        try:
            return str(self.document().get("code"))
        except Broken:
            return None


@dataclass(frozen=True, slots=True)
class Work:
    """What to submit: the kind, and inputs for jobs that do different things.

    A kind of the user's has one input for all; then `paced` is False, and checks that need a certain job are left out.
    """

    kind: str
    steady: Mapping[str, Any]
    """About six seconds long, some events a second."""
    silent: Mapping[str, Any]
    """Says nothing for a long time: only for a server that does not know `start_at`."""
    bulk: Mapping[str, Any]
    """More bytes than the buffers on the way hold, over a few seconds."""
    paced: bool


def probe_work(silence_seconds: float) -> Work:
    """The work of the built-in kind `probe`."""
    return Work(
        "probe",
        steady={"steps": 24, "interval_seconds": 0.25},
        silent={"steps": 1, "interval_seconds": min(60.0, 2 * silence_seconds + 10)},
        bulk={"steps": 40, "interval_seconds": 0.1, "padding": 32_768},
        paced=True,
    )


def own_work(kind: str, input_: Mapping[str, Any]) -> Work:
    """The work of a kind of the user's own."""
    return Work(kind, steady=input_, silent=input_, bulk=input_, paced=False)


class Target:
    """One deployment behind one or several addresses; each new connection goes to the next of them."""

    def __init__(self, urls: Sequence[str], work: Work, session: aiohttp.ClientSession, api_key: str | None) -> None:
        self.urls = tuple(urls)
        self.work = work
        self.session = session
        self.api_key = api_key
        self.made: dict[str, None] = {}
        """The jobs that were made here, in their order."""
        self._bases = cycle(self.urls)

    def next_base(self) -> str:
        """The address for the next connection."""
        return next(self._bases)

    def headers(self, more: Mapping[str, str] | None = None, api_key: str | None = None) -> dict[str, str]:
        """Headers with the key."""
        key = api_key or self.api_key
        return {**({"Authorization": f"Bearer {key}"} if key else {}), **(more or {})}

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        api_key: str | None = None,
        patience_seconds: float = _ANSWER_SECONDS,
    ) -> Answer:
        """One request. Raises `Broken` where no whole answer comes."""
        began = time.monotonic()
        try:
            async with self.session.request(
                method,
                self.next_base() + path,
                params=query,
                headers=self.headers(headers, api_key),
                data=json.dumps(body).encode() if isinstance(body, dict) else body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=patience_seconds),
            ) as response:
                content = await response.read()
                return Answer(response.status, response.headers.copy(), content, time.monotonic() - began)
        except TimeoutError:
            raise Broken(f"{method} {path} brought no answer within {patience_seconds:g} s") from None
        except aiohttp.ClientError as error:
            raise Broken(f"{method} {path} failed: {error or type(error).__name__}") from None

    # --- jobs -------------------------------------------------------------------------------------------------------

    @property
    def submit_path(self) -> str:
        """Where jobs are submitted."""
        return f"/v1/kinds/{quote(self.work.kind, safe='')}/jobs"

    @property
    def run_path(self) -> str:
        """Where a job is submitted and waited for in one request."""
        return f"/v1/kinds/{quote(self.work.kind, safe='')}/run"

    def request_body(self, input_: Mapping[str, Any], *, held: bool = False) -> dict[str, Any]:
        """A submit's JSON body. A held job starts in an hour, so it occupies nobody until it is cancelled."""
        body: dict[str, Any] = {"input": dict(input_), "tags": [TAG], "retention_seconds": _RETENTION_SECONDS}
        if held:
            body["start_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _AHEAD_SECONDS))
        return body

    async def submit(
        self,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> Answer:
        """Submit a job as JSON; what it made is cancelled at the end of the run."""
        answer = await self.ask(
            "POST",
            self.submit_path,
            headers={"Content-Type": "application/json", "Accept": "application/json", **(headers or {})},
            body=dict(body),
            api_key=api_key,
        )
        if answer.status in {200, 201, 202} and api_key in {None, self.api_key}:
            self.note(answer)
        return answer

    def note(self, answer: Answer) -> None:
        """Remember a job that a submit made."""
        try:
            job = answer.document().get("id")
        except Broken:
            return
        if isinstance(job, str):
            self.made[job] = None

    async def new_job(self, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> str:
        """Submit a job; returns its id. Raises `Broken` unless it is accepted."""
        return accepted_job(await self.submit(body, headers=headers))

    async def cancel(self, job: str) -> Answer:
        """Ask for a job's cancellation."""
        return await self.ask(
            "POST", f"/v1/jobs/{job}/cancel", headers={"Content-Type": "application/json"}, patience_seconds=5
        )

    async def cancel_all(self) -> None:
        """Cancel what is still open of the jobs that were made here; errors don't matter any more."""
        for job in self.made:
            try:
                await self.cancel(job)
            except Broken:
                return

    async def check_reachable(self) -> None:
        """Raises `Unreachable`, `Unauthorized`, and `ConfigurationError` for a kind that isn't there."""
        for base in self.urls:
            try:
                answer = await Target([base], self.work, self.session, self.api_key).ask(
                    "GET", f"/v1/kinds/{quote(self.work.kind, safe='')}"
                )
            except Broken as error:
                raise Unreachable(f"{base}: {error}.") from None
            if 300 <= answer.status < 400:
                place = answer.headers.get("Location", "elsewhere")
                raise ConfigurationError(f"{base} redirects to {place[:200]!r}; give that address.")
            if answer.status == 401:
                raise Unauthorized(f"{base} asks for an API key, or for another one: give --key or OUTLAST_API_KEY.")
            if answer.code == "unknown_kind":
                raise ConfigurationError(
                    f"{base} knows no kind {self.work.kind!r}. `outlast up` serves `probe`, the kind made for this;"
                    " elsewhere start `outlast worker processors.probe`, or name a kind of yours with --kind and"
                    " --input."
                )


def accepted_job(answer: Answer) -> str:
    """The id of the job that a submit made. Raises `Broken` unless it was accepted."""
    if answer.status not in {200, 202}:
        raise Broken(f"the submit was answered {answer.status}, not 202: {shown(answer.body)}")
    job = answer.document().get("id")
    if not isinstance(job, str):
        raise Broken(f"the submit's answer has no job id: {shown(answer.body)}")
    return job


def shown(body: bytes | str) -> str:
    """The beginning of a body, on one line."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    line = " ".join(text.split())
    return line[:_MOST_BODY_SHOWN] + "..." if len(line) > _MOST_BODY_SHOWN else line or "(empty)"


@asynccontextmanager
async def sessions() -> AsyncIterator[tuple[aiohttp.ClientSession, aiohttp.ClientSession]]:
    """Two sessions: a plain one, and one whose sockets and buffers are small, for listeners that stop reading."""
    plain = aiohttp.TCPConnector(limit=0)
    tight = aiohttp.TCPConnector(limit=0, socket_factory=_small_socket)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=15)
    agent = {"User-Agent": "outlast-verify"}
    async with (
        aiohttp.ClientSession(
            connector=plain, timeout=timeout, headers=agent, cookie_jar=aiohttp.DummyCookieJar()
        ) as one,
        aiohttp.ClientSession(
            connector=tight,
            timeout=timeout,
            headers=agent,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_SMALL_BUFFER_BYTES,
        ) as two,
    ):
        yield one, two


def _small_socket(address: Any) -> socket.socket:
    family, type_, protocol, *_ = address
    made = socket.socket(family, type_, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
    # The peer's kernel sizes its buffer by the segments that we take: on loopback, with segments of 64 KiB, it would
    # swallow megabytes, and nobody above it would ever notice a listener that has stopped.
    with suppress(AttributeError, OSError):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SMALL_SEGMENT_BYTES)
    return made
