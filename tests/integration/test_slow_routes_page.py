"""The page on slow routes: its example runs as it stands, and its table is the file's keys."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from gateway.slow_routes import SlowRoute
from tests.faults import wait_until
from tests.ports import free_port
from tests.slow_app import slow_app

PAGE = (Path(__file__).parents[2] / "docs" / "slow-routes.md").read_text(encoding="utf-8")


def test_the_page_lists_every_key_and_no_other() -> None:
    """In the order in which the code has them, with their defaults."""
    table = PAGE.split("## The file")[1].split("\n\n")[1]
    rows = re.findall(r"^\| `(\w+)` \| (\S.*?) \|", table, re.MULTILINE)
    fields = {field.alias or name: field for name, field in SlowRoute.model_fields.items()}

    assert [name for name, _ in rows] == list(fields)
    for name, written in rows:
        default = fields[name].default
        if isinstance(default, bool | int) and name != "timeout":
            assert written == f"`{json.dumps(default)}`"


@pytest.mark.timeout(120)
async def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    """`outlast up --routes` with the page's own file and the page's own curl; only the ports are free ones."""
    [toml] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    up, curl = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    port = free_port()
    async with slow_app() as app:
        assert "http://127.0.0.1:8000/api/report" in toml
        (tmp_path / "routes.toml").write_text(toml.replace("http://127.0.0.1:8000/api/report", f"{app.url}/slow"))
        options = up.strip().removeprefix("outlast ").split()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", *options, "--without", "ocr", "--port", str(port)),
            *("--data", str(tmp_path / "data")),
            cwd=tmp_path,
            env=os.environ | {"OUTLAST_RUN_QUIET_SECONDS": "0.5", "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = bytearray()

        async def listen() -> None:
            assert process.stdout is not None
            while piece := await process.stdout.read(4096):
                said.extend(piece)

        listening = asyncio.create_task(listen())
        try:
            await wait_until(lambda: b"Ctrl-C stops" in said or process.returncode is not None, 60, what="the banner")
            assert process.returncode is None, said.decode()
            calling = await asyncio.create_subprocess_shell(
                curl.replace("127.0.0.1:8080", f"127.0.0.1:{port}"), stdout=asyncio.subprocess.PIPE
            )
            await wait_until(lambda: app.waiting == 1, what="the call")
            await asyncio.sleep(1.2)  # Longer than the quiet time: white space has come.
            app.go.set()
            answer, _ = await asyncio.wait_for(calling.communicate(), 20)
        finally:
            process.terminate()
            await process.wait()
            await listening

    assert answer.startswith(b" ")
    assert json.loads(answer) == {"slow": True, "body": '{"year": 2026}'}
