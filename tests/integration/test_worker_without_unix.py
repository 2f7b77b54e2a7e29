"""On a system without Unix's process groups and signals: what needs them says so, and all else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from gateway.protocol import State
from gateway.store import Store
from processors.process import Processes
from processors.processor import load_processors
from tests.integration.test_worker import submit
from tests.integration.test_worker_processes import says
from tests.worker_jobs import end_of
from tests.worker_process import worker_process


async def test_a_worker_does_what_needs_no_child_process(store: Store, tmp_path: Path) -> None:
    """Async functions and threads; a job that runs a program fails, and the worker's log says what is missing."""
    async with worker_process(store, tmp_path, around="tests.without_unix") as worker:
        jobs = [await submit(store, "echo", {"a": 1}), await submit(store, "thread", {"to": 2})]
        ends = [await end_of(store, job) for job in jobs]
        await submit(store, "parent")
        await says(worker, "Running a program for a job needs process groups")

    assert [end.state for end in ends] == [State.SUCCEEDED, State.SUCCEEDED]


async def test_a_function_in_a_process_is_refused_as_its_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which one, and where it would run."""
    monkeypatch.delattr(os, "killpg")
    [processor, *_] = load_processors(["tests.process_kinds"]).values()

    with pytest.raises(ConfigurationError, match=r"runs in a process, needs process groups, .* WSL"):
        await Processes().warm(processor)


@pytest.mark.parametrize(
    "command",
    [["up"], ["worker", "tests.worker_kinds", "--reload", "--redis", "redis://localhost:1"]],
    ids=lambda c: c[0],
)
def test_a_command_that_starts_children_says_what_to_do_instead(command: list[str]) -> None:
    """And no more: no traceback."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.without_unix", "gateway.cli", *command],
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 2, said.stderr
    assert said.stderr.startswith("outlast: ")
    assert "use WSL or a container" in said.stderr


def test_the_gateway_and_the_clients_can_be_imported() -> None:
    """And the built-in kinds that run no program."""
    modules = "gateway.app, gateway.client.httpx, processors.http, processors.llm"

    said = subprocess.run(
        [sys.executable, "-c", f"from tests.without_unix import *; take_unix_away(); import {modules}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 0, said.stderr
