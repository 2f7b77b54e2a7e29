"""How clients put a download together that was cut, also where a hop doesn't know Range."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.download import Download, NoPartError
from gateway.client.httpx import _CUT, JobError, _Calls

WHOLE = b"0123456789"
REQUEST = httpx.Request("GET", "http://app.test/report")


def download(*answers: httpx.Response) -> tuple[bytes, list[str | None]]:
    """What comes out of these answers of the gateway's, and the Range of each request for one."""
    flow = _Calls("http://gateway.test", None, 60)._download("/v1/jobs/1/outputs/body", len(WHOLE), REQUEST)
    ranges: list[str | None] = []
    waiting = list(answers)
    given: httpx.Response | None = None
    while True:
        try:
            step = flow.send(given)
        except StopIteration as end:
            assert not waiting
            return end.value, ranges
        given = None
        if isinstance(step, httpx.Request):
            ranges.append(step.headers.get("Range"))
            given = waiting.pop(0)


def answer(status: int, content: bytes, *, cut: bool = True, tag: str = '"a"', **headers: str) -> httpx.Response:
    """An answer, cut unless it says otherwise."""
    extensions: dict[str, Any] = {_CUT: True} if cut else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()} | ({"ETag": tag} if tag else {})
    return httpx.Response(status, content=content, headers=named, extensions=extensions)


def test_only_the_rest_is_asked_for() -> None:
    """Each part from where the last one was cut."""
    assert download(
        answer(200, WHOLE[:4]),
        answer(206, WHOLE[4:7], Content_Range="bytes 4-9/10"),
        answer(206, WHOLE[7:], cut=False, Content_Range="bytes 7-9/10"),
    ) == (WHOLE, [None, "bytes=4-", "bytes=7-"])


def test_a_hop_that_takes_range_away_repeats_nothing() -> None:
    """It sends all of it again; what brings nothing new is asked for again."""
    assert download(
        answer(200, WHOLE[:4]), answer(200, WHOLE[:2]), answer(200, WHOLE[:6]), answer(200, WHOLE, cut=False)
    ) == (WHOLE, [None, "bytes=4-", "bytes=4-", "bytes=6-"])


def test_where_nothing_names_the_content_it_begins_anew() -> None:
    """Two halves of two answers would be no answer."""
    assert download(answer(200, WHOLE[:4], tag=""), answer(200, WHOLE, cut=False, tag="")) == (WHOLE, [None, None])


@pytest.mark.parametrize(
    "second",
    [
        answer(200, WHOLE, cut=False, tag='"b"'),
        answer(206, WHOLE[6:], cut=False, Content_Range="bytes 6-9/10"),
        answer(206, WHOLE[4:], cut=False),
        answer(206, WHOLE[4:8], cut=False, Content_Range="bytes 4-7/10"),
        answer(416, b"", cut=False),
    ],
    ids=["other content", "a hole", "no place", "too short", "no such range"],
)
def test_what_does_not_fit_is_an_error(second: httpx.Response) -> None:
    """Never a body with a hole, or of two contents."""
    with pytest.raises(JobError):
        download(answer(200, WHOLE[:4]), second)


def test_a_shorter_answer_takes_the_place_of_a_longer_one_that_nothing_names() -> None:
    """A job's document that was cut, and is another one when it is asked for again."""
    download = Download()
    download.add(200, {}, b'{"state": "queued", "posi')
    download.add(200, {}, b'{"state": "failed"}')

    assert (bytes(download.body), download.headers) == (b'{"state": "failed"}', {})


def test_a_name_is_never_that_of_another_content() -> None:
    """What came without a name, between two answers that have one, is asked for as a whole again."""
    download = Download()
    download.add(200, {"ETag": '"a"'}, b"0123")
    download.add(200, {}, b"abcdef")
    assert download.headers == {}

    download.add(200, {"ETag": '"a"'}, b"01")
    assert (bytes(download.body), download.headers) == (b"01", {"Range": "bytes=2-", "If-Range": '"a"'})

    download.add(200, {}, b"abc")
    with pytest.raises(NoPartError):
        # A part that nobody asked for.
        download.add(206, {"ETag": '"a"', "Content-Range": "bytes 3-9/10"}, b"3456789")


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))))
def test_whatever_comes_of_one_content_there_is_its_beginning(answers: list[tuple[bool, bool, int, int]]) -> None:
    """From any place on, cut anywhere, with the name or without it; only what leaves a hole is refused."""
    got = Download()
    for is_part, named, start, length in answers:
        before, known = len(got.body), got.headers
        tag = {"ETag": '"a"'} if named else {}
        try:
            if is_part:
                got.add(206, tag | {"Content-Range": f"bytes {start}-9/10"}, WHOLE[start:][:length])
            else:
                got.add(200, tag, WHOLE[:length])
        except NoPartError:
            assert is_part
            assert start > before or not known
            assert not got.body
        assert WHOLE.startswith(got.body)


def test_after_what_does_not_fit_it_begins_anew() -> None:
    """A weak name, as an edge makes it that packs the body on the way, is the same name."""
    download = Download()
    download.add(200, {"ETag": 'W/"a"'}, b"0123")
    assert download.headers == {"Range": "bytes=4-", "If-Range": '"a"'}
    with pytest.raises(NoPartError):
        download.add(206, {"ETag": '"b"', "Content-Range": "bytes 4-9/10"}, b"456789")

    assert download.headers == {}
    assert download.add(200, {"ETag": '"b"'}, b"abc")
    with pytest.raises(NoPartError):
        # A hole: the fourth byte is missing.
        download.add(206, {"ETag": '"b"', "Content-Range": "bytes 4-9/10"}, b"456789")
