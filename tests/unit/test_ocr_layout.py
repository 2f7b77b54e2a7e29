"""Phrases to lines in reading order: geometry with invented phrases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from processors.ocr.layout import Quad, arrange, join, skew_of

WIDTH, HEIGHT = 1200, 1700


def phrase(left: float, top: float, width: float, height: float = 24, *, lean: float = 0) -> Quad:
    """A phrase's box, on a page that leans clockwise by `lean` degrees about its corner."""
    corners = np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]])
    sine, cosine = math.sin(math.radians(lean)), math.cos(math.radians(lean))
    turned: Quad = (corners @ np.array([[cosine, sine], [-sine, cosine]])).astype(np.float32)
    return turned


def order(quads: list[Quad]) -> list[tuple[int, ...]]:
    """The rows, as places in the list."""
    return [row.phrases for row in arrange(quads, WIDTH, HEIGHT)[0]]


def test_a_page_without_phrases_has_no_lines() -> None:
    """And leans nowhere."""
    assert arrange([], WIDTH, HEIGHT) == ([], 0.0)


def test_phrases_side_by_side_are_a_line_from_left_to_right() -> None:
    """In whatever order they were found."""
    assert order([phrase(600, 100, 200), phrase(100, 140, 300), phrase(100, 102, 400)]) == [(2, 0), (1,)]


@pytest.mark.parametrize("lean", [-12, -3, -0.5, 0.5, 3, 12])
def test_a_skewed_page_is_ordered_as_if_it_were_straight(lean: float) -> None:
    """Though the right end of a line stands lower than the next line's left end."""
    quads = [phrase(x, y, 300, lean=lean) for y in (500, 540, 580) for x in (200, 700)]

    rows, skew = arrange(quads, WIDTH, HEIGHT)

    assert [row.phrases for row in rows] == [(0, 1), (2, 3), (4, 5)]
    assert skew == pytest.approx(lean, abs=0.1)
    assert np.abs(np.array(rows[0].box[0]) - quads[0][0]).max() <= 1
    assert np.abs(np.array(rows[0].box[2]) - quads[1][2]).max() <= 1


def test_a_stamp_that_leans_does_not_make_the_page_lean() -> None:
    """Long phrases decide, and what leans much was turned on purpose."""
    quads = [phrase(100, 40 * line, 800) for line in range(1, 6)] + [phrase(300, 900, 200, lean=20)]

    assert skew_of(quads) == pytest.approx(0, abs=0.01)


def test_a_line_may_sag() -> None:
    """As on a page that is bent: each phrase stands beside its neighbour."""
    sag = [phrase(100 + 110 * at, 300 + 30 * math.sin(math.pi * at / 8), 100) for at in range(9)]
    below = [phrase(100 + 110 * at, 345 + 30 * math.sin(math.pi * at / 8), 100) for at in range(9)]

    assert order(sag + below) == [tuple(range(9)), tuple(range(9, 18))]


def test_columns_of_prose_are_read_one_after_the_other() -> None:
    """Below the heading that stands over both, though their lines stand side by side."""
    left = [phrase(100, 200 + 40 * line, 460) for line in range(8)]
    right = [phrase(640, 205 + 40 * line, 460) for line in range(8)]

    found = order([phrase(100, 100, 900, 40), *left, *right])

    assert found == [(at,) for at in range(17)]


def test_a_heading_between_columns_ends_them() -> None:
    """What stands above it in the right column comes before it."""
    quads = []
    for top in (200, 700):
        quads += [phrase(100, top + 40 * line, 460) for line in range(5)]
        quads += [phrase(640, top + 40 * line, 460) for line in range(5)]
    quads.insert(10, phrase(100, 600, 1000, 40))

    assert order(quads) == [(at,) for at in range(21)]


def test_three_columns_are_read_one_after_the_other() -> None:
    """A page may have more of them than two."""
    quads = [phrase(60 + 380 * column, 200 + 40 * line, 330) for column in range(3) for line in range(6)]

    assert order(quads) == [(at,) for at in range(18)]


def test_the_rows_of_a_table_stay_together() -> None:
    """Its columns are no prose."""
    quads = [phrase(x, 200 + 50 * row, width) for row in range(8) for x, width in ((100, 40), (200, 380), (900, 90))]

    assert order(quads) == [(3 * row, 3 * row + 1, 3 * row + 2) for row in range(8)]


def test_a_list_of_labels_and_values_is_read_row_by_row() -> None:
    """Two short columns side by side are pairs."""
    quads = [phrase(x, 200 + 50 * row, width) for row in range(8) for x, width in ((100, 150), (600, 120))]

    assert order(quads) == [(2 * row, 2 * row + 1) for row in range(8)]


def test_no_box_leaves_the_page() -> None:
    """Engines add a margin to what they find."""
    [row], _ = arrange([phrase(-20, -10, 2000, 30)], WIDTH, HEIGHT)

    assert row.box == ((0, 0), (WIDTH, 0), (WIDTH, 20), (0, 20))


def test_phrases_are_joined_by_a_space_but_not_ideographs_that_stand_close() -> None:
    """Chinese has no spaces, yet a wide gap means something in it, too."""
    assert join(["Total", "12.50"], [3.0]) == "Total 12.50"
    assert join(["这是", "一行"], [0.2]) == "这是一行"
    assert join(["姓名", "日期"], [4.0]) == "姓名 日期"
    assert join(["第", "2", ""], [0.1, 0.1]) == "第 2"


def test_a_thousand_phrases_are_put_in_order_in_no_time() -> None:
    """A hostile page has as many as the engine gives out."""
    random = np.random.default_rng(1)
    quads = [phrase(*random.uniform(0, 1100, 2), *random.uniform(1, 90, 2)) for _ in range(1000)]

    assert sorted(at for row in order(quads) for at in row) == list(range(1000))
