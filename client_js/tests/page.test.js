import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { GatewayError } from "../errors.js";
import { offered } from "../page-kinds.js";
import { OcrPages } from "../page-ocr.js";
import { compareParts } from "../page-order.js";
import { ago, duration, errorPhrase, progressPhrase, queuePhrase, workerPhrase } from "../page-phrases.js";
import { Tally } from "../page-tally.js";
import { event } from "./fake-gateway.js";

/** @param {...string} texts */
const lines = (...texts) => texts.map((text) => ({ text, box: [[0, 0], [9, 0], [9, 5], [0, 5]], confidence: 0.9 }));
/** @param {import("../page-ocr.js").Page | null} page */
const texts = (page) => page?.lines.map(({ text }) => text);

test("lines gather in the order of their pieces, whatever order they come in", () => {
  const pages = new OcrPages();

  pages.take("page-2.lines-1", { value: { page: 2, width: 100, height: 200, lines: lines("c") } });
  const page = pages.take("page-2.lines-0", { value: { page: 2, width: 100, height: 200, lines: lines("a", "b") } });

  assert.deepEqual(texts(page), ["a", "b", "c"]);
  assert.deepEqual([page?.width, page?.height, page?.finished, pages.lineCount], [100, 200, false, 3]);
});

test("the finished page replaces its pieces, and late pieces don't come back", () => {
  const pages = new OcrPages();
  pages.take("page-1.lines-0", { value: { lines: lines("draft") } });

  pages.take("page-1", { value: { page: 1, width: 10, height: 20, source: "scan", text: "one\ntwo", lines: lines("one", "two") } });
  const page = pages.take("page-1.lines-1", { value: { lines: lines("late") } });

  assert.deepEqual(texts(page), ["one", "two"]);
  assert.deepEqual([page?.finished, pages.text()], [true, "one\ntwo"]);
});

test("a page that could not be read carries its problem and spoils no other", () => {
  const pages = new OcrPages();
  pages.take("page-2", { value: { problem: { code: "unreadable", detail: "damaged" } } });
  pages.take("page-1", { value: { text: "fine", lines: lines("fine") } });

  assert.deepEqual(pages.sorted().map(({ label, problem }) => [label, problem?.code]), [["Page 1", undefined], ["Page 2", "unreadable"]]);
  assert.equal(pages.text(), "fine");
});

test("a new attempt begins unfinished pages anew and keeps the finished ones", () => {
  const pages = new OcrPages();
  pages.take("page-1", { value: { lines: lines("done") } });
  pages.take("page-2.image", { url: "/v1/x.jpg" });
  pages.take("page-2.lines-0", { value: { lines: lines("half") } });
  pages.take("page-2.lines-1", { value: { lines: lines("a page") } });

  assert.deepEqual(pages.restart().map(({ label }) => label), ["Page 2"]);
  const page = pages.take("page-2.lines-0", { value: { lines: lines("again") } });

  assert.deepEqual([texts(page), page?.image, pages.lineCount], [["again"], "/v1/x.jpg", 2]);
});

test("outputs of other kinds are none of its business", () => {
  assert.deepEqual(["page-1", "page-10.image", "page-1.lines-3"].map(OcrPages.knows), [true, true, true]);
  assert.deepEqual(["0", "result.txt", "page-x", "page-1.other"].map(OcrPages.knows), [false, false, false, false]);
});

test("an application's own kinds come first, those for files before others, and steps are offered to who names them", () => {
  const kind = (/** @type {string} */ kind, /** @type {"none" | "required"} */ files, listed = true) => ({ kind, files, listed, description: "", input_schema: {}, content_types: [] });
  const known = [kind("check", "none", false), kind("http", "none"), kind("llm", "none"), kind("ocr", "required"), kind("words", "none"), kind("scan", "required")];
  const names = (/** @type {string | null} */ named) => offered(known, named).map(({ kind }) => kind);

  assert.deepEqual(names(null), ["scan", "words", "ocr", "llm", "http"]);
  assert.deepEqual(names("check"), ["scan", "check", "words", "ocr", "llm", "http"]);
});

test("each step of a pipeline that reads has pages of its own, one step after the other", () => {
  const pages = new OcrPages();

  assert.deepEqual(["ocr.page-1", "ocr.0.page-2.image", "ocr.result.txt"].map(OcrPages.knows), [true, true, false]);
  assert.deepEqual(texts(pages.take("ocr.page-2.lines-0", { value: { lines: lines("b") } })), ["b"]);
  pages.take("again.10.page-1", { value: { lines: lines("d") } });
  pages.take("again.9.page-1", { value: { lines: lines("c") } });
  pages.take("ocr.page-1.lines-0", { value: { lines: lines("a") } });

  assert.deepEqual(pages.sorted().map(({ label }) => label), ["ocr, page 1", "ocr, page 2", "again 10, page 1", "again 11, page 1"]);
  assert.deepEqual(pages.sorted().flatMap(texts), ["a", "b", "c", "d"]);
  assert.equal(pages.lineCount, 4);
});

