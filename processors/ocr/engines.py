"""The engines: what finds phrases in an image and reads them, one at a time.

`rapidocr` brings its models in its wheel; it is asked for detection and recognition separately, so that a line is known
as soon as it is read. `tesseract` is an option for small machines. Neither downloads anything.

An engine is loaded once per process and shared by all attempts: each of its calls takes one core, and there are never
more calls at work than cores, whatever the number of pages and jobs.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np

from processors.errors import Rejected
from processors.ocr.document import EngineName
from processors.ocr.layout import Quad
from processors.ocr.pages import Pixels

T = TypeVar("T")

# The longer side of the image in which rapidocr looks for lines, where nothing else is asked: print of 8 points on A4
# is found at it, in 0.17 s on one core; the library's own setting takes 3.3 s and reads no better.
DETAIL: Final = 736
# What is longer than this, relative to its width, is looked at in more detail, or its lines would vanish.
_ASPECT: Final = 1.5
_MAX_LOOK: Final = 4096
# Phrases are read one by one: the library's batches of six are padded to the longest and took 1.7 times as long for a
# letter. It pads single ones, too, to a width of 320 at a height of 48, which takes twice the time for the cells of a
# table; below 160 its confidence in single digits falls.
_MIN_WIDTH: Final = 160
# A longer phrase is read in pieces: what it takes grows with its length, and a hostile image is all length.
_MAX_RATIO: Final = 40.0
# How much lines are taken to lean at most, in degrees.
_MOST_SKEW: Final = 8.0


class Reading(NamedTuple):
    """What an engine read, and how sure it is, from 0 to 1."""

    text: str
    confidence: float


class Engine(Protocol):
    """Finds and reads phrases. Its methods take a core for a while, so they belong into threads; they may run there
    side by side."""

    doubt: float
    """A page whose phrases are read with less confidence than this, on average, may lie wrong or be looked at badly."""
    least: float
    """A phrase that is read with less confidence is none."""

    def find(self, image: Pixels, detail: int) -> list[Quad]:
        """The phrases in an image, in no particular order."""

    def read(self, phrase: Pixels) -> Reading:
        """The text of one phrase, cut out and upright."""


def cores() -> int:
    """How many cores this process may use: its affinity, and the CPU quota of its container."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(usable, int(quota) // int(period)))
    except (OSError, ValueError):
        # No control groups, or no quota ("max").
        return usable


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The threads in which engines compute, one per core.

    They are always the same ones, since the C library keeps the memory that a thread has used for that thread: with a
    new thread for each line a worker grows to three times its size.
    """
    return ThreadPoolExecutor(cores(), thread_name_prefix="ocr")


def _compute(function: Callable[..., T], *args: Any) -> T:
    """Have a thread of the pool do it, and wait here."""
    return _pool().submit(function, *args).result()


def load(name: EngineName, languages: Sequence[str]) -> Engine:
    """The engine for these languages, loaded if it is not yet. Takes a second or so, once.

    Raises:
        Rejected: A language is not available, or the engine is not installed here.
    """
    if name == "rapidocr":
        _check(languages, RAPIDOCR_LANGUAGES, "rapidocr")
        return _rapidocr()
    return _tesseract(_tesseract_languages(languages))


def warm_up() -> None:
    """Load the default engine and let it read something, so that the first job doesn't wait for it."""
    engine = load("rapidocr", ())
    paper = np.full((320, 640, 3), 255, np.uint8)
    cv2.putText(paper, "Outlast", (40, 180), cv2.FONT_HERSHEY_SIMPLEX, 3, (0, 0, 0), 5)
    for quad in engine.find(paper, DETAIL):
        engine.read(cut(paper, quad))


def cut(image: Pixels, quad: Quad) -> Pixels:
    """A phrase cut out of its page and set straight."""
    width = max(1, round(float(max(np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[2] - quad[3])))))
    height = max(1, round(float(max(np.linalg.norm(quad[3] - quad[0]), np.linalg.norm(quad[2] - quad[1])))))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    view = cv2.getPerspectiveTransform(quad.astype(np.float32), corners)
    return cv2.warpPerspective(
        image, view, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8)


