/** Decompresses what comes on stdin, one JSON line [codec, base64, rawSize] each; answers with base64 or the error's name. */

import { createInterface } from "node:readline";

const { decompress } = await import(process.argv[2]);
for await (const line of createInterface({ input: process.stdin })) {
  const [codec, packed, rawSize] = JSON.parse(line);
  try {
    console.log(Buffer.from(decompress(codec, new Uint8Array(Buffer.from(packed, "base64")), rawSize)).toString("base64"));
  } catch (error) {
    console.log(`!${error.name}`);
  }
}
