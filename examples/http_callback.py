r"""Keep your slow service: a processor calls it with an address and a token, and the service reports back over HTTP.

python examples/slow_service.py 9000                 # yours, in whatever language: it knows nothing of Outlast
SERVICE_URL=http://127.0.0.1:9000 make run MODULES=examples.http_callback
outlast submit translate --input '{"text": "one fish\ntwo fish"}'
"""

import json
import os
import urllib.request

from pydantic import BaseModel

from processors import SyncContext, processor

# From the service's "202 Accepted" to the moment when it begins: longer than its own queue ever is.
WAIT_SECONDS = 60


class Text(BaseModel):
    text: str


@processor("translate")
def translate(ctx: SyncContext, input: Text) -> None:
    """Translate a text, line by line, in a service elsewhere."""
    gateway = os.environ.get("OUTLAST_URL", "http://127.0.0.1:8080")
    call = {
        "job": ctx.job_id,
        "token": ctx.hand_over(WAIT_SECONDS),
        "url": f"{gateway}/v1/worker/jobs/{ctx.job_id}",
    }
    request = urllib.request.Request(
        os.environ.get("SERVICE_URL", "http://127.0.0.1:9000"),
        json.dumps(call).encode(),
        {"Content-Type": "application/json", "Idempotency-Key": f"{ctx.job_id}-{ctx.attempt}"},
    )
    # A service that is down or says no raises here: the attempt has failed, and the job is tried again later.
    with urllib.request.urlopen(request, timeout=20):
        pass
