/** Runs the scenario in Node: `node [--experimental-websocket] node.mjs URL CLIENT_MODULE`. */

const [url, module] = process.argv.slice(2);
const tidewire = await import(module);
const { run } = await import("./scenario.js");
const client = await tidewire.connect(url, { name: "node" });
console.log(JSON.stringify(await run(client, tidewire, url)));
client.close();
