/**
 * A small gateway for these tests only: one job whose log the test writes, over real HTTP, with faults to order. Its
 * WebSocket is a class for the client's `WebSocket` option, since Node 20 has none; the real one is met in
 * tests/browser.
 */

import { createServer } from "node:http";

export const JOB = "abcdefghijklmnopqrstuvwxyz".slice(0, 26);

/** @param {number} id */
export function timeOf(id) {
  return new Date(Date.UTC(2026, 0, 1) + id).toISOString();
}

/** @param {number} id */
export function cursorOfId(id) {
  return `${id}-${Date.parse(timeOf(id))}`;
}

/** A row of a log. @param {number} id @param {string} type @param {Record<string, any>} [data] @returns {any} */
export function event(id, type, data = {}) {
  const terminal = ["succeeded", "failed", "cancelled"].includes(type) && { terminal: true };
  return { id, time: timeOf(id), job: JOB, attempt: 1, type, ...terminal, data };
}

/** A log of a job that ended: queued, started, some progress and output, succeeded. @param {number} [length] */
export function finishedLog(length = 12) {
  const log = [event(1, "queued"), event(2, "started", { worker: "w1" })];
  for (let id = 3; id < length; id += 1) {
    log.push(id % 3 ? event(id, "progress", { current: id, total: length }) : event(id, "output", { index: `page-${id}`, content_type: "application/json", value: { text: `ü line ${id}` } }));
  }
  return [...log, event(length, "succeeded", { result: { pages: length } })];
}

/** Wait for a condition, at most as long as a test may take (`package.json`). @param {() => boolean} condition */
export async function until(condition) {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}

export class FakeGateway {
  /** @type {ReturnType<typeof event>[]} */
  log = [];
  /** How many body bytes each stream connection may carry before it is cut; the last holds for all that follow. */
  byteLimits = [Infinity];
  /** Answers for the next requests, before anything else: taken in order; `hangs`: what never comes to its end. @type {{status: number, body?: any, headers?: Record<string, string>, hangs?: boolean}[]} */
  refusals = [];
  /** @type {{method: string, path: string, after: string | null, headers: import("node:http").IncomingHttpHeaders, body: string}[]} */
  requests = [];
  /** Written in front of the log on a stream's first connection, as it is. @type {(request: {after: string | null}) => string} */
  prelude = () => "";
  /** Routes beside the streams; `drips` are pieces of a body that comes slowly. @type {Record<string, any>} */
  routes = {};
  base = "";
  /** Resumable uploads by their ids. @type {Map<string, {length: number, bytes: string, metadata: string}>} */
  uploads = new Map();
  /** @type {string[]} */
  deleted = [];
  refusesSockets = false;
  /** Whether sockets answer probes. */
  answersProbes = false;
  probes = 0;
  /** @type {Set<import("node:http").ServerResponse>} */
  #open = new Set();
  /** @type {Set<FakeSocket>} */
  sockets = new Set();

