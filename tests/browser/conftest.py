"""The whole product, a Chromium, and a line between them that can be cut."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.faults import PATIENCE_SECONDS, FaultProxy

T = TypeVar("T")

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_CHROMIUM = next((found for name in _PROGRAMS if (found := shutil.which(name))), "")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_READY = "Ctrl-C stops everything"
_KINDS = "tests.browser.page_kinds"
# Playwright's own 5 s are too short for a browser and a product that share two cores with others.
expect.set_options(timeout=PATIENCE_SECONDS * 1000)


class Product:
    """An `outlast up` that runs."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def child(self, command: str) -> int:
        """The process id of its gateway or its worker."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if parent == self.process.pid and command in words:
                return int(folder.name)
        raise LookupError(f"the product has no {command}")


@contextmanager
def running_product(data: Path, *arguments: str, **environment: str) -> Iterator[Product]:
    """Start a product on a free port and wait until it says that it is ready."""
    command = (sys.executable, "-m", "gateway.cli", "up", "--port", "0", "--data", str(data), *arguments)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    printed: list[str] = []
    # The log goes on after the banner; a pipe that nobody reads would stop the product in the end.
    reader = threading.Thread(target=printed.extend, args=(process.stdout,), name="reads the product's words")
    reader.start()
    try:
        wait_for(lambda: _READY in "".join(printed) or process.poll() is not None, 60, "the banner")
        match = re.search(r"page\s+(http://\S+)/", "".join(printed))
        assert match is not None, "".join(printed)
        yield Product(process, match[1])
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()


def wait_for(predicate: Callable[[], object], timeout_seconds: float, what: str) -> None:
    """Wait for a condition outside the browser; Playwright's `expect` waits for those inside."""
    deadline = time.monotonic() + timeout_seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_seconds:g} s"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product with the kinds of `page_kinds`. Heartbeats and reconnects come soon, so that tests wait less."""
    folder = tmp_path_factory.mktemp("product")
    quick = {"OUTLAST_HEARTBEAT_SECONDS": "2", "OUTLAST_RETRY_SECONDS": "0.3"}
    with running_product(folder, "--without", "ocr", _KINDS, **quick) as running:
        yield running


@pytest.fixture(scope="session")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product that reads scans and invoices, and has the README's processor. One, since its start takes long."""
    folder = tmp_path_factory.mktemp("scanner")
    with running_product(folder, "examples.word_count", "examples.invoice", OUTLAST_RETRY_SECONDS="0.3") as running:
        yield running


class Line:
    """The line between the browser and a gateway: a TCP proxy with switches, on a thread of its own."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="the line")
        self._thread.start()
        self._proxy = FaultProxy(url)
        self._run(self._proxy.__aenter__())
        self.url = self._proxy.url

    def cut(self) -> int:
        """Reset all connections; returns how many there were."""
        return self._call(self._proxy.cut)

    def refuse(self, on: bool = True) -> None:
        """Let no new connection through."""
        self._call(lambda: self._proxy.refuse(on))

    def throttle(self, bytes_per_second: float | None) -> None:
        """Let only so much through."""
        self._call(lambda: setattr(self._proxy, "bytes_per_second", bytes_per_second))

    def close(self) -> None:
        """End the proxy and its thread."""
        self._run(self._proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Callable[[], T]) -> T:
        async def called() -> T:
            return work()

        return self._run(called())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that keeps a job from its end until it is there."""
    return tmp_path / "gate"


@pytest.fixture
def line(product: Product) -> Iterator[Line]:
    """A line to the product that the test may cut."""
    line = Line(product.url)
    yield line
    line.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; each has a context of its own."""
    if not _CHROMIUM:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


NewPage = Callable[..., Page]


@pytest.fixture
def new_page(chromium: Browser) -> Iterator[NewPage]:
    """Makes pages. A script error, a breach of the content policy, or a request to elsewhere fails the test."""
    contexts = []
    wrong: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # A cut line and a 401 are what some tests are about; Chromium reports them by itself.
        if message.type == "error" and not message.text.startswith(("Failed to load resource", "WebSocket connection")):
            wrong.append(message.text)

    def check(request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:")):
            wrong.append(f"a request to {request.url}")

    def make(**options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 860}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", listen)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", check)
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []
