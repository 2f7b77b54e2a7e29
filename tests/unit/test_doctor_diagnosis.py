"""From measurements to findings, from two sets of them to differences, and to words: without a network."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError
from rich.console import Console

from gateway.doctor.compare import compare, explaining
from gateway.doctor.diagnosis import diagnose, origin_finding
from gateway.doctor.drip import Shape
from gateway.doctor.exchange import Ended
from gateway.doctor.finding import Finding
from gateway.doctor.hops import HOPS, UNKNOWN, hop, hops_of_answer, hops_of_request
from gateway.doctor.measured import Answered, Chain, Drip, Silence, Socket
from gateway.doctor.report import Outcome, Report, Step, incident, load_report, route_file, told
from gateway.doctor.terminal import Terminal
from gateway.doctor.verdicts import VERDICTS, Cause
from gateway.errors import InvalidInput
from gateway.slow_routes import load_routes

METHODS: tuple[Literal["GET", "POST"], ...] = ("GET", "POST")
FORMATS: tuple[Literal["sse", "ndjson", "json", "text"], ...] = ("sse", "ndjson", "json", "text")
ENCODINGS: tuple[Literal["identity", "gzip"], ...] = ("identity", "gzip")


def drips(slow: Shape = Shape.PACED, **only: Any) -> tuple[Drip, ...]:
    """A whole matrix, in which the cells that have these values are slow."""
    found = []
    for method, format_, encoding in product(METHODS, FORMATS, ENCODINGS):
        cell = {"method": method, "format": format_, "encoding": encoding}
        hit = all(cell[name] in values for name, values in only.items())
        shape = slow if hit else Shape.PACED
        found.append(Drip(method=method, format=format_, encoding=encoding, shape=shape, status=200))
    return tuple(found)


def over_http2(slow: Shape, **only: Any) -> tuple[Drip, ...]:
    """The matrix's column of HTTP/2."""
    return tuple(drip.model_copy(update={"http": "2"}) for drip in drips(slow, **only) if drip.encoding == "gzip")


def chain(*hops: str, **measured: Any) -> Chain:
    """A chain in which all is well, but for this."""
    answered = Answered(url="https://a.example", method="GET", ended=Ended.WHOLE, status=200, hops=hops)
    healthy = {
        "drips": drips(),
        "headers_held": False,
        "socket": Socket(outcome="works", status=101),
        "bodies": {"500": "whole", "502": "whole", "503": "whole", "504": "whole"},
        "interim": "passed",
        "cached": False,
        "visits": 1,
    }
    return Chain(**{"probe": "ready", "answered": answered} | healthy | measured)


