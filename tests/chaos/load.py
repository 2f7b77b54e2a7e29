"""The load: submitters and listeners, each of whom only knows some gateways' addresses and comes back when cut off."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import aiohttp
from pydantic_core import from_json
from redis.exceptions import RedisError

from tests.chaos.book import Book, Entry, Heard

# A listener that has heard not even a heartbeat for so long (they come every two seconds) goes elsewhere.
_SILENCE_SECONDS: Final = 5.0
_TRANSPORTS: Final = ("sse", "sse", "ndjson", "pages", "websocket")
# Who finds a gateway that is up is not away for so long between two connections.
_GRACE_SECONDS: Final = 15
_FORSAKEN_GRACE_SECONDS: Final = 1
_COME_BACK: Final = {200, 429, 503}
_BROKEN: Final = (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError)


class Load:
    """`rate` jobs a second as long as not more than `most_open` are open; each has a listener, some have two."""

    def __init__(
        self,
        book: Book,
        doors: Sequence[str],
        seed: int,
        has_ended: Callable[[str], Awaitable[bool]],
        *,
        rate: float,
        most_open: int,
    ) -> None:
        self._book = book
        self._has_ended = has_ended
        self._doors = doors
        self._seed = seed
        self._rate = rate
        self._room = asyncio.Semaphore(most_open)
        self._numbers = itertools.count()
        self._listening: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Submit until `stop`, then wait until every listener has heard its end. Cancelling it gives up on these."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=_SILENCE_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            try:
                async with asyncio.TaskGroup() as submitters:
                    while not self._over.is_set():
                        await self._room.acquire()
                        submitters.create_task(self._submit(next(self._numbers)))
                        with suppress(TimeoutError):
                            async with asyncio.timeout(1 / self._rate):
                                await self._over.wait()
                while self._listening:
                    await asyncio.wait(self._listening)
            finally:
                for task in self._listening:
                    task.cancel()
                await asyncio.gather(*self._listening, return_exceptions=True)

    def stop(self) -> None:
        """Submit no more."""
        self._over.set()

    async def pause(self, kind: str, paused: bool) -> None:
        """Stop a kind or let it go on, as an operator does: until some gateway says that it has done so."""
        for attempt in itertools.count():
            url = f"{self._doors[attempt % len(self._doors)]}/v1/kinds/{kind}/{'pause' if paused else 'resume'}"
            with suppress(*_BROKEN):
                async with self._session.post(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)

    # --- submitting ---------------------------------------------------------------------------------------------

    def _draw(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        kind = rng.choices(("burst", "steady", "flaky", "stubborn", "forsaken", "refused"), (48, 18, 18, 9, 2, 5))[0]
        work: dict[str, Any] = {"lines": rng.randint(14, 30)}
        if kind != "burst":
            pauses = {"steady": rng.choice((0.01, 0.03, 0.08)), "stubborn": 0.08, "forsaken": 2.0}
            work["pause_seconds"] = pauses.get(kind, 0.01)
        if kind == "flaky":
            work["failures"] = rng.choice((1, 1, 2))
        body: dict[str, Any] = {"input": work, "priority": rng.choice(("high", "normal", "normal", "low"))}
        if kind == "forsaken" or rng.random() < 0.2:
            grace = _FORSAKEN_GRACE_SECONDS if kind == "forsaken" else _GRACE_SECONDS
            body |= {"on_disconnect": "cancel", "disconnect_grace_seconds": grace}
        return kind, body

    async def _submit(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/job/{number}")
        key = f"{self._seed}-{number}"
        kind, body = self._draw(rng)
        job, _ = await self._until_accepted(rng, kind, key, body)
        entry = Entry(key, job, kind, body)
        self._book.accept(entry)
        entry.heard = [Heard(self._book, job) for _ in range(1 + (rng.random() < 0.1))]
        self._spawn(self._serve(rng, entry))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._listening.add(task)
        task.add_done_callback(self._listening.discard)

    async def _until_accepted(self, rng: random.Random, kind: str, key: str, body: dict[str, Any]) -> tuple[str, bool]:
        """Submit with the same key until somebody says 202, as our clients do; returns the job and if it was there."""
        for attempt in itertools.count():
            door = rng.choice(self._doors)
            self._book.counts["submits sent"] += 1
            with suppress(*_BROKEN):
                headers = {"Idempotency-Key": key}
                async with self._session.post(f"{door}/v1/kinds/{kind}/jobs", json=body, headers=headers) as answer:
                    document = from_json(await answer.read())
                    if answer.status == 202:
                        return document["id"], answer.headers.get("Idempotency-Replayed") == "true"
                    if answer.status not in _COME_BACK:
                        self._book.breach("lost", f"submit {key}: {answer.status} {document}")
                        raise AssertionError(f"a submit was refused: {answer.status} {document}")
            await asyncio.sleep(rng.uniform(0.02, 0.1) * min(10, attempt + 1))
        raise AssertionError("unreachable")

    async def _serve(self, rng: random.Random, entry: Entry) -> None:
        """Listen, and do what users do meanwhile: send the same request again, cancel.

        To a forsaken job nobody comes before it has ended, and nobody asks the gateways for it.
        """
        if entry.kind == "forsaken":
            await self._until_ended(entry.job)
        work = [self._listen(random.Random(rng.random()), heard) for heard in entry.heard]
        if rng.random() < 0.05:
            work.append(self._submit_again(rng, entry))
        if rng.random() < (0.7 if entry.kind == "stubborn" else 0.03):
            work.append(self._cancel(rng, entry))
        try:
            await asyncio.gather(*work)
        finally:
            self._room.release()

    async def _until_ended(self, job: str) -> None:
        """Learn of a job's end from Redis itself: who asks a gateway listens."""
        while True:
            with suppress(RedisError, OSError):
                if await self._has_ended(job):
                    return
            await asyncio.sleep(0.2)

    async def _submit_again(self, rng: random.Random, entry: Entry) -> None:
        await asyncio.sleep(rng.uniform(0, 2))
        job, replayed = await self._until_accepted(rng, entry.kind, entry.key, entry.body)
        self._book.counts["submitted again"] += 1
        if job != entry.job or not replayed:
            self._book.breach("doubled", f"key {entry.key} gave {entry.job}, then {job} (replayed: {replayed})")

    async def _cancel(self, rng: random.Random, entry: Entry) -> None:
        await asyncio.sleep(rng.uniform(0.1, 0.8))
        self._book.counts["cancels asked"] += 1
        # Nobody repeats it: whether it is lost or not, the job ends once.
        with suppress(*_BROKEN):
            async with self._session.post(f"{rng.choice(self._doors)}/v1/jobs/{entry.job}/cancel") as answer:
                await answer.read()

    # --- listening ----------------------------------------------------------------------------------------------

    async def _listen(self, rng: random.Random, heard: Heard) -> None:
        """Hear a job to its end, over whatever transport and gateway, going on from the cursor each time.

        Some come late, and find a log instead of a job that runs.
        """
        if rng.random() < 0.2:
            await asyncio.sleep(rng.uniform(0, 1.5))
        transports: dict[str, Callable[[str, Heard], Any]] = {
            "sse": self._hear_sse,
            "ndjson": self._hear_ndjson,
            "pages": self._hear_pages,
            "websocket": self._hear_websocket,
        }
        while not heard.ended:
            transport = rng.choice(_TRANSPORTS)
            heard.door = rng.choice(self._doors)
            with suppress(*_BROKEN):
                await transports[transport](heard.door, heard)
            # A connection that was never answered is no cut of a listener.
            self._book.counts["listener cuts"] += heard.leave() and not heard.ended
            if not heard.ended:
                await asyncio.sleep(rng.uniform(0.02, 0.15))

    def _get(self, door: str, heard: Heard, accept: str, query: str = "") -> Any:
        headers = {"Accept": accept}
        if heard.cursor.number:
            headers["Last-Event-ID"] = str(heard.cursor)
        return self._session.get(f"{door}/v1/jobs/{heard.job}/events{query}", headers=headers)

    async def _may_hear(self, answer: aiohttp.ClientResponse, heard: Heard) -> bool:
        if answer.status == 200:
            heard.connect()
        elif answer.status not in _COME_BACK:
            self._refuse(heard, f"{answer.status} {await answer.text()}")
        return answer.status == 200

    def _refuse(self, heard: Heard, answer: str) -> None:
        """Note that a job that was accepted can't be heard: nothing will come of it any more."""
        self._book.breach("lost", f"{heard.job} at {heard.cursor}: {answer}")
        heard.ended = True

    async def _hear_sse(self, door: str, heard: Heard) -> None:
        async with self._get(door, heard, "text/event-stream") as answer:
            if not await self._may_hear(answer, heard):
                return
            async for line in answer.content:
                if line.startswith(b"data: "):
                    heard.hear(line[6:].rstrip(b"\n"))

    async def _hear_ndjson(self, door: str, heard: Heard) -> None:
        async with self._get(door, heard, "application/x-ndjson") as answer:
            if not await self._may_hear(answer, heard):
                return
            async for line in answer.content:
                # The rest of a line that was cut off is no event.
                if line.endswith(b"\n"):
                    heard.hear(line.strip())

    async def _hear_pages(self, door: str, heard: Heard) -> None:
        while not heard.ended:
            async with self._get(door, heard, "application/json", "?wait=2") as answer:
                if not await self._may_hear(answer, heard):
                    return
                for text in _texts_of(await answer.read()):
                    heard.hear(text)

    async def _hear_websocket(self, door: str, heard: Heard) -> None:
        async with self._session.ws_connect(f"{door}/v1/ws", autoping=False) as socket:
            await socket.send_json({"op": "subscribe", "ref": "1", "job": heard.job, "after": str(heard.cursor)})
            while not heard.ended:
                message = await socket.receive(timeout=_SILENCE_SECONDS)
                if message.type is aiohttp.WSMsgType.PING:
                    await socket.pong(message.data)
                elif message.type is aiohttp.WSMsgType.TEXT:
                    document = from_json(message.data)
                    if document.get("op") == "error":
                        if document["problem"]["status"] not in _COME_BACK:
                            self._refuse(heard, message.data)
                        return
                    heard.connect()
                    if "op" not in document:
                        heard.hear(message.data.encode())
                else:
                    raise ConnectionResetError("the socket was closed")


def _texts_of(page: bytes) -> list[bytes]:
    """The events of a JSON page, each as the very bytes that came."""
    if page == b"[]":
        return []
    # Every event begins so, none of these kinds' data holds a list of such things, and strings have no bare quotes.
    texts = page[1:-1].split(b',{"id":')
    return [texts[0], *(b'{"id":' + text for text in texts[1:])]
