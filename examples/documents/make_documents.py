"""Make the sample documents in this folder: a scan of several pages, one of an invoice, and a photo of a receipt.

    python examples/documents/make_documents.py

The text is our own and stands below; what a scanner does to it (skew, noise, uneven light, a page fed upside down) is
drawn from a seeded generator, so that the same versions of the libraries make the same files. `scan.txt` and
`receipt.txt` hold what a perfect reader would read. Needs the DejaVu and Liberation fonts (`fonts-dejavu`,
`fonts-liberation` on Debian).
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FOLDER: Final = Path(__file__).resolve().parent
FONTS: Final = Path("/usr/share/fonts/truetype")
# A4 at 150 dpi: what a quick office scan is.
WIDTH, HEIGHT = 1240, 1754
Pixels = NDArray[np.uint8]


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font by its file's name."""
    family = "dejavu" if name.startswith("DejaVu") else "liberation"
    return ImageFont.truetype(FONTS / family / f"{name}.ttf", size)


@dataclass
class Sheet:
    """A page while it is written: the paper, and what stands on it in reading order."""

    image: Image.Image = field(default_factory=lambda: Image.new("L", (WIDTH, HEIGHT), 250))
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.image)

    def write(
        self, x: float, y: float, text: str, typeface: ImageFont.FreeTypeFont, *, ink: int = 40, right: bool = False
    ) -> None:
        """Put a piece of text on the paper; it ends at x if `right`."""
        if right:
            x -= typeface.getlength(text)
        self.draw.text((x, y), text, font=typeface, fill=ink)

    def line(self, x: float, y: float, text: str, typeface: ImageFont.FreeTypeFont, *, ink: int = 40) -> None:
        """Put a whole line on the paper."""
        self.write(x, y, text, typeface, ink=ink)
        self.lines.append(text)

    def paragraph(
        self, x: float, y: float, text: str, typeface: ImageFont.FreeTypeFont, *, width: float, leading: int
    ) -> float:
        """Set a paragraph in lines of at most `width` pixels; returns where the next one may begin."""
        words = text.split()
        while words:
            count = 1
            while count < len(words) and typeface.getlength(" ".join(words[: count + 1])) <= width:
                count += 1
            self.line(x, y, " ".join(words[:count]), typeface)
            words = words[count:]
            y += leading
        return y

    def rule(self, x: float, y: float, width: float, *, thickness: int = 2) -> None:
        """Draw a horizontal line."""
        self.draw.rectangle((x, y, x + width, y + thickness - 1), fill=70)


# --- the pages ----------------------------------------------------------------------------------------------------

LETTER: Final = (
    "Dear Ms Okafor,",
    "Thank you for lending us the tide tables of 1893 and the three log books of the lightship Margarethe. They"
    " arrived on Tuesday in good order, dry and without a single loose page, which after a journey of 640 km says"
    " something for the box that your carpenter built.",
    "Our reading room will scan every page at 300 dpi before the exhibition opens on 14 March. The books are then"
    " shown behind glass at 50 lux, at 18 °C and 45 % humidity; nobody turns a leaf but Mr Lindqvist, who has done"
    " so for thirty-one years and still counts aloud.",
    "Two questions remain. Who pays for the insurance (we had agreed on £12,500 for the set, policy HM-2291/B), and"
    " may we print page 77, the one with the drawing of the storm, on a postcard? A short note to"
    " archive@harbour-museum.example is enough.",
    "We expect to return everything by 30 September. Should the weather on the ferry be what it was last autumn, we"
    " will wait a week rather than risk it.",
    "With kind regards,",
)


def letter() -> Sheet:
    """A letter: long lines of proportional type."""
    sheet = Sheet()
    head, small, body = font("DejaVuSerif-Bold", 38), font("LiberationSans-Regular", 21), font("DejaVuSerif", 25)
    sheet.line(120, 110, "Harbour Museum", head)
    sheet.line(120, 166, "Quay 4, Nordhaven · Telephone 0555 013 77 20", small, ink=70)
    sheet.rule(120, 204, 1000)
    sheet.line(120, 290, "Nordhaven, 6 February 2026", body)
    y = 380.0
    for text in LETTER:
        y = sheet.paragraph(120, y, text, body, width=990, leading=40) + 30
    sheet.line(120, y + 70, "Ingrid Solberg", font("DejaVuSerif-Italic", 32))
    sheet.line(120, y + 124, "Keeper of the collection", body)
    return sheet


