/**
 * The page's sentences about times, counts and workers. Pure: numbers in, words out.
 */

import { GatewayError } from "./errors.js";

// The gateway tells at once when a worker has been silent for half a lease (15 s by default), and at each heartbeat
// how it is. What is older than that but was not called silent, is alive; only how long ago it was seen is not known.
const SEEN_IS_FRESH_SECONDS = 12;

/** @param {number} count @param {string} one @param {string} [many] */
export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** @param {number} seconds */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 100) return `${whole} s`;
  if (whole < 5400) return `${Math.round(whole / 60)} min`;
  return `${(whole / 3600).toFixed(1)} h`;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 1_000_000) return `${Math.round(bytes / 1000)} kB`;
  return `${(bytes / 1_000_000).toFixed(1)} MB`;
}

/** @param {string} time RFC 3339 @param {number} now ms */
export function ago(time, now) {
  const seconds = Math.max(0, (now - Date.parse(time)) / 1000);
  if (seconds < 45) return "just now";
  if (seconds < 86_400) return `${duration(Math.max(seconds, 60))} ago`;
  return new Date(time).toLocaleDateString("en", { day: "numeric", month: "short" });
}

/**
 * What is known of the worker.
 * @param {object} sign
 * @param {number | null} sign.age seconds since it was last seen, ticking on this page's clock; null: no worker
 * @param {boolean} sign.late whether the gateway has called it silent
 * @param {boolean} sign.connected
 * @returns {{level: "alive" | "silent" | "unknown" | "none", text: string}}
 */
export function workerPhrase({ age, late, connected }) {
  if (age === null) return { level: "none", text: "" };
  if (!connected) return { level: "unknown", text: `Worker last seen ${duration(age)} ago` };
  if (late) return { level: "silent", text: `Worker silent for ${duration(age)}` };
  if (age > SEEN_IS_FRESH_SECONDS) return { level: "alive", text: "Worker alive" };
  return { level: "alive", text: `Worker alive, seen ${age < 2 ? "just now" : `${duration(age)} ago`}` };
}

/** @param {{position: number | null, eta_seconds?: number | null} | null} position */
export function queuePhrase(position) {
  if (!position || position.position === null) return "Waiting for a worker";
  if (position.position === 1) return "Next in the queue";
  const eta = position.eta_seconds ? `, about ${duration(position.eta_seconds)} to wait` : "";
  return `Number ${position.position.toLocaleString("en")} in the queue${eta}`;
}

/**
 * @param {Record<string, any> | null} progress
 * @param {number} etaAge seconds since the estimate came
 * @param {boolean} [silent] whether the worker that made it is silent, and so keeps no promise of its own
 */
export function progressPhrase(progress, etaAge, silent = false) {
  if (!progress) return { done: "", left: "" };
  const { current = 0, total = null, unit = "", stage = "", message = "", eta_seconds = null } = progress;
  // A half-read page is none yet; the bar shows the half.
  const whole = Math.floor(current).toLocaleString("en");
  const amount = total === null || unit === "%" ? `${whole} ${unit ?? ""}` : `${whole} of ${total.toLocaleString("en")} ${unit ?? ""}`;
  const left = eta_seconds === null || current === total || silent ? null : eta_seconds - etaAge;
  return { done: [amount.trim(), stage, message].filter(Boolean).join(" · "), left: left === null ? "" : leftPhrase(left) };
}

/** @param {number} seconds */
function leftPhrase(seconds) {
  if (seconds >= 1) return `about ${duration(seconds)} left`;
  // An estimate that is long over was wrong; the bar and the worker's sign say more.
  return seconds > -5 ? "almost done" : "";
}

/** Times that a form's field or a problem is shown with. @param {unknown} error */
export function errorPhrase(error) {
  if (!(error instanceof GatewayError)) return String(error instanceof Error ? error.message : error);
  const fields = (error.problem.errors ?? []).map(({ field, message }) => (field ? `${field}: ${message}` : `${message}`));
  // The gateway's own sentence begins with the first of them.
  return [error.message, ...fields.filter((field) => !error.message.includes(field))].join(" ");
}

/** @type {Record<string, string>} */
export const STATE_WORDS = {
  queued: "Waiting",
  running: "Working",
  succeeded: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
};
