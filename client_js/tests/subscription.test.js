import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";

import { Backoff } from "../backoff.js";
import { GatewayClient } from "../client.js";
import { GatewayError } from "../errors.js";
import { cursorOfId, event, FakeGateway, finishedLog, JOB, timeOf, until } from "./fake-gateway.js";

/** @type {FakeGateway} */
let gateway;
beforeEach(async () => {
  gateway = await new FakeGateway().start();
});
afterEach(() => gateway.stop());

/** No pause between connections: the tests wait for conditions. */
const atOnce = () => new Backoff({ baseMs: 0, random: () => 0 });

/** @param {import("../client.js").EventsOptions} [options] */
function subscribe(options = {}, silenceSeconds = 20) {
  const client = new GatewayClient(gateway.base, { WebSocket: gateway.socketClass(), silenceSeconds });
  return client.events(JOB, { backoff: atOnce(), ...options });
}

/** @param {AsyncIterable<import("../protocol.js").JobEvent>} events */
async function collect(events) {
  const seen = [];
  for await (const item of events) seen.push(item);
  return seen;
}

/** @param {import("../protocol.js").JobEvent[]} events */
const numbers = (events) => events.map(({ id }) => id);

for (const transport of /** @type {const} */ (["sse", "websocket"])) {
  describe(`over ${transport}`, () => {
    test("every event comes once, in order, and the terminal one ends the loop", async () => {
      gateway.log = finishedLog();

      const events = await collect(subscribe({ transport }));

      assert.deepEqual(events, gateway.log);
    });

    test("a listener that comes with a cursor gets what is after it", async () => {
      gateway.log = finishedLog(9);

      const events = await collect(subscribe({ transport, after: cursorOfId(6) }));

      assert.deepEqual(numbers(events), [7, 8, 9]);
    });

    test("a token whose time is over is fetched anew, and the events go on where they were", async () => {
      gateway.log = finishedLog(9).slice(0, 5);
      let tokens = 0;
      const options = { token: () => `t${(tokens += 1)}`, WebSocket: gateway.socketClass() };
      const subscription = new GatewayClient(gateway.base, options).events(JOB, { transport, backoff: atOnce() });
      const seen = [];

      for await (const item of subscription) {
        seen.push(item.id);
        if (item.id === 5) {
          gateway.refusals = [{ status: 401, body: { code: "token_expired", detail: "over" } }];
          gateway.log = finishedLog(9);
          subscription.cut();
        }
      }

      assert.deepEqual(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
      assert.equal(tokens, 2);
    });

    test("a page's own server that is away for a while costs no event", async () => {
      gateway.log = finishedLog(4);
      let asked = 0;
      const token = async () => {
        if ((asked += 1) < 3) throw new TypeError("fetch failed");
        return "t1";
      };
      const client = new GatewayClient(gateway.base, { token, WebSocket: gateway.socketClass() });

      assert.deepEqual(numbers(await collect(client.events(JOB, { transport, backoff: atOnce() }))), [1, 2, 3, 4]);
    });

    test("cut() ends the connection, and the next one resumes after the last event", async () => {
      gateway.log = finishedLog(9).slice(0, 5);
      const subscription = subscribe({ transport });
      const seen = [];

      for await (const item of subscription) {
        seen.push(item.id);
        if (item.id === 3) subscription.cut();
        if (item.id === 5) gateway.append(...finishedLog(9).slice(5));
      }

      assert.deepEqual(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
      assert.deepEqual(gateway.streams().map(({ after }) => after ?? "0"), ["0", cursorOfId(3)]);
      assert.equal(subscription.reconnects, 1);
      assert.equal(subscription.repeated, 0);
    });

    test("events that come again are dropped and counted", async () => {
      gateway.log = [event(1, "queued"), event(2, "started"), event(1, "queued"), event(2, "started"), event(3, "succeeded")];

      const subscription = subscribe({ transport });

      assert.deepEqual(numbers(await collect(subscription)), [1, 2, 3]);
      assert.equal(subscription.repeated, 2);
      assert.equal(subscription.received, 3);
    });

    test("a hole in the numbers is read again instead of handed on", async () => {
      const whole = finishedLog(6);
      gateway.log = whole.filter(({ id }) => id !== 3);
      const subscription = subscribe({
        transport,
        onconnection: ({ state }) => {
          if (state === "waiting") gateway.log = whole;
        },
      });

      assert.deepEqual(numbers(await collect(subscription)), [1, 2, 3, 4, 5, 6]);
      assert.equal(subscription.holes, 1);
    });

    test("a hole that stays is an error, not an endless loop", async () => {
      gateway.log = finishedLog(6).filter(({ id }) => id !== 3);

      await assert.rejects(collect(subscribe({ transport })), { code: "hole" });
    });

    test("reset and snapshot are handed on, and the cursor is the snapshot's", async () => {
      const snapshot = { job: JOB, time: timeOf(7), type: "snapshot", data: { cursor: cursorOfId(7), state: "running" } };
      const reset = { job: JOB, time: timeOf(7), type: "reset", data: { reason: "trimmed" } };
      gateway.log = finishedLog(9);
      gateway.prelude = ({ after }) => (after === "3-1" ? [reset, snapshot].map((item) => `data: ${JSON.stringify(item)}\n\n`).join("") : "");
      const since = gateway.since.bind(gateway);
      gateway.since = (after) => (after !== "3-1" ? since(after) : transport === "sse" ? since("7") : [/** @type {any} */ (reset), /** @type {any} */ (snapshot), ...since("7")]);

      const subscription = subscribe({ transport, after: "3-1" });

      assert.deepEqual((await collect(subscription)).map(({ id, type }) => id ?? type), ["reset", "snapshot", 8, 9]);
      assert.equal(subscription.resets, 1);
    });

    test("closing gives the pause before the next connection", async () => {
      gateway.log = finishedLog(4).slice(0, 2);
      const pauses = /** @type {(number | null | undefined)[]} */ ([]);
      const backoff = Object.assign(atOnce(), {
        /** @param {number | null} [wish] */
        nextMs(wish) {
          pauses.push(wish);
          gateway.log = finishedLog(4);
          return 0;
        },
      });
      const subscription = subscribe({ transport, backoff });
      const closing = { job: JOB, time: timeOf(3), type: "closing", data: { reason: "max_age", retry_seconds: 0.25 } };

      for await (const item of subscription) {
        if (item.id !== 2 || pauses.length > 0) continue;
        gateway.append(/** @type {any} */ ({ ...closing, id: undefined }));
        gateway.endAll();
      }

      assert.deepEqual(pauses, [250]);
      assert.equal(subscription.reconnects, 1);
    });

    test("an unknown job, an expired one and a missing key are errors at once", async () => {
      for (const [status, code] of /** @type {const} */ ([[404, "not_found"], [410, "expired"], [401, "unauthorized"]])) {
        gateway.refusals = [{ status, body: { code, detail: "what to do" } }];

        await assert.rejects(collect(subscribe({ transport })), { code, status, message: "what to do" });
      }
    });

    test("503 and lost connections are tried again", async () => {
      gateway.log = finishedLog(4);
      gateway.refusals = [{ status: 503, body: { code: "draining" }, headers: { "Retry-After": "0" } }, { status: 0 }];

      assert.deepEqual(numbers(await collect(subscribe({ transport }))), [1, 2, 3, 4]);
    });

    test("an abort ends the loop with the signal's reason", async () => {
      gateway.log = finishedLog(9).slice(0, 4);
      const stop = new AbortController();
      const seen = /** @type {(number | undefined)[]} */ ([]);

      const reading = (async () => {
        for await (const item of subscribe({ transport, signal: stop.signal })) {
          seen.push(item.id);
          if (item.id === 4) setImmediate(() => stop.abort(new Error("enough")));
        }
      })();

      await assert.rejects(reading, { message: "enough" });
      assert.deepEqual(seen, [1, 2, 3, 4]);
    });

    test("a connection that falls silent is made anew", async () => {
      gateway.log = finishedLog(5).slice(0, 3);
      const subscription = subscribe({
        transport,
        onconnection: ({ state, lastError }) => {
          if (state !== "waiting") return;
          assert.equal(/** @type {GatewayError} */ (lastError).code, "silent");
          gateway.log = finishedLog(5);
        },
      }, 0.05);

      assert.deepEqual(numbers(await collect(subscription)), [1, 2, 3, 4, 5]);
    });

    test("a refusal that never comes to its end is silence, too", async () => {
      gateway.log = finishedLog(4);
      gateway.refusals = [{ status: 503, hangs: true }];

      assert.deepEqual(numbers(await collect(subscribe({ transport }, 0.05))), [1, 2, 3, 4]);
    });

    test("leaving the loop closes the connection", async () => {
      gateway.log = finishedLog(9).slice(0, 4);

      for await (const item of subscribe({ transport })) if (item.id === 2) break;

      await until(() => gateway.sockets.size === 0 && gateway.openStreams() === 0);
    });
  });
}

describe("over sse", () => {
  test("a key that can't be had at the moment is asked for again", async () => {
    gateway.log = finishedLog(4);
    let asked = 0;
    const apiKey = async () => {
      if ((asked += 1) % 2) throw new TypeError("Failed to fetch");
      return "secret";
    };
    const client = new GatewayClient(gateway.base, { apiKey });

    assert.deepEqual(numbers(await collect(client.events(JOB, { backoff: atOnce() }))), [1, 2, 3, 4]);
    assert.equal(asked, 2);
  });

  test("an abort doesn't wait for a token that never comes", { timeout: 20_000 }, async () => {
    const client = new GatewayClient(gateway.base, { token: () => new Promise(() => {}) });
    const stop = new AbortController();
    const { signal } = stop;
    const waiting = [collect(client.events(JOB, { signal })), client.job(JOB, { signal }), client.submit("ocr", { signal })];

    setImmediate(() => stop.abort(new Error("enough")));

    for (const one of waiting) await assert.rejects(one, { message: "enough" });
    await assert.rejects(client.job(JOB, { signal }), { message: "enough" });
  });

  test("a stream cut after any number of bytes loses nothing and repeats nothing", async () => {
    gateway.log = finishedLog(5);
    const size = gateway.log.reduce((sum, row) => sum + Buffer.byteLength(JSON.stringify(row)) + 30, 40);

    for (let bytes = 0; bytes < size; bytes += 1) {
      // Every later connection is whole.
      gateway.byteLimits = [bytes, Infinity];
      const subscription = subscribe({ transport: "sse" });

      assert.deepEqual(await collect(subscription), gateway.log, `cut after ${bytes} bytes`);
      assert.equal(subscription.repeated + subscription.holes, 0, `cut after ${bytes} bytes`);
    }
  });

  test("204 means that nothing is beyond the cursor, and ends the loop", async () => {
    gateway.log = finishedLog(4);

    assert.deepEqual(await collect(subscribe({ after: cursorOfId(4) })), []);
    assert.equal(gateway.requests.length, 1);
  });

  test("an answer that is no event stream is tried again", async () => {
    gateway.log = finishedLog(4);
    gateway.refusals = [{ status: 200, body: "<html>captive portal</html>", headers: { "Content-Type": "text/html" } }];

    assert.deepEqual(numbers(await collect(subscribe())), [1, 2, 3, 4]);
  });

  test("an event that stays unreadable is an error, not an endless loop", async () => {
    gateway.log = finishedLog(4);
    gateway.prelude = () => "data: {broken\n\n";

    await assert.rejects(collect(subscribe()), { code: "bad_stream" });
    assert.equal(gateway.streams().length, 3);
  });

  test("an edge's 524 is tried again, whatever its body", async () => {
    gateway.log = finishedLog(4);
    gateway.refusals = [{ status: 524, body: "<title>524: A timeout occurred</title>" }];

    assert.deepEqual(numbers(await collect(subscribe())), [1, 2, 3, 4]);
  });

  test("an id without data moves the cursor over what types left out", async () => {
    gateway.log = finishedLog(6).slice(5);
    gateway.prelude = ({ after }) => (after ? "" : `id: ${cursorOfId(5)}\n\n`);
    gateway.byteLimits = [45, Infinity];

    assert.deepEqual(numbers(await collect(subscribe({ types: ["succeeded"] }))), [6]);
    assert.equal(gateway.streams().at(-1)?.after, cursorOfId(5));
  });

  test("the server's retry advice becomes the back-off's base", async () => {
    gateway.log = finishedLog(4);
    const backoff = atOnce();

    await collect(subscribe({ backoff }));

    assert.equal(backoff.baseMs, 1);
  });
});

describe("over websocket", () => {
  test("a quiet connection whose gateway answers the probe stays", async () => {
    gateway.log = finishedLog(5).slice(0, 3);
    gateway.answersProbes = true;
    const subscription = subscribe({ transport: "websocket" }, 0.02);
    const ending = until(() => gateway.probes >= 4).then(() => gateway.append(...finishedLog(5).slice(3)));

    assert.deepEqual(numbers(await collect(subscription)), [1, 2, 3, 4, 5]);
    assert.equal(subscription.reconnects, 0);
    await ending;
  });

  test("where WebSockets don't pass, SSE takes over", async () => {
    gateway.log = finishedLog(4);
    gateway.refusesSockets = true;
    gateway.routes[`GET /v1/jobs/${JOB}`] = { id: JOB };

    assert.deepEqual(numbers(await collect(subscribe({ transport: "websocket" }))), [1, 2, 3, 4]);
  });

  test("an abort while the connection is made leaves nothing behind", async () => {
    const stop = new AbortController();
    const reading = collect(subscribe({ transport: "websocket", signal: stop.signal }));
    await until(() => gateway.sockets.size === 1);

    stop.abort(new Error("enough"));

    await assert.rejects(reading, { message: "enough" });
    assert.equal(gateway.sockets.size, 0);
    await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
  });

  test("a platform without WebSocket is told what to do", async () => {
    // Node 20 has none, newer ones do.
    Object.defineProperty(globalThis, "WebSocket", { value: undefined, configurable: true, writable: true });

    await assert.rejects(collect(new GatewayClient(gateway.base).events(JOB, { transport: "websocket" })), /hand one in/);
  });

  test("a key travels as a subprotocol, since a page can't set headers", async () => {
    gateway.log = finishedLog(9).slice(0, 3);
    const client = new GatewayClient(gateway.base, { apiKey: async () => "kéy>?", WebSocket: gateway.socketClass() });

    for await (const _ of client.events(JOB, { transport: "websocket" })) {
      assert.deepEqual([...gateway.sockets][0]?.protocols, ["outlast.v1", "outlast.key.a8OpeT4_"]);
      break;
    }
  });

  test("a close code that says so is not come back from", async () => {
    gateway.log = finishedLog(9).slice(0, 3);
    const subscription = subscribe({ transport: "websocket" });

    await assert.rejects(async () => {
      for await (const item of subscription) {
        if (item.id === 3) for (const socket of gateway.sockets) setImmediate(() => socket.drop(4501, "unauthorized"));
      }
    }, { code: "unauthorized" });
  });

  test("switching transports in the middle loses nothing", async () => {
    const { TRANSPORTS } = await import("../transports.js");
    gateway.log = finishedLog(9);
    const subscription = subscribe({ transport: "websocket" });
    const seen = [];

    for await (const item of subscription) {
      seen.push(item.id);
      if (item.id === 4) subscription.use(TRANSPORTS.sse);
    }

    assert.deepEqual(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert.deepEqual(gateway.streams().map(({ method }) => method), ["subscribe", "GET"]);
  });
});
