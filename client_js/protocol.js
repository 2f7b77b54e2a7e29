/**
 * The wire protocol's words: what an event is, what a cursor is, which WebSocket closes mean "come back".
 * `docs/protocol.md` is its description; `tests/wire/` holds what the gateway and this client must agree on.
 */

/**
 * Where a job stands. Obey `terminal`, not a list of these.
 * @typedef {"queued" | "running" | "succeeded" | "failed" | "cancelled"} State
 */

/**
 * Who waits first: low ones are never starved.
 * @typedef {"high" | "normal" | "low"} Priority
 */

/**
 * What is wrong, as a problem document (RFC 9457). Build on the code, never on the text; some have members of their own.
 * @typedef {ProblemFields & {[member: string]: unknown}} Problem
 */

/**
 * What problems have in common.
 * @typedef {object} ProblemFields
 * @property {ProblemCode} code
 * @property {string} [title]
 * @property {string} [detail] what happened, and what to do next
 * @property {number | null} [status]
 * @property {{field?: string, message?: string}[]} [errors] each wrong field of an input
 */

/**
 * Codes of the gateway and the kinds that come with it; `docs/errors.md` tells what to do about each.
 * @typedef {"bad_request" | "bad_json" | "bad_multipart" | "bad_cursor" | "cursor_lost" | "bad_idempotency_key" | "bad_frame"
 *   | "key_in_query" | "websocket_expected" | "already_subscribed" | "unauthorized" | "token_expired" | "write_token"
 *   | "probe_token" | "forbidden" | "operators_only" | "foreign_origin" | "foreign_host" | "not_found" | "job_not_found"
 *   | "upload_not_found" | "unknown_kind" | "method_not_allowed" | "not_acceptable" | "request_timeout" | "conflict"
 *   | "not_finished" | "still_open" | "lease_lost" | "resubmitted_stream" | "wrong_offset" | "upload_incomplete"
 *   | "tus_version" | "expired" | "too_large" | "input_too_large" | "input_too_complex" | "too_many_files"
 *   | "log_full" | "too_many_parts" | "unsupported_type" | "file_not_allowed" | "range_not_satisfiable"
 *   | "invalid_input" | "file_required" | "file_empty" | "idempotency_key_reused" | "job_failed" | "job_cancelled"
 *   | "too_many" | "too_many_failures" | "too_many_streams" | "too_many_subscriptions" | "too_many_uploads"
 *   | "owner_queue_full" | "internal" | "store_unavailable" | "store_full" | "not_durable" | "blobs_unavailable"
 *   | "upload_joining" | "no_worker" | "queue_full" | "too_many_connections" | "draining" | "rejected"
 *   | "processor_error" | "retry_requested" | "retries_exhausted" | "worker_lost" | "worker_stopping" | "events_lost"
 *   | "run_timeout" | "start_deadline" | "deadline" | "input_empty" | "input_unreadable" | "input_unsupported"
 *   | "input_encrypted" | "input_timeout" | "page_unreadable" | "page_too_large" | "page_timeout" | "page_failed"
 *   | "language_unavailable" | "step_failed" | "step_cancelled" | "step_input" | "step_result" | "too_many_steps"
 *   | "process_died" | "out_of_memory" | "batch_stuck" | "engine_unavailable" | "upstream_not_http"
 *   | "upstream_bad_url" | "upstream_not_allowed" | "upstream_private" | "upstream_unreachable"
 *   | "upstream_connect_timeout" | "upstream_tls" | "upstream_broke_off" | "upstream_silent"
 *   | "upstream_wrong_length" | "upstream_garbage" | "upstream_too_large" | "upstream_redirected"
 *   | "upstream_redirected_private" | "input_url_failed" | "upstream_status" | "upstream_unknown"
 *   | "llm_unknown_model" | "llm_context_too_long" | "llm_refused" | "llm_unauthorized" | "llm_rate_limited"
 *   | "llm_upstream_failed" | "llm_broke_off" | "llm_garbage"} GatewayCode
 */

