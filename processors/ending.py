"""How an attempt ends, decided from what its function did: plain values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_json

from gateway.errors import Unavailable
from gateway.protocol import EventType
from processors.backoff import retry_delay
from processors.errors import ProcessorError, Rejected, Retry

# A problem stands in an event, in the record and on people's screens; what is longer belongs into an output.
_MAX_PROBLEM_BYTES: Final = 16 * 1024
_MAX_DETAIL_CHARACTERS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Ending:
    """The last event of an attempt. `delay_seconds` is set where the job goes back to its queue (`retrying`)."""

    type: EventType
    data: dict[str, Any]
    result_blob: str | None = None
    delay_seconds: float | None = None
    counts: bool = True


def problem(code: str, title: str, detail: str, **extra: Any) -> dict[str, Any]:
    """A problem document as it stands in an event."""
    return {"type": f"/docs#problem-{code}", "title": title, "code": code, "detail": detail} | extra


def failed(document: dict[str, Any], *, partial: bool) -> Ending:
    """The job fails; `partial`: there are outputs all the same."""
    return Ending(EventType.FAILED, {"problem": document, "partial": partial})


def cancelled(request: dict[str, Any]) -> Ending:
    """The job ends as somebody asked; the request's own words are kept."""
    return Ending(
        EventType.CANCELLED, {"reason": request.get("reason", "cancelled"), "by": request.get("by", "unknown")}
    )


def timed_out(seconds: float, *, partial: bool) -> Ending:
    """The job fails because an attempt ran for too long; another one would, too."""
    detail = (
        f"The attempt ran longer than {seconds:g} s; submit again with a larger run_timeout_seconds if it needs to."
    )
    return failed(problem("run_timeout", "The attempt ran for too long", detail), partial=partial)


def released(code: str, title: str, detail: str) -> Ending:
    """The job goes back at once through no fault of its own."""
    return Ending(EventType.RETRYING, {"problem": problem(code, title, detail)}, delay_seconds=0, counts=False)


def after_error(error: BaseException, *, failures: int, max_attempts: int, partial: bool) -> Ending:
    """What a function's error means for its job, which had `failures` failed attempts before this one."""
    document = _bounded(_problem_of(error))
    if isinstance(error, Rejected):
        return failed(document, partial=partial)
    failures += 1
    if failures >= max_attempts:
        tries = "The only attempt failed" if max_attempts == 1 else f"All {max_attempts} attempts failed. The last one"
        detail = f"{tries}: {document['detail']}"
        exhausted = problem("retries_exhausted", "All attempts failed", detail, cause=document["code"])
        return failed(exhausted, partial=partial)
    after = error.after_seconds if isinstance(error, Retry) else None
    return Ending(
        EventType.RETRYING, {"problem": document}, delay_seconds=retry_delay(failures) if after is None else after
    )


def _problem_of(error: BaseException) -> dict[str, Any]:
    if isinstance(error, ProcessorError):
        return {"title": "The processor could not do it"} | error.problem()
    if isinstance(error, Unavailable):
        # The store or the blobs; what these say is meant for clients.
        return error.problem()
    # What an unexpected error says may hold paths, keys or input: it is logged, never sent.
    return problem(
        "processor_error",
        "The processor failed",
        "The processor failed unexpectedly; its worker's log says why.",
    )


def _bounded(document: dict[str, Any]) -> dict[str, Any]:
    """The document, cut down to what every client can read if it is too large or no JSON."""
    try:
        if len(to_json(document)) <= _MAX_PROBLEM_BYTES:
            return document
    except (PydanticSerializationError, ValueError):
        pass
    detail = str(document["detail"])[:_MAX_DETAIL_CHARACTERS].encode("utf-8", "replace").decode()
    return problem(document["code"], document["title"], detail)
