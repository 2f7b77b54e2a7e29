/**
 * Uploads a file with tus-js-client, as somebody who has it already would: `node tus-upload.js ENDPOINT FILE CHUNK_BYTES`.
 * Prints the upload's address. Run by tests/integration/test_tus_clients.py.
 */

import { readFile } from "node:fs/promises";

import { Upload } from "tus-js-client";

const [endpoint = "", path = "", chunkSize] = process.argv.slice(2);
const upload = new Upload(await readFile(path), {
  endpoint,
  chunkSize: Number(chunkSize),
  retryDelays: [20, 20, 20, 20, 20, 20],
  metadata: { filename: "märz.pdf", filetype: "application/pdf" },
  onSuccess: () => console.log(upload.url),
  onError: (error) => {
    console.error(error);
    process.exitCode = 1;
  },
});
upload.start();