/**
 * What this client finds by itself: no connection, or one on which nothing came (`silent`); an answer of something else
 * than the gateway (`not_a_gateway`, `not_a_stream`); a stream or a download that can't be read to its end (`hole`,
 * `bad_stream`, `bad_download`); WebSockets that don't pass; an address that is not the gateway's; a `token` function that
 * brings none (`no_token`); `cut`, as you asked.
 * @typedef {"connection_failed" | "silent" | "not_a_gateway" | "not_a_stream" | "hole" | "bad_stream" | "bad_download"
 *   | "websocket_refused" | "foreign_address" | "no_token" | "cut"} ClientCode
 */

/**
 * A stable code. Processors have codes of their own, and an answer without a problem document is `http_` and its status.
 * @typedef {GatewayCode | ClientCode | `http_${number}` | (string & {})} ProblemCode
 */

/**
 * How far the work is; `current` never falls within an attempt.
 * @typedef {object} ProgressData
 * @property {number} current
 * @property {number | null} total null while it is not known
 * @property {string} [unit] such as `pages`
 * @property {string} [message]
 * @property {string} [stage]
 * @property {number} [eta_seconds] what is left, by the worker's own estimate
 */

/**
 * A part of the result, as soon as it is there: its `value`, or where it is. The same index replaces.
 * @template [Output=unknown]
 * @typedef {object} OutputData
 * @property {string} index
 * @property {string} content_type
 * @property {Output} [value]
 * @property {string} [url] where a large one is, to be fetched with `client.request(url)`
 * @property {number} [size] its bytes
 */

/**
 * What a terminal event says: a result, a problem or a reason, by the job's state.
 * @template [Result=unknown]
 * @typedef {object} EndData
 * @property {Result} [result] of a job that succeeded
 * @property {string} [result_url] where a result is that is too large to stand here; `client.result(id)` fetches it
 * @property {boolean} [partial] whether parts are missing
 * @property {Problem} [problem] why it failed
 * @property {string} [reason] why it was cancelled
 * @property {string} [by] who cancelled it
 */

/**
 * What a log amounts to, up to its cursor.
 * @typedef {object} Snapshot
 * @property {string} cursor
 * @property {State | null} state null before the first event
 * @property {number} attempt
 * @property {ProgressData | null} progress
 * @property {Record<string, string>} text what each channel's deltas add up to
 * @property {number} outputs how many `output` events there were; `client.outputs(id)` reads the outputs
 * @property {boolean} [cancel_requested]
 */

/**
 * An event of a job's log: its number comes after that of the event before, without holes.
 * @template {string} Type
 * @template Data
 * @typedef {object} LoggedEvent
 * @property {Type} type
 * @property {number} id
 * @property {string} time RFC 3339 UTC, in ms
 * @property {string} job
 * @property {number} attempt
 * @property {Data} data
 * @property {undefined} [terminal]
 */

/**
 * The last event of a job's log.
 * @template {State} Type
 * @template Data
 * @typedef {Omit<LoggedEvent<Type, Data>, "terminal"> & {terminal: true}} LastEvent
 */

/**
 * An event that is in no log: it comes once, and leaves the cursor where it is.
 * @template {string} Type
 * @template Data
 * @typedef {object} TransientEvent
 * @property {Type} type
 * @property {undefined} [id]
 * @property {string} time RFC 3339 UTC, in ms
 * @property {string} job
 * @property {undefined} [attempt]
 * @property {Data} data
 * @property {undefined} [terminal]
 */

/**
 * What stands for all events up to its number, in their place: drop what you have.
 * @template [Result=unknown]
 * @typedef {Omit<LoggedEvent<"snapshot", Snapshot & EndData<Result>>, "attempt"> & {attempt?: undefined}} SnapshotEvent
 */

/**
 * An output, by itself: what `client.outputs(id)` yields.
 * @template [Output=unknown]
 * @typedef {LoggedEvent<"output", OutputData<Output>>} OutputEvent
 */

/**
 * An event of the application's own: its type has a dot, such as `invoice.line`.
 * @typedef {LoggedEvent<`${string}.${string}`, Record<string, any>>} OwnEvent
 */

