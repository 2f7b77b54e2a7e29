"""A slow server as people have it, to see a 524 with: a report takes four seconds, and nobody hears a word meanwhile.

python examples/slow_report.py [PORT]
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class SlowReport(BaseHTTPRequestHandler):
    """POST {"year": 2026} to any path."""

    def do_POST(self) -> None:
        """Work in silence, then answer."""
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(4)
        report = json.dumps({"year": order["year"], "profit": 524}).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(report)))
            self.end_headers()
            self.wfile.write(report)
        except OSError:
            print("The report is done, and whoever asked for it has gone.", flush=True)

    def log_message(self, *_: object) -> None:
        """Say nothing of what went well."""


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    ThreadingHTTPServer(("127.0.0.1", port), SlowReport).serve_forever()
