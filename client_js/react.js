/**
 * A React hook that follows a job. React is handed in, so that this module needs neither a bundler nor a copy of it:
 *
 *     import * as React from "react";
 *     export const useJob = createUseJob(React);
 *     // in a component: const { state, progress, text, outputs } = useJob(client, id);
 *
 * @typedef {ReturnType<JobMirror["view"]>} JobView
 * @typedef {Pick<typeof import("react"), "useMemo" | "useEffect" | "useSyncExternalStore">} Hooks
 */

import { JobMirror } from "./mirror.js";

/** @type {Readonly<JobView> | null} */
const NOTHING = null;

/** @param {Hooks} react */
export function createUseJob({ useMemo, useEffect, useSyncExternalStore }) {
  /**
   * The job's present picture, or null while there is no id. It changes with every event.
   * @param {import("./client.js").GatewayClient} client
   * @param {string | null | undefined} id
   * @param {{transport?: import("./client.js").TransportName, snapshot?: boolean}} [options]
   * @returns {JobView | null}
   */
  return function useJob(client, id, { transport, snapshot } = {}) {
    const store = useMemo(() => (id ? jobStore(client, id, { transport, snapshot }) : null), [client, id, transport, snapshot]);
    useEffect(() => store?.follow(), [store]);
    return useSyncExternalStore(store?.subscribe ?? subscribeNothing, store?.get ?? (() => NOTHING), () => NOTHING);
  };
}

/**
 * @param {import("./client.js").GatewayClient} client
 * @param {string} id
 * @param {{transport?: import("./client.js").TransportName, snapshot?: boolean}} options
 */
function jobStore(client, id, options) {
  /** @type {Set<() => void>} */
  const listeners = new Set();
  /** @type {JobView | null} */
  let view = null;
  return {
    /** @param {() => void} listener */
    subscribe(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    get: () => view,
    /** Strict mode runs effects twice, so each run follows anew. */
    follow() {
      const stop = new AbortController();
      const mirror = new JobMirror(client, id, {
        ...options,
        onchange() {
          if (stop.signal.aborted) return;
          view = mirror.view();
          for (const listener of listeners) listener();
        },
      });
      void mirror.run(stop.signal);
      return () => stop.abort();
    },
  };
}

const subscribeNothing = () => () => {};
