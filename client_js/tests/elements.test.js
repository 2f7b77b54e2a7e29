import "./dom.js";

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { GatewayClient } from "../client.js";
import { defineElements, OutlastJob } from "../elements.js";
import { DocumentView } from "../page-document.js";
import { buildForm } from "../page-form.js";
import { OcrPages } from "../page-ocr.js";
import { event, FakeGateway, JOB, until } from "./fake-gateway.js";

/** @type {FakeGateway} */
let gateway;
beforeEach(async () => {
  gateway = await new FakeGateway().start();
  defineElements();
});
afterEach(async () => {
  document.body.replaceChildren();
  await gateway.stop();
});

function mount() {
  document.body.innerHTML = `<outlast-job><outlast-progress></outlast-progress><outlast-text></outlast-text></outlast-job>`;
  const job = /** @type {import("../elements.js").OutlastJob} */ (document.body.firstElementChild);
  job.client = new GatewayClient(gateway.base);
  return { job, bar: /** @type {Element} */ (job.children[0]), text: /** @type {Element} */ (job.children[1]) };
}

test("a job's state, its progress and its text are reflected as they come", async () => {
  gateway.log = [event(1, "queued"), event(2, "started"), event(3, "progress", { current: 2, total: 8 }), event(4, "delta", { channel: "text", text: "Hel" })];
  const { job, bar, text } = mount();

  job.job = JOB;
  await until(() => text.textContent === "Hel");
  const node = text.firstChild;
  gateway.append(event(5, "delta", { channel: "text", text: "lo" }));
  await until(() => text.textContent === "Hello");

  assert.equal(text.firstChild, node, "text grows in place, so that a selection stays");
  assert.deepEqual(["state", "attempt", "connection"].map((name) => job.getAttribute(name)), ["running", "1", "open"]);
  const shown = ["role", "aria-valuemin", "aria-valuenow", "aria-valuemax"].map((name) => bar.getAttribute(name));
  assert.deepEqual(shown, ["progressbar", "0", "2", "8"]);
});

test("progress, load and loadend are fired like a request's", async () => {
  gateway.log = [event(1, "queued"), event(2, "started"), event(3, "progress", { current: 2, total: 8 }), event(4, "succeeded", { result: 1 })];
  const { job, bar } = mount();
  const seen = /** @type {any[]} */ ([]);
  for (const type of ["progress", "load", "error", "abort", "loadend"]) {
    job.addEventListener(type, (fired) => {
      const { loaded, total } = /** @type {ProgressEvent} */ (fired);
      seen.push([fired.type, loaded, total, job.getAttribute("state")]);
    });
  }

  job.job = JOB;
  await until(() => seen.length === 3 && job.getAttribute("connection") === "ended");

  assert.deepEqual(seen, [["progress", 2, 8, "running"], ["load", 2, 8, "succeeded"], ["loadend", 2, 8, "succeeded"]]);
  assert.equal(bar.getAttribute("aria-valuenow"), "8");
});

test("a cancelled job fires abort, a failed one error", async () => {
  for (const [end, fired] of [["cancelled", "abort"], ["failed", "error"]]) {
    gateway.log = [event(1, "queued"), event(2, /** @type {string} */ (end), { problem: { code: "x" } })];
    const { job } = mount();
    const heard = new Promise((resolve) => job.addEventListener(/** @type {string} */ (fired), () => resolve(fired)));

    job.job = JOB;

    assert.equal(await heard, fired);
  }
});

test("an unknown total is an indeterminate bar", async () => {
  gateway.log = [event(1, "queued"), event(2, "started"), event(3, "progress", { current: 2, total: null })];
  const { job, bar } = mount();

  job.job = JOB;
  await until(() => job.getAttribute("state") === "running");

  assert.equal(bar.hasAttribute("aria-valuenow"), false);
});

test("an element that is taken off the page closes its connection", async () => {
  gateway.log = [event(1, "queued")];
  const { job } = mount();
  job.job = JOB;
  await until(() => gateway.openStreams() === 1);

  job.remove();

  await until(() => gateway.openStreams() === 0);
});

test("what a page sets before the element is defined counts from then on", async () => {
  gateway.log = [event(1, "queued")];
  const early = Object.assign(document.createElement("outlast-early"), { client: new GatewayClient(gateway.base), job: JOB });
  document.body.append(early);

  customElements.define("outlast-early", class extends OutlastJob {});

  await until(() => early.getAttribute("state") === "queued");
  early.job = "";
  await until(() => gateway.openStreams() === 0);
});

test("cut() is resumed, and changing the transport keeps the place", async () => {
  gateway.log = [event(1, "queued"), event(2, "started")];
  const { job } = mount();
  job.job = JOB;
  await until(() => job.getAttribute("state") === "running");

  job.cut();
  await until(() => gateway.streams().length === 2 && job.getAttribute("connection") === "open");

  assert.equal(job.mirror?.subscription.repeated, 0);
  assert.equal(job.mirror?.subscription.reconnects, 1);
});

test("a form is drawn from a kind's schema, and what is left alone is not sent", () => {
  const box = document.createElement("div");
  const form = buildForm(box, {
    required: ["prompt"],
    properties: {
      prompt: { type: "string" },
      text: { $ref: "#/$defs/TextLayer", default: "auto" },
      dpi: { anyOf: [{ type: "integer", maximum: 600 }, { type: "null" }], default: null },
      fast: { type: "boolean", default: false },
      languages: { type: "array", items: { enum: ["en", "de"] }, default: ["en"] },
      extra: { type: "object" },
    },
    $defs: { TextLayer: { enum: ["auto", "never", "only"], type: "string" } },
  });
  const untouched = form.read();

  /** @type {HTMLTextAreaElement} */ (box.querySelector("#option-prompt")).value = "hi";
  /** @type {HTMLInputElement} */ (box.querySelector("#option-dpi")).value = "300";
  /** @type {HTMLInputElement} */ (box.querySelector("#option-fast")).checked = true;

  assert.deepEqual(untouched, { text: "auto", languages: ["en"] });
  assert.deepEqual(form.read(), { prompt: "hi", text: "auto", dpi: 300, fast: true, languages: ["en"] });
  assert.equal(form.hasRequired, true);
  const unlabelled = [...box.querySelectorAll("input, select, textarea")].filter((control) => !/** @type {any} */ (control).labels?.length);
  assert.deepEqual(unlabelled, []);
});

test("a few lines of a page come up as new ones, hundreds at once just stand there", () => {
  const [documentPane, textPane] = [document.createElement("div"), document.createElement("div")];
  const view = new DocumentView({ documentPane, textPane, showImage: () => {}, onscroll: () => {} });
  const pages = new OcrPages();
  /** @param {number} piece @param {number} count */
  const take = (piece, count) => {
    const lines = Array.from({ length: count }, () => ({ text: "x", box: [[0, 0], [9, 0], [9, 5], [0, 5]] }));
    const page = pages.take(`page-1.lines-${piece}`, { value: { page: 1, width: 10, height: 10, lines } });
    if (page) view.update(page);
    return [textPane.querySelectorAll(".line.new").length, documentPane.querySelectorAll("polygon.new").length];
  };

  assert.deepEqual(take(0, 2), [2, 2]);
  assert.deepEqual(take(1, 500), [2, 2]);
  assert.equal(textPane.querySelectorAll(".line").length, 502);
});
