"""The doctor against hops that misbehave: each fault gets a verdict of its own, and a healthy chain none."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from gateway.doctor.capture import Captured
from gateway.doctor.chain import answered
from gateway.doctor.diagnosis import diagnose
from gateway.doctor.drip import Shape
from gateway.doctor.examine import Inquiry, examine
from gateway.doctor.exchange import Ended, exchange
from gateway.doctor.measured import Chain
from gateway.doctor.probes import Pace, Probes, Target
from gateway.doctor.report import Outcome, Report
from gateway.doctor.terminal import Terminal
from gateway.edge import Edge, Profile, chain, load_profile
from gateway.handlers.probe import MOST_AT_ONCE, PROBES
from gateway.store import Store
from tests.http2_front import Front, certificate
from tests.meddler import Meddler, page
from tests.serving import Gateway, gateway_for

pytestmark = pytest.mark.usefixtures("patient_clock")
TOKEN = "p" * 24
SCALE = 0.1
"""A frame every 100 ms; the limits of the simulated hops are scaled as well."""


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose probes are open."""
    async with gateway_for(store, tmp_path / "blobs", probe_token=TOKEN) as gateway:
        yield gateway


async def ask(url: str, *, path: str = "/", token: str = TOKEN, scale: float = SCALE, **more: Any) -> Report:
    """A run of the doctor."""
    captured = more.pop("captured", None) or Captured("url", url + path, url + path)
    return await examine(Inquiry(captured, token=token, **more), pace=Pace(scale))


def codes(report: Report) -> tuple[str, list[str]]:
    """The verdict's code, empty without one, and those of all other faults."""
    verdict = report.verdict.code if report.verdict else ""
    return verdict, [one.code for one in report.more if not one.note]


async def ask_for(wanted: tuple[str, list[str]], url: str, **more: Any) -> Report:
    """The first of three runs that finds what is there: a busy machine holds frames back by itself."""
    for _ in range(3):
        report = await ask(url, **more)
        if codes(report) == wanted:
            break
    return report


def on_screen(report: Report) -> str:
    """What a terminal shows of it."""
    console = Console(record=True, width=200, file=io.StringIO())
    Terminal(console).report(report)
    return console.export_text()


def direct(**changes: Any) -> Profile:
    """A hop that does only this."""
    return load_profile("direct").changed(**changes)


def held(**but: Any) -> Profile:
    """A hop that holds answers until they end, but for these."""
    return direct(response__buffering="close", **{f"response__{name}": value for name, value in but.items()})


# --- no fault, no verdict -------------------------------------------------------------------------------------------


async def test_a_healthy_chain_gets_no_verdict(gateway: Gateway) -> None:
    """Neither without a hop nor through a simulated Cloudflare with its own habits, marked or not, nor through two."""
    async with (
        Edge(load_profile("cloudflare"), gateway.url, time_scale=SCALE, marked=False) as cloudflare,
        chain([load_profile("cloudflare"), direct()], gateway.url, time_scale=SCALE) as stacked,
    ):
        for url in (gateway.url, cloudflare.url, stacked[0].url):
            report = await ask_for(("", []), url, origin=gateway.url)
            assert (report.outcome, codes(report)) == (Outcome.HEALTHY, ("", [])), report.model_dump_json(indent=1)
    # What is normal for the edge is told, and is no fault.
    assert {one.code for one in report.more} >= {"headers_held", "gateway_errors_replaced", "body_limit"}


# --- what a simulated hop does ----------------------------------------------------------------------------------------

HOPS: dict[str, Profile] = {
    "all_held": held(),
    "get_held": load_profile("quick-tunnel"),
    "post_held": held(streamed_methods=("GET",)),
    "only_sse": load_profile("cloudflare-tunnel-old"),
    "json_held": held(buffered_types=("application/json",)),
    "some_held": held(buffered_types=("text/plain",)),
    "one_behind": load_profile("antivirus"),
    "first_held": direct(response__inspect_bytes=100),
    "batched": direct(response__buffering="size", response__buffer_bytes=200),
    "upgrade_stripped": direct(websocket__enabled=False),
    "socket_closed": direct(websocket__idle_seconds=1.2),
    "uploads_refused": direct(request__max_body_bytes=1_000_000),
}


@pytest.mark.parametrize("code", HOPS)
async def test_each_habit_of_a_hop_has_its_verdict(gateway: Gateway, code: str) -> None:
    """One change, its reason, and the command that verifies it; nothing else is called a fault."""
    async with Edge(HOPS[code], gateway.url, time_scale=SCALE) as edge:
        report = await ask_for((code, []), edge.url, origin=gateway.url)

    assert codes(report) == (code, [])
    assert report.outcome is Outcome.FAULT
    assert report.verdict is not None
    assert report.verdict.change
    assert report.verdict.why
    assert report.verdict.evidence
    assert not re.search(r"[{}]|\?$", report.verdict.change + report.verdict.title + report.verdict.why)
    assert report.verify.startswith("outlast doctor ")


