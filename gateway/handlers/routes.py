"""The shape of the route table: `gateway.app` serves from it, `gateway.openapi` describes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiohttp.typedefs import Handler
from pydantic import BaseModel

from gateway.tokens import Right


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or a request header."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one status means, and what its body is; no content types: no body."""

    description: str
    model: type[BaseModel] | None = None
    content_types: tuple[str, ...] = ("application/json",)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    Every path parameter in braces is described in `PATH_PARAMETERS`. Problems need no entry in `responses`: any route
    may answer with one.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    path: str
    handler: Handler
    summary: str
    description: str = ""
    responses: Mapping[int, Answer] = field(default_factory=dict)
    request: type[BaseModel] | None = None
    """The model of a JSON body."""
    other_bodies: tuple[str, ...] = ()
    """Content types that are taken as well, multipart or raw."""
    parameters: tuple[Parameter, ...] = ()
    public: bool = False
    """No API key is asked for."""
    right: Right | None = None
    """What a token must allow to open it; None: it asks for an API key. Whose job or kind it is is checked besides."""
    held: bool = False
    """The answer may be a stream: counted against its owner's limit, and HEAD is not served."""
    hidden: bool = False
    """Not in the API's description: pages and the like."""


PATH_PARAMETERS: Final[Mapping[str, str]] = {
    "job": "The job's id.",
    "kind": "The kind of work, such as `ocr`; `GET /v1/kinds` lists them.",
    "index": "The output's index.",
    "name": "The file's name, as the job document says it.",
    "upload": "The upload's id.",
    "response": "The response's id, `resp_` and the job's.",
    "path": "A file of the browser client.",
}

SECONDS: Final[Mapping[str, Any]] = {"type": "number", "minimum": 0, "maximum": 50}
EVENT_STREAM: Final = ("text/event-stream", "application/x-ndjson", "application/json")
NO_BODY: Final[tuple[str, ...]] = ()
