"""Every error that Outlast raises on purpose, in one tree, each with a stable code and its HTTP status.

    OutlastError
    ├── RequestError            the request can't be served as it is (4xx)
    │   ├── BadRequest          400 bad_request · bad_cursor · bad_json · bad_frame
    │   ├── Unauthorized        401    Forbidden 403
    │   │   ├── TokenExpired 401   WriteTokenNeeded 401   ProbeTokenNeeded 401
    │   ├── NotFound            404    MethodNotAllowed 405    NotAcceptable 406
    │   ├── Timeout             408
    │   ├── Conflict            409 not_finished · still_open · resubmitted_stream
    │   ├── Gone                410    PreconditionFailed 412
    │   ├── TooLarge            413    UnsupportedType 415    RangeNotSatisfiable 416
    │   ├── InvalidInput        422 (which field, and why)
    │   ├── KeyReused           422    JobFailed 422 job_failed · job_cancelled
    │   └── TooMany             429
    ├── Unavailable             503 store_unavailable · draining · queue_full · store_full
    │   └── Unreachable         a client got no answer of the gateway's: no connection, or an edge's own page
    ├── JobBroke                500 with a failed job's own code: its input is not to blame
    ├── LeaseLost               a worker no longer has the job (never sent to a client)
    ├── EventsLost              Redis lost acknowledged writes (never sent to a client)
    └── ConfigurationError      a setting is wrong; says which and what to set

This module knows no HTTP library: `gateway.handlers` turns an error into an answer, in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final


def encodable(text: str) -> str:
    """The text without lone surrogates, which no JSON can hold.

    aiohttp makes them of bytes in a path or a header that are no UTF-8, and an error quotes both.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class OutlastError(Exception):
    """An error with a stable `code`; `detail` says what happened and what to do next."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        errors: Sequence[dict[str, str]] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = encodable(detail)
        self.code = code or self.default_code
        self.retry_after_seconds = retry_after_seconds
        self.errors = [{name: encodable(text) for name, text in one.items()} for one in errors or ()]
        self.extra = extra

    def problem(self, instance: str | None = None) -> dict[str, Any]:
        """The error as a problem document (RFC 9457, section 3.1), with `code` and `errors` as extension members."""
        document: dict[str, Any] = {
            "type": f"/docs#problem-{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if instance:
            document["instance"] = instance
        if self.errors:
            document["errors"] = self.errors
        return document | self.extra


class RequestError(OutlastError):
    """The request can't be served as it is; repeating it unchanged won't help."""

    status = 400
    default_code = "bad_request"
    title = "The request is not valid"


class BadRequest(RequestError):
    """400: the request is malformed."""


class Unauthorized(RequestError):
    """401: no credentials, or wrong ones."""

    status = 401
    default_code = "unauthorized"
    title = "An API key or a token is needed"


class TokenExpired(Unauthorized):
    """401: a page's token was good, and its time is over."""

    default_code = "token_expired"
    title = "The token has expired"


class WriteTokenNeeded(Unauthorized):
    """401 at the door for workers elsewhere: an API key opens nothing there, an attempt's token does."""

    default_code = "write_token"
    title = "The attempt's write token is needed"


class ProbeTokenNeeded(Unauthorized):
    """401 at the probe's routes, which the operator's token opens."""

    default_code = "probe_token"
    title = "The token of the probes is needed"


class Forbidden(RequestError):
    """403: the credentials are good, but not for this."""

    status = 403
    default_code = "forbidden"
    title = "Not allowed"


class NotFound(RequestError):
    """404: there is no such thing, or it belongs to somebody else."""

    status = 404
    default_code = "not_found"
    title = "Not found"


class MethodNotAllowed(RequestError):
    """405: the route exists, the method doesn't."""

    status = 405
    default_code = "method_not_allowed"
    title = "Method not allowed"


class NotAcceptable(RequestError):
    """406: there is no such representation; the detail names those that there are."""

    status = 406
    default_code = "not_acceptable"
    title = "Not available in this form"


class Timeout(RequestError):
    """408: the client sent nothing for too long."""

    status = 408
    default_code = "request_timeout"
    title = "The request took too long to arrive"


class Conflict(RequestError):
    """409: the job is not in a state in which this can be done."""

    status = 409
    default_code = "conflict"
    title = "Not possible in the job's present state"


class Gone(RequestError):
    """410: the job ended and its retention time is over."""

    status = 410
    default_code = "expired"
    title = "The job's data has expired"
    owner: str = ""
    """Whose job it was, for the gateway's own check (another owner gets 404); never sent."""


class PreconditionFailed(RequestError):
    """412: the client speaks a version of a protocol that is not spoken here."""

    status = 412
    default_code = "tus_version"
    title = "Another version of the protocol is needed"


class TooLarge(RequestError):
    """413: the body or a part of it is over a limit."""

    status = 413
    default_code = "too_large"
    title = "Too large"


