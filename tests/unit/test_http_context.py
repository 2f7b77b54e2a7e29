"""Preferences, readiness and the job document: plain functions behind the handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.config import Settings
from gateway.errors import BadRequest
from gateway.handlers.context import Readiness, preferred_wait, requested_preferences
from gateway.handlers.documents import job_document
from gateway.protocol import Cursor, State
from gateway.store import JobRecord, StoredFile


def record(**fields: Any) -> JobRecord:
    """A queued job's record."""
    values: dict[str, Any] = {
        "id": "a" * 26,
        "kind": "echo",
        "owner": "me",
        "state": State.QUEUED,
        "attempt": 0,
        "failures": 0,
        "max_attempts": 3,
        "last": Cursor(1, 1_000),
        "created_ms": 1_000,
        "started_ms": None,
        "ended_ms": None,
        "expires_ms": None,
        "not_before_ms": None,
        "priority": "normal",
        "tags": (),
        "files": (),
        "retry_of": None,
        "cancel_by": None,
        "worker": None,
        "seen_ms": None,
        "progress": None,
        "input_blob": None,
        "end": None,
        "result_blob": None,
    }
    return JobRecord(**values | fields)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("wait=10", 10),
        ("respond-async, wait=10", 10),
        ('Wait="7"', 7),
        ("wait=10, wait=20", 10),
        ("wait=999999999999", 50),
        ("wait", 25),
        ("respond-async", None),
        ("handling=lenient; wait=3", None),
    ],
)
def test_prefer_wait_is_read_as_its_standard_says(header: str, expected: float | None) -> None:
    """The first counts; parameters of another preference don't; there is a most."""
    request = make_mocked_request("POST", "/", headers={"Prefer": header})

    assert preferred_wait(request) == expected


def test_preferences_may_stand_in_several_headers() -> None:
    """And have no value."""
    request = make_mocked_request("POST", "/", headers=[("Prefer", "respond-async"), ("Prefer", "wait=1")])

    assert requested_preferences(request) == {"respond-async": "", "wait": "1"}


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "²"])
def test_a_wait_that_is_no_number_is_refused(value: str) -> None:
    """Whole seconds."""
    with pytest.raises(BadRequest):
        preferred_wait(make_mocked_request("POST", "/", headers={"Prefer": f"wait={value}"}))


def test_a_gateway_is_watched_once_somebody_asks_again_and_again() -> None:
    """Whoever started it and asked until the first good answer is no load balancer."""
    readiness = Readiness()
    assert not readiness.is_watched(0)
    readiness.asked(100)
    readiness.asked(100.5)
    assert not readiness.is_watched(101)

    readiness.asked(102)

    assert readiness.is_watched(103)
    assert not readiness.is_watched(200)


def test_a_document_has_paths_not_addresses(tmp_path: Path) -> None:
    """TLS in front of us can't make them wrong; a file's name is quoted."""
    files = (StoredFile("a b/ü.pdf", "application/pdf", 7, "jobs/x/1"),)

    document = job_document(record(files=files), Settings(data=tmp_path))

    urls = document.urls.model_dump()
    assert all(url.startswith("/v1/") for url in urls.values())
    assert urls["watch"] == urls["events"]
    assert document.files[0].url == f"/v1/jobs/{'a' * 26}/files/a%20b%2F%C3%BC.pdf"
    assert document.last_event_id == "1-1000"
    assert document.created_at == "1970-01-01T00:00:01.000Z"


def test_a_watch_url_is_signed_only_where_keys_are_set() -> None:
    """And only for an owner who still has one."""
    settings = Settings(api_keys={"me": "k" * 20})

    assert "?token=" in job_document(record(), settings).urls.watch
    assert "?token=" not in job_document(record(owner="gone"), settings).urls.watch


def test_a_running_jobs_document_tells_its_workers_last_sign() -> None:
    """Nothing of it before the start and after the end."""
    running = job_document(record(state=State.RUNNING, worker="w", seen_ms=1_000, attempt=1), Settings())
    ended = job_document(record(state=State.FAILED, worker="w", seen_ms=1_000), Settings())

    assert running.liveness is not None
    assert running.liveness.worker == "w"
    assert running.liveness.silent_seconds > 1_000
    assert ended.liveness is None


def test_each_end_shows_in_the_document() -> None:
    """A result, its address, a problem, or a reason."""
    result = job_document(record(state=State.SUCCEEDED, end=b'{"result":{"a":1},"partial":true}'), Settings())
    large = job_document(record(state=State.SUCCEEDED, end=b'{"result_url":"/v1/x"}'), Settings())
    failed = job_document(record(state=State.FAILED, end=b'{"problem":{"code":"x"},"partial":false}'), Settings())
    cancelled = job_document(record(state=State.CANCELLED, end=b'{"reason":"r","by":"me"}', cancel_by="me"), Settings())

    assert (result.result, result.partial, result.terminal) == ({"a": 1}, True, True)
    assert large.result_url == "/v1/x"
    assert failed.problem is not None
    assert failed.problem.code == "x"
    assert cancelled.model_dump()["reason"] == "r"
    assert cancelled.cancel_requested