# CI takes these; all of them are a slow test, since it takes a minute and a half.
FEW_STACKED = ("get_held", "upgrade_stripped")


@pytest.mark.parametrize(
    "code", [pytest.param(code, marks=[] if code in FEW_STACKED else pytest.mark.slow) for code in HOPS]
)
async def test_a_second_hop_hides_nothing(gateway: Gateway, code: str) -> None:
    """The same behind a Cloudflare in front of the hop, both without what says that they are simulated."""
    hops = [load_profile("cloudflare"), HOPS[code]]
    async with chain(hops, gateway.url, time_scale=SCALE, marked=False) as edges:
        report = await ask_for((code, []), edges[0].url, origin=gateway.url)

    assert codes(report) == (code, []), report.model_dump_json(indent=1)
    assert report.verdict is not None
    assert report.verdict.place == "deployment or proxy configuration"


async def test_several_faults_of_one_hop_come_in_the_order_of_causes(gateway: Gateway) -> None:
    """One change is printed, for nginx as it comes; the others stand under it."""
    async with Edge(load_profile("nginx-default"), gateway.url, time_scale=SCALE) as edge:
        report = await ask_for(("upgrade_stripped", ["uploads_refused"]), edge.url)

    assert codes(report) == ("upgrade_stripped", ["uploads_refused"])
    assert report.verdict is not None
    assert "proxy_set_header Upgrade" in report.verdict.change
    assert "client_max_body_size" in next(one.change for one in report.more if one.code == "uploads_refused")


# --- what an edge answers by itself -----------------------------------------------------------------------------------

FAULTS = {
    "520": "origin_closed",
    "521": "origin_refused",
    "522": "origin_unanswered",
    "523": "origin_unroutable",
    "524_now": "edge_read_timeout",
    "525": "edge_tls_failed",
    "526": "edge_certificate",
    "1015": "edge_rate",
    "1016": "edge_dns",
    "1033": "tunnel_down",
    "challenge": "challenge",
}


@pytest.mark.parametrize("marked", [True, False])
async def test_each_error_of_an_edge_has_its_verdict(marked: bool) -> None:
    """In each of the three formats in which it comes: page, JSON, one line; with and without the simulator's marks."""
    async with (
        Edge(load_profile("cloudflare"), "http://127.0.0.1:9", time_scale=SCALE, marked=marked) as edge,
        aiohttp.ClientSession() as session,
    ):
        for fault, code in FAULTS.items():
            asked = {"fault": fault, "times": 0}
            assert (await session.post(f"{edge.url}/__edge/fault", json=asked)).status < 300
            for accept in ("text/html", "application/json", "*/*"):
                report = await ask(edge.url, path="/v1/kinds", headers={"Accept": accept})
                assert codes(report) == (code, []), (fault, accept)
                assert report.chain is not None
                assert report.chain.answered.ray
            await session.delete(f"{edge.url}/__edge/fault")


async def test_a_stream_that_breaks_off_is_told(gateway: Gateway) -> None:
    """After the same number of bytes each time, with frames coming: nothing was silent."""
    async with Edge(direct(), gateway.url, time_scale=SCALE) as edge, aiohttp.ClientSession() as session:
        for path in ("sse", "ndjson", "json", "drip"):
            asked = {"fault": "drop_after_bytes", "bytes": 150, "times": 0, "path": f"/_probe/{path}"}
            assert (await session.post(f"{edge.url}/__edge/fault", json=asked)).status < 300
        report = await ask(edge.url)

    assert codes(report) == ("stream_cut", [])


async def test_a_post_that_arrives_twice_is_told(gateway: Gateway) -> None:
    """The hop's own retry is what bills a job twice."""
    async with Edge(direct(), gateway.url, time_scale=SCALE) as edge:
        async with aiohttp.ClientSession() as session:
            asked = {"fault": "duplicate_request", "times": 0, "method": "POST", "path": "/_probe/upload"}
            await session.post(f"{edge.url}/__edge/fault", json=asked)
        report = await ask(edge.url)

    assert codes(report) == ("requests_repeated", [])
    assert report.verdict is not None
    assert "Idempotency-Key" in report.verdict.change


# --- what other hops do -----------------------------------------------------------------------------------------------


def without(*names: bytes) -> Any:
    """Drop these headers of a request."""
    pattern = re.compile(rb"(?im)^(?:%b):[^\r\n]*\r\n" % b"|".join(names))
    return lambda head: pattern.sub(b"", head)


