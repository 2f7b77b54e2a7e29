/**
 * `fetch` for routes that take longer than anything in between lets a request take: the same arguments, and a `Response`
 * at the end, however long that is. The gateway calls the route as a job of the kind `http`: one of its slow routes, at
 * its own address, or any other address that it may call. What is cut on the way here is resumed.
 *
 * @import { GatewayClient } from "./client.js"
 * @import { JobEvent } from "./protocol.js"
 */

/**
 * What a route sends as it comes. `response`: it has answered; `text`: the next piece of a body that it streams;
 * `restart`: it is called again, or a part of the text is gone, so drop the text so far; `bytes`: how much of a large
 * body has come.
 * @typedef {{type: "response", status: number, headers: [string, string][]} | {type: "text", text: string}
 *   | {type: "restart"} | {type: "bytes", current: number, total: number | null}} FetchProgress
 */

/**
 * Members of `init` beside those of `fetch`.
 * @typedef {object} LongFetch
 * @property {((progress: FetchProgress) => void) | undefined} [onProgress]
 * @property {((id: string) => void) | undefined} [onJob] told of the job's id as soon as it is kept
 * @property {boolean | undefined} [cancelJob] whether aborting the signal ends the job too; it goes on by default
 * @property {string | undefined} [idempotencyKey] the same key and request find the same job, also after a reload of the
 *   page
 */

/**
 * The `init` of `fetch`, and more.
 * @typedef {RequestInit & LongFetch} LongRequestInit
 */

/**
 * What a job of the kind `http` returns: the body is its text, or where it is.
 * @typedef {object} HttpResult
 * @property {number} status
 * @property {[string, string][]} headers
 * @property {string} url where the answer came from, after redirects
 * @property {number} size bytes of the body
 * @property {string | null} [text]
 * @property {string | null} [body_url]
 */

import { Backoff, pause, unless } from "./backoff.js";
import { GatewayError } from "./errors.js";
import { persist } from "./parts.js";
import { SilenceTimer } from "./silence.js";

// What stands in a job's record; a longer body is a file.
const INLINE_BYTES = 64 * 1024;
const TEXT = /^(text\/|application\/(json|x-www-form-urlencoded|xml|x-ndjson)\b|[^;]+\+(json|xml)\b)/;
// [spec] "A null body status is a status that is 101, 103, 204, 205, or 304." (WHATWG Fetch)
const NULL_BODY = new Set([101, 103, 204, 205, 304]);
const RETRIES = 5;

/**
 * A function that is called like `fetch` and rejects like it: with the signal's reason when that is aborted, else with a
 * `GatewayError`, whose `code` says what failed. Statuses of the route are no failures.
 * @param {GatewayClient} client
 * @returns {(input: string | URL | Request, init?: LongRequestInit) => Promise<Response>}
 */
export function createFetch(client) {
  return async (input, init = {}) => {
    const request = new Request(input, init);
    const { signal } = request;
    signal.throwIfAborted();
    const { body, files } = await bodyOf(request);
    const headers = Object.fromEntries(request.headers);
    const { url, isRoute } = targetOf(request, client);
    const submitted = client.submit("http", {
      input: { url, method: request.method, headers, ...body },
      files,
      idempotencyKey: init.idempotencyKey,
      // A submit that is aborted half-way may have made the job, whose id nobody would know then.
      signal: init.cancelJob ? undefined : signal,
    });
    try {
      const job = await unless(signal, submitted);
      init.onJob?.(job.id);
      const { response, from } = await answerOf(client, job.id, init.onProgress, signal);
      // A response that is made by hand has no address of its own; where a slow route leads is not for its callers.
      return Object.defineProperty(response, "url", { value: isRoute ? `${new URL(client.base).origin}${url}` : from });
    } catch (error) {
      if (signal.aborted && init.cancelJob) cancel(client, submitted);
      throw error;
    }
  };
}

/**
 * What is called: at the gateway's own address a slow route, which goes by its path.
 * @param {Request} request
 * @param {GatewayClient} client
 */
function targetOf(request, client) {
  const { origin, pathname, search, href, hash } = new URL(request.url);
  const isRoute = origin === new URL(client.base).origin;
  return { url: isRoute ? pathname + search : href.slice(0, href.length - hash.length), isRoute };
}

/** @param {Request} request */
async function bodyOf(request) {
  const blob = await request.blob();
  if (blob.size === 0) return { body: {}, files: [] };
  if (blob.size <= INLINE_BYTES && TEXT.test(request.headers.get("Content-Type") ?? "")) {
    try {
      return { body: { body: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await blob.arrayBuffer()) }, files: [] };
    } catch {
      // Not UTF-8, whatever its type says: as bytes then.
    }
  }
  // Its type is in the request's headers; as the file's it would be checked against what the kind reads.
  return { body: {}, files: [{ name: "body", blob: new Blob([blob], { type: "application/octet-stream" }) }] };
}

