"""The error tree: each error's status, code and problem document, and the way back from an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway import errors
from gateway.errors import (
    EDGE_STATUSES,
    Conflict,
    InvalidInput,
    JobFailed,
    KeyReused,
    NotFound,
    OutlastError,
    RequestError,
    Unauthorized,
    Unavailable,
    Unreachable,
    error_from_answer,
)


def tree(root: type[OutlastError] = OutlastError) -> Iterator[type[OutlastError]]:
    """Every class of the tree."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


# Nothing that a client is sent: they stay inside, or are the client's own.
INTERNAL = {OutlastError, RequestError, errors.LeaseLost, errors.EventsLost, errors.ConfigurationError, Unreachable}


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in tree()])
def test_each_error_is_drawn_in_the_module(kind: type[OutlastError]) -> None:
    """The picture at the top is the whole tree."""
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in tree() if kind not in INTERNAL])
def test_an_error_comes_back_from_its_own_answer(kind: type[OutlastError]) -> None:
    """What the gateway raised is what its client raises."""
    sent = kind("do this next", errors=[{"field": "a", "message": "b"}], more=1, errors_seen=2)

    got = error_from_answer(kind.status, sent.problem("/v1/jobs/x"), 1.5)

    assert type(got) is kind
    assert (got.detail, got.code, got.errors) == (sent.detail, sent.code, sent.errors)
    assert got.extra == {"more": 1, "errors_seen": 2}
    assert got.retry_after_seconds == 1.5


def test_a_problem_is_a_problem_document() -> None:
    """RFC 9457: type, title, status, detail, instance; `code` and `errors` are ours."""
    problem = InvalidInput("wrong", code="x", errors=[{"field": "a", "message": "b"}]).problem("/v1/x")

    assert problem == {
        "type": "/docs#problem-x",
        "title": "The input is not valid",
        "status": 422,
        "code": "x",
        "detail": "wrong",
        "instance": "/v1/x",
        "errors": [{"field": "a", "message": "b"}],
    }
    assert "errors" not in NotFound("no").problem()
    assert "instance" not in NotFound("no").problem()


def test_we_never_answer_with_a_status_that_an_edge_replaces() -> None:
    """Cloudflare puts its own page in the place of a 502 or 504."""
    assert not {kind.status for kind in tree()} & EDGE_STATUSES


@pytest.mark.parametrize("status", [502, 503, 504, 520, 522, 524, 527, 530])
def test_an_answer_of_an_edge_is_unreachable(status: int) -> None:
    """Nothing of ours answered, so nothing is known about the request."""
    assert type(error_from_answer(status, None)) is Unreachable


def test_an_answer_without_a_problem_is_known_by_its_status() -> None:
    """A proxy's 401 is a 401 all the same."""
    assert type(error_from_answer(401, None)) is Unauthorized
    assert error_from_answer(401, None).code == "http_401"
    assert type(error_from_answer(418, {"message": "teapot"})) is RequestError
    assert type(error_from_answer(500, None)) is OutlastError


def test_a_code_decides_where_a_status_has_several_errors() -> None:
    """422 is an invalid input, a used key or a failed job."""
    assert type(error_from_answer(422, KeyReused("x").problem())) is KeyReused
    assert type(error_from_answer(422, JobFailed("x", code="job_cancelled").problem())) is JobFailed
    assert type(error_from_answer(422, {"code": "new_code"})) is InvalidInput
    assert type(error_from_answer(409, {"code": "new_code"})) is Conflict
    assert type(error_from_answer(503, {"code": "new_code"})) is Unavailable


def test_members_that_are_named_like_parameters_are_only_members() -> None:
    """A problem document may have any member."""
    error = error_from_answer(409, {"code": "x", "title": "T", "retry_after_seconds": 9, "self": 1})

    assert error.detail == "T"
    assert error.retry_after_seconds is None
    assert error.extra == {"retry_after_seconds": 9, "self": 1}


def test_a_failed_job_brings_its_own_problem() -> None:
    """The caller wants to know why the job failed, not that it did."""
    assert JobFailed("x", problem={"code": "rejected"}).job_problem == {"code": "rejected"}
    assert JobFailed("x").job_problem == {}


def test_an_error_can_quote_bytes_that_are_no_utf_8() -> None:
    """aiohttp makes lone surrogates of them, which no JSON can hold; they are replaced."""
    document = InvalidInput("caf\u00e9 \udcff", errors=[{"field": "\udcff", "message": "\u00e9"}]).problem()

    assert document["detail"] == "caf\u00e9 ?"
    assert document["errors"] == [{"field": "?", "message": "\u00e9"}]
