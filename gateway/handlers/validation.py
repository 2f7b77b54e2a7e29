"""Inputs against a kind's JSON Schema, and pydantic's findings, as one list of fields and reasons."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any, Final, TypeVar

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError as SchemaError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from referencing import Registry

from gateway.documents import KindDocument
from gateway.errors import InvalidInput
from gateway.handlers.schema_rules import TooComplex, bounded, within
from gateway.upstreams import Refused, Upstreams

# So many wrong fields are named; a client that sends a thousand does not need them all.
_MAX_ERRORS: Final = 50
_MAX_MESSAGE: Final = 300
# Above either, checking can take longer than the event loop may be held up (20 us per value): a thread does it.
_IN_LOOP_BYTES: Final = 4096
_IN_LOOP_RULES: Final = 300
# An input of the greatest size that is one list of digits takes two thirds of this, and some seconds of a core.
_MOST_RULES: Final = 200_000
# They take the interpreter in turns with the loop: more of them at once would only keep everybody's streams waiting.
_THREADS: Final = 2

Model = TypeVar("Model", bound=BaseModel)


class Validators:
    """One compiled validator per kind, made anew when the kind's schema changes.

    A string of the format `upstream-url` must be a URL that may be called.
    """

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._formats = FormatChecker(())

        def is_allowed(url: object) -> bool:
            return not isinstance(url, str) or upstreams.check(url) is not None

        self._formats.checks("upstream-url", raises=Refused)(is_allowed)
        self._compiled: dict[str, tuple[dict[str, Any], Validator]] = {}
        self._threads = asyncio.Semaphore(_THREADS)

    async def check(self, kind: KindDocument, value: Any, *, urls: bool = True) -> None:
        """Raises `InvalidInput`, naming every wrong field and why; `urls`: whether its URLs must be listed."""
        validator = self._validator(kind)
        if not urls:
            validator = validator.evolve(format_checker=None)
        try:
            errors = await self._errors(validator, value)
        except TooComplex:
            raise InvalidInput(
                f"The input takes too long to check: its parts fit too many alternatives of the kind {kind.kind}'s"
                " schema. Nest it less deeply, or send less at once.",
                code="input_too_complex",
                errors=[{"field": "input", "message": "it takes too long to check"}],
            ) from None
        if errors:
            # What is wrong with nothing but an address has a code of its own.
            code = errors[0].get("code") if len(errors) == 1 else None
            raise InvalidInput(_detail(errors, f"the kind {kind.kind}"), errors=errors, code=code)

    async def _errors(self, validator: Validator, value: Any) -> list[dict[str, str]]:
        """What is wrong with a value. Raises `TooComplex`."""
        if len(to_json(value)) <= _IN_LOOP_BYTES:
            try:
                return _schema_errors(validator, value, _IN_LOOP_RULES)
            except TooComplex:
                pass
        async with self._threads:
            return await asyncio.to_thread(_schema_errors, validator, value, _MOST_RULES)

    def check_url(self, field: str, url: str) -> None:
        """Raises `InvalidInput` for a URL that may not be called."""
        try:
            self._upstreams.check(url)
        except Refused as refused:
            raise refused_url(field, refused) from None

    def _validator(self, kind: KindDocument) -> Validator:
        known = self._compiled.get(kind.kind)
        if known is not None and known[0] == kind.input_schema:
            return known[1]
        cls = bounded(validator_for(kind.input_schema, default=Draft202012Validator))
        # An empty registry: a `$ref` into the network is an error, never a request.
        validator = cls(kind.input_schema, registry=Registry(), format_checker=self._formats)
        self._compiled[kind.kind] = (kind.input_schema, validator)
        return validator


def _schema_errors(validator: Validator, value: Any, most_rules: int) -> list[dict[str, str]]:
    with within(most_rules):
        found = [_schema_error(error) for error in islice(validator.iter_errors(value), _MAX_ERRORS)]
    return sorted(found, key=lambda error: error["field"])


def _schema_error(error: SchemaError) -> dict[str, str]:
    # "not valid under any of the given schemas" helps nobody: the alternative that came closest says more.
    closest = best_match([error]) or error
    path = ["input", *(str(part) for part in closest.absolute_path)]
    if isinstance(closest.cause, Refused):
        return {"field": ".".join(path), "message": closest.cause.detail, "code": closest.cause.code}
    message, rule, value = closest.message, closest.validator_value, closest.instance
    if closest.validator == "required" and isinstance(value, dict) and isinstance(rule, list):
        missing = [name for name in rule if message.startswith(repr(name))]
        if missing:
            path.append(missing[0])
            message = "this field is required"
    elif closest.validator == "additionalProperties" and isinstance(value, dict) and isinstance(closest.schema, dict):
        known = closest.schema.get("properties", {})
        unknown = [name for name in value if name not in known]
        if len(unknown) == 1:
            path.append(str(unknown[0])[:64])
        message = f"unknown field; known: {', '.join(known) or 'none'}"
    return {"field": ".".join(path), "message": message[:_MAX_MESSAGE]}


def validated(model: type[Model], value: Any, *, within: str = "") -> Model:
    """A client's value as a model. Raises `InvalidInput`, naming every wrong field and why."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = []
        for problem in islice(error.errors(include_url=False), _MAX_ERRORS):
            path = [*([within] if within else []), *(str(part)[:64] for part in problem["loc"])]
            message = problem["msg"]
            if problem["type"] == "extra_forbidden":
                message = f"unknown field; known: {', '.join(model.model_fields)}"
            errors.append({"field": ".".join(path) or "body", "message": message[:_MAX_MESSAGE]})
        raise InvalidInput(_detail(errors, "the request"), errors=errors) from None


def wrong_field(field: str, message: str) -> InvalidInput:
    """What is wrong with one field."""
    return InvalidInput(f"{field}: {message}.", errors=[{"field": field, "message": message}])


def refused_url(field: str, refused: Refused) -> InvalidInput:
    """Why the URL in a field may not be called."""
    error = {"field": field, "message": refused.detail, "code": refused.code}
    return InvalidInput(f"{field}: {refused.detail}", errors=[error], code=refused.code)


def _detail(errors: list[dict[str, str]], what: str) -> str:
    first = errors[0]
    more = f" ({len(errors) - 1} more in `errors`)" if len(errors) > 1 else ""
    return f"{first['field']}: {first['message']}{more}. This is not valid for {what}."
