"""What a processor raises to say how its attempt ended; anything else that it raises is an unexpected error.

    ProcessorError          the attempt failed; the client sees code and detail; tried again up to the kind's limit
    ├── Rejected            the job can't succeed as it is: failed at once, never tried again
    │   └── StepFailed      a step of the job, a job of its own, has failed
    └── Retry               try again, after the time that it names

The text of an unexpected error goes to the worker's log and never to a client: it may hold paths, keys or input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydantic import ValidationError

_CODE: Final = re.compile(r"^[a-z][a-z0-9_]{0,63}$", re.ASCII)


class ProcessorError(Exception):
    """A failure that a client may read: a stable `code` for programs, `detail` for people (say what to do next)."""

    def __init__(self, code: str, detail: str, **extra: Any) -> None:
        if _CODE.match(code) is None:
            raise ValueError(f"{code!r} is no problem code: use lower-case words joined by underscores")
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled as a call of its class with `args`, which are not what these classes take.
        return _revived, (type(self), self.args, vars(self))

    def problem(self) -> dict[str, Any]:
        """The error as a problem document, as it stands in `retrying` and `failed` events."""
        return self.extra | {"type": f"/docs#problem-{self.code}", "code": self.code, "detail": self.detail}


class Rejected(ProcessorError):
    """The input can't be processed, now or later: the job fails at once and is not tried again.

    `errors` names what is wrong where, such as `{"field": "pages", "message": "the file has 3 pages, not 7"}`.
    """

    def __init__(
        self, detail: str, code: str = "rejected", *, errors: Sequence[dict[str, str]] = (), **extra: Any
    ) -> None:
        if errors:
            extra["errors"] = list(errors)
        super().__init__(code, detail, **extra)


def said_by(error: ValidationError) -> list[dict[str, str]]:
    """What a model found wrong, as `errors` of a problem."""
    return [
        {"field": ".".join(str(part) for part in one["loc"]), "message": one["msg"]} for one in error.errors()[:100]
    ]


class StepFailed(Rejected):
    """A step's job has failed or was cancelled, after all its own attempts: trying this job again would not help.

    `code` is the step's own, `step` its name and `job` its job; `problem()` names them too.
    """

    def __init__(self, step: str, job: str, problem: Mapping[str, Any]) -> None:
        code = str(problem.get("code", ""))
        cause = {"cause": problem["cause"]} if "cause" in problem else {}
        super().__init__(
            f"The step {step} failed: {problem.get('detail', 'it says no reason')}",
            code=code if _CODE.match(code) else "step_failed",
            step=step,
            job=job,
            **cause,
        )
        self.step = step
        self.job = job


class Retry(ProcessorError):
    """End this attempt and try the job again later, as when an upstream says `Retry-After`.

    `after_seconds` None leaves the pause to the usual back-off. It counts towards the kind's `max_attempts`, so that
    a job whose processor always raises it still comes to an end.
    """

    def __init__(
        self,
        after_seconds: float | None = None,
        detail: str = "The processor asked for another attempt.",
        code: str = "retry_requested",
        **extra: Any,
    ) -> None:
        if after_seconds is not None and not 0 <= after_seconds <= 86_400:
            raise ValueError(f"after_seconds is {after_seconds}; use 0 to 86400")
        super().__init__(code, detail, **extra)
        self.after_seconds = after_seconds


def _revived(kind: type[ProcessorError], args: tuple[Any, ...], state: dict[str, Any]) -> ProcessorError:
    """An error as it was pickled, in this process or in another one."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
