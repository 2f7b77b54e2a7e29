"""`outlast verify`: a real deployment keeps every promise, and a plain relay breaks those that it must."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError, Unauthorized, Unreachable
from gateway.store import Store
from gateway.verify import CHECKS, PROMISES, Report, Verdict, verify
from processors.processor import load_processors
from tests.faults import FaultProxy
from tests.ports import free_port
from tests.processes import ran
from tests.relay import relay
from tests.serving import KEY, KEYS, Gateway, gateway_for
from tests.worker_jobs import working

_SILENCE_SECONDS = 1.0


@asynccontextmanager
async def deployment(store: Store, folder: Path, **settings: object) -> AsyncIterator[Gateway]:
    """A gateway, and a worker that serves `probe`."""
    quick: dict[str, object] = {"heartbeat_seconds": _SILENCE_SECONDS, "run_quiet_seconds": _SILENCE_SECONDS}
    async with gateway_for(store, folder / "blobs", **quick | settings) as gateway:
        kinds = load_processors(["processors.probe"]).values()
        async with working(store, gateway.blobs, kinds, concurrency=8):
            yield gateway


def seen(report: Report, name: str) -> tuple[Verdict, str]:
    """What one check found."""
    [outcome] = [outcome for outcome in report.outcomes if outcome.name == name]
    return outcome.verdict, outcome.evidence


async def test_a_real_deployment_keeps_every_promise(store: Store, tmp_path: Path) -> None:
    """Over two addresses, with two owners; what nobody can see from outside is said to be untested."""
    async with (
        deployment(store, tmp_path, api_keys=KEYS) as gateway,
        FaultProxy(gateway.url) as other_address,
    ):
        report = await verify(
            [gateway.url, other_address.url],
            api_key=KEY,
            other_key=KEYS["other"],
            silence_seconds=_SILENCE_SECONDS,
            run_quiet_seconds=_SILENCE_SECONDS,
        )
        jobs, _ = await store.jobs("me", limit=200)

    wrong = [f"{o.name}: {o.evidence}" for o in report.outcomes if o.verdict is not Verdict.HOLDS]
    assert wrong == []
    assert [outcome.name for outcome in report.outcomes] == [check.name for check in CHECKS]
    assert {promise: report.verdict(promise) for promise in PROMISES} == {
        promise: Verdict.NOT_TESTED if promise == 3 else Verdict.HOLDS for promise in PROMISES
    }
    # It leaves nothing behind that would run: what was to start in an hour is cancelled.
    assert all(job.terminal for job in jobs)
    assert len(jobs) < 25


async def test_a_plain_relay_breaks_four_promises_by_name() -> None:
    """Pub/sub without a log: no job after its end, no resume, silence while nothing happens, two jobs for one key."""
    async with relay() as (_, url):
        report = await verify(
            [url], silence_seconds=_SILENCE_SECONDS, run_quiet_seconds=_SILENCE_SECONDS, patience_seconds=20
        )

    assert {1, 2, 4, 6} <= set(report.failed)
    assert not {3, 5, 7} & set(report.failed)
    assert seen(report, "whole-row")[0] is Verdict.HOLDS
    assert "404" in seen(report, "unwatched")[1]
    assert "missing" in seen(report, "cut-and-resumed")[1]
    assert "no byte over sse within" in seen(report, "first-byte")[1]
    assert "was silent for more than" in seen(report, "heartbeats-sse")[1]
    assert "2 jobs" in seen(report, "same-job")[1]
    assert "`run` brought nothing for more than" in seen(report, "silence-of-a-run")[1]
    assert "over `run` made job" in seen(report, "key-of-a-run")[1]


@pytest.mark.parametrize(
    ("switch", "promise", "check", "words"),
    [
        ("cancels_on_disconnect", 7, "left-post", "was cancelled when its listeners left"),
        ("cancels_on_disconnect", 7, "left-run", "was cancelled when its listeners left"),
        ("one_queue", 5, "others-feel-nothing", "came over sse|long after"),
        ("late_writer", 3, "attempts-in-order", "attempt 1 wrote event"),
    ],
)
async def test_each_other_promise_can_fail_too(switch: str, promise: int, check: str, words: str) -> None:
    """A relay that ends its work with its listeners, waits for the slowest, or lets an old attempt write."""
    switches = {switch: True, "keeps_jobs": True, "keeps_keys": True}
    async with relay(**switches) as (_, url):
        report = await verify([url], silence_seconds=_SILENCE_SECONDS, patience_seconds=20, promises=[promise])

    assert report.failed == [promise]
    verdict, evidence = seen(report, check)
    assert verdict is Verdict.FAILS
    assert any(word in evidence for word in words.split("|")), evidence


async def test_a_hop_that_holds_events_back_is_seen(store: Store, tmp_path: Path) -> None:
    """A proxy that buffers passes each event in the end, and in heaps."""

    async def hold_back(proxy: FaultProxy) -> None:
        while True:
            proxy.stall()
            await asyncio.sleep(3.5)
            proxy.resume()
            await asyncio.sleep(0.2)

    async with deployment(store, tmp_path) as gateway, FaultProxy(gateway.url) as proxy:
        holding = asyncio.create_task(hold_back(proxy))
        try:
            report = await verify(
                [proxy.url], silence_seconds=_SILENCE_SECONDS, run_quiet_seconds=_SILENCE_SECONDS, promises=[4]
            )
        finally:
            holding.cancel()
            proxy.resume()

    assert report.failed == [4]
    assert "something on the way holds them back" in seen(report, "not-held-back")[1]


async def test_a_kind_of_ones_own_will_do(store: Store, tmp_path: Path) -> None:
    """What needs the probe's pace is then said to be untested, with the way to have it tested."""
    async with deployment(store, tmp_path) as gateway:
        report = await verify(
            [gateway.url], kind="probe", input={"steps": 3, "interval_seconds": 0.05}, promises=[1, 5, 6, 7]
        )

    assert report.failed == []
    assert {promise: report.verdict(promise) for promise in (1, 5, 6, 7)} == {
        1: Verdict.HOLDS,
        5: Verdict.NOT_TESTED,
        6: Verdict.HOLDS,
        7: Verdict.HOLDS,
    }
    assert "probe" in seen(report, "others-feel-nothing")[1]


