/**
 * Shows the pages of an OCR job: each picture with its boxes on one side, the lines on the other, tied together by
 * pointer and keyboard. It grows with the pages and touches only what changed, so a selection in the text stays.
 *
 * @typedef {import("./page-ocr.js").Page} Page
 * @typedef {import("./page-ocr.js").Line} Line
 * @typedef {{page: string, at: number}} Place
 *
 * @typedef {object} Shown what stands on the screen for a page
 * @property {number[]} order
 * @property {HTMLElement} sheet
 * @property {HTMLElement} figure
 * @property {HTMLElement} caption
 * @property {SVGSVGElement} boxes
 * @property {HTMLElement} section
 * @property {HTMLElement} lines
 * @property {HTMLElement} problem
 * @property {Line[]} drawn
 * @property {string | null} image
 */

import { make } from "./page-form.js";
import { compareParts } from "./page-order.js";
import { counted } from "./page-phrases.js";

const SVG = "http://www.w3.org/2000/svg";
// Below this the engine itself is in doubt; such lines are marked.
const DOUBTFUL = 0.6;
// So many lines at once come up as new ones. More are what stood in the log already, and thousands of animations at the
// same time stop a browser for half a minute.
const MOST_NEW = 12;

export class DocumentView {
  /** Whether the newest line is kept in view. */
  following = true;

  /** @type {Map<string, Shown>} */
  #shown = new Map();
  /** @type {WeakMap<Element, Place>} */
  #places = new WeakMap();
  /** @type {Element[]} */
  #marked = [];

  /**
   * @param {object} parts
   * @param {HTMLElement} parts.documentPane the scrolling box of the pictures
   * @param {HTMLElement} parts.textPane the scrolling box of the text
   * @param {(url: string, image: HTMLImageElement) => void} parts.showImage
   * @param {() => void} parts.onscroll called when the reader scrolls by hand
   */
  constructor({ documentPane, textPane, showImage, onscroll }) {
    this.documentPane = documentPane;
    this.textPane = textPane;
    this.showImage = showImage;
    for (const pane of [documentPane, textPane]) {
      pane.addEventListener("pointerover", ({ target }) => this.#point(target));
      pane.addEventListener("pointerleave", () => this.#mark(null));
      pane.addEventListener("click", ({ target }) => this.#visit(target));
      for (const type of ["wheel", "touchmove"]) pane.addEventListener(type, onscroll, { passive: true });
      pane.addEventListener("keydown", ({ key }) => /^(Arrow|Page|Home|End)/.test(key) && onscroll());
    }
    // Only what has just come fades in, not what a change of the view shows again.
    for (const pane of [documentPane, textPane]) {
      pane.addEventListener("animationend", ({ target }) => /** @type {Element} */ (target).classList.remove("new"));
    }
    textPane.addEventListener("focusin", ({ target }) => this.#point(target));
    textPane.addEventListener("keydown", (event) => this.#step(event));
  }

  clear() {
    this.#shown.clear();
    this.#marked = [];
    this.documentPane.replaceChildren();
    this.textPane.replaceChildren();
  }

  /** Bring the screen up to date with a page. @param {Page} page */
  update(page) {
    const shown = this.#shown.get(page.key) ?? this.#add(page);
    if (page.image && page.image !== shown.image) this.#picture(shown, page, page.image);
    if (page.width && page.height) {
      shown.sheet.style.setProperty("--ratio", `${page.width} / ${page.height}`);
      shown.boxes.setAttribute("viewBox", `0 0 ${page.width} ${page.height}`);
    }
    this.#draw(shown, page);
    shown.figure.classList.toggle("reading", !page.finished);
    const how = page.finished ? counted(page.lines.length, "line") : page.lines.length ? `reading, ${counted(page.lines.length, "line")} so far` : "reading";
    shown.caption.textContent = `${page.label} · ${how}`;
    shown.problem.hidden = !page.problem;
    if (page.problem) shown.problem.textContent = `This page could not be read: ${page.problem.detail ?? page.problem.code}`;
  }

  /** Keep the newest line of a page in view. @param {Page} page */
  follow(page) {
    const shown = this.#shown.get(page.key);
    if (!shown || !this.following) return;
    const last = page.lines.at(-1);
    const bottom = last?.box && page.height ? Math.max(...last.box.map(([, y]) => y)) / page.height : 0;
    const y = shown.sheet.offsetTop + bottom * shown.sheet.clientHeight;
    scrollTo(this.documentPane, y - this.documentPane.clientHeight * 0.6);
    const line = shown.lines.lastElementChild ?? shown.section;
    if (line instanceof HTMLElement) scrollTo(this.textPane, line.offsetTop - this.textPane.clientHeight * 0.7);
  }

  /** The place for what is no page, below them. @returns {HTMLElement} */
  rest() {
    const last = this.textPane.lastElementChild;
    if (last instanceof HTMLElement && last.classList.contains("rest")) return last;
    const rest = make("section", { className: "rest" });
    this.textPane.append(rest);
    return rest;
  }

  /** Bring its last part, the result, into view, unless somebody reads elsewhere. */
  showRest() {
    const heading = [...this.rest().querySelectorAll("h3")].at(-1);
    if (this.following && heading) scrollTo(this.textPane, heading.offsetTop - this.textPane.offsetTop);
  }

  /** @param {Page} page @returns {Shown} */
  #add({ key, label, order }) {
    const figure = make("figure", { className: "page" });
    const caption = make("figcaption");
    const sheet = make("div", { className: "sheet" });
    const boxes = document.createElementNS(SVG, "svg");
    // What the boxes say stands in the text pane, for those who can't see them.
    boxes.setAttribute("aria-hidden", "true");
    boxes.setAttribute("preserveAspectRatio", "none");
    sheet.append(boxes);
    figure.append(caption, sheet);
    const section = make("section", { className: "page-text" });
    const problem = make("p", { className: "note bad", hidden: true });
    const lines = make("div", { className: "lines" });
    section.append(make("h3", { textContent: label }), problem, lines);
    const shown = { order, sheet, figure, caption, boxes, section, lines, problem, drawn: [], image: null };
    // Pages may be read side by side, and come in any order.
    const after = this.#sorted().find((other) => compareParts(order, other.order) < 0);
    this.documentPane.insertBefore(figure, after?.figure ?? null);
    this.textPane.insertBefore(section, after?.section ?? this.textPane.querySelector(":scope > .rest"));
    this.#shown.set(key, shown);
    return shown;
  }

  /** @param {Shown} shown @param {Page} page @param {string} url */
  #picture(shown, page, url) {
    shown.image = url;
    shown.sheet.querySelector("img")?.remove();
    const image = make("img", { alt: `${page.label} as it was scanned`, loading: "lazy", decoding: "async" });
    shown.sheet.prepend(image);
    this.showImage(url, image);
  }

  /** @param {Shown} shown @param {Page} page */
  #draw(shown, page) {
    const grows = shown.drawn.every((line, at) => same(line, page.lines[at]));
    if (!grows) {
      shown.lines.replaceChildren();
      shown.boxes.replaceChildren();
      shown.drawn = [];
    }
    const look = page.lines.length - shown.drawn.length > MOST_NEW ? "" : "new";
    for (let at = shown.drawn.length; at < page.lines.length; at += 1) {
      const line = /** @type {Line} */ (page.lines[at]);
      this.#drawLine(shown, line, { page: page.key, at }, look);
    }
    shown.drawn = page.lines;
  }

  /** @param {Shown} shown @param {Line} line @param {Place} place @param {"new" | ""} look */
  #drawLine(shown, line, place, look) {
    const element = make("p", { className: `line ${look}`, textContent: line.text, tabIndex: place.at === 0 && shown === this.#sorted()[0] ? 0 : -1 });
    if (line.confidence !== null && line.confidence < DOUBTFUL) {
      element.classList.add("doubtful");
      element.title = `The engine is ${Math.round(line.confidence * 100)} % sure of this line`;
    }
    const box = document.createElementNS(SVG, "polygon");
    box.setAttribute("class", look);
    box.setAttribute("points", (line.box ?? []).map((point) => point.join(",")).join(" "));
    shown.lines.append(element);
    shown.boxes.append(box);
    this.#places.set(element, place);
    this.#places.set(box, place);
  }

  #sorted() {
    return [...this.#shown.values()].sort((one, other) => compareParts(one.order, other.order));
  }

  /** @param {Place} place */
  #pair({ page, at }) {
    const shown = this.#shown.get(page);
    const line = shown?.lines.children[at];
    const box = shown?.boxes.children[at];
    return line instanceof HTMLElement && box ? { line, box, shown: /** @type {Shown} */ (shown) } : null;
  }

  /** @param {EventTarget | null} target @returns {Place | undefined} */
  #placeOf(target) {
    const element = target instanceof Element ? (target.closest(".line") ?? target) : null;
    return element ? this.#places.get(element) : undefined;
  }

  /** @param {EventTarget | null} target */
  #point(target) {
    this.#mark(this.#placeOf(target) ?? null);
  }

