"""A slow service that reports its progress over HTTP, with nothing but Python's own library; see http_callback.py.

python examples/slow_service.py PORT
"""

import json
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Job:
    """A job of somebody's, of which we know an address and a token."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._batch = 0
        self._key = uuid.uuid4().hex
        self._has_outputs = False
        self._over = threading.Event()
        self.stopped = threading.Event()
        """Somebody wants the job to end, or it is not ours any more."""

    def __enter__(self) -> Any:
        """Take the job: an order that comes twice is done once, since the second one is refused here."""
        adopted = self._post("adopt", {})
        self._token = adopted["token"]
        threading.Thread(target=self._renew, args=(adopted["lease_seconds"] / 3,), daemon=True).start()
        return adopted["input"]

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Say so if the work broke: the job ends now, and not when the lease is over. An `OSError` is the way there."""
        if isinstance(error, Exception) and not isinstance(error, OSError):
            # Its client reads the detail; what the error says is for our own log. Where another try may fare better,
            # report "retrying" with "delay_seconds" instead.
            problem = {"code": "translation_failed", "detail": "The text can't be translated beyond this line."}
            self.report("failed", problem=problem, partial=self._has_outputs)
        self._over.set()

    def report(self, type_: str, **data: Any) -> None:
        """Tell one event; sent again under the same number until it has been heard."""
        self._batch += 1
        self._has_outputs |= type_ == "output"
        self._post("events", {"batch": self._batch, "events": [{"type": type_, "data": data}]})

    def _renew(self, every_seconds: float) -> None:
        while not self._over.wait(every_seconds):
            try:
                self._post("events", {})
            except urllib.error.HTTPError:
                self.stopped.set()
                return

    def _post(self, what: str, body: dict[str, Any]) -> Any:
        # The key tells our own adoption, sent again after a lost answer, from that of whoever got the order as well.
        headers = {"Authorization": f"Bearer {self._token}", "Idempotency-Key": self._key}
        request = urllib.request.Request(f"{self._url}/{what}", json.dumps(body).encode(), headers)
        for tries in range(10):
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    answer = json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in {413, 422}:
                        raise ValueError(f"a wrong report: {error.read().decode()}") from None
                if error.code < 500:
                    raise
            except OSError:
                pass
            else:
                if answer.get("cancel_requested_by"):
                    self.stopped.set()
                return answer
            time.sleep(min(10, 0.2 * 2**tries))
        raise ConnectionError(f"{self._url} can't be reached")


def translate(line: str) -> str:
    """The slow part: a line takes a while."""
    if not line.strip():
        raise ValueError("there is nothing to translate in an empty line")
    return line[::-1]


def work(url: str, token: str) -> None:
    """Do an order."""
    job = Job(url, token)
    try:
        with job as wanted:
            lines = wanted["text"].splitlines()
            for number, line in enumerate(lines, 1):
                if job.stopped.wait(0.3):
                    job.report("cancelled", reason="as asked")
                    return
                job.report("output", index=str(number), content_type="text/plain", value=translate(line))
                job.report("progress", current=number, total=len(lines), unit="lines")
            job.report("succeeded", result={"lines": len(lines)})
    except urllib.error.HTTPError as error:
        print(f"the job is not ours: {error.code}", flush=True)


class Service(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Accept an order at once; do it afterwards."""
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        threading.Thread(target=work, args=(order["url"], order["token"])).start()
        self.send_response(202)
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service).serve_forever()
