"""What clients ask for: the options and the body of a submit, and the frames that they send over a WebSocket.

No I/O here, as in `gateway.protocol`. It stands apart because who only follows jobs, such as the Python client, needs
none of these models and need not wait for them to be built.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from gateway.documents import WireModel
from gateway.protocol import DAY_SECONDS, JOB_PATTERN, KIND_PATTERN, TAG_PATTERN, TYPE_PATTERN, Priority
from gateway.tokens import USER_PATTERN

# A kind that wants more files than this wants an archive. Each file is a blob and a line in the job's record.
MAX_FILES: Final = 64
# A page that is reloaded, or a phone that changes its network, is back in this time.
DEFAULT_GRACE_SECONDS: Final = 60.0
MAX_RETENTION_SECONDS: Final = 30 * DAY_SECONDS


class JobOptions(WireModel):
    """What can be asked of a job besides its input. An unknown field is refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: Priority = "normal"
    start_at: AwareDatetime | None = Field(None, description="Not before this time.")
    start_deadline_seconds: float | None = Field(
        None, gt=0, le=30 * DAY_SECONDS, description="Fail if no attempt has begun after this time."
    )
    run_timeout_seconds: float | None = Field(
        None, gt=0, le=7 * DAY_SECONDS, description="Fail an attempt that runs longer."
    )
    retention_seconds: float | None = Field(
        None, ge=1, le=MAX_RETENTION_SECONDS, description="How long the data is kept after the end."
    )
    on_disconnect: Literal["continue", "cancel"] = Field(
        "continue", description="`cancel`: when nobody has listened to the job for a while, it is cancelled."
    )
    disconnect_grace_seconds: float | None = Field(
        None, gt=0, le=DAY_SECONDS, description="How long that while is; 60 by default. It starts at the submit."
    )
    tags: list[Annotated[str, Field(pattern=TAG_PATTERN)]] = Field(default_factory=list, max_length=16)
    input_url: str | None = Field(
        None, max_length=8192, description="A file by its URL, which the worker fetches; it must be listed."
    )

    @field_validator("disconnect_grace_seconds")
    @classmethod
    def _needs_a_cancel(cls, value: float | None, others: ValidationInfo) -> float | None:
        if value is not None and others.data.get("on_disconnect") != "cancel":
            raise ValueError("it means nothing without on_disconnect=cancel")
        return value

    @property
    def grace_seconds(self) -> float | None:
        """How long nobody may listen until the job is cancelled; None for a job that goes on without listeners."""
        return (self.disconnect_grace_seconds or DEFAULT_GRACE_SECONDS) if self.on_disconnect == "cancel" else None


class FileReference(WireModel):
    """A file that is on the gateway already: by its upload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    upload: Annotated[str, Field(pattern=JOB_PATTERN, description="The id of a resumable upload that is complete.")]


class JobRequest(JobOptions):
    """The JSON body of a submit."""

    input: dict[str, Any] = Field(default_factory=dict, description="Validated against the kind's JSON Schema.")
    files: list[FileReference] = Field(
        default_factory=list, max_length=MAX_FILES, description="Files that were uploaded before, in their order."
    )


class TokenRequest(WireModel):
    """The JSON body of `POST /v1/tokens`: either a job to read, or a kind to submit to and the user who may."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Annotated[str, Field(pattern=JOB_PATTERN)] | None = Field(None, description="The job that may be read.")
    cancel: bool = Field(False, description="Whether that job may be cancelled, too.")
    kind: Annotated[str, Field(pattern=KIND_PATTERN)] | None = Field(None, description="The kind to submit to.")
    user: Annotated[str, Field(pattern=USER_PATTERN)] | None = Field(
        None, description="Who submits, as you call them. All tokens of this user and kind open the same jobs."
    )
    max_waiting: int = Field(100, ge=1, le=10_000, description="At most so many of the user's jobs may wait at once.")
    expires_seconds: int = Field(900, ge=10, le=DAY_SECONDS, description="How long the token is good.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.job is None) == (self.kind is None):
            raise ValueError("it is for a job or for a kind: name one of them")
        own, other = ("job", {"user", "max_waiting"}) if self.job is not None else ("kind", {"cancel"})
        if wrong := sorted(other & self.model_fields_set):
            raise ValueError(f"{wrong[0]} means nothing in a token for a {own}")
        if self.kind is not None and self.user is None:
            raise ValueError("say for which user: a later token of the same user opens the same jobs, no other does")
        return self


# --- WebSocket --------------------------------------------------------------------------------------------------------


class SubscribeFrame(WireModel):
    """Ask for a job's events after a cursor. The answer is `subscribed`, then the events themselves."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["subscribe"]
    ref: str | None = Field(None, max_length=64)
    job: Annotated[str, Field(pattern=JOB_PATTERN)]
    after: str | None = None
    snapshot: bool = False
    types: list[Annotated[str, Field(pattern=TYPE_PATTERN)]] | None = Field(None, max_length=64)


class UnsubscribeFrame(WireModel):
    """Stop a job's events; the answer is `unsubscribed`."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["unsubscribe"]
    ref: str | None = Field(None, max_length=64)
    job: Annotated[str, Field(pattern=JOB_PATTERN)]


class SubmitFrame(JobRequest):
    """Submit a job; the answer is `submitted` with the job document. `subscribe` starts its events as well."""

    op: Literal["submit"]
    ref: str | None = Field(None, max_length=64)
    kind: Annotated[str, Field(pattern=KIND_PATTERN)]
    idempotency_key: str | None = Field(None, min_length=1, max_length=255)
    subscribe: bool = True


class CancelFrame(WireModel):
    """Cancel a job; the answer is `cancelling` with the job document."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["cancel"]
    ref: str | None = Field(None, max_length=64)
    job: Annotated[str, Field(pattern=JOB_PATTERN)]
    reason: str = Field("cancelled by the client", min_length=1, max_length=500)


ClientFrame = Annotated[SubscribeFrame | UnsubscribeFrame | SubmitFrame | CancelFrame, Field(discriminator="op")]
CLIENT_FRAME: Final[TypeAdapter[SubscribeFrame | UnsubscribeFrame | SubmitFrame | CancelFrame]] = TypeAdapter(
    ClientFrame, config=ConfigDict(defer_build=True)
)
# A frame of the server either has `op` (an answer: subscribed, unsubscribed, submitted, cancelling, error; with the
# request's `ref`) or is an event, the same bytes as on any other transport.

MAX_FRAME_BYTES: Final = 64 * 1024
MAX_SUBSCRIPTIONS: Final = 100
