"""`outlast doctor` as a command, what it repeats, what it compares with, and the long silent tests, scaled."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from gateway.app import DOOR
from gateway.cli import Exit, main
from gateway.doctor.capture import Captured, capture
from gateway.doctor.chain import answered
from gateway.doctor.diagnosis import diagnose
from gateway.doctor.examine import Inquiry, examine
from gateway.doctor.measured import Chain
from gateway.doctor.probes import Pace, Probes, Target
from gateway.doctor.report import Outcome, Report, load_report
from gateway.edge import Edge, Profile, load_profile
from gateway.store import Store
from tests.faults import wait_until
from tests.meddler import Meddler, page
from tests.processes import program
from tests.serving import Gateway, gateway_for

pytestmark = pytest.mark.usefixtures("patient_clock")
TOKEN = "p" * 24
SCALE = 0.1


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose probes are open."""
    async with gateway_for(store, tmp_path / "blobs", probe_token=TOKEN) as gateway:
        yield gateway


def direct(**changes: Any) -> Profile:
    """A hop that does only this."""
    return load_profile("direct").changed(**changes)


async def ask(captured: Captured, **more: Any) -> Report:
    """A run of the doctor."""
    return await examine(Inquiry(captured, token=TOKEN, **more), pace=Pace(SCALE))


def at(url: str) -> Captured:
    """An address."""
    return Captured("url", url, url)


# --- repeating --------------------------------------------------------------------------------------------------------

HELD = {"response__buffering": "close"}
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all_held": (HELD, {}),
    "upgrade_stripped": ({"websocket__enabled": False}, {}),
    "uploads_refused": ({"request__max_body_bytes": 1_000_000}, {}),
}


@pytest.mark.parametrize("code", FAULTS)
async def test_a_repeat_tells_fixed_from_not_fixed(gateway: Gateway, code: str) -> None:
    """Only what failed is repeated: of a saved report, against the chain as it is now."""
    bad, good = FAULTS[code]
    async with (
        Edge(direct(**bad), gateway.url, time_scale=SCALE) as broken,
        Edge(direct(**good), gateway.url, time_scale=SCALE) as mended,
    ):
        found = await ask(at(broken.url), saved_as="x.json")
        saved = load_report(found.model_dump_json(), "x.json")
        still = await ask(at(broken.url), rerun=True, baseline=saved, saved_as="x.json")
        fixed = await ask(at(mended.url), rerun=True, baseline=saved, saved_as="x.json")

    assert found.verdict is not None
    assert found.verify.endswith("--baseline x.json --rerun")
    assert still.outcome is Outcome.NOT_FIXED
    assert still.verdict is not None
    assert (still.verdict.code, still.verdict.change) == (code, found.verdict.change)
    assert (fixed.outcome, fixed.verdict) == (Outcome.FIXED, None)
    assert fixed.chain is None


async def test_a_captured_request_is_repeated_only_when_asked(gateway: Gateway) -> None:
    """A POST may cost money: without --rerun it is not sent, with it once."""
    seen: list[bytes] = []
    answers = [page("504 Gateway Time-out", "<hr><center>nginx</center>"), page("200 OK", "done")]

    def count(head: bytes) -> bytes | tuple[None, bytes]:
        if not head.startswith(b"POST /api/ocr "):
            return head
        seen.append(head)
        return answers[len(seen) - 1]

    async with Meddler(gateway.url, on_request=count) as hop:
        captured = capture([f"curl -X POST {hop.url}/api/ocr -H 'X-Api-Key: Zx9secretZx9' -d a=1"], str)
        quiet = await ask(captured)
        failing = await ask(captured, rerun=True)
        mended = await ask(captured, rerun=True)

    assert [len(seen), quiet.outcome, failing.outcome, mended.outcome] == [
        2,
        Outcome.HEALTHY,
        Outcome.NOT_FIXED,
        Outcome.FIXED,
    ]
    assert failing.verdict is not None
    assert failing.verdict.code == "nginx_timeout"
    assert b"x-api-key: zx9secretzx9" in seen[0].lower()
    assert "Zx9secret" not in failing.model_dump_json()


# --- comparing --------------------------------------------------------------------------------------------------------


