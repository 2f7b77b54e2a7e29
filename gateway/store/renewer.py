"""Renewing leases from a thread, on a connection of its own: a processor that blocks the event loop keeps its job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from gateway.errors import Unavailable
from gateway.store.records import Lease
from gateway.store.scripts import Keys, load


class Renewed(NamedTuple):
    """What a renewal answers: whether the job is lost to this attempt, and who asked to cancel it, if anybody."""

    lost: bool
    cancel_by: str | None


class Renewer:
    """Renews leases, blocking; for use from one thread."""

    def __init__(self, url: str, *, prefix: str, lease_seconds: float, worker: str) -> None:
        self._keys = Keys(prefix)
        self._lease_ms = int(lease_seconds * 1000)
        self._worker = worker
        # A renewal that hangs must leave time for the next: a third of the lease passes between two.
        timeout = max(0.2, min(3.0, lease_seconds / 4))
        self._client = redis.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 1), protocol=2
        )

    def renew(self, leases: Iterable[Lease]) -> dict[str, Renewed]:
        """Renew all leases in one round trip; job -> what became of it. Raises `Unavailable`."""
        script = load("renew")
        held = list(leases)
        if not held:
            return {}
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for lease in held:
                    keys = self._keys.job(lease.job)
                    pipe.evalsha(
                        script.sha, len(keys), *keys, str(lease.attempt), lease.nonce, str(self._lease_ms), self._worker
                    )
                answers = pipe.execute(raise_on_error=False)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                self._client.script_load(script.text)
                return self.renew(held)
        except (RedisError, OSError) as error:
            raise Unavailable(f"leases were not renewed: {type(error).__name__}") from None
        renewed = {}
        for lease, answer in zip(held, answers, strict=True):
            if isinstance(answer, Exception):
                raise Unavailable(f"leases were not renewed: {type(answer).__name__}")
            lost = answer[0] == b"lost"
            renewed[lease.job] = Renewed(lost, None if lost else answer[1].decode() or None)
        return renewed

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
