"""Promise 4, first byte at once, silence never: on jobs that have nothing to say, and nothing held back on the way."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Final

from gateway.verify.held import held_run
from gateway.verify.keys import a_key
from gateway.verify.report import Broken
from gateway.verify.streams import Stream, Transport, open_stream, submit_stream
from gateway.verify.target import shown
from gateway.verify.trial import Check, Trial, check_lags

_FIRST_BYTE_SECONDS: Final = 1.0
# Two seconds for a busy machine and the way; five more, so that one heartbeat at least is due.
_LATE_SECONDS: Final = 2.0
_LISTEN_LONGER_SECONDS: Final = 5.0
_REOPEN_SECONDS: Final = 0.2
_WAIT_SECONDS: Final = 2
_WAIT_LATE_SECONDS: Final = 3.0
_ENDS_WITHIN_SECONDS: Final = 5.0


async def _first_byte(trial: Trial) -> str:
    job = await _quiet_job(trial)
    limit = await _limit(trial)
    took = []
    transports: tuple[Transport, ...] = ("sse", "ndjson", "websocket")
    for transport in transports:
        silence = limit + trial.silence_seconds
        async with open_stream(trial.target, transport, job, silence_seconds=silence) as stream:
            took.append(await _speaks(stream, limit, transport))
    return f"{', '.join(f'{t} {s * 1000:.0f} ms' for t, s in zip(transports, took, strict=True))}"


async def _first_byte_of_a_post(trial: Trial) -> str:
    body = trial.target.request_body(trial.target.work.silent, held=True)
    limit = await _limit(trial)
    silence = limit + trial.silence_seconds
    async with submit_stream(trial.target, body, {}, silence_seconds=silence) as (stream, _):
        seconds = await _speaks(stream, limit, "a POST's stream")
    return f"{seconds * 1000:.0f} ms after the POST"


async def _heartbeats(transport: Transport, trial: Trial) -> str:
    longest = await _longest_silence(trial, await _quiet_job(trial), transport)
    return f"longest silence on a job that says nothing: {longest:.1f} s"


async def _longest_silence(trial: Trial, job: str, transport: Transport) -> float:
    """Listen for a little longer than a silence may be. A planned end is no silence: the stream is opened again."""
    limit = trial.silence_seconds + _LATE_SECONDS
    heard = began = time.monotonic()
    until = began + trial.silence_seconds + _LISTEN_LONGER_SECONDS
    longest = 0.0
    while heard < until:
        async with open_stream(trial.target, transport, job, silence_seconds=limit) as stream:
            goes_on = True
            while goes_on and heard < until:
                try:
                    async with asyncio.timeout(limit):
                        goes_on = await stream.sign()
                except TimeoutError:
                    raise Broken(f"{transport} was silent for more than {limit:g} s") from None
                if goes_on:
                    longest, heard = max(longest, time.monotonic() - heard), time.monotonic()
            if stream.told_to_stop:
                raise Broken(f"the stream over {transport} was ended for good while its job was open")
        if time.monotonic() - heard > limit:
            raise Broken(f"{transport} brought nothing for more than {limit:g} s, over several connections")
        await asyncio.sleep(_REOPEN_SECONDS)
    return longest


async def _held_request(trial: Trial) -> str:
    job = await _quiet_job(trial)
    answer = await trial.target.ask("GET", f"/v1/jobs/{job}?wait={_WAIT_SECONDS}")
    if answer.status != 200:
        raise Broken(f"GET ?wait={_WAIT_SECONDS} was answered {answer.status} {answer.code or ''}")
    if answer.seconds > _WAIT_SECONDS + _WAIT_LATE_SECONDS:
        raise Broken(f"GET ?wait={_WAIT_SECONDS} took {answer.seconds:.1f} s")
    return f"?wait={_WAIT_SECONDS} was answered after {answer.seconds:.1f} s"


async def _held_run(trial: Trial) -> str:
    target, key = trial.target, a_key()
    body = target.request_body(target.work.silent, held=True)
    job = await target.new_job(body, headers=key)
    async with held_run(target, body, key) as run:
        await run.more(trial.run_quiet_seconds + _LATE_SECONDS)
        spoke_at = time.monotonic()
        goes_on = await run.more(trial.silence_seconds + _LATE_SECONDS)
        silence = time.monotonic() - spoke_at
        if goes_on:
            await target.cancel(job)
        document = await run.document(_ENDS_WITHIN_SECONDS)
    if not goes_on or "error" not in document:
        when = "when its job was cancelled" if goes_on else "before its job had ended"
        raise Broken(f"`run` was answered {when} with {shown(json.dumps(document))}")
    return f"first byte after {spoke_at - run.asked_at:.1f} s, the next {silence:.1f} s later, and JSON at the end"


async def _not_held_back(trial: Trial) -> str:
    return check_lags((await trial.reference()).heard, "a listener over sse")


async def _quiet_job(trial: Trial) -> str:
    body = trial.target.request_body(trial.target.work.silent, held=True)
    return await trial.target.new_job(body)


async def _limit(trial: Trial) -> float:
    """A second, and what a plain request takes from here."""
    answer = await trial.target.ask("GET", "/healthz")
    return _FIRST_BYTE_SECONDS + answer.seconds


async def _speaks(stream: Stream, limit: float, what: str) -> float:
    try:
        async with asyncio.timeout(limit + stream.asked_at - time.monotonic()):
            goes_on = await stream.sign()
    except TimeoutError:
        raise Broken(f"no byte over {what} within {limit:.2f} s") from None
    if not goes_on:
        raise Broken(f"{what} ended before its first byte")
    return time.monotonic() - stream.asked_at


CHECKS: Final = (
    Check(4, "first-byte", "A stream's first body byte comes within a second, also where there is nothing to say.",
          _first_byte),
    Check(4, "first-byte-of-a-post", "So does that of a submit that is its own stream.", _first_byte_of_a_post),
    Check(4, "heartbeats-sse", "An SSE stream on which nothing happens is never silent for longer than promised.",
          partial(_heartbeats, "sse")),
    Check(4, "heartbeats-ndjson", "Nor is one of NDJSON.", partial(_heartbeats, "ndjson")),
    Check(4, "heartbeats-websocket", "Nor is a WebSocket: pings count.", partial(_heartbeats, "websocket")),
    Check(4, "held-requests", "A held request is answered in its time.", _held_request),
    Check(4, "silence-of-a-run", "A `run` speaks when its quiet time is over, and then as often as a stream.",
          _held_run),
    Check(4, "not-held-back", "Events come when they are written, not in heaps: nothing on the way buffers them.",
          _not_held_back),
)  # fmt: skip