/**
 * Follow the job to its end.
 * @param {GatewayClient} client
 * @param {string} job
 * @param {((progress: FetchProgress) => void) | undefined} tell
 * @param {AbortSignal} signal
 */
async function answerOf(client, job, tell, signal) {
  for await (const event of client.events(job, { signal })) {
    if (tell) report(event, tell);
    if (event.type === "cancelled") {
      throw new GatewayError({ code: "job_cancelled", detail: `The job was cancelled: ${event.data.reason ?? "no reason was given"}` });
    }
    if (event.type === "failed") throw new GatewayError(event.data.problem, { mayPass: false });
  }
  const patience = { retries: RETRIES, backoff: new Backoff(), signal };
  const result = /** @type {HttpResult} */ (await persist(() => client.result(job, { signal }), patience));
  const body = result.body_url ? download(client, result.body_url, result.size, signal) : result.text;
  const response = new Response(NULL_BODY.has(result.status) ? null : body, { status: result.status, headers: result.headers });
  return { response, from: result.url };
}

/** @param {JobEvent} event @param {(progress: FetchProgress) => void} tell */
function report({ type, data, attempt }, tell) {
  if (type === "http.response") tell({ type: "response", status: data.status, headers: data.headers });
  else if (type === "delta" && data.channel === "body") tell({ type: "text", text: data.text });
  else if (type === "progress") tell({ type: "bytes", current: data.current, total: data.total ?? null });
  else if (type === "started" && (attempt ?? 1) > 1) tell({ type: "restart" });
  else if (type === "snapshot") {
    tell({ type: "restart" });
    if (data.text?.body) tell({ type: "text", text: data.text.body });
  }
}

/**
 * A body that is too large for the result. A download that is cut goes on where it stopped.
 * @param {GatewayClient} client
 * @param {string} path
 * @param {number} size
 * @param {AbortSignal} signal
 * @returns {ReadableStream<Uint8Array>}
 */
function download(client, path, size, signal) {
  let received = 0;
  let failures = 0;
  const backoff = new Backoff();
  let repeated = 0;
  let tag = "";
  let left = false;
  /** @type {ReadableStreamDefaultReader<Uint8Array> | undefined} */
  let reader;
  let silence = new SilenceTimer(Infinity);
  async function open() {
    silence.stop();
    silence = new SilenceTimer(client.silenceMs, signal);
    // [spec] If-Range: "if the representation is unchanged, send me the part(s) that I am requesting in Range; otherwise,
    // send me the entire representation" (RFC 9110, section 13.1.5)
    const headers = received > 0 ? { Range: `bytes=${received}-`, ...(tag && { "If-Range": tag }) } : {};
    const { status, headers: said, body } = await client.request(path, { headers, signal: silence.signal });
    // Weak where an edge packed it on the way: what is unpacked here is the same.
    const newTag = (said.get("ETag") ?? "").replace(/^W\//, "");
    const changed = tag !== "" && newTag !== "" && newTag !== tag;
    const starts = status === 206 ? Number(/^bytes (\d+)-/.exec(said.get("Content-Range") ?? "")?.[1]) : 0;
    if (changed || !body || !(starts <= received)) {
      throw new GatewayError({ code: "bad_download", detail: `${path} can't be read to its end: what came was no part of it` }, { mayPass: false });
    }
    tag ||= newTag;
    repeated = received - starts;
    return body.getReader();
  }
  return new ReadableStream({
    async pull(controller) {
      while (received < size) {
        try {
          reader ??= await open();
          if (left) return silence.stop();
          const { done, value } = await silence.guard(reader.read());
          // What a hop that doesn't know Range sends once more is left out.
          const fresh = value?.subarray(Math.min(value.byteLength, repeated));
          repeated -= (value?.byteLength ?? 0) - (fresh?.byteLength ?? 0);
          if (fresh && fresh.byteLength > 0) {
            received += fresh.byteLength;
            failures = 0;
            return controller.enqueue(fresh);
          }
          if (!done) continue;
        } catch (error) {
          const final = error instanceof GatewayError && !error.mayPass;
          if (signal.aborted || final || failures >= RETRIES) {
            silence.stop();
            throw signal.aborted ? signal.reason : error;
          }
        }
        // The connection ended before the body did.
        reader = undefined;
        failures += 1;
        await pause(backoff.nextMs(), signal);
        if (left) return;
      }
      silence.stop();
      controller.close();
    },
    cancel(reason) {
      left = true;
      silence.stop();
      return reader?.cancel(reason);
    },
  });
}

/** End the job, once it is known. The caller has gone: nobody hears of a failure. @param {GatewayClient} client @param {Promise<{id: string}>} submitted */
function cancel(client, submitted) {
  submitted.then(({ id }) => persist(() => client.cancel(id), { retries: RETRIES, backoff: new Backoff() })).catch(() => {});
}
