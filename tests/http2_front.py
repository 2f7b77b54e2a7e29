"""A hop that speaks HTTP/2 and HTTP/1.1 over TLS to clients, and HTTP/1.1 to a server: `Front`."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

# What HTTP/2 has no place for.
_DROPPED = frozenset({"connection", "transfer-encoding", "keep-alive"})


def certificate(folder: Path) -> ssl.SSLContext:
    """A TLS context with a certificate of our own for 127.0.0.1, made in the folder."""
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    names = ("-subj", "/CN=hop", "-addext", "subjectAltName=IP:127.0.0.1")
    key, chain = folder / "key.pem", folder / "certificate.pem"
    made = ("-keyout", str(key), "-out", str(chain))
    subprocess.run(("openssl", "req", "-x509", *kind, *names, *made), check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    return context


class Front:
    """`async with Front(url, context) as hop: ... hop.url`.

    `holds`: answers over HTTP/2 go out when they have ended. `protocols` are those that TLS offers.
    """

    def __init__(
        self, url: str, context: ssl.SSLContext, *, holds: bool = False, protocols: tuple[str, ...] = ("h2", "http/1.1")
    ) -> None:
        self._url, self._context, self._holds = url, context, holds
        context.set_alpn_protocols(list(protocols))
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._session.close()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._links.add(task)
        task.add_done_callback(self._links.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._keep(link)
        try:
            with suppress(OSError, aiohttp.ClientError):
                if writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
                    await self._http2(reader, writer)
                else:
                    await self._pass(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self._url)
        behind_reader, behind = await asyncio.open_connection(parts.hostname, parts.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

        pumps = [asyncio.create_task(pump(reader, behind)), asyncio.create_task(pump(behind_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            await writer.drain()
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            behind.transport.abort()

    async def _http2(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    headers = [(str(name), str(value)) for name, value in event.headers or ()]
                    self._keep(asyncio.create_task(self._answer(connection, writer, event.stream_id or 0, headers)))
            writer.write(connection.data_to_send())

    async def _answer(
        self, connection: H2Connection, writer: asyncio.StreamWriter, stream: int, headers: list[tuple[str, str]]
    ) -> None:
        pseudo = {name: value for name, value in headers if name.startswith(":")}
        sent = {name: value for name, value in headers if not name.startswith(":")}
        asked = self._session.request(pseudo[":method"], self._url + pseudo[":path"], headers=sent)
        with suppress(OSError, aiohttp.ClientError):
            async with asked as response:
                kept = [(name.lower(), value) for name, value in response.headers.items()]
                head = [(":status", str(response.status)), *(one for one in kept if one[0] not in _DROPPED)]
                pieces = [await response.read()] if self._holds else []
                connection.send_headers(stream, head)
                writer.write(connection.data_to_send())
                for piece in pieces:
                    connection.send_data(stream, piece)
                async for piece in response.content.iter_any():
                    connection.send_data(stream, piece)
                    writer.write(connection.data_to_send())
                connection.end_stream(stream)
                writer.write(connection.data_to_send())