CASES: list[tuple[str, Chain]] = [
    ("all_held", chain(drips=drips(Shape.HELD))),
    ("get_held", chain(drips=drips(Shape.HELD, method=["GET"]))),
    ("post_held", chain(drips=drips(Shape.HELD, method=["POST"]))),
    ("only_sse", chain(drips=drips(Shape.HELD, format=["ndjson", "json", "text"]))),
    ("only_sse", chain(drips=drips(Shape.HELD, format=["json", "text"]))),
    ("json_held", chain(drips=drips(Shape.HELD, format=["json"]))),
    ("compressed_held", chain(drips=drips(Shape.HELD, encoding=["gzip"]))),
    ("compressed_held", chain(drips=drips(Shape.HELD, encoding=["gzip"], format=["text", "json"]))),
    ("some_held", chain(drips=drips(Shape.HELD, format=["sse"]))),
    ("http2_held", chain(drips=drips() + over_http2(Shape.HELD))),
    ("http2_held", chain(drips=drips() + over_http2(Shape.HELD, format=["sse"]))),
    ("get_held", chain(drips=drips(Shape.HELD, method=["GET"]) + over_http2(Shape.HELD, method=["GET"]))),
    ("compressed_held", chain(drips=drips(Shape.HELD, encoding=["gzip"]) + over_http2(Shape.HELD))),
    ("one_behind", chain(drips=drips(Shape.BEHIND))),
    ("one_behind", chain(drips=drips(Shape.BEHIND, format=["sse"]))),
    ("first_held", chain(drips=drips(Shape.FIRST_HELD))),
    ("batched", chain(drips=drips(Shape.BATCHED))),
    ("uneven", chain(drips=drips(Shape.UNEVEN))),
    ("stream_cut", chain(drips=drips(Shape.CUT))),
    ("stream_altered", chain(drips=drips(Shape.ALTERED))),
    ("stream_replaced", chain(drips=drips(Shape.FAILED, format=["ndjson"]))),
    ("upgrade_stripped", chain(socket=Socket(outcome="stripped", status=400))),
    ("upgrade_refused", chain(socket=Socket(outcome="refused", status=404))),
    ("challenge", chain(socket=Socket(outcome="challenged", status=403))),
    ("socket_mute", chain(socket=Socket(outcome="mute", status=101))),
    ("socket_closed", chain(socket=Socket(outcome="closed", status=101, seconds=2))),
    ("socket_altered", chain(socket=Socket(outcome="altered", status=101))),
    ("socket_idle", chain(socket=Socket(outcome="idle_cut", status=101, seconds=30))),
    ("errors_rewritten", chain(bodies={"500": "replaced", "502": "replaced"})),
    ("headers_stripped", chain(missing_headers=("Last-Event-ID",))),
    ("answers_cached", chain(cached=True)),
    ("requests_repeated", chain(visits=2)),
    ("upload_failed", chain(upload="3 of 65536 bytes arrived")),
    ("uploads_refused", chain(refused_bytes=2_000_000)),
    ("silence_cut", chain(silence=Silence(asked_seconds=130, first_byte_cut_seconds=30, first_byte_status=504))),
    ("silence_cut", chain(silence=Silence(asked_seconds=130, gap_cut_seconds=10))),
    ("cut_at_age", chain(silence=Silence(asked_seconds=130, first_byte_cut_seconds=30, paced_cut_seconds=30))),
    ("probe_token", Chain(probe="refused", answered=chain().answered)),
]


@pytest.mark.parametrize(("code", "measured"), CASES, ids=[f"{code}-{n}" for n, (code, _) in enumerate(CASES)])
def test_each_fault_has_its_verdict(code: str, measured: Chain) -> None:
    """One, whose texts are whole."""
    faults = [finding for finding in diagnose(measured, path="/x", host="a.example") if not finding.verdict.note]

    assert [finding.code for finding in faults] == [code]
    words = told(faults[0])
    assert not any(mark in words.title + words.change + words.why for mark in "{}")
    assert "?" not in words.title + words.change


@pytest.mark.parametrize(
    ("notes", "measured"),
    [
        ([], chain()),
        (["headers_held"], chain(headers_held=True)),
        (
            ["compressed_stream"],
            chain(drips=(*drips()[1:], drips()[0].model_copy(update={"content_encoding": "gzip"}))),
        ),
        (["interim_dropped"], chain(interim="dropped")),
        (["gateway_errors_replaced"], chain(bodies={"502": "replaced", "504": "replaced", "500": "whole"})),
        (["body_limit"], chain(refused_bytes=106_000_000)),
        (["silence_limit"], chain(silence=Silence(asked_seconds=130, first_byte_cut_seconds=125))),
        (["socket_idle_limit"], chain(socket=Socket(outcome="idle_cut", status=101, seconds=100))),
        ([], chain(silence=Silence(asked_seconds=130))),
    ],
)
def test_what_is_normal_for_a_proxy_is_no_fault(notes: list[str], measured: Chain) -> None:
    """It is told as a note, or not at all."""
    found = diagnose(measured)

    assert [finding.code for finding in found] == notes
    assert all(finding.verdict.note for finding in found)


def test_most_of_the_matrix_counts_as_all_of_it() -> None:
    """One stream that slipped through, or was hit by something else besides, changes no verdict."""
    rows = list(drips(Shape.FIRST_HELD))
    rows[3] = rows[3].model_copy(update={"shape": Shape.PACED})
    rows[9] = rows[9].model_copy(update={"shape": Shape.UNEVEN})

    assert [finding.code for finding in diagnose(chain(drips=tuple(rows)))] == ["first_held"]


def test_the_switch_is_that_of_the_innermost_hop_that_shows() -> None:
    """The outer ones got it from there."""
    [outer] = diagnose(chain("cloudflare", drips=drips(Shape.HELD)))
    [inner] = diagnose(chain("cloudflare", drips=drips(Shape.HELD), inner_hops=("cloudflare", "nginx")))
    [unknown] = diagnose(chain(drips=drips(Shape.HELD)))

    assert "Response Body Buffering = None" in told(outer).change
    assert "proxy_buffering off" in told(inner).change
    assert told(unknown).change == UNKNOWN.buffering


