"""A gateway for tests: the real application on a real socket, over the test's own store and blobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy
from pydantic_core import from_json

from gateway.app import Serving, make_app, make_hub, serving
from gateway.blobs import Blobs
from gateway.config import Settings
from gateway.documents import KindDocument
from gateway.metrics import Registry
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS

KEY = "k" * 24
KEYS = {"me": KEY, "other": "o" * 24}
AS_ME = {"Authorization": f"Bearer {KEY}"}
AS_OTHER = {"Authorization": f"Bearer {KEYS['other']}"}

FILES = KindDocument(kind="read", files="required", content_types=["application/pdf", "image/*"])
FORM = KindDocument(
    kind="form",
    files="optional",
    input_schema={
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "pages": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
)


@dataclass(slots=True)
class Answer:
    """An answer that has been read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return from_json(self.body)


class Gateway:
    """A gateway that is being served, and a client for it."""

    def __init__(
        self, app: web.Application, server: Serving, session: aiohttp.ClientSession, store: Store, blobs: Blobs
    ) -> None:
        self.app = app
        self.server = server
        self.session = session
        self.store = store
        self.blobs = blobs

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.server.url

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        """One request, its answer read whole."""
        async with self.session.request(method, self.url + path, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        """GET."""
        return await self.ask("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        """POST."""
        return await self.ask("POST", path, **options)

    async def raw(self, request: bytes, *, read_seconds: float = PATIENCE_SECONDS) -> bytes:
        """Send bytes as they are on a connection of their own; returns all that comes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            writer.write(request)
            async with asyncio.timeout(read_seconds):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.transport.abort()

    async def blob_count(self) -> int:
        """How many files there are in the blob folder, halves of uploads included."""
        folder = self.blobs.local_path("jobs")
        assert folder is not None
        return sum(1 for path in folder.rglob("*") if path.is_file())


@asynccontextmanager
async def gateway_for(store: Store, folder: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway for the length of the block; `settings` are those of `Settings`."""
    folder.mkdir(exist_ok=True)
    blobs = Blobs.open(folder.as_uri())
    for kind in (FILES, FORM):
        await store.register_kind(kind)
    values: dict[str, Any] = {"port": 0, "drain_seconds": 0, "data": folder} | settings
    chosen = Settings(**values)
    app = make_app(chosen, store, blobs, make_hub(chosen, store, Registry()))
    connector = aiohttp.TCPConnector(limit=0)
    async with serving(app, chosen) as server, aiohttp.ClientSession(connector=connector) as session:
        yield Gateway(app, server, session, store, blobs)
