"""Child processes: started with what they need, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gateway.child import Child, Restarts
from tests.faults import wait_until
from tests.processes import runs

# Says so once it takes no SIGTERM, and stays.
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
)


async def _start(code: str, output: Path) -> Child:
    with output.open("wb") as file:
        return await Child.start(sys.executable, "-c", code, output=file)


async def test_a_child_runs_the_program_and_tells_its_exit_code(tmp_path: Path) -> None:
    """The process id is the program's own, from the start."""
    one = await _start("import os, sys; print(os.getpid()); sys.exit(3)", tmp_path / "said")

    assert await one.wait() == 3
    assert one.exit_code == 3
    assert (tmp_path / "said").read_text() == f"{one.pid}\n"


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    """It is an exit code and a line, not a traceback."""
    with (tmp_path / "said").open("wb") as file:
        one = await Child.start("/no/such/program", output=file)

    assert await one.wait() == 1
    assert (tmp_path / "said").read_text() == "/no/such/program: No such file or directory\n"


async def test_a_child_sees_no_interrupt_of_the_terminal(tmp_path: Path) -> None:
    """SIGINT and SIGHUP go to the whole process group; only the parent decides what they mean."""
    one = await _start("print('here', flush=True); import time; time.sleep(60)", tmp_path / "said")
    await wait_until(lambda: (tmp_path / "said").read_text() == "here\n")

    one.send(signal.SIGINT)
    one.send(signal.SIGHUP)

    assert await one.stop(10) == -signal.SIGTERM


async def test_a_stubborn_child_is_killed_after_its_time(tmp_path: Path) -> None:
    """A stop always ends."""
    one = await _start(_STUBBORN, tmp_path / "said")
    await wait_until(lambda: (tmp_path / "said").read_text() == "here\n")

    assert await one.stop(0.1) == -signal.SIGKILL


async def test_a_stopped_child_can_be_ended(tmp_path: Path) -> None:
    """SIGSTOP, as of a debugger or a Ctrl-Z, doesn't make the stop wait."""
    one = await _start("print('here', flush=True); import time; time.sleep(60)", tmp_path / "said")
    await wait_until(lambda: (tmp_path / "said").read_text() == "here\n")
    one.send(signal.SIGSTOP)

    assert await one.stop(30) == -signal.SIGTERM


async def test_a_cancelled_stop_kills(tmp_path: Path) -> None:
    """Whoever loses patience with a stop leaves no process behind."""
    one = await _start(_STUBBORN, tmp_path / "said")
    await wait_until(lambda: (tmp_path / "said").read_text() == "here\n")
    stopping = asyncio.create_task(one.stop(60))
    await asyncio.sleep(0)

    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping

    assert await one.wait() == -signal.SIGKILL


async def test_a_signal_to_a_child_that_ended_is_nothing(tmp_path: Path) -> None:
    """Its process id may be somebody else's by then, so nothing is sent."""
    one = await _start("", tmp_path / "said")
    await one.wait()

    one.send(signal.SIGKILL)
    assert await one.stop(1) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
async def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed takes its children along."""
    code = f"""
import asyncio, sys
from gateway.child import Child
async def main():
    one = await Child.start(sys.executable, "-c", {_STUBBORN!r})
    print(one.pid, flush=True)
    await one.wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert await parent.stdout.readline() == b"here\n"

    parent.kill()
    await parent.wait()

    # The pipe's end is closed when its last holder is gone.
    assert await parent.stdout.read() == b""
    await wait_until(lambda: not runs(pid), what="the child's end")


async def test_a_child_keeps_what_it_was_given(tmp_path: Path) -> None:
    """An inherited descriptor is open in the program, and the environment is the given one."""
    reading, writing = os.pipe()
    code = "import os, sys; os.write(int(sys.argv[1]), os.environ['WORD'].encode())"
    one = await Child.start(
        *(sys.executable, "-c", code, str(writing)), environment={"WORD": "heard"}, inherit=(writing,)
    )
    os.close(writing)

    assert await one.wait() == 0
    assert os.read(reading, 100) == b"heard"
    os.close(reading)


def test_pauses_grow_to_a_bound_and_shrink_after_a_steady_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that keeps dying is started less and less often, one that ran well at once."""
    now = time.monotonic()
    monkeypatch.setattr("gateway.child.time.monotonic", lambda: now)
    restarts = Restarts()
    restarts.begin()

    pauses = [restarts.pause_seconds() for _ in range(8)]

    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.2
    assert pauses[-1] == pauses[-2] == 5
    now += 60
    assert restarts.pause_seconds() == pauses[0]
