import assert from "node:assert/strict";
import { test } from "node:test";

import { Fold, foldLog } from "../fold.js";
import { cursorOfId, event, JOB } from "./fake-gateway.js";

const LOG = [
  event(1, "queued"),
  event(2, "started", { worker: "w" }),
  event(3, "progress", { current: 1, total: 2 }),
  event(4, "delta", { channel: "text", text: "a" }),
  event(5, "delta", { channel: "__proto__", text: "odd name" }),
  event(6, "output", { index: "page-1", value: 1 }),
  event(7, "output", { index: "page-1", value: 2 }),
  event(8, "invoice.line", {}),
  event(9, "retrying", { problem: { code: "processor_error" }, delay_seconds: 1 }),
  { ...event(10, "started", { worker: "w2" }), attempt: 2 },
  event(11, "delta", { channel: "text", text: "b" }),
  event(12, "cancel_requested", { by: "me" }),
  event(13, "cancelled", { reason: "asked", by: "me" }),
];

test("a new attempt clears progress and text, outputs stay", () => {
  const before = foldLog(JOB, LOG.slice(0, 8));
  const after = foldLog(JOB, LOG.slice(0, 10));

  assert.deepEqual([before.progress, before.text.text, before.outputs], [{ current: 1, total: 2 }, "a", 2]);
  assert.deepEqual([after.progress, { ...after.text }, after.outputs, after.attempt], [null, {}, 2, 2]);
});

test("a channel may have any name", () => {
  assert.equal(foldLog(JOB, LOG.slice(0, 6)).text["__proto__"], "odd name");
});

test("a snapshot at any event and the rest of the log make the same fold as the whole log", () => {
  const whole = foldLog(JOB, LOG).data();

  for (let at = 0; at <= LOG.length; at += 1) {
    const data = JSON.parse(JSON.stringify(foldLog(JOB, LOG.slice(0, at)).data()));
    const fold = Fold.fromSnapshot({ job: JOB, type: "snapshot", data });
    for (const item of LOG.slice(at)) fold.apply(item);

    assert.deepEqual(fold.data(), whole, `snapshot after event ${at}`);
  }
});

test("the end's data stands in the fold, and nothing may follow it", () => {
  const fold = foldLog(JOB, LOG);

  assert.ok(fold.terminal);
  assert.deepEqual([fold.state, fold.end.reason, fold.cancelRequested, fold.cursor], ["cancelled", "asked", true, cursorOfId(13)]);
  assert.throws(() => fold.apply(event(14, "progress", {})), /progress is not possible while the job is cancelled/);
});

test("holes, repeats and events without a number are refused", () => {
  const fold = foldLog(JOB, LOG.slice(0, 3));

  assert.throws(() => fold.apply(event(3, "progress")), /event 3 can't follow event 3/);
  assert.throws(() => fold.apply(event(5, "progress")), /event 5 can't follow event 3/);
  assert.throws(() => fold.apply({ ...event(4, "liveness"), id: undefined }), /no number/);
});

test("a change that the protocol forbids names the event and the state", () => {
  assert.throws(() => foldLog(JOB, [event(1, "started")]), /started is not possible while the job is not yet there/);
  assert.throws(() => foldLog(JOB, [event(1, "queued"), event(2, "succeeded")]), /succeeded .* queued/);
});
