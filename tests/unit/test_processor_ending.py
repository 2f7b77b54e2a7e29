"""How an attempt ends, decided from what its function raised."""

from __future__ import annotations

import pytest

from gateway.errors import Unavailable
from gateway.protocol import EventType
from processors import ProcessorError, Rejected, Retry
from processors.backoff import RETRY_MOST_SECONDS, Backoff, retry_delay
from processors.ending import Ending, after_error, cancelled


def end_after(error: BaseException, *, failures: int = 0, max_attempts: int = 3) -> Ending:
    """The ending after an error."""
    return after_error(error, failures=failures, max_attempts=max_attempts, partial=False)


def test_an_unexpected_error_is_tried_again_and_says_nothing_of_itself() -> None:
    """Its text may hold paths, keys or input."""
    ending = end_after(RuntimeError("password=hunter2"))

    assert ending.type is EventType.RETRYING
    assert ending.counts
    assert ending.delay_seconds is not None
    assert 0.5 <= ending.delay_seconds <= 1
    assert ending.data["problem"]["code"] == "processor_error"
    assert "hunter2" not in str(ending.data)
    assert "RuntimeError" not in str(ending.data)


def test_a_processor_error_is_tried_again_in_its_own_words() -> None:
    """What an author wrote for clients reaches them."""
    ending = end_after(ProcessorError("model_busy", "The model is busy.", queue=7))

    assert ending.type is EventType.RETRYING
    problem = ending.data["problem"]
    assert (problem["code"], problem["detail"], problem["queue"]) == ("model_busy", "The model is busy.", 7)


def test_a_store_that_is_away_is_named_as_such() -> None:
    """It is not the processor's fault, and its words are meant for clients."""
    error = Unavailable("The file store does not answer.", code="blobs_unavailable")

    assert end_after(error).data["problem"]["code"] == "blobs_unavailable"


def test_the_last_attempt_fails_with_its_cause() -> None:
    """A program reads the code, a person the detail."""
    ending = end_after(ProcessorError("model_busy", "The model is busy."), failures=2)

    assert ending.type is EventType.FAILED
    problem = ending.data["problem"]
    assert (problem["code"], problem["cause"]) == ("retries_exhausted", "model_busy")
    assert "The model is busy." in problem["detail"]


def test_rejected_fails_at_once() -> None:
    """Another attempt would not help."""
    errors = [{"field": "pages", "message": "there are 3"}]
    ending = end_after(Rejected("No such page.", "no_such_page", errors=errors))

    assert ending.type is EventType.FAILED
    assert ending.data["problem"]["code"] == "no_such_page"
    assert ending.data["problem"]["errors"] == errors


def test_retry_names_its_own_pause_and_still_counts() -> None:
    """A processor that always raises it ends all the same."""
    assert end_after(Retry(after_seconds=7.5)).delay_seconds == 7.5
    assert end_after(Retry(after_seconds=7.5)).counts
    assert end_after(Retry(after_seconds=7.5), failures=2).data["problem"]["cause"] == "retry_requested"


def test_a_retry_without_a_pause_backs_off() -> None:
    """It is then like any failure."""
    delay = end_after(Retry(), failures=1).delay_seconds

    assert delay is not None
    assert 1 <= delay <= 2


def test_a_problem_that_is_too_large_or_no_json_is_cut_down() -> None:
    """An author's slip must not leave the job without an end."""
    for error in (
        Rejected("d" * 100_000),
        Rejected("detail", extra=object()),
        Rejected("lone surrogate \ud800"),
    ):
        ending = end_after(error)

        assert ending.type is EventType.FAILED
        assert ending.data["problem"]["code"] == "rejected"
        assert len(ending.data["problem"]["detail"].encode()) <= 2_000


def test_a_code_that_programs_could_not_match_is_refused() -> None:
    """It shows in the author's own tests."""
    with pytest.raises(ValueError, match="no problem code"):
        ProcessorError("Model is busy", "detail")
    with pytest.raises(ValueError, match="after_seconds"):
        Retry(after_seconds=-1)


def test_a_cancelled_job_keeps_the_words_of_the_request() -> None:
    """Who cancelled, and why, stands in the terminal event."""
    assert cancelled({"by": "me", "reason": "changed my mind"}).data == {"by": "me", "reason": "changed my mind"}


def test_the_pauses_between_attempts_double_up_to_a_limit() -> None:
    """With jitter, so that jobs which failed together don't come back together."""
    for failures in range(1, 60):
        longest = min(RETRY_MOST_SECONDS, 2.0 ** (failures - 1))
        assert longest / 2 <= retry_delay(failures) <= longest
    assert len({retry_delay(3) for _ in range(20)}) > 10


def test_a_back_off_doubles_up_to_its_cap() -> None:
    """Redis is asked again soon, then at most once a second."""
    backoff = Backoff(0.1, 1.0)
    pauses = [backoff.next() for _ in range(8)]

    assert pauses[0] <= 0.1
    assert all(0.5 <= pause <= 1.0 for pause in pauses[4:])
