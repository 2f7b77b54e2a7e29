"""The delivery contract as a suite that anybody can run against their own deployment, through their own proxies.

A client of the wire only: it knows the protocol, and nothing of the gateway's inside. Unlike the Python client it puts
nothing right: what a listener would see is what is judged.

    target (one request) -> streams, held (one connection) -> trial (what checks share) -> the checks -> report
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from gateway.verify import accepted, disconnect, keys, resume, silence, slow
from gateway.verify.report import BEYOND, PROMISES, Broken, NotTested, Outcome, Report, Verdict
from gateway.verify.target import Target, own_work, probe_work, sessions
from gateway.verify.trial import Check, Trial

__all__ = ["BEYOND", "CHECKS", "PROMISES", "Check", "Outcome", "Report", "Verdict", "verify"]

CHECKS: Final[tuple[Check, ...]] = (
    *accepted.CHECKS,
    *resume.CHECKS,
    *silence.CHECKS,
    *slow.CHECKS,
    *keys.CHECKS,
    *disconnect.CHECKS,
)


async def verify(
    urls: Sequence[str],
    *,
    kind: str | None = None,
    input: Mapping[str, Any] | None = None,
    api_key: str | None = None,
    other_key: str | None = None,
    silence_seconds: float = 15.0,
    run_quiet_seconds: float = 20.0,
    patience_seconds: float = 120.0,
    promises: Sequence[int] = tuple(PROMISES),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Run the checks of some promises, side by side; `on_outcome` hears of each when it is done.

    `urls` are addresses of one deployment; connections go to them in turn. `kind` and `input` name a job of your own;
    without them the built-in kind `probe` is used. What was submitted is cancelled at the end, also if this is
    cancelled. Raises `Unreachable`, `Unauthorized`, and `ConfigurationError` for a kind that isn't there.
    """
    work = probe_work(silence_seconds) if kind is None else own_work(kind, input or {})
    began, started_at = time.monotonic(), datetime.now(UTC)
    async with sessions() as (plain, tight):
        target = Target([url.rstrip("/") for url in urls], work, plain, api_key)
        await target.check_reachable()
        trial = Trial(
            target,
            tight,
            silence_seconds=silence_seconds,
            run_quiet_seconds=run_quiet_seconds,
            patience_seconds=patience_seconds,
            other_key=other_key,
        )
        limit = patience_seconds + 4 * silence_seconds + run_quiet_seconds
        chosen = [check for check in CHECKS if check.promise in promises]
        try:
            outcomes = await _all(chosen, trial, limit, on_outcome)
        finally:
            await trial.close()
            await target.cancel_all()
    return Report(
        target.urls,
        work.kind,
        started_at.isoformat(timespec="seconds"),
        time.monotonic() - began,
        tuple(outcomes),
    )


async def _all(
    checks: Sequence[Check], trial: Trial, limit: float, on_outcome: Callable[[Outcome], None]
) -> list[Outcome]:
    async def one(check: Check) -> Outcome:
        outcome = await _outcome(check, trial, limit)
        on_outcome(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(check), name=check.name) for check in checks]
    return [task.result() for task in tasks]


async def _outcome(check: Check, trial: Trial, limit: float) -> Outcome:
    began = time.monotonic()
    try:
        async with asyncio.timeout(limit):
            verdict, evidence = Verdict.HOLDS, await check.run(trial)
    except Broken as broken:
        verdict, evidence = Verdict.FAILS, str(broken)
    except NotTested as reason:
        verdict, evidence = Verdict.NOT_TESTED, str(reason)
    except TimeoutError:
        verdict, evidence = Verdict.FAILS, f"nothing was decided within {limit:g} s"
    return Outcome(check.promise, check.name, check.claim, verdict, evidence, time.monotonic() - began)
