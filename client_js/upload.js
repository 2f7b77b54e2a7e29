/**
 * One request whose body's progress is watched. `fetch` can't do that in browsers, so XMLHttpRequest does where a
 * listener asks for it.
 */

/**
 * How many of the files' bytes have gone.
 * @typedef {{loaded: number, total: number}} UploadProgress
 */

/**
 * What came back.
 * @typedef {{status: number, body: string, header: (name: string) => string | null}} Answer
 */

/**
 * What to send.
 * @typedef {object} Upload
 * @property {"POST" | "PATCH" | "GET" | "DELETE"} [method]
 * @property {string} url
 * @property {Record<string, string>} headers
 * @property {FormData | Blob | string} [body]
 * @property {AbortSignal} [signal]
 * @property {(progress: UploadProgress) => void} [onprogress]
 * @property {number} silenceMs what brings nothing, and takes nothing, for so long is taken for cut
 * @property {typeof fetch} fetch
 */

import { connectionError, GatewayError } from "./errors.js";
import { SilenceTimer } from "./silence.js";

/** @param {Upload} upload @returns {Promise<Answer>} */
export async function send(upload) {
  upload.signal?.throwIfAborted();
  if (upload.onprogress && typeof XMLHttpRequest !== "undefined") return sendWatched(upload);
  const { method = "POST", url, headers, body, signal, silenceMs, fetch } = upload;
  // How much of a file has gone, `fetch` doesn't tell; anything else is answered soon, or its connection is dead.
  const silence = new SilenceTimer(typeof body === "object" ? Infinity : silenceMs, signal);
  try {
    const response = await silence.watch(fetch(url, { method, headers, body, signal: silence.signal, cache: "no-store" }));
    const text = await silence.watch(response.text());
    return { status: response.status, body: text, header: (name) => response.headers.get(name) };
  } finally {
    silence.stop();
  }
}

/** What an answer says. Throws `GatewayError` where something answered in the gateway's place. @param {Pick<Answer, "status" | "body">} answer */
export function read({ status, body }) {
  try {
    return JSON.parse(body);
  } catch {
    const detail = `Something answered ${status} with a body that is no JSON; check that the address is a gateway's.`;
    throw new GatewayError({ code: "not_a_gateway", detail }, { mayPass: false });
  }
}

/** @param {Upload} upload @returns {Promise<Answer>} */
function sendWatched({ method = "POST", url, headers, body, signal, onprogress, silenceMs }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const onAbort = () => request.abort();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const moved = () => {
      clearTimeout(timer);
      timer = setTimeout(onAbort, silenceMs);
    };
    const settle = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    };
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => {
      moved();
      onprogress?.({ loaded, total });
    };
    request.onload = () => {
      settle();
      resolve({ status: request.status, body: request.responseText, header: (name) => request.getResponseHeader(name) });
    };
    request.onerror = () => {
      settle();
      reject(connectionError(new Error("the request failed")));
    };
    request.onabort = () => {
      settle();
      reject(signal?.aborted ? signal.reason : connectionError(new Error("the upload did not move any more")));
    };
    signal?.addEventListener("abort", onAbort);
    moved();
    request.send(body);
  });
}