/**
 * How a job ended, which `terminal` tells.
 * @template [Result=unknown]
 * @typedef {LastEvent<"succeeded", {result?: Result, result_url?: string, partial?: boolean}>
 *   | LastEvent<"failed", {problem: Problem, partial?: boolean}>
 *   | LastEvent<"cancelled", {reason: string, by: string}>} EndEvent
 */

/**
 * An event, as it came: `type` says what is in `data`. A newer gateway may send types and members that are not named
 * here; they pass through.
 * @template [Result=unknown]
 * @template [Output=unknown]
 * @typedef {LoggedEvent<"queued", {}>
 *   | LoggedEvent<"started", {worker: string}>
 *   | LoggedEvent<"progress", ProgressData>
 *   | LoggedEvent<"delta", {channel: string, text: string}>
 *   | OutputEvent<Output>
 *   | LoggedEvent<"log", {level: string, message: string}>
 *   | LoggedEvent<"retrying", {problem: Problem, delay_seconds: number}>
 *   | LoggedEvent<"cancel_requested", {by: string, reason: string}>
 *   | EndEvent<Result>
 *   | OwnEvent
 *   | TransientEvent<"position", {position: number | null, eta_seconds?: number | null}>
 *   | TransientEvent<"liveness", {worker: string, seen_at: string, silent_seconds: number}>
 *   | SnapshotEvent<Result>
 *   | TransientEvent<"reset", {reason: string, missing_from: number, missing_to: number}>
 *   | TransientEvent<"missing", {problem: Problem}>
 *   | TransientEvent<"closing", {reason: string, retry_seconds: number}>} JobEvent
 */

/**
 * A file that belongs to a job; `client.request(url)` fetches it.
 * @typedef {object} FileInfo
 * @property {string} name
 * @property {string} content_type
 * @property {number} size its bytes
 * @property {string} url
 */

/**
 * Where the rest of a job is, as paths on the gateway. `watch` opens this one job without a key.
 * @typedef {Record<"self" | "events" | "websocket" | "result" | "outputs" | "cancel" | "watch", string>} JobUrls
 */

/**
 * A job, as it stood when the gateway answered.
 * @template [Result=unknown]
 * @typedef {object} JobDocument
 * @property {string} id
 * @property {string} kind
 * @property {State} state
 * @property {boolean} terminal whether it has ended
 * @property {number} attempt which try at it this is; 0 before the first
 * @property {string} last_event_id the cursor of its newest event
 * @property {string} created_at RFC 3339 UTC, as all times
 * @property {string | null} [started_at]
 * @property {string | null} [ended_at]
 * @property {string | null} [expires_at] until when its data is kept
 * @property {ProgressData | null} [progress]
 * @property {{worker: string, seen_at: string, silent_seconds: number} | null} [liveness] when its worker last showed
 *   that it lives
 * @property {Result | null} [result]
 * @property {string | null} [result_url] where a result is that is too large to stand here
 * @property {Problem | null} [problem] why it failed
 * @property {boolean} [partial] whether parts of the result are missing
 * @property {boolean} [cancel_requested]
 * @property {string | null} [retry_of] the job that this one does again
 * @property {string | null} [parent] the job that this one is a step of
 * @property {Priority} [priority]
 * @property {string[]} [tags]
 * @property {string | null} [user] for whom it was submitted, where that was done with a token
 * @property {FileInfo[]} [files]
 * @property {JobUrls} urls
 */

/**
 * A kind of work, and how it stands now.
 * @typedef {object} KindDocument
 * @property {string} kind
 * @property {string} description
 * @property {Record<string, any>} input_schema JSON Schema of its input
 * @property {Record<string, any> | null} [result_schema] JSON Schema of its result
 * @property {"none" | "optional" | "required"} files
 * @property {string[]} content_types of the files that it reads
 * @property {boolean} [listed] whether people are offered it
 * @property {number} [workers] how many do it at the moment
 * @property {boolean} [paused] whether its jobs wait until somebody resumes it
 * @property {number} [waiting] jobs in its queue
 * @property {number} [running] jobs in hand
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

/**
 * The event number in a cursor; 0 for the start.
 * @param {string} cursor
 */
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
