"""Plain text and hOCR of pages."""

from __future__ import annotations

from xml.etree import ElementTree

from processors.ocr.document import Line, Page, PageProblem
from processors.ocr.formats import hocr, plain_text

LINES = [
    Line(text="Bread & <butter>", box=((100, 50), (420, 50), (420, 80), (100, 80)), confidence=0.987),
    Line(text="leans", box=((100, 100), (300, 110), (299, 140), (99, 130)), confidence=None),
]
PAGES = [
    Page(page=1, width=800, height=600, source="ocr", lines=LINES, text="Bread & <butter>\nleans"),
    Page(page=2, problem=PageProblem(code="page_unreadable", detail="broken")),
    Page(page=3, width=800, height=600, source="text-layer", text="end", lines=[LINES[1]]),
]
SPAN = "{http://www.w3.org/1999/xhtml}span"


def test_plain_text_has_a_form_feed_between_pages() -> None:
    """Also around a page without text, so that pages can be counted."""
    assert plain_text(PAGES) == "Bread & <butter>\nleans\n\f\fend\n"
    assert plain_text([]) == ""


def test_hocr_is_xml_with_a_box_for_each_page_line_and_word() -> None:
    """In the classes and properties that hOCR 1.2 names."""
    root = ElementTree.fromstring(hocr(PAGES, "rapidocr"))

    by_class: dict[str, list[ElementTree.Element]] = {}
    for element in root.iter():
        by_class.setdefault(element.get("class", ""), []).append(element)
    assert [page.get("title") for page in by_class["ocr_page"]] == [
        "bbox 0 0 800 600; ppageno 0",
        "bbox 0 0 0 0; ppageno 1",
        "bbox 0 0 800 600; ppageno 2",
    ]
    assert [line.get("title") for line in by_class["ocr_line"]][:2] == [
        "bbox 100 50 420 80",
        "bbox 99 100 300 140; textangle -2.9",
    ]
    assert [(word.text, word.get("title")) for word in by_class["ocrx_word"]][:4] == [
        ("Bread", "bbox 100 50 200 80; x_wconf 99"),
        ("&", "bbox 220 50 240 80; x_wconf 99"),
        ("<butter>", "bbox 260 50 420 80; x_wconf 99"),
        ("leans", "bbox 99 100 300 140"),
    ]
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_hocr_keeps_words_apart() -> None:
    """A program that throws the tags away still has the text."""
    root = ElementTree.fromstring(hocr(PAGES, "rapidocr"))

    line = next(element for element in root.iter(SPAN) if element.get("class") == "ocr_line")
    assert "".join(line.itertext()) == "Bread & <butter>"


def test_hocr_has_no_character_that_xml_forbids() -> None:
    """A hostile text layer may hold any."""
    nasty = Line(text="a\x00b\x0bc\ud800d\uffff", box=LINES[0].box, confidence=1)

    text = hocr([Page(page=1, lines=[nasty])], "rapid<ocr>")

    line = next(element for element in ElementTree.fromstring(text).iter(SPAN) if element.get("class") == "ocr_line")
    assert "".join(line.itertext()) == "a\ufffdb c\ufffdd\ufffd"
