/**
 * What can go wrong, as one class: the gateway's problem documents (RFC 9457) with their stable `code`, and the
 * client's own findings in the same shape.
 *
 * @import { Problem } from "./protocol.js"
 */

// Cloudflare's own answers for an origin that is away or slow; the request may or may not have reached the gateway.
const EDGE_STATUSES = new Set([520, 521, 522, 523, 524, 525, 526, 527, 530]);
const PASSING_STATUSES = new Set([408, 425, 429, 502, 503, 504]);

/**
 * Why something was refused, or can't be had. `code` is what to build on.
 *
 *     if (error instanceof GatewayError && error.code === "too_many") await later(error.retryAfterMs);
 */
export class GatewayError extends Error {
  /**
   * @param {Problem} problem
   * @param {{retryAfterMs?: number | null, mayPass?: boolean, cause?: unknown}} [options]
   */
  constructor(problem, { retryAfterMs = null, mayPass, cause } = {}) {
    super(problem.detail || problem.title || problem.code, { cause });
    this.name = "GatewayError";
    /** The whole problem document, with members of its own such as `errors`. */
    this.problem = problem;
    this.code = problem.code;
    /** The HTTP status, or null where there was no answer. */
    this.status = problem.status ?? null;
    /** The server's wish for the pause before the next try, in ms. */
    this.retryAfterMs = retryAfterMs;
    /** Whether the same request can work later. */
    this.mayPass = mayPass ?? (this.status === null || isPassing(this.status));
  }
}

/** Whether an answer with this status says nothing about the request itself. @param {number} status */
export function isPassing(status) {
  return PASSING_STATUSES.has(status) || EDGE_STATUSES.has(status);
}

/** A connection that failed before or during an answer. @param {unknown} cause */
export function connectionError(cause) {
  const detail = "The connection to the gateway failed. Check the network, and that the address is a gateway's.";
  return new GatewayError({ code: "connection_failed", detail }, { cause, mayPass: true });
}

/**
 * What an upstream answered that an edge would replace, so that it came as 503; nothing changes by asking again.
 * @param {number} status the upstream's own
 */
export function upstreamError(status) {
  return new GatewayError({ code: "upstream_status", detail: `The upstream answered ${status}; its body is in the job's result.`, status }, { mayPass: false });
}

/** @param {string | null} header `Retry-After` in seconds; its date form is not used by the gateway */
export function parseRetryAfter(header) {
  const seconds = header === null || header.trim() === "" ? NaN : Number(header);
  return Number.isFinite(seconds) && seconds >= 0 ? seconds * 1000 : null;
}

/**
 * The error that an answer other than 2xx stands for.
 * @param {number} status
 * @param {string} body
 * @param {string | null} retryAfter
 */
export function answerError(status, body, retryAfter) {
  /** @type {Problem} */
  let problem = { code: `http_${status}`, detail: `The gateway, or something in front of it, answered ${status}.` };
  try {
    const parsed = JSON.parse(body);
    if (typeof parsed?.code === "string") problem = parsed;
  } catch {
    // Not ours: an edge's HTML page, for example. The status says enough.
  }
  return new GatewayError({ ...problem, status }, { retryAfterMs: parseRetryAfter(retryAfter) });
}
