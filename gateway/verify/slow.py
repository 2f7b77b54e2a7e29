"""Promise 5, a slow listener costs nobody else anything: one stops reading, another must not feel it."""

from __future__ import annotations

from typing import Final

from gateway.verify.report import Broken, NotTested
from gateway.verify.streams import open_stream
from gateway.verify.trial import Check, Followed, Trial, check_lags, check_same, connections


async def _others(trial: Trial) -> str:
    fast, _ = await trial.once("bulk", _bulk)
    try:
        lags = check_lags(fast.heard, "the other listener")
    except Broken:
        # One late row may be a busy machine's; a listener that is waited for makes every row late.
        fast, _ = await _bulk(trial)
        lags = check_lags(fast.heard, "the other listener")
    size = sum(len(text) for text in fast.texts)
    return f"{size // 1000} kB beside a listener that stopped reading: {lags}"


async def _itself(trial: Trial) -> str:
    fast, slow = await trial.once("bulk", _bulk)
    check_same(fast, slow, "the listener that had stopped reading")
    return f"{len(slow.heard)} events, the same as the other's, over {connections(slow.connections)}"


async def _bulk(trial: Trial) -> tuple[Followed, Followed]:
    """One job with two listeners: one reads, the other stops until the job has ended, then reads on."""
    work = trial.target.work
    if not work.paced:
        raise NotTested("it needs the kind `probe`, whose jobs write enough to fill the buffers on the way")
    job = await trial.target.new_job(trial.target.request_body(work.bulk))
    silence = trial.dead_after_seconds
    async with open_stream(trial.target, "sse", job, silence_seconds=silence, session=trial.tight) as stopped:
        fast = await trial.follow(job, [])
        slow = Followed(job, connections=1)
        while (heard := await stopped.next()) is not None:
            if heard.number is None:
                continue
            if heard.number != len(slow.heard) + 1:
                raise Broken(f"event {heard.number} came where event {len(slow.heard) + 1} belongs, to a slow listener")
            slow.heard.append(heard)
            if heard.event.terminal:
                return fast, slow
    rest = await trial.follow(job, [], after=slow.heard[-1].cursor if slow.heard else "")
    return fast, Followed(job, slow.heard + rest.heard, connections=1 + rest.connections)


CHECKS: Final = (
    Check(5, "others-feel-nothing", "Beside a listener that has stopped reading, another hears events as ever.",
          _others),
    Check(5, "comes-back-whole", "The one that had stopped reads on, or is cut and comes back, and misses nothing.",
          _itself),
)  # fmt: skip
