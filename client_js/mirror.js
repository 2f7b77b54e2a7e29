/**
 * What a page shows of a job: its fold, its outputs, where it waits, whether its worker lives, how the connection does.
 * The React hook, the elements and the product page all read this one.
 *
 * @import { GatewayClient } from "./client.js"
 * @import { JobEvent, OutputEvent, Problem, ProgressData, State } from "./protocol.js"
 * @import { ConnectionState } from "./subscription.js"
 * @import { TransportName } from "./transports.js"
 */

/**
 * When a worker last showed that it lives, on this page's clock, and whether the gateway finds that too long ago.
 * @typedef {{worker: string, seenAt: number, late: boolean}} WorkerSign
 */

/**
 * A job's present picture. It never changes; a new one takes its place.
 * @template [Result=unknown]
 * @template [Output=unknown]
 * @typedef {object} JobView
 * @property {string} id
 * @property {State | null} state null until the first event is there
 * @property {boolean} terminal whether the job has ended
 * @property {number} attempt which try at it this is; 0 before the first
 * @property {ProgressData | null} progress
 * @property {Record<string, string>} text what each channel's text amounts to
 * @property {OutputEvent<Output>[]} outputs the newest of each index
 * @property {Result | null} result of a job that succeeded, unless it is large
 * @property {string | null} resultUrl where a large result is; `client.result(id)` fetches it
 * @property {boolean} partial whether parts of the result are missing
 * @property {Problem | null} problem why it failed
 * @property {string | null} reason why it was cancelled
 * @property {boolean} cancelRequested whether somebody asked for its end
 * @property {{position: number | null, eta_seconds?: number | null} | null} position its place in the queue
 * @property {WorkerSign | null} worker
 * @property {ConnectionState} connection
 * @property {number} reconnects how often the connection came back
 * @property {Error | null} error what ended the following for good, such as a `GatewayError` for an unknown job
 */

/**
 * @typedef {object} MirrorOptions
 * @property {TransportName | undefined} [transport]
 * @property {boolean | undefined} [snapshot]
 * @property {(event: JobEvent) => void} [onevent] every event of the stream, once
 * @property {(event: OutputEvent) => void} [onoutput] every output, also those that a snapshot only counts
 * @property {() => void} [onchange] after events, once for all that came together, and when the connection changes
 */

import { Backoff, pause } from "./backoff.js";
import { GatewayError } from "./errors.js";
import { Fold } from "./fold.js";
import { TRANSPORTS } from "./transports.js";

// A healthy worker shows itself every third of its lease: every 10 s by default.
const LATE_SECONDS = 12;
// The gateway writes these itself; all other numbered events are a sign of the worker.
const NOT_FROM_WORKER = new Set(["queued", "retrying", "cancel_requested", "failed", "cancelled"]);

export class JobMirror {
  /** The newest output of each index. @type {Map<string, OutputEvent>} */
  outputs = new Map();
  /** @type {{position: number | null, eta_seconds?: number | null} | null} */
  position = null;
  /** @type {WorkerSign | null} */
  worker = null;
  /** What ended the following, if it can't go on. @type {Error | null} */
  error = null;

  /** This page's clock less the gateway's, in ms. @type {number | null} */
  #skewMs = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #telling;
  #options;

