"""The walk: capture, place, origin first, measure, compare, one change; and the repeat that proves it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from urllib.parse import urlsplit

from gateway.doctor.capture import Captured, secrets_of
from gateway.doctor.chain import answered, measure, measure_origin
from gateway.doctor.compare import Difference, compare, explaining
from gateway.doctor.diagnosis import diagnose, origin_finding
from gateway.doctor.exchange import Ended, Exchange, exchange
from gateway.doctor.finding import Finding, in_cause_order
from gateway.doctor.measured import Chain
from gateway.doctor.observation import observed
from gateway.doctor.probes import Pace, Probes, Target
from gateway.doctor.redact import redact, redact_url
from gateway.doctor.report import Outcome, Report, Step, told
from gateway.doctor.rerun import seconds_to_repeat, still_wrong
from gateway.doctor.signatures import recognize

# The longest that each part takes on a line that answers; what is slower is itself a finding.
ORIGIN_SECONDS = 10.0
CHAIN_SECONDS = 20.0
DEEP_SECONDS = 420.0
_OWN_SECONDS = 12.0
_OWN_DEEP_SECONDS = 140.0
_SAFE = frozenset({"GET", "HEAD"})
# What an address that was only named, with neither its key nor its method, may answer without anything being wrong.
_EXPECTED = frozenset({"not_found", "unauthorized", "quota", "model_unknown"})


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What the user wants to know."""

    captured: Captured
    origin: str = ""
    compare: str = ""
    token: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    deep: bool = False
    rerun: bool = False
    baseline: Report | None = None
    saved_as: str = ""
    """The file in which this run's report, or the one whose fault is repeated, is kept."""

    @property
    def budget_seconds(self) -> float:
        """The longest time that it takes."""
        if not self.captured.url:
            return 1.0
        if self.rerun:
            code = self.baseline.verdict.code if self.baseline and self.baseline.verdict else ""
            return seconds_to_repeat(code) or _OWN_DEEP_SECONDS
        chain = DEEP_SECONDS if self.deep else CHAIN_SECONDS
        return chain * (1 + bool(self.compare)) + ORIGIN_SECONDS * bool(self.origin)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be told, word by word."""
        return (*self.captured.secrets, *([self.token] if self.token else []), *secrets_of(self.headers))


class _Walk:
    """One run: its steps and findings as they come."""

    def __init__(self, inquiry: Inquiry, pace: Pace, say: Callable[[Step], None]) -> None:
        self.inquiry = inquiry
        self.pace = pace
        self._say = say
        self.steps: list[Step] = []
        self.findings: list[Finding] = []
        self.origin: Chain | None = None
        self.chain: Chain | None = None
        self.compared: Chain | None = None
        self.differences: list[Difference] = []
        self.outcome: Outcome | None = None

    def step(self, name: str, text: str) -> None:
        step = Step.model_validate({"name": name, "text": redact(text, self.inquiry.secrets)})
        self.steps.append(step)
        self._say(step)

    def found(self, finding: Finding | None) -> None:
        if finding is not None and finding.code not in {one.code for one in self.findings}:
            self.findings.append(finding)

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in in_cause_order(self.findings) if not finding.verdict.note]


async def examine(
    inquiry: Inquiry, *, pace: Pace | None = None, say: Callable[[Step], None] = lambda _: None
) -> Report:
    """Walk from what was brought to the one thing to change. Cancelling it closes all connections.

    Args:
        pace: how long it waits; only chains whose own limits are scaled need another than the default.
        say: hears each step as it is done.
    """
    walk = _Walk(inquiry, pace or Pace(), say)
    clock = asyncio.get_running_loop().time
    began = clock()
    captured = inquiry.captured
    walk.step("capture", f"{captured.source}: {captured.summary}")
    if inquiry.rerun:
        await _repeat(walk)
    else:
        _place(walk)
        if captured.url and await _origin_is_good(walk):
            await _measure(walk)
            await _compare(walk)
    return _report(walk, clock() - began)


def _place(walk: _Walk) -> None:
    """What the failure says of itself."""
    captured = walk.inquiry.captured
    if captured.finding is not None:
        walk.found(captured.finding)
        verdict = captured.finding.verdict
        walk.step("place", f"{captured.finding.text(verdict.title)} ({verdict.place})")
    elif captured.seen is not None:
        status = captured.seen.status
        walk.step("place", f"status {status}: no failure that is known" if status else "it tells nothing that is known")


def _target(walk: _Walk, url: str) -> Target:
    return Target(url, walk.inquiry.captured.headers | walk.inquiry.headers, walk.inquiry.token)


def _own_url(walk: _Walk, base: str) -> str:
    """The captured path and query at another address."""
    theirs, own = urlsplit(walk.inquiry.captured.url), urlsplit(base)
    return own._replace(path=theirs.path, query=theirs.query).geturl() if own.path in {"", "/"} else base


# --- the origin -------------------------------------------------------------------------------------------------------


async def _origin_is_good(walk: _Walk) -> bool:
    """Measure the origin, if it is known; False where the fault is there and nothing else is worth looking at."""
    inquiry = walk.inquiry
    if not inquiry.origin:
        return True
    target = _target(walk, _own_url(walk, inquiry.origin))
    walk.origin, _ = await measure_origin(target, walk.pace)
    host = urlsplit(inquiry.origin).netloc
    finding = origin_finding(walk.origin, host=host) or (
        None if walk.origin.probe == "ready" else await _passive_origin(walk, target, host)
    )
    if finding is None:
        walk.step("origin", f"{host}: {_acquitted(walk, walk.origin)}")
        return True
    walk.found(finding)
    walk.step("origin", f"{host}: {finding.text(finding.verdict.title)}; nothing further is measured")
    return False


def _acquitted(walk: _Walk, origin: Chain) -> str:
    if origin.drips:
        return f"{len(origin.drips)} streams come in time; the origin is not it"
    method = walk.inquiry.captured.method
    return "it answers in time; the origin is not it" if method in _SAFE else f"it answers; no {method} was sent to it"


async def _passive_origin(walk: _Walk, target: Target, host: str) -> Finding | None:
    """Without probe routes: whether the origin's own route says anything at all in time."""
    if walk.inquiry.captured.method not in _SAFE:
        return None
    result = await Probes(target, walk.pace).own(_OWN_SECONDS)
    if result.head is None and result.ended is Ended.PATIENCE:
        waited = f"{result.ended_seconds:.0f}"
        return Finding("origin_silent", (f"no byte within {waited} s",), {"seconds": waited, "host": host})
    seen = recognize(observed(result))
    return seen if seen and seen.code not in _EXPECTED else None


