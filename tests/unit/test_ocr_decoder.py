"""What the decoder makes of files, honest and hostile; here in the test's own process."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from processors.ocr import decoder
from processors.ocr.decoder import Problem, is_good, open_document, sniff
from tests.ocr.documents import encoded, pdf, png_of_size, text_at


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Opens bytes and reads a page: its description and its pixels."""

    def read_page(body: bytes, page: int = 0, text: str = "auto") -> tuple[dict[str, Any], Any]:
        path = tmp_path / "file"
        path.write_bytes(body)
        with closing(open_document(path)[1]) as document:
            said = document.read(page, text, tmp_path / "pixels")
        width, height, stride = said["image"]
        rows = np.fromfile(tmp_path / "pixels", np.uint8).reshape(height, stride)
        return said, rows[:, : 3 * width].reshape(height, width, 3)

    return read_page


@pytest.fixture
def pages(tmp_path: Path) -> Any:
    """Opens bytes and lists the pages."""

    def list_pages(body: bytes) -> list[dict[str, Any]]:
        path = tmp_path / "file"
        path.write_bytes(body)
        with closing(open_document(path)[1]) as document:
            return document.pages()

    return list_pages


def corners() -> Image.Image:
    """An image whose corner at the top left is red and whose others are white."""
    image = Image.new("RGB", (60, 40), "white")
    image.paste("red", (0, 0, 20, 20))
    return image


RED, WHITE = [0, 0, 255], [255, 255, 255]


@pytest.mark.parametrize(
    ("format_", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95, "subsampling": 0}), ("TIFF", {}), ("WEBP", {"lossless": True})],
)
def test_every_format_gives_the_same_pixels(read: Any, format_: str, options: dict[str, Any]) -> None:
    """Blue first, rows from the top."""
    said, pixels = read(encoded(corners(), format_, **options))

    assert (said["width"], said["height"]) == (60, 40)
    assert np.abs(pixels[5, 5].astype(int) - RED).max() < 6
    assert np.abs(pixels[35, 55].astype(int) - WHITE).max() < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "LA", "PA", "I;16", "I", "YCbCr", "LAB"])
def test_every_mode_keeps_ink_dark_and_paper_light(read: Any, mode: str) -> None:
    """Palettes, ink colours, 16 bits, transparency: text stays darker than paper."""
    grey = Image.new("L", (60, 40), 240)
    grey.paste(20, (0, 0, 20, 20))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 16)
    elif mode == "I":
        image = Image.fromarray(np.asarray(grey).astype(np.int32) * 200)
    elif mode == "LAB":
        image = Image.merge("LAB", (grey, Image.new("L", grey.size, 128), Image.new("L", grey.size, 128)))
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else grey.convert(mode)

    _, pixels = read(encoded(image, "PNG" if mode in ("1", "P", "RGBA", "LA") else "TIFF"))

    assert pixels[5, 5].max() < 60
    assert pixels[35, 55].min() > 200


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0)])
def test_what_is_transparent_becomes_a_paper_that_the_ink_shows_on(read: Any, ink: int, paper: int) -> None:
    """White writing on nothing is read on black."""
    image = Image.new("RGBA", (60, 40), (ink, ink, ink, 0))
    image.paste((ink, ink, ink, 255), (0, 0, 20, 20))

    _, pixels = read(encoded(image, "PNG"))

    assert pixels[5, 5].tolist() == [ink] * 3
    assert pixels[35, 55].tolist() == [paper] * 3


