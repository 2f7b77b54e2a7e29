"""Workers that know an address and a token: a program with curl and a service with Python's own library, as shipped."""

from __future__ import annotations

import ast
import asyncio
import os
import shutil
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import examples.slow_service
import examples.subprocess_worker
from gateway.protocol import State
from gateway.store import JobRecord, Store
from processors import load_processors
from processors.worker import Worker
from tests import worker_jobs
from tests.faults import wait_until
from tests.jobs import run_out, submit
from tests.ports import free_port
from tests.processes import program
from tests.serving import Gateway, gateway_for
from tests.worker_jobs import end_of, working

KINDS = load_processors(["examples.subprocess_worker", "examples.http_callback"])
# Long enough for a curl on a busy machine, short enough to wait for its end.
LEASE_SECONDS = 2.0
PATIENCE_SECONDS = 30.0
waits_for_its_end = pytest.mark.lease(LEASE_SECONDS)


@pytest.fixture
async def gateway(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway that the examples find."""
    monkeypatch.setattr(examples.subprocess_worker, "RENEW_SECONDS", LEASE_SECONDS / 4)
    monkeypatch.setattr(examples.subprocess_worker, "START_SECONDS", store.lease_seconds)
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        monkeypatch.setenv("OUTLAST_URL", gateway.url)
        yield gateway


def worker_for(gateway: Gateway) -> AbstractAsyncContextManager[Worker]:
    """A worker with one place that hands over."""
    return working(gateway.store, gateway.blobs, KINDS.values())


@asynccontextmanager
async def service_at(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The slow service of the examples, in a process of its own."""
    command = (sys.executable, examples.slow_service.__file__, str(port))
    async with program(*command, stdout=None, stderr=None) as process:
        await wait_until(lambda: _listens(port), what="the service")
        yield process


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def ended(store: Store, job: str) -> JobRecord:
    """The job at its end."""
    return await end_of(store, job, PATIENCE_SECONDS)


async def log_of(store: Store, job: str) -> list[tuple[str, dict[str, Any]]]:
    """The log of a job, without numbers."""
    return [(event.type, event.data) for event in await worker_jobs.log_of(store, job)]


async def types_of(store: Store, job: str) -> list[str]:
    """The types in a job's log."""
    return [type_ for type_, _ in await log_of(store, job)]


async def until_reported(store: Store, job: str, type_: str) -> None:
    """Wait for the first event of a type."""

    async def there() -> bool:
        return type_ in await types_of(store, job)

    await wait_until(there, PATIENCE_SECONDS, what=f"{type_} of the job")


def programs_of(job: str) -> list[int]:
    """The processes that have a job's address in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if f"/v1/worker/jobs/{job}\0".encode() in environment:
                found.append(int(folder.name))
    return found


def do_before(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, first: str) -> None:
    """Let the programs do something before each call of a command, in the shell's language."""
    wrapped = folder / "bin" / command
    wrapped.parent.mkdir()
    wrapped.write_text(f'#!/bin/sh\n{first}\nexec {shutil.which(command)} "$@"\n')
    wrapped.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapped.parent}:{os.environ['PATH']}")


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@waits_for_its_end
async def test_a_program_outlives_the_worker_that_started_it(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reports with curl, for longer than a lease, and ends the job when its worker has long gone.

    No argument of a process, which everybody on the machine can read, has the token in it.
    """
    arguments = tmp_path / "arguments"
    do_before(monkeypatch, tmp_path, "curl", f'echo "$@" >> {arguments}')
    kind = KINDS["render"].document
    async with worker_for(gateway):
        job = (await submit(gateway.store, kind, input_={"frames": 2, "seconds_each": LEASE_SECONDS * 0.6})).id
        await until_reported(gateway.store, job, "started")
        await wait_until(lambda: programs_of(job), PATIENCE_SECONDS, what="the program")

    record = await ended(gateway.store, job)

    assert (record.state, record.end_data(), record.attempt) == (State.SUCCEEDED, {"result": {"frames": 2}}, 1)
    assert await types_of(gateway.store, job) == ["queued", "started", "progress", "progress", "succeeded"]
    assert job in arguments.read_text()
    assert "Bearer" not in arguments.read_text()


@linux
async def test_a_cancel_ends_the_program(gateway: Gateway) -> None:
    """It hears it with its next report, says that it has stopped, and leaves no process behind."""
    async with worker_for(gateway):
        job = (await submit(gateway.store, KINDS["render"].document, input_={"frames": 500, "seconds_each": 0.2})).id
        await until_reported(gateway.store, job, "progress")

        await gateway.store.cancel(job, "me", "enough")

        record = await ended(gateway.store, job)
        assert (record.state, record.end_data()["reason"]) == (State.CANCELLED, "stopped by a signal")
        await wait_until(lambda: not programs_of(job), PATIENCE_SECONDS, what="the end of the program")


@linux
async def test_a_killed_programs_job_is_handed_to_a_new_one(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease runs out, and the next attempt starts the program again."""
    # The first program is still at its second frame when it is killed, however late that is.
    rendered, gate = tmp_path / "rendered", tmp_path / "gate"
    held = f'[ "$1" != 0.01 ] || [ -e {gate} ] || if [ -e {rendered} ]; then set 600; else touch {rendered}; fi'
    do_before(monkeypatch, tmp_path, "sleep", held)
    store = gateway.store
    async with worker_for(gateway):
        job = (await submit(store, KINDS["render"].document, input_={"frames": 3, "seconds_each": 0.01})).id
        await until_reported(store, job, "progress")

        # What a program has started is in its group of processes, and dies with it in one step.
        def killed() -> bool:
            for pid in programs_of(job):
                with suppress(ProcessLookupError):
                    os.killpg(os.getpgid(pid), signal.SIGKILL)
            return not programs_of(job)

        await wait_until(killed, what="the death of the program")
        gate.touch()
        await run_out(store, await store.job(job))
        record = await ended(store, job)

    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
    log = await log_of(gateway.store, job)
    assert [data["problem"]["code"] for type_, data in log if type_ == "retrying"] == ["worker_lost"]


async def test_a_program_whose_work_breaks_says_so_at_once(gateway: Gateway) -> None:
    """The job fails with the program's own code; nobody waits for the lease's end."""
    impossible = {"frames": 2, "seconds_each": -1}
    async with worker_for(gateway):
        job = (await submit(gateway.store, KINDS["render"].document, input_=impossible)).id

        record = await ended(gateway.store, job)

    assert (record.state, record.attempt) == (State.FAILED, 1)
    assert record.end_data()["problem"]["code"] == "render_failed"


async def test_a_service_elsewhere_does_the_job_and_reports_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets an address and a token, takes the input from there, and writes outputs, progress and the end."""
    port = free_port()
    monkeypatch.setenv("SERVICE_URL", f"http://127.0.0.1:{port}")
    async with service_at(port), worker_for(gateway):
        job = (await submit(gateway.store, KINDS["translate"].document, input_={"text": "one\ntwo"})).id

        record = await ended(gateway.store, job)

    assert (record.state, record.end_data()) == (State.SUCCEEDED, {"result": {"lines": 2}})
    log = await log_of(gateway.store, job)
    assert [data["value"] for type_, data in log if type_ == "output"] == ["eno", "owt"]
    assert [type_ for type_, _ in log].count("progress") == 2


async def test_a_service_that_breaks_says_so_at_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job fails with the service's own code and keeps what there is; nobody waits for the lease's end."""
    port = free_port()
    monkeypatch.setenv("SERVICE_URL", f"http://127.0.0.1:{port}")
    async with service_at(port), worker_for(gateway):
        job = (await submit(gateway.store, KINDS["translate"].document, input_={"text": "one\n\ntwo"})).id

        record = await ended(gateway.store, job)

    assert (record.state, record.attempt) == (State.FAILED, 1)
    assert (record.end_data()["problem"]["code"], record.end_data()["partial"]) == ("translation_failed", True)
    assert (await types_of(gateway.store, job)).count("output") == 1


@waits_for_its_end
async def test_a_killed_services_job_is_done_by_the_next_one(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed half-way, and away for a while: the calls in between are failed attempts, none of them the last."""
    port = free_port()
    monkeypatch.setenv("SERVICE_URL", f"http://127.0.0.1:{port}")
    async with worker_for(gateway):
        async with service_at(port) as service:
            job = (await submit(gateway.store, KINDS["translate"].document, input_={"text": "one\ntwo\nthree"})).id
            await until_reported(gateway.store, job, "output")
            service.kill()
            await service.wait()
        async with service_at(port):
            record = await ended(gateway.store, job)

    assert record.state is State.SUCCEEDED
    assert record.attempt > 1
    assert (await types_of(gateway.store, job)).count("succeeded") == 1


async def test_an_order_that_comes_twice_is_done_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after an answer that was lost on the way: the second thread is refused when it takes the job."""
    port = free_port()
    monkeypatch.setenv("SERVICE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("urllib.request.urlopen", twice(urllib.request.urlopen))
    async with service_at(port), worker_for(gateway):
        job = (await submit(gateway.store, KINDS["translate"].document, input_={"text": "\n".join("abcdefghijkl")})).id
        said = ""

        def refused() -> bool:
            nonlocal said
            said += capfd.readouterr().out
            return "not ours: 409" in said

        await wait_until(refused, PATIENCE_SECONDS, what="the refusal")
        # Not at the end, where anybody is refused.
        assert (await gateway.store.job(job)).state is State.RUNNING
        await ended(gateway.store, job)

    assert (await types_of(gateway.store, job)).count("output") == 12


def twice(send: Any) -> Any:
    """A way to send that sends everything twice."""

    def send_twice(*arguments: Any, **options: Any) -> Any:
        send(*arguments, **options).close()
        return send(*arguments, **options)

    return send_twice


def test_the_service_knows_nothing_of_outlast() -> None:
    """Nothing but Python's own library: it could be in any language."""
    tree = ast.parse(Path(examples.slow_service.__file__).read_text())
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names
