/** A script for Node. */

import { createFetch, GatewayClient, GatewayError } from "outlast-client";

const client = new GatewayClient("http://127.0.0.1:8080", { apiKey: process.env["OUTLAST_API_KEY"] });

for await (const event of client.events<{ words: number }>("22jcerhx2axjbe4xdcug5w4evm")) {
  if (event.type === "succeeded") console.log(event.data.result?.words.toFixed());
}
const response: Response = await createFetch(client)("http://127.0.0.1:8080/api/report").catch((error: unknown) => {
  throw error instanceof GatewayError ? new Error(error.code) : error;
});
console.log(response.status);