  async start() {
    this.server = createServer((request, response) => void this.#answer(request, response));
    await new Promise((resolve) => this.server?.listen(0, "127.0.0.1", () => resolve(undefined)));
    const address = /** @type {import("node:net").AddressInfo} */ (this.server.address());
    this.base = `http://127.0.0.1:${address.port}`;
    return this;
  }

  async stop() {
    this.server?.closeAllConnections();
    await new Promise((resolve) => this.server?.close(resolve));
  }

  /** @param {...ReturnType<typeof event>} events */
  append(...events) {
    this.log.push(...events);
    for (const response of this.#open) this.#write(response, events);
    for (const socket of this.sockets) socket.deliver(events);
  }

  /** End every stream as a gateway that stops does. */
  endAll() {
    for (const response of this.#open) response.end();
    for (const socket of this.sockets) setImmediate(() => setImmediate(() => socket.drop(4001, "draining")));
  }

  openStreams() {
    return this.#open.size;
  }

  streams() {
    return this.requests.filter(({ path }) => path.endsWith("/events"));
  }

  /** @param {string | null} after */
  since(after) {
    const number = Number((after ?? "0").split("-")[0]);
    return this.log.filter(({ id }) => id > number);
  }

  /** A `WebSocket` class that talks to this gateway. */
  socketClass() {
    const gateway = this;
    return class extends FakeSocket {
      /** @param {URL | string} url @param {string[]} [protocols] */
      constructor(url, protocols = []) {
        super(gateway, String(url), protocols);
      }
    };
  }

  /** @param {import("node:http").IncomingMessage} request @param {import("node:http").ServerResponse} response */
  async #answer(request, response) {
    const url = new URL(request.url ?? "/", this.base);
    let body = "";
    for await (const chunk of request) body += chunk;
    const after = url.searchParams.get("after");
    this.requests.push({ method: request.method ?? "", path: url.pathname, after, headers: request.headers, body });
    const refusal = this.refusals.shift();
    if (refusal?.hangs) return void (refusal.status && response.writeHead(refusal.status).write("{"));
    if (refusal?.status === 0) return response.destroy();
    if (refusal) {
      response.writeHead(refusal.status, { "Content-Type": "application/problem+json", ...refusal.headers });
      return response.end(typeof refusal.body === "string" ? refusal.body : JSON.stringify(refusal.body ?? {}));
    }
    if (url.pathname.endsWith("/events")) return this.#stream(url, response);
    if (url.pathname.startsWith("/v1/uploads") && this.#upload(request, url, body, response)) return;
    const route = this.routes[`${request.method} ${url.pathname}`];
    const answer = typeof route === "function" ? route(url) : route;
    if (answer?.drips) return this.#drip(answer.drips, response);
    response.writeHead(answer === undefined ? 404 : 200, { "Content-Type": "application/json" });
    return response.end(JSON.stringify(answer ?? { code: "not_found", detail: "no such thing" }));
  }

  /** A body that comes a piece every 50 ms, as over a slow line. @param {string[]} pieces @param {import("node:http").ServerResponse} response */
  async #drip(pieces, response) {
    response.writeHead(200, { "Content-Type": "application/json" });
    for (const piece of pieces) {
      response.write(piece);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    response.end();
  }

  /** Uploads, as far as the client needs them; bodies are ASCII. @param {import("node:http").IncomingMessage} request @param {URL} url @param {string} body @param {import("node:http").ServerResponse} response */
  #upload(request, url, body, response) {
    const id = url.pathname.split("/")[3] ?? "";
    const upload = this.uploads.get(id);
    /** @param {number} status @param {any} [answer] */
    const answer = (status, answer) => {
      response.writeHead(status, { "Content-Type": "application/json" });
      response.end(answer && JSON.stringify(answer));
      return true;
    };
    if (request.method === "POST" && !id) {
      const next = `upload${this.uploads.size}`;
      this.uploads.set(next, { length: Number(request.headers["upload-length"]), bytes: "", metadata: String(request.headers["upload-metadata"]) });
      return answer(201, { id: next, offset: 0 });
    }
    if (!upload) return answer(404, { code: "upload_not_found", detail: "no such upload" });
    if (request.method === "GET") return answer(200, { id, offset: upload.bytes.length });
    if (request.method === "DELETE") return this.deleted.push(id), answer(204);
    if (Number(request.headers["upload-offset"]) !== upload.bytes.length) {
      return answer(409, { code: "wrong_offset", detail: "not here", offset: upload.bytes.length });
    }
    upload.bytes += body;
    return answer(204);
  }

  /** @param {URL} url @param {import("node:http").ServerResponse} response */
  #stream(url, response) {
    const after = url.searchParams.get("after");
    const rows = this.since(after);
    if (rows.length === 0 && this.log.at(-1)?.terminal) {
      response.writeHead(204);
      return response.end();
    }
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    const limit = this.byteLimits.length > 1 ? this.byteLimits.shift() : this.byteLimits[0];
    Object.assign(response, { left: limit ?? Infinity });
    this.#open.add(response);
    response.on("close", () => this.#open.delete(response));
    this.#bytes(response, `: ok\n\nretry: 1\n\n${this.prelude({ after })}`);
    this.#write(response, rows);
  }

  /** @param {import("node:http").ServerResponse} response @param {ReturnType<typeof event>[]} events */
  #write(response, events) {
    const block = (/** @type {any} */ row) => `${row.id ? `id: ${cursorOfId(row.id)}\n` : ""}data: ${JSON.stringify(row)}\n\n`;
    this.#bytes(response, events.map(block).join(""));
    if (events.at(-1)?.terminal && !response.destroyed) response.end();
  }

  /** @param {import("node:http").ServerResponse} response @param {string} text */
  #bytes(response, text) {
    const limited = /** @type {{left: number}} */ (/** @type {unknown} */ (response));
    const bytes = Buffer.from(text).subarray(0, Math.max(0, limited.left));
    const cut = bytes.length < Buffer.byteLength(text);
    limited.left -= bytes.length;
    if (response.destroyed) return;
    if (!cut) return void response.write(bytes);
    // The bytes go out, then the connection is reset without an end.
    response.write(bytes, () => response.destroy());
  }
}

