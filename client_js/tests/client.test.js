import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, test } from "node:test";

import { Backoff, pause } from "../backoff.js";
import { GatewayClient } from "../client.js";
import { GatewayError, parseRetryAfter } from "../errors.js";
import { cursorOf, numberOf, shouldComeBack } from "../protocol.js";
import { event, FakeGateway, JOB, until } from "./fake-gateway.js";

/** @type {FakeGateway} */
let gateway;
/** @type {GatewayClient} */
let client;
beforeEach(async () => {
  gateway = await new FakeGateway().start();
  client = new GatewayClient(gateway.base, { apiKey: "secret" });
});
afterEach(() => gateway.stop());

const SUBMIT = "/v1/kinds/ocr/jobs";

test("a submit carries its input, its options, the key and an Idempotency-Key", async () => {
  gateway.routes[`POST ${SUBMIT}`] = { id: JOB };

  const job = await client.submit("ocr", { input: { text: "auto" }, options: { priority: "high" } });

  const [request] = gateway.requests;
  assert.equal(job.id, JOB);
  assert.deepEqual(JSON.parse(request?.body ?? ""), { priority: "high", input: { text: "auto" } });
  assert.equal(request?.headers.authorization, "Bearer secret");
  assert.match(String(request?.headers["idempotency-key"]), /^[0-9a-f]{32}$/);
});

