"""A script with `requests` whose slow route outlasts every proxy: mount this adapter, and change nothing else.

    session = requests.Session()
    session.mount("https://app.example.com/", OutlastAdapter("http://127.0.0.1:8080"))
    print(session.post("https://app.example.com/api/report", json={"year": 2026}).json())

The gateway calls the route as a job of the kind `http` (the operator lists it in OUTLAST_UPSTREAMS) and holds the
request until the answer is there. What breaks meanwhile is sent again under the same key: the route is called once.
The gateway's own slow routes are called so too: mount the adapter for the gateway's address, and call them there.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from typing import Any

import requests
from requests.adapters import BaseAdapter

_TRIES = 10


class OutlastAdapter(BaseAdapter):
    """Sends requests through a gateway."""

    def __init__(self, gateway: str, api_key: str | None = None) -> None:
        super().__init__()
        self._gateway = gateway.rstrip("/")
        self._session = requests.Session()
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
        """Call a route; `timeout` and the like don't apply, that is what this is for."""
        # A slow route, at the gateway's own address, goes by its path.
        url = request.url or ""
        if url.startswith(self._gateway + "/"):
            url = url.removeprefix(self._gateway)
        wanted = {"url": url, "method": request.method, "headers": dict(request.headers)}
        body = request.body.encode() if isinstance(request.body, str) else request.body
        files = {"input": (None, json.dumps(wanted)), **({"file": ("body", body)} if body else {})}
        document = self._ask("POST", "/v1/kinds/http/run", files=files).json()
        if "result" not in document:
            problem = document.get("error", document)
            raise requests.ConnectionError(f"{problem['code']}: {problem['detail']}", request=request)
        result = document["result"]
        content = (result["text"] or "").encode()
        if result["body_url"]:
            content = self._ask("GET", result["body_url"]).content

        response = requests.Response()
        response.status_code, response.request = result["status"], request
        response.url = str(request.url if url.startswith("/") else result["url"])
        for name, value in result["headers"]:
            response.headers[name] = value
        response.encoding = requests.utils.get_encoding_from_headers(response.headers)
        response.raw = io.BytesIO(content)
        return response

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        for tries in range(_TRIES):
            try:
                answer = self._session.request(method, self._gateway + path, headers=headers, timeout=60, **options)
                if answer.status_code not in {429, 502, 503, 504, 524}:
                    return answer
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                pass
            time.sleep(min(15, 0.5 * 2**tries))
        raise requests.ConnectionError(f"The gateway {self._gateway} can't be reached.")

    def close(self) -> None:
        """Close the connections to the gateway."""
        self._session.close()
