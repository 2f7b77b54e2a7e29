/**
 * A listener's place in a job's event log: it opens connections, one after the other, and hands on every event once,
 * in order, until the terminal one. What was cut is resumed from the last event that was handed on.
 *
 * @import { JobEvent } from "./protocol.js"
 * @import { Connect, Transport } from "./transports.js"
 */

/**
 * How the connection is doing: `waiting` for the next try after a cut; `ended` for good.
 * @typedef {"idle" | "connecting" | "open" | "waiting" | "ended"} ConnectionState
 */

import { Backoff, pause, unless } from "./backoff.js";
import { GatewayError } from "./errors.js";
import { cursorOf, numberOf } from "./protocol.js";

// A log that shows the same hole, or the same unreadable event, again and again is broken; going on would hide it, going
// round would never end.
const MAX_FRUITLESS_CONNECTIONS = 3;
const FRUITLESS = new Set(["hole", "bad_stream"]);
// Proxies that strip WebSocket upgrades do so every time; one refusal alone may be a restart.
const MAX_WEBSOCKET_REFUSALS = 2;

/**
 * What `client.events()` answers: loop over it with `for await`. It is read once.
 * @template [Result=unknown]
 * @template [Output=unknown]
 * @implements {AsyncIterable<JobEvent<Result, Output>>}
 */
export class Subscription {
  /** What the next connection resumes from. */
  cursor = "";
  /** @type {ConnectionState} */
  state = "idle";
  /** What ended the last connection, until the next one is open. @type {Error | null} */
  lastError = null;
  /** When the next connection is tried (`Date.now()`), while `state` is `waiting`. @type {number | null} */
  nextTryAt = null;
  /** Connections that were opened after the first one. */
  reconnects = 0;
  /** Numbered events that were handed on. */
  received = 0;
  /** Numbered events that came although they had been handed on; they are dropped. */
  repeated = 0;
  /** Numbers that a stream jumped over without saying so; the events are fetched before anything else is handed on. */
  holes = 0;
  /** How often the gateway said that a part of the log is gone; a snapshot took its place. */
  resets = 0;

  #options;
  #fruitless = 0;
  #refusals = 0;
  /** @type {AbortController | null} */
  #connection = null;
  #started = false;

  /**
   * @param {object} options
   * @param {Transport} options.transport
   * @param {Transport} [options.fallback] takes over where WebSockets don't pass
   * @param {(signal: AbortSignal) => Promise<Omit<Connect, "after" | "snapshot" | "signal"> & {renews?: (error: unknown)
   *   => boolean}>} options.connect what a connection needs, asked anew each time; `renews`: whether what went wrong is
   *   that a token's time was over, so that the next connection has a fresh one
   * @param {string} [options.after]
   * @param {boolean} [options.snapshot]
   * @param {boolean} [options.contiguous] false where `types` leaves events out
   * @param {AbortSignal} [options.signal]
   * @param {Backoff} [options.backoff]
   * @param {(subscription: Subscription) => void} [options.onconnection] called when `state` changes
   */
  constructor({ after = "", snapshot = false, contiguous = true, backoff = new Backoff(), ...rest }) {
    this.#options = { snapshot, contiguous, backoff, ...rest };
    this.cursor = after === "0" ? "" : after;
  }

  /** The transport that the next connection uses. */
  get transport() {
    return this.#options.transport;
  }

  /**
   * End the present connection as a network would. The subscription resumes by itself.
   * @param {number} [pauseMs] the least time until it does
   */
  cut(pauseMs) {
    const problem = { code: "cut", detail: "This connection was cut on purpose." };
    this.#connection?.abort(new GatewayError(problem, { retryAfterMs: pauseMs }));
  }

  /** Change to another transport: the present connection ends, the next one resumes where it was. @param {Transport} transport */
  use(transport) {
    this.#options.transport = transport;
    this.#refusals = 0;
    this.cut(0);
  }

  /** Read until the signal says stop, for where it is not known when the subscription is made. @param {AbortSignal} signal */
  until(signal) {
    this.#options.signal = signal;
    return this;
  }

