"""The gateway as a process: it starts, drains on SIGTERM, and refuses what can't work."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import http_parser

from gateway.app import make_app, run_gateway, serving
from gateway.blobs import Blobs
from gateway.collector import collect
from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.handlers.context import HUB
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.gateway_process import gateway_process, has_listeners, is_ready
from tests.jobs import begin, end, submit
from tests.serving import Gateway, gateway_for


async def test_sigterm_ends_streams_with_advice_and_the_process_with_zero(
    store: Store, valkey: str, prefix: str, tmp_path: Path
) -> None:
    """Each stream hears `closing` and when to come back, a wait gets its answer, and the job goes on."""
    record = await submit(store, (await store.kinds())["echo"], owner="local")
    async with gateway_process(valkey, prefix, tmp_path) as gateway, aiohttp.ClientSession() as session:
        job = f"{gateway.url}/v1/jobs/{record.id}"
        stream = await session.get(f"{job}/events")
        await stream.content.readuntil(b'"type":"queued"')
        waiting = asyncio.create_task(session.get(f"{job}?wait=50"))
        await wait_until(lambda: has_listeners(session, gateway.url, 2), what="both listeners")

        began = time.monotonic()
        # As Ctrl-C does it: to the whole process group, and once more from the parent. That is one wish.
        gateway.process.send_signal(signal.SIGINT)
        gateway.process.send_signal(signal.SIGTERM)
        rest = await stream.content.read()
        answer = await waiting

        assert await gateway.exit_code() == 0
        assert time.monotonic() - began < 25
        assert b'"type":"closing"' in rest
        assert b'"reason":"draining"' in rest
        assert b"retry: " in rest
        assert (await answer.json())["state"] == "queued"
    assert (await store.job(record.id)).terminal is False
    assert "Traceback" not in gateway.said


async def test_a_watched_gateway_says_that_it_leaves_before_it_does(
    store: Store, valkey: str, prefix: str, tmp_path: Path
) -> None:
    """A load balancer that asks /readyz gets time to see 503 while requests are still served."""
    async with (
        gateway_process(valkey, prefix, tmp_path, drain_seconds=PATIENCE_SECONDS) as gateway,
        aiohttp.ClientSession() as session,
    ):
        asked_at = time.monotonic()
        await wait_until(lambda: time.monotonic() - asked_at > 1.1)
        assert await is_ready(session, gateway.url)

        gateway.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: not_ready(session, gateway.url))
        async with session.get(f"{gateway.url}/v1/jobs") as answer:
            served = answer.status
        # A second wish, later than a second after the first one, is one for haste.
        await asyncio.sleep(1.1)
        gateway.process.send_signal(signal.SIGTERM)

        assert served == 200
        assert await gateway.exit_code() == 0


async def not_ready(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a gateway answers, and says that it is not ready."""
    async with session.get(f"{url}/readyz") as answer:
        return answer.status == 503


async def test_a_gateway_with_another_folder_refuses_to_start(
    store: Store, valkey: str, prefix: str, tmp_path: Path
) -> None:
    """The jobs in Redis refer to files that such a gateway would not find."""
    async with gateway_process(valkey, prefix, tmp_path / "one") as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0

    settings = Settings(redis_url=valkey, prefix=prefix, data=tmp_path / "two", port=0)
    with pytest.raises(ConfigurationError, match="OUTLAST_BLOB_URL"):
        await asyncio.to_thread(run_gateway_without_signals, settings)


def run_gateway_without_signals(settings: Settings) -> int:
    """`run_gateway` in a thread, where signals can't be handled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.app.on_stop_signals", lambda call: None)
        return run_gateway(settings)


async def test_a_taken_port_is_a_clear_message(store: Store, tmp_path: Path) -> None:
    """It names the address and what to set."""
    async with gateway_for(store, tmp_path / "b") as gateway:
        taken = Settings(port=gateway.server.port, data=tmp_path)

        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{taken.port}.*OUTLAST_PORT"):
            async with gateway_again(gateway, taken):
                pass


@asynccontextmanager
async def gateway_again(gateway: Gateway, settings: Settings) -> AsyncIterator[None]:
    """A second application, served by other settings."""
    app = make_app(settings, gateway.store, gateway.blobs, gateway.app[HUB])
    async with serving(app, settings):
        yield


async def test_a_gateway_without_the_c_parser_refuses_to_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pure Python one has been the way for request smuggling."""
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)

    with pytest.raises(ConfigurationError, match="C parser"):
        async with gateway_for(store, tmp_path / "b"):
            pass


async def test_the_collector_deletes_what_no_job_refers_to(store: Store, tmp_path: Path) -> None:
    """Files of jobs that are gone at once, of uploads without a job after a day; a job's own files never."""
    blobs = Blobs.open(tmp_path.as_uri())
    echo = (await store.kinds())["echo"]
    kept, gone, upload = (await submit(store, echo)), (await submit(store, echo)), await store.job_id("me", None)
    await store.cancel(gone.id, "me", "test")
    await store.delete(await store.job(gone.id))
    for job in (kept.id, gone.id, upload):
        await blobs.put(blobs.key_for(job), b"x", max_bytes=None)

    first = await collect(store, blobs)
    left = set(await blobs.newest("jobs"))
    second = await collect(store, blobs, orphan_seconds=-1)

    assert (first, left) == (1, {kept.id, upload})
    assert second == 1
    assert set(await blobs.newest("jobs")) == {kept.id}
    await end(store, await begin(store, "echo"), batch=1)