INVOICE: Final = (
    ("1", "Glass case, 140 x 60 x 40 cm", "2", "845.00", "1,690.00"),
    ("2", "Book cradle, adjustable, acrylic", "4", "38.50", "154.00"),
    ("3", "LED strip 2700 K, dimmable, 5 m", "6", "27.90", "167.40"),
    ("4", "Humidity logger HL-30 with probe", "3", "119.00", "357.00"),
    ("5", "Silica gel, cassettes of 500 g", "12", "9.75", "117.00"),
    ("6", "Museum cardboard 1.5 mm, acid-free", "25", "6.20", "155.00"),
    ("7", "Screws M4 x 20, brass, box of 100", "1", "14.80", "14.80"),
    ("8", "Delivery to Quay 4, second floor", "1", "96.00", "96.00"),
)


def invoice() -> Sheet:
    """An invoice: a table with numbers, which is read row by row."""
    sheet = Sheet()
    head, body, bold = (
        font("LiberationSans-Bold", 40),
        font("LiberationSans-Regular", 25),
        font("LiberationSans-Bold", 25),
    )
    sheet.line(120, 110, "Brandt & Sons, Showcase Makers", head)
    sheet.line(120, 180, "14 Lime Street, Westerholm · VAT NO 918 273 645", body)
    sheet.line(120, 290, "INVOICE 2026-0417", bold)
    sheet.line(120, 332, "Date: 19 February 2026", body)
    sheet.line(120, 374, "Terms: 30 days net, 2 % discount within 10 days", body)
    columns = ("Pos", "Article", "Qty", "Price", "Amount")
    places = (120, 200, 800, 950, 1120)
    y = 470
    for row, typeface in ((columns, bold), *((row, body) for row in INVOICE)):
        for at, (x, text) in enumerate(zip(places, row, strict=True)):
            sheet.write(x, y, text, typeface, right=at >= 2)
        sheet.lines.append(" ".join(row))
        sheet.rule(120, y + 40, 1000, thickness=2 if typeface is bold else 1)
        y += 62
    y += 30
    for label, amount, typeface in (
        ("Subtotal", "2,751.20", body),
        ("VAT 25 %", "687.80", body),
        ("Total EUR", "3,439.00", bold),
    ):
        sheet.write(760, y, label, typeface)
        sheet.write(1120, y, amount, typeface, right=True)
        sheet.lines.append(f"{label} {amount}")
        y += 48
    y = int(
        sheet.paragraph(
            120,
            y + 70,
            "Please pay to the account NO93 8601 1117 947, BIC BRSHNO22, and name the number of the invoice. Goods"
            " remain ours until they are paid for; scratches must be reported within eight days of delivery.",
            body,
            width=1000,
            leading=40,
        )
    )
    sheet.line(120, y + 60, "Questions? billing@brandt-showcases.example or extension 38.", body)
    return sheet


MINUTES_LEFT: Final = (
    "The board met on Monday at half past five in the net loft. Present were nine of eleven members; Mr Aalto and"
    " Ms Dunne sent their apologies.",
    "The treasurer reported a balance of 48,310 crowns, about four thousand more than a year ago. Most of it came"
    " from the summer boat trips, which sold out on 23 of 26 days.",
    "The roof above the workshop leaks again. A new one of zinc would cost 91,000, patching it 7,400. The board voted"
    " six to three for the patch, and for a fund that is filled with a tenth of all ticket sales.",
)
MINUTES_RIGHT: Final = (
    "The exhibition on lightships opens in March. Ms Solberg showed the plan of the rooms and asked for six"
    " volunteers, each for two afternoons a week; four hands went up at once.",
    "The school project goes on. In January 212 pupils came, among them a class that had walked eleven kilometres"
    " along the coast to see the foghorn, and heard it too.",
    "Any other business: the cat may stay. It will be entered in the inventory as number 1,004, on permanent loan,"
    " and fed by the ticket office. The meeting closed at a quarter to eight.",
)