async def test_the_first_difference_from_a_working_chain_explains(gateway: Gateway) -> None:
    """Both are measured alike, and told row by row."""
    async with (
        Edge(direct(), gateway.url, time_scale=SCALE) as works,
        Edge(direct(brand="nginx", **HELD), gateway.url, time_scale=SCALE) as fails,
    ):
        report = await ask(at(fails.url), compare=works.url)

    assert report.verdict is not None
    assert report.verdict.code == "all_held"
    assert "proxy_buffering off" in report.verdict.change
    assert [row.what for row in report.differences] == ["the hops", "streams"]
    assert "the hops (none that shows there, nginx here)" in report.steps[-2].text


async def test_what_became_worse_since_the_baseline_is_a_fault(gateway: Gateway) -> None:
    """Also where it would be none by itself, such as an edge's limit for bodies; better is not worse."""
    async with (
        Edge(direct(), gateway.url, time_scale=SCALE) as before,
        Edge(direct(request__max_body_bytes=100_000_000), gateway.url, time_scale=SCALE) as after,
    ):
        good, bad = await ask(at(before.url)), await ask(at(after.url))
        worse = await ask(at(after.url), baseline=good)
        better = await ask(at(before.url), baseline=bad)
        other = await ask(at(after.url), compare=before.url)

    assert (good.outcome, bad.outcome) == (Outcome.HEALTHY, Outcome.HEALTHY)
    assert worse.verdict is not None
    assert (worse.outcome, worse.verdict.code) == (Outcome.FAULT, "worse_than_baseline")
    assert better.outcome is Outcome.HEALTHY
    # Also between two places, where nothing else explains why one of them fails.
    assert other.verdict is not None
    assert (other.outcome, other.verdict.code) == (Outcome.FAULT, "differs")
    assert "the body that is refused" in other.verdict.title
    assert [row.worse for row in better.differences if row.what == "the body that is refused"] == [False]


# --- the long silence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("silence_cut", {"timers__first_seconds": 30, "timers__gap_seconds": 30}),
        ("silence_limit", {"timers__first_seconds": 60, "timers__gap_seconds": 60}),
        ("cut_at_age", {"timers__total_seconds": 30}),
        ("", {}),
    ],
)
async def test_an_idle_limit_is_found_and_the_cure_is_tried(
    gateway: Gateway, code: str, limits: dict[str, float]
) -> None:
    """130 s of silence, scaled; a heartbeat at half the limit outlives it, or it is no idle limit."""
    scale = 0.015
    async with Edge(direct(**limits), gateway.url, time_scale=scale) as edge:
        probes = Probes(Target(edge.url, token=TOKEN), Pace(scale))
        silence = await probes.silence()
        first, _ = await probes.first()
    found = diagnose(Chain(probe="ready", answered=answered(first), silence=silence), scale=scale)

    assert [finding.code for finding in found] == [code] * bool(code)
    if limits:
        expected = min(limits.values()) * scale
        cut = silence.first_byte_cut_seconds
        assert cut is not None
        assert expected * 0.9 <= cut <= expected + 0.6


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_deep_run_finds_limits_and_calls_those_of_cloudflare_no_fault(gateway: Gateway) -> None:
    """All of it, at a tenth: silences, idle WebSocket, the slow upload; what is above a heartbeat is a note."""
    async with (
        Edge(load_profile("cloudflare-2024"), gateway.url, time_scale=SCALE, marked=False) as edge,
        Edge(direct(timers__first_seconds=30, timers__gap_seconds=30), gateway.url, time_scale=SCALE) as short,
    ):
        report = await ask(at(edge.url), origin=gateway.url, deep=True)
        hasty = await ask(at(short.url), deep=True)

    assert report.outcome is Outcome.HEALTHY, report.model_dump_json(indent=1)
    assert {"silence_limit", "socket_idle_limit"} <= {one.code for one in report.more}
    assert report.seconds < report.budget_seconds * SCALE
    assert hasty.verdict is not None
    assert hasty.verdict.code == "silence_cut"
    assert "OUTLAST_HEARTBEAT_SECONDS=1" in hasty.verdict.change


