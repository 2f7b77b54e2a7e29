"""The wheel, installed into a clean environment: what people get who don't have the source tree."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.faults import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_READY = "Ctrl-C stops everything"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree, since a build leaves traces."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("gateway", "processors", "client_js"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "made"], cwd=tree, check=True)
    [made] = (tree / "made").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-warn-script-location", f"{wheel}[embedded]"],
        check=True,
    )
    return folder / "bin"


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OUTLAST_", "PYTHON"))}


def test_the_command_works_without_the_extras(installed: Path, tmp_path: Path) -> None:
    """Help, version and the client's import need no OCR, no test tool and no source tree."""
    for words in (
        ["outlast", "--help"],
        ["outlast", "--version"],
        ["python", "-c", "import gateway.client, processors"],
    ):
        answer = subprocess.run(
            [installed / words[0], *words[1:]],
            cwd=tmp_path,
            env=_clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr


async def test_the_page_and_the_browser_client_are_served(installed: Path, tmp_path: Path) -> None:
    """A product from the wheel serves the same files as the source tree, and says that OCR is not installed."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    printed = tmp_path / "printed"
    with printed.open("wb") as output:
        product = await asyncio.create_subprocess_exec(
            *(installed / "outlast", "up", "--port", str(port)),
            cwd=tmp_path,
            env=_clean_environment(),
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
        )
    try:
        await wait_until(lambda: product.returncode is not None or _READY in printed.read_text(), 60, what="the banner")
        assert _READY in printed.read_text(), printed.read_text()
        assert "not ocr: pip install 'outlast[ocr]'" in printed.read_text()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            for path, file in (("/", "index.html"), ("/client/client.js", "client.js")):
                async with session.get(path) as answer:
                    assert await answer.read() == (ROOT / "client_js" / file).read_bytes()
        assert (tmp_path / ".outlast" / "valkey").is_dir()
    finally:
        if product.returncode is None:
            product.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            code = await product.wait()
    assert code == 0
