"""Takes the README's two pictures of the page anew: a scan that is being read, in light and in dark.

python -m tests.browser.picture
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.browser.conftest import _CHROMIUM, _FLAGS, running_product

ROOT = Path(__file__).parents[2]
_SCAN = ROOT / "examples" / "documents" / "scan.pdf"
_SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def take(browser: Browser, url: str, scheme: Literal["light", "dark"]) -> bytes:
    """The page in the middle of a job that was cut once, as PNG."""
    page = browser.new_page(
        viewport={"width": 1280, "height": 720},
        color_scheme=scheme,
        device_scale_factor=1.25,
        reduced_motion="reduce",  # no line that is half there
    )
    page.goto(f"{url}/")
    page.set_input_files("#file", _SCAN)
    page.locator("#text .line").nth(8).wait_for(timeout=120_000)
    page.click("#cut")
    page.locator("#tally-reconnects", has_text="1").wait_for(timeout=30_000)
    page.locator("#text .line").nth(24).wait_for(timeout=120_000)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    return page.screenshot()


def main() -> None:
    """Start a product that reads scans, and look at it."""
    with tempfile.TemporaryDirectory() as folder, running_product(Path(folder)) as product, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        for scheme in _SCHEMES:
            with Image.open(io.BytesIO(take(browser, product.url, scheme))) as picture:
                picture.convert("RGB").save(ROOT / "docs" / f"page-{scheme}.webp", quality=70)
        browser.close()


if __name__ == "__main__":
    main()
