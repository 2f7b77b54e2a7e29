"""The headers beside an error, whatever form its body has."""

from __future__ import annotations

import math
import random

from gateway.errors import OutlastError


def refusal_headers(error: OutlastError) -> dict[str, str]:
    """When to come back and with what, if the error leaves that to the client; errors are never cached."""
    headers = {"Cache-Control": "no-store"}
    retry_after = error.retry_after_seconds
    if retry_after is None and error.status in {429, 503}:
        # Jittered: those who were refused together must not come back together.
        retry_after = random.uniform(1, 4)
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="outlast"'
    return headers
