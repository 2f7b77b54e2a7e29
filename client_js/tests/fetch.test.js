import assert from "node:assert/strict";
import { test } from "node:test";

import { GatewayError } from "../errors.js";
import { createFetch } from "../fetch.js";

const BASE = "http://gateway.test";
const WHOLE = new TextEncoder().encode("0123456789");

/**
 * A client whose job has ended with a body of ten bytes elsewhere, and gives these answers for it.
 * @param {Response[]} answers
 */
function clientOf(...answers) {
  /** @type {any[]} */
  const asked = [];
  /** @type {any[]} */
  const submitted = [];
  const client = {
    base: BASE,
    submit: async (/** @type {string} */ _kind, /** @type {any} */ job) => (submitted.push(job.input), { id: "1" }),
    events: async function* () {
      yield { type: "succeeded", data: {} };
    },
    result: async () => ({ status: 200, headers: [], size: WHOLE.length, url: "http://app:8000/report", body_url: "/v1/jobs/1/outputs/body" }),
    request: async (/** @type {string} */ _path, /** @type {any} */ { headers }) => {
      asked.push(headers);
      return /** @type {Response} */ (answers.shift());
    },
  };
  return { client: /** @type {any} */ (client), asked, submitted };
}

/** @param {number} status @param {number} from @param {number} to @param {{cut?: boolean, tag?: string, place?: number}} [options] */
function answer(status, from, to, { cut = true, tag = '"a"', place = from } = {}) {
  let sent = false;
  const body = new ReadableStream({
    pull(controller) {
      if (!sent) controller.enqueue(WHOLE.slice(from, to));
      else if (cut) controller.error(new TypeError("cut"));
      else controller.close();
      sent = true;
    },
  });
  const headers = { ETag: tag, ...(status === 206 && { "Content-Range": `bytes ${place}-9/10` }) };
  return new Response(body, { status, headers });
}

/** @param {any} client @param {string} [url] */
async function textOf(client, url = "https://app.test/report") {
  return (await createFetch(client)(url)).text();
}

test("after a cut only the rest is asked for, if it still is the same", async () => {
  const { client, asked } = clientOf(answer(200, 0, 4), answer(206, 4, 10, { cut: false }));

  assert.equal(await textOf(client), "0123456789");
  assert.deepEqual(asked, [{}, { Range: "bytes=4-", "If-Range": '"a"' }]);
});

test("a body that nobody wants any more is asked for no further", async ({ mock }) => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const turns = async () => {
    for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  };
  for (const leaves of [false, true]) {
    const { client, asked } = clientOf(answer(200, 0, 4), answer(206, 4, 10, { cut: false }));
    const reader = (await createFetch(client)("https://app.test/report")).body?.getReader();
    await reader?.read();
    await turns();

    // Between two connections.
    if (leaves) await reader?.cancel();
    mock.timers.tick(20_000);
    await turns();

    assert.equal(asked.length, leaves ? 1 : 2);
  }
});

test("a download that stands still is cut, and goes on where it stopped", async () => {
  const { client, asked } = clientOf(answer(206, 4, 10, { cut: false }));
  const { request } = client;
  client.silenceMs = 20;
  client.request = async (/** @type {string} */ path, /** @type {any} */ { headers, signal }) => {
    if (headers.Range) return request(path, { headers });
    const body = new ReadableStream({
      start(controller) {
        controller.enqueue(WHOLE.slice(0, 4));
        signal.addEventListener("abort", () => controller.error(signal.reason));
      },
    });
    return new Response(body, { headers: { ETag: '"a"' } });
  };

  assert.equal(await textOf(client), "0123456789");
  assert.equal(asked.length, 1);
});

test("a hop that takes Range away repeats nothing, nor does one that packs the body", async () => {
  const { client, asked } = clientOf(answer(200, 0, 4, { tag: 'W/"a"' }), answer(200, 0, 2), answer(200, 0, 10, { cut: false }));

  assert.equal(await textOf(client), "0123456789");
  assert.equal(asked[2]["If-Range"], '"a"');
});

test("a body is never put together from two", async () => {
  for (const second of [answer(200, 0, 10, { tag: '"b"' }), answer(206, 6, 10), answer(206, 4, 10, { place: NaN })]) {
    const { client } = clientOf(answer(200, 0, 4), second);

    await assert.rejects(textOf(client), (error) => error instanceof GatewayError && error.code === "bad_download");
  }
});

test("at the gateway's address a slow route goes by its path, and anything else as it is", async () => {
  const { client, submitted } = clientOf(answer(200, 0, 10, { cut: false }), answer(200, 0, 10, { cut: false }));

  const route = await createFetch(client)(`${BASE}/api/report?year=2026#top`);
  const other = await createFetch(client)("https://app.test/api/report?year=2026#top");

  assert.deepEqual([submitted[0].url, route.url], ["/api/report?year=2026", `${BASE}/api/report?year=2026`]);
  assert.deepEqual([submitted[1].url, other.url], ["https://app.test/api/report?year=2026", "http://app:8000/report"]);
});
