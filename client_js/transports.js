/**
 * One connection that carries a job's events, over SSE (read through fetch) or over a WebSocket. Both yield the same
 * frames and end the same way; coming back after a cut is `subscription.js`'s work.
 *
 * @import { JobEvent } from "./protocol.js"
 */

/**
 * How events come.
 * @typedef {"sse" | "websocket"} TransportName
 */

/**
 * What is needed of a `WebSocket`; the platform's has it, and so have those of the packages `ws` and `undici`.
 * @typedef {object} Socket
 * @property {((event: any) => void) | null} onopen
 * @property {((event: any) => void) | null} onmessage
 * @property {((event: any) => void) | null} onclose
 * @property {((event: any) => void) | null} onerror
 * @property {(text: string) => void} send
 * @property {(code?: number) => void} close
 */

/**
 * The class of such sockets.
 * @typedef {new (url: string | URL, protocols?: string[]) => Socket} SocketClass
 */

/**
 * What a connection needs.
 * @typedef {object} Connect
 * @property {string} base the gateway's address
 * @property {string} job
 * @property {string} after a cursor; "" for the start
 * @property {boolean} snapshot
 * @property {string[] | undefined} types
 * @property {string | null} apiKey a key or a token
 * @property {AbortSignal} signal
 * @property {number} silenceMs a connection that is silent for longer is taken for dead
 * @property {typeof fetch} fetch
 * @property {SocketClass | undefined} WebSocket
 */

/**
 * What a connection brings. `ended`: the log holds nothing beyond the cursor, and never will; a connection that just
 * stops has no such frame, and means "come back".
 * @typedef {{kind: "open"} | {kind: "alive"} | {kind: "event", event: JobEvent} | {kind: "cursor", cursor: string}
 *   | {kind: "retry", ms: number} | {kind: "ended"}} Frame
 */

/**
 * Opens one connection.
 * @typedef {(connect: Connect) => AsyncGenerator<Frame, void, void>} Transport
 */

import { answerError, connectionError, GatewayError } from "./errors.js";
import { shouldComeBack, WEBSOCKET_PROTOCOL } from "./protocol.js";
import { SilenceTimer } from "./silence.js";
import { EventStreamDecoder } from "./sse.js";

// Frames that wait for a slow consumer. The log is numbered, so coming back later costs nothing; memory does.
const MAX_WAITING_FRAMES = 10_000;
const PROBE = "probe";
const PROBE_JOB = "0".repeat(26);

/** @type {Transport} */
export async function* openSse({ base, job, after, snapshot, types, apiKey, signal, silenceMs, fetch }) {
  const url = new URL(`/v1/jobs/${encodeURIComponent(job)}/events`, base);
  if (after) url.searchParams.set("after", after);
  if (snapshot) url.searchParams.set("snapshot", "1");
  if (types) url.searchParams.set("types", types.join(","));
  const silence = new SilenceTimer(silenceMs, signal);
  /** @type {ReadableStreamDefaultReader<Uint8Array> | undefined} */
  let reader;
  try {
    const headers = { Accept: "text/event-stream", ...authorization(apiKey) };
    const response = await silence.guard(fetch(url, { headers, cache: "no-store", signal: silence.signal }));
    if (response.status === 204) return yield { kind: "ended" };
    if (!response.ok) {
      throw answerError(response.status, await silence.guard(response.text()), response.headers.get("Retry-After"));
    }
    if (!response.body || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      const detail = "Something in front of the gateway answered in its place. It is tried again by itself.";
      throw new GatewayError({ code: "not_a_stream", detail }, { mayPass: true });
    }
    reader = response.body.getReader();
    yield { kind: "open" };
    const decoder = new EventStreamDecoder(after);
    let retryMs = null;
    for (;;) {
      const { done, value } = await silence.guard(reader.read());
      if (done) return;
      const before = decoder.lastEventId;
      const messages = decoder.feed(value);
      if (decoder.retryMs !== null && decoder.retryMs !== retryMs) {
        retryMs = decoder.retryMs;
        yield { kind: "retry", ms: retryMs };
      }
      for (const message of messages) yield { kind: "event", event: parseEvent(message.data) };
      // An id without data: events that `types` left out. The cursor moves over them.
      if (messages.length === 0) {
        if (decoder.lastEventId !== before) yield { kind: "cursor", cursor: decoder.lastEventId };
        else yield { kind: "alive" };
      }
    }
  } catch (error) {
    throw silence.explain(error);
  } finally {
    silence.stop();
    // Without this, leaving the loop would keep the connection open until the job ends.
    reader?.cancel().catch(() => {});
  }
}

