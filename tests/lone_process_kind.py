"""One of the kinds that run in child processes, so that a worker of its own starts one child and not several."""

from tests.process_kinds import in_process

__all__ = ["in_process"]
