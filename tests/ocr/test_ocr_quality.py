"""What the real engines make of documents: few wrong characters, whichever way a page lies."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pypdfium2
import pytest
from PIL import Image, ImageDraw, ImageFont

from processors.ocr.engines import tesseract_languages
from tests.ocr.conftest import DOCUMENTS, Jobs, error_rate
from tests.ocr.documents import FONTS, encoded, written

pytestmark = pytest.mark.ocr

TRUTH = (DOCUMENTS / "scan.txt").read_text().split("\f")


def scanned(page: int) -> Image.Image:
    """A page of the sample scan."""
    pdf = pypdfium2.PdfDocument(DOCUMENTS / "scan.pdf")
    try:
        image: Image.Image = pdf[page].render(scale=150 / 72).to_pil().copy()
        return image
    finally:
        pdf.close()


async def test_a_scan_of_several_pages_is_read(reading: Jobs) -> None:
    """Letter, invoice, two columns, and a notice in seven languages that lay upside down."""
    outcome = await reading.read(DOCUMENTS / "scan.pdf")

    assert [page.rotation for page in outcome.pages] == [0, 0, 0, 180]
    for page, truth in zip(outcome.pages, TRUTH, strict=True):
        assert page.source == "ocr"
        assert error_rate(page.text, truth) < 0.01
        assert all(line.confidence is not None and line.confidence > 0.8 for line in page.lines)
    skews = [page.skew for page in outcome.pages]
    assert skews == pytest.approx([1.3, -0.8, -1.9, 0.6], abs=0.25)


async def test_a_photo_that_was_taken_sideways_is_read(reading: Jobs) -> None:
    """From an angle, on a table; the rows of the receipt stay together."""
    outcome = await reading.read(DOCUMENTS / "receipt.jpg")

    [page] = outcome.pages
    assert (page.width, page.height) == (1200, 1600)
    assert error_rate(page.text, (DOCUMENTS / "receipt.txt").read_text()) < 0.01
    assert "TOTAL NOK 310.00" in page.text


async def test_boxes_lie_where_the_lines_are(reading: Jobs) -> None:
    """There is ink in each, and next to none outside of them all."""
    image = scanned(1)

    [page] = (await reading.read(encoded(image, "PNG"))).pages

    ink = np.asarray(image.convert("L")) < 110
    # The spine and the rules of the table are no text.
    ink[:, :60] = False
    covered = np.zeros(ink.shape, np.uint8)
    for line in page.lines:
        mask = np.zeros(ink.shape, np.uint8)
        cv2.fillPoly(mask, [np.array(line.box, np.int32)], 1)
        assert ink[mask == 1].mean() > 0.02
        covered |= mask
    assert ink[covered == 1].sum() > 0.9 * ink.sum()


@pytest.mark.parametrize("degrees", [180, 270, -7, 94])
async def test_a_page_is_read_whichever_way_it_lies(reading: Jobs, degrees: int) -> None:
    """On its side, on its head, askew, or both."""
    # The last page was scanned upside down.
    lying = scanned(3).rotate(180 - degrees, expand=True, fillcolor=(205, 205, 205), resample=Image.Resampling.BICUBIC)

    [page] = (await reading.read(encoded(lying, "PNG"))).pages

    turned, rest = round(degrees / 90) * 90, degrees - round(degrees / 90) * 90
    assert page.rotation == -turned % 360
    assert page.skew == pytest.approx(rest + 0.6, abs=0.3)
    assert error_rate(page.text, TRUTH[3]) < 0.01


async def test_small_print_is_read(reading: Jobs) -> None:
    """Six points: the first look doesn't see its lines apart."""
    font = ImageFont.truetype(FONTS / "liberation" / "LiberationSerif-Regular.ttf", 17)
    sheet = Image.new("L", (1654, 2339), 250)
    words, lines = " ".join(TRUTH[0].split()).split(), []
    while words:
        count = next((n for n in range(len(words), 0, -1) if font.getlength(" ".join(words[:n])) < 1100), 1)
        lines.append(" ".join(words[:count]))
        words = words[count:]
    for at, line in enumerate(lines * 2):
        ImageDraw.Draw(sheet).text((150, 200 + 22 * at), line, font=font, fill=30)

    [page] = (await reading.read(encoded(sheet, "PNG"))).pages

    assert error_rate(page.text, lines * 2) < 0.02


async def test_chinese_is_read(reading: Jobs) -> None:
    """By the same model."""
    outcome = await reading.read(Path(__file__).with_name("chinese.png"), languages=["zh", "en"])

    assert outcome.pages[0].text.split("\n")[:2] == [
        "港口博物馆欢迎您，今天是星期二。",
        "请勿倚靠栏杆，钟声在中午十二点响起。",
    ]


async def test_light_writing_on_a_dark_ground_is_read(reading: Jobs) -> None:
    """As on a screen at night."""
    dark = written("Night shift begins at 22:00\nand ends at dawn.", ink=230, paper=25)

    assert (await reading.read(encoded(dark, "PNG"))).pages[0].text == "Night shift begins at 22:00\nand ends at dawn."


async def test_a_blank_page_has_no_lines_and_no_problem(reading: Jobs) -> None:
    """The back of a sheet."""
    noise = Image.effect_noise((1240, 1754), 6).point(lambda value: value + 100)

    [page] = (await reading.read(encoded(noise, "JPEG"))).pages

    assert (page.lines, page.text, page.problem) == ([], "", None)


async def test_tesseract_reads_a_scan(reading: Jobs) -> None:
    """Where it is installed."""
    pytest.importorskip("tesserocr")
    if "eng" not in tesseract_languages():
        pytest.skip("tesseract has no English here")

    outcome = await reading.read(DOCUMENTS / "scan.pdf", engine="tesseract", languages=["en"])

    assert [page.rotation for page in outcome.pages] == [0, 0, 0, 180]
    for page, truth in zip(outcome.pages[:3], TRUTH, strict=False):
        assert error_rate(page.text, truth) < 0.04