/** @type {Transport} */
export async function* openWebSocket(connect) {
  const { base, job, after, snapshot, types, apiKey, signal, silenceMs, WebSocket } = connect;
  if (!WebSocket) throw new TypeError("This platform has no WebSocket; hand one in, as the client's option `WebSocket`.");
  const url = new URL("/v1/ws", base);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  // Without a key no subprotocol is offered: browsers fail a connection whose server picks none.
  const socket = new WebSocket(url, apiKey ? [WEBSOCKET_PROTOCOL, keyProtocol(apiKey)] : []);
  // A page does not see protocol pings. Asked to leave a job that it never followed, the gateway answers and does
  // nothing: a sign of life from a connection on which nothing has to be said.
  const probe = () => opened && socket.send(JSON.stringify({ op: "unsubscribe", ref: PROBE, job: PROBE_JOB }));
  const silence = new SilenceTimer(silenceMs, signal, probe);
  /** @type {Frame[]} */
  const frames = [];
  /** @type {unknown} */
  let failure = null;
  let closed = false;
  let opened = false;
  let wake = () => {};

  /** @param {unknown} [error] */
  const end = (error) => {
    failure ??= error ?? null;
    closed = true;
    wake();
  };
  const onAbort = () => end(silence.signal.reason);
  silence.signal.addEventListener("abort", onAbort);
  socket.onopen = () => {
    opened = true;
    const subscribe = { op: "subscribe", ref: "1", job, after: after || "0", snapshot, ...(types && { types }) };
    socket.send(JSON.stringify(subscribe));
  };
  socket.onmessage = ({ data }) => {
    silence.heard();
    if (closed) return;
    try {
      frames.push(readSocketFrame(data));
    } catch (error) {
      end(error);
    }
    if (frames.length > MAX_WAITING_FRAMES) end(connectionError("the listener is slower than the events"));
    wake();
  };
  // The close that follows says as much. Node's packages end the process over an error that nobody hears, also of a
  // socket that is closed before it is open.
  socket.onerror = () => {};
  socket.onclose = ({ code, reason }) => {
    if (shouldComeBack(code)) return end(code === 1006 ? connectionError(new Error("closed without a reason")) : null);
    const detail = `The gateway closed the connection and asks not to come back: ${reason || code}.`;
    end(new GatewayError({ code: reason || `closed_${code}`, detail }, { mayPass: false }));
  };
  try {
    for (;;) {
      const frame = frames.shift();
      if (frame) {
        yield frame;
        if (frame.kind === "ended") return;
      } else if (closed) {
        break;
      } else {
        await new Promise((resolve) => (wake = () => resolve(undefined)));
      }
    }
    if (!opened && !silence.signal.aborted) throw await refusal({ ...connect, signal: silence.signal });
    if (failure) throw silence.explain(failure);
  } finally {
    silence.stop();
    silence.signal.removeEventListener("abort", onAbort);
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
  }
}

/**
 * A browser doesn't say why a WebSocket was refused; the job's own address may.
 * @param {Connect} connect
 */
async function refusal({ base, job, apiKey, signal, fetch }) {
  const headers = authorization(apiKey);
  try {
    const url = new URL(`/v1/jobs/${encodeURIComponent(job)}`, base);
    const response = await fetch(url, { headers, cache: "no-store", signal });
    const body = await response.text();
    if (!response.ok) return answerError(response.status, body, response.headers.get("Retry-After"));
  } catch (error) {
    return connectionError(error);
  }
  const detail = "The gateway can be reached, but not by WebSocket: something between may not let it pass.";
  return new GatewayError({ code: "websocket_refused", detail }, { mayPass: true });
}

/** @param {string} text @returns {Frame} */
function readSocketFrame(text) {
  const frame = parseObject(text);
  if (frame.op === undefined) return { kind: "event", event: /** @type {JobEvent} */ (frame) };
  if (frame.op === "subscribed") return { kind: frame.ended ? "ended" : "open" };
  if (frame.op === "error") throw new GatewayError(frame.problem ?? { code: "bad_frame" });
  return { kind: "alive" };
}

/** @param {string} text */
function parseEvent(text) {
  return /** @type {JobEvent} */ (parseObject(text));
}

/** @param {string} text @returns {Record<string, any>} */
function parseObject(text) {
  try {
    const value = JSON.parse(text);
    if (typeof value === "object" && value !== null) return value;
  } catch {
    // Answered below, like any other text that is no object.
  }
  const detail = "The stream held something that is no event. It is read again from the last good one.";
  throw new GatewayError({ code: "bad_stream", detail }, { mayPass: true });
}

/** @type {Record<TransportName, Transport>} */
export const TRANSPORTS = { sse: openSse, websocket: openWebSocket };

/** @param {string | null} apiKey @returns {Record<string, string>} */
export function authorization(apiKey) {
  return apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
}

/** A browser can't set headers on a WebSocket; a subprotocol is what it can. @param {string} apiKey */
function keyProtocol(apiKey) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(apiKey));
  return `outlast.key.${btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}
