"""Every way to get a job's end through every simulated hop, with jobs that last ten times as long as the hop waits.

    python -m tests.edge_matrix          measure, and write the table into docs/edge.md

Each hop has a scale of its own, so that its limit passes in a second. What a gateway does by time (heartbeats, waits,
planned ends) is scaled with it, only less often than in production where that would be more than 33 times a second.
All cells are measured at once, on real servers: hop, gateway, Valkey. A client that resumes does so here as well.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import aiohttp
from aiohttp import web

from gateway import hub
from gateway.documents import KindDocument
from gateway.edge import Edge, Profile, load_profile, profile_names
from gateway.embedded import EmbeddedValkey
from gateway.handlers import jobs
from gateway.handlers.context import SETTINGS, preferred_wait
from gateway.store import Claim, Store
from tests.edge_origin import raw_origin
from tests.jobs import end, event
from tests.serving import gateway_for

PAGE: Final = Path(__file__).parents[1] / "docs" / "edge.md"
KIND: Final = "slow"
LIMIT_SECONDS: Final = 1.0
"""What a hop's limit is scaled to."""
OUTLASTS: Final = 10
# A hop without a limit gets jobs as long as those for Cloudflare.
_OTHERWISE_SECONDS: Final = 125.0
_BEATS: Final = 10
# A heartbeat faster than this would measure the machine.
_LEAST_HEARTBEAT_SECONDS: Final = 0.03
HUB_CLOCK_SECONDS: Final = 0.02
"""How often a gateway looks whether a heartbeat is due: every half second is too seldom for seconds this short."""
_APART_SECONDS: Final = 0.03
# After a job's end, for a client that was just told to come back later.
_GRACE_SECONDS: Final = 4.0

Table = dict[str, dict[str, str]]
"""mode -> profile -> outcome."""


def _now() -> float:
    return asyncio.get_running_loop().time()


def limit_of(profile: Profile) -> float:
    """The hop's smallest limit, in its own seconds."""
    timers = profile.timers
    limits = [timers.first_seconds, timers.gap_seconds, timers.total_seconds]
    return min((limit for limit in limits if limit), default=_OTHERWISE_SECONDS)


@dataclass
class Client:
    """A client of one cell: where it asks, and until when it tries."""

    session: aiohttp.ClientSession
    url: str
    job_seconds: float
    pause_seconds: float

    def __post_init__(self) -> None:
        self.until = _now() + self.job_seconds + _GRACE_SECONDS
        self.cursor = ""
        self.beats = 0
        self.live = 0
        self.ended = False
        self.refused = ""

    @property
    def waiting(self) -> bool:
        """Whether to try again."""
        return not self.ended and _now() < self.until

    async def submit(self, **headers: str) -> Any:
        """Submit a job; the answer's document."""
        async with self.session.post(self.jobs, json=self.body, headers=headers) as answer:
            if answer.status >= 400:
                raise RefusedError(str(answer.status))
            return await answer.json()

    @property
    def jobs(self) -> str:
        """Where jobs are submitted."""
        return f"{self.url}/v1/kinds/{KIND}/jobs"

    @property
    def body(self) -> dict[str, Any]:
        """What is submitted."""
        return {"input": {"seconds": self.job_seconds}}

    def take(self, document: dict[str, Any], cursor: str) -> None:
        """Note an event."""
        if "id" in document:
            self.cursor = cursor or str(document["id"])
        if document["type"] == "test.beat":
            self.beats += 1
            self.live += _now() - document["data"]["sent"] < LIMIT_SECONDS / 2
        self.ended = self.ended or bool(document.get("terminal"))

    def outcome(self) -> str:
        """In a word."""
        if not self.ended:
            return self.refused or "cut"
        return "live" if self.live > self.beats / 2 else "late"

    async def stream(self, answer: aiohttp.ClientResponse) -> None:
        """Take a stream's events until it ends."""
        if answer.status != 200:
            self.refused = str(answer.status)
            return
        self.refused = ""
        block = ""
        async for raw in answer.content:
            line = raw.decode().strip()
            if line.startswith("id:"):
                block = line[3:].strip()
            elif (text := line.removeprefix("data:").strip()).startswith("{"):
                self.take(json.loads(text), block)

    async def resume(self, job: str, accept: str) -> None:
        """Follow a job from the cursor on, again and again."""
        while self.waiting:
            headers = {"Accept": accept} | ({"Last-Event-ID": self.cursor} if self.cursor else {})
            try:
                async with self.session.get(f"{self.url}/v1/jobs/{job}/events", headers=headers) as answer:
                    await self.stream(answer)
            except (aiohttp.ClientError, TimeoutError):
                pass
            if self.waiting:
                await asyncio.sleep(self.pause_seconds)