def _check(languages: Iterable[str], available: Iterable[str], engine: str) -> None:
    known = sorted(available)
    errors = [
        {"field": "languages", "message": f"{language!r} is not available"}
        for language in languages
        if language not in known
    ]
    if errors:
        raise Rejected(
            f"The engine {engine} has no {' and no '.join(error['message'].split()[0] for error in errors)} here."
            f" Available: {', '.join(known)}.",
            "language_unavailable",
            errors=errors,
        )


# --- rapidocr -----------------------------------------------------------------------------------------------------

# One model reads all of these: its characters include their alphabets (a test compares).
RAPIDOCR_LANGUAGES: Final = frozenset({
    "af", "ca", "cs", "cy", "da", "de", "en", "es", "et", "eu", "fi", "fo", "fr", "ga", "gl", "hr", "hu", "id", "is",
    "it", "ja", "la", "lb", "lt", "lv", "ms", "mt", "nb", "nl", "nn", "no", "oc", "pl", "pt", "ro", "sk", "sl", "sq",
    "sv", "sw", "tl", "tr", "zh",
})  # fmt: skip


def rapidocr_settings(threads: int) -> dict[str, Any]:
    """The settings of rapidocr that are right for documents; with `threads` -1 a call takes all cores.

    Its classifier for the direction of a line is off: it turns good lines upside down (15 % wrong characters on a
    clean page, against 0.25 % without it).
    """
    folder = importlib.util.find_spec("rapidocr")
    if folder is None or folder.origin is None:
        raise Rejected(
            "The engine rapidocr is not installed where this worker runs: install outlast[ocr] there.",
            "engine_unavailable",
        )
    models = Path(folder.origin).parent / "models"
    return {
        "Global.use_cls": False,
        "Global.log_level": "error",
        # Named, the files are used as they are; unnamed ones would be looked for, and downloaded if missing.
        "Det.model_path": str(models / "PP-OCRv6_det_small.onnx"),
        "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
        "Det.limit_side_len": DETAIL,
        "Det.limit_type": "max",
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": threads,
    }


class RapidOcr:
    """PP-OCRv6 by rapidocr: Latin scripts, Chinese and Japanese."""

    doubt = 0.9
    least = 0.5

    def __init__(self) -> None:
        settings = rapidocr_settings(1)
        from rapidocr import RapidOCR  # noqa: PLC0415 - takes most of a second to import

        library: Any = RapidOCR(params=settings)
        # What the pinned minor version has: the two models can be loaded and asked by themselves.
        self._detector = library._load_det_model()
        library._load_rec_model().rec_image_shape = [3, 48, _MIN_WIDTH]
        self._read = library.recognize_txt

    def find(self, image: Pixels, detail: int) -> list[Quad]:
        """The phrases in an image, from a picture of it that is at most `detail` long (more if it is very long)."""
        height, width = image.shape[:2]
        long, short = max(height, width), max(1, min(height, width))
        # Small or flat images get a margin: the detector needs some paper around the text.
        margin = max(0, 32 - height, height if width > 8 * height else 0)
        if margin:
            image = cv2.copyMakeBorder(image, margin, margin, 0, 0, cv2.BORDER_REPLICATE).astype(np.uint8)
        # A copy shares the model; the setting is this call's own.
        detector = copy.copy(self._detector)
        detector.limit_side_len = int(min(_MAX_LOOK, detail * max(1.0, min(long / short, 8.0) / _ASPECT)))
        found = _compute(detector, image).boxes
        if found is None:
            return []
        quads = np.asarray(found, np.float32) - np.array([0, margin], np.float32)
        return [_begin_at_the_left(quad) for quad in np.clip(quads, 0, np.array([width, height], np.float32))]

    def read(self, phrase: Pixels) -> Reading:
        """The text of one phrase."""
        parts = [self._read_part(part) for part in _pieces(phrase)]
        if len(parts) == 1:
            return parts[0]
        return Reading(" ".join(part.text for part in parts), min(part.confidence for part in parts))

    def _read_part(self, part: Pixels) -> Reading:
        result = _compute(self._read, [part])
        return Reading(result.txts[0].strip(), float(result.scores[0]))


