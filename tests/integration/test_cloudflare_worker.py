"""Our Worker in Cloudflare's own runtime, between real clients and the real gateway."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.hub import Hub
from gateway.store import Lease, Store
from tests.edge_origin import Origin, origin_server
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin, end, event
from tests.ports import free_port
from tests.serving import KEYS, Gateway, gateway_for

FOLDER = Path(__file__).parents[2] / "deploy" / "cloudflare"
WORKERD = FOLDER / "node_modules" / ".bin" / "workerd"

pytestmark = pytest.mark.skipif(
    not WORKERD.exists() and not os.environ.get("CI"), reason="workerd is not installed: `make test` does it"
)
ROUTES = "/v1/ /v1/\n/api/echo /v1/kinds/echo/jobs\n"


class Runtime:
    """A workerd that can be killed and started again on the same port."""

    def __init__(self, gateway: str, origin: str, routes: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {"GATEWAY": gateway, "ORIGIN": origin, "ROUTES": routes}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = await asyncio.create_subprocess_exec(
            *(WORKERD, "serve", "local.capnp", "--socket-addr", f"http=127.0.0.1:{self.port}"),
            cwd=FOLDER,
            env=os.environ | self._environment,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await wait_until(self._listens, what="workerd")

    async def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, "workerd has ended by itself"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.transport.abort()
        return True

    async def kill(self) -> None:
        """End it as a crash or an update does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def runtime(gateway: str, origin: str, routes: str = ROUTES) -> AsyncIterator[Runtime]:
    """The Worker, running."""
    running = Runtime(gateway, origin, routes)
    try:
        await running.start()
        yield running
    finally:
        await running.kill()


@pytest.fixture
async def site() -> AsyncIterator[Origin]:
    """The site that the Worker stands before."""
    async with origin_server() as site:
        yield site


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """The gateway, with fast heartbeats."""
    async with gateway_for(store, tmp_path, heartbeat_seconds=0.1) as gateway:
        yield gateway


@pytest.fixture
async def worker(gateway: Gateway, site: Origin) -> AsyncIterator[Runtime]:
    """The Worker in front of both."""
    async with runtime(gateway.url, site.url) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession() as session:
        yield session


async def log(store: Store, lease: Lease, batch: int) -> None:
    """Append one event."""
    await store.append(lease, batch, [event("log", {"message": str(batch)})])


async def submitted(session: aiohttp.ClientSession, worker: Runtime) -> str:
    """Submit by the path that the site's clients know."""
    async with session.post(worker.url + "/api/echo", json={"input": {}}) as answer:
        assert answer.status == 202
        job: str = (await answer.json())["id"]
        return job


async def next_event(answer: aiohttp.ClientResponse) -> tuple[str, dict[str, Any]]:
    """The next numbered event of a stream, with its cursor."""
    cursor = ""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for raw in answer.content:
            line = raw.decode().strip()
            if line.startswith("id:"):
                cursor = line[3:].strip()
            elif line.startswith("data:") and cursor:
                return cursor, json.loads(line[5:])
    raise AssertionError("the stream has ended")


async def test_a_stream_passes_live_and_is_resumed_after_the_runtime_was_killed(
    worker: Runtime, session: aiohttp.ClientSession, store: Store
) -> None:
    """Each event as it is written, and each once, before and after."""
    job = await submitted(session, worker)
    events = f"{worker.url}/v1/jobs/{job}/events"
    stream = await session.get(events)
    lease = await begin(store, "echo")
    seen = [await next_event(stream), await next_event(stream)]
    for batch in range(1, 4):
        await log(store, lease, batch)
        seen.append(await next_event(stream))

    await worker.kill()
    with pytest.raises(aiohttp.ClientError):
        await stream.read()
    await log(store, lease, 4)
    await worker.start()
    stream = await session.get(events, headers={"Last-Event-ID": seen[-1][0]})
    seen.append(await next_event(stream))
    await end(store, lease, batch=5)
    seen.append(await next_event(stream))
    stream.close()

    assert [document["id"] for _, document in seen] == list(range(1, 8))
    assert seen[-1][1]["terminal"] is True


async def test_a_websocket_passes_and_is_resumed_after_the_runtime_was_killed(
    worker: Runtime, session: aiohttp.ClientSession, store: Store
) -> None:
    """With the cursor, on the same path."""
    job = await submitted(session, worker)
    lease = await begin(store, "echo")
    numbers: list[int] = []

    async def follow(until: int, after: str) -> str:
        async with session.ws_connect(worker.url + "/v1/ws") as socket:
            await socket.send_json({"op": "subscribe", "job": job, **({"after": after} if after else {})})
            while not numbers or numbers[-1] < until:
                document = json.loads((await socket.receive(timeout=PATIENCE_SECONDS)).data)
                if "id" in document:
                    numbers.append(document["id"])
            if until == 4:
                await worker.kill()
                assert (await socket.receive(timeout=PATIENCE_SECONDS)).type in {
                    aiohttp.WSMsgType.CLOSED,
                    aiohttp.WSMsgType.CLOSE,
                    aiohttp.WSMsgType.ERROR,
                }
        return str(numbers[-1])

    await log(store, lease, 1)
    await log(store, lease, 2)
    cursor = await follow(4, "")
    await log(store, lease, 3)
    await worker.start()
    await end(store, lease, batch=4)
    await follow(6, cursor)

    assert numbers == [1, 2, 3, 4, 5, 6]