test("the README tells every method of the client", async () => {
  const page = await readFile(new URL("../README.md", import.meta.url), "utf8");
  const table = page.split("## What it can do")[1]?.split("\n## ")[0] ?? "";
  const told = [...table.matchAll(/`(\w+)\(/g)].map(([, name]) => name);

  const methods = Object.getOwnPropertyNames(GatewayClient.prototype).filter((name) => name !== "constructor");

  assert.deepEqual(told.sort(), methods.sort());
});

test("a page that was given a watch URL reads with its token, and without one where the gateway has no keys", async () => {
  const path = `/v1/jobs/${JOB}/outputs`;
  gateway.routes[`GET ${path}`] = { outputs: [], next: null };
  gateway.log = [event(1, "queued"), event(2, "cancelled")];

  const watch = `/v1/jobs/${JOB}/events`;
  for (const token of [`${watch}?token=t1~en_`, `${gateway.base}${watch}?token=t1~full`, watch]) {
    const page = new GatewayClient(gateway.base, { token });
    for await (const _ of page.events(JOB));
    for await (const _ of page.outputs(JOB));
  }

  const sent = gateway.requests.map(({ headers }) => headers.authorization);
  assert.deepEqual(sent, [...Array(2).fill("Bearer t1~en_"), ...Array(2).fill("Bearer t1~full"), undefined, undefined]);
});

const EXPIRED = { status: 401, body: { code: "token_expired", detail: "over" } };

/** A page's own server: a token with a number, and how often it was asked. @param {number} [expires_seconds] */
function mint(expires_seconds) {
  const asked = { times: 0, token: async () => ({ token: `t${(asked.times += 1)}`, expires_seconds }) };
  return asked;
}

const shown = () => gateway.requests.map(({ headers }) => headers.authorization?.split(" ")[1]);

test("a token is fetched once for many requests, and anew when the gateway says that its time is over", async () => {
  const source = mint(900);
  const page = new GatewayClient(gateway.base, { token: source.token });
  gateway.routes["GET /v1/kinds"] = { kinds: [] };
  gateway.routes[`POST ${SUBMIT}`] = { id: JOB };

  await Promise.all([page.kinds(), page.kinds(), page.kinds()]);
  gateway.refusals = [EXPIRED];
  await page.submit("ocr", { idempotencyKey: "mine" });
  await page.kinds();

  assert.deepEqual(shown(), ["t1", "t1", "t1", "t1", "t2", "t2"]);
  assert.equal(source.times, 2);
});

test("a token of which most of the time is over is not shown any more", async () => {
  const source = mint(0);
  const page = new GatewayClient(gateway.base, { token: source.token });
  gateway.routes["GET /v1/kinds"] = { kinds: [] };

  await page.kinds();
  await page.kinds();

  assert.deepEqual(shown(), ["t1", "t2"]);
});

test("a fresh token that is refused is an error, and so is a string whose time is over", async () => {
  const source = mint();
  for (const token of [source.token, "t1~x"]) {
    gateway.refusals = [EXPIRED];
    await assert.rejects(new GatewayClient(gateway.base, { token }).kinds(), { code: "token_expired", mayPass: false });
  }
  assert.equal(gateway.requests.length, 2);
});

test("a page's own server that is away is waited for, and one that gives no token is an error", async () => {
  gateway.routes["GET /v1/kinds"] = { kinds: [] };
  const away = () => Promise.reject(new TypeError("fetch failed"));

  await assert.rejects(new GatewayClient(gateway.base, { token: away }).kinds(), { code: "no_token", mayPass: true });
  const wrong = /** @type {any} */ (() => ({ error: "log in first" }));
  await assert.rejects(new GatewayClient(gateway.base, { token: wrong }).kinds(), { code: "no_token", mayPass: false });
  await new GatewayClient(gateway.base, { token: () => null }).kinds();

  assert.deepEqual(shown(), [undefined]);
  assert.throws(() => new GatewayClient(gateway.base, { token: "t1~x", apiKey: "k" }), TypeError);
});

test("files go as multipart, with their names, and the input as a part", async () => {
  gateway.routes[`POST ${SUBMIT}`] = { id: JOB };

  await client.submit("ocr", { input: { text: "only" }, files: [{ name: "scän.pdf", blob: new Blob(["%PDF"]) }] });

  const body = gateway.requests[0]?.body ?? "";
  assert.match(body, /name="input"\r\n\r\n\{"text":"only"\}/);
  assert.match(body, /name="file"; filename="scän.pdf"/);
});

test("a lost answer and an edge's 524 are tried again under the same Idempotency-Key", async () => {
  gateway.routes[`POST ${SUBMIT}`] = { id: JOB };
  gateway.refusals = [{ status: 0 }, { status: 524, body: "<html>" }, { status: 503, headers: { "Retry-After": "0" } }];

  await client.submit("ocr");

  assert.equal(gateway.requests.length, 4);
  assert.equal(new Set(gateway.requests.map(({ headers }) => headers["idempotency-key"])).size, 1);
});

test("a connection on which no answer comes is given up, and the submit sent again under the same key", async () => {
  client = new GatewayClient(gateway.base, { silenceSeconds: 0.2 });
  gateway.routes[`POST ${SUBMIT}`] = { id: JOB };
  gateway.refusals = [{ status: 0, hangs: true }, { status: 200, hangs: true }];

  await client.submit("ocr");

  assert.ok(gateway.requests.length >= 3);
  assert.equal(new Set(gateway.requests.map(({ headers }) => headers["idempotency-key"])).size, 1);
});

test("a question to which no answer comes is an error that says so", async () => {
  client = new GatewayClient(gateway.base, { silenceSeconds: 0.05 });
  for (const status of [0, 200, 503]) {
    gateway.refusals = [{ status, hangs: true }];
    await assert.rejects(client.job(JOB), (/** @type {GatewayError} */ error) => error.code === "silent" && error.mayPass);
  }
});

test("every answer that an edge gives in the gateway's place is tried again under the same key, and not for ever", async () => {
  gateway.routes[`POST ${SUBMIT}`] = { id: JOB };
  const later = { "Retry-After": "0" };
  for (const status of [502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527]) {
    gateway.requests.length = 0;
    gateway.refusals = [{ status, body: { code: "bad_gateway", detail: "an edge's own JSON" }, headers: later }];

    await client.submit("ocr", { idempotencyKey: "mine" });

    assert.deepEqual(gateway.requests.map(({ headers }) => headers["idempotency-key"]), ["mine", "mine"]);
  }
  gateway.requests.length = 0;
  gateway.refusals = Array.from({ length: 9 }, () => ({ status: 524, body: "<html>", headers: later }));

  await assert.rejects(client.submit("ocr"), { status: 524 });

  assert.equal(gateway.requests.length, 6);
});

test("a submit that is refused for good is not tried again, and names the fields", async () => {
  const problem = { code: "invalid_input", detail: "Not valid.", errors: [{ field: "text", message: "one of auto, never, only" }] };
  gateway.refusals = [{ status: 422, body: problem }];

  await assert.rejects(client.submit("ocr"), (/** @type {GatewayError} */ error) => {
    assert.deepEqual([error.code, error.status, error.problem.errors?.[0]?.field], ["invalid_input", 422, "text"]);
    return true;
  });
  assert.equal(gateway.requests.length, 1);
});

test("a submit stops trying when it is aborted", async () => {
  gateway.refusals = Array.from({ length: 9 }, () => ({ status: 503, headers: { "Retry-After": "60" } }));
  const stop = new AbortController();
  const submitting = client.submit("ocr", { signal: stop.signal });

  await until(() => gateway.requests.length > 0);
  stop.abort(new Error("never mind"));

  await assert.rejects(submitting, { message: "never mind" });
});

test("outputs are read page by page", async () => {
  gateway.routes[`GET /v1/jobs/${JOB}/outputs`] = (/** @type {URL} */ url) =>
    url.searchParams.get("after") === "0" ? { outputs: [event(3, "output"), event(4, "output")], next: 4 } : { outputs: [event(9, "output")], next: null };

  const ids = [];
  for await (const output of client.outputs(JOB)) ids.push(output.id);

  assert.deepEqual(ids, [3, 4, 9]);
});

test("job, jobs, kinds, cancel and result are one request each", async () => {
  gateway.routes = {
    [`GET /v1/jobs/${JOB}`]: { id: JOB },
    "GET /v1/jobs": (/** @type {URL} */ url) => ({ jobs: [], cursor: url.search }),
    "GET /v1/kinds": { kinds: [] },
    [`POST /v1/jobs/${JOB}/cancel`]: { id: JOB, cancel_requested: true },
    [`GET /v1/jobs/${JOB}/result`]: { pages: 2 },
  };

  assert.equal((await client.job(JOB, { waitSeconds: 3 })).id, JOB);
  assert.equal((await client.jobs({ kind: "ocr", limit: 5 })).cursor, "?kind=ocr&limit=5");
  assert.deepEqual(await client.kinds(), { kinds: [] });
  assert.equal((await client.cancel(JOB)).cancel_requested, true);
  assert.deepEqual(await client.result(JOB), { pages: 2 });
});

test("a cancel carries its reason, if it has one", async () => {
  gateway.routes = { [`POST /v1/jobs/${JOB}/cancel`]: { id: JOB } };

  await client.cancel(JOB);
  await client.cancel(JOB, { reason: "the page was wrong" });

  assert.deepEqual(gateway.requests.map(({ body }) => body), ["", '{"reason":"the page was wrong"}']);
  assert.equal(gateway.requests[1]?.headers["content-type"], "application/json");
});

test("a retry is a new job under a key of its own", async () => {
  gateway.routes = { [`POST /v1/jobs/${JOB}/retry`]: { id: "b".repeat(26), retry_of: JOB } };

  assert.equal((await client.retry(JOB)).retry_of, JOB);
  await client.retry(JOB, { idempotencyKey: "mine" });

  const keys = gateway.requests.map(({ headers }) => headers["idempotency-key"]);
  assert.match(String(keys[0]), /^[0-9a-f]{32}$/);
  assert.equal(keys[1], "mine");
});

test("a key may be a function that is asked before each request", async () => {
  let count = 0;
  const renewing = new GatewayClient(gateway.base, { apiKey: async () => `key-${(count += 1)}` });
  gateway.routes["GET /v1/kinds"] = { kinds: [] };

  await renewing.kinds();
  await renewing.kinds();

  assert.deepEqual(gateway.requests.map(({ headers }) => headers.authorization), ["Bearer key-1", "Bearer key-2"]);
});

test("a gateway that can't be reached is an error that may pass", async () => {
  const lost = new GatewayClient("http://127.0.0.1:1");

  await assert.rejects(lost.kinds(), { code: "connection_failed", mayPass: true });
});

test("the key goes to no other server, whatever an event calls an output's address", async () => {
  for (const path of ["//127.0.0.1:1/x", "/\\127.0.0.1:1/x", "http://127.0.0.1:1/x", "https:/x", "data:text/plain,x"]) {
    await assert.rejects(client.request(path), { name: "GatewayError", code: "foreign_address" }, path);
  }
  assert.equal(gateway.requests.length, 0);
});

test("the back-off doubles up to its cap, with full jitter, and starts over after a success", () => {
  const backoff = new Backoff({ baseMs: 1000, random: () => 0.5 });

  const waits = Array.from({ length: 6 }, () => backoff.nextMs());
  backoff.reset();

  assert.deepEqual(waits, [500, 1000, 2000, 4000, 7500, 7500]);
  assert.equal(backoff.nextMs(), 500);
  assert.equal(backoff.nextMs(2000), 2500);
});

test("a network that comes back ends the pause", async () => {
  const target = new EventTarget();
  Object.assign(globalThis, { addEventListener: target.addEventListener.bind(target), removeEventListener: target.removeEventListener.bind(target) });

  const waiting = pause(60_000);
  target.dispatchEvent(new Event("online"));

  await waiting;
});

test("close codes say whether to come back, also those that are not known yet", () => {
  const comeBack = [1001, 1005, 1006, 1011, 1012, 1013, 1014, 4000, 4004, 4499];
  const stay = [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4500, 4999, 3000];

  assert.deepEqual([...comeBack, ...stay].filter(shouldComeBack), comeBack);
});

test("a cursor names the event and its time; a snapshot brings its own", () => {
  assert.equal(cursorOf(event(17, "progress")), `17-${Date.UTC(2026, 0, 1) + 17}`);
  assert.equal(cursorOf(event(9, "snapshot", { cursor: "9-5" })), "9-5");
  assert.equal(cursorOf({ ...event(1, "liveness"), id: undefined }), null);
  assert.deepEqual([numberOf("17-5"), numberOf("17"), numberOf("")], [17, 17, 0]);
});

test("a signal that lives long is left alone when the answer is there, good or bad", async () => {
  const { signal } = new AbortController();
  gateway.routes[`GET /v1/jobs/${JOB}`] = { id: JOB };
  gateway.routes[`GET /v1/jobs/${JOB}/result`] = { pages: 3 };

  await client.job(JOB, { signal });
  await client.result(JOB, { signal });
  await assert.rejects(client.kinds({ signal }), { code: "not_found" });

  assert.deepEqual(getEventListeners(signal, "abort"), []);
});

test("a large result may take its time, as long as it comes", async () => {
  gateway.routes[`GET /v1/jobs/${JOB}/result`] = { drips: ['{"pages":', ..." ".repeat(12), "3}"] };
  client = new GatewayClient(gateway.base, { silenceSeconds: 0.5 });

  assert.deepEqual(await client.result(JOB), { pages: 3 });
});

test("a proxy's page in the place of an answer is named as that", async () => {
  gateway.refusals = [{ status: 200, body: "<html>please log in</html>" }];

  await assert.rejects(client.kinds(), { code: "not_a_gateway", mayPass: false });
});

test("an upstream's own 502 is told as that, and is no reason to come back", async () => {
  gateway.refusals = [{ status: 503, body: { slow: true }, headers: { "X-Upstream-Status": "502" } }];

  await assert.rejects(client.request("/v1/jobs/1/response"), (error) => {
    assert(error instanceof GatewayError);
    assert.deepEqual([error.code, error.status, error.mayPass], ["upstream_status", 502, false]);
    return true;
  });
});

test("Retry-After is read in seconds, and nothing else", () => {
  assert.deepEqual(["2", "0.5", "", null, "soon", "-1"].map(parseRetryAfter), [2000, 500, null, null, null, null]);
});
