/**
 * Asks through a gateway's door with OpenAI's own package: `node openai-door.js BASE_URL KEY MODEL`.
 * Prints `cut` when its stream was cut, then what it got as JSON. Run by tests/integration/test_openai_responses.py.
 */

import OpenAI from "openai";

const [baseURL = "", apiKey = "", model = ""] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: /** @type {const} */ ("user"), content: "Count." }];

const models = [];
for await (const one of client.models.list()) models.push(one.id);

const whole = (await client.chat.completions.create({ model, messages })).choices[0]?.message.content;

let streamed = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
  streamed += chunk.choices[0]?.delta.content ?? "";

const begun = await client.responses.create({ model, input: "Count.", background: true });
const cancelled = (await client.responses.cancel(begun.id)).status;

let [before, after, id, last] = ["", "", "", -1];
try {
  const stream = await client.responses.create(
    { model, input: "Count.", background: true, stream: true },
    { query: { cut: "1.5" } },
  );
  for await (const event of stream) {
    if (event.type === "response.created") id = event.response.id;
    if (event.type === "response.output_text.delta") before += event.delta;
    last = event.sequence_number;
  }
} catch {
  console.log("cut");
}
for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last }))
  if (event.type === "response.output_text.delta") after += event.delta;
const fetched = (await client.responses.retrieve(id)).output_text;

let refused;
try {
  await client.responses.retrieve("resp_none");
} catch (error) {
  if (error instanceof OpenAI.NotFoundError) refused = { name: "NotFoundError", status: error.status };
}
console.log(JSON.stringify({ models, whole, streamed, before, after, fetched, cancelled, refused }));
