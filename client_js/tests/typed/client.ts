/** What somebody writes who uses the client from TypeScript. It is type-checked only, never run. */

import {
  createFetch,
  Fold,
  foldLog,
  GatewayClient,
  GatewayError,
  type JobDocument,
  type JobEvent,
  type ProblemCode,
  type State,
} from "outlast-client";
import { foldLog as foldLogToo } from "outlast-client/fold";
import { EventStreamDecoder, type Message } from "outlast-client/sse";

interface Invoice {
  number: string;
  total: number;
}
interface Line {
  text: string;
}
interface Wish {
  language: string;
}

/** Fails to compile unless both are the same; `any` is like nothing but itself. */
type Same<One, Other> = (<T>() => T extends One ? 1 : 2) extends <T>() => T extends Other ? 1 : 2 ? true : false;
const holds = <_ extends true>(): void => {};

const client = new GatewayClient("http://127.0.0.1:8080", { apiKey: async () => null, transport: "websocket", WebSocket });
declare const maybe: { signal?: AbortSignal; reason?: string };

export async function submitAndRead(wish: Wish, file: File): Promise<Invoice> {
  const job = await client.submit<Invoice, Wish>("invoice", {
    input: wish,
    files: [file, { name: "second.pdf", blob: new Blob() }],
    options: { priority: "low", tags: ["may"], on_disconnect: "cancel", run_timeout_seconds: 60 },
    onUploadProgress: ({ loaded, total }) => console.log(loaded / total),
    signal: maybe.signal,
  });
  holds<Same<typeof job, JobDocument<Invoice>>>();
  holds<Same<typeof job.state, State>>();
  holds<Same<typeof job.urls.watch, string>>();
  // An interface has no index signature, and is an input all the same.
  await client.submit("invoice", { input: wish });
  await client.cancel(job.id, { reason: maybe.reason, signal: maybe.signal });

  const untyped = await client.result(job.id);
  holds<Same<typeof untyped, unknown>>();
  const invoice = await client.result<Invoice>(job.id, { accept: "application/json" });
  holds<Same<typeof invoice, Invoice>>();
  const page = await client.jobs({ state: "running", limit: 3 });
  console.log(page.jobs[0]?.tags, page.cursor?.length);
  const { kinds } = await client.kinds();
  console.log(kinds.map(({ kind, files, workers = 0 }) => `${kind} ${files} ${workers}`));

  // @ts-expect-error: there is no such priority
  await client.submit("invoice", { options: { priority: "urgent" } });
  // @ts-expect-error: nor such an option, which the gateway would refuse
  await client.submit("invoice", { options: { prio: "low" } });
  // @ts-expect-error: the input is not what this kind takes
  await client.submit<Invoice, Wish>("invoice", { input: { lang: "de" } });
  // @ts-expect-error: no job is ever in this state
  await client.jobs({ state: "done" });
  // @ts-expect-error: the result is not known to have this
  console.log((await client.result(job.id)).total);
  return invoice;
}

export async function follow(id: string): Promise<Invoice | undefined> {
  const events = client.events<Invoice, Line>(id, { after: "17-1795486646763", types: ["progress"], onconnection: ({ state }) => console.log(state) });
  holds<Same<typeof events.reconnects, number>>();
  for await (const event of events) {
    if (event.type === "progress") {
      holds<Same<typeof event.data.total, number | null>>();
      holds<Same<typeof event.id, number>>();
    }
    if (event.type === "delta") console.log(event.data.channel.length + event.data.text.length);
    if (event.type === "output") holds<Same<typeof event.data.value, Line | undefined>>();
    if (event.type === "retrying") holds<Same<typeof event.data.problem.code, ProblemCode>>();
    if (event.type === "position") holds<Same<typeof event.id, undefined>>();
    if (event.type === "snapshot") holds<Same<typeof event.data.text, Record<string, string>>>();
    if (event.type === "invoice.line") console.log(event.data["vat"]);
    // @ts-expect-error: progress has no text
    if (event.type === "progress") console.log(event.data.text);
    // @ts-expect-error: there is no such event; an application's own have a dot
    if (event.type === "done") return undefined;
    if (event.terminal) {
      holds<Same<typeof event.type, "succeeded" | "failed" | "cancelled">>();
      if (event.type === "failed") throw new GatewayError(event.data.problem);
      if (event.type === "succeeded") return event.data.result;
    }
  }
  return undefined;
}

export async function outputs(id: string): Promise<string[]> {
  const lines: string[] = [];
  for await (const { data } of client.outputs<Line>(id)) {
    lines.push(data.value?.text ?? (await (await client.request(data.url ?? "")).text()));
  }
  return lines;
}

export function explain(error: unknown): string {
  if (!(error instanceof GatewayError)) throw error;
  const code: ProblemCode = error.code;
  if (code === "too_many" && error.retryAfterMs !== null) return `in ${error.retryAfterMs} ms`;
  const fields = error.problem.errors?.map(({ field }) => field).join() ?? "";
  return `${error.status ?? "no answer"} ${fields} ${String(error.problem["request_id"])}`;
}

// What takes a `fetch` takes this one.
export const longFetch: typeof fetch = createFetch(client);
export const report = createFetch(client)("/api/report", {
  method: "POST",
  cancelJob: true,
  onProgress: (progress) => {
    if (progress.type === "text") console.log(progress.text.length);
    // @ts-expect-error: how far a body has come is told of `bytes` only
    else console.log(progress.current);
  },
});

export function fold(job: string, log: JobEvent[]): Fold {
  const { end, progress } = foldLog(job, log);
  holds<Same<typeof end.result, unknown>>();
  console.log(progress?.unit?.length);
  return foldLogToo(job, log);
}

export const messages: Message[] = new EventStreamDecoder("3-1").feed(new Uint8Array());
