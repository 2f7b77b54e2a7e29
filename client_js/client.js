/**
 * The gateway's client for browsers and Node: submit a job, follow its events through every cut, fetch its result.
 *
 * @typedef {import("./protocol.js").JobDocument} JobDocument
 * @typedef {import("./protocol.js").KindDocument} KindDocument
 * @typedef {import("./protocol.js").JobEvent} JobEvent
 * @typedef {import("./upload.js").UploadProgress} UploadProgress
 * @typedef {"sse" | "websocket"} TransportName
 *
 * @typedef {object} ClientOptions
 * @property {string | (() => string | null | Promise<string | null>) | null} [apiKey] asked before each request, so
 *   that a short-lived key can be renewed
 * @property {string} [watch] `urls.watch` of a job's document, in the place of a key: for a page that may read this one
 *   job and holds no key
 * @property {TransportName} [transport]
 * @property {number} [silenceSeconds] a connection that brings nothing for this long is taken for dead; the gateway's
 *   heartbeat comes every 15 s
 * @property {number} [partBytes] the largest part of an upload, and the largest body that goes in one request: 8 MiB;
 *   keep it below what your edge takes (Cloudflare 100 MB)
 * @property {typeof fetch} [fetch]
 * @property {typeof WebSocket} [WebSocket]
 *
 * @typedef {object} SubmitOptions
 * @property {Record<string, unknown>} [input]
 * @property {(File | {name: string, blob: Blob})[]} [files]
 * @property {Record<string, unknown>} [options] priority, tags, run_timeout_seconds, ...
 * @property {string} [idempotencyKey] a random one by default, so that a lost answer never submits twice
 * @property {number} [retries] how often in a row a request may fail without anything coming through: 5
 * @property {AbortSignal} [signal]
 * @property {(progress: UploadProgress) => void} [onUploadProgress] bytes of the files, never fewer than before
 *
 * @typedef {object} EventsOptions
 * @property {string} [after] the cursor of the last event that you have
 * @property {boolean} [snapshot] begin with a snapshot instead of the log's first event
 * @property {string[]} [types]
 * @property {TransportName} [transport]
 * @property {AbortSignal} [signal]
 * @property {import("./backoff.js").Backoff} [backoff]
 * @property {(subscription: Subscription) => void} [onconnection]
 */

import { answerError, GatewayError, upstreamError } from "./errors.js";
import { SilenceTimer } from "./silence.js";
import { submitJob } from "./submitting.js";
import { Subscription } from "./subscription.js";
import { authorization, openSse, openWebSocket } from "./transports.js";
import { read, send } from "./upload.js";

/** @type {Record<TransportName, import("./transports.js").Transport>} */
export const TRANSPORTS = { sse: openSse, websocket: openWebSocket };

export class GatewayClient {
  #apiKey;
  #partBytes;
  #transport;
  #fetch;
  #WebSocket;

  /**
   * @param {string} [base] the gateway's address; the page's own by default
   * @param {ClientOptions} [options]
   */
  constructor(base = globalThis.location?.origin ?? "http://127.0.0.1:8080", options = {}) {
    this.base = base;
    const token = options.watch && new URL(options.watch, base).searchParams.get("token");
    this.#apiKey = options.apiKey ?? token ?? null;
    /** What brings nothing for so long is taken for dead. */
    this.silenceMs = (options.silenceSeconds ?? 45) * 1000;
    this.#partBytes = options.partBytes ?? 8 * 1024 * 1024;
    this.#transport = options.transport ?? "sse";
    // A bare reference: the platform's fetch refuses to be called as another object's method.
    const chosen = options.fetch ?? globalThis.fetch;
    this.#fetch = /** @type {typeof fetch} */ ((...request) => chosen(...request));
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
  }

