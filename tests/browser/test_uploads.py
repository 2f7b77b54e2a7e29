"""Large files from a real Chromium: in parts, through cuts, with a bar that never goes back."""

from __future__ import annotations

import hashlib
import urllib.request

import pytest

from tests.browser.conftest import Line, NewPage, Product, wait_for

pytestmark = pytest.mark.browser

SIZE = 6_000_000
# A file whose every 4 bytes tell their place, so that a part in the wrong place would be seen.
_SUBMIT = """async (size) => {
  const { GatewayClient } = await import("/client/index.js");
  const words = Uint32Array.from({ length: size / 4 }, (_, at) => at);
  const blob = new Blob([words], { type: "application/pdf" });
  window.reports = [];
  window.submitted = new GatewayClient(undefined, { partBytes: 1_000_000 }).submit("paper", {
    input: { pages: 1, lines: 1 },
    files: [{ name: "large.pdf", blob }],
    onUploadProgress: ({ loaded, total }) => window.reports.push([loaded, total]),
  });
  window.submitted.catch(() => {});
}"""


def test_a_large_file_survives_three_cuts_and_the_bar_never_goes_back(
    new_page: NewPage, product: Product, line: Line
) -> None:
    """XMLHttpRequest reports what left the browser; after a cut the gateway says what came, and it goes on there."""
    page = new_page()
    page.goto(line.url)
    line.throttle(4_000_000)
    page.evaluate(_SUBMIT, SIZE)

    for mark in (1_000_000, 2_500_000, 4_000_000):
        wait_for(lambda mark=mark: page.evaluate("window.reports.at(-1)?.[0] ?? 0") > mark, 20, f"{mark} bytes")  # type: ignore[misc]
        assert line.cut() >= 1
    job = page.evaluate("window.submitted")

    reports = page.evaluate("window.reports")
    assert [loaded for loaded, _ in reports] == sorted({loaded for loaded, _ in reports})
    assert reports[-1] == [SIZE, SIZE]
    [file] = job["files"]
    with urllib.request.urlopen(product.url + file["url"], timeout=10) as answer:
        digest = hashlib.sha256(answer.read()).hexdigest()
    expected = b"".join(at.to_bytes(4, "little") for at in range(SIZE // 4))
    assert digest == hashlib.sha256(expected).hexdigest()
