"""The engines: what they can be asked for, and their geometry; reading itself is tested with whole documents."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from processors.errors import Rejected
from processors.ocr import engines
from processors.ocr.engines import DETAIL, RAPIDOCR_LANGUAGES, Reading, cores, cut, load, skew_by_ink, warm_up
from processors.ocr.pages import Pixels, turn
from tests.ocr.documents import written


def colours(text: str, **options: Any) -> Pixels:
    """A page of large print."""
    return cv2.cvtColor(np.asarray(written(text, **options)), cv2.COLOR_GRAY2BGR).astype(np.uint8)


def test_an_unknown_language_is_rejected_with_those_there_are() -> None:
    """Before anything is loaded."""
    with pytest.raises(Rejected) as caught:
        load("rapidocr", ["en", "ru", "klingon"])

    assert caught.value.code == "language_unavailable"
    assert "'ru'" in caught.value.detail
    assert "'klingon'" in caught.value.detail
    assert " de, en, es," in caught.value.detail
    assert [error["field"] for error in caught.value.extra["errors"]] == ["languages"] * 2


@pytest.mark.parametrize("name", ["rapidocr", "tesseract"])
def test_an_engine_that_is_not_installed_is_rejected_with_advice(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are optional."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    engines._load_rapidocr.cache_clear()

    with pytest.raises(Rejected) as caught:
        load(name, [])

    assert caught.value.code == "engine_unavailable"
    assert f"outlast[{'ocr' if name == 'rapidocr' else 'tesseract'}]" in caught.value.detail


def test_tesseracts_data_is_found_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the languages are what lies there, by either name."""
    for name in ("eng", "deu", "chi_sim", "osd"):
        (tmp_path / f"{name}.traineddata").touch()
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    assert engines.tesseract_languages() == ["chi_sim", "deu", "eng"]
    assert engines._tesseract_languages([]) == "eng"
    assert engines._tesseract_languages(["de", "zh", "deu", "eng"]) == "deu+chi_sim+eng"
    with pytest.raises(Rejected) as caught:
        engines._tesseract_languages(["fr"])
    assert "chi_sim, de, deu, en, eng, zh" in caught.value.detail


def test_the_number_of_cores_respects_the_quota_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores of which half of one may be used are one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    def counted(quota: str) -> int:
        monkeypatch.setattr(Path, "read_text", lambda self: quota)
        return cores()

    assert counted("max 100000") == 8
    assert counted("50000 100000") == 1
    assert counted("300000 100000") == 3
    assert counted("nonsense") == 8


@pytest.mark.parametrize("degrees", [0, 7, -30, 90])
def test_a_phrase_is_cut_out_upright(degrees: float) -> None:
    """Wherever it leans to."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    phrase = np.array([[-100, -20], [100, -20], [100, 20], [-100, 20]]) @ np.array([[cosine, sine], [-sine, cosine]])
    quad = (phrase + 200).astype(np.float32)
    image = np.full((400, 400, 3), 255, np.uint8)
    begin = quad[[0, 3]].mean(axis=0)
    cv2.circle(image, (int(begin[0]), int(begin[1])), 8, (0, 0, 0), -1)

    piece = cut(image, quad)

    assert piece.shape == (40, 200, 3)
    assert piece[20, 2].max() < 60
    assert piece[:, 30:].min() > 200


@pytest.mark.parametrize("degrees", [0, 40, -40, 86, 94, -86, -94, 90])
def test_a_box_begins_at_the_left_and_its_first_edge_is_level(degrees: float) -> None:
    """However the library begins it: a page on its side is recognised by boxes that are higher than wide."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    corners = np.array([[0, 0], [300, 0], [300, 30], [0, 30]]) @ np.array([[cosine, sine], [-sine, cosine]])
    for start in range(4):
        quad = engines._begin_at_the_left(np.roll(corners, start, axis=0).astype(np.float32))

        dx, dy = quad[1] - quad[0]
        assert abs(math.degrees(math.atan2(dy, dx))) <= 45.01
        assert {tuple(corner) for corner in quad.round(3).tolist()} == {
            tuple(corner) for corner in corners.astype(np.float32).round(3).tolist()
        }


def test_an_endless_line_is_read_in_pieces_cut_between_words() -> None:
    """A hostile image is all length."""
    line = np.full((20, 3000, 3), 255, np.uint8)
    line[4:16, ::7] = 0
    line[:, 780:795] = 255

    pieces = engines._pieces(line)

    assert np.array_equal(np.concatenate(pieces, axis=1), line)
    assert all(piece.shape[1] <= 40 * 20 for piece in pieces)
    assert 780 <= pieces[0].shape[1] <= 795
    assert engines._pieces(line[:, :800])[0].shape == (20, 800, 3)


@pytest.mark.parametrize("skew", [-5.0, -1.3, 0.0, 0.8, 4.2])
def test_skew_shows_in_the_ink(skew: float) -> None:
    """Also where the light is uneven."""
    page = colours("\n".join(["Some lines of print, one below", "the other, long enough to show"] * 4), size=(900, 640))
    turned = cv2.warpAffine(
        page, cv2.getRotationMatrix2D((450, 320), -skew, 1.0), (900, 640), borderMode=cv2.BORDER_REPLICATE
    )
    shaded = (turned * np.linspace(1, 0.5, 900)[None, :, None]).astype(np.uint8)

    assert skew_by_ink(shaded) == pytest.approx(skew, abs=0.31)