test("what is compared part by part has one order, from whichever side it is asked", () => {
  const sorted = [[0], [0, 1], [0, 1, 2], [0, 2], [1, 0], [10, 0]];

  for (const [at, one] of sorted.entries()) {
    for (const [place, other] of sorted.entries()) assert.equal(Math.sign(compareParts(one, other)), Math.sign(at - place));
  }
});

test("the tally counts what reached the page, and sees holes and repeats by itself", () => {
  const tally = new Tally();
  for (const id of [1, 2, 3, 5, 5]) tally.take(event(id, "log"));
  tally.take({ ...event(6, "liveness"), id: undefined });

  assert.deepEqual([tally.received, tally.missed, tally.repeated, tally.last], [4, 1, 1, 5]);
});

test("a snapshot stands for what came before it", () => {
  const tally = new Tally();
  tally.take(event(40, "snapshot", { cursor: "40-7" }));
  tally.take(event(41, "log"));

  assert.deepEqual([tally.received, tally.missed, tally.repeated], [1, 0, 0]);
});

test("a worker is called silent only where the gateway says so and can be heard", () => {
  const phrase = (/** @type {number | null} */ age, late = false, connected = true) => workerPhrase({ age, late, connected }).text;

  assert.equal(phrase(null), "");
  assert.equal(phrase(0.4), "Worker alive, seen just now");
  assert.equal(phrase(3), "Worker alive, seen 3 s ago");
  assert.equal(phrase(14), "Worker alive");
  assert.equal(phrase(21, true), "Worker silent for 21 s");
  assert.equal(phrase(21, true, false), "Worker last seen 21 s ago");
});

test("progress says how far, and how long by a clock that goes on between events", () => {
  const progress = { current: 2, total: 5, unit: "pages", message: "reading", eta_seconds: 40 };

  assert.deepEqual(progressPhrase(progress, 10), { done: "2 of 5 pages · reading", left: "about 30 s left" });
  assert.equal(progressPhrase(progress, 42).left, "almost done");
  assert.equal(progressPhrase(progress, 60).left, "");
  assert.deepEqual(progressPhrase(progress, 10, true), { done: "2 of 5 pages · reading", left: "" });
  assert.equal(progressPhrase({ current: 1.87, total: 1200, unit: "pages" }, 0).done, "1 of 1,200 pages");
  assert.deepEqual(progressPhrase({ current: 7, total: null, unit: "tokens" }, 0), { done: "7 tokens", left: "" });
  const steps = { current: 37.2, total: 100, unit: "%", stage: "ocr", message: "page 1" };
  assert.equal(progressPhrase(steps, 0).done, "37 % · ocr · page 1");
  assert.deepEqual(progressPhrase(null, 0), { done: "", left: "" });
});

test("a place in the queue reads as one", () => {
  assert.equal(queuePhrase(null), "Waiting for a worker");
  assert.equal(queuePhrase({ position: 1 }), "Next in the queue");
  assert.equal(queuePhrase({ position: 1204, eta_seconds: 150 }), "Number 1,204 in the queue, about 3 min to wait");
});

test("durations and times are short", () => {
  assert.deepEqual([0.2, 75, 200, 9000].map(duration), ["0 s", "75 s", "3 min", "2.5 h"]);
  assert.equal(ago("2026-01-01T00:00:00Z", Date.UTC(2026, 0, 1, 0, 0, 20)), "just now");
  assert.equal(ago("2026-01-01T00:00:00Z", Date.UTC(2026, 0, 1, 0, 30)), "30 min ago");
});

test("a problem names the fields that are wrong", () => {
  const error = new GatewayError({ code: "invalid_input", detail: "Not valid.", errors: [{ field: "dpi", message: "at most 600" }] });

  assert.equal(errorPhrase(error), "Not valid. dpi: at most 600");
});

test("the page asks for all its modules at once, and for nothing from elsewhere", () => {
  const read = (/** @type {string} */ name) => readFileSync(new URL(`../${name}`, import.meta.url), "utf8");
  const html = read("index.html");
  const needed = new Set(["page.js"]);
  for (const name of needed) for (const [, other] of read(name).matchAll(/^(?:import|export) .*from "\.\/(.+)";$/gm)) needed.add(String(other));

  const preloaded = [...html.matchAll(/modulepreload" href="\/client\/(.+?)"/g)].map(([, name]) => name);

  assert.deepEqual(preloaded.sort(), [...needed].sort());
  assert.doesNotMatch(html, /(?:src|href)="(?:https?:)?\/\//);
  assert.doesNotMatch(html, /<style|style="|onclick=/);
});

test("text from the server never becomes markup", () => {
  const names = ["page.js", "page-job.js", "page-document.js", "page-form.js", "page-rest.js", "elements.js"];
  for (const name of names) {
    const source = readFileSync(new URL(`../${name}`, import.meta.url), "utf8");
    assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacentHTML|document\.write/, name);
  }
});
