"""Who listens to a job: marks, kept only for jobs that are to be cancelled when nobody does."""

from __future__ import annotations

from typing import Final

from gateway.store.connection import Connection

# How long a gateway's mark holds: it renews it several times in this, and one that dies is not missed for longer.
MARK_SECONDS: Final = 15.0


class Listeners(Connection):
    """A gateway marks a job while it serves it to somebody; a look counts from the end of the last mark."""

    async def mark(self, job: str, listener: str, seconds: float = MARK_SECONDS) -> None:
        """Note that somebody listens, for so long from now; 0: until just now. Other jobs are left as they are."""
        await self._run("mark", self._keys.job(job), (listener, int(seconds * 1000)))
