"""A `run`: one POST that is held until its job has ended, its body taken as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from gateway.verify.report import Broken
from gateway.verify.target import Target, shown


class HeldRun:
    """A `run` that was sent and is not over; nothing is sent again, and nothing is read before it is asked for."""

    def __init__(self, target: Target, sending: asyncio.Future[aiohttp.ClientResponse]) -> None:
        self.asked_at = time.monotonic()
        self._target = target
        self._sending = sending
        self._body = b""

    async def more(self, limit_seconds: float) -> bool:
        """Wait for the head, where it has not come yet, and the next bytes of the body; False at its end.

        Raises `Broken` where nothing comes in that time.
        """
        try:
            async with asyncio.timeout(limit_seconds):
                # Shielded, so that a limit that has passed is no end of the request.
                response = await asyncio.shield(self._sending)
                if job := response.headers.get("X-Job-Id"):
                    self._target.made[job] = None
                chunk = await response.content.readany()
        except TimeoutError:
            raise Broken(f"`run` brought nothing for more than {limit_seconds:g} s") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Broken(f"`run` was cut before its answer was whole: {error or type(error).__name__}") from None
        self._body += chunk
        return bool(chunk)

    async def document(self, limit_seconds: float) -> Mapping[str, Any]:
        """The JSON object that all of the body is. Raises `Broken` where it is none, or not whole in time."""
        until = time.monotonic() + limit_seconds
        while await self.more(max(0.0, until - time.monotonic())):
            pass
        try:
            value = json.loads(self._body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Broken(f"`run` was answered {self._sending.result().status} with {shown(self._body)}")
        return value


@asynccontextmanager
async def held_run(target: Target, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncIterator[HeldRun]:
    """Send a `run`. Leaving the block cuts the connection, whatever is still on its way."""
    sending = asyncio.ensure_future(
        target.session.post(
            target.next_base() + target.run_path,
            headers=target.headers({"Content-Type": "application/json", **headers}),
            data=json.dumps(body).encode(),
            allow_redirects=False,
        )
    )
    try:
        yield HeldRun(target, sending)
    finally:
        sending.cancel()
        [response] = await asyncio.gather(sending, return_exceptions=True)
        if isinstance(response, aiohttp.ClientResponse):
            response.close()
