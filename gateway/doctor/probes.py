"""The measurements: what a chain does to streams, upgrades, errors, headers and uploads. All of the doctor's I/O.

Everything that is measured by a clock is measured twice before it counts against the chain: a busy machine or a lost
packet looks like a buffer once, a buffer does so always.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp

from gateway.doctor.drip import Shape, lags_of, read_frames, shape_of
from gateway.doctor.exchange import Ended, Exchange, exchange, is_private, tls_context
from gateway.doctor.hops import hops_of_answer, hops_of_request
from gateway.doctor.measured import Drip, Silence, Socket

T = TypeVar("T")

TOKEN_HEADER: Final = "X-Outlast-Probe"
FRAMES: Final = 6
# How often what is not paced is measured again, at most; and how late, as a part of a frame's interval, the event loop
# may be for a measurement to count against the chain.
_ROUNDS: Final = 4
# No further round is begun after so many seconds: a standard run stays below 30 s.
_ROUNDS_SECONDS: Final = 14.0
_ORIGIN_FRAMES: Final = 4
_QUIET: Final = 0.3
_PATHS: Final[dict[Literal["sse", "ndjson", "json", "text"], str]] = {
    "sse": "sse",
    "ndjson": "ndjson",
    "json": "json",
    "text": "drip",
}
_METHODS: Final[tuple[Literal["GET", "POST"], ...]] = ("GET", "POST")
_ENCODINGS: Final[tuple[Literal["identity", "gzip"], ...]] = ("identity", "gzip")
_CHECKED_STATUSES: Final = (500, 502, 503, 504)
# Our protocol hangs on these: resuming, not paying twice, waiting, choosing a format.
_SENT_HEADERS: Final = {
    "Last-Event-ID": "17-1764000000000",
    "Idempotency-Key": "doctor-idempotency-key",
    "Prefer": "wait=5",
    "Accept": "text/event-stream",
}
# The usual limits: nginx 1 MB, API Gateway 10 MB, Cloudflare 100 MB (of 2^20 bytes or 10^6). Announced, not sent.
_ANNOUNCED_BYTES: Final = (2_000_000, 11_000_000, 106_000_000)
_SMALL_UPLOAD: Final = b"u" * 65_536
_SLOW_BYTES: Final = 5_000_000
_SLOW_SECONDS: Final = 35.0
# A little more than the longest of the usual limits on silence, Cloudflare's.
_SILENT_SECONDS: Final = 130
_LARGE_FRAME: Final = "f" * 65_536
# What a gateway says whose probes are all taken.
_CROWDED_STATUS: Final = 429
_CROWDED_CODE: Final = "too_many_streams"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the doctor waits; a scale below 1 is for chains whose own limits are scaled as well."""

    scale: float = 1.0

    def __call__(self, seconds: float) -> float:
        return seconds * self.scale


@dataclass(frozen=True, slots=True)
class Target:
    """An address to measure, and what every request to it carries."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    token: str = ""

    def probe(self, path: str) -> str:
        """The URL of a probe route: at the root of the address's host."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/_probe/{path}"


class _Cell(NamedTuple):
    """One place of the matrix: how a stream is asked for."""

    method: Literal["GET", "POST"]
    format: Literal["sse", "ndjson", "json", "text"]
    encoding: Literal["identity", "gzip"] = "identity"
    http: Literal["1.1", "2"] = "1.1"


