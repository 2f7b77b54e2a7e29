"""The API's description, made from the route table and the models: OpenAPI 3.1 for tools, a page for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.documents import EventDocument, Problem
from gateway.handlers.problem_codes import PROBLEM_CODES
from gateway.handlers.routes import PATH_PARAMETERS, Answer, Route
from gateway.protocol import CLOSE_CODES, should_come_back
from gateway.requests import CancelFrame, SubmitFrame, SubscribeFrame, UnsubscribeFrame

_REF: Final = "#/components/schemas/{model}"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
# Models that no route's JSON names, but that the transports speak.
_ALSO: Final[tuple[type[BaseModel], ...]] = (
    Problem,
    EventDocument,
    SubscribeFrame,
    UnsubscribeFrame,
    SubmitFrame,
    CancelFrame,
)
_PROBLEM: Final = {
    "description": "A problem document (RFC 9457); `code` is stable.",
    "content": {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}},
}


def openapi_document(routes: Iterable[Route]) -> dict[str, Any]:
    """The routes as an OpenAPI 3.1 document."""
    routes = [route for route in routes if not route.hidden]
    models = {model for route in routes for model in _models(route)} | set(_ALSO)
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema([(model, "validation") for model in ordered], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Outlast",
            "version": version("outlast"),
            "description": "Long jobs with numbered events and resumable streams.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key."},
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of POST /v1/tokens. It must allow what the operation names.",
                },
            },
            "responses": {"Problem": _PROBLEM},
        },
    }


def _models(route: Route) -> Iterable[type[BaseModel]]:
    if route.request is not None:
        yield route.request
    for answer in route.responses.values():
        if answer.model is not None:
            yield answer.model


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": getattr(route.handler, "__name__", "handler"),
        "summary": route.summary,
        "parameters": [*_path_parameters(route.path), *_parameters(route)],
        "responses": {str(status): _response(answer) for status, answer in route.responses.items()}
        | {"default": {"$ref": "#/components/responses/Problem"}},
        "security": _security(route),
    }
    if route.description:
        operation["description"] = route.description
    if route.request is not None or route.other_bodies:
        content: dict[str, Any] = {}
        if route.request is not None:
            content["application/json"] = {"schema": {"$ref": _REF.format(model=route.request.__name__)}}
        for content_type in route.other_bodies:
            content[content_type] = {}
        operation["requestBody"] = {"required": False, "content": content}
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.public:
        return []
    # [spec] "For other security scheme types, the array MAY contain a list of role names which are required for the
    # execution, but are not otherwise defined or exchanged in-band." (OpenAPI 3.1, Security Requirement Object)
    by_token: list[dict[str, list[str]]] = [{"token": [route.right]}] if route.right is not None else []
    return [{"key": []}, *by_token]


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in _PARAMETER.findall(path)
    ]


def _parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": parameter.name,
            "in": parameter.place,
            "required": False,
            "description": parameter.description,
            "schema": dict(parameter.schema),
        }
        for parameter in route.parameters
        # [spec] "If in is "header" and the name field is "Accept", "Content-Type" or "Authorization", the parameter
        # definition SHALL be ignored." (OpenAPI 3.1, Parameter Object)
        if not (parameter.place == "header" and parameter.name in {"Accept", "Content-Type", "Authorization"})
    ]


def _response(answer: Answer) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.description}
    if answer.content_types:
        response["content"] = {}
        for content_type in answer.content_types:
            is_model = answer.model is not None and content_type == "application/json"
            schema = {"schema": {"$ref": _REF.format(model=answer.model.__name__)}} if is_model and answer.model else {}
            response["content"][content_type] = schema
    if answer.headers:
        response["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    return response


# --- the page ---------------------------------------------------------------------------------------------------------


def docs_page(routes: Sequence[Route]) -> str:
    """The same for people: one page, no script, nothing from elsewhere."""
    shown = [route for route in routes if not route.hidden]
    schemas = openapi_document(routes)["components"]["schemas"]
    return _PAGE.format(
        version=escape(version("outlast")),
        routes="\n".join(_route_section(route) for route in shown),
        problems="\n".join(
            f'<tr id="problem-{escape(code)}"><td><code>{escape(code)}</code></td><td>{_text(row.where)}</td>'
            f"<td>{_text(row.meaning)}</td><td>{_text(row.advice)}</td></tr>"
            for code, row in PROBLEM_CODES.items()
        ),
        closes="\n".join(
            f"<tr><td>{number}</td><td><code>{code.value}</code></td>"
            f"<td>{'come back with your cursors' if should_come_back(number) else 'do not come back'}</td></tr>"
            for code, number in CLOSE_CODES.items()
        ),
        models="\n".join(_model_section(name, schema) for name, schema in sorted(schemas.items())),
    )


def _route_section(route: Route) -> str:
    rows = [
        f"<tr><td><code>{escape(parameter.name)}</code></td><td>{parameter.place}</td><td>{_text(parameter.description)}</td></tr>"
        for parameter in route.parameters
    ]
    parameters = f"<table><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    body = ""
    if route.request is not None:
        body = f"<p>Body: {_model_link(route.request)}{''.join(f', {escape(kind)}' for kind in route.other_bodies)}</p>"
    answers = "".join(
        f"<tr><td>{status}</td><td>{_text(answer.description)}</td>"
        f"<td>{_model_link(answer.model) if answer.model else ''}"
        f" {escape(', '.join(answer.content_types))}</td></tr>"
        for status, answer in sorted(route.responses.items())
    )
    asked = "API key" if route.right is None else f"API key, or a token that may {route.right}"
    key = "" if route.public else f' <span class="key">{asked}</span>'
    return (
        f'<section class="route"><h3><span class="method">{route.method}</span>'
        f" <code>{escape(route.path)}</code>{key}</h3>"
        f"<p>{_text(route.summary)}. {_text(route.description)}</p>{parameters}{body}"
        f"<table><tbody>{answers}</tbody></table></section>"
    )


def _model_link(model: type[BaseModel]) -> str:
    return f'<a href="#model-{model.__name__}">{model.__name__}</a>'


def _model_section(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{escape(_type_of(value))}</td>"
        f"<td>{'required' if field in required else ''}</td><td>{_text(str(value.get('description', '')))}</td></tr>"
        for field, value in schema.get("properties", {}).items()
    )
    if not rows and "enum" in schema:
        rows = f"<tr><td>{escape(', '.join(str(value) for value in schema['enum']))}</td></tr>"
    description = _text(str(schema.get("description", "")))
    return (
        f'<section id="model-{escape(name)}"><h3>{escape(name)}</h3><p>{description}</p>'
        f"<table><tbody>{rows}</tbody></table></section>"
    )


def _type_of(schema: dict[str, Any]) -> str:
    """A schema in a word or two."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type_of(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _text(text: str) -> str:
    """Plain text with `code` in it, as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Outlast API</title>
<link rel="icon" href="/client/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/docs.css">
</head>
<body>
<header><h1>Outlast API <small>{version}</small></h1>
<nav><a href="/">Page</a> <a href="#routes">Routes</a> <a href="#websocket">WebSocket</a>
<a href="#problems">Problems</a> <a href="#models">Models</a> <a href="/openapi.json">openapi.json</a></nav></header>
<main>
<h2 id="start">Start here</h2>
<pre>curl -sS http://127.0.0.1:8080/v1/kinds
curl -sS http://127.0.0.1:8080/v1/kinds/ocr/jobs -H 'Content-Type: application/pdf' --data-binary @scan.pdf
curl -N  http://127.0.0.1:8080/v1/jobs/JOB/events
curl -N  http://127.0.0.1:8080/v1/jobs/JOB/events -H 'Last-Event-ID: 5'
curl -sS http://127.0.0.1:8080/v1/jobs/JOB/result -H 'Accept: text/plain'</pre>
<p>Where API keys are set, add <code>-H 'Authorization: Bearer ...'</code>; a page that others open has a token of
<code>POST /v1/tokens</code> instead. Every error is a problem document
(RFC 9457) with a stable <code>code</code>; every stream resumes by its last <code>id:</code>.</p>
<h2 id="routes">Routes</h2>
{routes}
<h2 id="websocket">WebSocket</h2>
<p>One socket at <code>/v1/ws</code>, many jobs. You send frames with an <code>op</code>:
<a href="#model-SubscribeFrame">subscribe</a>, <a href="#model-UnsubscribeFrame">unsubscribe</a>,
<a href="#model-SubmitFrame">submit</a>, <a href="#model-CancelFrame">cancel</a>. Answers have an <code>op</code> and
your <code>ref</code>; events have none and are the same text as in <code>data:</code> of a stream. A browser sends its
API key or token as a subprotocol: <code>outlast.v1</code> and <code>outlast.key.</code> followed by it in
base64url.</p>
<table><thead><tr><th>Close</th><th>Name</th><th>Advice</th></tr></thead><tbody>
{closes}
</tbody></table>
<h2 id="problems">Problems</h2>
<table><thead><tr><th>Code</th><th>Where</th><th>Meaning</th><th>What to do</th></tr></thead><tbody>
{problems}
</tbody></table>
<h2 id="models">Models</h2>
{models}
</main>
</body>
</html>
"""
