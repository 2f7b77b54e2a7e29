"""A process that is no worker and does a job all the same: `python -m tests.reporting_process TOKEN HOW`."""

from __future__ import annotations

import sys
import time

from processors import Rejected, Reporter


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


if __name__ == "__main__":
    main(*sys.argv[1:])
