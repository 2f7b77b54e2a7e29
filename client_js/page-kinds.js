/**
 * Which kinds of work the page offers, and in which order. Pure.
 *
 * @typedef {import("./protocol.js").KindDocument & {workers?: number}} Kind
 */

import { compareParts } from "./page-order.js";

// What the product brings along comes after what somebody added to it, since that is what they came for.
const BUILT_IN = ["ocr", "llm", "http"];
const FILES = ["required", "optional", "none"];

/**
 * The kinds to offer, the one to begin with first: an application's own before the built-in ones, those that take
 * files before those that don't, and else by name. One that is only a step of others is offered to who names it.
 * @param {Kind[]} kinds
 * @param {string | null} [named]
 */
export function offered(kinds, named = null) {
  return kinds.filter(({ kind, listed }) => listed !== false || kind === named).sort((one, other) => compareParts(rank(one), rank(other)));
}

/** @param {Kind} kind @returns {[number, number, string]} */
function rank({ kind, files }) {
  return [BUILT_IN.indexOf(kind), FILES.indexOf(files), kind];
}
