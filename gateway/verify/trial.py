"""One run against one deployment: what its checks have in common, so that few jobs serve many of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from statistics import median
from typing import Any, Final, NamedTuple

import aiohttp

from gateway.verify.report import Broken, NotTested
from gateway.verify.streams import Heard, Refused, Transport, open_stream
from gateway.verify.target import Target

# A server that cuts every connection before it has brought anything would be come back to for ever.
_MAX_FRUITLESS: Final = 5
# An event that comes later than this after it was written is not live any more.
MAX_LAG_SECONDS: Final = 1.0
_FEWEST_EVENTS: Final = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to be seen. `run` returns what was seen; it raises `Broken` or `NotTested`."""

    promise: int
    name: str
    claim: str
    run: Callable[[Trial], Awaitable[str]]


class Hop(NamedTuple):
    """One connection of a listener that is cut again and again: read so many events, drop it, stay away."""

    transport: Transport
    most: int | None = None
    away_seconds: float = 0.0


@dataclass(slots=True)
class Followed:
    """All numbered events that a listener got, over how many connections."""

    job: str
    heard: list[Heard] = field(default_factory=list)
    connections: int = 0
    live: int = 0
    """How many of its connections were cut before the job's end."""
    transports: set[Transport] = field(default_factory=set)

    @property
    def texts(self) -> list[str]:
        """The events' texts."""
        return [heard.text for heard in self.heard]


class Trial:
    """A deployment, and what is known of it so far. `steady` and `bulk` are made once and shared by all checks."""

    def __init__(
        self,
        target: Target,
        tight: aiohttp.ClientSession,
        *,
        silence_seconds: float,
        run_quiet_seconds: float,
        patience_seconds: float,
        other_key: str | None,
    ) -> None:
        self.target = target
        self.tight = tight
        self.silence_seconds = silence_seconds
        """The longest silence that is promised."""
        self.run_quiet_seconds = run_quiet_seconds
        """How long a `run` may be silent before its first byte."""
        self.patience_seconds = patience_seconds
        """How long a job may take to end."""
        self.other_key = other_key
        self.logs: list[Followed] = []
        """Every log that was read from its first event to its last."""
        self._shared: dict[str, asyncio.Task[Any]] = {}

    @property
    def dead_after_seconds(self) -> float:
        """A connection that brings nothing for this long is taken for dead."""
        return 2 * self.silence_seconds + 5

    async def steady(self) -> str:
        """The id of the job that most checks watch, as soon as it is accepted."""
        job: str = await self.once("steady", Trial._submit_steady)
        return job

    async def _submit_steady(self) -> str:
        return await self.target.new_job(self.target.request_body(self.target.work.steady))

    async def live_log(self) -> Followed:
        """The steady job's log as one live listener got it. Raises `Broken` where it has a hole."""
        followed: Followed = await self.once("live log", Trial._follow_steady)
        return followed

    async def _follow_steady(self) -> Followed:
        followed = await self.follow(await self.steady(), [])
        self.logs.append(followed)
        return followed

    async def reference(self) -> Followed:
        """The live log, as what others are held against. Raises `NotTested` where there is none: one check says why."""
        try:
            return await self.live_log()
        except Broken as error:
            raise NotTested(f"no whole log was read to compare with: {error}") from None

    async def once(self, name: str, make: Callable[[Trial], Coroutine[Any, Any, Any]]) -> Any:
        """What several checks need, made by whichever comes first."""
        task = self._shared.get(name)
        if task is None:
            task = self._shared[name] = asyncio.create_task(make(self), name=name)
        # Shielded: the first check that gives up must not take it from the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End what is still under way."""
        for task in self._shared.values():
            task.cancel()
        await asyncio.gather(*self._shared.values(), return_exceptions=True)

    async def follow(
        self,
        job: str,
        hops: Iterable[Hop],
        *,
        after: str = "",
        session: aiohttp.ClientSession | None = None,
    ) -> Followed:
        """Listen to a job to its end, cut as the hops say, and come back each time with the last event's cursor.

        Raises `Broken` at the first event that is missing, repeated or out of order.
        """
        followed = Followed(job)
        expected = int(after.partition("-")[0] or 0) + 1
        fruitless = 0
        for hop in chain(hops, repeat(Hop("sse"))):
            came = 0
            followed.connections += 1
            followed.transports.add(hop.transport)
            try:
                async with open_stream(
                    self.target,
                    hop.transport,
                    job,
                    after,
                    silence_seconds=self.dead_after_seconds,
                    session=session,
                ) as stream:
                    while (hop.most is None or came < hop.most) and (heard := await stream.next()) is not None:
                        if heard.event.type == "reset":
                            raise Broken(f"`reset` after {after or 'the start'}: {heard.event.data}")
                        if heard.number is None:
                            continue
                        _check_next(heard, expected, after, hop.transport, job)
                        followed.heard.append(heard)
                        after, expected, came = heard.cursor, expected + 1, came + 1
                        if heard.event.terminal:
                            return followed
                    if stream.told_to_stop:
                        raise Broken(
                            f"{hop.transport} said after {after or 'the start'} that there is no more of job {job}, and"
                            " its end had not come"
                        )
            except Refused as error:
                raise Broken(f"coming back over {hop.transport} after {after or 'the start'}: {error}") from None
            followed.live += 1
            fruitless = 0 if came else fruitless + 1
            if fruitless >= _MAX_FRUITLESS:
                raise Broken(f"{fruitless} connections in a row ended without an event after {after or 'the start'}")
            await asyncio.sleep(hop.away_seconds if hop.most is not None else 0.2)
        raise AssertionError("the hops never end")

    async def document(self, job: str, *, wait_seconds: float = 0) -> Mapping[str, Any]:
        """The job as a GET has it. Raises `Broken` where it isn't found."""
        query = f"?wait={wait_seconds:g}" if wait_seconds else ""
        answer = await self.target.ask("GET", f"/v1/jobs/{job}{query}", patience_seconds=wait_seconds + 30)
        if answer.status != 200:
            raise Broken(f"GET /v1/jobs/{job} was answered {answer.status} {answer.code or ''}".rstrip())
        return answer.document()

    async def ended(self, job: str) -> Mapping[str, Any]:
        """The job once it has ended. Raises `Broken` where it doesn't within the patience."""
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + self.patience_seconds
        while loop.time() < gives_up_at:
            document = await self.document(job, wait_seconds=5)
            if document.get("terminal"):
                return document
            await asyncio.sleep(0.2)
        raise Broken(f"job {job} has not ended after {self.patience_seconds:g} s; --patience gives it longer")