def _begin_at_the_left(quad: Quad) -> Quad:
    """The quad with its first edge as level as can be: the library begins the box of a steep line at either end."""
    dx, dy = (np.roll(quad, -1, axis=0) - quad).T
    steepness = np.where(dx > 0, np.abs(dy) - dx, np.inf)
    return np.roll(quad, -int(steepness.argmin()), axis=0)


def _pieces(phrase: Pixels) -> list[Pixels]:
    """A phrase that is too long to be read at once, cut where there is least ink."""
    height, width = phrase.shape[:2]
    if width <= _MAX_RATIO * height:
        return [phrase]
    # Over a few columns, so that a gap between words counts as more than one within a letter.
    ink = np.convolve(phrase.mean(axis=2).std(axis=0), np.ones(max(1, height // 2)), "same")
    pieces, start = [], 0
    while width - start > _MAX_RATIO * height:
        end = start + int(_MAX_RATIO * height)
        nearby = ink[max(start + 1, end - 4 * height) : end]
        end -= len(nearby) - int(nearby.argmin())
        pieces.append(np.ascontiguousarray(phrase[:, start:end]))
        start = end
    return [*pieces, np.ascontiguousarray(phrase[:, start:])]


_loading = threading.Lock()


@functools.cache
def _load_rapidocr() -> RapidOcr:
    return RapidOcr()


def _rapidocr() -> RapidOcr:
    # `cache` alone would let two first jobs load the models twice.
    with _loading:
        return _load_rapidocr()


# --- tesseract ----------------------------------------------------------------------------------------------------

# What the languages are called in tesseract's files, where it isn't the code that they have here.
_TESSERACT_NAMES: Final = {
    "ar": "ara", "bg": "bul", "ca": "cat", "cs": "ces", "da": "dan", "de": "deu", "el": "ell", "en": "eng",
    "es": "spa", "et": "est", "eu": "eus", "fi": "fin", "fr": "fra", "ga": "gle", "gl": "glg", "he": "heb",
    "hi": "hin", "hr": "hrv", "hu": "hun", "id": "ind", "is": "isl", "it": "ita", "ja": "jpn", "ko": "kor",
    "la": "lat", "lt": "lit", "lv": "lav", "nb": "nor", "nl": "nld", "nn": "nor", "no": "nor", "pl": "pol",
    "pt": "por", "ro": "ron", "ru": "rus", "sk": "slk", "sl": "slv", "sq": "sqi", "sr": "srp", "sv": "swe",
    "th": "tha", "tr": "tur", "uk": "ukr", "vi": "vie", "zh": "chi_sim",
}  # fmt: skip


def tessdata_folder() -> Path | None:
    """Where tesseract's language data lies: named by the environment, in our environment's wheel, or Debian's."""
    named = os.environ.get("TESSDATA_PREFIX")
    folders = [Path(named), Path(named) / "tessdata"] if named else []
    folders += [Path(sys.prefix, "share", "tessdata"), *sorted(Path("/usr/share/tesseract-ocr").glob("*/tessdata"))]
    folders += [Path("/usr/share/tessdata"), Path("/opt/homebrew/share/tessdata")]
    return next((folder for folder in folders if next(folder.glob("*.traineddata"), None)), None)


def tesseract_languages() -> list[str]:
    """The languages whose data is installed, by tesseract's names."""
    folder = tessdata_folder()
    found = sorted(path.stem for path in folder.glob("*.traineddata")) if folder else []
    return [name for name in found if name not in ("osd", "equ")]


def _tesseract_languages(languages: Sequence[str]) -> str:
    """The languages as tesseract wants them, all that are asked for joined by a plus sign."""
    installed = tesseract_languages()
    if importlib.util.find_spec("tesserocr") is None or not installed:
        raise Rejected(
            "The engine tesseract is not installed where this worker runs: install outlast[tesseract] there, or take"
            " the engine rapidocr.",
            "engine_unavailable",
        )
    short = {code for code, name in _TESSERACT_NAMES.items() if name in installed}
    _check(languages, {*installed, *short}, "tesseract")
    names = [_TESSERACT_NAMES.get(language, language) for language in languages]
    default = "eng" if "eng" in installed else installed[0]
    return "+".join(dict.fromkeys(names)) or default


class Tesseract:
    """Tesseract 5 by tesserocr: fast and small, for straight and clean scans."""

    doubt = 0.75
    least = 0.3

    def __init__(self, languages: str) -> None:
        import tesserocr  # noqa: PLC0415 - an option that may not be installed

        self._library: Any = tesserocr
        # One instance can do one thing at a time.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(cores()):
            self._idle.put(tesserocr.PyTessBaseAPI(path=str(tessdata_folder()), lang=languages))

    def find(self, image: Pixels, detail: int) -> list[Quad]:
        """The lines in an image. Tesseract finds them in straight pages only, so the page is set straight for it."""
        skew = skew_by_ink(image)
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), skew, 1.0)
        straight = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE).astype(np.uint8)
        back = cv2.invertAffineTransform(turn)
        quads = []
        for left, top, right, bottom in _compute(self._find_straight, straight):
            corners = np.array([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]], np.float32)
            quads.append(np.clip(corners @ back.T, 0, np.array([width, height])).astype(np.float32))
        return quads

    def _find_straight(self, image: Pixels) -> list[tuple[int, int, int, int]]:
        with self._showing(image, self._library.PSM.AUTO) as api:
            boxes = [box for _, box, _, _ in api.GetComponentImages(self._library.RIL.TEXTLINE, True)]
        # Its boxes are tight, and single lines are read better with some paper around them.
        return [(box["x"] - 4, box["y"] - 4, box["x"] + box["w"] + 4, box["y"] + box["h"] + 4) for box in boxes]

    def read(self, phrase: Pixels) -> Reading:
        """The text of one line."""
        return _compute(self._read, phrase)

    def _read(self, phrase: Pixels) -> Reading:
        with self._showing(phrase, self._library.PSM.SINGLE_LINE) as api:
            text = " ".join(api.GetUTF8Text().split())
            return Reading(text, max(0.0, api.MeanTextConf() / 100))

    @contextmanager
    def _showing(self, image: Pixels, mode: int) -> Iterator[Any]:
        """One of the instances, for the length of the block, with an image in it."""
        grey = np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
        height, width = grey.shape
        api = self._idle.get()
        try:
            api.SetPageSegMode(mode)
            api.SetImageBytes(grey.tobytes(), width, height, 1, width)
            api.SetSourceResolution(200)
            yield api
        finally:
            api.Clear()
            self._idle.put(api)


