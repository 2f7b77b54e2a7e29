"""What a worker that is not ours may report: each event's data, checked, and encoded as the log keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.event_text import encode_event_tail
from gateway.handlers.validation import validated, wrong_field
from gateway.protocol import INDEX_PATTERN, MAX_BATCH_EVENTS, TERMINAL_TYPES, TYPE_PATTERN, EventType
from gateway.store import WriterEvent

_CODE = r"^[a-z][a-z0-9_]{0,63}$"
_MAX_TEXT: Final = 32 * 1024


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Progress(_Data):
    current: float = Field(ge=0)
    total: float | None = Field(None, ge=0)
    unit: str | None = Field(None, max_length=64)
    message: str | None = Field(None, max_length=1000)
    stage: str | None = Field(None, max_length=200)
    eta_seconds: float | None = Field(None, ge=0)


class _Delta(_Data):
    channel: str = Field("text", max_length=64)
    text: str = Field(max_length=_MAX_TEXT)


class _Output(_Data):
    index: Annotated[str, Field(pattern=INDEX_PATTERN)]
    content_type: str = Field("application/json", max_length=200)
    value: Any = None
    url: str | None = Field(None, description="As `PUT .../outputs/{index}` answered it, instead of `value`.")
    size: int | None = None


class _Log(_Data):
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str = Field(max_length=16_384)


class _Succeeded(_Data):
    result: Any = None
    partial: bool | None = None


class ReportedProblem(BaseModel):
    """Why an attempt failed, in words that a client may read. Further fields pass through."""

    model_config = ConfigDict(extra="allow")

    code: Annotated[str, Field(pattern=_CODE)] = "processor_error"
    title: str = Field("The processor could not do it", max_length=200)
    detail: str = Field(max_length=2000)
    # What a problem document has a type for: a client's list of jobs would break over anything else.
    type: str | None = Field(None, max_length=500)
    status: int | None = Field(None, ge=400, le=599)


class _Failed(_Data):
    problem: ReportedProblem
    partial: bool = False


class _Cancelled(_Data):
    reason: str = Field("cancelled", max_length=500)
    by: str = Field("worker", max_length=64)


class Retrying(_Data):
    """An attempt failed, and another one may do better: the data of `retrying`."""

    problem: ReportedProblem
    delay_seconds: float = Field(1, ge=0, le=86_400)


_MODELS: Final[Mapping[str, type[BaseModel]]] = {
    EventType.PROGRESS: _Progress,
    EventType.DELTA: _Delta,
    EventType.OUTPUT: _Output,
    EventType.LOG: _Log,
    EventType.SUCCEEDED: _Succeeded,
    EventType.FAILED: _Failed,
    EventType.CANCELLED: _Cancelled,
    EventType.RETRYING: Retrying,
}
CLOSING: Final = TERMINAL_TYPES | {EventType.RETRYING}


class ReportedEvent(BaseModel):
    """One event: a type of the protocol that a worker may report, or one of your own with a dot in its name."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[str, Field(pattern=TYPE_PATTERN)]
    data: dict[str, Any] = Field(default_factory=dict)


class ReportRequest(BaseModel):
    """Events to append, in order; an ending one is the last. None at all renews the lease and hears of a cancel."""

    model_config = ConfigDict(extra="forbid")

    batch: int | None = Field(
        None,
        ge=1,
        description="1, 2, 3, ... for each report with events: the same number again is the same report, sent again,"
        " and is written once. Without it a report that is repeated after a lost answer is written twice.",
    )
    events: list[ReportedEvent] = Field(default_factory=list, max_length=MAX_BATCH_EVENTS)


def checked_events(job: str, request: ReportRequest) -> tuple[list[WriterEvent], Retrying | None]:
    """The events as the log takes them; `retrying`, which the store writes itself, apart.

    Raises `InvalidInput` for a type that isn't a worker's to report, for wrong data and for an ending that isn't last.
    """
    events = []
    retrying = None
    for number, reported in enumerate(request.events):
        place = f"events.{number}"
        if reported.type in CLOSING and number + 1 < len(request.events):
            raise wrong_field(f"{place}.type", f"{reported.type} ends the attempt, so it must be the last")
        data = _checked(reported, place)
        if isinstance(data, Retrying):
            retrying = data
            continue
        index = data.index if isinstance(data, _Output) else ""
        plain = data.model_dump(exclude_none=True) if isinstance(data, BaseModel) else data
        if isinstance(data, _Output) and data.url is None:
            plain["value"] = data.value
        elif isinstance(data, _Output) and data.url != f"/v1/jobs/{job}/outputs/{data.index}":
            raise wrong_field(f"{place}.data.url", "this is not where the output's bytes are; PUT them first")
        elif isinstance(data, _Succeeded):
            plain["result"] = data.result
        elif isinstance(data, _Progress):
            plain["total"] = data.total
        elif isinstance(data, _Failed):
            plain["problem"] = problem_of(data.problem)
        try:
            events.append(WriterEvent(reported.type, encode_event_tail(reported.type, plain), index))
        except ValueError as error:
            raise wrong_field(f"{place}.data", str(error)) from None
    return events, retrying


def problem_of(reported: ReportedProblem) -> dict[str, Any]:
    """A reported problem as it stands in an event."""
    return {"type": f"/docs#problem-{reported.code}", **reported.model_dump(exclude_none=True)}


def _checked(reported: ReportedEvent, place: str) -> BaseModel | dict[str, Any]:
    model = _MODELS.get(reported.type)
    if model is not None:
        return validated(model, reported.data, within=f"{place}.data")
    if "." not in reported.type:
        known = ", ".join(sorted(_MODELS))
        raise wrong_field(f"{place}.type", f"a worker reports {known}, or a type of its own with a dot in it")
    return reported.data
