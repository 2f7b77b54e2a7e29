/** The golden files of the protocol, which the gateway's tests read as well. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Fold, foldLog, TERMINAL } from "../fold.js";
import { cursorOf, numberOf, shouldComeBack } from "../protocol.js";
import { EventStreamDecoder } from "../sse.js";

/** @param {string} name @returns {any} */
function golden(name) {
  return JSON.parse(readFileSync(new URL(`../../tests/wire/${name}.json`, import.meta.url), "utf8"));
}

for (const { name, stream, hex, before = "", messages, last_event_id, retry_ms } of golden("sse_decode").cases) {
  test(`SSE: ${name}, cut at every byte`, () => {
    const bytes = hex === undefined ? Buffer.from(stream, "utf8") : Buffer.from(hex, "hex");
    const cuts = Array.from({ length: bytes.length + 1 }, (_, at) => [bytes.subarray(0, at), bytes.subarray(at)]);

    for (const pieces of [...cuts, Array.from(bytes, (byte) => Buffer.from([byte]))]) {
      const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
      const decoder = new EventStreamDecoder(before);
      const found = pieces.flatMap((piece) => decoder.feed(utf8.decode(piece, { stream: true })));

      assert.deepEqual(found.map(({ type, data, lastEventId }) => ({ event: type, data, id: lastEventId })), messages);
      assert.equal(decoder.lastEventId, last_event_id);
      assert.equal(decoder.retryMs, retry_ms);
    }
  });
}

const FOLD = golden("fold");

/** As it goes over the wire. @param {Fold} fold */
const dataOf = (fold) => JSON.parse(JSON.stringify(fold.data()));

for (const { name, events, data } of FOLD.cases) {
  test(`fold: ${name}, from a snapshot after any event`, () => {
    for (let at = 0; at <= events.length; at += 1) {
      const snapshot = { job: FOLD.job, type: /** @type {const} */ ("snapshot"), data: dataOf(foldLog(FOLD.job, events.slice(0, at))) };
      const fold = Fold.fromSnapshot(snapshot);
      for (const event of events.slice(at)) fold.apply(event);

      assert.deepEqual(dataOf(fold), data, `snapshot after event ${at}`);
    }
  });
}

for (const { name, events, words } of FOLD.refused) {
  test(`fold refuses: ${name}`, () => {
    const fold = foldLog(FOLD.job, events.slice(0, -1));
    const before = dataOf(fold);

    assert.throws(() => fold.apply(events.at(-1)), (error) => words.every((/** @type {string} */ word) => String(error).includes(word)));
    assert.deepEqual(dataOf(fold), before);
  });
}

test("an event leaves its listener with the golden cursor", () => {
  const { good, events, times } = golden("cursors");

  for (const { event, cursor } of events) assert.equal(cursorOf(event), cursor);
  for (const { text, number } of good) assert.equal(numberOf(text), number);
  for (const { time, ms } of times) assert.equal(Date.parse(time), ms);
});

test("a close code says whether to come back", () => {
  const { ours, others } = golden("close_codes");

  for (const { code, come_back } of [...ours, ...others]) assert.equal(shouldComeBack(code), come_back, String(code));
});

test("terminal states are those of the golden file", () => {
  assert.deepEqual([...TERMINAL].sort(), [...golden("states").terminal].sort());
});
