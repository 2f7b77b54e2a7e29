/**
 * Waiting: the pause before a reconnect, exponential with full jitter, so that clients that were cut together do not come
 * back together; and no longer than somebody wants to.
 */

const CAP_MS = 15_000;

/** How long to wait before the next try; each client's own, with its own chance. */
export class Backoff {
  #failures = 0;

  /** @param {{baseMs?: number, random?: () => number}} [options] */
  constructor({ baseMs = 1_000, random = Math.random } = {}) {
    this.baseMs = baseMs;
    this.random = random;
  }

  /** The connection proved itself: the next pause is a short one again. */
  reset() {
    this.#failures = 0;
  }

  /**
   * The next pause. The server's wish is the least, stretched by up to a half.
   * @param {number | null} [wishMs]
   */
  nextMs(wishMs = null) {
    const ceiling = Math.min(CAP_MS, this.baseMs * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 10);
    return wishMs === null ? this.random() * ceiling : wishMs * (1 + this.random() / 2);
  }
}

/**
 * Wait, but not longer than needed: a network that comes back ends the pause early. Rejects when aborted.
 * @param {number} ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const finish = () => {
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", finish);
      signal?.removeEventListener("abort", finish);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(finish, ms);
    globalThis.addEventListener?.("online", finish);
    signal?.addEventListener("abort", finish);
  });
}

/**
 * What the promise brings, or the signal's reason if that comes first.
 * @template T
 * @param {AbortSignal | undefined} signal
 * @param {Promise<T>} promise
 * @returns {Promise<T>}
 */
export async function unless(signal, promise) {
  if (!signal) return promise;
  /** @type {() => void} */
  let onAbort = () => {};
  const aborted = new Promise((_, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
  });
  try {
    return /** @type {T} */ (await Promise.race([promise, aborted]));
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
