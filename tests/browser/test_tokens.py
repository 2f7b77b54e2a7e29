"""A page that holds no key, in a real Chromium: it submits, sends a large file and follows its job with a token."""

from __future__ import annotations

import pytest

from tests.browser.conftest import NewPage, Product

pytestmark = pytest.mark.browser

# What the page's own server would do with its key. Without keys the gateway makes tokens for everybody, and obeys them.
_PAGE = """async (transport) => {
  const { GatewayClient } = await import("/client/index.js");
  let asked = 0;
  const body = JSON.stringify({ kind: "paper", user: "anna" });
  const headers = { "Content-Type": "application/json" };
  const token = async () => {
    asked += 1;
    return (await fetch("/v1/tokens", { method: "POST", headers, body })).json();
  };
  const client = new GatewayClient(undefined, { token, transport, partBytes: 300_000 });
  const blob = new Blob([new Uint8Array(700_000)], { type: "application/pdf" });
  const job = await client.submit("paper", { input: { lines: 2 }, files: [{ name: "large.pdf", blob }] });
  const types = [];
  for await (const event of client.events(job.id)) types.push(event.type);
  const refused = await client.jobs().catch((error) => error.code);
  const [result, last] = [await client.result(job.id), types.at(-1)];
  return { asked, user: job.user, size: job.files[0].size, last, refused, result };
}"""


@pytest.mark.parametrize("transport", ["sse", "websocket"])
def test_a_page_submits_and_follows_its_job_with_a_token_alone(
    new_page: NewPage, product: Product, transport: str
) -> None:
    """As a subprotocol too, without which a browser closes its socket; lists are refused."""
    page = new_page()
    page.goto(product.url)

    seen = page.evaluate(_PAGE, transport)

    assert seen == {
        "asked": 1,
        "user": "anna",
        "size": 700_000,
        "last": "succeeded",
        "refused": "forbidden",
        "result": {"pages": 2},
    }
