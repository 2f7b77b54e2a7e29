"""`outlast up`: the whole product as its users start, stop and kill it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.processes import runs

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    # Some start the product twice, and a start takes seconds where other tests use the cores.
    pytest.mark.timeout(180),
]

_READY = "Ctrl-C stops everything"
_MODULE = "examples.word_count"


class ProductProcess:
    """An `outlast up` that runs, and what it printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.printed = ""
        self._reading = asyncio.create_task(self._read(), name="reads the product's words")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while text := await self.process.stdout.read(4096):
            self.printed += text.decode()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        """Where the banner says that it is."""
        match = re.search(r"page\s+(http://\S+)/", self.printed)
        assert match is not None, self.printed
        return match[1]

    async def until_ready(self) -> None:
        await wait_until(lambda: _READY in self.printed or self.process.returncode is not None, 60, what="the banner")
        assert _READY in self.printed, self.printed

    async def ended(self, timeout_seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; returns the exit code."""
        async with asyncio.timeout(timeout_seconds):
            code = await self.process.wait()
            await self._reading
        return code

    def family(self) -> dict[str, int]:
        """The children's process ids, by what they are."""
        children = {}
        for pid in _children(self.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "valkey-server" in words[0]:
                children["valkey"] = pid
            # A child that is still about to become its program names the command in another place, or none.
            for name in ("gateway", "worker"):
                if words[1:5] == ["-P", "-m", "gateway.cli", name]:
                    children[name] = pid
        return children


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(folder.name))
    return found


@asynccontextmanager
async def product(data: Path, *arguments: str, **environment: str) -> AsyncIterator[ProductProcess]:
    """Start a product on a free port; it is gone after the block, whatever happened in it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "up", "--without", "ocr", "--port", "0", "--data", str(data)),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment,
    )
    running = ProductProcess(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await running.ended()


async def _submit(session: aiohttp.ClientSession, address: str, lines: int, pause_seconds: float) -> str:
    body = {"input": {"text": "\n".join(["word"] * lines), "pause_seconds": pause_seconds}}
    async with session.post(f"{address}/v1/kinds/word-count/jobs", json=body) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["id"])


def _job(session: aiohttp.ClientSession, address: str, job: str) -> Callable[[], Any]:
    async def fetch(**wanted: object) -> dict[str, Any]:
        async with session.get(f"{address}/v1/jobs/{job}") as answer:
            return dict(await answer.json())

    return fetch


async def test_everything_starts_works_and_ends_with_an_interrupt(tmp_path: Path) -> None:
    """The banner comes when a job would be done; after Ctrl-C nothing runs and nothing is lost."""
    async with product(tmp_path, _MODULE) as running, aiohttp.ClientSession() as session:
        await running.until_ready()
        family = running.family()
        assert family.keys() == {"valkey", "gateway", "worker"}
        assert len({os.getpgid(pid) for pid in [running.pid, *family.values()]}) == 1
        assert "word-count" in running.printed

        job = await _submit(session, running.address, 3, 0.01)
        fetch = _job(session, running.address, job)
        await wait_until(lambda: _ended(fetch), what="the end of the job")
        assert (await fetch())["result"] == {"word": 3}

        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
        assert not [name for name, pid in family.items() if runs(pid)]


async def test_the_product_runs_on_a_cluster_of_ones_own(tmp_path: Path, cluster: str, prefix: str) -> None:
    """`--redis redis+cluster://...`: there is no Valkey of the product's own then, and a job is done all the same."""
    on_it = product(tmp_path, _MODULE, "--redis", cluster, OUTLAST_PREFIX=prefix)
    async with on_it as running, aiohttp.ClientSession() as session:
        await running.until_ready()
        assert running.family().keys() == {"gateway", "worker"}
        fetch = _job(session, running.address, await _submit(session, running.address, 3, 0.01))
        await wait_until(lambda: _ended(fetch), what="the end of the job")
        assert (await fetch())["result"] == {"word": 3}


async def _ended(fetch: Callable[[], Any]) -> bool:
    return bool((await fetch())["terminal"])


async def test_a_product_that_was_killed_finishes_its_job_at_the_next_start(tmp_path: Path) -> None:
    """A `kill -9` in the middle of a job leaves no process behind, and loses neither the job nor what it said."""
    async with product(tmp_path, _MODULE, OUTLAST_LEASE_SECONDS="2") as running, aiohttp.ClientSession() as session:
        await running.until_ready()
        family = running.family()
        job = await _submit(session, running.address, 40, 0.1)
        fetch = _job(session, running.address, job)
        await wait_until(lambda: _has_progress(fetch), what="progress")

        running.process.kill()
        await running.ended()
        await wait_until(lambda: not [pid for pid in family.values() if runs(pid)], what="the end of the children")

    again = {"OUTLAST_LEASE_SECONDS": "2", "OUTLAST_DURABILITY": "disk"}
    async with product(tmp_path, _MODULE, **again) as running, aiohttp.ClientSession() as session:
        await running.until_ready()
        assert "1 unfinished job goes on" in running.printed
        # Its Valkey is set as what was asked for needs it.
        async with session.get(f"{running.address}/readyz") as answer:
            assert (await answer.json())["warnings"] == []
        fetch = _job(session, running.address, job)
        await wait_until(lambda: _ended(fetch), 30, what="the end of the job")
        document = await fetch()
        assert document["state"] == "succeeded"
        assert document["attempt"] == 2


async def _has_progress(fetch: Callable[[], Any]) -> bool:
    return bool((await fetch()).get("progress"))


@pytest.mark.parametrize("victim", ["worker", "gateway", "valkey"])
async def test_a_child_that_dies_is_started_again(victim: str, tmp_path: Path) -> None:
    """Whichever of the three is killed, jobs are taken and done again a moment later, at the same address."""
    async with product(tmp_path, _MODULE, OUTLAST_LEASE_SECONDS="2") as running, aiohttp.ClientSession() as session:
        await running.until_ready()
        first = running.family()[victim]
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: running.family().get(victim) not in {None, first}, what=f"a new {victim}")

        async def submit() -> str | None:
            try:
                return await _submit(session, running.address, 2, 0.01)
            except (aiohttp.ClientError, AssertionError):
                return None

        job = await wait_until(submit, what="an accepted job")
        fetch = _job(session, running.address, job)
        await wait_until(lambda: _ended(fetch), what="the end of the job")
        assert (await fetch())["state"] == "succeeded"


