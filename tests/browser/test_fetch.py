"""The fetch-shaped call in a real Chromium: a slow route behind three cuts and a gateway that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Line, NewPage, Product, running_product, wait_for
from tests.slow_app import slow_app

# One process of the test run has the product that may call the slow application.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("behind")]

_BEGIN = """async ([url, init]) => {
  const { GatewayClient, createFetch } = await import("/client/index.js");
  const stop = new AbortController();
  window.progress = [];
  window.stop = () => stop.abort();
  const onProgress = (one) => window.progress.push(one);
  // Not `window.job`: until it is set, that is the page's element of this id.
  const onJob = (id) => (window.jobId = id);
  const called = createFetch(new GatewayClient())(url, { ...init, signal: stop.signal, onProgress, onJob });
  const read = async (response) => {
    const bytes = new Uint8Array(await response.clone().arrayBuffer());
    return {
      status: response.status,
      ok: response.ok,
      url: response.url,
      headers: [...response.headers],
      size: bytes.length,
      text: bytes.length < 9999 ? await response.text() : "",
      good: bytes.every((byte, at) => byte === (at % 2 ? 255 : 0)),
    };
  };
  window.answer = called.then(read).catch((error) => ({ error: error.name, code: error.code }));
}"""


class Origin:
    """A slow application on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="the slow application")
        self._thread.start()
        assert self._started.wait(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with slow_app() as self.app:
            self._started.set()
            await self._over.wait()

    def hold(self) -> None:
        """Let the next slow calls wait."""
        self._loop.call_soon_threadsafe(self.app.go.clear)

    def release(self) -> None:
        """Answer those that wait."""
        self._loop.call_soon_threadsafe(self.app.go.set)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """A slow application."""
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture(scope="module")
def behind(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product that may call it."""
    environment = {
        "OUTLAST_UPSTREAMS": f"{origin.app.url}/",
        "OUTLAST_UPSTREAM_NETWORKS": "127.0.0.0/8",
        "OUTLAST_RETRY_SECONDS": "0.3",
    }
    folder = tmp_path_factory.mktemp("behind")
    routes = folder / "routes.toml"
    routes.write_text(f'[[route]]\npath = "/api/*"\nupstream = "{origin.app.url}/*"\n')
    with running_product(folder, "--without", "ocr", "--routes", str(routes), **environment) as running:
        yield running


@pytest.fixture
def page(behind: Product, new_page: NewPage) -> Iterator[tuple[Page, Line]]:
    """A page whose line to the gateway can be cut."""
    line = Line(behind.url)
    page = new_page()
    page.goto(line.url)
    yield page, line
    line.close()


def test_it_survives_three_cuts_and_a_killed_gateway(page: tuple[Page, Line], behind: Product, origin: Origin) -> None:
    """One call of the route, and the answer as `fetch` would have brought it; its pieces come as it sends them."""
    shown, line = page
    origin.hold()
    before = origin.app.asked
    shown.evaluate(_BEGIN, [f"{origin.app.url}/stream/sse", {}])
    wait_for(lambda: shown.evaluate("window.progress.some((one) => one.type === 'text')"), 20, "the first piece")

    for _ in range(3):
        wait_for(line.cut, 20, "a connection to cut")
    os.kill(behind.child("gateway"), signal.SIGKILL)
    wait_for(lambda: not line.cut(), 20, "the last connection's end")
    origin.release()
    answer = shown.evaluate("window.answer")

    assert answer["text"] == "data: é\n\ndata: two\n\n"
    assert (answer["status"], answer["url"]) == (200, f"{origin.app.url}/stream/sse")
    progress = shown.evaluate("window.progress")
    assert progress[0]["type"] == "response"
    assert progress[0]["status"] == 200
    assert "".join(one["text"] for one in progress if one["type"] == "text") == answer["text"]
    assert origin.app.asked == before + 1


@pytest.mark.parametrize("size", [10, 70_000])
def test_a_request_arrives_as_it_was(page: tuple[Page, Line], origin: Origin, size: int) -> None:
    """Method, headers and body, small as text and large as bytes; a status of 4xx is an answer like any other."""
    shown, _ = page
    origin.release()
    init = {"method": "PUT", "headers": {"X-Mine": "1", "Content-Type": "application/json"}, "body": "é" * size}

    shown.evaluate(_BEGIN, [f"{origin.app.url}/slow?status=418", init])
    answer = shown.evaluate("window.answer")

    assert (answer["status"], answer["ok"]) == (418, False)
    assert ["x-from", "slow"] in answer["headers"]
    seen = origin.app.seen[-1]
    assert (seen["method"], str(seen["body"]).encode("latin-1").decode()) == ("PUT", "é" * size)
    headers = seen["headers"]
    assert isinstance(headers, dict)
    assert (headers["x-mine"], headers["content-type"]) == ("1", "application/json")


def test_a_slow_route_is_called_at_the_gateway(page: tuple[Page, Line], origin: Origin) -> None:
    """As a page writes it, by its path; where it leads is not for the page."""
    shown, line = page
    origin.release()

    shown.evaluate(_BEGIN, ["/api/slow?status=404#part", {"method": "POST", "body": "hi"}])
    answer = shown.evaluate("window.answer")

    assert (answer["status"], answer["url"]) == (404, f"{line.url}/api/slow?status=404")
    seen = origin.app.seen[-1]
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/slow?status=404", "hi")


def test_a_large_answer_is_downloaded_through_cuts(page: tuple[Page, Line], origin: Origin) -> None:
    """It is no part of the job's result; after a cut the rest of it is asked for."""
    shown, line = page
    shown.evaluate(_BEGIN, [f"{origin.app.url}/bytes/4000000", {}])
    wait_for(lambda: shown.evaluate("window.progress.length > 0"), 20, "the answer's head")
    line.throttle(3_000_000)
    for _ in range(2):
        wait_for(line.cut, 20, "a connection to cut")

    answer = shown.evaluate("window.answer")

    assert (answer["size"], answer["good"]) == (4_000_000, True)
    assert ["content-type", "image/png"] in answer["headers"]


@pytest.mark.parametrize("cancel_job", [False, True])
def test_an_abort_ends_the_waiting_and_the_job_only_if_asked(
    page: tuple[Page, Line], origin: Origin, cancel_job: bool
) -> None:
    """As `fetch` rejects: AbortError. With `cancelJob` the upstream call is closed."""
    shown, _ = page
    origin.hold()
    cancelled = origin.app.cancelled
    shown.evaluate(_BEGIN, [f"{origin.app.url}/slow", {"cancelJob": cancel_job}])
    wait_for(lambda: origin.app.waiting > 0, 20, "the call")
    # The call may be there before the page has heard of its job.
    wait_for(lambda: shown.evaluate("window.jobId"), 20, "the id of the job")

    shown.evaluate("window.stop()")

    assert shown.evaluate("window.answer")["error"] == "AbortError"
    if cancel_job:
        wait_for(lambda: origin.app.cancelled == cancelled + 1, 20, "the end of the upstream call")
    origin.release()
    job = shown.evaluate("async () => await (await fetch(`/v1/jobs/${window.jobId}?wait=20`)).json()")
    assert job.get("state") == ("cancelled" if cancel_job else "succeeded"), job


def test_what_may_not_be_called_is_refused_at_once(page: tuple[Page, Line]) -> None:
    """With a code, not with an answer that looks like the route's."""
    shown, _ = page
    shown.evaluate(_BEGIN, ["http://127.0.0.1:1/", {}])

    answer = shown.evaluate("window.answer")

    assert (answer["error"], answer["code"]) == ("GatewayError", "upstream_not_allowed")
