/**
 * The wire protocol's words: what an event is, what a cursor is, which WebSocket closes mean "come back".
 * `docs/protocol.md` is its description; `tests/wire/` holds what the gateway and this client must agree on.
 *
 * @typedef {"queued" | "running" | "succeeded" | "failed" | "cancelled"} State
 *
 * @typedef {object} JobEvent one event, as it came; unknown types and members pass through
 * @property {number} [id] its number in the job's log; transient events have none
 * @property {string} [time] RFC 3339 UTC, in ms
 * @property {string} job
 * @property {number} [attempt]
 * @property {string} type
 * @property {boolean} [terminal]
 * @property {Record<string, any>} data
 *
 * @typedef {object} JobDocument
 * @property {string} id
 * @property {string} kind
 * @property {State} state
 * @property {boolean} terminal
 * @property {number} attempt
 * @property {string} last_event_id
 * @property {string} created_at
 * @property {string | null} [started_at]
 * @property {string | null} [ended_at]
 * @property {string | null} [expires_at]
 * @property {Record<string, any> | null} [progress]
 * @property {{worker: string, seen_at: string, silent_seconds: number} | null} [liveness]
 * @property {any} [result]
 * @property {string | null} [result_url]
 * @property {import("./errors.js").Problem | null} [problem]
 * @property {boolean} [partial]
 * @property {boolean} [cancel_requested]
 * @property {string | null} [retry_of]
 * @property {string[]} [tags]
 * @property {{name: string, content_type: string, size: number, url: string}[]} [files]
 * @property {Record<string, string>} urls
 *
 * @typedef {object} KindDocument
 * @property {string} kind
 * @property {string} description
 * @property {Record<string, any>} input_schema
 * @property {"none" | "optional" | "required"} files
 * @property {boolean} [listed] whether people are offered it
 * @property {string[]} content_types
 */

export const WEBSOCKET_PROTOCOL = "outlast.v1";

/**
 * What a listener that has this event comes back with: `N-T`. A snapshot carries its own; other events without a
 * number leave the cursor where it is (null).
 * @param {JobEvent} event
 * @returns {string | null}
 */
export function cursorOf(event) {
  if (event.type === "snapshot") return event.data.cursor ?? null;
  if (event.id === undefined || event.id === null || !event.time) return null;
  return `${event.id}-${Date.parse(event.time)}`;
}

/** The event number in a cursor; 0 for the start. @param {string} cursor */
export function numberOf(cursor) {
  return cursor === "" ? 0 : Number(cursor.split("-", 1)[0]);
}

/**
 * Whether to reconnect after this close code, known or not.
 * 4000 to 4499 say "come back", 4500 to 4999 "do not". What is left of 1xxx when both sides' own wishes and faults are
 * taken out is the network's or the server's.
 * @param {number} code
 */
export function shouldComeBack(code) {
  if (code >= 4000 && code <= 4999) return code < 4500;
  return [1001, 1005, 1006, 1011, 1012, 1013, 1014].includes(code);
}
