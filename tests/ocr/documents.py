"""Small documents that tests read: PDFs written by hand, and pages that a make-believe engine can read."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = Path("/usr/share/fonts/truetype")


def pdf(
    pages: Sequence[bytes], *, size: str = "595 842", rotate: int = 0, encrypted: bool = False, extra: bytes = b""
) -> bytes:
    """A PDF with a content stream per page; F1 is Helvetica."""
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for at, content in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size}] /Rotate {rotate} /Contents {5 + 2 * at} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content))
    body, places = io.BytesIO(b""), []
    body.write(b"%PDF-1.7\n" + extra)
    for number, text in enumerate(objects, 1):
        places.append(body.tell())
        body.write(b"%d 0 obj\n%b\nendobj\n" % (number, text))
    start = body.tell()
    body.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    for place in places:
        body.write(b"%010d 00000 n \n" % place)
    # A user password that nobody knows: what these would have to be for the empty one, they are not.
    locked = b" /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%b> /U <%b> >> /ID [<00> <00>]" % (
        b"41" * 32,
        b"42" * 32,
    )
    body.write(
        b"trailer << /Size %d /Root 1 0 R%b >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, locked if encrypted else b"", start)
    )
    return body.getvalue()


def text_at(x: int, y: int, text: str, size: int = 12) -> bytes:
    """A piece of a content stream that writes text; y grows upwards."""
    escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)").encode("cp1252")
    return b"BT /F1 %d Tf %d %d Td (%b) Tj ET\n" % (size, x, y, escaped)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size, and has no pixels worth the name."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x00\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def written(text: str, *, size: tuple[int, int] = (900, 260), ink: int = 20, paper: int = 250) -> Image.Image:
    """A grey image with lines of large print."""
    image = Image.new("L", size, paper)
    font = ImageFont.truetype(FONTS / "dejavu" / "DejaVuSans.ttf", 44)
    ImageDraw.Draw(image).multiline_text((50, 40), text, font=font, fill=ink, spacing=24)
    return image


# A page for the make-believe engine: its lines are stripes, each of a grey that says page and line.
STRIPES = 6


def striped(page: int) -> Image.Image:
    """Page 1 to 24 as the make-believe engine reads it."""
    pixels = np.full((40 + 40 * STRIPES, 400), 255, np.uint8)
    for line in range(STRIPES):
        pixels[30 + 40 * line : 60 + 40 * line, 20:380] = page * 10 + line
    return Image.fromarray(pixels)


def striped_tiff(pages: int) -> bytes:
    """Striped pages as a TIFF."""
    first, *others = (striped(page) for page in range(1, pages + 1))
    return encoded(first, "TIFF", save_all=True, append_images=others)