# --- the chain --------------------------------------------------------------------------------------------------------


async def _measure(walk: _Walk) -> None:
    inquiry, captured = walk.inquiry, walk.inquiry.captured
    target = _target(walk, captured.url)
    asks_own = captured.method in _SAFE and urlsplit(captured.url).path not in {"", "/"}
    async with asyncio.TaskGroup() as group:
        measuring = group.create_task(measure(target, walk.pace, deep=inquiry.deep))
        patience = _OWN_DEEP_SECONDS if inquiry.deep else _OWN_SECONDS
        asking = group.create_task(Probes(target, walk.pace).own(patience)) if asks_own else None
    chain, first = measuring.result()
    own = asking.result() if asking else None
    walk.chain = chain.model_copy(update={"own": answered(own)}) if own else chain
    if chain.probe in {"off", "unreachable"}:
        _take_signature(walk, first)
    if own is not None:
        _take_signature(walk, own)
    for finding in diagnose(walk.chain, path=urlsplit(captured.url).path, host=captured.host, scale=walk.pace.scale):
        walk.found(finding)
    unsent = "" if captured.method in _SAFE else f"; the {captured.method} itself was not sent"
    walk.step("measure", _measured(walk.chain) + unsent)


def _take_signature(walk: _Walk, result: Exchange) -> None:
    captured = walk.inquiry.captured
    finding = recognize(observed(result, sent_bytes=len(captured.body)))
    if finding is not None and not (captured.source == "url" and finding.code in _EXPECTED):
        walk.found(finding)


