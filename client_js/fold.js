/**
 * What an event log up to event N amounts to. Pure, and the same rules as the gateway's `fold.py`: its JSON is what a
 * `snapshot` event holds. `tests/wire/` has logs that both must fold alike.
 *
 * @import { EndData, JobEvent, ProgressData, Snapshot, SnapshotEvent, State } from "./protocol.js"
 */

import { cursorOf, numberOf } from "./protocol.js";

/** [state, event type] -> state; a pair that is missing is an illegal change. @type {Record<string, State>} */
export const TRANSITIONS = {
  "null queued": "queued",
  "queued started": "running",
  "queued cancelled": "cancelled",
  "queued failed": "failed",
  "running retrying": "queued",
  "running succeeded": "succeeded",
  "running failed": "failed",
  "running cancelled": "cancelled",
};
const CHANGING = new Set(Object.keys(TRANSITIONS).map((pair) => pair.split(" ")[1]));
export const TERMINAL = new Set(["succeeded", "failed", "cancelled"]);

/** The state of a job at a place in its log. `apply` changes it in place. */
export class Fold {
  cursor = "0";
  /** @type {State | null} */
  state = null;
  attempt = 0;
  /** @type {ProgressData | null} */
  progress = null;
  /** What each channel's deltas add up to. @type {Record<string, string>} */
  text = noText();
  /**
   * How many `output` events there were. An index that was replaced counts again: a fold that began with a snapshot does
   * not know the indexes, and it must not differ from one that read the whole log.
   */
  outputs = 0;
  cancelRequested = false;
  /** The terminal event's data. @type {EndData} */
  end = {};

  /** @param {string} job */
  constructor(job) {
    this.job = job;
  }

  /** @param {string} job */
  static empty(job) {
    return new Fold(job);
  }

  /** @param {Pick<SnapshotEvent, "job" | "type" | "data">} event */
  static fromSnapshot(event) {
    const { cursor, state, attempt, progress, text, outputs, cancel_requested } = event.data;
    const fold = new Fold(event.job);
    fold.cursor = cursor;
    fold.state = state;
    fold.attempt = attempt;
    fold.progress = progress ?? null;
    fold.text = Object.assign(noText(), text);
    fold.outputs = outputs;
    fold.cancelRequested = cancel_requested ?? false;
    fold.end = withoutOwn(event.data);
    return fold;
  }

  get terminal() {
    return this.state !== null && TERMINAL.has(this.state);
  }

  /**
   * Take the next numbered event. Throws `RangeError` for a change that the protocol forbids and for a hole or a repeat
   * in the numbers.
   * @param {JobEvent} event
   * @returns {this}
   */
  apply(event) {
    const cursor = event.type === "snapshot" ? null : cursorOf(event);
    if (cursor === null) throw new RangeError(`${event.type} has no number, so it changes nothing`);
    if (event.id !== numberOf(this.cursor) + 1) {
      throw new RangeError(`event ${event.id} can't follow event ${numberOf(this.cursor)}`);
    }
    this.state = this.#next(event.type);
    this.cursor = cursor;
    this.#take(event);
    return this;
  }

  /** The data of a snapshot event. @returns {Snapshot & EndData} */
  data() {
    return {
      cursor: this.cursor,
      state: this.state,
      attempt: this.attempt,
      progress: this.progress,
      text: { ...this.text },
      outputs: this.outputs,
      cancel_requested: this.cancelRequested,
      ...this.end,
    };
  }

  /** @param {string} type @returns {State | null} */
  #next(type) {
    const next = TRANSITIONS[`${this.state} ${type}`];
    if (next) return next;
    if (CHANGING.has(type) || this.state !== "running") {
      throw new RangeError(`the event ${type} is not possible while the job is ${this.state ?? "not yet there"}`);
    }
    return this.state;
  }

  /** @param {JobEvent} event */
  #take(event) {
    const { type, attempt, data } = event;
    if (type === "started") {
      this.attempt = attempt ?? this.attempt + 1;
      if (this.attempt > 1) {
        this.progress = null;
        this.text = noText();
      }
    } else if (type === "progress") {
      this.progress = data;
    } else if (type === "delta") {
      const channel = data.channel ?? "text";
      this.text[channel] = (this.text[channel] ?? "") + (data.text ?? "");
    } else if (type === "output") {
      this.outputs += 1;
    } else if (type === "cancel_requested") {
      this.cancelRequested = true;
    } else if (event.terminal) {
      this.end = withoutOwn(event.data);
    }
  }
}

/**
 * What the terminal event says, but for the names that a snapshot has for itself: they stand beside each other.
 * @param {EndData & Partial<Snapshot>} data
 * @returns {EndData}
 */
function withoutOwn({ cursor, state, attempt, progress, text, outputs, cancel_requested, ...end }) {
  return end;
}

/** Without a prototype: a channel may have any name. @returns {Record<string, string>} */
function noText() {
  return Object.create(null);
}

/**
 * What a log amounts to.
 * @param {string} job
 * @param {Iterable<JobEvent>} events
 */
export function foldLog(job, events) {
  const fold = Fold.empty(job);
  for (const event of events) fold.apply(event);
  return fold;
}