async def test_a_second_interrupt_hurries(tmp_path: Path) -> None:
    """The first one waits for running attempts, the second one hands them back at once."""
    async with (
        product(tmp_path, _MODULE, OUTLAST_STOP_GRACE_SECONDS="60") as running,
        aiohttp.ClientSession() as session,
    ):
        await running.until_ready()
        job = await _submit(session, running.address, 100, 0.5)
        fetch = _job(session, running.address, job)
        await wait_until(lambda: _has_progress(fetch), what="progress")

        running.process.send_signal(signal.SIGINT)
        await wait_until(lambda: "Stopping" in running.printed, what="an answer to the signal")
        assert runs(running.family()["worker"])
        running.process.send_signal(signal.SIGINT)

        assert await running.ended(20) == 0


async def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    """The message names the port and another one to take, and not even the folder is made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with product(tmp_path / "data", "--port", str(port)) as running:
            assert await running.ended() == 2

    assert f"Port {port} on 127.0.0.1 is taken" in running.printed
    assert f"make run PORT={port + 1}" in running.printed
    assert not (tmp_path / "data").exists()


async def test_files_that_are_not_those_of_the_jobs_are_refused_once(tmp_path: Path, store: Store, valkey: str) -> None:
    """Each process would refuse them for itself; it is said before any of them is started."""
    await store.check_place("another")

    async with product(tmp_path, _MODULE, "--redis", valkey, OUTLAST_PREFIX=store._keys.prefix) as running:
        assert await running.ended() == 2

    assert running.printed.count("this is not the place where the files of the jobs in Redis are") == 1
    assert "Stopped" not in running.printed


async def test_a_worker_that_cannot_work_ends_the_start(tmp_path: Path) -> None:
    """A wrong module is named, and nothing goes on running without it."""
    async with product(tmp_path, "no.such.module") as running:
        assert await running.ended() == 2

    assert "no.such" in running.printed
    assert not [line for line in running.printed.splitlines() if "Traceback" in line]


async def test_a_public_address_without_a_key_is_refused(tmp_path: Path) -> None:
    """The refusal says which setting is missing."""
    async with product(tmp_path, "--host", "0.0.0.0") as running:
        assert await running.ended() == 2

    assert "OUTLAST_API_KEYS" in running.printed
