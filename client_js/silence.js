/**
 * Ends a connection on which nothing comes any more: a half-open one yields no error by itself, for hours.
 */

import { connectionError, GatewayError } from "./errors.js";

export class SilenceTimer {
  #controller = new AbortController();
  #silent = false;

  /**
   * @param {number} ms how long nothing may come; Infinity: for as long as it likes
   * @param {AbortSignal} [outer] ends it too
   * @param {() => void} [probe] called after half of the time
   */
  constructor(ms, outer, probe) {
    this.ms = ms;
    this.outer = outer;
    this.probe = probe;
    this.signal = this.#controller.signal;
    this.onOuter = () => this.#controller.abort(outer?.reason);
    outer?.addEventListener("abort", this.onOuter);
    if (outer?.aborted) this.onOuter();
    this.heard();
  }

  heard() {
    clearTimeout(this.timer);
    // A timer takes no Infinity.
    if (this.ms < Infinity) this.timer = setTimeout(() => this.#wait(), this.ms / 2);
  }

  /** Wait for a read; time that the consumer takes between two reads is not silence. @template T @param {Promise<T>} read */
  async guard(read) {
    this.heard();
    try {
      return await read;
    } finally {
      clearTimeout(this.timer);
    }
  }

  /** `guard`, and name what went wrong. @template T @param {Promise<T>} read */
  async watch(read) {
    try {
      return await this.guard(read);
    } catch (error) {
      throw this.explain(error);
    }
  }

  /** An answer's whole text, however long that takes while it comes; with it the watch is over. @param {Response} response */
  async text(response) {
    const decoder = new TextDecoder();
    const reader = response.body?.getReader();
    let text = "";
    try {
      for (;;) {
        const { done = true, value } = (await (reader && this.watch(reader.read()))) ?? {};
        if (done) return text + decoder.decode();
        text += decoder.decode(value, { stream: true });
      }
    } finally {
      this.stop();
    }
  }

  stop() {
    clearTimeout(this.timer);
    this.outer?.removeEventListener("abort", this.onOuter);
    this.#controller.abort();
  }

  /** Name the error that ended the connection. @param {unknown} error */
  explain(error) {
    if (this.#silent) {
      const detail = `Nothing came for ${Math.round(this.ms / 1000)} s, so the connection was given up.`;
      return new GatewayError({ code: "silent", detail }, { mayPass: true });
    }
    if (this.outer?.aborted) return this.outer.reason;
    return error instanceof GatewayError || error instanceof RangeError ? error : connectionError(error);
  }

  #wait() {
    this.probe?.();
    this.timer = setTimeout(() => {
      this.#silent = true;
      this.#controller.abort();
    }, this.ms / 2);
  }
}
