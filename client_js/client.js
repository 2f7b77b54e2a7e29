/**
 * The gateway's client for browsers and Node: submit a job, follow its events through every cut, fetch its result.
 *
 * @import { Backoff } from "./backoff.js"
 * @import { JobDocument, KindDocument, OutputEvent, Priority, State } from "./protocol.js"
 * @import { SocketClass, TransportName } from "./transports.js"
 * @import { UploadProgress } from "./upload.js"
 */

import { unless } from "./backoff.js";
import { Credentials } from "./credentials.js";
import { answerError, GatewayError, upstreamError } from "./errors.js";
import { SilenceTimer } from "./silence.js";
import { submitJob } from "./submitting.js";
import { Subscription } from "./subscription.js";
import { authorization, openSse, TRANSPORTS } from "./transports.js";
import { read, send } from "./upload.js";

/**
 * What the gateway answers to `POST /v1/tokens`, which your own server asks with its key.
 * @typedef {object} TokenAnswer
 * @property {string} token
 * @property {number | undefined} [expires_seconds] from now on
 */

/**
 * Where a page gets its token from, such as `() => fetch("/api/token", { method: "POST" }).then((answer) => answer.json())`.
 * null: there is none, as for who is not logged in any more. What it throws is taken for a network that is away.
 * @typedef {() => string | TokenAnswer | null | Promise<string | TokenAnswer | null>} TokenSource
 */

/**
 * What a client is made with.
 * @typedef {object} ClientOptions
 * @property {string | (() => string | null | Promise<string | null>) | null | undefined} [apiKey] asked before each
 *   request, so that a short-lived key can be renewed; what it throws is taken for a network that is away
 * @property {string | TokenSource | null | undefined} [token] in the place of a key, for a page that others open: a
 *   token or a job's `urls.watch`, or a function that fetches one, which is asked again when the token's time is over
 * @property {TransportName | undefined} [transport] `sse` by default
 * @property {number | undefined} [silenceSeconds] a connection that brings nothing for this long is taken for dead: 45;
 *   the gateway's heartbeat comes every 15 s
 * @property {number | undefined} [partBytes] the largest part of an upload, and the largest body that goes in one
 *   request: 8 MiB; keep it below what your edge takes (Cloudflare 100 MB)
 * @property {typeof fetch | undefined} [fetch] in the place of the platform's
 * @property {SocketClass | undefined} [WebSocket] in the place of the platform's, which Node 20 has not
 */

/**
 * What can be asked of a job besides its input. What the gateway doesn't know is refused.
 * @typedef {object} JobOptions
 * @property {Priority | undefined} [priority]
 * @property {string[] | undefined} [tags] up to 16 words, to find the job again
 * @property {string | undefined} [input_url] a file by its URL, which the worker fetches; it must be listed
 * @property {string | undefined} [start_at] not before this time, RFC 3339
 * @property {number | undefined} [start_deadline_seconds] fail if no attempt has begun after this time
 * @property {number | undefined} [run_timeout_seconds] fail an attempt that runs longer
 * @property {number | undefined} [retention_seconds] how long the data is kept after the end
 * @property {"continue" | "cancel" | undefined} [on_disconnect] `cancel`: when nobody has listened to the job for a
 *   while, it is cancelled
 * @property {number | undefined} [disconnect_grace_seconds] how long that while is: 60; it starts at the submit
 */

/**
 * What a job is made of.
 * @template {object} [Input=object]
 * @typedef {object} SubmitOptions
 * @property {Input | undefined} [input] what the kind is asked to do, as its schema has it
 * @property {(File | {name: string, blob: Blob})[] | undefined} [files]
 * @property {JobOptions | undefined} [options]
 * @property {string | undefined} [idempotencyKey] the same key and request are the same job; a random one by default, so
 *   that a lost answer never submits twice
 * @property {number | undefined} [retries] how often in a row a request may fail without anything coming through: 5
 * @property {AbortSignal | undefined} [signal]
 * @property {((progress: UploadProgress) => void) | undefined} [onUploadProgress] bytes of the files, never fewer than
 *   before
 */

