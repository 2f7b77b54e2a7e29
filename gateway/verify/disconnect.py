"""Promise 7, disconnect is not cancel: listeners leave in the middle, and the job ends as if they had stayed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from gateway.verify.held import held_run
from gateway.verify.keys import a_key
from gateway.verify.report import Broken, NotTested
from gateway.verify.streams import Transport, open_stream, submit_stream
from gateway.verify.target import accepted_job
from gateway.verify.trial import Check, Trial

_BEFORE_LEAVING: Final = 3
# How long a request stays before it is left; longer where the way, or the machine, is slow.
_HELD_SECONDS: Final = (1.0, 4.0)


async def _leave_a_stream(trial: Trial) -> str:
    body = trial.target.request_body(trial.target.work.steady)
    job = await trial.target.new_job(body)
    left: list[Transport] = []
    transports: tuple[Transport, ...] = ("sse", "websocket", "ndjson")
    for transport in transports:
        # That one of them can't be opened breaks another promise, and another check says so.
        with suppress(Broken):
            async with open_stream(trial.target, transport, job, silence_seconds=trial.dead_after_seconds) as stream:
                await stream.next()
                left.append(transport)
    if not left:
        raise NotTested("no stream could be opened, so none could be left")
    return await _ends_all_the_same(trial, job, f"left over {', '.join(left)} after the first event")


async def _leave_a_post(trial: Trial) -> str:
    body = trial.target.request_body(trial.target.work.steady)
    silence = trial.dead_after_seconds
    async with submit_stream(trial.target, body, {}, silence_seconds=silence) as (stream, job):
        for _ in range(_BEFORE_LEAVING):
            if await stream.next() is None:
                break
    if not job:
        raise NotTested("the answer to a submit with `Accept: text/event-stream` names no job")
    return await _ends_all_the_same(trial, job, "the submitter left its own stream")


async def _leave_a_run(trial: Trial) -> str:
    body = trial.target.request_body(trial.target.work.steady)
    for seconds in _HELD_SECONDS:
        key = a_key()
        async with held_run(trial.target, body, key):
            await asyncio.sleep(seconds)
        answer = await trial.target.submit(body, headers=key)
        if answer.headers.get("Idempotency-Replayed") == "true":
            job = accepted_job(answer)
            return await _ends_all_the_same(trial, job, "the submitter left its `run` before the first byte")
    raise NotTested(f"a `run` that was sent {_HELD_SECONDS[-1]:g} s ago had made no job yet")


async def _ends_all_the_same(trial: Trial, job: str, how: str) -> str:
    try:
        document = await trial.ended(job)
    except Broken as error:
        raise NotTested(f"how the job ended can't be seen afterwards: {error}") from None
    if document.get("state") == "cancelled":
        raise Broken(f"job {job} was cancelled when its listeners left: {document.get('reason')}")
    return f"{how}; job {job} {document.get('state')}"


CHECKS: Final = (
    Check(7, "left-streams", "A job whose listeners leave goes on to its own end.", _leave_a_stream),
    Check(7, "left-post", "So does one whose submitter leaves the stream of its own submit.", _leave_a_post),
    Check(7, "left-run", "And one whose submitter leaves a `run`.", _leave_a_run),
)  # fmt: skip
