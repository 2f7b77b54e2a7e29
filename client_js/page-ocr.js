/**
 * The pages of an OCR job, put together from its outputs. Pure.
 *
 * A pipeline has them under the name of the step that reads (`ocr.page-3`); of several such steps the first to speak is
 * shown, since their pages have the same numbers.
 *
 * Outputs come as `page-3.image` (the picture that was read), `page-3.lines-0`, `-1`, ... (lines as they are read) and
 * `page-3` (the finished page, which replaces its pieces, or the problem that it met).
 *
 * @typedef {import("./protocol.js").JobEvent} JobEvent
 * @typedef {{text: string, box: [number, number][] | null, confidence: number | null}} Line
 *
 * @typedef {object} Page
 * @property {number} number
 * @property {number | null} width
 * @property {number | null} height
 * @property {string | null} image where its picture is
 * @property {string | null} source `scan` or `text layer`, as the kind names it
 * @property {Line[]} lines in reading order
 * @property {string} text
 * @property {boolean} finished
 * @property {{code?: string, detail?: string} | null} problem
 */

const INDEX = /^((?:[^.]+\.)*)page-([0-9]{1,7})(?:\.(image)|\.lines-([0-9]{1,7}))?$/;

export class OcrPages {
  /** @type {Map<number, Page>} */
  pages = new Map();
  /** @type {Map<number, Map<number, Line[]>>} */
  #pieces = new Map();
  /** The step that reads, with a dot; empty without steps. @type {string | null} */
  #step = null;

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
    const step = match[1] ?? "";
    this.#step ??= step;
    if (step !== this.#step) return null;
    const page = this.#page(Number(match[2]));
    if (match[3]) page.image = data.url ?? null;
    else if (match[4] === undefined) this.#finish(page, data.value ?? {});
    else if (!page.finished) this.#addLines(page, Number(match[4]), data.value ?? {});
    return page;
  }

  /** A new attempt reads unfinished pages from their start. @returns {Page[]} the pages that it changed */
  restart() {
    const open = [...this.pages.values()].filter(({ finished }) => !finished);
    for (const page of open) {
      this.#pieces.delete(page.number);
      page.lines = [];
      page.text = "";
    }
    return open;
  }

  /** All pages, in order. */
  sorted() {
    return [...this.pages.values()].sort((one, other) => one.number - other.number);
  }

  get lineCount() {
    return this.sorted().reduce((sum, page) => sum + page.lines.length, 0);
  }

  /** The text so far, pages parted by an empty line. */
  text() {
    return this.sorted().map(({ text }) => text).filter(Boolean).join("\n\n");
  }

  /** @param {number} number @returns {Page} */
  #page(number) {
    const known = this.pages.get(number);
    if (known) return known;
    const page = { number, width: null, height: null, image: null, source: null, lines: [], text: "", finished: false, problem: null };
    this.pages.set(number, page);
    return page;
  }

  /** @param {Page} page @param {Record<string, any>} value */
  #finish(page, value) {
    page.finished = true;
    page.problem = value.problem ?? null;
    measure(page, value);
    if (Array.isArray(value.lines)) page.lines = value.lines.map(readLine);
    page.text = typeof value.text === "string" ? value.text : textOf(page.lines);
    this.#pieces.delete(page.number);
  }

  /** @param {Page} page @param {number} piece @param {Record<string, any>} value */
  #addLines(page, piece, value) {
    measure(page, value);
    const pieces = this.#pieces.get(page.number) ?? new Map();
    this.#pieces.set(page.number, pieces.set(piece, (value.lines ?? []).map(readLine)));
    page.lines = [...pieces].sort(([one], [other]) => one - other).flatMap(([, lines]) => lines);
    page.text = textOf(page.lines);
  }
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