  /** @param {Place | null} place */
  #mark(place) {
    for (const element of this.#marked) element.classList.remove("marked");
    const pair = place && this.#pair(place);
    this.#marked = pair ? [pair.line, pair.box] : [];
    for (const element of this.#marked) element.classList.add("marked");
  }

  /** A click in one pane shows the place in the other. @param {EventTarget | null} target */
  #visit(target) {
    const place = this.#placeOf(target);
    const pair = place && this.#pair(place);
    if (!pair || !(target instanceof Element)) return;
    if (target.closest(".line")) {
      // A click that ends a selection is no visit.
      if (String(getSelection())) return;
      const { top, height } = pair.box.getBoundingClientRect();
      const pane = this.documentPane.getBoundingClientRect();
      scrollTo(this.documentPane, this.documentPane.scrollTop + top - pane.top - pane.height / 2 + height / 2);
    } else {
      scrollTo(this.textPane, pair.line.offsetTop - this.textPane.clientHeight / 2);
    }
    this.#mark(place);
  }

  /** Arrow keys go from line to line once one has the focus. @param {KeyboardEvent} event */
  #step(event) {
    const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const from = event.target instanceof Element ? event.target.closest(".line") : null;
    if (!way || !(from instanceof HTMLElement)) return;
    const all = [...this.textPane.querySelectorAll(".line")];
    const to = all[all.indexOf(from) + way];
    if (!(to instanceof HTMLElement)) return;
    event.preventDefault();
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
    this.#visitBox(to);
  }

  /** @param {HTMLElement} line */
  #visitBox(line) {
    const place = this.#places.get(line);
    const pair = place && this.#pair(place);
    pair?.box.scrollIntoView({ block: "nearest" });
  }
}

/** @param {Line} one @param {Line | undefined} other */
function same(one, other) {
  return other !== undefined && one.text === other.text && String(one.box) === String(other.box);
}

/** @param {HTMLElement} pane @param {number} top */
function scrollTo(pane, top) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  pane.scrollTo({ top: Math.max(0, top), behavior: still ? "auto" : "smooth" });
}
