"""`outlast submit | watch | result | cancel | jobs` as a shell runs them, against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.store import Lease, Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.jobs import begin_claim, end, event
from tests.serving import KEY, KEYS, Gateway, gateway_for

# Each command is a process of its own, and Python takes its time to start.
pytestmark = pytest.mark.slow

PROBLEM = {"type": "/docs#problem-rejected", "title": "Rejected", "code": "rejected", "detail": "It is encrypted."}


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with a key."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway:
        yield gateway


@dataclass
class Command:
    """A running command."""

    process: asyncio.subprocess.Process
    err: str = ""
    out: bytes = b""

    async def read(self) -> None:
        """Take what it prints."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None

        async def read_err(stream: asyncio.StreamReader) -> None:
            while line := await stream.readline():
                self.err += line.decode()

        async def read_out(stream: asyncio.StreamReader) -> None:
            while some := await stream.read(65_536):
                self.out += some

        await asyncio.gather(read_err(self.process.stderr), read_out(self.process.stdout))

    async def feed(self, content: bytes) -> None:
        """Write to its stdin, and close it."""
        assert self.process.stdin is not None
        self.process.stdin.write(content)
        self.process.stdin.close()
        await self.process.stdin.wait_closed()


class Shell:
    """Runs `outlast` with the gateway's address and key in its environment."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = environment

    @asynccontextmanager
    async def running(self, *args: str) -> AsyncIterator[Command]:
        """A command for the length of the block; it has ended after it."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", *args),
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())} | self.environment,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )
        command = Command(process)
        reading = asyncio.create_task(command.read())
        try:
            yield command
            async with asyncio.timeout(2 * PATIENCE_SECONDS):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    async def run(self, *args: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        async with self.running(*args) as command:
            pass
        return command.process.returncode or 0, command.out.decode(), command.err


@pytest.fixture
def shell(gateway: Gateway, tmp_path: Path) -> Shell:
    """A shell that knows the gateway."""
    return Shell(tmp_path, OUTLAST_URL=gateway.url, OUTLAST_API_KEY=KEY)


async def claimed(store: Store, kind: str = "echo") -> Lease:
    """The next job that is submitted, as a worker takes it."""

    async def look() -> Lease | None:
        # Not by its owner's list, where it may stand before it stands in its queue.
        claims = await store.claim(kind, "worker", 1)
        return await begin_claim(store, claims[0]) if claims else None

    lease = await wait_until(look, what="a job")
    assert isinstance(lease, Lease)
    return lease


async def test_submit_shows_progress_on_stderr_and_the_text_on_stdout(shell: Shell, store: Store) -> None:
    """`outlast submit ... > text.txt` has the text and nothing else in it."""
    text = {"index": "result.txt", "content_type": "text/plain; charset=utf-8", "value": "Gr\u00fc\u00dfe\nzwei"}
    async with shell.running(
        "submit", "echo", "-p", "pages=[1,2]", "-p", "language=de", "--option", "priority=low"
    ) as it:
        lease = await claimed(store)
        await store.append(lease, 1, [event("progress", {"current": 1, "total": 2, "unit": "pages"})])
        await store.append(lease, 2, [event("output", text, index="result.txt")])
        await end(store, lease, batch=3, data={"result": {"a": 1}, "partial": True})

    assert it.process.returncode == 0
    assert it.out.decode() == "Gr\u00fc\u00dfe\nzwei\n"
    assert f"job {lease.job}" in it.err
    assert "no worker serves echo at the moment" in it.err
    assert "echo: succeeded, 1/2 pages" in it.err
    assert "Some parts are missing" in it.err
    assert json.loads(await store.input_of(lease.job)) == {"pages": [1, 2], "language": "de"}
    assert (await store.job(lease.job)).priority == "low"


async def test_a_result_without_a_text_is_json(shell: Shell, store: Store) -> None:
    """And with --json it is JSON anyhow."""
    text = {"index": "result.txt", "content_type": "text/plain", "value": "text"}
    async with shell.running("submit", "echo", "--input", '{"a": 1}', "--quiet") as it:
        lease = await claimed(store)
        await end(store, lease, batch=1, data={"result": {"n\u00fcm": 1}})
    assert (it.out.decode(), it.err) == ('{\n  "n\u00fcm": 1\n}\n', "")

    async with shell.running("submit", "echo", "--json") as it:
        lease = await claimed(store)
        await store.append(lease, 1, [event("output", text, index="result.txt")])
        await end(store, lease, batch=2, data={"result": "plain"})
    assert it.out.decode() == '"plain"\n'


async def test_files_are_sent_and_the_result_can_go_to_a_file(shell: Shell, store: Store, tmp_path: Path) -> None:
    """`outlast submit read scan.pdf -o text.txt`."""
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7 " + bytes(300_000))

    async with shell.running("submit", "read", "-o", "out.json", "scan.pdf") as it:
        lease = await claimed(store, "read")
        await end(store, lease, batch=1, data={"result": [1]})

    assert (it.process.returncode, it.out) == (0, b"")
    assert json.loads((tmp_path / "out.json").read_text()) == [1]
    assert "read scan.pdf: 300" in it.err
    [file] = (await store.job(lease.job)).files
    assert (file.name, file.size, file.content_type) == ("scan.pdf", 300_009, "application/pdf")


async def test_a_file_can_come_from_a_pipe(shell: Shell, store: Store) -> None:
    """`cat scan.pdf | outlast submit read -`; its type is seen in its first bytes."""
    async with shell.running("submit", "read", "-", "--no-wait") as it:
        await it.feed(b"%PDF-1.7 " + bytes(300_000))

    job = it.out.decode().strip()
    [file] = (await store.job(job)).files
    assert (file.size, file.content_type) == (300_009, "application/pdf")


async def test_no_wait_prints_the_id_and_the_same_key_finds_the_same_job(shell: Shell) -> None:
    """For scripts that submit now and look later."""
    first = await shell.run("submit", "echo", "--no-wait", "--idempotency-key", "k1", "--tag", "night")
    second = await shell.run("submit", "echo", "--no-wait", "--idempotency-key", "k1", "--tag", "night")
    document = await shell.run("submit", "echo", "--no-wait", "--json")

    assert first[0] == 0
    assert first[1] == second[1]
    assert json.loads(document[1])["state"] == "queued"


async def test_a_failed_job_is_1_and_says_why(shell: Shell, store: Store) -> None:
    """The job's own words, on stderr."""
    async with shell.running("submit", "echo") as it:
        await end(store, await claimed(store), batch=1, type_="failed", data={"problem": PROBLEM, "partial": False})

    assert (it.process.returncode, it.out) == (1, b"")
    assert "outlast: The job failed: It is encrypted." in it.err


async def test_a_cancelled_job_is_3(shell: Shell, store: Store) -> None:
    """Somebody else cancelled it while it was watched."""
    async with shell.running("submit", "echo") as it:
        job = await wait_until(lambda: it.err.partition("job ")[2].strip().split("\n")[0], what="the id")
        code, out, _ = await shell.run("cancel", job, "--reason", "not needed")
        assert (code, out) == (0, f"{job} is cancelled\n")

    assert it.process.returncode == 3
    assert "The job was cancelled: not needed" in it.err
    assert (await shell.run("result", job))[0] == 3
    assert (await shell.run("watch", job))[0] == 3
    assert (await shell.run("cancel", job))[1] == f"{job} is cancelled\n"


async def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(shell: Shell, store: Store) -> None:
    """`watch` then shows the rest, and the whole result."""
    async with shell.running("submit", "echo") as it:
        lease = await claimed(store)
        await wait_until(lambda: "running" in it.err, what="the first events")
        it.process.send_signal(signal.SIGINT)

    assert it.process.returncode == 130
    assert "not cancelled" in it.err
    assert f"watch {lease.job}" in it.err
    assert f"cancel {lease.job}" in it.err
    assert not (await store.job(lease.job)).terminal

    async with shell.running("watch", lease.job) as watched:
        await wait_until(lambda: "running" in watched.err, what="the snapshot")
        await end(store, lease, batch=1, data={"result": "done"})
    assert (watched.process.returncode, watched.out) == (0, b"done\n")
    assert (await shell.run("cancel", lease.job))[1] == f"{lease.job} had ended before: succeeded\n"


async def test_watch_can_print_the_events_themselves(shell: Shell, store: Store) -> None:
    """One JSON text a line, for jq; the exit code is the job's."""
    job = (await shell.run("submit", "echo", "--no-wait"))[1].strip()
    await end(store, await claimed(store), batch=1, type_="failed", data={"problem": PROBLEM, "partial": False})

    code, out, _ = await shell.run("watch", job, "--events")

    events = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [one["id"] for one in events] == [1, 2, 3]
    assert events[-1]["terminal"] is True
    assert "terminal" not in events[0]


async def test_jobs_are_listed_for_people_and_for_scripts(shell: Shell) -> None:
    """Tabs in a pipe, JSON where it is asked for."""
    made = [(await shell.run("submit", "echo", "--no-wait", "--tag", tag))[1].strip() for tag in ("a", "b")]

    _, lines, _ = await shell.run("jobs")
    _, tagged, _ = await shell.run("jobs", "--tag", "a", "--state", "queued", "-n", "5", "--json")

    assert [line.split("\t")[:3] for line in lines.splitlines()] == [[job, "echo", "queued"] for job in made[::-1]]
    assert [job["id"] for job in json.loads(tagged)] == made[:1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["submit", "echo", "--input", "{a: 1}"], "--input is no JSON"),
        (["submit", "echo", "--input", "[1]"], "--input is a JSON object"),
        (["submit", "echo", "-p", "language"], "NAME=VALUE"),
        (["submit", "read", "missing.pdf"], "missing.pdf can't be read: No such file"),
        (["submit", "echo", "-o", "no/such/folder/x"], "can't be written"),
        (["submit", "ecco"], "There is no kind 'ecco'"),
        (["submit", "echo", "--option", "priority=urgent"], "priority"),
        (["watch", "a" * 26], "There is no job"),
        (["jobs", "--key", "wrong-key-wrong-key"], "key"),
        (["jobs", "--url", "localhost:8080"], "no address of a gateway"),
    ],
)
async def test_what_is_wrong_is_told_and_is_2(shell: Shell, args: list[str], words: str) -> None:
    """The message names it; nothing was submitted."""
    code, out, err = await shell.run(*args)

    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


async def test_a_gateway_that_is_away_is_4_within_seconds(shell: Shell, tmp_path: Path) -> None:
    """A wrong address is told at once, not after the patience of a long job."""
    away = Shell(tmp_path, OUTLAST_URL="http://127.0.0.1:1")

    answers: Any = await asyncio.gather(
        away.run("submit", "echo"), away.run("jobs"), away.run("watch", "a" * 26), away.run("result", "a" * 26)
    )

    for code, _, err in answers:
        assert code == 4
        assert "127.0.0.1:1: Connection refused. Is it running" in err
        assert "outlast up" in err
