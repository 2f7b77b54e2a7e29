/**
 * What the package exports; where all that a module has is for everybody, `export *` brings its types along. The React
 * hook and the custom elements are modules of their own.
 */

/**
 * How events come.
 * @typedef {import("./transports.js").TransportName} TransportName
 */

/**
 * Opens one connection that carries a job's events.
 * @typedef {import("./transports.js").Transport} Transport
 */

/**
 * How many of the files' bytes have gone.
 * @typedef {import("./upload.js").UploadProgress} UploadProgress
 */

export { Backoff } from "./backoff.js";
export * from "./client.js";
export { GatewayError } from "./errors.js";
export * from "./fetch.js";
export { Fold, foldLog } from "./fold.js";
export * from "./protocol.js";
export { EventStreamDecoder } from "./sse.js";
export * from "./subscription.js";
export { openSse, openWebSocket } from "./transports.js";
