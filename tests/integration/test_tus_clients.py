"""A tus client that knows nothing of Outlast uploads through cuts, and its upload becomes a job's file."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, FaultProxy, wait_until
from tests.processes import program
from tests.serving import Gateway, gateway_for

_SCRIPT = Path(__file__).parents[2] / "client_js" / "tests" / "tus-upload.js"
_NODE = shutil.which("node")


@pytest.mark.skipif(_NODE is None, reason="there is no Node here")
@pytest.mark.parametrize("chunk_bytes", ["1000000", "Infinity"])
async def test_tus_js_client_uploads_through_cuts(store: Store, tmp_path: Path, chunk_bytes: str) -> None:
    """In parts of its own size, and in one endless part; each time the line is cut twice."""
    content = b"%PDF-1.7 " + os.urandom(3_000_000)
    path = tmp_path / "march.pdf"
    path.write_bytes(content)
    async with gateway_for(store, tmp_path / "blobs") as gateway, FaultProxy(gateway.url) as proxy:
        proxy.bytes_per_second = 4_000_000
        command = (str(_NODE), str(_SCRIPT), f"{proxy.url}/v1/uploads", str(path), chunk_bytes)
        async with program(*command) as process, asyncio.timeout(2 * PATIENCE_SECONDS):
            for mark in (500_000, 1_800_000):
                await wait_until(lambda mark=mark: received(gateway) > mark, what=f"{mark} bytes")  # type: ignore[misc]
                proxy.cut()
            printed, complained = await process.communicate()
        assert process.returncode == 0, complained.decode()

        upload = urlsplit(printed.decode().strip()).path.rpartition("/")[2]
        answer = await gateway.post("/v1/kinds/read/jobs", json={"files": [{"upload": upload}]})
        [file] = answer.json()["files"]
        assert (file["name"], file["content_type"]) == ("märz.pdf", "application/pdf")
        assert (await gateway.get(file["url"])).body == content


def received(gateway: Gateway) -> int:
    """How many bytes of uploads there are, those of parts under way included."""
    folder = gateway.blobs.local_path("uploads")
    assert folder is not None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