def minutes() -> Sheet:
    """Minutes in two columns, which are read one after the other."""
    sheet = Sheet()
    head, body = font("DejaVuSans-Bold", 36), font("LiberationSerif-Regular", 27)
    sheet.line(120, 110, "Friends of the Harbour Museum", head)
    sheet.line(120, 166, "Minutes of the board meeting of 2 February 2026", font("DejaVuSans", 24))
    sheet.rule(120, 212, 1000)
    for x, texts in ((120, MINUTES_LEFT), (650, MINUTES_RIGHT)):
        y = 270.0
        for text in texts:
            y = sheet.paragraph(x, y, text, body, width=470, leading=40) + 28
    return sheet


NOTES: Final = (
    "Notes for visitors",
    "English: Please do not lean on the railing. The bell is rung at noon.",
    "Deutsch: Bitte nicht an das Geländer lehnen. Die Glocke läutet um zwölf, außer bei Nebel.",
    "Français: Prière de ne pas s'appuyer à la rambarde. À midi, la cloche sonne, même en été.",
    "Español: No se apoye en la barandilla. ¿Oye la campana? Suena cada mañana a las doce.",
    "Norsk: Ikke len deg mot rekkverket. Klokka ringer klokka tolv, også på søndager.",
    "Polski: Proszę nie opierać się o poręcz. Dzwon bije w południe, także w święta.",
    "Türkçe: Lütfen korkuluğa yaslanmayın. Çan her gün öğlen on ikide çalar.",
    "Opening hours: Tue-Fri 10:00-17:00, Sat/Sun 11:00-18:00, closed on Mondays.",
    "Tickets: adults 120 kr, pupils 40 kr, members and cats free.",
)


def notes() -> Sheet:
    """A notice in several languages, with their accents. It went into the scanner upside down."""
    sheet = Sheet()
    head, body = font("DejaVuSans-Bold", 36), font("DejaVuSans", 24)
    sheet.line(120, 120, NOTES[0], head)
    y = 240.0
    for text in NOTES[1:]:
        y = sheet.paragraph(120, y, text, body, width=1000, leading=42) + 34
    return sheet


def receipt() -> Sheet:
    """A receipt on a strip of thermal paper."""
    sheet = Sheet(Image.new("L", (620, 1010), 246))
    bold, body = font("LiberationMono-Bold", 34), font("LiberationMono-Regular", 27)
    sheet.line(130, 60, "CAFE FOGHORN", bold)
    sheet.line(130, 112, "Quay 2, Nordhaven", body)
    sheet.line(60, 190, "2026-02-06 13:47  Table 5", body)
    y = 270
    for article, price in (
        ("Fish soup", "98.00"),
        ("Rye bread", "24.00"),
        ("Apple cake x2", "116.00"),
        ("Filter coffee x2", "72.00"),
        ("Tap water", "0.00"),
    ):
        sheet.write(60, y, article, body)
        sheet.write(560, y, price, body, right=True)
        sheet.lines.append(f"{article} {price}")
        y += 56
    sheet.rule(60, y + 8, 500)
    sheet.write(60, y + 40, "TOTAL NOK", bold)
    sheet.write(560, y + 40, "310.00", bold, right=True)
    sheet.lines.append("TOTAL NOK 310.00")
    sheet.line(60, y + 120, "VAT 15 % included: 40.43", body)
    sheet.line(60, y + 170, "Card **** 8812  No 004417", body)
    sheet.line(130, y + 270, "Thank you!", bold)
    return sheet


# --- what a scanner and a camera do to them -----------------------------------------------------------------------