/**
 * What the client's WebSocket transport needs of a WebSocket, spoken by a `FakeGateway` in this process. As with Node's
 * packages, an error that nobody listens for is thrown where nobody can catch it.
 */
export class FakeSocket {
  /** @type {(() => void) | null} */
  onopen = null;
  /** @type {((message: {data: string}) => void) | null} */
  onmessage = null;
  /** @type {((close: {code: number, reason: string}) => void) | null} */
  onclose = null;
  /** @type {((error: {message: string}) => void) | null} */
  onerror = null;
  opened = false;
  subscribed = false;
  closed = false;

  /** @param {FakeGateway} gateway @param {string} url @param {string[]} protocols */
  constructor(gateway, url, protocols) {
    this.gateway = gateway;
    this.url = url;
    this.protocols = protocols;
    gateway.sockets.add(this);
    setImmediate(() => {
      if (gateway.refusals[0] || gateway.refusesSockets) this.drop(1006);
      else if (!this.closed) {
        this.opened = true;
        this.onopen?.();
      }
    });
  }

  /** @param {string} text */
  send(text) {
    const { op, ref, job, after } = JSON.parse(text);
    if (op === "unsubscribe") {
      this.gateway.probes += 1;
      return this.gateway.answersProbes && this.#receive({ op: "unsubscribed", ref, job });
    }
    this.gateway.requests.push({ method: op, path: `/v1/jobs/${job}/events`, after, headers: {}, body: text });
    this.#receive({ op: "subscribed", ref, job });
    this.subscribed = true;
    this.deliver(this.gateway.since(after));
  }

  /** @param {any[]} events */
  deliver(events) {
    if (this.subscribed) for (const row of events) this.#receive(row);
  }

  /** @param {number} code */
  drop(code, reason = "") {
    if (this.closed) return;
    this.closed = true;
    this.gateway.sockets.delete(this);
    if (code === 1006) this.#fail("the connection failed");
    this.onclose?.({ code, reason });
  }

  close() {
    if (!this.opened && !this.closed) setImmediate(() => this.#fail("closed before it was open"));
    this.closed = true;
    this.gateway.sockets.delete(this);
  }

  /** @param {string} message */
  #fail(message) {
    if (!this.onerror) throw new Error(`nobody listens for this error: ${message}`);
    this.onerror({ message });
  }

  /** @param {any} frame */
  #receive(frame) {
    setImmediate(() => !this.closed && this.onmessage?.({ data: JSON.stringify(frame) }));
  }
}
