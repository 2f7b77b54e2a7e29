"""A submit's parts: strict JSON, schemas, fingerprints, files and their names."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.documents import KindDocument
from gateway.errors import BadRequest, InvalidInput, TooLarge, UnsupportedType
from gateway.handlers.filenames import clean_name, guess_type, media_type, unique_name
from gateway.handlers.strict_json import read_json
from gateway.handlers.submission import (
    UploadedFile,
    check_file_allowed,
    check_files,
    check_size,
    checked_key,
    fingerprint,
)
from gateway.handlers.validation import Validators, validated
from gateway.requests import JobOptions, JobRequest
from gateway.store import StoredFile
from gateway.upstreams import Upstreams


def uploaded(name: str = "a.pdf", content_type: str = "application/pdf", sha256: str = "00") -> UploadedFile:
    """A file as an upload leaves it."""
    return UploadedFile(StoredFile(name, content_type, 3, "jobs/x/1"), sha256)


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b'{"a":[1,2.5,"\\u0000\xc3\xbc",null,true,{}]}', b" 7 ", b'"x"', b"1e308", b"-0"])
def test_good_json_is_read_as_ever(text: bytes) -> None:
    """Strictness takes nothing away from it."""
    assert read_json(text, "It") == json.loads(text)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**99), 10**99)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.booleans(),
)
@example(-(10**99), True)
def test_whatever_json_can_say_is_read_as_it_was_said(value: Any, ascii_: bool) -> None:
    """Any nesting, any characters, escaped or not."""
    assert read_json(json.dumps(value, ensure_ascii=ascii_).encode(), "It") == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a":1,"b":{"c":1,"c":1}}', "'c' stands twice"),
        (b"[NaN]", "expected value"),
        (b"[Infinity]", "expected value"),
        (b"[-1e999]", "out of range"),
        (b"1" * 101, "101 digits"),
        (b"[" * 300 + b"]" * 300, "recursion"),
        (b'["\\udc00"]', "surrogate"),
        (b'["\xff"]', "invalid"),
        (b"", "EOF"),
        (b"{} {}", "trailing"),
        (b"{'a':1}", "key"),
    ],
)
def test_json_that_could_be_read_in_two_ways_is_refused(text: bytes, reason: str) -> None:
    """And the reason says where to look."""
    with pytest.raises(BadRequest, match=reason) as refused:
        read_json(text, "The body")

    assert refused.value.code == "bad_json"


# --- schemas --------------------------------------------------------------------------------------------------------


def errors_of(schema: dict[str, Any], value: Any) -> list[tuple[str, str]]:
    """The fields that a schema finds wrong, with the reasons."""
    kind = KindDocument(kind="k", input_schema=schema)
    try:
        asyncio.run(Validators(Upstreams()).check(kind, value))
    except InvalidInput as error:
        return [(entry["field"], entry["message"]) for entry in error.errors]
    return []


def test_each_wrong_field_has_its_path_and_reason() -> None:
    """Missing, unknown and wrong fields, down in lists and objects."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "object", "required": ["x"]}}, "b": {"minimum": 3}},
        "required": ["c"],
        "additionalProperties": False,
    }

    assert errors_of(schema, {"a": [{"x": 1}, {}], "b": 1, "d": 1}) == [
        ("input.a.1.x", "this field is required"),
        ("input.b", "1 is less than the minimum of 3"),
        ("input.c", "this field is required"),
        ("input.d", "unknown field; known: a, b"),
    ]


def test_of_several_alternatives_the_closest_is_explained() -> None:
    """Not only that none of them fits."""
    schema = {"properties": {"a": {"anyOf": [{"type": "object", "required": ["x"]}, {"type": "null"}]}}}

    assert errors_of(schema, {"a": {}}) == [("input.a.x", "this field is required")]


def test_a_reference_into_the_network_is_never_followed() -> None:
    """It is a defect of the kind, not a request of ours."""
    with pytest.raises(Exception, match="example"):
        errors_of({"$ref": "http://example.invalid/schema.json"}, {})


def test_a_changed_schema_is_compiled_anew() -> None:
    """A new release of a worker may want other fields."""
    validators = Validators(Upstreams())
    asyncio.run(validators.check(KindDocument(kind="k", input_schema={"type": "object"}), {}))

    with pytest.raises(InvalidInput):
        asyncio.run(validators.check(KindDocument(kind="k", input_schema={"required": ["a"]}), {}))


def test_a_very_long_value_does_not_come_back_in_the_reason() -> None:
    """The answer stays small, whatever was sent."""
    [(_, message)] = errors_of({"properties": {"a": {"type": "integer"}}}, {"a": "x" * 100_000})

    assert len(message) <= 300


