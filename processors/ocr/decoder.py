"""Decodes files that nobody vouches for, in a process of its own: a script that `pages.py` starts.

It imports nothing of ours, so that it starts fast and that what a hostile file does to it harms nobody: its memory is
limited, a signal ends a request that takes too long, and pdfium, which is not thread-safe, has only one thread.

One JSON object per line comes in and one goes out:

    {"open": PATH}                                 -> {"pages": [{"width", "height"} or {"problem"}], "format": NAME}
    {"read": PAGE, "document": N, "text": CHOICE,  -> {"width", "height", "image": [w, h, stride], "phrases": [...]?}
     "pixels": PATH}                                  or {"problem": {"code", "detail"}}

Documents are counted from 0 as they were opened, and pages likewise. The pixels go into a file, 8 bits each for blue,
green and red. `phrases` is there if the page's text layer is used: [text, left, top, right, bottom] in pixels of a
page of `width` by `height`; its image is smaller then.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from PIL import Image

# What a page is read at: 200 dpi is what the engines need for print of 8 points.
DPI: Final = 200
# A page in memory has 3 bytes for each of these: A4 at 300 dpi, or A3 at 200, fits as it is; what is larger is reduced.
MAX_PAGE_PIXELS: Final = 12_000_000
MAX_PAGE_SIDE: Final = 8192
# While it is decoded, an image has 4 bytes for each of these, and up to twice that for a moment.
MAX_IMAGE_PIXELS: Final = 80_000_000
# The largest page of a PDF, in points: 200 inches (ISO 32000-1, annex C.2).
MAX_PDF_SIDE: Final = 14_400
MAX_PAGES: Final = 1000
# A picture that is only looked at.
PREVIEW_WIDTH: Final = 1200
# A page with more characters is no page; its lines would not fit into an answer.
MAX_TEXT: Final = 60_000
MEMORY_BYTES: Final = 2 * 1024**3
# The parent asks for no more than this; the signal is for the case that the parent is gone.
REQUEST_SECONDS: Final = 120

_FORMATS: Final = (("png", b"\x89PNG\r\n\x1a\n"), ("jpeg", b"\xff\xd8\xff"), ("tiff", b"II*\0"), ("tiff", b"MM\0*"))
_KNOWN: Final = "PDF, PNG, JPEG, TIFF or WebP"


class Problem(Exception):
    """A file or a page that can't be read: what is wrong and what to do about it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Document(Protocol):
    """An open file."""

    def pages(self) -> list[dict[str, Any]]:
        """The pages' sizes or problems, found without decoding any."""

    def read(self, page: int, text: str, pixels: Path) -> dict[str, Any]:
        """Write a page's pixels, counted from 0, and describe it."""

    def close(self) -> None:
        """Let go of the file."""


def sniff(head: bytes) -> str | None:
    """The format that a file's first bytes show; what the client called it is worth nothing."""
    for name, magic in _FORMATS:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    # Readers of PDF accept some junk before the header; the first KiB is customary.
    return "pdf" if b"%PDF-" in head[:1024] else None


def open_document(path: Path) -> tuple[str, Document]:
    """Open a file of any format that is known here."""
    with path.open("rb") as file:
        head = file.read(2048)
    if not head:
        raise Problem("input_empty", "The file is empty; upload it again.")
    name = sniff(head)
    if name is None:
        raise Problem("input_unsupported", f"The file is none of {_KNOWN}; convert it to one of these.")
    return name, Pdf(path) if name == "pdf" else Pictures(path, name, head)


def _write(path: Path, pixels: Any) -> None:
    try:
        path.write_bytes(pixels)
    except OSError as error:
        raise Problem("page_failed", "The worker has no room for the page's pixels; submit it again.") from error


# --- images -------------------------------------------------------------------------------------------------------