  /**
   * Submit a job. Answers that say nothing about the job (a lost connection, an edge's 524) are tried again under the
   * same Idempotency-Key, so the job runs once whatever happened to the answers. Large files go in parts, and so do
   * those that an edge refuses or a cut breaks off.
   * @param {string} kind
   * @param {SubmitOptions} [submit]
   * @returns {Promise<JobDocument>}
   */
  async submit(kind, { input = {}, files = [], options = {}, idempotencyKey, retries = 5, signal, onUploadProgress } = {}) {
    const answer = await submitJob((request) => this.#ask(request), {
      kind,
      key: idempotencyKey ?? randomKey(),
      input,
      options,
      files: files.map((file) => ("blob" in file ? file : { name: file.name, blob: file })),
      partBytes: this.#partBytes,
      retries,
      signal,
      onprogress: onUploadProgress,
    });
    return read(answer);
  }

  /**
   * A job's events, each once and in order, until the terminal one; what is cut is resumed by itself. The answer is an
   * async iterable that also tells how the connection is doing.
   * @param {string} id
   * @param {EventsOptions} [events]
   */
  events(id, { transport = this.#transport, types, ...rest } = {}) {
    const connect = async () => ({
      base: this.base,
      job: id,
      types,
      apiKey: await this.#key(),
      silenceMs: this.silenceMs,
      fetch: this.#fetch,
      WebSocket: this.#WebSocket,
    });
    const chosen = { transport: TRANSPORTS[transport], fallback: openSse };
    return new Subscription({ ...rest, ...chosen, connect, contiguous: types === undefined });
  }

  /** @param {string} id @param {{waitSeconds?: number, signal?: AbortSignal}} [options] @returns {Promise<JobDocument>} */
  job(id, { waitSeconds, signal } = {}) {
    return this.#json(`/v1/jobs/${encodeURIComponent(id)}`, { query: { wait: waitSeconds }, signal });
  }

  /**
   * The caller's jobs, newest first; `cursor` of one answer asks for the next.
   * @param {{state?: string, kind?: string, tag?: string, cursor?: string, limit?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<{jobs: JobDocument[], cursor: string | null}>}
   */
  jobs({ signal, ...query } = {}) {
    return this.#json("/v1/jobs", { query, signal });
  }

  /** @param {{signal?: AbortSignal}} [options] @returns {Promise<{kinds: KindDocument[]}>} */
  kinds({ signal } = {}) {
    return this.#json("/v1/kinds", { signal });
  }

  /**
   * Ask for the job's end. It is over when the terminal event says so; an ended job is answered unchanged.
   * @param {string} id
   * @param {{reason?: string, signal?: AbortSignal}} [options] `reason`: what others read in the job's end
   * @returns {Promise<JobDocument>}
   */
  cancel(id, { reason, signal } = {}) {
    const body = reason === undefined ? undefined : { reason };
    return this.#json(`/v1/jobs/${encodeURIComponent(id)}/cancel`, { method: "POST", body, signal });
  }

  /**
   * Do an ended job again: a new job with the same input, options and files, whose `retry_of` is the old one.
   * @param {string} id
   * @param {{idempotencyKey?: string, signal?: AbortSignal}} [options]
   * @returns {Promise<JobDocument>}
   */
  retry(id, { idempotencyKey, signal } = {}) {
    const headers = { "Idempotency-Key": idempotencyKey ?? randomKey() };
    return this.#json(`/v1/jobs/${encodeURIComponent(id)}/retry`, { method: "POST", headers, signal });
  }

  /**
   * The result of a job that succeeded: parsed if it is JSON, else as text. Throws `GatewayError`: `not_finished`,
   * `job_failed`, `expired`.
   * @param {string} id
   * @param {{accept?: string, signal?: AbortSignal}} [options] `accept`: another representation, such as text/plain
   * @returns {Promise<any>}
   */
  async result(id, { accept = "application/json", signal } = {}) {
    const { response, silence } = await this.#open(`/v1/jobs/${encodeURIComponent(id)}/result`, { accept, signal });
    return silence.watch(isJson(response) ? response.json() : response.text());
  }

  /**
   * Every output so far, in the order of the log.
   * @param {string} id
   * @param {{after?: number, signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<JobEvent, void, void>}
   */
  async *outputs(id, { after = 0, signal } = {}) {
    for (let next = after; ; ) {
      const page = await this.#json(`/v1/jobs/${encodeURIComponent(id)}/outputs`, { query: { after: next }, signal });
      yield* page.outputs;
      if (page.next === null || page.next === undefined) return;
      next = page.next;
    }
  }

  /**
   * Any of the gateway's addresses, such as an output's `url`, with the key. Throws `GatewayError` unless 2xx.
   * @param {string} path
   * @param {{method?: string, accept?: string, headers?: Record<string, string>, body?: string,
   *   signal?: AbortSignal}} [options]
   */
  async request(path, options = {}) {
    return (await this.#open(path, options)).response;
  }

  /**
   * `request`, and what watches over the reading of its answer.
   * @param {string} path
   * @param {{method?: string, accept?: string, headers?: Record<string, string>, body?: string, signal?: AbortSignal}} options
   */
  async #open(path, { method = "GET", accept = "*/*", headers: more = {}, body, signal }) {
    const url = this.url(path);
    const headers = { Accept: accept, ...more, ...authorization(await this.#key()) };
    // A long poll is silent for as long as it is asked to be.
    const waitMs = 1000 * Number(new URL(url).searchParams.get("wait"));
    const silence = new SilenceTimer(this.silenceMs + waitMs, signal);
    const response = await silence.watch(this.#fetch(url, { method, headers, body, signal: silence.signal, cache: "no-store" }));
    if (response.ok) return { response, silence };
    const theirs = response.headers.get("X-Upstream-Status");
    if (theirs) throw upstreamError(Number(theirs));
    throw answerError(response.status, await silence.watch(response.text()), response.headers.get("Retry-After"));
  }

  /**
   * One of the gateway's own addresses. Throws `GatewayError` for any other: a path may come from an event, that is from
   * whoever reported it, and the key goes where it leads.
   * @param {string} path
   */
  url(path) {
    const { origin, href } = new URL(path, this.base);
    if (origin === new URL(this.base).origin) return href;
    throw new GatewayError({ code: "foreign_address", detail: `${path} is no address of the gateway's; it was not called.` }, { mayPass: false });
  }

  /**
   * @param {string} path
   * @param {{method?: string, query?: Record<string, string | number | undefined>, headers?: Record<string, string>,
   *   body?: unknown, signal?: AbortSignal}} options `body` is sent as JSON
   * @returns {Promise<any>}
   */
  async #json(path, { method, query = {}, headers, body, signal }) {
    const given = Object.entries(query).filter(([, value]) => value !== undefined);
    const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
    const { response, silence } = await this.#open(search ? `${path}?${search}` : path, {
      method,
      accept: "application/json",
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    return silence.watch(response.json());
  }

  /** One request with the key; throws `GatewayError` unless 2xx. @type {import("./parts.js").Ask} */
  async #ask({ path, headers, ...request }) {
    const all = { Accept: "application/json", ...headers, ...authorization(await this.#key()) };
    const answer = await send({ ...request, url: this.url(path), headers: all, silenceMs: this.silenceMs, fetch: this.#fetch });
    if (answer.status >= 200 && answer.status < 300) return answer;
    throw answerError(answer.status, answer.body, answer.header("Retry-After"));
  }

  async #key() {
    return typeof this.#apiKey === "function" ? await this.#apiKey() : this.#apiKey;
  }
}

/** @param {Response} response */
function isJson(response) {
  return /^application\/(.+\+)?json\b/.test(response.headers.get("Content-Type") ?? "");
}

/** crypto.randomUUID exists on secure pages only; a gateway on the local network has none. */
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
