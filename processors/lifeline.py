"""What ends a child's process group with this process, however that ends: killed, out of memory, or as it should.

The child inherits one end of a pipe, and its owner, as the system calls who hears of it, is the child's group. The
other end is ours alone: when it closes, at the latest with this process, the system kills the group. Nothing has to run
for that, neither here nor in the child, which may be any program. Linux alone lets one choose the signal; elsewhere
this does nothing. Where a system has no process groups at all, no child is started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from gateway.errors import ConfigurationError


def need_process_groups(what: str) -> None:
    """Raises `ConfigurationError` where a child, and what it starts in turn, can't be ended as a whole."""
    if not hasattr(os, "killpg"):
        raise ConfigurationError(
            f"{what} needs process groups, which Windows doesn't have: run this worker on Linux or macOS, in WSL or in"
            " a container."
        )


class Lifeline:
    """A pipe to one child, which is started with `inherited` among its file descriptors and then tied."""

    def __init__(self) -> None:
        self.inherited, self._held = os.pipe()

    def tie(self, group: int) -> None:
        """Have this process group killed when the lifeline closes."""
        # It may have ended already.
        with contextlib.suppress(OSError):
            if sys.platform == "linux":
                import fcntl  # noqa: PLC0415 - not on every system

                fcntl.fcntl(self.inherited, fcntl.F_SETOWN, -group)
                fcntl.fcntl(self.inherited, fcntl.F_SETSIG, signal.SIGKILL)
                fcntl.fcntl(self.inherited, fcntl.F_SETFL, fcntl.fcntl(self.inherited, fcntl.F_GETFL) | os.O_ASYNC)

    def close(self) -> None:
        """End what is left of the group."""
        os.close(self.inherited)
        os.close(self._held)