def test_a_set_of_thousands_is_checked_in_no_time() -> None:
    """Its items are not compared with all others, also where they can't be sorted."""
    schema = {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "uniqueItems": True}
    mixed: list[Any] = [number if number % 2 else str(number) for number in range(4000)]

    began = time.process_time()
    assert errors_of({"properties": {"a": schema}}, {"a": mixed}) == []
    assert time.process_time() - began < 5  # One by one it takes half a minute, and ten times as many an hour.


@pytest.mark.parametrize(
    ("items", "is_set"),
    [
        ([1, 1.0], False),
        ([1, True, 0, False, "1", None], True),
        ([[1, 2], [2, 1]], True),
        ([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], False),
        ([[1], [True]], True),
        ([{}, [], ""], True),
    ],
)
def test_a_set_is_one_by_what_json_calls_equal(items: list[Any], is_set: bool) -> None:
    """A number by its value, an object whatever its order, and a boolean is no number."""
    found = errors_of({"properties": {"a": {"uniqueItems": True}}}, {"a": items})

    assert found == ([] if is_set else [("input.a", "an item stands in it twice")])


def test_a_schema_that_contains_itself_twice_costs_no_power_of_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alternative would be tried at each level; it is given up and said."""
    monkeypatch.setattr("gateway.handlers.validation._MOST_RULES", 5000)
    both = {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}
    schema = {
        "$defs": {
            name: {"type": "object", "properties": {"of": both, "op": {"const": name}}, "required": ["op"]}
            for name in ("a", "b")
        },
        "properties": {"tree": both},
    }
    tree: dict[str, Any] = {"op": "neither"}
    for _ in range(60):
        tree = {"op": "neither", "of": tree}

    with pytest.raises(InvalidInput) as refused:
        asyncio.run(Validators(Upstreams()).check(KindDocument(kind="k", input_schema=schema), {"tree": tree}))

    assert refused.value.code == "input_too_complex"


async def test_few_large_inputs_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for their turn, and the event loop doesn't wait for all of them."""
    inside, most, three = 0, 0, threading.Barrier(3)

    def check(*_: object) -> list[dict[str, str]]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        # A third one, if it may come in, is there in this time.
        with suppress(threading.BrokenBarrierError):
            three.wait(0.5)
        inside -= 1
        return []

    monkeypatch.setattr("gateway.handlers.validation._schema_errors", check)
    validators, large = Validators(Upstreams()), {"a": "x" * 5000}
    await asyncio.gather(*(validators.check(KindDocument(kind="k"), large) for _ in range(6)))

    assert most == 2


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    """What is not built is refused, never ignored."""
    with pytest.raises(InvalidInput) as refused:
        validated(JobRequest, {"input": {}, "prioritty": "high"})

    assert refused.value.errors[0]["field"] == "prioritty"
    assert "priority" in refused.value.errors[0]["message"]


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_meaning() -> None:
    """Order of names and defaults that are spelt out change nothing; everything else does."""
    plain = fingerprint("ocr", JobOptions(), {"a": 1, "b": [1, 2]}, [uploaded()])

    assert fingerprint("ocr", JobOptions(priority="normal"), {"b": [1, 2], "a": 1}, [uploaded()]) == plain
    for other in (
        fingerprint("llm", JobOptions(), {"a": 1, "b": [1, 2]}, [uploaded()]),
        fingerprint("ocr", JobOptions(priority="low"), {"a": 1, "b": [1, 2]}, [uploaded()]),
        fingerprint("ocr", JobOptions(), {"a": 1, "b": [2, 1]}, [uploaded()]),
        fingerprint("ocr", JobOptions(), {"a": 1, "b": [1, 2]}, [uploaded(name="b.pdf")]),
        fingerprint("ocr", JobOptions(), {"a": 1, "b": [1, 2]}, [uploaded(content_type="image/png")]),
        fingerprint("ocr", JobOptions(), {"a": 1, "b": [1, 2]}, [uploaded(sha256="01")]),
        fingerprint("ocr", JobOptions(), {"a": 1, "b": [1, 2]}, []),
        fingerprint("ocr", JobOptions(), {"a": 1, "b": [1, 2]}, [uploaded()], "old"),
    ):
        assert other != plain


@pytest.mark.parametrize("key", ["", "a\n", "ü", "a" * 256])
def test_a_key_that_could_not_stand_in_a_header_is_refused(key: str) -> None:
    """The WebSocket, which could carry it, has the same rule."""
    with pytest.raises(BadRequest):
        checked_key(key)


def test_a_good_key_and_none_are_kept() -> None:
    """As they came."""
    assert checked_key("a b-1") == "a b-1"
    assert checked_key(None) is None