  /**
   * Read the events. Leaving the loop closes the connection. Throws `GatewayError` for what coming back can't mend
   * (unknown job, expired, not allowed), and the signal's reason when it is aborted.
   * @returns {AsyncGenerator<JobEvent<Result, Output>, void, void>}
   */
  async *[Symbol.asyncIterator]() {
    if (this.#started) throw new TypeError("a subscription is read once; ask the client for another one");
    this.#started = true;
    const { signal, backoff } = this.#options;
    try {
      for (let first = true; ; first = false) {
        signal?.throwIfAborted();
        if (!first) this.reconnects += 1;
        const wishMs = yield* this.#readConnection();
        if (wishMs === "ended") return;
        const ms = backoff.nextMs(wishMs);
        this.nextTryAt = Date.now() + ms;
        this.#enter("waiting");
        await pause(ms, signal);
        this.nextTryAt = null;
      }
    } finally {
      this.#enter("ended");
    }
  }

  /** One connection. @returns {AsyncGenerator<JobEvent<any, any>, number | null | "ended", void>} the server's wish for the pause */
  async *#readConnection() {
    const { transport, connect, signal, backoff } = this.#options;
    const connection = new AbortController();
    const onAbort = () => connection.abort(signal?.reason);
    signal?.addEventListener("abort", onAbort);
    this.#connection = connection;
    this.#enter("connecting");
    let wishMs = null;
    let first = true;
    let asked;
    try {
      asked = await unless(connection.signal, connect(connection.signal));
      connection.signal.throwIfAborted();
      const { snapshot } = this.#options;
      for await (const frame of transport({ ...asked, after: this.cursor, snapshot, signal: connection.signal })) {
        if (this.state === "connecting" && frame.kind !== "ended") {
          this.lastError = null;
          this.#enter("open");
        } else if (first) {
          first = false;
        } else {
          // The second sign of life: not only accepted, but served.
          backoff.reset();
        }
        if (frame.kind === "ended") return "ended";
        if (frame.kind === "retry") backoff.baseMs = frame.ms;
        if (frame.kind === "cursor") this.cursor = frame.cursor;
        if (frame.kind !== "event" || !this.#accept(frame.event)) continue;
        if (frame.event.type === "closing") wishMs = Number(frame.event.data.retry_seconds ?? 1) * 1000;
        yield frame.event;
        if (frame.event.terminal) return "ended";
        // Cut while the consumer had the event: what the transport still holds belongs to the dead connection.
        connection.signal.throwIfAborted();
      }
      return wishMs;
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      this.lastError = /** @type {Error} */ (error);
      if (asked?.renews?.(error)) return 0;
      if (!(error instanceof GatewayError) || !error.mayPass) throw error;
      if (FRUITLESS.has(error.code) && (this.#fruitless += 1) >= MAX_FRUITLESS_CONNECTIONS) throw error;
      if (error.code === "websocket_refused" && (this.#refusals += 1) >= MAX_WEBSOCKET_REFUSALS) {
        this.#options.transport = this.#options.fallback ?? transport;
      }
      return error.retryAfterMs ?? wishMs;
    } finally {
      this.#connection = null;
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** Keep the place: whether the event is to be handed on. @param {JobEvent} event */
  #accept(event) {
    if (event.type === "reset") this.resets += 1;
    const cursor = cursorOf(event);
    if (cursor === null) return true;
    if (event.type !== "snapshot") {
      const expected = numberOf(this.cursor) + 1;
      const number = numberOf(cursor);
      if (number < expected) {
        this.repeated += 1;
        return false;
      }
      if (number > expected && this.#options.contiguous) this.#refuseHole(expected, number);
      this.received += 1;
    }
    this.#fruitless = 0;
    this.#options.snapshot = false;
    this.cursor = cursor;
    return true;
  }

  /** @param {number} expected @param {number} number */
  #refuseHole(expected, number) {
    this.holes += number - expected;
    const detail = `Event ${number} came where event ${expected} belongs. The log is read again from there.`;
    throw new GatewayError({ code: "hole", detail }, { mayPass: true });
  }

  /** @param {ConnectionState} state */
  #enter(state) {
    if (this.state === state) return;
    this.state = state;
    this.#options.onconnection?.(this);
  }
}