def test_a_lost_upgrade_says_whether_anything_takes_its_place() -> None:
    """Clients fall back to SSE, where that comes in time."""
    lost = Socket(outcome="stripped", status=400)
    alone, both = (diagnose(chain(socket=lost, drips=drips(shape)))[0] for shape in (Shape.PACED, Shape.HELD))

    assert alone.code == both.code == "upgrade_stripped"
    assert "clients fall back to SSE." in alone.text(alone.verdict.why)
    assert "mend that first" in both.text(both.verdict.why)


def test_an_origin_is_judged_before_all_else() -> None:
    """Down, late, or not it."""
    down = Chain(probe="unreachable", answered=chain().answered)

    assert getattr(origin_finding(down), "code", "") == "origin_down"
    assert getattr(origin_finding(chain(drips=drips(Shape.HELD)[:3])), "code", "") == "origin_late"
    assert origin_finding(chain()) is None


@pytest.mark.parametrize(
    ("name", "header", "value"),
    [
        ("cloudflare", "CF-RAY", "x-FRA"),
        ("cloudfront", "Via", "1.1 abc.cloudfront.net (CloudFront)"),
        ("vercel", "x-vercel-id", "fra1::x"),
        ("fly", "fly-request-id", "01"),
        ("railway", "x-railway-edge", "x"),
        ("azure", "x-azure-ref", "x"),
        ("netlify", "x-nf-request-id", "x"),
        ("render", "rndr-id", "x"),
        ("akamai", "Server", "AkamaiGHost"),
        ("fastly", "X-Served-By", "cache-fra-1"),
        ("heroku", "Via", "1.1 vegur"),
        ("api-gateway", "x-amz-apigw-id", "x"),
        ("alb", "Server", "awselb/2.0"),
        ("google", "Via", "1.1 google"),
        ("nginx", "Server", "openresty/1.25"),
        ("caddy", "Server", "Caddy"),
        ("envoy", "Server", "istio-envoy"),
        ("haproxy", "Server", "HAProxy"),
    ],
)
def test_each_hop_gives_itself_away(name: str, header: str, value: str) -> None:
    """And has switches that can be named."""
    assert hops_of_answer([(header, value)]) == [name]
    assert all(HOPS[name])
    assert hop([name]) is HOPS[name]


def test_a_request_names_the_hops_it_came_through() -> None:
    """What is behind an edge shows there, not in the answer."""
    arrived = [("CF-Ray", "x"), ("X-Real-IP", "1.2.3.4"), ("Accept", "*/*")]

    assert hops_of_request(arrived) == ["cloudflare", "nginx"]
    assert hops_of_request([("Accept", "*/*")]) == []


# --- comparing --------------------------------------------------------------------------------------------------------


def test_differences_come_in_the_order_of_causes() -> None:
    """The first that can be behind a fault explains it."""
    works = chain()
    fails = chain(
        "nginx",
        drips=drips(Shape.HELD),
        socket=Socket(outcome="stripped"),
        bodies={"500": "replaced"},
        silence=Silence(asked_seconds=130, first_byte_cut_seconds=60),
    )

    found = compare(works, fails)

    assert [row.what for row in found] == ["the hops", "WebSocket", "streams", "error bodies that are replaced"]
    assert [row.worse for row in found] == [False, True, True, True]
    first = explaining(found, Cause.BUFFERING)
    assert first is not None
    assert (first.what, first.before, first.after) == ("the hops", "none that shows", "nginx")
    assert explaining(found, Cause.NAME) is None
    assert compare(works, works) == []


def test_a_limit_that_moved_by_a_second_did_not_move() -> None:
    """A clock's second is no regression, 125 s to 100 s is one, and 100 s to 125 s none."""

    def limit(seconds: float | None) -> Chain:
        return chain(silence=Silence(asked_seconds=130, first_byte_cut_seconds=seconds))

    assert compare(limit(125.2), limit(124.4)) == []
    [shorter] = compare(limit(125), limit(100))
    [longer] = compare(limit(100), limit(125))
    [new] = compare(limit(None), limit(100))
    assert (shorter.worse, longer.worse, new.worse) == (True, False, True)


