"""A gateway in a process of its own, which tests stop and watch."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from gateway.app import run_gateway
from gateway.config import load_settings
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.ports import free_port


class GatewayProcess:
    """A running gateway."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.said = ""

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process.returncode is not None

    async def read(self) -> None:
        """Take what it logs, so that it never waits for us."""
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.said += line.decode()

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def gateway_process(url: str, prefix: str, folder: Path, **settings: Any) -> AsyncIterator[GatewayProcess]:
    """A gateway of its own process for the length of the block, once it is ready."""
    port = free_port()
    values = {"redis_url": url, "prefix": prefix, "data": folder, "port": port, "drain_seconds": 0.3} | settings
    environment = {f"OUTLAST_{name.upper()}": str(value) for name, value in values.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.gateway_process"), env=os.environ | environment, stderr=asyncio.subprocess.PIPE
    )
    gateway = GatewayProcess(process, f"http://127.0.0.1:{port}")
    reading = asyncio.create_task(gateway.read())
    try:
        async with aiohttp.ClientSession() as session:
            await wait_until(
                lambda: gateway.ended or is_ready(session, gateway.url), 2 * PATIENCE_SECONDS, what="readiness"
            )
        assert not gateway.ended, gateway.said
        yield gateway
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a gateway says that it is ready."""
    try:
        async with session.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def has_listeners(session: aiohttp.ClientSession, url: str, count: int) -> bool:
    """Whether a gateway has so many listeners, no more and no fewer."""
    async with session.get(f"{url}/metrics") as answer:
        lines = [line for line in (await answer.text()).splitlines() if line.startswith("outlast_listeners{")]
    return sum(int(line.rpartition(" ")[2]) for line in lines) == count


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(run_gateway(load_settings()))