/**
 * How to follow a job.
 * @typedef {object} EventsOptions
 * @property {string | undefined} [after] the cursor of the last event that you have
 * @property {boolean | undefined} [snapshot] begin with a snapshot instead of the log's first event
 * @property {string[] | undefined} [types] only these; terminal events, `reset` and `snapshot` always come
 * @property {TransportName | undefined} [transport]
 * @property {AbortSignal | undefined} [signal] the loop throws its reason
 * @property {Backoff | undefined} [backoff] the pauses before coming back
 * @property {((subscription: Subscription) => void) | undefined} [onconnection] called when `subscription.state` changes
 */

/**
 * Which jobs to list.
 * @typedef {object} JobsOptions
 * @property {State | undefined} [state]
 * @property {string | undefined} [kind]
 * @property {string | undefined} [tag]
 * @property {string | undefined} [user] for whom they were submitted, with a token
 * @property {string | undefined} [cursor] of the page before
 * @property {number | undefined} [limit]
 * @property {AbortSignal | undefined} [signal]
 */

/**
 * What a request to the gateway is made of.
 * @typedef {object} RequestOptions
 * @property {string | undefined} [method]
 * @property {string | undefined} [accept] which representation
 * @property {Record<string, string> | undefined} [headers]
 * @property {string | undefined} [body]
 * @property {AbortSignal | undefined} [signal]
 */

