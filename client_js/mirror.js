/**
 * What a page shows of a job: its fold, its outputs, where it waits, whether its worker lives, how the connection does.
 * The React hook, the elements and the product page all read this one.
 *
 * @typedef {import("./protocol.js").JobEvent} JobEvent
 * @typedef {import("./protocol.js").JobDocument} JobDocument
 * @typedef {import("./client.js").GatewayClient} GatewayClient
 * @typedef {{worker: string, seenAt: number, late: boolean}} WorkerSign when a worker last showed that it lives, on this
 *   page's clock, and whether the gateway finds that too long ago
 *
 * @typedef {object} MirrorOptions
 * @property {import("./client.js").TransportName} [transport]
 * @property {boolean} [snapshot]
 * @property {(event: JobEvent) => void} [onevent] every event of the stream, once
 * @property {(event: JobEvent) => void} [onoutput] every output, also those that a snapshot only counts
 * @property {() => void} [onchange] after every event, and when the connection changes
 */

import { Backoff, pause } from "./backoff.js";
import { TRANSPORTS } from "./client.js";
import { GatewayError } from "./errors.js";
import { Fold } from "./fold.js";

// A healthy worker shows itself every third of its lease: every 10 s by default.
const LATE_SECONDS = 12;
// The gateway writes these itself; all other numbered events are a sign of the worker.
const NOT_FROM_WORKER = new Set(["queued", "retrying", "cancel_requested", "failed", "cancelled"]);

export class JobMirror {
  /** @type {Map<string, JobEvent>} the newest output of each index */
  outputs = new Map();
  /** @type {{position: number | null, eta_seconds?: number | null} | null} */
  position = null;
  /** @type {WorkerSign | null} */
  worker = null;
  /** What ended the following, if it can't go on. @type {unknown} */
  error = null;

  /** This page's clock less the gateway's, in ms. @type {number | null} */
  #skewMs = null;
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
      if (!signal.aborted) this.error = error;
    }
    if (!signal.aborted) this.#changed();
  }

  /** @param {import("./client.js").TransportName} transport */
  use(transport) {
    this.subscription.use(TRANSPORTS[transport]);
  }

  /** Seconds since the worker's last sign of life; null while no worker has the job. */
  silentSeconds() {
    return this.worker && Math.max(0, (Date.now() - this.worker.seenAt) / 1000);
  }

  /** An unchanging picture, for those who compare. */
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
    if (type === "output") this.#output(event);
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

  /** @param {JobEvent} event */
  #output(event) {
    const known = this.outputs.get(event.data.index);
    if (known && (known.id ?? 0) >= (event.id ?? 0)) return;
    this.outputs.set(event.data.index, event);
    this.#options.onoutput?.(event);
  }

  /** A numbered event tells when its worker lived, but on the server's clock. @param {JobEvent} event */
  #seenBy(event) {
    const worker = event.data?.worker ?? this.worker?.worker ?? "";
    this.#seen(worker, Math.min(Date.now(), Date.parse(event.time ?? "") + (this.#skewMs ?? 0)));
  }

  /** @param {string} worker @param {number} seenAt @param {number} [silentSeconds] */
  #seen(worker, seenAt, silentSeconds = 0) {
    if (this.fold.state !== "running") return;
    const late = silentSeconds >= LATE_SECONDS;
    if (!late && !(seenAt > (this.worker?.seenAt ?? 0))) return;
    this.worker = { worker, seenAt: Math.max(seenAt, this.worker?.seenAt ?? 0), late };
  }

  #changed() {
    this.#options.onchange?.();
  }
}