def _measured(chain: Chain) -> str:
    hops = " > ".join(dict.fromkeys([*chain.answered.hops, *chain.inner_hops])) or "no hop names itself"
    ray = f", ray {chain.answered.ray}" + (f" at {chain.answered.colo}" if chain.answered.colo else "")
    who = hops + (ray if chain.answered.ray else "")
    match chain.probe:
        case "ready":
            paced = sum(drip.shape == "paced" for drip in chain.drips)
            socket = chain.socket.outcome.replace("_", " ") if chain.socket else "not measured"
            return f"{who}; {paced} of {len(chain.drips)} streams in time, WebSocket: {socket}"
        case "off":
            silent = ""
            if chain.silent_seconds:
                silent = f"; no byte of the address itself within {chain.silent_seconds:.0f} s"
            elif chain.late_seconds:
                silent = f"; the first byte of the address itself after {chain.late_seconds:.0f} s"
            return f"{who}; status {chain.answered.status}, no probe routes there{silent}"
        case "refused":
            return f"{who}; the probe token was refused"
        case "busy":
            return f"{who}; other doctors are measuring with this gateway's probes"
        case _:
            return f"no answer: {chain.answered.detail or chain.answered.ended}"


# --- comparing --------------------------------------------------------------------------------------------------------


async def _compare(walk: _Walk) -> None:
    """With a working address, or with a saved run; the first difference in cause order explains."""
    inquiry, chain = walk.inquiry, walk.chain
    if chain is None:
        return
    if inquiry.compare:
        target = _target(walk, _own_url(walk, inquiry.compare))
        walk.compared, _ = await measure(target, walk.pace, deep=inquiry.deep)
        walk.differences = compare(walk.compared, chain)
        _explain(walk, urlsplit(inquiry.compare).netloc)
    if inquiry.baseline is not None and inquiry.baseline.chain is not None:
        since = compare(inquiry.baseline.chain, chain)
        walk.differences = walk.differences or since
        worse = next((difference for difference in since if difference.worse), None)
        if worse is not None and not walk.faults:
            walk.found(_differing("worse_than_baseline", worse))
        walk.step("compare", f"with the baseline: {_counted(since)}" + (f", worse in {worse.what}" if worse else ""))


def _explain(walk: _Walk, name: str) -> None:
    faults = walk.faults
    first = explaining(walk.differences, faults[0].verdict.cause) if faults else None
    if not faults and (worse := next((one for one in walk.differences if one.worse), None)):
        walk.found(_differing("differs", worse))
        first = worse
    told_first = (
        f"; the first that explains it: {first.what} ({first.before} there, {first.after} here)" if first else ""
    )
    walk.step("compare", f"with {name}: {_counted(walk.differences)}{told_first}")


def _differing(code: str, difference: Difference) -> Finding:
    values = {"what": difference.what, "before": difference.before, "after": difference.after}
    return Finding(code, (f"{difference.what}: {difference.before} -> {difference.after}",), values)


def _counted(differences: list[Difference]) -> str:
    return f"{len(differences)} difference{'' if len(differences) == 1 else 's'}" if differences else "no difference"


# --- the repeat -------------------------------------------------------------------------------------------------------


