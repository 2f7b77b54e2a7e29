"""Promises 2 and 3: no gap, no repeat, in order, whatever is cut; and a log that one attempt at a time has written."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Final

from gateway.protocol import Cursor
from gateway.verify.report import Broken, NotTested
from gateway.verify.streams import TRANSPORTS, Refused, Transport, open_stream
from gateway.verify.trial import Check, Hop, Trial, check_same, connections

# Long enough away that events are written meanwhile: a relay without a log has forgotten them.
_AWAY_SECONDS: Final = 0.6
_CUTS: Final = 6
_NONSENSE: Final = ("-1", "abc", "1e9", "5-", "٣", "9" * 40)
_FUTURE: Final = 999_999


async def _whole(trial: Trial) -> str:
    reference = await trial.live_log()
    return f"events 1 to {len(reference.heard)} of job {reference.job}, over {connections(reference.connections)}"


async def _cut(trial: Trial) -> str:
    job = await trial.steady()
    followed = await trial.follow(job, [Hop("sse", most=2, away_seconds=_AWAY_SECONDS)] * _CUTS)
    check_same(await trial.reference(), followed, "a listener that was cut")
    if not followed.live:
        raise NotTested("the job's log was too short to be cut; give it a longer one with --input")
    return f"cut {followed.live} times, {len(followed.heard)} events, the same as without a cut"


async def _over_other_transports(trial: Trial) -> str:
    job = await trial.steady()
    order: tuple[Transport, ...] = ("websocket", "ndjson", "poll", "sse")
    hops = [Hop(transport, most=2, away_seconds=0.3) for transport in islice(cycle(order), 8)]
    followed = await trial.follow(job, hops)
    check_same(await trial.reference(), followed, "a listener that changed transports")
    if not set(TRANSPORTS) <= followed.transports:
        raise NotTested(f"the job's log was too short for more than {', '.join(sorted(followed.transports))}")
    gateways = f" and {len(trial.target.urls)} addresses" if len(trial.target.urls) > 1 else ""
    return f"{followed.connections} connections over 4 transports{gateways}, the same bytes on each"


async def _bare_numbers(trial: Trial) -> str:
    reference = await trial.reference()
    middle = len(reference.heard) // 2
    if middle < 1:
        raise NotTested("the job's log has one event")
    for after in (reference.heard[middle - 1].cursor, str(middle)):
        rest = await trial.follow(reference.job, [], after=after)
        if rest.texts != reference.texts[middle:]:
            raise Broken(f"after {after} came {len(rest.texts)} events instead of {len(reference.texts) - middle}")
    return f"after event {middle}, as N-T and as a bare N, came the other {len(reference.heard) - middle}"


async def _nonsense(trial: Trial) -> str:
    job = await trial.steady()
    for after in (*_NONSENSE, str(_FUTURE)):
        answer = await trial.target.ask(
            "GET", f"/v1/jobs/{job}/events", headers={"Accept": "application/json"}, query={"after": after}
        )
        if answer.status != 400 or answer.code != "bad_cursor":
            raise Broken(f"?after={after[:20]} was answered {answer.status} {answer.code or ''}, not 400 bad_cursor")
    return f"{len(_NONSENSE)} that are none and one from the future: 400 bad_cursor"


async def _another_history(trial: Trial) -> str:
    reference = await trial.reference()
    last = Cursor.parse(reference.heard[-1].cursor)
    if last.time_ms is None:
        raise NotTested("the events' cursors have no time")
    wrong = str(Cursor(last.number, last.time_ms - 86_400_000))
    silence = trial.dead_after_seconds
    kinds: list[str] = []
    try:
        async with open_stream(trial.target, "sse", reference.job, wrong, silence_seconds=silence) as stream:
            while len(kinds) < 2 and (heard := await stream.next()) is not None:
                kinds.append(heard.event.type)
    except Refused as error:
        raise Broken(f"a cursor of another history: {error}") from None
    if kinds != ["reset", "snapshot"]:
        raise Broken(f"a cursor that names an event of another history got {kinds or 'nothing'}, not reset, snapshot")
    return "`reset`, then a snapshot"


async def _attempts(trial: Trial) -> str:
    await trial.reference()
    checked = 0
    for followed in trial.logs:
        attempt = 0
        for heard in followed.heard:
            if heard.event.attempt is None:
                raise NotTested("the events name no attempt")
            if heard.event.attempt < attempt:
                raise Broken(f"attempt {heard.event.attempt} wrote event {heard.number} after attempt {attempt} had")
            attempt = heard.event.attempt
            checked += 1
    return f"{checked} events of {len(trial.logs)} logs: the attempt never falls"


CHECKS: Final = (
    Check(2, "whole-row", "A listener gets the numbers 1, 2, 3, ... without a hole.", _whole),
    Check(2, "cut-and-resumed", "A listener that is cut and comes back later misses and repeats nothing.", _cut),
    Check(2, "other-transports", "It may come back over another transport each time, and reads the same bytes.",
          _over_other_transports),
    Check(2, "from-any-cursor", "A cursor gets every later event, with its time and as a bare number.", _bare_numbers),
    Check(2, "bad-cursors", "A cursor that is none, or from the future, is refused, never guessed at.", _nonsense),
    Check(2, "another-history", "A cursor that the log doesn't hold is told so, never spliced.", _another_history),
    Check(3, "attempts-in-order", "In every log that was read, no earlier attempt writes after a later one.",
          _attempts),
)  # fmt: skip