class RefusedError(Exception):
    """The answer was an error's status."""


async def get_sse(client: Client) -> str:
    """`GET .../events`, as an EventSource."""
    await client.resume((await client.submit())["id"], "text/event-stream")
    return client.outcome()


async def get_ndjson(client: Client) -> str:
    """`GET .../events`, a line for each event."""
    await client.resume((await client.submit())["id"], "application/x-ndjson")
    return client.outcome()


async def post_sse(client: Client) -> str:
    """`POST .../jobs` with `Accept: text/event-stream`: one request, not resumed."""
    headers = {"Accept": "text/event-stream"}
    try:
        async with client.session.post(client.jobs, json=client.body, headers=headers) as answer:
            if answer.status < 400:
                answer.status = 200
            await client.stream(answer)
    except aiohttp.ClientError:
        pass
    return client.outcome()


async def long_poll(client: Client) -> str:
    """`GET .../events?wait=25` as JSON, again and again."""
    job = (await client.submit())["id"]
    while client.waiting:
        query = {"wait": f"{wait_seconds(client):.3f}"} | ({"after": client.cursor} if client.cursor else {})
        url = f"{client.url}/v1/jobs/{job}/events"
        try:
            async with client.session.get(url, params=query, headers={"Accept": "application/json"}) as answer:
                if answer.status != 200:
                    return str(answer.status)
                for document in await answer.json():
                    client.take(document, "")
        except aiohttp.ClientError:
            await asyncio.sleep(client.pause_seconds)
    return client.outcome()


def wait_seconds(client: Client) -> float:
    """25 s, scaled."""
    return client.pause_seconds * 25 / 2


async def websocket(client: Client) -> str:
    """`GET /v1/ws`: subscribe, and come back with the cursor."""
    job = (await client.submit())["id"]
    while client.waiting:
        try:
            async with client.session.ws_connect(f"{client.url}/v1/ws") as socket:
                asked = {"op": "subscribe", "job": job} | ({"after": client.cursor} if client.cursor else {})
                await socket.send_json(asked)
                async for message in socket:
                    document = json.loads(message.data)
                    if "type" in document:
                        client.take(document, "")
                    if client.ended:
                        break
        except aiohttp.WSServerHandshakeError as error:
            return f"no upgrade ({error.status})"
        except aiohttp.ClientError:
            pass
        if client.waiting:
            await asyncio.sleep(client.pause_seconds)
    return client.outcome()


async def run(client: Client) -> str:
    """`POST .../run`: one request."""
    try:
        async with client.session.post(f"{client.url}/v1/kinds/{KIND}/run", json=client.body) as answer:
            if answer.status != 200:
                return str(answer.status)
            document = await answer.json(content_type=None)
            return "yes" if document["state"] == "succeeded" and "error" not in document else "wrong"
    except aiohttp.ClientError:
        return "cut"


async def prefer_wait(client: Client) -> str:
    """`Prefer: wait=25` on the submit, then on the job."""
    return await poll_on(client, await client.submit(Prefer="wait=25"), wait=wait_seconds(client))


async def poll(client: Client) -> str:
    """202, then `GET /v1/jobs/{id}` every two seconds."""
    return await poll_on(client, await client.submit(), wait=0)


