/** What the package exports. The React hook and the custom elements are modules of their own. */
export { Backoff } from "./backoff.js";
export { GatewayClient } from "./client.js";
export { GatewayError } from "./errors.js";
export { createFetch } from "./fetch.js";
export { Fold, foldLog } from "./fold.js";
export { cursorOf, numberOf, shouldComeBack } from "./protocol.js";
export { EventStreamDecoder } from "./sse.js";
export { Subscription } from "./subscription.js";
export { openSse, openWebSocket } from "./transports.js";
