"""Keep your Celery workers: a processor hands its jobs over to a task, and the task reports.

export CELERY_BROKER_URL=redis://localhost:6379/1 OUTLAST_REDIS_URL=redis://localhost:6379/0
outlast up --without ocr examples.celery_app         # takes the jobs and hands them over
celery -A examples.celery_app worker                 # does them, on as many machines as you like
outlast submit thumbnails --input '{"names": ["cat", "dog"]}'
"""

import os
import time

from celery import Celery
from pydantic import BaseModel

from processors import LeaseLost, Reporter, SyncContext, processor

# How long a task may wait in Celery's queue: then Outlast hands the job over anew, and Celery drops the old message.
WAIT_SECONDS = 600

app = Celery("thumbnails", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/1"))
# The job's end is in its log, where the client reads it; Celery has nothing to keep.
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


class Pictures(BaseModel):
    names: list[str]
    seconds_each: float = 0.5


@processor("thumbnails")
def thumbnails(ctx: SyncContext, input: Pictures) -> None:
    """Make thumbnails, on the machines that Celery has."""
    token = ctx.hand_over(WAIT_SECONDS)
    make_thumbnails.apply_async([token], expires=WAIT_SECONDS)


# Without `acks_late` and `autoretry_for`: a lost or failed attempt comes back through Outlast, with a new token.
@app.task
def make_thumbnails(token: str) -> None:
    """Do one attempt at a job."""
    try:
        with Reporter(token) as job:
            names = job.input["names"]
            done = job.outputs()  # by an earlier attempt, whose machine died
            for number, name in enumerate(names, 1):
                if str(number) not in done:
                    time.sleep(job.input.get("seconds_each", 0.5))  # as if it were hard work
                    job.output(number, {"name": name, "worker": os.getpid()})
                job.progress(number, len(names), unit="pictures")
            job.result = {"pictures": len(names)}
    except LeaseLost:
        pass  # delivered twice, or too late: the job is somebody else's, or has ended
