/**
 * A submit: JSON, or files in one multipart body while that is small and nothing is in its way, else in parts. Whichever
 * way the files go, the gateway takes it for the same request, so the Idempotency-Key finds the same job.
 */

/**
 * A submit, all its defaults filled in.
 * @typedef {object} Submit
 * @property {string} kind
 * @property {string} key
 * @property {Record<string, unknown>} input
 * @property {Record<string, unknown>} options
 * @property {import("./parts.js").NamedBlob[]} files
 * @property {number} partBytes
 * @property {number} retries
 * @property {AbortSignal} [signal]
 * @property {(progress: import("./upload.js").UploadProgress) => void} [onprogress]
 */

import { Backoff } from "./backoff.js";
import { GatewayError } from "./errors.js";
import { LEAST_PART_BYTES, Meter, Parts, persist } from "./parts.js";

/** @param {import("./parts.js").Ask} ask @param {Submit} submit @returns {Promise<import("./upload.js").Answer>} */
export async function submitJob(ask, submit) {
  const { kind, key, input, options, files, partBytes, retries, signal } = submit;
  const path = `/v1/kinds/${encodeURIComponent(kind)}/jobs`;
  const headers = { "Idempotency-Key": key };
  const backoff = new Backoff();
  const patience = { retries, backoff, signal };
  /** @param {string[]} uploads */
  const sendJson = (uploads) => {
    const named = uploads.length > 0 && { files: uploads.map((upload) => ({ upload })) };
    const body = JSON.stringify({ ...options, input, ...named });
    return persist(() => ask({ method: "POST", path, headers: { ...headers, "Content-Type": "application/json" }, body, signal }), patience);
  };
  if (files.length === 0) return sendJson([]);

  const total = files.reduce((sum, { blob }) => sum + blob.size, 0);
  const meter = new Meter(submit.onprogress, total);
  let firstBytes = partBytes;
  if (total <= partBytes) {
    /** @param {import("./upload.js").UploadProgress} progress */
    const watch = ({ loaded }) => meter.at(loaded);
    const onprogress = submit.onprogress && watch;
    const sendForm = () => ask({ method: "POST", path, headers, body: form(input, options, files), signal, onprogress });
    if (total <= LEAST_PART_BYTES) return persist(sendForm, patience);
    try {
      return await sendForm();
    } catch (error) {
      if (!(error instanceof GatewayError)) throw error;
      if (error.code === "http_413") firstBytes = Math.max(LEAST_PART_BYTES, Math.floor(total / 2));
      else if (error.mayPass) firstBytes = LEAST_PART_BYTES;
      else throw error;
    }
  }
  const parts = new Parts({ ask, partBytes, firstBytes, retries, backoff, signal });
  const uploads = [];
  let before = 0;
  for (const file of files) {
    uploads.push(await parts.send(kind, file, (sent) => meter.at(before + sent)));
    before += file.blob.size;
  }
  const answer = await sendJson(uploads);
  await Promise.all(uploads.map((upload) => parts.delete(upload)));
  return answer;
}

/**
 * @param {Record<string, unknown>} input
 * @param {Record<string, unknown>} options
 * @param {import("./parts.js").NamedBlob[]} files
 */
function form(input, options, files) {
  const body = new FormData();
  body.append("input", JSON.stringify(input));
  for (const [name, value] of Object.entries(options)) {
    body.append(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  for (const { name, blob } of files) body.append("file", blob, name);
  return body;
}
