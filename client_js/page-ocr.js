/**
 * The pages of an OCR job, put together from its outputs. Pure.
 *
 * A pipeline has them under the name of the step that reads (`ocr.page-3`, `ocr.0.page-3` where a step reads several
 * times); each step has pages of its own, shown in the order in which the steps began.
 *
 * Outputs come as `page-3.image` (the picture that was read), `page-3.lines-0`, `-1`, ... (lines as they are read) and
 * `page-3` (the finished page, which replaces its pieces, or the problem that it met).
 *
 * @typedef {{text: string, box: [number, number][] | null, confidence: number | null}} Line
 *
 * @typedef {object} Page
 * @property {string} key its own among all pages of the job
 * @property {string} label what it is called
 * @property {number[]} order its place among all pages, to be compared part by part
 * @property {number | null} width
 * @property {number | null} height
 * @property {string | null} image where its picture is
 * @property {string | null} source `scan` or `text layer`, as the kind names it
 * @property {Line[]} lines in reading order
 * @property {string} text
 * @property {boolean} finished
 * @property {{code?: string, detail?: string} | null} problem
 */

import { compareParts } from "./page-order.js";

const INDEX = /^((?:[^.]+\.)*)page-([0-9]{1,7})(?:\.(image)|\.lines-([0-9]{1,7}))?$/;

const NUMBER = /^[0-9]+$/;
const EMPTY = { width: null, height: null, image: null, source: null, text: "", finished: false, problem: null };

export class OcrPages {
  /** By their keys. @type {Map<string, Page>} */
  pages = new Map();
  /** @type {Map<string, Map<number, Line[]>>} */
  #pieces = new Map();
  /** The names of the steps that read, without numbers, in the order in which they began. @type {string[]} */
  #names = [];

  /** Whether an output belongs to a page. @param {string} index */
  static knows(index) {
    return INDEX.test(index);
  }

  /**
   * Take an output.
   * @param {string} index
   * @param {Record<string, any>} data the output event's data; `value` must be there, but for images
   * @returns {Page | null} the page that it changed
   */
  take(index, data) {
    const match = INDEX.exec(index);
    if (!match) return null;
    const page = this.#page((match[1] ?? "").slice(0, -1), Number(match[2]));
    if (match[3]) page.image = data.url ?? null;
    else if (match[4] === undefined) this.#finish(page, data.value ?? {});
    else if (!page.finished) this.#addLines(page, Number(match[4]), data.value ?? {});
    return page;
  }

  /** A new attempt reads unfinished pages from their start. @returns {Page[]} the pages that it changed */
  restart() {
    const open = [...this.pages.values()].filter(({ finished }) => !finished);
    for (const page of open) {
      this.#pieces.delete(page.key);
      page.lines = [];
      page.text = "";
    }
    return open;
  }

  /** All pages, in order. */
  sorted() {
    return [...this.pages.values()].sort((one, other) => compareParts(one.order, other.order));
  }

  get lineCount() {
    return this.sorted().reduce((sum, page) => sum + page.lines.length, 0);
  }

  /** The text so far, pages parted by an empty line. */
  text() {
    return this.sorted().map(({ text }) => text).filter(Boolean).join("\n\n");
  }

  /** @param {string} step @param {number} number @returns {Page} */
  #page(step, number) {
    const key = `${step}.${number}`;
    const known = this.pages.get(key);
    if (known) return known;
    const page = { key, label: labelOf(step, number), order: [...this.#place(step), number], ...EMPTY, lines: [] };
    this.pages.set(key, page);
    return page;
  }

  /** A step's place: when the first of its name began, then its numbers. @param {string} step */
  #place(step) {
    const parts = step.split(".");
    const name = parts.filter((part) => !NUMBER.test(part)).join(".");
    if (!this.#names.includes(name)) this.#names.push(name);
    return [this.#names.indexOf(name), ...parts.filter((part) => NUMBER.test(part)).map(Number)];
  }

  /** @param {Page} page @param {Record<string, any>} value */
  #finish(page, value) {
    page.finished = true;
    page.problem = value.problem ?? null;
    measure(page, value);
    if (Array.isArray(value.lines)) page.lines = value.lines.map(readLine);
    page.text = typeof value.text === "string" ? value.text : textOf(page.lines);
    this.#pieces.delete(page.key);
  }

  /** @param {Page} page @param {number} piece @param {Record<string, any>} value */
  #addLines(page, piece, value) {
    measure(page, value);
    const pieces = this.#pieces.get(page.key) ?? new Map();
    this.#pieces.set(page.key, pieces.set(piece, (value.lines ?? []).map(readLine)));
    page.lines = [...pieces].sort(([one], [other]) => one - other).flatMap(([, lines]) => lines);
    page.text = textOf(page.lines);
  }
}

/** @param {string} step @param {number} number */
function labelOf(step, number) {
  // A step that is done several times is counted from 0 by machines, and from 1 by people.
  const name = step.split(".").map((part) => (NUMBER.test(part) ? Number(part) + 1 : part)).join(" ");
  return name ? `${name}, page ${number}` : `Page ${number}`;
}

/** @param {Page} page @param {Record<string, any>} value */
function measure(page, value) {
  page.width = value.width ?? page.width;
  page.height = value.height ?? page.height;
  page.source = value.source ?? page.source;
}

/** @param {Record<string, any>} line @returns {Line} */
function readLine({ text = "", box = null, confidence = null }) {
  return { text: String(text), box: Array.isArray(box) ? box : null, confidence };
}

/** @param {Line[]} lines */
function textOf(lines) {
  return lines.map(({ text }) => text).join("\n");
}