class Probes:
    """The measurements of one target."""

    def __init__(self, target: Target, pace: Pace) -> None:
        self._target = target
        self._pace = pace
        self.crowded = False
        """Whether the gateway had no place for a probe, so that what was measured means nothing."""

    # --- who answers ------------------------------------------------------------------------------------------------

    async def own(self, patience_seconds: float) -> Exchange:
        """Ask for the address itself, by GET."""
        return await exchange(
            "GET", self._target.url, self._target.headers, patience_seconds=self._pace(patience_seconds)
        )

    async def first(self) -> tuple[Exchange, Literal["ready", "off", "refused", "unreachable", "busy"]]:
        """Ask for a probe route: who answers, and whether the gateway's probes can be used."""
        result = await self._ask("GET", "status?code=200", patience_seconds=10)
        if result.status == 200 and _json(result).get("probe") == "status":
            return result, "ready"
        if self.crowded:
            return result, "busy"
        if result.status is None:
            return result, "unreachable"
        return result, "refused" if result.status == 401 and _json(result).get("code") == "probe_token" else "off"

    # --- streams ----------------------------------------------------------------------------------------------------

    async def matrix(self) -> tuple[Drip, ...]:
        """All drips at once: each method, content type and encoding, and as browsers ask where HTTP/2 is spoken.

        What is not paced is measured again.
        """
        http2 = await self._speaks_http2()
        cells = [
            _Cell(method, format_, encoding) for method in _METHODS for format_ in _PATHS for encoding in _ENCODINGS
        ]
        if http2:
            cells += [_Cell(method, format_, "gzip", "2") for method in _METHODS for format_ in _PATHS]
        return await self._drips(cells)

    async def _speaks_http2(self) -> bool:
        if not self._target.url.lower().startswith("https://"):
            return False
        return (await self._ask("GET", "status?code=200", patience_seconds=10, http2=True)).status is not None

    async def few(self) -> tuple[Drip, ...]:
        """What tells whether an origin sends in time."""
        cells = [_Cell("GET", "sse"), _Cell("POST", "sse"), _Cell("GET", "json")]
        return await self._drips(cells, _ORIGIN_FRAMES)

    async def again(self, drips: Iterable[Drip]) -> tuple[Drip, ...]:
        """The same cells once more."""
        return await self._drips([_Cell(drip.method, drip.format, drip.encoding, drip.http) for drip in drips])

    async def _drips(self, cells: list[_Cell], frames: int = FRAMES) -> tuple[Drip, ...]:
        clock = asyncio.get_running_loop().time
        last_begin = clock() + _ROUNDS_SECONDS * frames / FRAMES
        drips, quiet = await self._round(cells, frames)
        for _ in range(_ROUNDS):
            doubtful = [index for index, drip in enumerate(drips) if drip.shape is not Shape.PACED]
            if not doubtful or clock() > last_begin:
                break
            second, still_quiet = await self._round([cells[index] for index in doubtful], frames)
            # Twice the same is believed, if this machine had time to look; anything else is measured again.
            same = all(
                drip.shape in {Shape.PACED, drips[index].shape} for index, drip in zip(doubtful, second, strict=True)
            )
            for index, drip in zip(doubtful, second, strict=True):
                drips[index] = drip
            if same and quiet and still_quiet:
                break
            quiet = still_quiet
        return tuple(drips)

    async def _round(self, cells: list[_Cell], frames: int) -> tuple[list[Drip], bool]:
        """These drips, all at once; and whether this machine was quick enough to see how they came."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_largest_lag(self._pace(0.1)))
            drips = await gather(self._drip(cell, frames) for cell in cells)
            watching.cancel()
            lag = await watching
        return drips, lag < _QUIET * self._pace(1)

    async def _drip(self, cell: _Cell, frames: int) -> Drip:
        every = self._pace(1)
        # The first frame waits until all streams stand: what opening them costs must not count as a hop's holding it.
        path = f"{_PATHS[cell.format]}?frames={frames}&every={every:g}&hold={every / 2:g}"
        headers = {"Accept-Encoding": cell.encoding}
        result = await self._ask(cell.method, path, headers, patience_seconds=frames + 8, http2=cell.http == "2")
        content_encoding = result.head.get("content-encoding") if result.head else ""
        facts: dict[str, Any] = {
            **cell._asdict(),
            "status": result.status,
            "content_encoding": content_encoding,
            "framing": result.framing,
            "head_seconds": rounded(result.head_seconds),
            "first_byte_seconds": rounded(result.first_byte_seconds),
            "ended_seconds": rounded(result.ended_seconds),
            "size": result.size,
        }
        if result.status != 200:
            return Drip(shape=Shape.CUT if result.status is None else Shape.FAILED, **facts)
        found = read_frames(result.pieces, content_encoding)
        return Drip(
            shape=shape_of(found, frames, every, whole=result.ended is Ended.WHOLE),
            sent_seconds=round(found[-1].sent - found[0].sent, 3) if found else 0,
            came_seconds=round(found[-1].came - found[0].came, 3) if found else 0,
            largest_lag_seconds=round(max(lags_of(found), default=0), 3),
            **facts,
        )

    async def headers_held(self) -> bool | None:
        """Whether headers come only with the first byte of the body; twice, to be believed."""
        hold = self._pace(3)
        for _ in range(2):
            result = await self._ask("GET", f"sse?frames=2&every=0.01&hold={hold:g}", patience_seconds=10)
            if result.head_seconds is None or result.sent_seconds is None or result.status != 200:
                return None
            if result.head_seconds - result.sent_seconds <= 0.7 * hold:
                return False
        return True

    # --- the WebSocket ----------------------------------------------------------------------------------------------

    async def socket(self, idle_seconds: float = 2) -> Socket:
        """A handshake byte by byte, then a hello, echoes small and large, and one after a pause."""
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        result = await self._ask("GET", "ws", upgrade | {"Sec-WebSocket-Key": key}, patience_seconds=10)
        hops = tuple(hops_of_answer(result.head.headers)) if result.head else ()
        facts: dict[str, Any] = {"status": result.status, "hops": hops}
        if result.head is None:
            return Socket(outcome="unreachable", **facts)
        if result.head.get("cf-mitigated"):
            return Socket(outcome="challenged", **facts)
        if result.status != 101:
            stripped = _json(result).get("code") == "websocket_expected"
            return Socket(outcome="stripped" if stripped else "refused", **facts)
        digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
        if result.head.get("sec-websocket-accept") != base64.b64encode(digest).decode():
            return Socket(outcome="mute", **facts)
        outcome, seconds = await self._talk(idle_seconds)
        return Socket(outcome=outcome, seconds=round(seconds, 2), **facts)

    async def _talk(
        self, idle_seconds: float
    ) -> tuple[Literal["works", "mute", "closed", "altered", "idle_cut"], float]:
        clock = asyncio.get_running_loop().time
        timeout = aiohttp.ClientTimeout(total=None, connect=self._pace(10) + 2)
        headers = {**self._target.headers, TOKEN_HEADER: self._target.token}
        context = tls_context("http/1.1", trust=is_private(urlsplit(self._target.url).hostname or ""))
        stage: Literal["mute", "closed", "altered", "idle_cut"] = "mute"
        began = clock()
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.ws_connect(
                    self._target.probe("ws"), headers=headers, max_msg_size=1 << 20, ssl=context
                ) as socket,
            ):
                patience = self._pace(5) + 1
                began = clock()
                if (await socket.receive_json(timeout=patience)).get("probe") != "ws":
                    return "mute", clock() - began
                await socket.send_str("small")
                stage = "closed"
                await socket.receive_json(timeout=patience)
                stage = "altered"
                await socket.send_str(_LARGE_FRAME)
                if (await socket.receive_json(timeout=patience)).get("echo") != _LARGE_FRAME:
                    return "altered", clock() - began
                stage = "idle_cut" if idle_seconds > 5 else "closed"
                with suppress(TimeoutError):
                    # Nothing is to come; what ends the waiting early is a close.
                    await socket.receive_json(timeout=self._pace(idle_seconds))
                await socket.send_str("after a pause")
                await socket.receive_json(timeout=patience)
        except TimeoutError:
            return ("mute" if stage == "closed" else stage), clock() - began
        except aiohttp.WSServerHandshakeError as refused:
            # The handshake before this one was let in.
            self.crowded |= refused.status == _CROWDED_STATUS
            return "closed", clock() - began
        except (aiohttp.ClientError, TypeError, ValueError, OSError):
            # TypeError is aiohttp's word for a close in the place of a text.
            return ("closed" if stage == "mute" else stage), clock() - began
        return "works", clock() - began

    # --- statuses, headers, uploads ---------------------------------------------------------------------------------

    async def bodies(self) -> dict[str, Literal["whole", "replaced"]]:
        """Which errors of the gateway come through as they are."""
        results = await gather(
            self._ask("GET", f"status?code={code}", {"Accept": "application/json"}, patience_seconds=10)
            for code in _CHECKED_STATUSES
        )
        return {
            str(code): "whole" if result.status == code and _json(result).get("probe") == "status" else "replaced"
            for code, result in zip(_CHECKED_STATUSES, results, strict=True)
            if result.status is not None
        }

    async def interim(self) -> Literal["passed", "dropped"] | None:
        """Whether an interim answer comes through."""
        result = await self._ask("GET", "status?code=200&interim=103", patience_seconds=10)
        if result.status != 200:
            return None
        return "passed" if any(head.status == 103 for _, head in result.interim) else "dropped"

    async def headers(self) -> dict[str, Any]:
        """What the gateway saw of a request, and whether it saw each of two."""
        first, second = await gather(
            self._ask("GET", "echo-headers", _SENT_HEADERS, patience_seconds=10) for _ in range(2)
        )
        document = _json(first)
        if document.get("probe") != "echo-headers":
            return {}
        arrived = [(str(name), str(value)) for name, value in document.get("headers", [])]
        names = {name.lower() for name, _ in arrived}
        values = {name.lower(): value for name, value in arrived}
        return {
            "missing_headers": tuple(name for name in _SENT_HEADERS if name.lower() not in names),
            "inner_hops": tuple(hops_of_request(arrived)),
            "accept_encoding": values.get("accept-encoding", ""),
            "cached": document.get("time_ns") == _json(second).get("time_ns"),
        }

    async def upload(self) -> dict[str, Any]:
        """A small upload: whether it comes whole, and how often."""
        id_ = secrets.token_hex(8)
        result = await self._ask("POST", f"upload?id={id_}", body=_SMALL_UPLOAD, patience_seconds=15)
        document = _json(result)
        if document.get("probe") != "upload":
            return {"upload": f"{result.status or result.ended} in the place of the gateway's answer"}
        seen = _json(await self._ask("GET", f"upload?id={id_}", patience_seconds=10)).get("visits")
        arrived = document.get("bytes")
        lost = "" if arrived == len(_SMALL_UPLOAD) else f"{arrived} of {len(_SMALL_UPLOAD)} bytes arrived"
        # Several gateways behind one name count each for itself: the larger number is the truer one.
        return {"upload": lost, "visits": max(int(document.get("visits", 1)), int(seen or 0))}

    async def slow_upload(self) -> str:
        """5 MB over half a minute, as from a phone; what went wrong, empty for nothing."""
        body = b"s" * _SLOW_BYTES
        result = await exchange(
            "POST",
            self._target.probe(f"upload?id={secrets.token_hex(8)}"),
            {**self._target.headers, TOKEN_HEADER: self._target.token},
            body,
            patience_seconds=self._pace(_SLOW_SECONDS * 2) + 1,
            bytes_per_second=_SLOW_BYTES / self._pace(_SLOW_SECONDS),
        )
        arrived = _json(result).get("bytes")
        if arrived == _SLOW_BYTES:
            return ""
        got = f"{arrived} bytes arrived" if arrived is not None else f"{result.status or result.ended} came back"
        return f"{_SLOW_BYTES} bytes were sent slowly, and {got} after {result.ended_seconds:.0f} s"

    async def refused_bytes(self) -> int | None:
        """The smallest of the usual body sizes that is refused before the gateway; none of them is sent."""
        results = await gather(
            self._ask("POST", f"upload?id={secrets.token_hex(8)}", patience_seconds=3, announce_bytes=size, grace=0.2)
            for size in _ANNOUNCED_BYTES
        )
        refused = [
            size
            for size, result in zip(_ANNOUNCED_BYTES, results, strict=True)
            if result.status == 413 and _json(result).get("code") != "too_large"
        ]
        return min(refused, default=None)

    # --- the long silence -------------------------------------------------------------------------------------------

    async def silence(self) -> Silence:
        """How long nothing may come, before the first byte and between two; then whether a heartbeat outlives it."""
        asked = self._pace(_SILENT_SECONDS)
        first, gap = await gather(
            [
                self._ask("GET", f"silent?seconds={asked:g}", patience_seconds=_SILENT_SECONDS + 20),
                self._ask("GET", f"sse?frames=2&every={asked:g}", patience_seconds=_SILENT_SECONDS + 20),
            ]
        )
        waited = first.ended_seconds - (first.sent_seconds or 0)
        first_cut = None if _json(first).get("probe") == "silent" else waited
        gap_cut = gap.last_gap_seconds if gap.ended is not Ended.WHOLE or gap.status != 200 else None
        paced_cut = None
        shortest = min((cut for cut in (first_cut, gap_cut) if cut is not None), default=None)
        if shortest is not None:
            every = shortest / 2
            paced = await self._ask(
                "GET", f"sse?frames=5&every={every:g}", patience_seconds=(5 * every) / self._pace.scale + 10
            )
            paced_cut = None if paced.ended is Ended.WHOLE and paced.status == 200 else paced.ended_seconds
        return Silence(
            asked_seconds=asked,
            first_byte_cut_seconds=rounded(first_cut),
            first_byte_status=first.status,
            gap_cut_seconds=rounded(gap_cut),
            paced_cut_seconds=rounded(paced_cut),
        )

    async def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        patience_seconds: float,
        announce_bytes: int | None = None,
        grace: float = 1,
        http2: bool = False,
    ) -> Exchange:
        result = await exchange(
            method,
            self._target.probe(path),
            {**self._target.headers, TOKEN_HEADER: self._target.token, **(headers or {})},
            body,
            # A scaled chain answers no sooner than the machine lets it: some time is always allowed.
            patience_seconds=self._pace(patience_seconds) + grace,
            announce_bytes=announce_bytes,
            http2=http2,
        )
        self.crowded |= result.status == _CROWDED_STATUS and _json(result).get("code") == _CROWDED_CODE
        return result


async def _largest_lag(every_seconds: float) -> float:
    """How late this event loop was, at the worst; measured until it is cancelled."""
    clock = asyncio.get_running_loop().time
    largest = 0.0
    with suppress(asyncio.CancelledError):
        while True:
            due = clock() + every_seconds
            await asyncio.sleep(every_seconds)
            largest = max(largest, clock() - due)
    return largest


async def gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order; one that fails ends the others, and so does a cancel."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
    return [task.result() for task in tasks]


def _json(result: Exchange) -> dict[str, Any]:
    try:
        document = json.loads(result.body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def rounded(seconds: float | None) -> float | None:
    """To a millisecond, which is what a clock across a network is good for."""
    return None if seconds is None else round(seconds, 3)
