/**
 * Shows what a job brings that is no page of a document: its texts by channel, its outputs, its result.
 *
 * @import { Fold } from "./fold.js"
 * @import { OutputEvent } from "./protocol.js"
 */

import { growText } from "./elements.js";
import { make } from "./page-form.js";
import { OcrPages } from "./page-ocr.js";

// The channel that an answer comes in; it needs no heading.
const ANSWER = "text";
// A value that fits a line is easier to read on one.
const SHORT = 80;
// What is left below a text that is followed to its end.
const MARGIN_PX = 24;

/**
 * @param {() => HTMLElement} place where it goes, made when there is something to put there
 * @param {Fold} fold
 * @param {Map<string, OutputEvent>} outputs
 */
export function drawRest(place, fold, outputs) {
  const channels = Object.entries(fold.text);
  for (const [channel, text] of channels) growText(slot(place(), `channel-${channel}`, channelTitle(channel)), text);
  for (const [index, { data }] of outputs) {
    // A page is drawn elsewhere; another form of the result is there to be downloaded.
    if (OcrPages.knows(index) || /(^|\.)result\./.test(index)) continue;
    const value = data.value === undefined ? `${data.content_type}, ${data.size ?? "?"} bytes` : data.value;
    fill(slot(place(), `output-${index}`, /^[0-9]+$/.test(index) ? `Output ${index}` : index), value);
  }
  const { result = null } = fold.end;
  if (result === null || result === fold.text[ANSWER]) return;
  // What was said word by word is not said again, but to those who ask for it.
  const repeats = typeof result === "object" && channels.some(([, text]) => Object.values(result).includes(text));
  fill(slot(place(), "result", "Result", repeats), result);
}

/** Take away the texts that a new attempt has not begun yet. @param {HTMLElement} pane @param {Fold} fold */
export function dropChannels(pane, fold) {
  for (const block of /** @type {NodeListOf<HTMLElement>} */ (pane.querySelectorAll("[data-slot^=channel-]"))) {
    const channel = (block.dataset.slot ?? "").slice("channel-".length);
    if (!(channel in fold.text)) block.remove();
  }
}

/**
 * Draw, and keep the end of what grows in view for a reader who is there.
 * @param {HTMLElement} pane
 * @param {() => void} draw
 */
export function followEnd(pane, draw) {
  const end = () => (pane.lastElementChild ?? pane).getBoundingClientRect().bottom;
  const before = end();
  draw();
  const beyond = end() + MARGIN_PX - innerHeight;
  if (before <= innerHeight && beyond > 0) scrollBy({ top: beyond });
}

/** @param {string} channel */
function channelTitle(channel) {
  if (channel === ANSWER) return "";
  const words = channel.replaceAll(".", " · ").replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** @param {HTMLElement} text @param {unknown} value */
function fill(text, value) {
  text.classList.toggle("json", typeof value !== "string");
  growText(text, typeof value === "string" ? value : json(value));
}

/** @param {unknown} value */
function json(value) {
  const lines = JSON.stringify(value, null, 2);
  // No string of JSON holds a line break as it is, so that these are all between values.
  const line = lines.replaceAll(/\n */g, " ");
  return line.length <= SHORT ? line : lines;
}

/**
 * The text of this name; made, with its heading, where it is not there yet.
 * @param {HTMLElement} place
 * @param {string} name
 * @param {string} title
 * @param {boolean} [folded] whether it opens only at a click
 */
function slot(place, name, title, folded = false) {
  const found = [...place.children].find((block) => /** @type {HTMLElement} */ (block).dataset.slot === name);
  if (found) return /** @type {HTMLElement} */ (found.lastElementChild);
  const block = make(folded ? "details" : "div", { className: "block" });
  block.dataset.slot = name;
  if (title) block.append(make(folded ? "summary" : "h3", { textContent: title }));
  const text = make("pre", { className: "plain-text" });
  block.append(text);
  place.append(block);
  return text;
}
