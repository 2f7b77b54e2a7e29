/**
 * The page's own proof that nothing was lost: it counts the numbers of the events that reached it, without trusting the
 * client below it. Pure.
 */
export class Tally {
  /** The number that counting began after: 0, or a snapshot's. */
  start = 0;
  repeated = 0;
  /** @type {Set<number>} */
  #seen = new Set();
  #highest = 0;

  /** @param {import("./protocol.js").JobEvent} event */
  take(event) {
    if (event.type === "snapshot") {
      // It stands for all events up to its number.
      this.start = this.#highest = Number.parseInt(event.data.cursor, 10) || 0;
      this.#seen.clear();
    } else if (event.id !== undefined) {
      if (this.#seen.has(event.id)) this.repeated += 1;
      this.#seen.add(event.id);
      this.#highest = Math.max(this.#highest, event.id);
    }
  }

  get received() {
    return this.#seen.size;
  }

  get last() {
    return this.#highest;
  }

  get missed() {
    return this.#highest - this.start - this.#seen.size;
  }
}