def test_a_page_without_lines_has_no_skew() -> None:
    """Noise and emptiness lean nowhere."""
    noise = np.random.default_rng(1).integers(180, 255, (600, 800, 3)).astype(np.uint8)

    assert skew_by_ink(noise) == 0
    assert skew_by_ink(np.full((600, 800, 3), 255, np.uint8)) == 0


@pytest.mark.ocr
def test_the_models_are_in_the_wheel_and_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and reading work without a network."""

    def refuse(*args: object) -> None:
        raise AssertionError("something wants to be downloaded")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    engines._load_rapidocr.cache_clear()

    warm_up()
    engine = load("rapidocr", ["en", "zh"])
    page = colours("The tide is high at 13:47")
    [quad] = engine.find(page, DETAIL)
    reading = engine.read(cut(page, quad))

    assert reading.text == "The tide is high at 13:47"
    assert reading.confidence > 0.9


@pytest.mark.ocr
def test_two_first_jobs_load_the_models_once() -> None:
    """They would take twice the memory otherwise, for good."""
    engines._load_rapidocr.cache_clear()
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(load("rapidocr", []))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id(engine) for engine in found}) == 1


# What a language needs beyond a to z.
ALPHABETS = {
    "af": "áéèêëíîïóôúû", "ca": "àéèíïóòúüç·", "cs": "áčďéěíňóřšťúůýž", "cy": "âêîôûŵŷ", "da": "æøå", "de": "äöüß",
    "es": "áéíóúüñ¿", "et": "äöõüšž", "fi": "äöåšž", "fo": "áðíóúýæø", "fr": "àâæçéèêëîïôœùûüÿ«»", "ga": "áéíóú",
    "hr": "čćđšž", "hu": "áéíóöőúüű", "is": "áðéíóúýþæö", "it": "àèéìîòù", "ja": "あいうえおアイウエオ日本語々。、",
    "lb": "äéë", "lt": "ąčęėįšųūž", "lv": "āčēģīķļņšūž", "mt": "ċġħż", "nb": "æøå", "nl": "áéëïóöü", "oc": "àáçèéíòó",
    "pl": "ąćęłńóśźż", "pt": "áâãàçéêíóôõúü", "ro": "ăâîșț", "sk": "áäčďéíĺľňóôŕšťúýž", "sl": "čšž", "sq": "çë",
    "sv": "åäö", "tl": "ñ", "tr": "çğıİöşü", "zh": "港口博物馆歡迎您，。：（）",
}  # fmt: skip


@pytest.mark.ocr
def test_the_model_knows_the_alphabets_of_its_languages() -> None:
    """Small and capital letters; what it has no character for, it can't read."""
    engine = load("rapidocr", [])
    assert isinstance(engine, engines.RapidOcr)
    known = set(engine._read.__self__.text_rec.postprocess_op.character)

    assert set(ALPHABETS) <= RAPIDOCR_LANGUAGES
    for language, letters in ALPHABETS.items():
        missing = {one for one in letters + letters.upper().replace("SS", "") if one not in known}
        assert not missing, f"{language}: {missing}"
    assert set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?()%&@€£$§\"'-–/+*=#") <= known


@pytest.mark.ocr
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (8, 4000), (4000, 8), (31, 900), (900, 31)])
def test_no_image_is_too_small_or_too_flat(shape: tuple[int, int]) -> None:
    """There is nothing to find, and that is what is found."""
    engine = load("rapidocr", [])

    assert engine.find(np.full((*shape, 3), 255, np.uint8), DETAIL) == []


@pytest.mark.ocr
def test_a_single_line_is_found_though_it_has_no_margin() -> None:
    """As in a picture that was cut out by hand."""
    engine = load("rapidocr", [])
    line = colours("Receipt 4417 of Cafe Foghorn")[38:96, 40:760]

    [quad] = engine.find(line, DETAIL)

    assert engine.read(cut(line, quad)).text == "Receipt 4417 of Cafe Foghorn"
    assert quad.min() >= 0
    assert quad[:, 0].max() <= line.shape[1]
    assert quad[:, 1].max() <= line.shape[0]


@pytest.mark.ocr
def test_tesseract_reads_a_skewed_page() -> None:
    """It is set straight for it, and the boxes lie where the lines are."""
    pytest.importorskip("tesserocr")
    if not engines.tesseract_languages():
        pytest.skip("tesseract has no language data here")
    engine = load("tesseract", ["en"])
    page = colours("The tide is high at noon.\nThe bell is rung twice.", size=(900, 300))
    skewed = cv2.warpAffine(
        page, cv2.getRotationMatrix2D((450, 150), -3, 1.0), (900, 300), borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8)

    quads = sorted(engine.find(skewed, DETAIL), key=lambda quad: float(quad[0][1]))

    assert [engine.read(cut(skewed, quad)).text for quad in quads] == [
        "The tide is high at noon.",
        "The bell is rung twice.",
    ]
    dx, dy = quads[0][1] - quads[0][0]
    assert math.degrees(math.atan2(dy, dx)) == pytest.approx(3, abs=0.5)
    assert engine.read(turn(cut(skewed, quads[0]), 2)).confidence < engine.doubt
    assert isinstance(engine.read(np.full((30, 200, 3), 255, np.uint8)), Reading)
