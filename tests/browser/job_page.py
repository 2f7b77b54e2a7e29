"""The page as its user sees it: what can be read on it, and what can be done."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any, Final

from playwright.sync_api import Page, expect

from tests.browser.page_kinds import line

PNG: Final = b"\x89PNG\r\n\x1a\n" + bytes(64)


class JobPage:
    """A page of the product in a browser."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    # --- starting a job -----------------------------------------------------------------------------------------

    def open(self) -> JobPage:
        """Show the start, with its kinds."""
        self.page.goto(f"{self.url}/")
        expect(self.page.locator("#start")).to_be_visible()
        return self

    def choose_file(self, name: str = "scan.png", body: bytes = PNG, **options: object) -> None:
        """Fill in the options of the kind `paper` and choose a file, which starts the job."""
        self.fill(**options)
        self.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": body})

    def drop_file(self, name: str = "scan.png", event: str = "drop", **options: object) -> None:
        """Drop (or paste) a file."""
        self.fill(**options)
        self.page.evaluate(
            """([type, name]) => {
              const carried = new DataTransfer();
              carried.items.add(new File([new Uint8Array(64)], name, { type: "image/png" }));
              const target = type === "drop" ? document.querySelector("#drop") : document;
              const init = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
              target.dispatchEvent(type === "drop" ? new DragEvent(type, init) : new ClipboardEvent(type, init));
            }""",
            [event, name],
        )

    def fill(self, **options: object) -> None:
        """Fill in options by name."""
        # The form comes when the kinds are known; only then can be seen whether some of it is folded away.
        for name in options:
            expect(self.page.locator(f"#option-{name}")).to_be_attached()
        more = self.page.locator("#options details:not([open]) summary")
        if more.count():
            more.click()
        for name, value in options.items():
            self.page.fill(f"#option-{name}", str(value))

    def tell_story(self, **options: object) -> None:
        """Choose the kind `story`, fill it in, submit it."""
        self.page.get_by_role("radio", name="story").check(force=True)
        fails = options.pop("fails", False)
        expect(self.page.locator("#option-prompt")).to_be_visible()
        self.fill(**options)
        if fails:
            self.page.check("#option-fails")
        self.page.click("#submit")

    # --- what it shows ------------------------------------------------------------------------------------------

    @property
    def job(self) -> str:
        """The job's id, which is in the address."""
        self.page.wait_for_url(re.compile(r"\?job=[a-z0-9]{26}$"))
        return self.page.url.rpartition("=")[2]

    def until_lines(self, count: int) -> None:
        """Wait until so many lines have come, each with its box."""
        expect(self.page.locator("#text .line").nth(count - 1)).to_be_visible()
        expect(self.page.locator("#document polygon").nth(count - 1)).to_be_attached()

    def until(self, state: str, timeout: float | None = None) -> None:
        """Wait for a state, by its word on the page."""
        expect(self.page.locator("#job-state")).to_have_text(state, timeout=timeout)

    def until_connected(self, transport: str = "SSE") -> None:
        """Wait until events stream."""
        expect(self.page.locator("#wire-text")).to_have_text(f"Streaming over {transport}")

    def use(self, transport: str) -> None:
        """Switch the transport."""
        self.page.get_by_role("radio", name=transport).check(force=True)
        self.until_connected(transport)

    def tally(self) -> dict[str, int]:
        """The counters of the page, by name."""
        names = self.page.locator("#tally dt").all_text_contents()
        counts = self.page.locator("#tally dd").all_text_contents()
        return {name: int(count.replace(",", "")) for name, count in zip(names, counts, strict=True)}

    def lines(self) -> list[str]:
        """All lines of text, in order."""
        return self.page.locator("#text .line").all_text_contents()

    def log(self) -> str:
        """What the page says has happened."""
        return "\n".join(self.page.locator("#log li").all_text_contents())

    # --- what the gateway says ----------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The job's document."""
        with urllib.request.urlopen(f"{self.url}/v1/jobs/{self.job}", timeout=10) as answer:
            return dict(json.load(answer))

    def logged_events(self) -> int:
        """How many events the job's log has."""
        return int(str(self.document()["last_event_id"]).partition("-")[0])


def expected_lines(pages: int, lines: int) -> list[str]:
    """The text of a `paper` job."""
    return [str(line(page, number, lines)["text"]) for page in range(1, pages + 1) for number in range(lines)]