class UnsupportedType(RequestError):
    """415: no way to read a body of this content type."""

    status = 415
    default_code = "unsupported_type"
    title = "Unsupported content type"


class RangeNotSatisfiable(RequestError):
    """416: the range has no byte of the content."""

    status = 416
    default_code = "range_not_satisfiable"
    title = "Nothing in this range"


class InvalidInput(RequestError):
    """422: well formed, but a field is wrong; `errors` names each field and why."""

    status = 422
    default_code = "invalid_input"
    title = "The input is not valid"


class KeyReused(RequestError):
    """422: the Idempotency-Key was used for another request."""

    status = 422
    default_code = "idempotency_key_reused"
    title = "The Idempotency-Key belongs to another request"


class JobFailed(RequestError):
    """422 job_failed · job_cancelled: a result was asked for, but there is none.

    The extension member `problem` is the job's own problem, where it has one.
    """

    status = 422
    default_code = "job_failed"
    title = "The job did not succeed"

    @property
    def job_problem(self) -> dict[str, Any]:
        """Why the job failed, with its own `code`; empty for a cancelled job."""
        return dict(self.extra.get("problem") or {})


class JobBroke(OutlastError):
    """500: a job failed, and its input is not to blame; the code and the detail are the job's own."""

    default_code = "processor_error"
    title = "The job failed"


class TooMany(RequestError):
    """429: the caller is over one of its own limits."""

    status = 429
    default_code = "too_many"
    title = "Too many"


class Unavailable(OutlastError):
    """503: not now; the same request will work later."""

    status = 503
    default_code = "store_unavailable"
    title = "Temporarily unavailable"


class Unreachable(Unavailable):
    """What a client raises where nobody of ours answered; the gateway itself never sends it."""

    default_code = "unreachable"
    title = "The gateway can't be reached"


class LeaseLost(OutlastError):
    """A worker no longer has the job: another attempt has it, or it has ended."""

    default_code = "lease_lost"


class EventsLost(OutlastError):
    """Redis lost writes that it had acknowledged, so this attempt's batch numbers no longer fit."""

    default_code = "events_lost"


class ConfigurationError(OutlastError):
    """A setting is wrong; the message names it and says what to set."""

    default_code = "configuration"


# What a client may be told in our words. All else is a defect, or for operators and workers: for the log.
FOR_CLIENTS: Final = (RequestError, Unavailable, JobBroke)

# Answers by which an edge or a proxy says that it got none in time, or none at all. Nothing is known about the request
# then, so it is to be repeated under the same key.
EDGE_STATUSES: Final = frozenset({502, 504, *range(520, 528), 530})
_BY_STATUS: Final[Mapping[int, type[OutlastError]]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    406: NotAcceptable,
    408: Timeout,
    409: Conflict,
    410: Gone,
    412: PreconditionFailed,
    413: TooLarge,
    415: UnsupportedType,
    416: RangeNotSatisfiable,
    422: InvalidInput,
    429: TooMany,
    503: Unavailable,
}
_BY_CODE: Final[Mapping[str, type[OutlastError]]] = {
    KeyReused.default_code: KeyReused,
    JobFailed.default_code: JobFailed,
    "job_cancelled": JobFailed,
    TokenExpired.default_code: TokenExpired,
    WriteTokenNeeded.default_code: WriteTokenNeeded,
    ProbeTokenNeeded.default_code: ProbeTokenNeeded,
    OutlastError.default_code: OutlastError,
}
_OWN_MEMBERS: Final = frozenset({"type", "title", "status", "code", "detail", "instance", "errors"})


def error_from_answer(
    status: int, problem: Mapping[str, Any] | None, retry_after_seconds: float | None = None
) -> OutlastError:
    """The error that an HTTP answer stands for; `problem` is its problem document, None where it has none."""
    if problem is None or not isinstance(problem.get("code"), str):
        detail = f"Something answered {status} in the gateway's place; try again, and check the address if it lasts."
        if status in EDGE_STATUSES or status == 503:
            return Unreachable(detail, retry_after_seconds=retry_after_seconds)
        kind = _BY_STATUS.get(status, RequestError if 400 <= status < 500 else OutlastError)
        return kind(detail, code=f"http_{status}", retry_after_seconds=retry_after_seconds)
    code = problem["code"]
    # The gateway never answers with an edge's status, so a `code` beside one is somebody else's: nothing is known.
    # A 500 that is not `internal` has the code of a job.
    other = Unreachable if status in EDGE_STATUSES else RequestError if 400 <= status < 500 else JobBroke
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or other
    errors = problem.get("errors")
    error = kind(
        str(problem.get("detail") or problem.get("title") or code),
        code=code,
        retry_after_seconds=retry_after_seconds,
        errors=errors if isinstance(errors, list) else None,
    )
    error.extra = {name: value for name, value in problem.items() if name not in _OWN_MEMBERS}
    return error