async def poll_on(client: Client, document: dict[str, Any], *, wait: float) -> str:
    """Ask until the job has ended."""
    while not document["terminal"] and client.waiting:
        if not wait:
            await asyncio.sleep(client.pause_seconds)
        query = {"wait": f"{wait:.3f}"} if wait else {}
        async with client.session.get(f"{client.url}/v1/jobs/{document['id']}", params=query) as answer:
            if answer.status != 200:
                return str(answer.status)
            document = await answer.json()
    return "yes" if document["state"] == "succeeded" else "cut"


async def synchronous(client: Client) -> str:
    """A route that answers when the work is done."""
    try:
        async with client.session.post(client.url + "/work", json=client.body) as answer:
            return "yes" if answer.status == 200 else str(answer.status)
    except aiohttp.ClientError:
        return "cut"


CONTROL: Final = "a plain slow route"
MODES: Final[dict[str, Callable[[Client], Awaitable[str]]]] = {
    CONTROL: synchronous,
    "202 and poll": poll,
    "`Prefer: wait`": prefer_wait,
    "long poll": long_poll,
    "`run`": run,
    "GET SSE": get_sse,
    "POST SSE": post_sse,
    "NDJSON": get_ndjson,
    "WebSocket": websocket,
}


# --- the servers ------------------------------------------------------------------------------------------------------