@functools.cache
def _load_tesseract(languages: str) -> Tesseract:
    return Tesseract(languages)


def _tesseract(languages: str) -> Tesseract:
    with _loading:
        return _load_tesseract(languages)


def skew_by_ink(image: Pixels) -> float:
    """How much a page's lines lean, in degrees clockwise, from its pixels alone: 0 where nothing shows it.

    Turned by the right angle, the rows of a page differ most from each other: text, no text, text.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    factor = 800 / max(grey.shape)
    small = cv2.resize(grey, None, fx=min(factor, 1.0), fy=min(factor, 1.0), interpolation=cv2.INTER_AREA)
    # Against its surroundings, so that uneven light and dark edges don't count as ink.
    ink = cv2.subtract(cv2.blur(small, (31, 31)), small)
    ink = np.where(ink > 12, ink, 0).astype(np.float32)
    height, width = ink.shape

    def contrast(degrees: float) -> float:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
        rows = cv2.warpAffine(ink, turn, (width, height)).sum(axis=1)
        return float(np.square(np.diff(rows)).sum())

    straight = contrast(0)
    coarse = max((contrast(angle), angle) for angle in np.arange(-_MOST_SKEW, _MOST_SKEW + 0.1, 0.5))
    best, angle = max((contrast(one), one) for one in np.arange(coarse[1] - 0.4, coarse[1] + 0.45, 0.1))
    return float(angle) if best > 1.1 * straight else 0.0