/** A gateway, as one caller sees it. It holds no connection, so one is enough and nothing has to be closed. */
export class GatewayClient {
  #credentials;
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
    this.#credentials = new Credentials(options);
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
   * @template [Result=unknown] what the kind returns
   * @template {object} [Input=object] what it is given
   * @param {string} kind
   * @param {SubmitOptions<Input>} [submit]
   * @returns {Promise<JobDocument<Result>>}
   */
  async submit(kind, submit = {}) {
    const { input = {}, files = [], options = {}, idempotencyKey, retries = 5, signal, onUploadProgress } = submit;
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
   * @template [Result=unknown] what the job returns
   * @template [Output=unknown] what the values of its outputs are
   * @param {string} id
   * @param {EventsOptions} [options]
   * @returns {Subscription<Result, Output>}
   */
  events(id, options = {}) {
    const { transport = this.#transport, types, ...rest } = options;
    const connect = async () => {
      const shown = await this.#credentials.get();
      return {
        base: this.base,
        job: id,
        types,
        apiKey: shown.text,
        renews: (/** @type {unknown} */ error) => this.#credentials.renews(shown, error),
        silenceMs: this.silenceMs,
        fetch: this.#fetch,
        WebSocket: this.#WebSocket,
      };
    };
    const chosen = { transport: TRANSPORTS[transport], fallback: openSse };
    return new Subscription({ ...rest, ...chosen, connect, contiguous: types === undefined });
  }

  /**
   * The job's document: at its end if that comes in time, else as it stands then.
   * @template [Result=unknown]
   * @param {string} id
   * @param {{waitSeconds?: number | undefined, signal?: AbortSignal | undefined}} [options] `waitSeconds`: 50 at most
   * @returns {Promise<JobDocument<Result>>}
   */
  job(id, options = {}) {
    const { waitSeconds, signal } = options;
    return this.#json(`/v1/jobs/${encodeURIComponent(id)}`, { query: { wait: waitSeconds }, signal });
  }

  /**
   * The caller's jobs, newest first; `cursor` of one answer asks for the next.
   * @param {JobsOptions} [options]
   * @returns {Promise<{jobs: JobDocument[], cursor: string | null}>}
   */
  jobs(options = {}) {
    const { signal, ...query } = options;
    return this.#json("/v1/jobs", { query, signal });
  }

  /**
   * The kinds of work that there are.
   * @param {{signal?: AbortSignal | undefined}} [options]
   * @returns {Promise<{kinds: KindDocument[]}>}
   */
  kinds(options = {}) {
    return this.#json("/v1/kinds", { signal: options.signal });
  }

  /**
   * Ask for the job's end. It is over when the terminal event says so; an ended job is answered unchanged.
   * @param {string} id
   * @param {{reason?: string | undefined, signal?: AbortSignal | undefined}} [options] `reason`: what others read in the
   *   job's end
   * @returns {Promise<JobDocument>}
   */
  cancel(id, options = {}) {
    const { reason, signal } = options;
    const body = reason === undefined ? undefined : { reason };
    return this.#json(`/v1/jobs/${encodeURIComponent(id)}/cancel`, { method: "POST", body, signal });
  }

  /**
   * Do an ended job again: a new job with the same input, options and files, whose `retry_of` is the old one.
   * @template [Result=unknown]
   * @param {string} id
   * @param {{idempotencyKey?: string | undefined, signal?: AbortSignal | undefined}} [options]
   * @returns {Promise<JobDocument<Result>>}
   */
  retry(id, options = {}) {
    const { idempotencyKey, signal } = options;
    const headers = { "Idempotency-Key": idempotencyKey ?? randomKey() };
    return this.#json(`/v1/jobs/${encodeURIComponent(id)}/retry`, { method: "POST", headers, signal });
  }

  /**
   * The result of a job that succeeded: parsed if it is JSON, else as text. Throws `GatewayError`: `not_finished`,
   * `job_failed`, `expired`.
   * @template [Result=unknown] what the job returns
   * @param {string} id
   * @param {{accept?: string | undefined, signal?: AbortSignal | undefined}} [options] `accept`: another representation,
   *   such as text/plain
   * @returns {Promise<Result>}
   */
  async result(id, options = {}) {
    const { accept = "application/json", signal } = options;
    const { response, silence } = await this.#open(`/v1/jobs/${encodeURIComponent(id)}/result`, { accept, signal });
    const body = await silence.text(response);
    return isJson(response) ? read({ status: response.status, body }) : /** @type {any} */ (body);
  }

  /**
   * Every output so far, in the order of the log.
   * @template [Output=unknown] what their values are
   * @param {string} id
   * @param {{after?: number | undefined, signal?: AbortSignal | undefined}} [options] `after`: an event's number
   * @returns {AsyncGenerator<OutputEvent<Output>, void, void>}
   */
  async *outputs(id, options = {}) {
    const { after = 0, signal } = options;
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
   * @param {RequestOptions} [options]
   * @returns {Promise<Response>}
   */
  async request(path, options = {}) {
    return (await this.#open(path, options)).response;
  }

  /**
   * `request`, and what watches over the reading of its answer.
   * @param {string} path
   * @param {RequestOptions} options
   */
  async #open(path, options) {
    return this.#authorized((key) => this.#openOnce(path, options, key), options.signal);
  }

  /** @param {string} path @param {RequestOptions} options @param {Record<string, string>} key */
  async #openOnce(path, { method = "GET", accept = "*/*", headers: more = {}, body, signal }, key) {
    const url = this.url(path);
    const headers = { Accept: accept, ...more, ...key };
    // A long poll is silent for as long as it is asked to be.
    const waitMs = 1000 * Number(new URL(url).searchParams.get("wait"));
    const silence = new SilenceTimer(this.silenceMs + waitMs, signal);
    try {
      const response = await silence.watch(this.#fetch(url, { method, headers, body, signal: silence.signal, cache: "no-store" }));
      if (response.ok) return { response, silence };
      const theirs = response.headers.get("X-Upstream-Status");
      if (theirs) throw upstreamError(Number(theirs));
      throw answerError(response.status, await silence.text(response), response.headers.get("Retry-After"));
    } catch (error) {
      silence.stop();
      throw error;
    }
  }

  /**
   * One of the gateway's own addresses. Throws `GatewayError` for any other: a path may come from an event, that is from
   * whoever reported it, and the key goes where it leads.
   * @param {string} path
   * @returns {string}
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
    return read({ status: response.status, body: await silence.text(response) });
  }

  /** One request with the key; throws `GatewayError` unless 2xx. @type {import("./parts.js").Ask} */
  async #ask({ path, headers, ...request }) {
    return this.#authorized(async (key) => {
      const all = { Accept: "application/json", ...headers, ...key };
      const answer = await send({ ...request, url: this.url(path), headers: all, silenceMs: this.silenceMs, fetch: this.#fetch });
      if (answer.status >= 200 && answer.status < 300) return answer;
      throw answerError(answer.status, answer.body, answer.header("Retry-After"));
    }, request.signal);
  }

  /**
   * Ask with the key or the token, and once more with a fresh token where that one's time is over.
   * @template T
   * @param {(key: Record<string, string>) => Promise<T>} ask
   * @param {AbortSignal | undefined} signal
   * @returns {Promise<T>}
   */
  async #authorized(ask, signal) {
    for (;;) {
      const shown = await unless(signal, this.#credentials.get());
      try {
        return await ask(authorization(shown.text));
      } catch (error) {
        if (!this.#credentials.renews(shown, error)) throw error;
      }
    }
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
