/**
 * What a client shows to the gateway: an API key, or a page's token, which is fetched anew when its time is over.
 */

import { GatewayError } from "./errors.js";

// So much of a token's life is used; the rest is for clocks, and for requests that are on their way.
const USED_SHARE = 0.8;

/**
 * What goes with one request. `fresh`: it was fetched for this request, so that there is no better one.
 * @typedef {{text: string | null, fresh: boolean}} Shown
 */

export class Credentials {
  #ask;
  #given;
  /** @type {{text: string, until: number} | null} */
  #kept = null;
  /** @type {Promise<Shown> | null} */
  #coming = null;

  /**
   * @param {Pick<import("./client.js").ClientOptions, "apiKey" | "token">} options
   */
  constructor({ apiKey, token }) {
    if (apiKey && token) throw new TypeError("a client has an API key or a token, not both");
    this.#ask = typeof token === "function" ? token : null;
    this.#given = this.#ask ? null : (apiKey ?? (typeof token === "string" ? textOf(token) : null));
  }

  /** What to show now. Many that ask at once wait for one token. @returns {Promise<Shown>} */
  async get() {
    if (!this.#ask) return { text: typeof this.#given === "function" ? await had(this.#given) : this.#given, fresh: true };
    if (this.#kept && Date.now() < this.#kept.until) return { text: this.#kept.text, fresh: false };
    this.#coming ??= this.#fetch(this.#ask).finally(() => (this.#coming = null));
    return this.#coming;
  }

  /**
   * Whether a request that failed so can be made again with a fresh token.
   * @param {Shown} shown @param {unknown} error
   */
  renews({ text, fresh }, error) {
    if (fresh || !(error instanceof GatewayError) || error.status !== 401) return false;
    // Another request may have done so already.
    if (this.#kept?.text === text) this.#kept = null;
    return true;
  }

  /** @param {NonNullable<import("./client.js").TokenSource>} ask @returns {Promise<Shown>} */
  async #fetch(ask) {
    const asked = Date.now();
    const answer = await had(ask);
    if (!answer) return { text: null, fresh: true };
    const { token, expires_seconds: seconds = Infinity } = typeof answer === "string" ? { token: answer } : answer;
    if (typeof token !== "string" || token === "") {
      const detail = "What `token` answered holds no token; let it answer what the gateway said to POST /v1/tokens.";
      throw new GatewayError({ code: "no_token", detail }, { mayPass: false });
    }
    const text = textOf(token);
    this.#kept = text === null ? null : { text, until: asked + USED_SHARE * 1000 * seconds };
    return { text, fresh: true };
  }
}

/**
 * What a function gives that fetches a key or a token. What it throws may pass, as a network does that is away.
 * @template T
 * @param {() => T | Promise<T>} source
 * @returns {Promise<T>}
 */
async function had(source) {
  try {
    return await source();
  } catch (cause) {
    if (cause instanceof GatewayError) throw cause;
    const detail = "No key or token could be fetched; check the page's own server.";
    throw new GatewayError({ code: "no_token", detail }, { cause, mayPass: true });
  }
}

/** A token, or the one in a job's watch URL, which has none where the gateway has no keys. @param {string} token */
function textOf(token) {
  return token.includes("/") ? new URL(token, "http://gateway").searchParams.get("token") : token;
}