def scan(page: Pixels, random: np.random.Generator, *, skew: float, shade: float) -> Pixels:
    """A page as a worn flatbed scanner sees it: turned a little, uneven in its light, soft, noisy."""
    height, width = page.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), skew, 1.0)
    # The lid behind the paper is a little darker than the paper, so its edge shows.
    seen = cv2.warpAffine(page, turn, (width, height), flags=cv2.INTER_CUBIC, borderValue=(214.0,)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 1.0 - shade * (x / width) ** 2 - 0.5 * shade * (1 - y / height) ** 2
    light -= 0.35 * np.exp(-x / 22)  # the fold along the spine
    seen = cv2.GaussianBlur(seen * light, (0, 0), 0.75)
    # Toner that didn't stick and dust on the glass.
    for _ in range(60):
        at = (int(random.integers(0, width)), int(random.integers(0, height)))
        cv2.circle(seen, at, int(random.integers(1, 3)), (float(random.integers(90, 200)),), -1)
    grain = cv2.GaussianBlur(random.normal(0, 11, seen.shape).astype(np.float32), (0, 0), 0.8)
    scanned: Pixels = np.clip(seen + grain, 0, 255).astype(np.uint8)
    return scanned


def photograph(page: Pixels, random: np.random.Generator) -> Image.Image:
    """A page on a wooden table, seen from the side in the light of a window, by a phone that was held upright."""
    width, height = 1200, 1600
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grain = np.sin(x / 9 + 3 * np.sin(y / 140) + np.sin(x / 57) * 2) * 7
    grain += cv2.GaussianBlur(random.normal(0, 60, (height, width)).astype(np.float32), (0, 0), 1, sigmaY=30)
    wood = np.stack([92 + grain, 124 + grain * 1.2, 158 + grain * 1.3], axis=2)
    for plank in range(0, width, 300):
        wood[:, plank : plank + 4] *= 0.55
    inner, outer = page.shape[::-1], np.array([[262, 150], [936, 214], [972, 1428], [196, 1372]], np.float32)
    corners = np.array([[0, 0], [inner[0], 0], [inner[0], inner[1]], [0, inner[1]]], np.float32)
    view = cv2.getPerspectiveTransform(corners, outer)
    paper = cv2.warpPerspective(page, view, (width, height), flags=cv2.INTER_AREA).astype(np.float32)
    mask = cv2.warpPerspective(np.full(page.shape, 255, np.uint8), view, (width, height)).astype(np.float32) / 255
    shadow = cv2.GaussianBlur(np.roll(mask, (14, 12), (0, 1)), (0, 0), 14)[..., None]
    seen = wood * (1 - 0.55 * shadow) * (1 - mask[..., None])
    seen += (paper * mask)[..., None] * np.array([0.90, 0.97, 1.0], np.float32)
    light = 1.06 - 0.42 * ((x - 250) ** 2 + (y - 300) ** 2) / (width**2 + height**2)
    seen = cv2.GaussianBlur(seen * light[..., None], (0, 0), 1.1) + random.normal(0, 5, seen.shape)
    return Image.fromarray(cv2.cvtColor(np.clip(seen, 0, 255).astype(np.uint8), cv2.COLOR_BGR2RGB))


def main() -> None:
    """Write the files."""
    random = np.random.default_rng(1893)
    sheets = (letter(), invoice(), minutes(), notes())
    looks = ((-1.3, 0.16), (0.8, 0.10), (1.9, 0.20), (-0.6, 0.14))
    pages = []
    for sheet, (skew, shade) in zip(sheets, looks, strict=True):
        pages.append(scan(np.asarray(sheet.image), random, skew=skew, shade=shade))
    pages[-1] = np.ascontiguousarray(np.rot90(pages[-1], 2))
    images = [Image.fromarray(page) for page in pages]
    images[0].save(
        FOLDER / "scan.pdf", save_all=True, append_images=images[1:], resolution=150, quality=38, title="Harbour Museum"
    )
    (FOLDER / "scan.txt").write_text("\f".join("\n".join(sheet.lines) + "\n" for sheet in sheets))

    alone = scan(np.asarray(invoice().image), np.random.default_rng(417), skew=-0.7, shade=0.12)
    Image.fromarray(alone).save(FOLDER / "invoice.jpg", quality=60, dpi=(150, 150))

    paper = receipt()
    # The phone lay on its side: the file's pixels do, too, and a tag says how to turn them.
    photo = photograph(np.asarray(paper.image), random).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=72, exif=exif)
    (FOLDER / "receipt.jpg").write_bytes(buffer.getvalue())
    (FOLDER / "receipt.txt").write_text("\n".join(paper.lines) + "\n")


if __name__ == "__main__":
    main()
