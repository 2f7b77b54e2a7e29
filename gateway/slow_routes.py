"""The route file: which public paths lead to which slow upstreams, and how their answers come back.

    [[route]]
    path = "/api/ocr"
    upstream = "http://app:8000/api/ocr"
    mode = "hold"
    timeout = "2h"

A path that ends in `/*` stands for all below it; the upstream then ends so too. A mistake stops the start with the line
and the key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.errors import ConfigurationError
from gateway.upstreams import Upstreams

# First segments that are the gateway's own.
RESERVED: Final = frozenset(
    {"", "v1", "openai", "_probe", "client", "docs", "docs.css", "openapi.json", "healthz", "readyz", "metrics"}
)
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()+,;=:@%-]+)+(/\*)?", re.ASCII)
_DURATION: Final = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,3})?) ?(s|m|h|d)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


def _seconds(value: object) -> object:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('give a number and its unit: "90s", "15m", "2h", "1d"')
    return float(match[1]) * _SECONDS[match[2]]


class SlowRoute(BaseModel):
    """One public path and the upstream behind it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    upstream: str
    mode: Literal["hold", "async", "sse"] = "hold"
    timeout: Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=7 * 86_400)] = 86_400.0
    methods: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
    retries: int = Field(2, ge=0, le=4)
    idempotent: bool | None = None
    json_: bool = Field(True, alias="json")
    """Whether the upstream answers JSON, so that white space may come before it."""
    key: bool = True
    """Whether a gateway with API keys asks for one; without, the upstream asks for what it wants."""
    on_disconnect: Literal["continue", "cancel"] = "continue"

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        if _PATH.fullmatch(value) is None or {".", ".."} & set(value.split("/")):
            raise ValueError('a path looks like "/api/ocr", or "/api/*" for all below it')
        if value.split("/")[1] in RESERVED:
            raise ValueError(f"/{value.split('/')[1]} is the gateway's own")
        return value

    @field_validator("upstream")
    @classmethod
    def _check_upstream(cls, value: str) -> str:
        Upstreams([value.removesuffix("*")])
        if "://*" in value:
            raise ValueError("name one host: a route is no open proxy")
        return value

    @model_validator(mode="after")
    def _check(self) -> SlowRoute:
        if self.path.endswith("/*") != self.upstream.endswith("/*"):
            raise ValueError("path and upstream both end in /*, or neither does")
        comes_later = self.mode == "async" or (self.mode == "hold" and not self.json_)
        if comes_later and not self.key:
            what = "mode async" if self.mode == "async" else "json = false"
            raise ValueError(f"{what} needs key = true: whoever has no key could not fetch an answer that comes later")
        if self.mode == "sse" and "HEAD" in self.methods:
            raise ValueError("mode sse takes no HEAD: a stream is all body")
        return self

    @property
    def listed(self) -> str:
        """What it adds to the URLs that may be called."""
        return self.upstream.removesuffix("*")

    def url(self, path_and_query: str) -> str:
        """The upstream's URL for a request, whose path comes as it was sent."""
        path, mark, query = path_and_query.partition("?")
        if not self.path.endswith("*"):
            return self.upstream + mark + query
        return self.listed + path[len(self.path) - 1 :] + mark + query


def find_route(routes: Sequence[SlowRoute], method: object, path_and_query: str) -> SlowRoute | None:
    """The route that answers a request to this path, as it was sent; None if there is none."""
    path = path_and_query.partition("?")[0]
    for route in routes:
        is_meant = path.startswith(route.path[:-1]) if route.path.endswith("*") else path == route.path
        if is_meant and method in route.methods:
            return route
    return None


def load_routes(file: Path | None) -> tuple[SlowRoute, ...]:
    """The routes of a file, none without one. Raises `ConfigurationError` with the line and the key."""
    if file is None:
        return ()
    try:
        text = file.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"OUTLAST_ROUTES: {file} can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: this is no TOML: {error}") from None
    tables = document.get("route", [])
    if unknown := sorted(document.keys() - {"route"}):
        raise ConfigurationError(f"{file}, line {_line(text, 0, unknown[0])}: {unknown[0]}: only [[route]] stands here")
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigurationError(f"{file}: write each route under a [[route]] of its own")
    routes: list[SlowRoute] = []
    for number, table in enumerate(tables, 1):
        routes.append(_route(file, text, number, table))
        taken = {(route.path, method) for route in routes[:-1] for method in route.methods}
        if twice := sorted(method for method in routes[-1].methods if (routes[-1].path, method) in taken):
            line = _line(text, number, "path")
            raise ConfigurationError(f"{file}, line {line}: path: {routes[-1].path} has a route for {twice[0]} already")
    return tuple(routes)


def _route(file: Path, text: str, number: int, table: Mapping[str, Any]) -> SlowRoute:
    try:
        return SlowRoute.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            message = "this key is missing"
        elif first["type"] == "extra_forbidden":
            known = ", ".join(field.alias or name for name, field in SlowRoute.model_fields.items())
            message = f"unknown key; known: {known}"
        where = f"{file}, line {_line(text, number, key)}: "
        raise ConfigurationError(where + (f"{key}: {message}" if key else message)) from None


def _line(text: str, number: int, key: str) -> int:
    """The line of a key in the n-th route, or of that route where it has no such key."""
    seen, route_line = 0, 1
    for line, content in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[\[\s*route\s*\]\]", content):
            seen += 1
            route_line = line if seen == number else route_line
        elif seen == number and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", content):
            return line
    return route_line
