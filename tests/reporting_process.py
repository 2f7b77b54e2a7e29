"""A process that is no worker and does a job all the same: `python -m tests.reporting_process TOKEN HOW`."""

from __future__ import annotations

import os
import sys
import time

from processors import Rejected, Reporter, SyncContext


def main(token: str, how: str) -> None:
    """Report something, then end as asked."""
    with Reporter(token) as job:
        job.output("half", {"text": job.input.get("text")})
        job.progress(1, 2)
        sys.stdout.write("reported\n")
        sys.stdout.flush()
        if how == "hang":
            time.sleep(60)
        elif how == "reject":
            raise Rejected("There is nothing in it.", "nothing_there")
        elif how == "obey":
            while True:
                job.check_cancelled()
                time.sleep(0.01)
        job.result = {"done": how}
        if how == "fork":
            job.result["fork"] = report_from_a_fork(job)


def report_from_a_fork(job: SyncContext) -> str:
    """Report from a fork of this process, which then leaves its copy of the block; returns what that raises."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            job.output("from a fork", 1)
        except RuntimeError as error:
            os.write(sending, type(error).__name__.encode())
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    return os.read(receiving, 100).decode()


if __name__ == "__main__":
    main(*sys.argv[1:])
