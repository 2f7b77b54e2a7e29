"""The text of the README and of the Python client's page, run on free ports: what it starts, and what it calls."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pypdfium2
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import NewPage, Product, wait_for
from tests.ports import free_port

# One process of the test run has the product that reads scans, and what the README starts.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(180), pytest.mark.xdist_group("scanner")]

_ROOT = Path(__file__).parents[2]
_EXAMPLES = _ROOT / "examples"
_README = (_ROOT / "README.md").read_text()
_PORTS = ("8000", "8080", "8524", "8525")


def snippet(heading: str, language: str) -> str:
    """The first block of a language under a heading of the README."""
    section = re.split(r"^##+ ", _README.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    match = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def shell(mark: str) -> list[str]:
    """The shell blocks that are marked so."""
    blocks = re.findall(rf"^<!-- {mark} -->\n```sh\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL)
    assert blocks, mark
    return blocks


class Cure:
    """What the section "I have a 524, what now" starts, each port of its text replaced by a free one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = {port: str(free_port()) for port in _PORTS}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.url = self.here("http://127.0.0.1:8525")

    def here(self, text: str) -> str:
        """The README's text with the ports of this run."""
        return re.sub(rf"\b({'|'.join(_PORTS)})\b", lambda port: self._ports[port[1]], text)

    def start(self) -> None:
        """Follow the README up to "Change no code"; only the gateway's port, data and kinds are given besides."""
        (self.folder / "examples").symlink_to(_EXAMPLES)
        (self.folder / "routes.toml").write_text(self.here(snippet("I have a 524, what now", "toml")))
        for number, block in enumerate(shell("start")):
            text = self.here(block).replace("outlast up", f"outlast up --without ocr --port {self._ports['8080']}")
            with (self.folder / f"log-{number}").open("wb") as log:
                # `wait`: the shell leads the group of what it starts, until the end.
                process = subprocess.Popen(
                    ("bash", "-c", text + "wait\n"),
                    cwd=self.folder,
                    env=self._environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._processes.append(process)
        for port in self._ports.values():
            wait_for(partial(_listens, port), 60, f"port {port}")
        # The gateway listens before the workers that it needs are there; this is what a reader waits for.
        wait_for(self._says_that_it_runs, 60, "the line that says that Outlast is running")

    def _says_that_it_runs(self) -> bool:
        return any("is running" in log.read_text() for log in self.folder.glob("log-*"))

    def stop(self) -> None:
        """End all that was started, with its children."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            process.wait(30)

    def run(self, *command: str) -> str:
        """What a command prints, as a reader sees it."""
        ran = subprocess.run(
            command, cwd=self.folder, env=self._environment, check=False, capture_output=True, text=True, timeout=60
        )
        return ran.stdout + ran.stderr

    def sh(self, mark: str) -> str:
        """What a marked block prints."""
        return self.run("bash", "-c", self.here(shell(mark)[0]))

    def show(self, page: Page, html: str) -> None:
        """Open a block of the README as a page, through the simulated edge."""

        def serve(route: Route) -> None:
            route.fulfill(content_type="text/html", body="<!doctype html>" + self.here(html))

        page.route("**/readme.html", serve)
        page.goto(f"{self.url}/readme.html")


def _listens(port: str) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
        return True
    return False


@pytest.fixture(scope="module")
def cure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cure]:
    """The slow server, the gateway, and a simulated Cloudflare before each."""
    running = Cure(tmp_path_factory.mktemp("cure"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_the_error_is_seen_and_its_cause_named(cure: Cure) -> None:
    """The slow server behind the simulated edge is a 524, and the doctor knows it by its text."""
    said = cure.sh("run: the error")

    assert (cure.folder / "error.txt").read_text() == "error code: 524"
    assert "Cloudflare's own 524: the origin was silent for too long" in said
    assert "edge_read_timeout" in said


def test_the_same_request_gets_its_answer_without_a_change(cure: Cure) -> None:
    """Through an edge of the same patience, for the same slow server."""
    printed = cure.sh("run: the report")

    assert json.loads(printed) == {"year": 2026, "profit": 524}
    assert printed.startswith(" "), "the edge would have cut an answer that had been silent for so long"


def test_a_processor_s_work_is_one_post_with_one_json(cure: Cure) -> None:
    """The envelope has the job's state and its result."""
    ended = json.loads(cure.sh("run: the words"))

    assert ended["state"] == "succeeded"
    assert ended["result"] == {"one": 1, "fish": 1}


def test_the_script_with_one_line_changed_gets_its_answer(cure: Cure) -> None:
    """It names the slow server's own address, and asks through the edge."""
    (cure.folder / "script.py").write_text(cure.here(snippet("2. Change one line", "python")))

    assert cure.run("python", "script.py") == "{'year': 2026, 'profit': 524}\n"


def test_the_page_with_one_line_changed_gets_its_answer(cure: Cure, new_page: NewPage) -> None:
    """`fetch` in a page, through the edge."""
    page = new_page()

    with page.expect_console_message(timeout=60_000) as logged:
        cure.show(page, snippet("2. Change one line", "html"))

    assert logged.value.text == '200 {"year": 2026, "profit": 524}'


def test_the_page_shows_the_progress_also_after_a_reload(cure: Cure, new_page: NewPage) -> None:
    """The bar fills and the lines stand there; a reload shows the same job, each line once."""
    page = new_page()
    cure.show(page, snippet("3. Show the progress", "html"))
    job, bar, lines = page.locator("outlast-job"), page.locator("outlast-progress"), page.locator("pre")

    expect(job).to_have_attribute("state", "succeeded", timeout=60_000)
    first = job.get_attribute("job")
    page.reload()

    expect(job).to_have_attribute("state", "succeeded", timeout=60_000)
    expect(bar).to_have_attribute("value", "2")
    expect(bar).to_have_attribute("max", "2")
    assert lines.text_content() == "one fish\ntwo fish\n"
    assert job.get_attribute("job") == first


@pytest.mark.ocr
def test_the_python_client_s_first_program_reads_a_scan(scanner: Product, tmp_path: Path) -> None:
    """With a page of a real scan beside it: it prints the events, and then the text."""
    with pypdfium2.PdfDocument(_EXAMPLES / "documents" / "scan.pdf") as scan, pypdfium2.PdfDocument.new() as first:
        first.import_pages(scan, [0])
        first.save(tmp_path / "scan.pdf")
    page = (_ROOT / "docs" / "python.md").read_text()
    script = page.split("```python\n", 1)[1].split("```", 1)[0].replace("http://127.0.0.1:8080", scanner.url)
    (tmp_path / "snippet.py").write_text(script)

    command = (sys.executable, "snippet.py")
    ran = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=150)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("queued {}\nstarted {")
    text = ran.stdout.rpartition("\nsucceeded {")[2].partition("\n")[2]
    words = (_EXAMPLES / "documents" / "scan.txt").read_text().split("\f", 1)[0].split()
    assert sum(word in text for word in words) > 0.8 * len(words)
