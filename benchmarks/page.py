"""From a dropped photo to its first line on the page, in a real Chromium, with a warm worker.

    python -m benchmarks.page [--runs 5]

The page takes the time itself: from the file's choice to the first line in its document. Beside it stands what a script
measures that POSTs the same file and reads the stream, so the page's own share shows.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import _CHROMIUM, _FLAGS, running_product

_PHOTO = Path(__file__).parents[1] / "examples" / "documents" / "receipt.jpg"
_WATCH = """() => {
  globalThis.firstLine = new Promise((resolve) => {
    const note = () => { globalThis.chosenAt = performance.now(); };
    document.querySelector("#file").addEventListener("change", note, true);
    new MutationObserver((_, observer) => {
      if (document.querySelector("#text .line")) { observer.disconnect(); resolve(performance.now()); }
    }).observe(document.body, { childList: true, subtree: true });
  });
}"""


def on_the_page(page: Page, url: str) -> float:
    """Seconds from choosing the file to its first line."""
    page.goto(f"{url}/")
    page.wait_for_selector("#start", state="visible")
    page.evaluate(_WATCH)
    page.set_input_files("#file", _PHOTO)
    return float(page.evaluate("async () => (await globalThis.firstLine) - globalThis.chosenAt")) / 1000


def in_a_script(url: str) -> float:
    """Seconds from the POST to the first output in its stream."""
    headers = {"Content-Type": "image/jpeg", "Accept": "text/event-stream"}
    began = time.perf_counter()
    request = urllib.request.Request(f"{url}/v1/kinds/ocr/jobs", _PHOTO.read_bytes(), headers)
    with urllib.request.urlopen(request) as stream:
        for line in stream:
            if b'"type":"output"' in line and b'"lines"' in line:
                return time.perf_counter() - began
    raise RuntimeError("the stream had no line")


def main() -> None:
    """Measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    pages, scripts = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_product(Path(folder) / "data") as product,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        page = browser.new_page()
        for run in range(args.runs + 1):
            taken = on_the_page(page, product.url), in_a_script(product.url)
            if run:
                # The first one warmed the engine and the browser.
                pages.append(taken[0])
                scripts.append(taken[1])
        browser.close()
    print(f"{platform.platform()}, Python {platform.python_version()}, {args.runs} runs")
    for name, times in (("on the page", pages), ("in a script", scripts)):
        print(f"first line {name:12} median {statistics.median(times):5.2f} s, slowest {max(times):5.2f} s")
    print("goal: under 2 s on the page")


if __name__ == "__main__":
    main()