async def _repeat(walk: _Walk) -> None:
    """Repeat the smallest failing action: of the baseline's verdict, else the captured request."""
    inquiry, captured = walk.inquiry, walk.inquiry.captured
    baseline = inquiry.baseline
    if baseline is not None and baseline.verdict is not None and baseline.chain is not None:
        target = _target(walk, captured.url)
        probes = Probes(target, walk.pace)
        still = await still_wrong(baseline.verdict.code, baseline.chain, probes, walk.pace)
        if probes.crowded:
            walk.step("measure", "other doctors are measuring with this gateway's probes")
            walk.outcome = Outcome.UNDECIDED
            return
        if still is not None:
            walk.step("measure", f"{baseline.verdict.code}: {still.text}")
            walk.outcome = Outcome.NOT_FIXED if still.wrong else Outcome.FIXED
            if still.wrong:
                walk.found(Finding(baseline.verdict.code, (still.text,), _as_values(baseline)))
            return
    result = await exchange(
        captured.method,
        captured.url,
        captured.headers | inquiry.headers,
        captured.body,
        patience_seconds=walk.pace(_OWN_DEEP_SECONDS),
        trust=captured.insecure,
    )
    seen = observed(result, sent_bytes=len(captured.body))
    finding = recognize(seen)
    silent = finding is None and result.head is None
    walk.found(finding)
    answer = f"status {result.status}" if result.status else str(result.ended)
    walk.step("measure", f"{captured.method} again: {answer} after {result.ended_seconds:.1f} s")
    walk.outcome = Outcome.NOT_FIXED if finding else Outcome.UNDECIDED if silent else Outcome.FIXED


def _as_values(baseline: Report) -> dict[str, str]:
    """The words of the saved verdict, so that it reads as it did."""
    chain = baseline.chain
    found = diagnose(chain) if chain else []
    code = baseline.verdict.code if baseline.verdict else ""
    return next((dict(finding.values) for finding in found if finding.code == code), {})


# --- the report -------------------------------------------------------------------------------------------------------


def _report(walk: _Walk, seconds: float) -> Report:
    inquiry, captured = walk.inquiry, walk.inquiry.captured
    ordered = in_cause_order(walk.findings)
    first = walk.faults[0] if walk.faults else None
    outcome = walk.outcome or (Outcome.FAULT if first else Outcome.UNDECIDED)
    if walk.outcome is None and first is None and walk.chain is not None and walk.chain.probe == "ready":
        outcome = Outcome.HEALTHY
    verdict = told(first, inquiry.secrets) if first else None
    if verdict is not None:
        walk.step("change", verdict.change)
    return Report(
        outlast=version("outlast"),
        made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source=captured.source,
        target=redact_url(captured.url) if captured.url else "",
        method=captured.method,
        outcome=outcome,
        verdict=verdict,
        more=tuple(told(finding, inquiry.secrets) for finding in ordered if finding is not first),
        verify=redact(_verify(inquiry), inquiry.secrets) if outcome in {Outcome.FAULT, Outcome.NOT_FIXED} else "",
        next=redact(_next(walk), inquiry.secrets) if outcome is Outcome.UNDECIDED else "",
        steps=tuple(walk.steps),
        origin=walk.origin,
        chain=walk.chain,
        compared=walk.compared,
        differences=tuple(walk.differences),
        budget_seconds=inquiry.budget_seconds,
        seconds=round(seconds, 2),
    )


def _next(walk: _Walk) -> str:
    """The command that finds out more, where this run could not decide."""
    inquiry, captured, chain = walk.inquiry, walk.inquiry.captured, walk.chain
    if not captured.url or chain is None:
        return ""
    again = _verify(inquiry)
    if chain.probe == "busy" or again.endswith("--rerun"):
        return again
    if chain.silent_seconds and not inquiry.deep:
        return f"{again} --deep"
    return ""


def _verify(inquiry: Inquiry) -> str:
    """The command that shows whether the change helped."""
    captured = inquiry.captured
    if not captured.url:
        return "outlast doctor 'curl ...' --rerun"
    if captured.source in {"curl", "har"}:
        brought = captured.file or ("curl ..." if captured.source == "curl" else "failing.har")
        return shlex.join(["outlast", "doctor", brought, "--rerun"])
    words = ["outlast", "doctor", redact_url(captured.url)]
    if inquiry.origin:
        words += ["--origin", redact_url(inquiry.origin)]
    if inquiry.saved_as:
        words += ["--baseline", inquiry.saved_as, "--rerun"]
    elif inquiry.deep:
        words += ["--deep"]
    return shlex.join(words)
