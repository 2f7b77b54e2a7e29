/** The golden files of `tests/wire/`, which the gateway's own tests read as well: both must agree with them. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";

import { Fold, foldLog, TERMINAL, TRANSITIONS } from "../fold.js";
import { cursorOf, numberOf, shouldComeBack } from "../protocol.js";
import { EventStreamDecoder } from "../sse.js";

/** @param {string} name @returns {any} */
function golden(name) {
  return JSON.parse(readFileSync(new URL(`../../tests/wire/${name}.json`, import.meta.url), "utf8"));
}

/** @param {Uint8Array[]} pieces @param {string} before */
function decode(pieces, before) {
  const decoder = new EventStreamDecoder(before);
  const messages = pieces.flatMap((piece) => decoder.feed(piece));
  const events = messages.map(({ type, data, lastEventId }) => ({ event: type, data, id: lastEventId }));
  return { messages: events, last_event_id: decoder.lastEventId, retry_ms: decoder.retryMs };
}

describe("sse_decode.json", () => {
  for (const { name, stream, hex, before = "", messages, last_event_id, retry_ms } of golden("sse_decode").cases) {
    test(`${name}, cut anywhere`, () => {
      const bytes = new Uint8Array(hex === undefined ? Buffer.from(stream) : Buffer.from(hex, "hex"));
      const expected = { messages, last_event_id, retry_ms };

      for (let at = 0; at <= bytes.length; at += 1) {
        assert.deepEqual(decode([bytes.subarray(0, at), bytes.subarray(at)], before), expected, `cut at byte ${at}`);
      }
      assert.deepEqual(decode([...bytes].map((byte) => Uint8Array.of(byte)), before), expected, "byte by byte");
    });
  }
});

describe("sse_encode.json", () => {
  test("what the gateway writes is read back", () => {
    for (const { name, text, cursor, event, block } of golden("sse_encode").events) {
      const { messages, last_event_id } = decode([new Uint8Array(Buffer.from(block))], "");

      const data = text.replace(/\r\n|\r/g, "\n");
      assert.deepEqual(messages, [{ event: event ?? "message", data, id: cursor ?? "" }], name);
      assert.equal(last_event_id, cursor ?? "", name);
    }
  });
});

describe("fold.json", () => {
  const { job, cases, refused } = golden("fold");

  for (const { name, events, data } of cases) {
    test(`${name}, from the start and from a snapshot after any event`, () => {
      assert.deepEqual(foldLog(job, events).data(), data);

      for (let at = 0; at <= events.length; at += 1) {
        const snapshot = { job, type: "snapshot", data: JSON.parse(JSON.stringify(foldLog(job, events.slice(0, at)).data())) };
        const fold = Fold.fromSnapshot(snapshot);
        for (const event of events.slice(at)) fold.apply(event);

        // A snapshot only counts outputs: one that is replaced after it is counted again.
        assert.ok(fold.outputs >= data.outputs);
        assert.deepEqual({ ...fold.data(), outputs: 0 }, { ...data, outputs: 0 }, `snapshot after ${at}`);
      }
    });
  }

  for (const { name, events, words } of refused) {
    test(`${name} is refused, and changes nothing`, () => {
      const fold = foldLog(job, events.slice(0, -1));
      const before = fold.data();

      assert.throws(
        () => fold.apply(events.at(-1)),
        (/** @type {Error} */ error) => words.every((/** @type {string} */ word) => error.message.includes(word)),
      );
      assert.deepEqual(fold.data(), before);
    });
  }
});

test("cursors.json: an event's cursor, and the number in a cursor", () => {
  const { good, events } = golden("cursors");

  for (const { event, cursor } of events) assert.equal(cursorOf(event), cursor, JSON.stringify(event));
  for (const { text, number } of good) assert.equal(numberOf(text), number);
});

test("close_codes.json: which closes are come back from", () => {
  const { ours, others } = golden("close_codes");

  for (const { code, come_back } of [...ours, ...others]) assert.equal(shouldComeBack(code), come_back, `code ${code}`);
});

test("states.json: the states and their changes", () => {
  const { terminal, transitions } = golden("states");
  const table = transitions.map((/** @type {any} */ { from, type, to }) => [`${from} ${type}`, to]);

  assert.deepEqual(TRANSITIONS, Object.fromEntries(table));
  assert.deepEqual([...TERMINAL].sort(), terminal.sort());
});
