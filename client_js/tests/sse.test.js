import assert from "node:assert/strict";
import { test } from "node:test";

import { EventStreamDecoder } from "../sse.js";

/** @param {string[]} pieces */
function decode(...pieces) {
  const decoder = new EventStreamDecoder();
  return { decoder, messages: pieces.flatMap((piece) => decoder.feed(piece)) };
}

const STREAM = "\ufeff: hello\r\nretry: 250\r\n\r\nid: 1-5\rdata: a\rdata: ü\u2028b\r\revent: x\nid: 2-6\ndata:  c\n\nid: 3-7\n\ndata\n\n";
const MESSAGES = [
  { type: "message", data: "a\nü\u2028b", lastEventId: "1-5" },
  { type: "x", data: " c", lastEventId: "2-6" },
  { type: "message", data: "", lastEventId: "3-7" },
];

test("CR, LF and CRLF end lines, wherever the stream is cut in two", () => {
  for (let at = 0; at <= STREAM.length; at += 1) {
    const { decoder, messages } = decode(STREAM.slice(0, at), STREAM.slice(at));

    assert.deepEqual(messages, MESSAGES, `cut at ${at}`);
    assert.equal(decoder.retryMs, 250);
  }
});

test("one character at a time, with empty pieces between, reads the same", () => {
  assert.deepEqual(decode(...[...STREAM].flatMap((character) => [character, ""])).messages, MESSAGES);
});

test("only one byte order mark is stripped, and only at the start", () => {
  const { messages } = decode("\ufeffdata: a\n\n\ufeffdata: b\n\ndata: \ufeffc\n\n");

  assert.deepEqual(messages.map(({ data }) => data), ["a", "\ufeffc"]);
});

test("an id with NUL is ignored, an empty id clears", () => {
  const { decoder, messages } = decode("id: 1\ndata: a\n\nid: 2\0\ndata: b\n\nid\ndata: c\n\n");

  assert.deepEqual(messages.map(({ lastEventId }) => lastEventId), ["1", "1", ""]);
  assert.equal(decoder.lastEventId, "");
});

test("an id counts at the blank line, so a message cut in the middle does not move it", () => {
  const { decoder } = decode("id: 1\ndata: a\n\nid: 2\ndata: b");

  assert.equal(decoder.lastEventId, "1");
});

test("a block with only an id moves the cursor and yields no message", () => {
  const { decoder, messages } = decode("id: 9-1\n\n");

  assert.deepEqual(messages, []);
  assert.equal(decoder.lastEventId, "9-1");
});

test("retry is read only if it is ASCII digits", () => {
  assert.equal(decode("retry: 10x\n\n").decoder.retryMs, null);
  assert.equal(decode("retry: ٣\n\n").decoder.retryMs, null);
  assert.equal(decode("retry:7\n\n").decoder.retryMs, 7);
});

test("comments, unknown fields and fields without a colon harm nothing", () => {
  const { messages } = decode(": x\n:y\nfoo: 1\ndata\ndata:\n\n");

  assert.deepEqual(messages, [{ type: "message", data: "\n", lastEventId: "" }]);
});

test("a line without an end is refused when it is too long for an event", () => {
  const decoder = new EventStreamDecoder();
  const piece = "x".repeat(1024 * 1024);

  assert.throws(() => {
    for (let count = 0; count < 20; count += 1) decoder.feed(piece);
  }, RangeError);
});