def test_an_input_over_the_limit_is_refused_by_its_json() -> None:
    """Bytes count, not characters."""
    check_size({"a": "ü" * 4}, 16)
    with pytest.raises(TooLarge):
        check_size({"a": "ü" * 5}, 16)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "content_type", "good"),
    [
        ([], "x/y", True),
        (["*/*"], "x/y", True),
        (["image/*"], "image/png", True),
        (["image/*"], "imagex/png", False),
        (["image/*", "application/pdf"], "application/pdf", True),
        (["Application/PDF"], "application/pdf", True),
        (["application/pdf"], "application/pdfx", False),
    ],
)
def test_a_kind_reads_the_types_that_it_names(allowed: list[str], content_type: str, good: bool) -> None:
    """Exact ones, whole families, or any."""
    kind = KindDocument(kind="k", files="optional", content_types=allowed)
    if good:
        check_file_allowed(kind, content_type)
    else:
        with pytest.raises(UnsupportedType):
            check_file_allowed(kind, content_type)


def test_a_kind_gets_the_files_that_it_asks_for() -> None:
    """Required, none, or as you like."""
    check_files(KindDocument(kind="k", files="required"), [uploaded()])
    check_files(KindDocument(kind="k", files="optional"), [])
    with pytest.raises(InvalidInput) as missing:
        check_files(KindDocument(kind="k", files="required"), [])
    with pytest.raises(UnsupportedType) as unwanted:
        check_files(KindDocument(kind="k"), [uploaded()])

    assert (missing.value.code, unwanted.value.code) == ("file_required", "file_not_allowed")


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("scan.pdf", "scan.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\docs\\scan.pdf", "scan.pdf"),
        ("a\x00b\r\nc\x1b.pdf", "abc.pdf"),
        ("evil\u202efdp.exe", "evilfdp.exe"),
        ("U\u0308ber.pdf", "Über.pdf"),
        ("  two   words .pdf ", "two words .pdf"),
        ("..", "file"),
        ("", "file"),
        ("/", "file"),
        (".hidden", "hidden"),
        ("\ud800.pdf", "pdf"),
        ("a" * 400 + ".tiff", "a" * 195 + ".tiff"),
        ("ü" * 400, "ü" * 100),
    ],
)
def test_a_name_loses_what_could_mislead(name: str, clean: str) -> None:
    """Paths, control characters, changes of direction, endless length."""
    assert clean_name(name) == clean


@given(st.text(st.characters()) | st.text(" .-aé€\u0301\u200d", min_size=150))
@example("a" * 199 + " b.pdf")
@example("a" * 199 + " b")
@example("e\u200d\u0301.pdf")
def test_any_name_is_clean_after_one_cleaning(name: str) -> None:
    """Short, on one line, no path and not hidden, whatever it was; a second cleaning finds nothing to do."""
    clean = clean_name(name)

    assert 0 < len(clean.encode()) <= 200
    assert not set(clean) & set("/\\\0\r\n\u202e")
    assert not clean.startswith((".", " "))
    assert clean_name(clean) == clean


def test_a_nameless_file_is_named_by_its_type() -> None:
    """So that a download has an ending."""
    assert clean_name("", "application/pdf") == "file.pdf"


def test_names_are_made_unique() -> None:
    """The ending stays where it was."""
    assert unique_name("a.pdf", set()) == "a.pdf"
    assert unique_name("a.pdf", {"a.pdf", "a-2.pdf"}) == "a-3.pdf"
    assert unique_name("a", {"a"}) == "a-2"


@given(st.lists(st.sampled_from(["a", "a-2", "a.pdf", "a-2.pdf", ".a", "a."])))
def test_in_any_row_of_names_each_is_there_once(names: list[str]) -> None:
    """Also where a name looks like one that was made unique; only a name that is taken is changed."""
    taken: set[str] = set()
    for name in names:
        made = unique_name(name, taken)

        assert made not in taken
        assert made == name or name in taken
        taken.add(made)


@pytest.mark.parametrize(
    ("name", "first", "content_type"),
    [
        ("x", b"%PDF-1.7", "application/pdf"),
        ("x.txt", b"\x89PNG\r\n\x1a\n...", "image/png"),
        ("x", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("x", b"II*\x00", "image/tiff"),
        ("x", b"MM\x00*", "image/tiff"),
        ("x", b"RIFF\x00\x00\x00\x00WEBP", "image/webp"),
        ("x", b"RIFF\x00\x00\x00\x00WAVE", "application/octet-stream"),
        ("x.csv", b"a,b", "text/csv"),
        ("x", b"", "application/octet-stream"),
    ],
)
def test_a_file_is_known_by_its_bytes_else_by_its_name(name: str, first: bytes, content_type: str) -> None:
    """Where the client did not say."""
    assert guess_type(name, first) == content_type


def test_a_content_type_is_read_without_its_parameters() -> None:
    """And nonsense is refused rather than guessed at."""
    assert media_type("Text/Plain; charset=utf-8") == "text/plain"
    assert media_type(None) is None
    assert media_type(" ") is None
    with pytest.raises(UnsupportedType):
        media_type("pdf")