async def test_an_idle_websocket_is_cut(gateway: Gateway) -> None:
    """After 60 s at a fiftieth; the frames before it passed."""
    async with Edge(direct(websocket__idle_seconds=60), gateway.url, time_scale=0.02) as edge:
        socket = await Probes(Target(edge.url, token=TOKEN), Pace(0.02)).socket(110)

    assert (socket.outcome, socket.status) == ("idle_cut", 101)


async def test_a_slow_upload_that_is_given_up_is_told(gateway: Gateway) -> None:
    """5 MB over 35 s, scaled: whole through a hop that waits, not through one that answers for itself half-way."""

    def refuse(head: bytes) -> bytes | tuple[None, bytes]:
        return page("408 Request Timeout", "too slow") if head.startswith(b"POST /_probe/upload") else head

    async with Edge(direct(), gateway.url) as patient, Meddler(gateway.url, on_request=refuse) as hasty:
        targets = (Target(hop.url, token=TOKEN) for hop in (patient, hasty))
        good, bad = await asyncio.gather(*(Probes(target, Pace(0.05)).slow_upload() for target in targets))

    assert good == ""
    assert bad.startswith("5000000 bytes were sent slowly, and 408 came back after")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`outlast doctor` in another thread, so that its chain can be served here; its own waits are scaled."""
    monkeypatch.setattr("gateway.doctor.examine.Pace", lambda: Pace(SCALE))
    monkeypatch.delenv("OUTLAST_PROBE_TOKEN", raising=False)

    async def command(*words: str, stdin: str = "", token: str = TOKEN) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        if token:
            monkeypatch.setenv("OUTLAST_PROBE_TOKEN", token)
        else:
            monkeypatch.delenv("OUTLAST_PROBE_TOKEN", raising=False)
        code = await asyncio.to_thread(main, ["doctor", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return command


async def test_each_outcome_has_its_exit_code(gateway: Gateway, tmp_path: Path, run: Callable[..., Any]) -> None:
    """0 healthy or fixed, 1 a fault or not fixed, 2 unreadable, 5 undecided."""
    saved, incident = tmp_path / "run.json", tmp_path / "incident.md"
    async with Edge(direct(**HELD), gateway.url, time_scale=SCALE) as edge:
        healthy = await run(gateway.url, "--origin", gateway.url)
        fault = await run(edge.url, "--save", str(saved), "--report", str(incident))
        not_fixed = await run(edge.url, "--baseline", str(saved), "--rerun")
    fixed = await run(gateway.url, "--baseline", str(saved), "--rerun")
    undecided = await run(gateway.url, token="q" * 0)
    codes = [result[0] for result in (healthy, fault, not_fixed, fixed, undecided)]

    assert codes == [Exit.SUCCEEDED, Exit.FAILED, Exit.FAILED, Exit.SUCCEEDED, Exit.FAILED]
    assert "takes at most 30 s" in healthy[1].splitlines()[0]
    assert "Nothing is wrong with this chain." in healthy[1]
    for part in ("seen", "change", "why", "verify", "all_held", "deployment or proxy configuration", "GET sse"):
        assert part in fault[1], part
    assert "Not fixed: " in not_fixed[1]
    assert "Fixed." in fixed[1]
    assert load_report(saved.read_text(), "x").outcome is Outcome.FAULT
    assert "## The change" in incident.read_text()
    assert all(TOKEN not in text for text in (fault[1], saved.read_text(), incident.read_text()))


async def test_a_text_alone_is_enough(run: Callable[..., Any]) -> None:
    """`outlast doctor < error.txt`: no network is asked."""
    told = await run(stdin="HTTP/2 524 \nserver: cloudflare\ncf-ray: 9a1b2c3d4e5f6071-FRA\n\nerror code: 524")
    vague = await run(stdin="it does not work")

    assert told[0] == Exit.FAILED
    assert "edge_read_timeout" in told[1]
    assert "9a1b2c3d4e5f6071 at FRA" in told[1]
    assert "outlast doctor 'curl ...' --rerun" in told[1]
    assert "Copy as cURL" in told[1]
    assert vague[0] == Exit.UNDECIDED
    assert "Give the address" in vague[1]


async def test_json_is_the_report_and_nothing_else(gateway: Gateway, run: Callable[..., Any]) -> None:
    """For CI."""
    code, out, err = await run(gateway.url, "--json")

    assert (code, err) == (0, "")
    assert Report.model_validate(json.loads(out)).outcome is Outcome.HEALTHY


@pytest.mark.parametrize(
    ("words", "stdin", "says"),
    [
        (["nowhere.txt"], "", "neither an address"),
        (["--rerun"], "error code: 524", "can't be repeated"),
        (["http://a.example", "--save", "/nowhere/x.json"], "", "can't be written"),
        (["http://a.example", "--baseline", "/nowhere/x.json"], "", "can't be read"),
        (["http://a.example", "--origin", "a.example:80"], "", "begins with http"),
        (["http://a.example", "-H", "no colon"], "", "NAME: VALUE"),
        (["curl -F f=@x http://a.example", "--rerun"], "", "sends files"),
        ([], "", "nothing to look into"),
    ],
)
async def test_what_can_t_be_read_is_a_usage_error(
    run: Callable[..., Any], words: list[str], stdin: str, says: str
) -> None:
    """Before anything is measured, and in words."""
    code, out, err = await run(*words, stdin=stdin)

    assert (code, out) == (Exit.USAGE, "")
    assert says in err


async def test_a_probeless_gateway_tells_how_to_measure(store: Store, tmp_path: Path, run: Callable[..., Any]) -> None:
    """Undecided is not healthy: a script that goes by the code must not deploy on it."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        code, out, _ = await run(gateway.url + "/v1/kinds")

    assert code == Exit.UNDECIDED
    assert "OUTLAST_PROBE_TOKEN" in out


