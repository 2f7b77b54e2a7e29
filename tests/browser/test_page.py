"""The product page in a real Chromium, in front of the real product."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import Line, NewPage, Product, running_product
from tests.browser.job_page import JobPage, expected_lines

pytestmark = pytest.mark.browser

_KEY = "a-key-of-sixteen-characters"


@pytest.fixture
def shown(new_page: NewPage, product: Product) -> JobPage:
    """The page at its start."""
    return JobPage(new_page(), product.url).open()


# --- from the file to the result ------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_dropped_or_pasted_file_shows_its_pages_line_by_line(shown: JobPage, gate: Path, event: str) -> None:
    """Boxes and text come while the job runs; the picture, the bar and the result are there at the end."""
    page = shown.page
    shown.drop_file("minutes.png", event, pages=2, lines=8, pause_seconds=0.1, gate=gate)

    shown.until_lines(3)
    assert shown.document()["state"] == "running"
    expect(page.locator("#job-title")).to_have_text("minutes.png")
    expect(page.locator("#worker")).to_contain_text("Worker alive")
    gate.touch()
    shown.until("Done")

    assert shown.lines() == expected_lines(2, 8)
    assert page.locator("#document polygon").count() == 16
    widths = page.evaluate("[...document.querySelectorAll('#document img')].map((image) => image.naturalWidth)")
    assert widths == [620, 620]
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "1")
    expect(page.locator("#progress-done")).to_have_text(re.compile(r"^2 pages · 16 lines · took \d+ s$"))


def test_text_of_the_server_is_shown_as_it_is_and_never_becomes_markup(shown: JobPage) -> None:
    """The lines of `paper` hold tags; so does the file's name."""
    shown.choose_file("<img src=x>.png", pages=1, lines=2)
    shown.until("Done")

    assert shown.lines() == ["<b>Page 1</b>, line 1", "<b>Page 1</b>, line 2"]
    expect(shown.page.locator("#job-title")).to_have_text("<img src=x>.png")
    assert shown.page.locator("#text b, #job-title img").count() == 0


def test_the_result_can_be_downloaded_in_all_its_forms(shown: JobPage) -> None:
    """A button per representation; the file is named after the input."""
    shown.choose_file("minutes 1887.png", pages=1)
    shown.until("Done")

    found = {}
    for label in ("JSON", "Text"):
        with shown.page.expect_download() as download:
            shown.page.get_by_role("button", name=f"Download as {label}").click()
        found[download.value.suggested_filename] = Path(download.value.path()).read_text()

    assert found == {"minutes-1887.json": '{"pages":1}', "minutes-1887.txt": "All of it.\n"}


def test_a_page_that_could_not_be_read_says_so_between_the_others(shown: JobPage) -> None:
    """The job goes on, and its other pages are complete."""
    shown.choose_file(pages=3, lines=2, broken_page=2)
    shown.until("Done")

    pages = shown.page.locator("#text .page-text")
    expect(pages.nth(1)).to_contain_text("This page could not be read: The picture of this page is damaged.")
    assert [pages.nth(at).locator(".line").count() for at in (0, 2)] == [2, 2]


def test_a_text_that_is_written_word_by_word_fills_in(shown: JobPage, gate: Path) -> None:
    """A kind without pages shows the text of its deltas, and its result."""
    shown.page.set_viewport_size({"width": 600, "height": 640})
    shown.tell_story(prompt="one more word of a long tale", words=60, gate=gate)
    text = shown.page.locator("#text")

    expect(text).to_contain_text("tale 5 ")
    assert shown.document()["state"] == "running"
    gate.touch()
    shown.until("Done")
    expect(text).to_contain_text("tale 59")
    expect(text).to_contain_text('{ "words": 60 }')
    expect(shown.page.locator("#announce")).to_have_text("Done: story job")
    # The window has followed the text to its end.
    assert shown.page.evaluate("scrollY > 0")