def _check_next(heard: Heard, expected: int, after: str, transport: Transport, job: str) -> None:
    number = heard.number
    assert number is not None
    if number == expected:
        return
    where = f"over {transport}, job {job}" + (f", after cursor {after}" if after else "")
    if number > expected:
        missing = f"event {expected} is" if number == expected + 1 else f"events {expected} to {number - 1} are"
        raise Broken(f"{missing} missing: event {number} came instead ({where})")
    raise Broken(f"event {number} came again where event {expected} belongs ({where})")


def check_same(reference: Followed, other: Followed, what: str) -> None:
    """Raises `Broken` unless both got the same events, byte by byte."""
    if len(reference.texts) != len(other.texts):
        raise Broken(f"{what} got {len(other.texts)} events, a listener that was never cut {len(reference.texts)}")
    for one, two in zip(reference.texts, other.texts, strict=True):
        if one != two:
            raise Broken(f"{what} got another text: {two[:120]} where it was {one[:120]}")


def lags(heard: list[Heard]) -> list[float]:
    """How much later than the quickest one each event came, after it was written: clocks may differ, a lag doesn't.

    Raises `NotTested` for too few events.
    """
    late = [one.at - one.written_at for one in heard if one.written_at is not None]
    if len(late) < _FEWEST_EVENTS:
        raise NotTested(f"the job wrote {len(late)} events while it was watched; give it a longer one with --input")
    return [each - min(late) for each in late]


def check_lags(heard: list[Heard], what: str) -> str:
    """Raises `Broken` where events come in heaps, or late; returns the figures."""
    late = sorted(lags(heard))
    figures = f"{len(late)} events, half of them within {median(late) * 1000:.0f} ms, the last {late[-1] * 1000:.0f} ms"
    if median(late) > MAX_LAG_SECONDS:
        raise Broken(
            f"{what} heard events long after they were written ({figures}): something on the way holds them back"
        )
    return figures


def connections(count: int) -> str:
    """How many, in words."""
    return "one connection" if count == 1 else f"{count} connections"
