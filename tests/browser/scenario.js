/**
 * What the JavaScript client must do against a server that support/pages.py has prepared. Runs in a page and in
 * Node; returns the names of what was shown. Names and counts are those of pages.py.
 */

export async function run(client, { connect, Connection, TidewireError }, url) {
  const shown = [];
  const step = async (name, act) => {
    try {
      await within(20_000, act(), name);
    } catch (error) {
      throw new Error(`${name}: ${error.name} ${error.code ?? ""} ${error.reason ?? ""} ${error.message}\n${error.stack}`);
    }
    shown.push(name);
  };

  await step("publish and subscribe", async () => {
    const live = client.subscribe(["live.*.x", "live.other"]);
    await live.ready;
    const ack = await client.publish("live.a.x", "grüß dich", { headers: { color: "blue" } });
    equal([1, "", 0, "memory"], [ack.receivers, ack.stream, ack.sequence, ack.durability]);
    await client.publishMany("live.other", ["one", new Uint8Array([0, 255])]);
    const got = await take(live, 3);
    equal(["live.a.x", "live.other", "live.other"], got.map((each) => each.subject));
    equal(["grüß dich", "one"], got.slice(0, 2).map((each) => each.text()));
    equal([0, 255], [...got[2].payload]);
    equal("blue", new TextDecoder().decode(got[0].headers[0][1]));
  });

  await step("durable streams and deduplication", async () => {
    const first = await client.publish("kept.a", "1", { messageId: "m-1" });
    equal(["kept", 1, "fsync", 0], [first.stream, first.sequence, first.durability, first.duplicates]);
    const again = await client.publish("kept.a", "1", { messageId: "m-1" });
    equal([1, 1], [again.sequence, again.duplicates]);
    await client.publish("kept.b", "2", { expectedStream: "kept", expectedLastSequence: 1 });
    await refused("WRONG_LAST_SEQUENCE", client.publish("kept.b", "3", { expectedLastSequence: 1 }));
    const read = await take(client.read("kept"), 2);
    equal([[1, "1"], [2, "2"]], read.map((each) => [each.sequence, each.text()]));
  });

  await step("a durable consumer with acknowledgements", async () => {
    const seen = [];
    const consumer = client.consume("kept", "readers");
    for await (const message of consumer) {
      seen.push([message.sequence, message.attempt]);
      if (message.sequence === 1 && message.attempt === 1) await message.retry({ delayMs: 50, reason: "once more" });
      else await message.ack();
      if (seen.length === 3) break;
    }
    equal([[1, 1], [2, 1], [1, 2]], seen);
  });

  await step("every codec a publisher may use", async () => {
    const got = await take(client.read("packed"), 4);
    equal(["none", "lz4", "snappy", "zstd"], got.map((each) => each.subject.split(".")[1]));
    equal([true], [...new Set(got.map((each) => each.text().startsWith("a long text, a long text")))]);
    equal([50_000], [...new Set(got.map((each) => each.payload.length))]);
  });

  await step("large messages, in fragments both ways", async () => {
    const large = new Uint8Array(5_000_000).map((_, i) => i * 7);
    const live = client.subscribe("large");
    await live.ready;
    await client.publish("large", large);
    const [back] = await take(live, 1);
    equal(large.length, back.payload.length);
    equal(true, back.payload.every((byte, i) => byte === ((i * 7) & 255)));
  });

  await step("flow control: a slow reader of much", async () => {
    const reader = client.read("much", { creditMessages: 20, creditBytes: 500_000 });
    let count = 0;
    for await (const message of reader) {
      count += 1;
      equal(count, message.sequence);
      if (count % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
      if (reader.inbox.length > 40) throw new Error("more was sent than there was credit for");
      if (count === 400) break;
    }
  });

  await step("errors have codes and reasons", async () => {
    const error = await refused("INVALID_SUBJECT", client.publish("not a subject", ""));
    equal([true, "INVALID_ARGUMENT"], [error instanceof TidewireError, error.code]);
    await refused("STREAM_NOT_FOUND", take(client.read("nowhere"), 1));
    await refused("METHOD_NOT_FOUND", client.unary("/tidewire.v1.EventService/Shout", new Uint8Array(0)), "UNIMPLEMENTED");
    await refused("WIRE_UNSUITABLE", connect(url, { token: "secret" }));
    await refused("MESSAGE_TOO_LARGE", client.publish("live.a.x", new Uint8Array(10_747_905)));
  });

  await step("deadlines and cancellation", async () => {
    const late = await client.stream("/tidewire.v1.EventService/Subscribe", { timeoutMs: 100 });
    await refused("DEADLINE_EXPIRED", late.next(), "DEADLINE_EXCEEDED");
    const abort = new AbortController();
    const aborted = await client.stream("/tidewire.v1.EventService/Subscribe", { signal: abort.signal });
    setTimeout(() => abort.abort(), 20);
    await refused("CANCELLED", aborted.next(), "CANCELLED");
    equal(0, client.current.calls.size);
  });

  await step("connects again and subscribes again", async () => {
    const interrupted = [];
    const live = client.subscribe("again", { onInterrupted: (error) => interrupted.push(error.code) });
    await live.ready;
    const before = client.current;
    await client.publish("kick", "").catch((error) => equal("UNAVAILABLE", error.code));
    while (client.current === before || !client.current.calls.size) await new Promise((resolve) => setTimeout(resolve, 10));
    let receivers = 0;
    while (receivers === 0) ({ receivers } = await client.publish("again", "here I am"));
    equal("here I am", (await take(live, 1))[0].text());
    equal(["UNAVAILABLE"], interrupted);
  });

  await step("an orderly end of the connection", async () => {
    const own = await Connection.open(url);
    own.drain();
    equal(true, own.closed);
  });
  return shown;
}

async function take(subscription, count) {
  const got = [];
  for await (const message of subscription) if (got.push(message) === count) break;
  return got;
}

async function refused(reason, promise, code = undefined) {
  const error = await promise.then(
    () => {
      throw new Error(`it was not refused with ${reason || code}`);
    },
    (caught) => caught,
  );
  equal(reason, error.reason ?? error.message);
  if (code) equal(code, error.code);
  return error;
}

function equal(expected, actual) {
  const [one, two] = [JSON.stringify(expected), JSON.stringify(actual)];
  if (one !== two) throw new Error(`expected ${one}, got ${two}`);
}

function within(ms, promise, name) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`${name} took more than ${ms} ms`)), ms).unref?.());
  return Promise.race([promise, late]);
}
