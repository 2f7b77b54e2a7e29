"""Keep your programs: a processor starts one, hands its job over to it, and is free. The program reports with curl.

make run MODULES=examples.subprocess_worker
outlast submit render --input '{"frames": 5}'

The program outlives the worker that started it, so a deploy of your workers interrupts no job. If it dies, its lease
runs out and the job is tried again.
"""

import os
import subprocess

from pydantic import BaseModel, Field

from processors import SyncContext, processor

# Least often that the program says that it lives; a third of the workers' lease is often enough.
RENEW_SECONDS = 5.0
# Within so long it begins to; a program that died at its start is missed after it.
START_SECONDS = 10.0

# Each report has a number, so that curl may send it again after a lost answer; an empty one only renews the lease. When
# somebody cancels the job, or it is not ours any more, the program gets SIGTERM, as from anybody. The token comes over
# a pipe, since everybody on the machine can read what stands in curl's arguments.
PROGRAM = r"""
authorization() { printf 'Authorization: Bearer %s' "$TOKEN"; }
post() { authorization | curl -sS --fail --retry 5 --retry-connrefused -H @- "$JOB_URL/events" -d "$1"; }
report() { batch=$((batch + 1)); post '{"batch": '$batch', "events": [{"type": "'$1'", "data": '"$2"'}]}' >/dev/null; }
renew() {
  while sleep "$RENEW_SECONDS"; do
    case $(post '{}') in *'"cancel_requested_by":null'*) ;; *) kill $$; exit ;; esac
  done
}
stop() { report cancelled '{"reason": "stopped by a signal"}'; exit; }
# The job ends now, and not when the lease is over; "retrying" in its place has the job done again.
fail() {
  report failed '{"problem": {"code": "render_failed", "detail": "A frame after '$frame' can not be rendered."}}'
  exit 1
}

batch=0 frame=0
trap stop TERM
renew & trap "kill $!" EXIT

while [ $frame -lt $FRAMES ]; do
  sleep $SECONDS_EACH & wait $! || fail  # as if it were hard work; a signal ends the wait
  frame=$((frame + 1))
  report progress '{"current": '$frame', "total": '$FRAMES', "unit": "frames"}' || exit
done
report succeeded '{"result": {"frames": '$frame'}}'
"""


class Scene(BaseModel):
    frames: int = Field(ge=1, le=1000)
    seconds_each: float = 0.5


@processor("render")
def render(ctx: SyncContext, input: Scene) -> None:
    """Render frames, in a program of its own."""
    told = {
        "JOB_URL": f"{os.environ.get('OUTLAST_URL', 'http://127.0.0.1:8080')}/v1/worker/jobs/{ctx.job_id}",
        "TOKEN": ctx.hand_over(START_SECONDS),
        "FRAMES": str(input.frames),
        "SECONDS_EACH": str(input.seconds_each),
        "RENEW_SECONDS": str(RENEW_SECONDS),
    }
    # The `&` lets it go: it is not our child, and not in our group of processes, so what stops us leaves it alone.
    subprocess.run(
        ["sh", "-c", 'sh -c "$0" &', PROGRAM],
        env=os.environ | told,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )
