import "./dom.js";

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, test } from "node:test";

import * as React from "react";
import { createRoot } from "react-dom/client";

import { GatewayClient } from "../client.js";
import { JobMirror } from "../mirror.js";
import { createUseJob } from "../react.js";
import { event, FakeGateway, finishedLog, JOB, until } from "./fake-gateway.js";

const useJob = createUseJob(React);
/** @type {FakeGateway} */
let gateway;
/** @type {import("react-dom/client").Root} */
let root;
const box = document.createElement("div");
beforeEach(async () => {
  gateway = await new FakeGateway().start();
  root = createRoot(box);
});
afterEach(async () => {
  root.unmount();
  await gateway.stop();
});

/** @param {{client: GatewayClient, id: string | null}} props */
function Job({ client, id }) {
  const job = useJob(client, id);
  if (!job) return "nothing";
  return `${job.state} ${job.progress?.current ?? 0} ${job.outputs.length} ${JSON.stringify(job.result)}`;
}

test("a component shows the job as it goes, also in strict mode, and the end", async () => {
  gateway.log = finishedLog(9).slice(0, 5);
  const client = new GatewayClient(gateway.base);

  root.render(React.createElement(React.StrictMode, null, React.createElement(Job, { client, id: JOB })));
  await until(() => box.textContent === "running 5 1 null");
  gateway.append(...finishedLog(9).slice(5));
  await until(() => box.textContent === 'succeeded 8 2 {"pages":9}');
});

test("a component of a page that holds a token goes on with the next one when that one's time is over", async () => {
  gateway.log = finishedLog(9).slice(0, 5);
  let asked = 0;
  const client = new GatewayClient(gateway.base, { token: () => `t${(asked += 1)}` });

  root.render(React.createElement(Job, { client, id: JOB }));
  await until(() => box.textContent === "running 5 1 null");
  gateway.refusals = [{ status: 401, body: { code: "token_expired", detail: "over" } }];
  gateway.log = finishedLog(9);
  gateway.endAll();

  await until(() => box.textContent === 'succeeded 8 2 {"pages":9}');
  assert.deepEqual(gateway.streams().map(({ headers }) => headers.authorization), ["Bearer t1", "Bearer t1", "Bearer t2"]);
});

test("events that come together are drawn together", async () => {
  let drawn = 0;
  gateway.log = finishedLog(2000);
  const client = new GatewayClient(gateway.base);
  const Counting = () => {
    drawn += 1;
    return Job({ client, id: JOB });
  };

  root.render(React.createElement(Counting));
  await until(() => box.textContent?.startsWith("succeeded") === true);

  assert.ok(drawn < 500, `drawn ${drawn} times`);
});

test("without an id there is nothing, and a new id is followed from its start", async () => {
  const client = new GatewayClient(gateway.base);
  root.render(React.createElement(Job, { client, id: null }));
  await until(() => box.textContent === "nothing");
  assert.equal(gateway.requests.length, 0);

  gateway.log = [event(1, "queued")];
  root.render(React.createElement(Job, { client, id: JOB }));
  await until(() => box.textContent === "queued 0 0 null");
});

test("the README names every member that the hook returns", async () => {
  const page = await readFile(new URL("../README.md", import.meta.url), "utf8");
  const table = page.split("| member of `job` | what it is |")[1]?.split("\n\n")[0] ?? "";
  const firsts = [...table.matchAll(/^\| (`.+?) \|/gm)].map(([, first = ""]) => first);
  const named = firsts.flatMap((first) => [...first.matchAll(/`(\w+)`/g)].map(([, name]) => name));

  const { id, ...members } = new JobMirror(new GatewayClient(gateway.base), JOB).view();

  assert.equal(id, JOB);
  assert.deepEqual(named.sort(), Object.keys(members).sort());
});

test("a component that goes away closes its connection", async () => {
  gateway.log = [event(1, "queued")];
  root.render(React.createElement(Job, { client: new GatewayClient(gateway.base), id: JOB }));
  await until(() => gateway.openStreams() === 1);

  root.render(null);

  await until(() => gateway.openStreams() === 0);
});

test("a snapshot is completed by the outputs that it only counts", async () => {
  gateway.log = [];
  const data = { cursor: "7-1", state: "running", attempt: 1, progress: { current: 4 }, text: {}, outputs: 2 };
  gateway.prelude = () => `data: ${JSON.stringify({ job: JOB, type: "snapshot", data })}\n\n`;
  gateway.routes[`GET /v1/jobs/${JOB}/outputs`] = { outputs: [event(3, "output", { index: "a" }), event(5, "output", { index: "b" })], next: null };

  root.render(React.createElement(Job, { client: new GatewayClient(gateway.base), id: JOB }));

  await until(() => box.textContent === "running 4 2 null");
});
