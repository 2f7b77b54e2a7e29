"""Where a test lets this process die: between two calls to Redis. Production never sets it.

`OUTLAST_HALT=create` kills the process when Redis has answered the script `create`. `append/retrying` means an append
with that word among its arguments, `append/retrying:3` the third such call, `append/retrying:3:STOP` stops the process
there instead, until somebody sends it SIGCONT. An answer of nothing, as to a claim without jobs, doesn't count. Two
calls without a script have a name too: `list`, the owner's list of jobs, and `durable`, the wait for the disk or a
replica.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any, Final, Self

VARIABLE: Final = "OUTLAST_HALT"


class Halt:
    """One place in this process's calls to Redis at which it halts."""

    def __init__(self, place: str) -> None:
        call, _, rest = place.partition(":")
        nth, _, name = rest.partition(":")
        self._call, _, self._word = call.partition("/")
        self._left = int(nth or 1)
        self._signal = signal.Signals[f"SIG{name or 'KILL'}"]

    @classmethod
    def from_environment(cls) -> Self | None:
        """What the environment asks for; None, as in production, if it asks for nothing."""
        place = os.environ.get(VARIABLE)
        return cls(place) if place else None

    def after(self, call: str, arguments: Sequence[Any] = ()) -> None:
        """Halt if the call that was just answered is the one."""
        if call != self._call or (self._word and self._word not in arguments):
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._signal)