# --- in words ---------------------------------------------------------------------------------------------------------


def answered(**facts: Any) -> Answered:
    """How the address itself was answered."""
    return Answered(**{"url": "https://a.example/x", "method": "GET", "ended": Ended.WHOLE, "status": 200} | facts)


def report(**more: Any) -> Report:
    """A report of a fault."""
    finding = Finding("all_held", ("GET sse identity: held, token=Zx9secretZx9",), {"path": "/x"})
    values: dict[str, Any] = {
        "outlast": "1",
        "made_at": "2026-01-01T00:00:00Z",
        "source": "url",
        "target": "https://a.example/x",
        "outcome": Outcome.FAULT,
        "verdict": told(finding),
        "more": (told(Finding("headers_held")),),
        "verify": "outlast doctor https://a.example/x",
        "steps": (Step(name="capture", text="url: https://a.example/x"),),
        "chain": chain(drips=drips(Shape.HELD)),
        "differences": tuple(compare(chain(), chain("nginx"))),
        "budget_seconds": 15,
        "seconds": 6.1,
    }
    return Report(**values | more)


def test_a_saved_report_comes_back() -> None:
    """And what is none is refused in words."""
    saved = report().model_dump_json()

    assert load_report(saved, "x.json") == report()
    with pytest.raises(InvalidInput, match=r"x\.json is no report"):
        load_report("{}", "x.json")
    with pytest.raises(ValidationError):
        Report.model_validate_json(saved[:-1] + ',"unknown":1}')


def test_an_incident_has_the_evidence_the_change_and_the_proof() -> None:
    """For the team; secrets are left out."""
    page = incident(report())

    for heading in ("What happened", "Evidence", "The change", "Compared", "The proof", "More", "Streams"):
        assert f"\n## {heading}\n" in page
    assert "outlast doctor https://a.example/x" in page
    assert "Zx9secret" not in page
    assert "does not fail any more" in incident(report(outcome=Outcome.FIXED, verdict=None, verify=""))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (answered(head_seconds=0.2), "Undecided: nothing wrong was seen from outside."),
        (answered(head_seconds=40.0), "Undecided: the answer came, after 40 s of silence."),
        (answered(status=None, ended=Ended.PATIENCE, ended_seconds=12.0), "Undecided: no byte came within 12 s."),
    ],
)
def test_an_undecided_run_begins_with_its_reason(own: Answered, said: str) -> None:
    """What is an error behind one hop and none behind another is said with its figure."""
    console = Console(record=True, width=80, file=io.StringIO())
    unsure = chain().model_copy(update={"probe": "off", "own": own})
    Terminal(console).report(report(verdict=None, outcome=Outcome.UNDECIDED, verify="", chain=unsure, differences=()))

    assert said in console.export_text()


@pytest.mark.parametrize(("target", "path"), [("https://a.example/api/x?q=1", "/api/x"), ("", "/the/slow/route")])
def test_a_change_that_speaks_of_a_route_file_shows_one_that_can_be_used(
    tmp_path: Path, target: str, path: str
) -> None:
    """In the terminal and in the page for the team; other changes need none."""
    timed_out = report(verdict=told(Finding("edge_read_timeout")), target=target)
    file = tmp_path / "routes.toml"
    file.write_text(route_file(timed_out))
    console = Console(record=True, width=80, file=io.StringIO())
    Terminal(console).report(timed_out)

    [route] = load_routes(file)
    assert (route.path, route.upstream) == (path, f"http://127.0.0.1:8000{path}")
    assert file.read_text() in console.export_text()
    assert f"```toml\n{file.read_text()}```" in incident(timed_out)
    assert route_file(report()) == ""


def test_the_schema_describes_every_field() -> None:
    """What `--json` prints is documented where it is defined."""
    schema = Report.model_json_schema(mode="serialization")

    for name, model in {"Report": schema, **schema["$defs"]}.items():
        for field, value in model.get("properties", {}).items():
            assert value.get("description"), f"{name}.{field}"


def test_there_are_more_than_25_verdicts_of_measurement_and_signature() -> None:
    """Counted without notes."""
    assert sum(not verdict.note for verdict in VERDICTS.values()) >= 50