def rewritten(request: bytes, answer: bytes) -> bytes | tuple[None, bytes]:
    """A page of its own for every error."""
    if re.match(rb"HTTP/1.1 (?:50\d)", answer):
        return page("503 Service Unavailable", "<h1>We will be back soon</h1>")
    return answer


def frozen() -> Any:
    """The first answer to echo-headers, again and again."""
    return lambda head: (
        page("200 OK", '{"probe":"echo-headers","headers":[["Last-Event-ID","x"],["Idempotency-Key","x"],'
             '["Prefer","x"],["Accept","x"]],"time_ns":"1"}')
        if b"/_probe/echo-headers" in head.split(b"\r\n")[0]
        else head
    )  # fmt: skip


def instead(path: bytes, answer: tuple[None, bytes]) -> Any:
    """Another answer for one path."""
    return lambda head: answer if path in head.split(b"\r\n")[0] else head


MUTE = (None, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
MEDDLERS: dict[str, dict[str, Any]] = {
    "headers_stripped": {"on_request": without(b"Last-Event-ID", b"Idempotency-Key")},
    "answers_cached": {"on_request": frozen()},
    "errors_rewritten": {"on_answer": rewritten},
    "upgrade_refused": {"on_request": instead(b"/_probe/ws", page("405 Method Not Allowed", "no"))},
    "challenge": {"on_request": instead(b"/_probe/ws", page("403 Forbidden", "x", "cf-mitigated: challenge"))},
    "socket_mute": {"on_request": instead(b"/_probe/ws", MUTE)},
    "stream_altered": {"on_piece": lambda piece: piece.replace(b'"n":3', b'"n":4')},
    "stream_replaced": {"on_request": instead(b"/_probe/ndjson", page("418 I'm a teapot", "no"))},
    "upload_failed": {"on_request": instead(b"POST /_probe/upload", page("200 OK", "thank you"))},
}


@pytest.mark.parametrize("code", MEDDLERS)
async def test_each_meddling_has_its_verdict(gateway: Gateway, code: str) -> None:
    """Whatever hop it is."""
    async with Meddler(gateway.url, **MEDDLERS[code]) as hop:
        report = await ask(hop.url)

    assert codes(report)[0] == code, report.model_dump_json(indent=1)


async def test_only_compressed_streams_are_late(gateway: Gateway) -> None:
    """A compressor that collects: clients that take no gzip are not harmed."""
    async with Edge(held(), gateway.url, time_scale=SCALE) as collecting:

        def by_encoding(head: bytes) -> str:
            return collecting.url if b"accept-encoding: gzip" in head.lower() else gateway.url

        async with Meddler(gateway.url, route=by_encoding) as hop:
            report = await ask(hop.url)

    assert codes(report) == ("compressed_held", [])


async def test_only_streams_over_http2_are_late(gateway: Gateway, tmp_path: Path) -> None:
    """As browsers ask, and curl does not; a hop that speaks both and holds neither has no verdict."""
    context = certificate(tmp_path)
    async with Front(gateway.url, context) as good, Front(gateway.url, context, holds=True) as holding:
        passing, held_back = (Probes(Target(hop.url, token=TOKEN), Pace(SCALE)) for hop in (good, holding))
        first, _ = await passing.first()
        late = await held_back.matrix()
        socket, in_time = await passing.socket(), await passing.again([drip for drip in late if drip.format == "sse"])

    assert {drip.http for drip in in_time} == {"1.1", "2"}
    chain = Chain(probe="ready", answered=answered(first), drips=in_time, socket=socket)
    assert diagnose(chain) == []
    assert [finding.code for finding in diagnose(chain.model_copy(update={"drips": late}))] == ["http2_held"]
    assert (len(late), {drip.http: drip.shape for drip in late}) == (24, {"1.1": Shape.PACED, "2": Shape.HELD})


async def test_a_server_without_http2_is_told_from_one_that_fails(gateway: Gateway, tmp_path: Path) -> None:
    """TLS says so before anything is asked; then there are sixteen streams."""
    async with Front(gateway.url, certificate(tmp_path), protocols=("http/1.1",)) as hop:
        asked = await exchange("GET", f"{hop.url}/healthz", patience_seconds=5, http2=True)

    assert (asked.status, asked.ended) == (None, Ended.GARBLED)
    assert asked.detail.startswith("no HTTP/2 is spoken on port")


# --- the origin first -------------------------------------------------------------------------------------------------


async def test_a_late_origin_ends_the_search(gateway: Gateway) -> None:
    """Nothing in front of it is measured, and no setting of a proxy is blamed."""
    async with Edge(held(), gateway.url, time_scale=SCALE) as origin:
        report = await ask("http://127.0.0.1:9", origin=origin.url)

    assert codes(report) == ("origin_late", [])
    assert report.chain is None
    assert "nothing further" in report.steps[-2].text


async def test_an_origin_that_is_down_ends_the_search(gateway: Gateway) -> None:
    """The first thing to look at."""
    report = await ask(gateway.url, origin="http://127.0.0.1:9")

    assert codes(report) == ("origin_down", [])
    assert report.chain is None


async def test_any_origin_that_keeps_silent_ends_the_search() -> None:
    """Also an application that is not ours, on its own slow route."""
    async with _Talker(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", silent=b"/api/slow") as origin:
        report = await ask("http://127.0.0.1:9", path="/api/slow", origin=origin.url, scale=0.02)

    assert codes(report) == ("origin_silent", [])
    assert report.chain is None


async def test_an_address_that_keeps_silent_is_told_and_no_verdict_yet() -> None:
    """Whether anybody ends it, and who, is not known before somebody has."""
    async with _Talker(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", silent=b"/api/slow") as slow:
        report = await ask(slow.url, path="/api/slow", scale=0.02)

    assert (report.outcome, codes(report)) == (Outcome.UNDECIDED, ("", []))
    assert "no byte of the address itself within 0 s" in report.steps[-1].text
    printed = on_screen(report)
    assert "Undecided: no byte came within 0 s." in printed
    assert f"next  outlast doctor {slow.url}/api/slow --deep\n" in printed


# --- what can't be measured -------------------------------------------------------------------------------------------


async def test_a_gateway_without_probes_is_undecided(store: Store, tmp_path: Path) -> None:
    """Nothing is wrong that can be seen, and that is not called healthy."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        report = await ask(gateway.url, path="/v1/kinds")

    assert (report.outcome, codes(report)) == (Outcome.UNDECIDED, ("", []))


async def test_where_other_doctors_measure_it_says_so_and_blames_nobody(gateway: Gateway) -> None:
    """The gateway's 429 is no hop that eats streams, sockets or errors, from whichever probe on it comes."""
    for free in (0, 2, 12):
        with ExitStack() as stack:
            for _ in range(MOST_AT_ONCE - free):
                stack.enter_context(gateway.app[PROBES].places.place("probe"))
            report = await ask(gateway.url)

        assert (report.outcome, codes(report)) == (Outcome.UNDECIDED, ("", [])), free
        printed = on_screen(report)
        assert "Run it again in half a minute." in printed
        assert f"next  outlast doctor {gateway.url}/\n" in printed


async def test_a_place_that_is_gone_between_two_handshakes_is_no_closed_socket() -> None:
    """The first was let in, the second hears 429."""
    async with _Talker(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n") as full:
        probes = Probes(Target(full.url, {}, TOKEN), Pace(SCALE))
        await probes._talk(0)

    assert probes.crowded


async def test_a_wrong_token_is_told(gateway: Gateway) -> None:
    """Not taken for a gateway without probes."""
    report = await ask(gateway.url, token="q" * 24)

    assert codes(report) == ("probe_token", [])
    assert "q" * 24 not in report.model_dump_json()


async def test_each_way_not_to_connect_has_its_verdict(unused_tcp_port: int) -> None:
    """No name, nobody there, another protocol, no answer."""
    async with _Talker(b"220 mail.example.com ESMTP\r\n") as mail, _Talker(b"") as closing:
        found = {
            address: codes(await ask(address))[0]
            for address in ("http://nobody.invalid", f"http://127.0.0.2:{unused_tcp_port}", mail.url, closing.url)
        }
        secure = codes(await ask(mail.url.replace("http://", "https://")))[0]

        local = (await ask(f"http://127.0.0.1:{unused_tcp_port}")).verdict

    assert list(found.values()) == ["no_name", "refused", "garbled", "closed_unanswered"]
    assert secure == "tls"
    assert local is not None
    assert local.change == f"Start what listens at 127.0.0.1:{unused_tcp_port}."


class _Talker:
    """A server that says one thing and closes; on one path it says nothing."""

    def __init__(self, says: bytes, silent: bytes = b"/-") -> None:
        self._says, self._silent = says, silent

    async def __aenter__(self) -> _Talker:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._says or self._says.startswith(b"HTTP"):
            head = await reader.readuntil(b"\r\n\r\n")
            if self._silent in head:
                await reader.read()
        writer.write(self._says)
        writer.close()


# --- no false alarm ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_fifty_healthy_runs_give_no_verdict(gateway: Gateway) -> None:
    """Through a Cloudflare and a plain hop behind it; the fast test above is the same a few times."""
    alarms = []
    async with chain([load_profile("cloudflare"), direct()], gateway.url, time_scale=SCALE, marked=False) as hops:
        for _ in range(50):
            report = await ask(hops[0].url, origin=gateway.url)
            if report.outcome is not Outcome.HEALTHY:
                alarms.append(codes(report))

    assert alarms == []