async def test_everything_else_goes_to_the_site_as_it_is(
    worker: Runtime, session: aiohttp.ClientSession, site: Origin
) -> None:
    """Paths, queries, bodies, statuses, streams and WebSockets."""
    async with session.get(worker.url + "/text?n=5") as answer:
        assert await answer.read() == b"xxxxx"
    async with session.get(worker.url + "/status/418") as answer:
        assert answer.status == 418
    body = os.urandom(3_000_000)
    async with session.post(worker.url + "/upload", data=io.BytesIO(body)) as answer:
        assert await answer.json() == {"bytes": len(body)}
    assert site.bodies == [body]
    async with session.ws_connect(worker.url + "/echo") as socket:
        await socket.send_str("bye")
        await socket.receive()
        assert socket.close_code == 4001


async def test_a_client_that_leaves_takes_its_request_with_it(
    worker: Runtime, session: aiohttp.ClientSession, gateway: Gateway
) -> None:
    """The gateway's place is free again."""
    hub = next(value for value in gateway.app.values() if isinstance(value, Hub))
    job = await submitted(session, worker)
    stream = await session.get(f"{worker.url}/v1/jobs/{job}/events")
    await next_event(stream)
    await wait_until(lambda: len(hub.listeners) == 1)

    stream.close()

    await wait_until(lambda: not hub.listeners)


async def test_a_gateway_that_is_away_is_a_503_that_says_when_to_come_back(
    session: aiohttp.ClientSession, site: Origin
) -> None:
    """Not a 502, whose body an edge would replace; the rest of the site goes on."""
    async with runtime(f"http://127.0.0.1:{free_port()}", site.url) as worker:
        async with session.get(worker.url + "/v1/jobs/x") as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "2"
            assert (await answer.json(content_type=None))["code"] == "gateway_unreachable"
        async with session.get(worker.url + "/text?n=1") as answer:
            assert answer.status == 200


async def test_only_the_paths_that_are_listed_are_the_gateways(
    session: aiohttp.ClientSession, gateway: Gateway, site: Origin
) -> None:
    """A path without a slash at its end stands for itself alone."""
    async with runtime(gateway.url, site.url, "/headers /healthz\n/jobs/ /v1/jobs/\n") as worker:
        for path, status in (("/headers", 200), ("/headers/", 404), ("/jobs/none", 404), ("/v1/kinds", 404)):
            async with session.get(worker.url + path) as answer:
                assert answer.status == status, path
        async with session.get(worker.url + "/jobs/none") as answer:
            assert (await answer.json(content_type=None))["code"] == "job_not_found"
    assert [request.path for request in site.requests] == ["/headers/", "/v1/kinds"]


async def test_the_configuration_that_is_deployed_is_one_that_works(
    session: aiohttp.ClientSession, store: Store, tmp_path: Path, site: Origin
) -> None:
    """With the page's own route an unchanged client's POST is taken, though it sends no key; nobody calls here."""
    deployed = tomllib.loads((FOLDER / "wrangler.toml").read_text())
    page = (FOLDER.parents[1] / "docs" / "cloudflare.md").read_text()
    routes = tmp_path / "routes.toml"
    routes.write_text(page.split("<!-- routes.toml -->\n```toml\n")[1].split("```")[0])

    async with (
        gateway_for(store, tmp_path / "blobs", api_keys=KEYS, routes=routes) as gateway,
        runtime(gateway.url, site.url, deployed["vars"]["ROUTES"]) as worker,
    ):
        async with session.post(worker.url + "/api/report", json={"year": 2026}) as answer:
            assert (await answer.json(content_type=None))["code"] == "no_worker"
        async with session.get(worker.url + "/v1/jobs") as answer:
            assert answer.status == 401
    assert deployed["vars"]["ROUTES"] in page
    assert (FOLDER / deployed["main"]).is_file()
    assert f'compatibilityDate = "{deployed["compatibility_date"]}"' in (FOLDER / "local.capnp").read_text()


@pytest.mark.parametrize("routes", ["/v1 /v1/", "v1/ /v1/", "/v1/", "/v1/ /v1/ /v2/"])
async def test_a_wrong_route_lets_nothing_through(session: aiohttp.ClientSession, site: Origin, routes: str) -> None:
    """A typing error shows at the first request, not as a route that is never taken."""
    async with (
        runtime("http://127.0.0.1:9", site.url, routes) as worker,
        session.get(worker.url + "/text") as answer,
    ):
        assert answer.status == 500
