"""A page that is reloaded in the middle of a model's answer: how soon its text goes on, in a real Chromium.

    python -m benchmarks.reload [--runs 10] [--tokens 500] [--rate 80]

A scripted model server speaks at `rate`; after `tokens` of them the page is reloaded again and again. The page takes
the time itself: from the navigation's start to the moment when more text stands in it than before the reload, so the
files of the page, the connection and the whole log so far are in it, and the wait for the next token too. Beside it:
how soon a new connection that begins with a snapshot has the text so far, and how soon the next token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.delivery import free_port
from benchmarks.tokens import serve_upstream
from tests.browser.conftest import _CHROMIUM, _FLAGS, running_product

GOAL_MS = 300
_BEFORE = "benchmark.before"
# Runs before the page's own scripts, at each load.
_WATCH = f"""() => {{
  const before = Number(sessionStorage.getItem("{_BEFORE}"));
  globalThis.goesOn = new Promise((resolve) => {{
    new MutationObserver((_, observer) => {{
      const text = document.querySelector("#text")?.textContent ?? "";
      if (text.length > before) {{ observer.disconnect(); resolve(performance.now()); }}
    }}).observe(document, {{ childList: true, subtree: true, characterData: true }});
  }});
}}"""
_LENGTH = 'document.querySelector("#text").textContent.length'


def submit(url: str, tokens: int, rate: float) -> str:
    """Ask the model; the job's id."""
    question = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    body = json.dumps({"input": question | {"deltas": tokens, "rate": rate, "streams": 1}}).encode()
    request = urllib.request.Request(f"{url}/v1/kinds/llm/jobs", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["id"])


def wait_for_tokens(url: str, job: str, tokens: int) -> None:
    """Read the stream until so many tokens have come."""
    with urllib.request.urlopen(f"{url}/v1/jobs/{job}/events") as stream:
        come = 0
        for line in stream:
            come += line.count(b" ", line.index(b'"text":"')) if b'"type":"delta"' in line else 0
            if come >= tokens:
                return
    raise RuntimeError("the answer ended before the reloads: ask for fewer runs, or a lower rate")


def on_the_page(page: Page) -> float:
    """Milliseconds from a reload to new text."""
    page.evaluate(f'sessionStorage.setItem("{_BEFORE}", {_LENGTH})')
    page.reload(wait_until="commit")
    return float(page.evaluate("globalThis.goesOn"))


def with_a_snapshot(url: str, job: str) -> tuple[float, float]:
    """Milliseconds from connecting to the text so far, and to the next token."""
    began = time.perf_counter()
    text_after = 0.0
    with urllib.request.urlopen(f"{url}/v1/jobs/{job}/events?snapshot=1") as stream:
        for line in stream:
            if b'"type":"snapshot"' in line:
                text_after = (time.perf_counter() - began) * 1000
            elif b'"type":"delta"' in line and time.perf_counter() - began > text_after / 1000 + 0.005:
                return text_after, (time.perf_counter() - began) * 1000
    raise RuntimeError("the answer ended before the reloads: ask for fewer runs, or a lower rate")


def show(name: str, times: list[float]) -> None:
    """One line of the result."""
    print(f"  {name:44} median {statistics.median(times):6.1f} ms, slowest {max(times):6.1f} ms")


def main() -> None:
    """Reload the page, then connect as a program would, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rate", type=float, default=80.0)
    args = parser.parse_args()
    port = free_port()
    threading.Thread(target=asyncio.run, args=(serve_upstream(port),), daemon=True).start()
    upstream = {"OUTLAST_LLM_URL": f"http://127.0.0.1:{port}/openai/v1"}
    pages, snapshots, nexts = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_product(Path(folder) / "data", "--without", "ocr", **upstream) as product,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        page = browser.new_page()
        page.add_init_script(f"({_WATCH})()")
        # A reload, a connection and the pauses between them take well under 2 s.
        job = submit(product.url, args.tokens + int(args.rate * 2 * (args.runs + 3)), args.rate)
        wait_for_tokens(product.url, job, args.tokens)
        page.goto(f"{product.url}/?job={job}")
        page.wait_for_selector("#text pre")
        for run in range(args.runs + 1):
            taken = on_the_page(page)
            text, token = with_a_snapshot(product.url, job)
            if run:
                # The first one warmed the browser.
                pages.append(taken)
                snapshots.append(text)
                nexts.append(token)
        length = page.evaluate(_LENGTH)
        browser.close()
    machine = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    print(f"{args.runs} reloads in the middle of an answer, {length} characters of it on the page at the end")
    show("page reloaded, its text goes on", pages)
    show("new connection, the text so far (snapshot)", snapshots)
    show("new connection, the next token", nexts)
    print(f"goal: the text goes on within {GOAL_MS} ms of a reload")


if __name__ == "__main__":
    main()