class Pictures:
    """An image file: one page, or as many as a TIFF has. An animation counts as its first frame."""

    def __init__(self, path: Path, format_: str, head: bytes) -> None:
        from PIL import Image  # noqa: PLC0415 - a PDF doesn't need it; it takes 40 ms to import

        # Sizes are checked below, before anything is decoded; Pillow's own limit would be another one.
        Image.MAX_IMAGE_PIXELS = None
        self._format = format_
        if format_ == "webp":
            # Its decoder takes memory for the whole canvas when the file is opened.
            _check_size(*_webp_size(head))
        try:
            self._image = Image.open(path, formats=[format_.upper()])
        except Exception as error:
            raise Problem(
                "input_unreadable", f"The {_title(format_)} file is broken; save or scan it again."
            ) from error

    def pages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with contextlib.suppress(EOFError):
            while True:
                try:
                    self._seek(len(found))
                    _check_size(*self._image.size)
                    found.append({"width": self._image.width, "height": self._image.height})
                except Problem as problem:
                    found.append({"problem": {"code": problem.code, "detail": problem.detail}})
                    if problem.code == "page_unreadable":
                        # Where the next page begins stood in this one.
                        break
                if len(found) > MAX_PAGES:
                    raise Problem("input_too_large", f"The file has more than {MAX_PAGES} pages; split it.")
        return found

    def _seek(self, page: int) -> None:
        if self._format != "tiff":
            if page:
                raise EOFError
            return
        try:
            self._image.seek(page)
        except EOFError:
            raise
        except Exception as error:
            raise Problem("page_unreadable", "The page's entry in the TIFF file is broken; scan it again.") from error

    def read(self, page: int, text: str, pixels: Path) -> dict[str, Any]:
        from PIL import ImageOps  # noqa: PLC0415 - as above

        self._seek(page)
        _check_size(*self._image.size)
        try:
            if self._format == "jpeg":
                # Decodes to a half, a quarter or an eighth right away where that is still large enough.
                self._image.draft(None, _reduced(*self._image.size))
            self._image.load()
            image = self._image.copy() if self._format == "tiff" else self._image
            image.thumbnail(_reduced(*image.size), reducing_gap=2.0) if image.mode in _REDUCIBLE else None
            # Before the conversion, which drops the tag; a tag that can't be read turns nothing.
            with contextlib.suppress(Exception):
                image = ImageOps.exif_transpose(image)
            image = _to_rgb(image)
            image.thumbnail(_reduced(*image.size))
        except MemoryError:
            raise Problem(
                "page_too_large", "The image needs too much memory; scan it with fewer dots per inch."
            ) from None
        except Exception as error:
            raise Problem("page_unreadable", "The image is cut off or broken; save or scan it again.") from error
        width, height = image.size
        _write(pixels, image.tobytes("raw", "BGR"))
        return {"width": width, "height": height, "image": [width, height, 3 * width]}

    def close(self) -> None:
        self._image.close()