def test_a_failed_job_says_what_is_wrong(shown: JobPage) -> None:
    """The problem's detail and its stable code; what came before stays."""
    shown.tell_story(prompt="lost", words=3, fails=True)
    shown.until("Failed")

    expect(shown.page.locator("#job-note")).to_have_text("The story has no end; try another prompt. (story_lost)")
    expect(shown.page.locator("#text")).to_contain_text("lost 2")


def test_a_failed_job_can_be_tried_again(shown: JobPage) -> None:
    """A new job with what the old one was given, on the same page; the way back leads to the old one."""
    shown.tell_story(prompt="lost", words=1, fails=True)
    shown.until("Failed")
    failed = shown.job

    shown.page.get_by_role("button", name="Try again").click()
    shown.page.wait_for_url(lambda url: failed not in url)
    shown.until("Failed")

    assert shown.document()["retry_of"] == failed
    shown.page.go_back()
    expect(shown.page.locator("#job-note")).to_contain_text("story_lost")
    assert shown.job == failed


def test_cancel_ends_the_job(shown: JobPage) -> None:
    """The button asks once; the terminal event ends it."""
    shown.choose_file(pages=5, lines=50, pause_seconds=0.1)
    shown.until_lines(2)

    shown.page.get_by_role("button", name="Cancel").click()
    shown.until("Cancelled")

    assert shown.document()["state"] == "cancelled"
    expect(shown.page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_an_upload_shows_its_progress_and_can_be_stopped(new_page: NewPage, line: Line) -> None:
    """Nothing is submitted then, and the form is there again."""
    shown = JobPage(new_page(), line.url).open()
    line.throttle(200_000)
    shown.choose_file("large.png", bytes(3_000_000))
    expect(shown.page.locator("#job-state")).to_have_text("Uploading")
    expect(shown.page.locator("#progress-done")).to_contain_text("% sent")

    shown.page.get_by_role("button", name="Cancel").click()

    expect(shown.page.locator("#start")).to_be_visible()
    expect(shown.page.locator("#compose-problem")).to_contain_text("nothing was submitted")


# --- what outlasts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["SSE", "WebSocket"])
def test_connections_that_are_killed_lose_nothing_and_repeat_nothing(
    new_page: NewPage, line: Line, gate: Path, transport: str
) -> None:
    """The line is cut four times in the middle of a job; the page counts every event of the log once."""
    shown = JobPage(new_page(), line.url).open()
    shown.choose_file(pages=3, lines=12, pause_seconds=0.1, gate=gate)
    shown.until_lines(1)
    shown.use(transport)
    before = shown.tally()["reconnects"]

    for cut in range(1, 5):
        shown.until_lines(3 * cut)
        line.cut()
        expect(shown.page.locator("#tally-reconnects")).to_have_text(str(before + cut))
        shown.until_connected(transport)
    gate.touch()
    shown.until("Done")

    events = shown.logged_events()
    assert shown.tally() == {"events received": events, "missed": 0, "repeated": 0, "reconnects": before + 4}
    assert shown.lines() == expected_lines(3, 12)


def test_a_line_that_is_dead_for_a_while_is_said_and_come_back_from(new_page: NewPage, line: Line, gate: Path) -> None:
    """While nothing gets through the page says that it waits, and does not claim to know the worker."""
    shown = JobPage(new_page(), line.url).open()
    shown.choose_file(pages=2, lines=20, pause_seconds=0.1, gate=gate)
    shown.until_lines(2)

    line.refuse()
    line.cut()
    expect(shown.page.locator("#wire-text")).to_have_text(re.compile(r"^Connection lost, back in [\d.]+ s$"))
    expect(shown.page.locator("#worker")).to_contain_text("Worker last seen")
    line.refuse(False)
    gate.touch()
    shown.until("Done")

    assert shown.tally()["missed"] == shown.tally()["repeated"] == 0
    assert shown.tally()["events received"] == shown.logged_events()
    assert "Connection lost after event" in shown.log()


def test_the_cut_button_really_cuts_and_shows_the_resume(shown: JobPage, gate: Path) -> None:
    """Nothing comes while it is cut; afterwards the counters say that nothing is missing."""
    page = shown.page
    shown.choose_file(pages=2, lines=25, pause_seconds=0.1, gate=gate)
    shown.until_lines(3)
    page.evaluate(
        """() => {
          window.held = new Set();
          const [words, count] = ["wire-text", "tally-received"].map((id) => document.getElementById(id));
          new MutationObserver(() => {
            if (words.textContent.startsWith("You cut the connection, back in")) held.add(count.textContent);
          }).observe(document.body, { childList: true, characterData: true, subtree: true });
        }"""
    )

    page.get_by_role("button", name="Cut the connection").click()
    expect(page.locator("#tally-reconnects")).to_have_text("1")
    gate.touch()
    shown.until("Done")

    [held] = page.evaluate("[...held]")
    assert shown.tally() == {
        "events received": shown.logged_events(),
        "missed": 0,
        "repeated": 0,
        "reconnects": 1,
    }
    assert f"You cut the connection after event {held}" in shown.log()
    assert f"Resumed over SSE after event {held}, 0 missed" in shown.log()


def test_a_reload_in_the_middle_shows_everything_again(shown: JobPage) -> None:
    """The job's id is in the address; the log is read again from its start."""
    shown.choose_file(pages=2, lines=15, pause_seconds=0.1)
    shown.until_lines(5)

    shown.page.reload()
    shown.until_lines(6)
    shown.until("Done")

    assert shown.lines() == expected_lines(2, 15)
    assert shown.tally() == {"events received": shown.logged_events(), "missed": 0, "repeated": 0, "reconnects": 0}


def test_a_gateway_that_is_killed_is_come_back_to(shown: JobPage, product: Product, gate: Path) -> None:
    """`kill -9` of the gateway: the next one goes on where it was, since it holds no state."""
    shown.choose_file(pages=3, lines=15, pause_seconds=0.1, gate=gate)
    shown.until_lines(4)

    os.kill(product.child("gateway"), signal.SIGKILL)
    expect(shown.page.locator("#wire")).to_have_attribute("data-state", "waiting")
    gate.touch()
    shown.until("Done")

    assert shown.lines() == expected_lines(3, 15)
    assert shown.tally()["missed"] == shown.tally()["repeated"] == 0
    assert shown.tally()["events received"] == shown.logged_events()


def test_a_worker_that_is_frozen_shows_as_silent_while_the_stream_stays_open(
    shown: JobPage, product: Product, gate: Path
) -> None:
    """The transport's heartbeat must not hide a dead worker."""
    worker = product.child("worker")
    shown.choose_file(pages=2, lines=20, gate=gate)
    shown.until_lines(3)

    os.kill(worker, signal.SIGSTOP)
    try:
        silent = shown.page.locator("#worker[data-level=silent]")
        expect(silent).to_have_text(re.compile(r"^Worker silent for [1-9]\d s$"), timeout=25_000)
        first = silent.inner_text()
        expect(silent).not_to_have_text(first)
        expect(shown.page.locator("#wire-text")).to_have_text("Streaming over SSE")
        assert shown.tally()["reconnects"] == 0
    finally:
        os.kill(worker, signal.SIGCONT)
    gate.touch()
    shown.until("Done")

    assert shown.lines() == expected_lines(2, 20)


def test_switching_the_transport_in_the_middle_keeps_the_place(shown: JobPage) -> None:
    """From SSE to WebSocket and back, in a job that is long enough for any machine."""
    shown.choose_file(pages=9, lines=50, pause_seconds=0.1)
    shown.until_lines(2)

    shown.use("WebSocket")
    shown.until_lines(8)
    shown.use("SSE")
    shown.until_lines(14)
    shown.page.get_by_role("button", name="Cancel").click()
    shown.until("Cancelled")

    assert shown.tally() == {"events received": shown.logged_events(), "missed": 0, "repeated": 0, "reconnects": 2}


# --- finding the way ------------------------------------------------------------------------------------------------


def test_recent_jobs_are_listed_and_lead_back(shown: JobPage) -> None:
    """Newest first, with their state; back and forth in the browser's history works too."""
    page = shown.page
    shown.choose_file("older.png", pages=1, lines=2)
    shown.until("Done")
    page.get_by_role("button", name="New job").click()
    shown.choose_file("newer.png", pages=1, lines=3)
    shown.until("Done")
    page.get_by_role("button", name="New job").click()

    names = page.locator("#recent .name")
    expect(names.nth(0)).to_have_text("newer.png")
    expect(names.nth(1)).to_have_text("older.png")
    expect(page.locator("#recent .chip").nth(0)).to_have_text("Done")
    names.nth(1).click()
    shown.until_lines(2)
    expect(page.locator("#job-title")).to_have_text("older.png")
    page.go_back()
    expect(page.locator("#start")).to_be_visible()


def test_an_unknown_job_says_so_and_leads_to_the_start(new_page: NewPage, product: Product) -> None:
    """An address that was mistyped, or a job that is long gone."""
    page = new_page()
    page.goto(f"{product.url}/?job={'a' * 26}")

    expect(page.locator("#job-note")).to_contain_text("There is no job")
    expect(page.get_by_text("Waiting")).to_be_hidden()
    expect(page.locator("#split")).to_be_hidden()
    page.get_by_role("button", name="New job").click()
    expect(page.locator("#start")).to_be_visible()


def test_a_kind_without_a_worker_is_said_before_the_submit(new_page: NewPage, product: Product) -> None:
    """It can be submitted all the same: one may come."""
    page = new_page()

    def without_workers(route: Route) -> None:
        document: dict[str, Any] = route.fetch().json()
        for kind in document["kinds"]:
            kind["workers"] = 0
        route.fulfill(body=json.dumps(document), content_type="application/json")

    page.route("**/v1/kinds", without_workers)
    page.goto(f"{product.url}/")

    expect(page.locator("#no-worker")).to_be_visible()
    shown = JobPage(page, product.url)
    shown.choose_file(pages=1, lines=1)
    shown.until("Done")


def test_a_gateway_that_is_away_at_the_start_is_waited_for(new_page: NewPage, product: Product) -> None:
    """The page says so, offers no form that would do nothing, and fills in when the gateway answers."""
    page = new_page()
    page.route("**/v1/kinds", lambda route: route.abort())

    page.goto(product.url)
    expect(page.locator("#trouble")).to_contain_text("The connection to the gateway failed")
    expect(page.locator("#compose")).to_be_hidden()
    page.unroute("**/v1/kinds")

    expect(page.locator("#drop")).to_be_visible(timeout=40_000)
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_job_in_the_address_is_shown_before_the_kinds_are_known(new_page: NewPage, product: Product) -> None:
    """A reload in the middle of an answer waits for nothing else; that nobody serves the job is said afterwards."""
    start_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    body = json.dumps({"input": {"prompt": "later"}, "start_at": start_at})
    request = urllib.request.Request(
        f"{product.url}/v1/kinds/story/jobs", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        job = json.load(answer)["id"]
    page = new_page()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/kinds", hold)

    page.goto(f"{product.url}/?job={job}")
    expect(page.locator("#job-state")).to_have_text("Waiting")
    expect(page.locator("#job-note")).to_have_text("")
    [route] = held
    document = route.fetch().json()
    for kind in document["kinds"]:
        kind["workers"] = 0
    route.fulfill(body=json.dumps(document), content_type="application/json")

    expect(page.locator("#job-note")).to_contain_text("No worker serves this kind")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-state")).to_have_text("Cancelled")


def test_what_the_gateway_refuses_is_said_beside_the_form(shown: JobPage) -> None:
    """The field and the reason, the field is marked and led to, and what was filled in stays."""
    shown.choose_file(pages=51)

    expect(shown.page.locator("#compose-problem")).to_contain_text("pages")
    expect(shown.page.locator("#option-pages")).to_have_value("51")
    expect(shown.page.locator("#option-pages")).to_have_attribute("aria-invalid", "true")
    expect(shown.page.locator("#option-pages")).to_be_focused()


def test_a_file_for_a_kind_that_takes_none_is_not_swallowed(shown: JobPage) -> None:
    """The page says so, and which kind would take it; choosing that one takes the word back."""
    shown.page.get_by_role("radio", name="story").check(force=True)
    shown.drop_file(event="paste")

    expect(shown.page.locator("#compose-problem")).to_have_text("story takes no files; choose paper for that.")
    shown.page.get_by_role("radio", name="paper").check(force=True)
    expect(shown.page.locator("#compose-problem")).to_be_hidden()


@pytest.mark.xdist_group("keyed")
@pytest.mark.parametrize("transport", ["SSE", "WebSocket"])
def test_a_key_is_asked_for_only_where_it_is_needed(
    new_page: NewPage, keyed_product: Product, gate: Path, transport: str
) -> None:
    """A wrong one is refused, the right one opens everything: list, upload, stream, pictures, download."""
    page = new_page()
    page.goto(f"{keyed_product.url}/")
    for key in ("not the key", _KEY):
        page.get_by_role("textbox", name="API key").fill(key)
        page.keyboard.press("Enter")
    shown = JobPage(page, keyed_product.url)
    shown.choose_file(pages=1, lines=25, gate=gate)
    shown.until_lines(1)

    shown.use(transport)
    gate.touch()
    shown.until("Done")

    assert shown.lines() == expected_lines(1, 25)
    assert page.evaluate("document.querySelector('#document img').naturalWidth") == 620
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as JSON").click()
    assert Path(download.value.path()).read_text() == '{"pages":1}'
    assert _KEY not in page.url
    assert page.evaluate("Object.keys(localStorage).length") == 0


@pytest.fixture(scope="module")
def keyed_product(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A product that asks for a key."""
    folder = tmp_path_factory.mktemp("keyed")
    arguments = ("--without", "ocr", "tests.browser.page_kinds")
    with running_product(folder, *arguments, OUTLAST_API_KEYS=f"me:{_KEY}") as running:
        yield running


# --- for everybody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_offers_its_camera(new_page: NewPage, product: Product, scheme: str) -> None:
    """375 px wide: nothing sticks out, document and text take turns."""
    page = new_page(viewport={"width": 375, "height": 700}, is_mobile=True, has_touch=True, color_scheme=scheme)
    shown = JobPage(page, product.url).open()
    expect(page.get_by_text("Take a photo")).to_be_visible()
    assert page.get_attribute("#photo", "capture") == "environment"
    assert page.evaluate("document.documentElement.scrollWidth") == 375

    shown.choose_file("a name that is much too long for a phone's narrow screen.png", pages=1, lines=6)
    shown.until("Done")

    assert page.evaluate("document.documentElement.scrollWidth") == 375
    expect(page.locator("#document")).to_be_visible()
    expect(page.locator("#text")).to_be_hidden()
    page.locator("#panes label", has_text="Text").click()
    expect(page.locator("#text")).to_be_visible()
    expect(page.locator("#document")).to_be_hidden()


def test_everything_can_be_reached_by_keyboard_and_has_a_name(shown: JobPage) -> None:
    """Tab goes through all controls; each has an accessible name."""
    page = shown.page
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"home", "file", "option-pages"} <= reached

    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, a, [role]")]
           .filter((one) => !(one.labels?.length || one.ariaLabel || one.getAttribute("aria-labelledby")
             || one.textContent.trim() || one.closest("label") || one.role === "status" || one.role === "alert"))
           .map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_line_and_its_box_are_marked_together(shown: JobPage) -> None:
    """By pointer in either pane, and by arrow keys in the text."""
    page = shown.page
    shown.choose_file(pages=1, lines=4)
    shown.until("Done")
    marked = """[...document.querySelectorAll('.marked')].map(
        (one) => [one.tagName, [...one.parentNode.children].indexOf(one)])"""

    page.locator("#text .line").nth(2).hover()
    assert page.evaluate(marked) == [["polygon", 2], ["P", 2]]
    page.locator("#document polygon").nth(1).hover()
    assert page.evaluate(marked) == [["polygon", 1], ["P", 1]]
    page.locator("#text .line").nth(0).focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate(marked) == [["polygon", 1], ["P", 1]]
    expect(page.locator("#text .line").nth(1)).to_be_focused()


def test_the_job_is_announced_but_not_every_line(shown: JobPage) -> None:
    """A screen reader hears of the beginning and the end, not of what comes between."""
    page = shown.page
    page.evaluate(
        """() => {
          window.heard = [];
          const region = document.querySelector("#announce");
          new MutationObserver(() => heard.push(region.textContent)).observe(region, { childList: true });
        }"""
    )
    shown.choose_file("minutes.png", pages=3, lines=10)
    shown.until("Done")

    heard = page.evaluate("heard")
    assert heard[-1] == "Done: minutes.png, 30 lines"
    assert len(heard) <= 4


def test_motion_is_left_out_where_it_is_not_wanted(new_page: NewPage, product: Product) -> None:
    """`prefers-reduced-motion`: no animation runs."""
    page = new_page(reduced_motion="reduce")
    shown = JobPage(page, product.url).open()
    shown.choose_file(pages=1, lines=20, pause_seconds=0.1)
    shown.until_lines(3)

    assert page.evaluate("document.getAnimations().filter((one) => one.playState === 'running').length") == 0


def test_the_elements_follow_a_job_on_any_page(shown: JobPage, gate: Path) -> None:
    """Custom elements in a real browser: state in attributes, a bar that grows, text that fills in."""
    shown.tell_story(prompt="once", words=50, gate=gate)
    job = shown.job
    page = shown.page
    page.evaluate(
        """async (job) => {
          const { defineElements } = await import("/client/elements.js");
          defineElements();
          const element = document.createElement("outlast-job");
          element.append(document.createElement("outlast-text"), document.createElement("outlast-progress"));
          element.id = "mine";
          element.job = job;
          window.fired = [];
          for (const type of ["load", "loadend", "error"]) element.addEventListener(type, () => fired.push(type));
          document.body.append(element);
        }""",
        job,
    )

    expect(page.locator("#mine")).to_have_attribute("state", "running")
    expect(page.locator("#mine outlast-text")).to_contain_text("once 3")
    gate.touch()
    expect(page.locator("#mine")).to_have_attribute("state", "succeeded")
    expect(page.locator("#mine outlast-progress")).to_have_attribute("aria-valuenow", "1")
    assert page.evaluate("fired") == ["load", "loadend"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_log_that_was_trimmed_is_shown_from_its_snapshot(shown: JobPage) -> None:
    """Over 10,000 events: the first are gone, so the page builds on the snapshot and reads the outputs page by page."""
    shown.choose_file(pages=25, lines=450, pause_seconds=0)
    shown.until("Done", timeout=120_000)
    job = shown.page.url

    shown.page.goto(job)
    shown.until("Done", timeout=60_000)
    expect(shown.page.locator("#text .line").nth(25 * 450 - 1)).to_be_attached(timeout=60_000)

    assert shown.lines() == expected_lines(25, 450)
    assert "a snapshot takes its place" in shown.log()
    assert shown.tally()["missed"] == 0