@pytest.mark.parametrize(
    ("orientation", "place"), [(1, (5, 5)), (3, (-5, -5)), (6, (5, -5)), (8, (-5, 5)), (2, (5, -5)), (99, (5, 5))]
)
def test_a_phones_tag_turns_the_image(read: Any, orientation: int, place: tuple[int, int]) -> None:
    """EXIF says how the phone was held; a tag without a meaning turns nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation

    said, pixels = read(encoded(corners(), "JPEG", quality=95, subsampling=0, exif=exif))

    assert (said["width"], said["height"]) == ((40, 60) if orientation in (6, 8) else (60, 40))
    assert np.abs(pixels[place].astype(int) - RED).max() < 10


def test_a_tiff_has_as_many_pages_as_frames(read: Any, pages: Any) -> None:
    """Of different sizes, too."""
    body = encoded(Image.new("L", (30, 20), 10), "TIFF", save_all=True, append_images=[Image.new("L", (50, 40), 200)])

    assert pages(body) == [{"width": 30, "height": 20}, {"width": 50, "height": 40}]
    assert read(body, 1)[1].shape == (40, 50, 3)
    assert read(body, 1)[1].min() == 200
    assert read(body, 0)[1].max() == 10


def test_an_animation_is_one_page(pages: Any) -> None:
    """Its first frame."""
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]

    assert len(pages(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))) == 1
    assert len(pages(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))) == 1


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_large_image_is_made_smaller(read: Any, format_: str) -> None:
    """Down to what is read well, with its proportions kept."""
    image = Image.new("L", (6000, 4000), 240)
    image.paste(20, (0, 0, 3000, 2000))

    said, pixels = read(encoded(image, format_))

    assert said["width"] * said["height"] <= decoder.MAX_PAGE_PIXELS
    assert said["width"] / said["height"] == pytest.approx(1.5, rel=0.01)
    assert pixels[50, 50].max() < 40
    assert pixels[-50, -50].min() > 220


@pytest.mark.parametrize(
    "body",
    [
        png_of_size(60_000, 60_000),
        b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + b"\0" * 4 + b"\xfe\x3f\x00" * 2 + b"\0" * 40,
        b"RIFF\x00\x00\x00\x00WEBPVP8L\x0a\x00\x00\x00" + b"\x2f\xfe\xbf\xff\x0f" + b"\0" * 40,
        b"RIFF\x00\x00\x00\x00WEBPVP8 \x0a\x00\x00\x00" + b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + b"\0" * 40,
    ],
)
def test_a_pixel_bomb_is_refused_before_it_is_decoded(pages: Any, body: bytes) -> None:
    """By the size that it claims; a WebP even before it is opened."""
    try:
        [page] = pages(body)
        code = page["problem"]["code"]
    except Problem as problem:
        code = problem.code

    assert code == "page_too_large"


def test_a_cut_off_image_is_unreadable(read: Any) -> None:
    """A half of a scan is not passed off as the whole."""
    noise = Image.effect_noise((400, 400), 90)
    for format_ in ("PNG", "JPEG", "TIFF"):
        body = encoded(noise, format_)
        with pytest.raises(Problem) as caught:
            read(body[: len(body) // 2])
        assert caught.value.code in ("page_unreadable", "input_unreadable")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "input_empty"),
        (b"hello, world", "input_unsupported"),
        (b"GIF89a" + b"\0" * 100, "input_unsupported"),
        (b"PK\x03\x04" + b"\0" * 100, "input_unsupported"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 100, "input_unreadable"),
        (b"\xff\xd8\xff" + b"\0" * 100, "input_unreadable"),
        (b"II*\0" + b"\xff" * 100, "input_unreadable"),
        (b"RIFF\0\0\0\0WEBP", "input_unreadable"),
        (b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 60, "page_unreadable"),
        # Before the encrypted one: in a process that goes on, pdfium keeps the number of the last error.
        (pdf([]), "input_empty"),
        (pdf([b""], encrypted=True), "input_encrypted"),
        (b"%PDF-1.7\n" + b"\xff" * 100, "input_unreadable"),
        (pdf([b""] * (decoder.MAX_PAGES + 1)), "input_too_large"),
    ],
)
def test_what_cannot_be_read_says_why(pages: Any, body: bytes, code: str) -> None:
    """With a code for programs and a word of advice for people."""
    with pytest.raises(Problem) as caught:
        pages(body)

    assert caught.value.code == code
    assert caught.value.detail


def test_a_format_is_told_by_its_first_bytes() -> None:
    """Also behind the junk that readers of PDF have always put up with."""
    assert sniff(b"\xef\xbb\xbf%PDF-1.4\n") == "pdf"
    assert sniff(b"MM\0*" + b"\0" * 8) == "tiff"
    assert sniff(b"RIFF1234WAVE") is None


# --- PDF ----------------------------------------------------------------------------------------------------------

PROSE = [text_at(72, 720 - 20 * line, f"Line {line} of a text layer that is good enough to take.") for line in range(6)]


def test_a_good_text_layer_is_taken_with_its_places(read: Any) -> None:
    """In pixels of the page at 200 dpi; the picture beside it may be smaller."""
    said, _ = read(pdf([b"".join(PROSE)]))

    assert (said["width"], said["height"]) == (1653, 2339)
    assert said["image"][0] == 1200
    assert [phrase[0] for phrase in said["phrases"]] == [
        f"Line {line} of a text layer that is good enough to take." for line in range(6)
    ]
    _, left, top, right, bottom = said["phrases"][0]
    assert left == pytest.approx(72 * 200 / 72, abs=4)
    assert top < (842 - 720) * 200 / 72 < bottom
    assert 700 < right < 1100


def test_a_page_that_is_rotated_has_its_text_where_it_is_seen(read: Any) -> None:
    """/Rotate 90 turns the page clockwise: what stood at the left stands at the top."""
    said, _ = read(pdf([text_at(72, 72, "Turned on its side by the page's own entry.")], rotate=90))

    assert (said["width"], said["height"]) == (2339, 1653)
    _, left, top, right, bottom = said["phrases"][0]
    assert left < 240
    assert top < 240
    assert right - left < bottom - top


@pytest.mark.parametrize("choice", ["auto", "never", "only"])
def test_a_page_without_text_is_rendered_unless_only_text_is_wanted(read: Any, choice: str) -> None:
    """`only` takes even an empty layer."""
    said, pixels = read(pdf([b"0 0 0 rg 100 100 200 200 re f"]), text=choice)

    assert said.get("phrases") == ([] if choice == "only" else None)
    assert pixels.min() < 30
    if choice != "only":
        assert said["image"][:2] == [1654, 2339] or said["image"][:2] == [1653, 2339]


def test_never_renders_a_page_that_has_text(read: Any) -> None:
    """Though the layer is good."""
    assert "phrases" not in read(pdf([b"".join(PROSE)]), text="never")[0]


def test_a_wide_gap_parts_phrases(read: Any) -> None:
    """So that the cells of a table and the lines of two columns can be put in order."""
    row = text_at(72, 700, "The left column says this") + text_at(400, 700, "and the right one that")

    assert [phrase[0] for phrase in read(pdf([row]))[0]["phrases"]] == [
        "The left column says this",
        "and the right one that",
    ]


@pytest.mark.parametrize(
    ("text", "share", "good"),
    [
        ("An ordinary sentence of a letter, with 12 numbers.", 0.0, True),
        ("Ein Satz mit Umlauten: äöü, ß; 中文也可以读取。", 0.0, True),
        ("Page 7", 0.0, False),
        ("Scanned by the office on Monday, 2 February 2026", 0.95, False),
        ("A whole page of words under its scan. " * 20, 0.95, True),
        ("\x01\x02\x03\x04\x05\x06\x07\x08" * 10, 0.0, False),
        ("\ue001\ue002\ue003\ue004" * 10, 0.0, False),
        ('!"#$%&"!#$(%&)"!' * 10, 0.0, False),
        ("Nearly all right, but \ufffd\ufffd\ufffd", 0.0, False),
    ],
)
def test_a_text_layer_is_good_if_it_says_what_the_page_shows(text: str, share: float, good: bool) -> None:
    """Not if a font has no way back to characters, nor if a scan has only a stamp as text."""
    assert is_good(text, share) is good


def test_a_page_of_absurd_size_is_a_problem_of_that_page(pages: Any, read: Any) -> None:
    """The others can be read."""
    [page] = pages(pdf([b""], size="100000 100000"))

    assert page["problem"]["code"] == "page_too_large"
    with pytest.raises(Problem) as caught:
        read(pdf([b""], size="100000 100000"))
    assert caught.value.code == "page_too_large"


def test_a_large_page_is_rendered_at_less_than_200_dpi(read: Any) -> None:
    """A poster of 100 x 50 inches takes no more memory than a sheet."""
    said, pixels = read(pdf([b"0 0 0 rg 0 0 3600 3600 re f"], size="7200 3600"))

    assert said["width"] * said["height"] <= decoder.MAX_PAGE_PIXELS
    assert pixels.shape[:2] == (said["height"], said["width"])


def test_a_text_layer_beyond_all_measure_is_not_taken(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read by OCR, or is a problem where only text is wanted."""
    monkeypatch.setattr(decoder, "MAX_TEXT", 20)

    assert "phrases" not in read(pdf([b"".join(PROSE)]))[0]
    with pytest.raises(Problem) as caught:
        read(pdf([b"".join(PROSE)]), text="only")
    assert caught.value.code == "page_too_large"
