/** Publishes COUNT events while the server is replaced, the same message id until it is acknowledged: `restart.mjs URL CLIENT COUNT`. */

const [url, module, count] = process.argv.slice(2);
const { connect } = await import(module);
const client = await connect(url);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const got = [];
const interruptions = [];
const reader = client.read("kept", { onInterrupted: (error) => interruptions.push(error.reason) });
const reading = (async () => {
  for await (const message of reader) if (got.push(message.sequence) === Number(count)) break;
})();

let failures = 0;
for (let n = 0; n < count; n++) {
  for (;;) {
    try {
      await client.publish("kept.js", `${n}`, { messageId: `js-${n}`, timeoutMs: 3_000 });
      break;
    } catch (error) {
      if (error.code !== "UNAVAILABLE") throw error;
      failures += 1;
    }
  }
  console.log(n);
  await sleep(10);
}
await reading;
client.close();
console.log(JSON.stringify({ got, failures, interruptions }));
