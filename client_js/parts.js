/**
 * Files that go to the gateway in parts: each below an edge's body limit, after a cut from where the gateway stands.
 * The tus protocol, as `docs/http.md` has it under "Large files".
 */

/**
 * One request with the client's key; throws `GatewayError` unless 2xx.
 * @typedef {(request: {method: "POST" | "PATCH" | "GET" | "DELETE", path: string, headers?: Record<string, string>,
 *   body?: Blob | FormData | string, onprogress?: (progress: import("./upload.js").UploadProgress) => void,
 *   signal?: AbortSignal}) => Promise<import("./upload.js").Answer>} Ask
 */

/**
 * A file that is given by hand.
 * @typedef {{name: string, blob: Blob}} NamedBlob
 */

import { Backoff, pause } from "./backoff.js";
import { GatewayError } from "./errors.js";
import { read } from "./upload.js";

// A part that a line brings through in a second even where it is slow, and that every edge takes: nginx's limit is 1 MB.
export const LEAST_PART_BYTES = 256 * 1024;
const TUS = { "Tus-Resumable": "1.0.0" };

/** Tells a listener how much of the files has been sent: never less than before, whatever is sent again. */
export class Meter {
  #sent = 0;

  /** @param {((progress: import("./upload.js").UploadProgress) => void) | undefined} listener @param {number} total */
  constructor(listener, total) {
    this.listener = listener;
    this.total = total;
  }

  /** @param {number} sent */
  at(sent) {
    const loaded = Math.min(sent, this.total);
    if (loaded <= this.#sent) return;
    this.#sent = loaded;
    this.listener?.({ loaded, total: this.total });
  }
}

/** Uploads of one submit. A part that fails is followed by smaller ones, one that passes by larger ones. */
export class Parts {
  #most;
  #bytes;

  /**
   * @param {object} options
   * @param {Ask} options.ask
   * @param {number} options.partBytes
   * @param {number} options.firstBytes
   * @param {number} options.retries how often in a row a request may fail without a byte coming through
   * @param {Backoff} options.backoff
   * @param {AbortSignal} [options.signal]
   */
  constructor({ partBytes, firstBytes, ...options }) {
    this.#most = partBytes;
    this.#bytes = Math.min(firstBytes, partBytes);
    this.options = options;
  }

  /**
   * Upload a file for a job of this kind; answers with the upload's id.
   * @param {string} kind
   * @param {NamedBlob} file
   * @param {(sent: number) => void} report
   * @returns {Promise<string>}
   */
  async send(kind, file, report) {
    try {
      return await this.#send(kind, file, report);
    } catch (error) {
      // The gateway has forgotten it: it expired, or Redis lost it. From the start then, but not for ever.
      if (!(error instanceof GatewayError) || error.code !== "upload_not_found") throw error;
      return this.#send(kind, file, report);
    }
  }

  /** Give an upload up. It is no matter if that fails: it would expire. @param {string} upload */
  async delete(upload) {
    await this.options.ask({ method: "DELETE", path: `/v1/uploads/${upload}`, headers: TUS }).catch(() => {});
  }

  /** @param {string} kind @param {NamedBlob} file @param {(sent: number) => void} report */
  async #send(kind, { name, blob }, report) {
    const said = { filename: name, filetype: blob.type, kind };
    const pairs = Object.entries(said).map(([key, value]) => `${key} ${base64(value)}`);
    const headers = { ...TUS, "Upload-Length": String(blob.size), "Upload-Metadata": pairs.join(",") };
    const begun = await this.#persist(() => this.options.ask({ method: "POST", path: "/v1/uploads", headers }));
    const path = `/v1/uploads/${read(begun).id}`;
    let failures = 0;
    for (let offset = 0; offset < blob.size; ) {
      const piece = blob.slice(offset, offset + this.#bytes);
      try {
        await this.#patch(path, offset, piece, (sent) => report(offset + sent));
        offset += piece.size;
        report(offset);
        failures = 0;
        this.options.backoff.reset();
        this.#bytes = Math.min(this.#bytes * 2, this.#most);
      } catch (error) {
        const stood = offset;
        offset = await this.#afterFailure(path, stood, error, (failures += 1));
        if (offset > stood) failures = 0;
      }
    }
    return path.slice(path.lastIndexOf("/") + 1);
  }

  /** @param {string} path @param {number} offset @param {Blob} piece @param {(sent: number) => void} report */
  #patch(path, offset, piece, report) {
    // A Blob's own type would become the part's Content-Type.
    const headers = { ...TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(offset) };
    const { ask, signal } = this.options;
    return ask({ method: "PATCH", path, headers, body: piece, signal, onprogress: ({ loaded }) => report(loaded) });
  }

  /** Where to go on from. @param {string} path @param {number} offset @param {unknown} error @param {number} failures */
  async #afterFailure(path, offset, error, failures) {
    if (!(error instanceof GatewayError)) throw error;
    const { retries, backoff, signal } = this.options;
    if (error.code === "wrong_offset") {
      // An earlier connection's bytes came through after all.
      const known = Number(error.problem.offset);
      if (!Number.isSafeInteger(known) || known === offset) throw error;
      return known;
    }
    if (error.code === "http_413" && this.#bytes > LEAST_PART_BYTES) {
      // An edge's limit is below this size.
      this.#bytes = this.#most = Math.max(LEAST_PART_BYTES, Math.floor(this.#bytes / 2));
      return offset;
    }
    if (!error.mayPass || failures > retries) throw error;
    this.#bytes = Math.max(LEAST_PART_BYTES, Math.floor(this.#bytes / 2));
    await pause(backoff.nextMs(error.retryAfterMs), signal);
    const answer = await this.#persist(() => this.options.ask({ method: "GET", path, signal }));
    const { offset: known } = read(answer);
    if (!Number.isSafeInteger(known)) throw error;
    return known;
  }

  /** Ask until there is an answer of the gateway's. @template T @param {() => Promise<T>} ask @returns {Promise<T>} */
  async #persist(ask) {
    return persist(ask, this.options);
  }
}

/**
 * Ask until there is an answer that says something about the request.
 * @template T
 * @param {() => Promise<T>} ask
 * @param {{retries: number, backoff: Backoff, signal?: AbortSignal}} options
 * @returns {Promise<T>}
 */
export async function persist(ask, { retries, backoff, signal }) {
  for (let failures = 0; ; failures += 1) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof GatewayError) || !error.mayPass || failures >= retries) throw error;
      // The gateway is at work on it, and comes to an end.
      if (error.code === "upload_joining") failures = -1;
      await pause(backoff.nextMs(error.retryAfterMs), signal);
    }
  }
}

/** @param {string} text */
function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}
