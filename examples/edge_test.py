"""A test that puts simulated hops in front of a server: what Cloudflare does to a route that is silent for too long."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.edge.testing import EdgeFactory


class SlowRoute(BaseHTTPRequestHandler):
    """Your application: an answer after 1.5 s, which stand for 150."""

    def do_GET(self) -> None:
        """Answer, with a space now and then if the path asks for it."""
        self.send_response(200)
        self.end_headers()
        for _ in range(10):
            time.sleep(0.15)
            if self.path == "/with-heartbeat":
                self.wfile.write(b" ")
        self.wfile.write(b'{"done": true}')


@pytest.fixture
def app() -> Iterator[str]:
    """The application, running."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowRoute) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_silent_route_is_lost_and_one_with_a_heartbeat_is_not(app: str, outlast_edge: EdgeFactory) -> None:
    """125 s pass in 1.25."""
    edge = outlast_edge(app, "cloudflare", time_scale=0.01)

    with pytest.raises(urllib.error.HTTPError) as lost:
        urllib.request.urlopen(edge.url + "/silent", timeout=10)
    with urllib.request.urlopen(edge.url + "/with-heartbeat", timeout=10) as answer:
        assert answer.read().strip() == b'{"done": true}'

    lost.value.close()
    # The origin had sent its head, and nothing had gone to the client: this edge says 502 then.
    assert lost.value.status == 502
    assert edge.requests[0].ended == "read_timeout"
