import "./dom.js";

import assert from "node:assert/strict";
import { test } from "node:test";

import { Fold } from "../fold.js";
import { event, JOB } from "./fake-gateway.js";

const { buildForm } = await import("../page-form.js");
const { drawRest, dropChannels } = await import("../page-rest.js");

/** @param {Fold} fold @param {[string, any][]} [outputs] */
function drawn(fold, outputs = []) {
  const pane = document.createElement("section");
  drawRest(() => pane, fold, new Map(outputs.map(([index, value]) => [index, event(1, "output", { index, value })])));
  return pane;
}

/** @param {HTMLElement} pane */
const blocks = (pane) => [...pane.children].map((block) => [block.tagName, ...[...block.children].map((part) => part.textContent)]);

test("reasoning has a heading, the answer has none, and a result that repeats them is folded away", () => {
  const fold = Fold.empty(JOB);
  fold.text = { reasoning: "Hm.", text: "Yes." };
  fold.end = { result: { text: "Yes.", finish_reason: "stop" } };

  assert.deepEqual(blocks(drawn(fold)), [
    ["DIV", "Reasoning", "Hm."],
    ["DIV", "Yes."],
    ["DETAILS", "Result", '{ "text": "Yes.", "finish_reason": "stop" }'],
  ]);
});

test("outputs and a result that says something new are there to be read, pages and other forms of it are not", () => {
  const fold = Fold.empty(JOB);
  fold.text = { text: "Yes." };
  fold.end = { result: { words: 1 } };

  const pane = drawn(fold, [["0", { line: "a\nb" }], ["ocr.page-1", {}], ["result.txt", "Yes."], ["notes", "plain"]]);

  assert.deepEqual(blocks(pane).slice(1), [
    ["DIV", "Output 0", '{ "line": "a\\nb" }'],
    ["DIV", "notes", "plain"],
    ["DIV", "Result", '{ "words": 1 }'],
  ]);
});

test("a text that a new attempt has not begun goes with its heading", () => {
  const fold = Fold.empty(JOB);
  fold.text = { reasoning: "Hm.", text: "Yes." };
  const pane = drawn(fold);
  fold.text = { text: "No." };

  dropChannels(pane, fold);
  drawRest(() => pane, fold, new Map());

  assert.deepEqual(blocks(pane), [["DIV", "No."]]);
});

test("a question is a chat, and a whole chat can be given as JSON", () => {
  const container = document.createElement("div");
  const schema = { properties: { messages: { anyOf: [{ type: "array", items: { type: "object" } }, { type: "null" }] } } };
  const form = buildForm(container, schema);
  const field = /** @type {HTMLTextAreaElement} */ (container.querySelector("textarea"));
  const read = (/** @type {string} */ text) => ((field.value = text), form.read());

  assert.deepEqual(read(" "), {});
  assert.deepEqual(read("Why?"), { messages: [{ role: "user", content: "Why?" }] });
  assert.deepEqual(read('[{"role": "system", "content": "Be brief."}]'), { messages: [{ role: "system", content: "Be brief." }] });
  assert.throws(() => read("[nothing"), { message: "messages: this is no valid JSON.", code: "invalid_input" });
});

test("a wrong field is marked and led to, wherever it is folded away, until the next try", () => {
  const container = document.createElement("div");
  document.body.append(container);
  const names = ["one", "two", "three", "four"];
  const form = buildForm(container, { properties: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });
  const marked = () => [...container.querySelectorAll("[aria-invalid]")].map(({ id }) => id);

  form.mark(["four.0.part"]);
  assert.deepEqual([marked(), document.activeElement?.id], [["option-four"], "option-four"]);
  assert.equal(container.querySelector("details")?.open, true);
  form.mark([]);
  assert.deepEqual(marked(), []);
});