  /**
   * @param {GatewayClient} client
   * @param {string} id
   * @param {MirrorOptions} [options]
   */
  constructor(client, id, options = {}) {
    this.client = client;
    this.id = id;
    this.fold = Fold.empty(id);
    this.#options = options;
    const { transport, snapshot } = options;
    this.subscription = client.events(id, { transport, snapshot, onconnection: () => this.#changed() });
  }

  /**
   * Follow the job to its end. Aborting ends it without an error; what can't be mended is kept in `error`.
   * @param {AbortSignal} signal
   */
  async run(signal) {
    try {
      for await (const event of this.subscription.until(signal)) {
        await this.#take(event, signal);
        this.#changed();
      }
    } catch (error) {
      if (!signal.aborted) this.error = /** @type {Error} */ (error);
    }
    if (signal.aborted) clearTimeout(this.#telling);
    else this.#changed();
  }

  /** @param {TransportName} transport */
  use(transport) {
    this.subscription.use(TRANSPORTS[transport]);
  }

  /** Seconds since the worker's last sign of life; null while no worker has the job. */
  silentSeconds() {
    return this.worker && Math.max(0, (Date.now() - this.worker.seenAt) / 1000);
  }

  /** An unchanging picture, for those who compare. @returns {JobView} */
  view() {
    const { fold, subscription } = this;
    const { result = null, result_url = null, problem = null, partial = false, reason = null } = fold.end;
    return {
      ...{ id: this.id, state: fold.state, terminal: fold.terminal, attempt: fold.attempt, progress: fold.progress },
      ...{ text: { ...fold.text }, outputs: [...this.outputs.values()], position: this.position, worker: this.worker },
      ...{ result, resultUrl: result_url, problem, partial, reason, cancelRequested: fold.cancelRequested },
      ...{ connection: subscription.state, reconnects: subscription.reconnects, error: this.error },
    };
  }

  /** @param {JobEvent} event @param {AbortSignal} signal */
  async #take(event, signal) {
    const { type, data } = event;
    if (type === "snapshot") {
      this.fold = Fold.fromSnapshot(event);
      this.#options.onevent?.(event);
      return this.#readOutputs(signal);
    }
    if (event.id === undefined) {
      if (event.time) this.#skewMs = Date.now() - Date.parse(event.time);
      if (type === "position") this.position = { position: data.position ?? null, eta_seconds: data.eta_seconds };
      if (type === "liveness") this.#seen(data.worker, Date.now() - data.silent_seconds * 1000, data.silent_seconds);
      if (type === "reset") this.outputs.clear();
    } else {
      this.fold.apply(event);
      if (this.fold.state !== "queued") this.position = null;
      if (this.fold.state !== "running") this.worker = null;
      else if (!NOT_FROM_WORKER.has(type)) this.#seenBy(event);
    }
    this.#options.onevent?.(event);
    if (event.type === "output") this.#output(event);
  }

  /**
   * A snapshot only counts the outputs; what comes later in the log replaces what is read here.
   * @param {AbortSignal} signal
   */
  async #readOutputs(signal) {
    const backoff = new Backoff();
    for (;;) {
      try {
        for await (const output of this.client.outputs(this.id, { signal })) this.#output(output);
        return;
      } catch (error) {
        if (!(error instanceof GatewayError) || !error.mayPass) throw error;
        await pause(backoff.nextMs(error.retryAfterMs), signal);
      }
    }
  }

  /** @param {OutputEvent} event */
  #output(event) {
    const known = this.outputs.get(event.data.index);
    if (known && known.id >= event.id) return;
    this.outputs.set(event.data.index, event);
    this.#options.onoutput?.(event);
  }

  /** A numbered event tells when its worker lived, but on the server's clock. @param {JobEvent} event */
  #seenBy(event) {
    const worker = event.type === "started" ? event.data.worker : (this.worker?.worker ?? "");
    this.#seen(worker, Math.min(Date.now(), Date.parse(event.time ?? "") + (this.#skewMs ?? 0)));
  }

  /** @param {string} worker @param {number} seenAt @param {number} [silentSeconds] */
  #seen(worker, seenAt, silentSeconds = 0) {
    if (this.fold.state !== "running") return;
    const late = silentSeconds >= LATE_SECONDS;
    if (!late && !(seenAt > (this.worker?.seenAt ?? 0))) return;
    this.worker = { worker, seenAt: Math.max(seenAt, this.worker?.seenAt ?? 0), late };
  }

  /** What a connection brings at once is worked off before any timer, so that thousands of events are one change. */
  #changed() {
    this.#telling ??= setTimeout(() => {
      this.#telling = undefined;
      this.#options.onchange?.();
    });
  }
}
