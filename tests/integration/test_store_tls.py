"""A store over `rediss://`: commands, the live feed and the renewer, all through TLS that checks the certificate."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.documents import KindDocument
from gateway.errors import Unavailable
from gateway.protocol import START
from gateway.store import Store
from tests.faults import wait_until
from tests.http2_front import certificate as make_certificate
from tests.jobs import Ear, begin, event, submit


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of our own for 127.0.0.1; its key is beside it as `key.pem`."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder)
    return folder / "certificate.pem"


@asynccontextmanager
async def behind_tls(valkey: str, certificate: Path) -> AsyncIterator[int]:
    """A port on which the Valkey is reached through TLS, and through nothing else."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    handlers: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        server_reader, server = await asyncio.open_unix_connection(urlsplit(valkey).path)
        try:
            await asyncio.gather(pump(reader, server), pump(server_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for side in (writer, server):
                side.transport.abort()
            handlers.discard(task)

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()
        for handler in list(handlers):
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def test_a_job_s_whole_life_passes_through_tls(valkey: str, certificate: Path, prefix: str) -> None:
    """Submitted, claimed, renewed from the renewer's own connection, and heard live over the feed's own."""
    async with behind_tls(valkey, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        store = await Store.connect(url, prefix=prefix, lease_seconds=5)
        try:
            await wait_until(lambda: store.feed.connected, what="the live feed")
            kind = KindDocument(kind="echo")
            await store.register_kind(kind)
            job = await submit(store, kind)
            ear = Ear()
            await store.feed.follow(job.id, ear)
            lease = await begin(store, "echo")

            renewer = store.renewer("worker")
            try:
                renewed = await asyncio.to_thread(renewer.renew, [lease])
            finally:
                renewer.close()
            await store.append(lease, 1, [event("succeeded", {"result": 1})])

            assert not renewed[job.id].lost
            await wait_until(lambda: b"seen " in b"".join(ear.heard), what="the renewal, live")
            await wait_until(lambda: b" succeeded " in b"".join(ear.heard), what="the end, live")
            entries = (await store.events(job.id, START)).entries
            assert [entry.type for entry in entries] == [b"queued", b"started", b"succeeded"]
            await store.leave(lease, await store.job(job.id))
        finally:
            await store.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused(valkey: str, certificate: Path) -> None:
    """The password would go to whoever answers."""
    async with behind_tls(valkey, certificate) as port:
        with pytest.raises(Unavailable):
            await Store.connect(f"rediss://:{secrets.token_hex(8)}@127.0.0.1:{port}/0")
