"""The pages on HTTP and on errors say what the code does, and so do the two descriptions that the gateway serves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.app import ROUTES
from gateway.config import Settings
from gateway.handlers.problem_codes import PROBLEM_CODES
from gateway.handlers.routes import PATH_PARAMETERS
from gateway.metrics import TABLE
from gateway.openapi import docs_page, openapi_document
from gateway.protocol import EventType
from gateway.requests import JobOptions

ROOT = Path(__file__).parents[2]
HTTP = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
# Calls that make a problem, and which of their arguments is its code.
_MAKERS = {
    "problem": 0,
    "released": 0,
    "_failed": 0,
    "Problem": 0,
    "PageProblem": 0,
    "Rejected": 1,
    "ProcessorError": 0,
    "UpstreamError": 0,
    "LlmFailure": 0,
    "_said": 1,
    "Refused": 0,
}
_CODE = re.compile(r"^[a-z][a-z_]+$")


def test_the_page_lists_every_route_and_no_other() -> None:
    """A new route needs a row, and a removed one takes its row with it."""
    rows = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", HTTP, re.MULTILINE))

    assert rows == {f"{route.method} {route.path}" for route in ROUTES if not route.hidden}


def test_the_page_lists_every_metric_as_it_is() -> None:
    """Name, type, labels and meaning."""
    rows = re.findall(r"^\| `(outlast_[a-z_]+)` \| (\w+) \| (.+?) \| (.+) \|$", HTTP, re.MULTILINE)

    assert rows == [
        (metric.exposed, metric.type, ", ".join(f"`{label}`" for label in metric.labels) or "-", metric.help)
        for metric in TABLE
    ]


def test_the_page_lists_every_option_of_a_submit() -> None:
    """In the order of the model."""
    table = HTTP.partition("| option | meaning |")[2].partition("\n\n")[0]

    assert sorted(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == sorted(JobOptions.model_fields)


def test_the_page_names_only_settings_that_exist() -> None:
    """A renamed setting is renamed here too."""
    for page in (HTTP, ERRORS):
        for name in re.findall(r"OUTLAST_([A-Z_]+)", page):
            assert name.lower() in Settings.model_fields


def test_the_page_on_errors_is_the_table_in_the_code() -> None:
    """Row by row."""
    rows = re.findall(r"^\| `([a-z_]+)` \| (.+?) \| (.+) \| (.+) \|$", ERRORS, re.MULTILINE)

    assert {code: tuple(rest) for code, *rest in rows} == {code: tuple(row) for code, row in PROBLEM_CODES.items()}


def test_the_browser_client_knows_every_code() -> None:
    """As a type, for an editor to complete: those that a page can meet."""
    source = (ROOT / "client_js" / "protocol.js").read_text(encoding="utf-8")
    [union] = re.findall(r"@typedef \{([^}]*)\} GatewayCode", source)

    met = {code for code, meaning in PROBLEM_CODES.items() if meaning.where not in ("client", "start")}
    assert set(re.findall(r'"([a-z_]+)"', union)) == met


def test_the_browser_client_knows_every_event_and_every_option_of_a_submit() -> None:
    """Its types are written by hand, and say no less than the gateway's models."""
    protocol, client = (
        (ROOT / "client_js" / name).read_text(encoding="utf-8") for name in ("protocol.js", "client.js")
    )
    options = client.partition("@typedef {object} JobOptions")[2].partition("*/")[0]

    assert set(re.findall(r'Event<"([a-z_]+)"', protocol)) == {type_.value for type_ in EventType}
    assert sorted(re.findall(r"\[([a-z_]+)\]", options)) == sorted(JobOptions.model_fields)


def test_every_code_that_is_raised_is_explained() -> None:
    """Wherever in the gateway or the processors: a reader of a problem finds its code on the page."""
    raised = {code: where for path in sources() for code, where in codes_of(path)}

    assert raised.keys() - PROBLEM_CODES.keys() == set(), {
        code: where for code, where in raised.items() if code not in PROBLEM_CODES
    }


def test_no_code_is_explained_that_nobody_raises() -> None:
    """A code that is gone takes its row with it."""
    raised = {code for path in sources() for code, _ in codes_of(path)}

    assert PROBLEM_CODES.keys() - raised == set()


def sources() -> Iterator[Path]:
    """The product's modules, without the table itself and the simulator, whose errors are an edge's."""
    for package in ("gateway", "processors"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "problem_codes.py" and "edge" not in path.relative_to(ROOT).parts:
                yield path


def codes_of(path: Path) -> Iterator[tuple[str, str]]:
    """The problem codes that a module makes: `code=`, `default_code`, `{"code": ...}`, a default of `code`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for value in _code_values(node):
            for constant in ast.walk(value):
                text = constant.value if isinstance(constant, ast.Constant) else None
                if isinstance(text, str) and _CODE.match(text):
                    yield text, f"{path.relative_to(ROOT)}:{value.lineno}"


def _code_values(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.keyword(arg="code", value=ast.Constant() | ast.IfExp() as value):
            yield value
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=given) if name in _MAKERS:
            if len(given) > _MAKERS[name] and isinstance(given[_MAKERS[name]], ast.Constant | ast.IfExp):
                yield given[_MAKERS[name]]
        case ast.Assign(targets=[ast.Name(id="default_code")], value=value):
            yield value
        case ast.AnnAssign(target=ast.Name(id="default_code"), value=ast.expr() as value):
            yield value
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "code" and isinstance(value, ast.Constant):
                    yield value
        case ast.arguments(posonlyargs=first, args=rest, defaults=defaults, kwonlyargs=kwonly, kw_defaults=kw_defaults):
            positional = [*first, *rest][len(first) + len(rest) - len(defaults) :]
            for argument, default in [*zip(positional, defaults, strict=True), *zip(kwonly, kw_defaults, strict=True)]:
                if argument.arg == "code" and isinstance(default, ast.Constant):
                    yield default


# --- what the gateway serves ----------------------------------------------------------------------------------------


def references(value: Any) -> Iterator[str]:
    """All `$ref`s in a document."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "$ref":
                yield item
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_the_description_is_whole() -> None:
    """Every reference leads somewhere, operations have names of their own, every path parameter is described."""
    document = openapi_document(ROUTES)
    operations = [operation for path in document["paths"].values() for operation in path.values()]

    for reference in references(document):
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all(operation["summary"] and "default" in operation["responses"] for operation in operations)
    used = {name for route in ROUTES for name in re.findall(r"\{(\w+)\}", route.path)}
    assert used == PATH_PARAMETERS.keys()


def test_the_description_asks_for_a_key_on_both_doors_and_nowhere_else_but_metrics() -> None:
    """What is public says so; a worker outside has its write token instead."""
    for path, operations in openapi_document(ROUTES)["paths"].items():
        for operation in operations.values():
            asked = path.startswith(("/v1/", "/openai/v1/")) and not path.startswith("/v1/worker/")
            assert bool(operation["security"]) == (asked or path == "/metrics")


def test_the_docs_page_is_well_formed() -> None:
    """Each tag that is opened is closed, in order."""
    from html.parser import HTMLParser

    opened: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "link"}:
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Checker().feed(docs_page(ROUTES))

    assert opened == []