async def test_what_cannot_be_tested_at_all_is_an_error(store: Store, tmp_path: Path) -> None:
    """No gateway, no such kind, no key: each says what to do."""
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
        await verify([f"http://127.0.0.1:{free_port()}"])
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway:
        with pytest.raises(ConfigurationError, match=r"processors\.probe"):
            await verify([gateway.url], api_key=KEY)
        with pytest.raises(Unauthorized, match="OUTLAST_API_KEY"):
            await verify([gateway.url])


async def outlast_verify(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    return await ran(sys.executable, "-m", "gateway.cli", "verify", *arguments)


async def test_the_command_reports_in_words_in_json_and_by_its_exit_code(store: Store, tmp_path: Path) -> None:
    """0: all holds; 1: a promise does not; 2: wrong options; 4: nobody there."""
    async with deployment(store, tmp_path) as gateway, relay() as (_, url):
        kept, as_json, broken, wrong, nobody = await asyncio.gather(
            outlast_verify(gateway.url, "--only", "6"),
            outlast_verify(gateway.url, "--only", "6", "--json"),
            outlast_verify(url, "--only", "6", "--silence", "1"),
            outlast_verify("--only", "8"),
            outlast_verify(f"http://127.0.0.1:{free_port()}"),
        )

    assert [code for code, _, _ in (kept, as_json, broken, wrong, nobody)] == [0, 0, 1, 2, 4]
    assert "6 Same Idempotency-Key, same job  holds" in kept[1]
    assert "not tested from here: a gateway that dies between two steps of a submit" in kept[1]
    document = json.loads(as_json[1])
    assert document["verdict"] == "holds"
    assert [promise["number"] for promise in document["promises"] if promise["checks"]] == [6]
    assert "Does not hold: 6 Same Idempotency-Key, same job." in broken[1]
    assert "--only" in wrong[2]
