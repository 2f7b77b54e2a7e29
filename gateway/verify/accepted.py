"""Promise 1, accepted means kept: what 202 said is there at once, and ends exactly once."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.verify.report import Broken
from gateway.verify.streams import open_stream
from gateway.verify.trial import Check, Hop, Trial

_READS: Final = 8


async def _is_found(trial: Trial) -> str:
    job = await trial.steady()
    await asyncio.gather(*(trial.document(job) for _ in range(_READS)))
    return f"{_READS} of {_READS} reads right after the 202 found job {job}"


async def _ends_once(trial: Trial) -> str:
    reference = await trial.reference()
    job = reference.job
    document = await trial.ended(job)
    ends = [heard for heard in reference.heard if heard.event.terminal]
    if len(ends) != 1 or not reference.heard[-1].event.terminal:
        raise Broken(f"the log of job {job} has {len(ends)} terminal events")
    if document.get("state") != ends[0].event.type:
        raise Broken(f"the log of job {job} ends with {ends[0].event.type}, and a GET says {document.get('state')}")
    if document.get("last_event_id") != ends[0].cursor:
        raise Broken(
            f"the log of job {job} ends at {ends[0].cursor}, and a GET says {document.get('last_event_id')}: something"
            " was written after the end"
        )
    return f"job {job} ended as {ends[0].event.type} with event {ends[0].number}, its last"


async def _outlives_its_submitter(trial: Trial) -> str:
    body = trial.target.request_body(trial.target.work.steady)
    job = await trial.target.new_job(body)
    document = await trial.ended(job)
    followed = await trial.follow(job, [])
    trial.logs.append(followed)
    return (
        f"nobody listened to job {job}; it {document['state']}, and its {len(followed.heard)} events were read"
        " afterwards"
    )


async def _stays_readable(trial: Trial) -> str:
    reference = await trial.reference()
    late = await trial.follow(reference.job, [Hop("sse")])
    if late.texts != reference.texts:
        raise Broken(f"a listener that came after the end got {len(late.texts)} events of {len(reference.texts)}")
    return f"{len(late.heard)} events, the same as heard live"


async def _stops_a_finished_listener(trial: Trial) -> str:
    reference = await trial.reference()
    end = reference.heard[-1]
    silence = trial.dead_after_seconds
    async with open_stream(trial.target, "sse", reference.job, end.cursor, silence_seconds=silence) as stream:
        if not stream.told_to_stop:
            raise Broken("a reconnect after the terminal event got a stream; only 204 ends a browser's reconnecting")
    return "a reconnect after the terminal event gets 204"


CHECKS: Final = (
    Check(1, "found-at-once", "After 202 every GET finds the job.", _is_found),
    Check(1, "ends-once", "The job reaches one terminal event, the last of its log.", _ends_once),
    Check(1, "unwatched", "A job whose submitter leaves and that nobody watches ends all the same.",
          _outlives_its_submitter),
    Check(1, "readable-after-the-end", "Its whole log can be read after the end.", _stays_readable),
    Check(1, "told-to-stop", "Who has the end is told that there is no more.", _stops_a_finished_listener),
)  # fmt: skip