# Modes that can be made smaller as they are; the others have a palette, or one bit, or 16.
_REDUCIBLE: Final = frozenset({"L", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"})


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's as 8-bit RGB, with what shows through as paper."""
    from PIL import Image, ImageStat  # noqa: PLC0415 - as above

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = image.convert("F" if image.mode == "F" else "I")
        low, high = image.getextrema()
        assert isinstance(low, int | float)
        assert isinstance(high, int | float)
        # 16 bits hold 12 or 14 in many scans, and then a straight division leaves the page dark.
        scale = 255 / ((high - low) or 1)
        return image.point(lambda value: value * scale - low * scale).convert("L").convert("RGB")
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "P", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        ink = image.convert("L")
        # Light writing on nothing is meant for a dark page.
        light = ImageStat.Stat(ink, alpha.point(lambda value: 255 if value > 127 else 0))
        is_light = bool(light.count[0]) and light.mean[0] > 160
        paper = Image.new("RGBA", image.size, (0, 0, 0, 255) if is_light else (255, 255, 255, 255))
        paper.alpha_composite(image)
        return paper.convert("RGB")
    return image.convert("RGB")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height from a WebP's first chunk (RFC 9649, sections 2.5 to 2.7)."""
    chunk, body = head[12:16], head[20:30]
    if len(body) == 10 and chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if len(body) == 10 and chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if len(body) == 10 and chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise Problem("input_unreadable", "The WebP file is broken; save it again.")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise Problem(
            "page_too_large",
            f"The image has {width} x {height} pixels, more than {MAX_IMAGE_PIXELS // 1_000_000} million; scan it with"
            " fewer dots per inch, or make it smaller.",
        )
    if width < 1 or height < 1:
        raise Problem("page_unreadable", "The image has no pixels; save or scan it again.")


def _reduced(width: int, height: int) -> tuple[int, int]:
    """The size at which a page is read."""
    factor = min(1.0, MAX_PAGE_SIDE / max(width, height), (MAX_PAGE_PIXELS / (width * height)) ** 0.5)
    return max(1, int(width * factor)), max(1, int(height * factor))


def _title(format_: str) -> str:
    return {"webp": "WebP"}.get(format_, format_.upper())


# --- PDF ----------------------------------------------------------------------------------------------------------


class Pdf:
    """A PDF: its pages are rendered, or their text layer is taken."""

    def __init__(self, path: Path) -> None:
        import pypdfium2  # noqa: PLC0415 - an image doesn't need it; it takes 60 ms to import
        import pypdfium2.raw  # noqa: PLC0415

        self._pdfium = pypdfium2
        self._raw = pypdfium2.raw
        try:
            self._pdf = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError as error:
            # pdfium's own numbers: 4 a password is missing, 5 a way of encryption that it doesn't know, 0 no page.
            code = getattr(error, "err_code", None)
            if code == 0:
                raise Problem("input_empty", _NO_PAGES) from error
            if code in (4, 5):
                raise Problem(
                    "input_encrypted", "The PDF is protected by a password; save it without one and submit it again."
                ) from error
            raise Problem("input_unreadable", "The PDF is broken; save or scan it again.") from error
        # Without this the fields of a form are rendered empty.
        with contextlib.suppress(Exception):
            self._pdf.init_forms()

    def pages(self) -> list[dict[str, Any]]:
        count = len(self._pdf)
        if count == 0:
            raise Problem("input_empty", _NO_PAGES)
        if count > MAX_PAGES:
            raise Problem("input_too_large", f"The PDF has {count} pages, more than {MAX_PAGES}; split it.")
        found: list[dict[str, Any]] = []
        for number in range(count):
            try:
                width, height = self._pdf.get_page_size(number)
                _check_pdf_size(width, height)
                found.append({"width": round(width * DPI / 72), "height": round(height * DPI / 72)})
            except Problem as problem:
                found.append({"problem": {"code": problem.code, "detail": problem.detail}})
            except Exception:  # noqa: BLE001 - pdfium's errors say nothing more than that
                found.append({"problem": {"code": "page_unreadable", "detail": _BROKEN_PAGE}})
        return found

    def read(self, page: int, text: str, pixels: Path) -> dict[str, Any]:
        try:
            one = self._pdf[page]
            width, height = one.get_size()
            _check_pdf_size(width, height)
            scale = DPI / 72
            size = _reduced(max(1, round(width * scale)), max(1, round(height * scale)))
            scale = min(scale, size[0] / width, size[1] / height)
            phrases = None if text == "never" else self._phrases(one, size, wanted=text == "only")
            if phrases is not None:
                scale = min(scale, PREVIEW_WIDTH / width)
            bitmap = one.render(scale=scale, fill_color=(255, 255, 255, 255))
            # Told to render without transparency, pdfium gives three bytes a pixel, blue first.
            if bitmap.mode != "BGR":
                raise ValueError(f"rendered as {bitmap.mode}")
            _write(pixels, bitmap.buffer)
            image = [bitmap.width, bitmap.height, bitmap.stride]
        except MemoryError:
            raise Problem("page_too_large", "The page needs too much memory; save it in a simpler form.") from None
        except Problem:
            raise
        except Exception as error:
            raise Problem("page_unreadable", _BROKEN_PAGE) from error
        if phrases is None:
            size = (bitmap.width, bitmap.height)
        answer: dict[str, Any] = {"width": size[0], "height": size[1], "image": image}
        if phrases is not None:
            answer["phrases"] = phrases
        bitmap.close()
        one.close()
        return answer

    def close(self) -> None:
        self._pdf.close()

    def _phrases(self, page: Any, size: tuple[int, int], *, wanted: bool) -> list[list[Any]] | None:
        """The phrases of the text layer; None if there is no good one, unless it is wanted as it is."""
        layer = page.get_textpage()
        count = layer.count_chars()
        if count > MAX_TEXT:
            if wanted:
                raise Problem("page_too_large", f"The page's text layer has {count} characters; split the page.")
            return None
        characters = [self._raw.FPDFText_GetUnicode(layer, index) for index in range(count)]
        if not wanted and not is_good(_decode(characters), self._picture_share(page)):
            return None
        return self._gather(page, layer, characters, size)

    def _picture_share(self, page: Any) -> float:
        """How much of the page is covered by its largest picture; of a scan, nearly all."""
        width, height = page.get_size()
        largest = 0.0
        for at, one in enumerate(page.get_objects(filter=[self._raw.FPDF_PAGEOBJ_IMAGE], max_depth=3)):
            left, bottom, right, top = one.get_bounds()
            largest = max(largest, (right - left) * (top - bottom))
            if at > 200:
                break
        return float(largest / (width * height))

    def _gather(self, page: Any, layer: Any, characters: list[int], size: tuple[int, int]) -> list[list[Any]]:
        """Join the layer's characters to phrases: up to the end of a line, or a gap wider than the line is high."""
        phrases: list[list[Any]] = []
        current: list[int] = []
        box: list[int] = []
        rectangle = self._raw.FS_RECTF()

        def finish() -> None:
            text = " ".join(_decode(current).split())
            # Some fonts write their spaces as control characters; JSON and XML are better off without.
            text = "".join(one for one in text if unicodedata.category(one) != "Cc")
            if text:
                phrases.append([text, *box])
            current.clear()
            box.clear()

        for index, character in enumerate(characters):
            if character in (10, 13):
                finish()
                continue
            if not self._raw.FPDFText_GetLooseCharBox(layer, index, rectangle):
                continue
            one = self._on_page(page, rectangle, size)
            if character == 32:
                current.append(character)
                continue
            if box:
                height = max(box[3] - box[1], 1)
                if one[0] - box[2] > 1.5 * height or one[0] < box[0] - height or one[1] > box[3] or one[3] < box[1]:
                    finish()
            current.append(character)
            box[:] = (
                [min(box[0], one[0]), min(box[1], one[1]), max(box[2], one[2]), max(box[3], one[3])] if box else one
            )
        finish()
        return phrases

    def _on_page(self, page: Any, rectangle: Any, size: tuple[int, int]) -> list[int]:
        """A rectangle of the page's own space as left, top, right, bottom in pixels, with the page's rotation."""
        xs, ys = [], []
        x, y = ctypes.c_int(), ctypes.c_int()
        for corner in ((rectangle.left, rectangle.top), (rectangle.right, rectangle.bottom)):
            self._raw.FPDF_PageToDevice(page, 0, 0, *size, 0, *corner, x, y)
            xs.append(min(max(x.value, 0), size[0]))
            ys.append(min(max(y.value, 0), size[1]))
        return [min(xs), min(ys), max(xs), max(ys)]


_NO_PAGES: Final = "The PDF has no pages; save or scan it again."
_BROKEN_PAGE: Final = "The page can't be rendered: its part of the PDF is broken; save or scan it again."


def _check_pdf_size(width: float, height: float) -> None:
    if not 0 < width <= MAX_PDF_SIDE or not 0 < height <= MAX_PDF_SIDE:
        raise Problem(
            "page_too_large",
            f"The page measures {width:.0f} x {height:.0f} points; a PDF's page has at most {MAX_PDF_SIDE} a side.",
        )


def _decode(characters: list[int]) -> str:
    """pdfium's UTF-16 units as text; it marks a hyphen at a line's end with the control character 2."""
    units = (chr(0x2D if one == 2 else one) for one in characters if one <= 0x10FFFF)
    return "".join(units).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def is_good(text: str, picture_share: float) -> bool:
    """Whether a text layer says what the page shows.

    It doesn't where a font has no way back to characters, and where a scan has nothing but a stamp as text.
    """
    seen = [character for character in text if not character.isspace()]
    if len(seen) < (200 if picture_share > 0.5 else 10):
        return False
    categories = [unicodedata.category(character) for character in seen]
    broken = sum(one in ("Cc", "Cn", "Co", "Cs") for one in categories) + seen.count("\ufffd")
    words = sum(one[0] in "LN" for one in categories)
    return broken <= 0.02 * len(seen) and words >= 0.5 * len(seen)


# --- the loop -----------------------------------------------------------------------------------------------------


def limit() -> None:
    """Limit what a hostile file can take. Where the system has no such limits, the parent's clock is what is left."""
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return
    for what, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        # Some systems have the constant and refuse the value.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (value, value))


def answer(request: dict[str, Any], documents: list[Document]) -> dict[str, Any]:
    """Do what a request asks."""
    document: Document
    try:
        if "open" in request:
            name, document = open_document(Path(request["open"]))
            documents.append(document)
            return {"format": name, "pages": document.pages()}
        document = documents[request["document"]]
        return document.read(request["read"], request["text"], Path(request["pixels"]))
    except Problem as problem:
        said = {"problem": {"code": problem.code, "detail": problem.detail}}
        return said | ({"cause": repr(problem.__cause__)} if problem.__cause__ is not None else {})
    except MemoryError:
        return {"problem": {"code": "input_too_large", "detail": "The file needs too much memory; make it smaller."}}
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises is about the file
        return {"problem": {"code": "input_unreadable", "detail": "The file is broken."}, "cause": repr(error)}


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    limit()
    documents: list[Document] = []
    alarm = getattr(signal, "alarm", None)
    for line in sys.stdin.buffer:
        if alarm is not None:
            alarm(REQUEST_SECONDS)
        said = json.dumps(answer(json.loads(line), documents))
        if alarm is not None:
            alarm(0)
        sys.stdout.buffer.write(said.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
