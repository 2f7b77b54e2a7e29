/// <reference path="./jsx.d.ts" preserve="true" />
/**
 * A React hook that follows a job. React is handed in, so that this module needs neither a bundler nor a copy of it:
 *
 *     import * as React from "react";
 *     export const useJob = createUseJob(React);
 *     // in a component: const job = useJob(client, id);
 *
 * @import { GatewayClient } from "./client.js"
 * @import { TransportName } from "./transports.js"
 */

/**
 * A job's present picture; see the members.
 * @template [Result=unknown] what the job returns
 * @template [Output=unknown] what the values of its outputs are
 * @typedef {import("./mirror.js").JobView<Result, Output>} JobView
 */

/**
 * What is needed of React.
 * @typedef {Pick<typeof import("react"), "useMemo" | "useEffect" | "useSyncExternalStore">} Hooks
 */

/**
 * How to follow the job.
 * @typedef {object} UseJobOptions
 * @property {TransportName | undefined} [transport]
 * @property {boolean | undefined} [snapshot] begin with a snapshot instead of the log's first event
 */

/**
 * The job's present picture, or null while there is no id. It changes with the job's events.
 * @typedef {<Result = unknown, Output = unknown>(client: GatewayClient, id: string | null | undefined,
 *   options?: UseJobOptions) => JobView<Result, Output> | null} UseJob
 */

import { JobMirror } from "./mirror.js";

const nothing = () => null;

/**
 * Make the hook `useJob` with your React.
 * @param {Hooks} react
 * @returns {UseJob}
 */
export function createUseJob({ useMemo, useEffect, useSyncExternalStore }) {
  /**
   * @param {GatewayClient} client
   * @param {string | null | undefined} id
   * @param {UseJobOptions} [options]
   * @returns {JobView<any, any> | null}
   */
  return function useJob(client, id, { transport, snapshot } = {}) {
    const store = useMemo(() => (id ? jobStore(client, id, { transport, snapshot }) : null), [client, id, transport, snapshot]);
    useEffect(() => store?.follow(), [store]);
    return useSyncExternalStore(store?.subscribe ?? subscribeNothing, store?.get ?? nothing, nothing);
  };
}

/**
 * @param {GatewayClient} client
 * @param {string} id
 * @param {UseJobOptions} options
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
