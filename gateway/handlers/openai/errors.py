"""Our errors in OpenAI's form, which its packages turn into their exceptions by the status."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from pydantic_core import to_json

from gateway.errors import JobBroke, JobFailed, OutlastError
from gateway.handlers.refusal import refusal_headers

PREFIX: Final = "/openai/"
# What a job failed with that OpenAI's own API tells by its status. 422 is nothing that it knows.
_STATUSES: Final = {
    "llm_unknown_model": 404,
    "llm_context_too_long": 400,
    "llm_refused": 400,
    "llm_rate_limited": 429,
    "invalid_input": 400,
}
# Where OpenAI has a word that programs look for, it is that.
_CODES: Final = {
    "unauthorized": "invalid_api_key",
    "llm_unknown_model": "model_not_found",
    "llm_context_too_long": "context_length_exceeded",
    "llm_rate_limited": "rate_limit_exceeded",
}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_status(error: OutlastError) -> int:
    """The status that OpenAI's API has for this."""
    return _STATUSES.get(_cause(error), error.status)


def error_document(error: OutlastError) -> dict[str, Any]:
    """What stands under `error`."""
    status = error_status(error)
    field = error.errors[0].get("field", "") if error.errors else ""
    return {
        "message": error.detail,
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": field or None,
        "code": _CODES.get(_cause(error), error.code),
    }


def error_body(error: OutlastError) -> bytes:
    """It as JSON."""
    return to_json({"error": error_document(error)})


def error_headers(error: OutlastError) -> dict[str, str]:
    """The headers beside it."""
    headers = refusal_headers(error)
    if isinstance(error, JobFailed | JobBroke):
        # Its packages repeat 408, 409, 429 and 5xx by themselves. The job has been tried as often as it may be; another
        # one would be another answer to pay for.
        headers["x-should-retry"] = "false"
    return headers


def error_response(error: OutlastError) -> web.Response:
    """The error as an answer."""
    return web.Response(
        status=error_status(error),
        body=error_body(error),
        content_type="application/json",
        headers=error_headers(error),
    )


def _cause(error: OutlastError) -> str:
    return str(error.extra.get("cause", error.code))
