"""Renewing leases from a thread, on connections of its own: a processor that blocks the event loop keeps its job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from redis.exceptions import AskError, MovedError, NoScriptError, RedisError

from gateway.errors import Unavailable
from gateway.store.deployment import Address, Deployment
from gateway.store.masters import Masters
from gateway.store.records import Lease
from gateway.store.scripts import Keys, load


class Renewed(NamedTuple):
    """What a renewal answers: whether the job is lost to this attempt, and who asked to cancel it, if anybody."""

    lost: bool
    cancel_by: str | None


class Renewer:
    """Renews leases, blocking; for use from one thread."""

    def __init__(self, deployment: Deployment, *, prefix: str, lease_seconds: float, worker: str) -> None:
        self._keys = Keys(prefix)
        self._lease_ms = int(lease_seconds * 1000)
        self._worker = worker
        # A renewal that hangs must leave time for the next: a third of the lease passes between two.
        self._masters = Masters(deployment, max(0.2, min(3.0, lease_seconds / 4)))

    def renew(self, leases: Iterable[Lease]) -> dict[str, Renewed]:
        """Renew all leases, in one round trip for each master; job -> what became of it. Raises `Unavailable`.

        Those that can be renewed are, also where one master fails.
        """
        renewed: dict[str, Renewed] = {}
        failure: Exception | None = None
        left = list(leases)
        # Where something has moved, once more where it is now.
        for _ in range(2):
            left, failure = self._renew(left, renewed)
            if not left:
                return renewed
            self._masters.forget()
        raise Unavailable(f"leases were not renewed: {type(failure).__name__}")

    def _renew(self, leases: list[Lease], renewed: dict[str, Renewed]) -> tuple[list[Lease], Exception | None]:
        """Try once; returns those that failed, and why the last one did."""
        failed: list[Lease] = []
        failure: Exception | None = None
        by_master: dict[Address, list[Lease]] = {}
        try:
            for lease in leases:
                by_master.setdefault(self._masters.of(self._keys.record(lease.job)), []).append(lease)
        except (RedisError, OSError) as error:
            return leases, error
        for address, held in by_master.items():
            try:
                answers = self._renew_at(address, held)
            except (RedisError, OSError) as error:
                answers = [error] * len(held)
            for lease, answer in zip(held, answers, strict=True):
                if isinstance(answer, Exception):
                    failed.append(lease)
                    failure = answer
                else:
                    lost = answer[0] == b"lost"
                    renewed[lease.job] = Renewed(lost, None if lost else answer[1].decode() or None)
        return failed, failure

    def _renew_at(self, address: Address, leases: list[Lease], *, asking: bool = False) -> list[Any]:
        """The answers of one master, or its errors."""
        script = load("renew")
        client = self._masters.client(address)
        with client.pipeline(transaction=False) as pipe:
            for lease in leases:
                if asking:
                    pipe.execute_command("ASKING")  # type: ignore[no-untyped-call]
                arguments = [lease.attempt, lease.nonce, self._lease_ms, self._worker]
                pipe.execute_command(*script.words(self._keys.job(lease.job), arguments))  # type: ignore[no-untyped-call]
            answers: list[Any] = pipe.execute(raise_on_error=False)
        answers = answers[1::2] if asking else answers
        if any(isinstance(answer, NoScriptError) for answer in answers):
            client.script_load(script.text)
            return self._renew_at(address, leases, asking=asking)
        for i, answer in enumerate(answers):
            # A slot that is on its way to another master.
            if isinstance(answer, AskError) and not isinstance(answer, MovedError):
                there = Address(answer.host or address.host, answer.port)
                answers[i] = self._renew_at(there, [leases[i]], asking=True)[0]
        return answers

    def close(self) -> None:
        """Close the connections."""
        self._masters.close()
