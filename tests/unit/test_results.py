"""Ranges, representations and dispositions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RangeNotSatisfiable
from gateway.handlers.results import Content, _disposition, _matches, choose, requested_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=0-9", None),
        ("bytes=١-٢", None),
        ("bytes=0-" + "9" * 30, None),
    ],
)
def test_a_single_range_of_bytes_is_understood(header: str | None, expected: tuple[int, int] | None) -> None:
    """Anything else is ignored, as the standard allows."""
    assert requested_range(header, 100) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_a_range_without_a_byte_is_refused(header: str, size: int) -> None:
    """With the size, so that the client can ask again."""
    with pytest.raises(RangeNotSatisfiable) as refused:
        requested_range(header, size)

    assert refused.value.extra == {"size": size}


@given(st.from_regex(r"\A ?bytes=[0-9]{0,19}-[0-9]{0,19}\Z") | st.text(), st.integers(0, 2**63))
def test_any_range_is_of_bytes_that_are_there(header: str, size: int) -> None:
    """At least one of them; or none at all is asked for, or it is refused."""
    try:
        found = requested_range(header, size)
    except RangeNotSatisfiable:
        return

    assert found is None or 0 <= found[0] < found[1] <= size


OFFERED = ["application/json", "text/plain", "text/vnd.hocr+html"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", 0),
        ("*/*", 0),
        ("application/json", 0),
        ("application/*", 0),
        ("text/plain", 1),
        ("TEXT/PLAIN; charset=utf-8", 1),
        ("text/*", 1),
        ("text/vnd.hocr+html, text/plain", 1),
        ("text/vnd.hocr+html, text/plain;q=0.9", 2),
        ("text/html, application/xhtml+xml, */*;q=0.8", 0),
        ("application/json;q=0.1, text/plain;q=0.2", 1),
        ("application/json;q=0, */*", 1),
        ("*/*;q=0.1, text/plain;q=0.2", 1),
        ("image/png", None),
        ("*/*;q=0", None),
        ("nonsense", None),
    ],
)
def test_the_form_that_is_liked_best_is_chosen(accept: str, chosen: int | None) -> None:
    """The most exact range decides for each form; among equals the first, which is JSON."""
    assert choose(accept, OFFERED) == chosen


def test_an_etag_matches_also_weakly_and_in_a_list() -> None:
    """If-None-Match compares weakly."""
    assert _matches('"a"', '"a"')
    assert _matches('"b", W/"a"', '"a"')
    assert _matches("*", '"a"')
    assert not _matches('"b"', '"a"')
    assert not _matches(None, '"a"')


@pytest.mark.parametrize(
    ("content_type", "name", "expected"),
    [
        ("image/png", "a.png", 'inline; filename="a.png"'),
        ("text/plain; charset=utf-8", "a", 'inline; filename="a"'),
        ("text/html", "a.html", 'attachment; filename="a.html"'),
        ("image/svg+xml", "a.svg", 'attachment; filename="a.svg"'),
        ("application/pdf", 'a"b\\.pdf', "attachment; filename=\"a_b_.pdf\"; filename*=UTF-8''a%22b%5C.pdf"),
        ("image/png", "ü.png", "inline; filename=\"_.png\"; filename*=UTF-8''%C3%BC.png"),
    ],
)
def test_what_could_run_is_a_download_and_names_are_quoted(content_type: str, name: str, expected: str) -> None:
    """Only types that can hold no script are shown in place."""
    assert _disposition(Content(content_type, '"t"', name)) == expected
