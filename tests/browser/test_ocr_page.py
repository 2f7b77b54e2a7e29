"""A real scan, read by the real engine, on the page: what the whole product is for."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Line, NewPage, Product
from tests.browser.job_page import JobPage

pytestmark = [pytest.mark.browser, pytest.mark.ocr, pytest.mark.timeout(180), pytest.mark.xdist_group("scanner")]

_DOCUMENTS = Path(__file__).parents[2] / "examples" / "documents"
_SCAN = _DOCUMENTS / "scan.pdf"


@pytest.fixture(scope="module")
def product(scanner: Product) -> Product:
    """The one that reads scans, for `line` too."""
    return scanner


def test_a_scan_shows_its_lines_live_through_cuts_and_a_reload(new_page: NewPage, line: Line) -> None:
    """Four pages: the line is cut twice and the page reloaded in the middle; every line of the result is there."""
    shown = JobPage(new_page(), line.url).open()
    page = shown.page
    page.set_default_timeout(60_000)
    page.get_by_role("radio", name="ocr", exact=True).check(force=True)
    page.set_input_files("#file", _SCAN)

    expect(page.locator("#text .line").nth(2)).to_be_visible(timeout=60_000)
    assert shown.document()["state"] == "running"
    assert line.cut() > 0
    shown.until_connected()
    expect(page.locator("#text .line").nth(20)).to_be_attached(timeout=60_000)
    page.reload()
    expect(page.locator("#text .line").nth(25)).to_be_attached(timeout=60_000)
    assert line.cut() > 0
    shown.until("Done", timeout=120_000)

    result = _result(shown)
    assert shown.lines() == [one["text"] for sheet in result["pages"] for one in sheet["lines"]]
    assert len(shown.lines()) > 60
    assert page.locator("#document polygon").count() == len(shown.lines())
    tally = shown.tally()
    assert tally == {"events received": shown.logged_events(), "missed": 0, "repeated": 0, "reconnects": 1}
    labels = page.locator("#downloads button").all_text_contents()
    assert labels == ["JSON", "Text", "hOCR"]


def test_a_pipeline_shows_its_pages_one_bar_and_its_result(new_page: NewPage, product: Product) -> None:
    """The invoice of the examples: boxes and lines as its step reads them, then what was made of them."""
    shown = JobPage(new_page(), product.url).open()
    page = shown.page
    # Its steps are not offered, and what was added comes before what is built in.
    assert page.locator("#kinds span").all_text_contents() == ["invoice", "word-count", "ocr"]
    expect(page.locator("#kind-description")).to_contain_text("invoice")
    page.set_input_files("#file", _DOCUMENTS / "invoice.jpg")

    expect(page.locator("#progress-done")).to_contain_text(" % · ocr", timeout=60_000)
    expect(page.locator("#document polygon").nth(5)).to_be_attached(timeout=60_000)
    shown.until("Done", timeout=60_000)

    assert "INVOICE 2026-0417" in shown.lines()
    assert page.locator("#document polygon").count() == len(shown.lines())
    expect(page.locator("#text pre")).to_have_count(1)
    expect(page.locator("#text pre")).to_contain_text('"total": "3439.00"')
    assert shown.tally()["missed"] == 0


def _result(shown: JobPage) -> dict[str, Any]:
    with urllib.request.urlopen(f"{shown.url}/v1/jobs/{shown.job}/result", timeout=10) as answer:
        return dict(json.load(answer))
