"""The README's two client snippets, as they stand there, against the product that it starts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from playwright.sync_api import Route

from tests.browser.conftest import NewPage, Product

pytestmark = [pytest.mark.browser, pytest.mark.ocr, pytest.mark.timeout(180)]

_ROOT = Path(__file__).parents[2]
_EXAMPLES = _ROOT / "examples" / "documents"


def snippet(heading: str, language: str) -> str:
    """The first block of a language under a heading of the README."""
    section = (_ROOT / "README.md").read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    match = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def test_the_page_s_snippet_follows_a_job(scanner: Product, new_page: NewPage) -> None:
    """Served by the gateway's origin as it is, it logs the progress and the result of its job."""
    page = new_page()
    logged: list[str] = []
    page.on("console", lambda message: logged.append(message.text))

    def serve(route: Route) -> None:
        route.fulfill(content_type="text/html", body="<!doctype html>" + snippet("From a page", "html"))

    page.route("**/readme.html", serve)
    with page.expect_console_message(lambda message: message.text.startswith("succeeded"), timeout=60_000):
        page.goto(f"{scanner.url}/readme.html")

    assert logged[:2] == ["1 of 2", "2 of 2"]
    assert "fish: 2" in logged[-1]


def test_the_python_snippet_reads_a_scan(scanner: Product, tmp_path: Path) -> None:
    """With a real scan beside it: it prints the events, and then the text."""
    shutil.copy(_EXAMPLES / "scan.pdf", tmp_path)
    code = snippet("From Python", "python").replace("http://127.0.0.1:8080", scanner.url)
    imports, _, body = code.partition("\n\n")
    script = f"import asyncio\n{imports}\n\nasync def main():\n{textwrap.indent(body, '    ')}\n\nasyncio.run(main())\n"
    (tmp_path / "snippet.py").write_text(script)

    command = (sys.executable, "snippet.py")
    ran = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=150)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("queued {}\nstarted {")
    text = ran.stdout.rpartition("\nsucceeded {")[2]
    words = (_EXAMPLES / "scan.txt").read_text().split()
    assert sum(word in text for word in words) > 0.8 * len(words)
