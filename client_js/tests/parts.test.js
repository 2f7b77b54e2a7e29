import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { GatewayClient } from "../client.js";
import { GatewayError } from "../errors.js";
import { Meter } from "../parts.js";
import { FakeGateway, JOB } from "./fake-gateway.js";

const KIB = 1024;
const TEXT = "0123456789abcdef".repeat(64 * KIB);
const FILES = [{ name: "große Datei.txt", blob: new Blob([TEXT], { type: "text/plain" }) }];
const SUBMIT = "/v1/kinds/ocr/jobs";

/** @type {FakeGateway} */
let gateway;
/** @type {GatewayClient} */
let client;
beforeEach(async () => {
  gateway = await new FakeGateway().start();
  gateway.routes[`POST ${SUBMIT}`] = { id: JOB };
  client = new GatewayClient(gateway.base, { partBytes: 512 * KIB });
});
afterEach(() => gateway.stop());

const patches = () => gateway.requests.filter(({ method }) => method === "PATCH");
const submits = () => gateway.requests.filter(({ path }) => path === SUBMIT);
/** A `Retry-After` of no time, so that a test doesn't wait. */
const SOON = { "Retry-After": "0" };

test("a file above the limit goes in parts, and the submit names it", async () => {
  await client.submit("ocr", { input: { a: 1 }, files: FILES, options: { priority: "low" } });

  const upload = gateway.uploads.get("upload0");
  assert.equal(upload?.bytes, TEXT);
  assert.deepEqual(patches().map(({ body }) => body.length), [512 * KIB, 512 * KIB]);
  const metadata = Object.fromEntries((upload?.metadata ?? "").split(",").map((pair) => pair.split(" ")));
  assert.equal(Buffer.from(metadata.filename, "base64").toString(), "große Datei.txt");
  assert.equal(atob(metadata.kind), "ocr");
  assert.deepEqual(JSON.parse(submits()[0]?.body ?? ""), { priority: "low", input: { a: 1 }, files: [{ upload: "upload0" }] });
  assert.deepEqual(gateway.deleted, ["upload0"]);
});

test("after a cut it goes on where the gateway stands, in smaller parts that grow again", async () => {
  gateway.refusals = [/* the begin */ { status: 201, body: { id: "upload0", offset: 0 } }, { status: 524, body: "<html>", headers: SOON }];
  gateway.uploads.set("upload0", { length: TEXT.length, bytes: TEXT.slice(0, 100), metadata: "" });

  await client.submit("ocr", { files: FILES });

  assert.equal(gateway.uploads.get("upload0")?.bytes, TEXT);
  assert.deepEqual(patches().map(({ headers }) => Number(headers["upload-offset"])).slice(0, 3), [0, 100, 100 + 256 * KIB]);
  assert.deepEqual(patches().map(({ body }) => body.length).slice(0, 3), [512 * KIB, 256 * KIB, 512 * KIB]);
});

test("a gateway that puts the parts together is waited for, however often it says later", async () => {
  gateway.refusals = Array.from({ length: 3 }, () => ({ status: 503, body: { code: "upload_joining", status: 503 }, headers: SOON }));

  await client.submit("ocr", { retries: 1 });

  assert.equal(submits().length, 4);
});

test("an edge's 413 makes parts of one body, and smaller parts of parts", async () => {
  client = new GatewayClient(gateway.base, { partBytes: 4096 * KIB });
  const refused = { status: 413, body: "<center>cloudflare</center>" };
  gateway.refusals = [refused, { status: 201, body: { id: "upload0", offset: 0 } }, refused];
  gateway.uploads.set("upload0", { length: TEXT.length, bytes: "", metadata: "" });

  await client.submit("ocr", { files: FILES });

  assert.equal(gateway.uploads.get("upload0")?.bytes, TEXT);
  assert.deepEqual(patches().map(({ body }) => body.length), [512, 256, 256, 256, 256].map((size) => size * KIB));
  assert.equal(new Set(submits().map(({ headers }) => headers["idempotency-key"])).size, 1);
});

test("the gateway's own 413 is for good", async () => {
  gateway.refusals = [{ status: 413, body: { code: "too_large", detail: "A file has at most 10 bytes." } }];

  await assert.rejects(client.submit("ocr", { files: FILES }), (/** @type {GatewayError} */ error) => error.code === "too_large");

  assert.equal(gateway.requests.length, 1);
});

test("an upload that the gateway has forgotten begins again, once", async () => {
  const forgotten = { status: 404, body: { code: "upload_not_found", detail: "gone" } };
  gateway.refusals = [{ status: 201, body: { id: "lost", offset: 0 } }, forgotten];

  await client.submit("ocr", { files: FILES });
  assert.equal(gateway.uploads.get("upload0")?.bytes, TEXT);

  const begun = { status: 201, body: { id: "lost", offset: 0 } };
  gateway.refusals = [begun, forgotten, begun, forgotten];
  await assert.rejects(client.submit("ocr", { files: FILES }), (/** @type {GatewayError} */ error) => error.code === "upload_not_found");
});

test("what answers in the gateway's place is named, and ends no upload before its end", async () => {
  const begun = { status: 201, body: { id: "upload0", offset: 0 } };
  const later = { status: 503, headers: { "Retry-After": "0" } };
  for (const [body, code] of /** @type {const} */ ([["<html>", "not_a_gateway"], [{ id: "other" }, "http_503"]])) {
    gateway.refusals = [begun, later, { status: 200, body }];

    await assert.rejects(client.submit("ocr", { files: FILES }), (/** @type {GatewayError} */ error) => error.code === code);
  }
  gateway.refusals = [{ status: 200, body: "<html>" }];
  await assert.rejects(client.submit("ocr"), (/** @type {GatewayError} */ error) => error.code === "not_a_gateway");
});

test("progress never goes back and ends at the whole", () => {
  /** @type {number[]} */
  const told = [];
  const meter = new Meter(({ loaded, total }) => told.push(loaded / total), 10);

  for (const sent of [1, 5, 3, 5, 8, 12]) meter.at(sent);

  assert.deepEqual(told, [0.1, 0.5, 0.8, 1]);
});
