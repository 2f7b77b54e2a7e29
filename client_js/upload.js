/**
 * One request whose body's progress is watched. `fetch` can't do that in browsers, so XMLHttpRequest does where a
 * listener asks for it.
 *
 * @typedef {{loaded: number, total: number}} UploadProgress
 * @typedef {{status: number, body: string, header: (name: string) => string | null}} Answer
 *
 * @typedef {object} Upload
 * @property {string} url
 * @property {Record<string, string>} headers
 * @property {FormData | string} body
 * @property {AbortSignal} [signal]
 * @property {(progress: UploadProgress) => void} [onprogress]
 * @property {typeof fetch} fetch
 */

import { connectionError } from "./errors.js";

/** @param {Upload} upload @returns {Promise<Answer>} */
export async function send(upload) {
  upload.signal?.throwIfAborted();
  if (upload.onprogress && typeof XMLHttpRequest !== "undefined") return sendWatched(upload);
  const { url, headers, body, signal, fetch } = upload;
  try {
    const response = await fetch(url, { method: "POST", headers, body, signal, cache: "no-store" });
    return { status: response.status, body: await response.text(), header: (name) => response.headers.get(name) };
  } catch (error) {
    throw signal?.aborted ? signal.reason : connectionError(error);
  }
}

/** @param {Upload} upload @returns {Promise<Answer>} */
function sendWatched({ url, headers, body, signal, onprogress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const onAbort = () => request.abort();
    const settle = () => signal?.removeEventListener("abort", onAbort);
    request.open("POST", url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onprogress?.({ loaded, total });
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
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", onAbort);
    request.send(body);
  });
}