async def _slow_route(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The control's origin: works as long as it is asked to, then answers."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.findall(rb"content-length: (\d+)", head.lower())[0])
    await asyncio.sleep(json.loads(await reader.readexactly(length))["input"]["seconds"])
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    await writer.drain()


async def _work(store: Store) -> None:
    """Do jobs as they come: some events, and the end after as many seconds as the input says."""
    async with asyncio.TaskGroup() as attempts:
        while True:
            for claim in await store.claim(KIND, "matrix", 20):
                attempts.create_task(_attempt(store, claim))
            await asyncio.sleep(0.02)


async def _attempt(store: Store, claim: Claim) -> None:
    begun = await store.begin(claim, "matrix")
    assert begun.lease is not None, begun
    lease, seconds = begun.lease, json.loads(begun.input)["seconds"]
    await store.hold(claim, lease)
    start = _now()
    for number in range(1, _BEATS + 1):
        await store.append(lease, number, [event("test.beat", {"sent": _now()})])
        await asyncio.sleep(max(0, start + number * seconds / (_BEATS + 0.5) - _now()))
    await asyncio.sleep(max(0, start + seconds - _now()))
    await end(store, lease, batch=_BEATS + 1)


def _scaled_wait(request: web.Request) -> float | None:
    """`Prefer: wait` takes whole seconds, so it is scaled behind the header."""
    wait = preferred_wait(request)
    return None if wait is None else wait * request.app[SETTINGS].heartbeat_seconds / 15


@asynccontextmanager
async def _clients(store: Store, folder: Path, profile: Profile) -> AsyncIterator[Callable[[str], Client]]:
    """The servers of one column."""
    scale = LIMIT_SECONDS / limit_of(profile)
    heartbeat = max(15 * scale, _LEAST_HEARTBEAT_SECONDS)
    # Only the silence and the total are measured here: scaled to milliseconds, the other limits are the machine's.
    idle = profile.websocket.idle_seconds * heartbeat / (15 * scale)
    profile = profile.changed(
        timers__connect_seconds=0.0,
        timers__client_idle_seconds=0.0,
        timers__origin_idle_seconds=0.0,
        timers__ack_seconds=0.0,
        timers__write_seconds=0.0,
        websocket__idle_seconds=idle,
        websocket__idle_most_seconds=idle,
    )
    settings = {
        "heartbeat_seconds": heartbeat,
        "run_quiet_seconds": heartbeat * 20 / 15,
        "stream_max_age_seconds": max(600 * scale, 1),
        "retry_seconds": 0.1,
    }
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        gateway_for(store, folder / profile.name, **settings) as gateway,
        raw_origin(_slow_route) as slow,
        Edge(profile, gateway.url, time_scale=scale) as edge,
        Edge(profile, slow, time_scale=scale) as control,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        # What a gateway does once, it does now.
        await gateway.post(f"/v1/kinds/{KIND}/jobs", json={"input": {"seconds": 0}}, headers={"Prefer": "wait=1"})
        yield lambda mode: Client(
            session, (control if mode == CONTROL else edge).url, LIMIT_SECONDS * OUTLASTS, heartbeat * 2 / 15
        )


async def measure(store: Store, folder: Path, cells: Iterable[tuple[str, str]]) -> Table:
    """The outcomes of cells (mode, profile), all at once."""
    wanted: dict[str, list[str]] = {}
    for mode, name in cells:
        wanted.setdefault(name, []).append(mode)
    await store.register_kind(KindDocument(kind=KIND))
    table: Table = {mode: {} for mode in MODES}

    async def cell(mode: str, name: str, client: Client) -> None:
        try:
            table[mode][name] = await MODES[mode](client)
        except RefusedError as refused:
            table[mode][name] = str(refused)
        except aiohttp.ClientError:
            table[mode][name] = "cut"

    async with AsyncExitStack() as stack:
        stack.enter_context(mock.patch.object(jobs, "preferred_wait", _scaled_wait))
        stack.enter_context(mock.patch.object(hub, "_CLOCK_SECONDS", HUB_CLOCK_SECONDS))
        working = asyncio.create_task(_work(store))
        try:
            # Starting a gateway takes a moment in which the others' limits would pass.
            columns = [await stack.enter_async_context(_clients(store, folder, load_profile(name))) for name in wanted]
            async with asyncio.TaskGroup() as measuring:
                for (name, modes), make in zip(wanted.items(), columns, strict=True):
                    for mode in modes:
                        measuring.create_task(cell(mode, name, make(mode)))
                        # A hundred submits at once would be a load test.
                        await asyncio.sleep(_APART_SECONDS)
        finally:
            working.cancel()
            await asyncio.wait([working])
    return table


async def measure_again(store: Store, folder: Path, table: Table, cells: list[tuple[str, str]]) -> None:
    """Measure cells once more, with less going on at once, and keep what is better.

    A busy machine makes an outcome worse; it can't let a request through a limit that passes ten times meanwhile.
    """
    again = await measure(store, folder, cells)
    for mode, name in cells:
        table[mode][name] = max(table[mode][name], again[mode][name], key=_goodness)


def _goodness(outcome: str) -> int:
    return {"live": 2, "yes": 2, "late": 1}.get(outcome, 0)


def every_cell() -> list[tuple[str, str]]:
    """All modes through all profiles."""
    return [(mode, name) for mode in MODES for name in profile_names()]


# --- the table in the docs --------------------------------------------------------------------------------------------

_BEGIN: Final = "<!-- matrix: python -m tests.edge_matrix -->\n"
_END: Final = "<!-- /matrix -->\n"


def markdown(table: Table) -> str:
    """A row for each hop."""
    modes = list(MODES)
    lines = [f"| through | {' | '.join(modes)} |", "|---" * (len(modes) + 1) + "|"]
    lines += [f"| `{name}` | " + " | ".join(table[mode][name] for mode in modes) + " |" for name in profile_names()]
    return "\n".join(lines) + "\n"


def written() -> Table:
    """The table as the page has it."""
    text = PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]
    rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in text.splitlines()]
    return {
        mode: {row[0].strip(" `|"): row[place].strip(" |") for row in rows[2:]}
        for place, mode in enumerate(rows[0])
        if place
    }


async def _main() -> None:
    with tempfile.TemporaryDirectory() as name:
        async with EmbeddedValkey(Path(name), memory_bytes=256 * 1024 * 1024) as server:
            store = await Store.connect(server.url, prefix="matrix", lease_seconds=600)
            table = await measure(store, Path(name), every_cell())
            for _ in range(2):
                worse = [(mode, name_) for mode, name_ in every_cell() if _goodness(table[mode][name_]) < 2]
                await measure_again(store, Path(name), table, worse)
            await store.close()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    PAGE.write_text(before + _BEGIN + markdown(table) + _END + rest.partition(_END)[2], encoding="utf-8")
    sys.stdout.write(markdown(table))


if __name__ == "__main__":
    asyncio.run(_main())