# --- the commands, as a reader of the page types them -----------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")


def outlast(*words: str, folder: Path) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """A command as a process of its own, for the length of the block."""
    environment = os.environ | {"OUTLAST_PROBE_TOKEN": TOKEN, "COLUMNS": "98", "PYTHONPATH": str(Path.cwd())}
    return program(sys.executable, "-m", "gateway.cli", *words, cwd=folder, env=environment, stderr=None)


def as_told(printed: str) -> str:
    """What is printed, without what differs from run to run: ports, ray, seconds, and where lines break."""
    printed = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", printed)
    printed = re.sub(r"ray \w+", "ray ID", re.sub(r"\d+\.\d s", "N s", printed))
    return re.sub(r"[│╭╮╰╯─\s]+", " ", printed).strip()


async def test_the_printed_run_of_the_page_is_what_the_commands_print(gateway: Gateway, tmp_path: Path) -> None:
    """`outlast edge` with the page's profile, and `outlast doctor` through it, at the pace of production."""
    (tmp_path / "holding.toml").write_text(PAGE.partition("<!-- profile -->\n```toml\n")[2].partition("```")[0])
    origin = ("--origin", gateway.url)
    async with outlast("edge", "--profile", "holding.toml", *origin, "--port", "0", folder=tmp_path) as edge:
        assert edge.stdout is not None
        url = (await edge.stdout.readline()).decode().split()[0]
        asked = ("doctor", f"{url}/v1/kinds", *origin, "--save", "incident.json")
        async with outlast(*asked, folder=tmp_path) as doctor:
            printed, _ = await doctor.communicate()
        edge.terminate()
        await edge.communicate()

    _, _, wanted = PAGE.partition("<!-- printed -->\n```\n")[2].partition("```")[0].partition("\n")
    assert as_told(printed.decode()) == as_told(wanted)
    assert (doctor.returncode, edge.returncode) == (Exit.FAILED, 0)
    saved = load_report((tmp_path / "incident.json").read_text(), "incident.json")
    assert saved.seconds < saved.budget_seconds == 30


async def test_ctrl_c_leaves_no_connection_behind(gateway: Gateway) -> None:
    """Cancelled in the middle of a measurement, when all streams of the matrix stand."""
    connections = gateway.app[DOOR].connections
    running = asyncio.create_task(ask(at(gateway.url)))
    await wait_until(lambda: len(connections) > 16, what="the matrix")
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    await wait_until(lambda: not connections, what="the end of all connections")
