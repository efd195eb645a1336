/**
 * tidewire for browsers: publish and subscribe over ws:// and wss://. No build step, no dependencies.
 *
 *     import { connect } from "./tidewire.js";
 *     const client = await connect("wss://messages.example:7407", { token });
 *     await client.publish("weather.oslo", "-3");
 *     for await (const message of client.subscribe("weather.>")) console.log(message.subject, message.text());
 *
 * The server must list the page's origin in its option websocket.origins. Failures are TidewireErrors
 * with `code` and `reason`. Calls of any service: client.unary(method, bytes), client.stream(method).
 */

import { decompress, READABLE } from "./codecs.js";
import { Batch, MessageList, PayloadList, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse, crc32c, decode, encode } from "./proto.js";
import { Call, Connection, LIMITS, TidewireError } from "./wire.js";

export { Call, Connection, LIMITS, TidewireError };

const EVENTS = "/tidewire.v1.EventService/";
const PRIORITY_EVENTS = 6;
const DURABILITY = ["unspecified", "memory", "os", "fsync", "quorum"];
const DONE = 1, RETRY = 2, EXTEND = 3, TERMINATE = 4;
const CODEC_NONE = 1, FORM_PAYLOADS = 1, FORM_MESSAGES = 2;
const utf8 = new TextEncoder();
const bytesOf = (value) => (typeof value === "string" ? utf8.encode(value) : value instanceof ArrayBuffer ? new Uint8Array(value) : value);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Defaults of options; times in milliseconds. */
export const DEFAULTS = {
  timeoutMs: 10_000,
  backoffFirstMs: 200,
  backoffLastMs: 5_000,
  /** What a subscription takes before the application has. */
  creditMessages: 1_000,
  creditBytes: 4_194_304,
};

/**
 * Connect to a server.
 *
 * @param {string} url ws://host:port/path or wss://...
 * @param {{token?: string, name?: string, timeoutMs?: number, limits?: object}} options `token` needs wss;
 *   `name` is this client's name in the server's lists; `limits` are those of wire.js
 * @returns {Promise<Client>} connected; it connects again by itself when a connection is lost
 */
export async function connect(url, options = {}) {
  const client = new Client(url, options);
  await client.connection();
  return client;
}

/** A client of one server. */
export class Client {
  constructor(url, options) {
    this.url = url;
    this.options = { ...DEFAULTS, ...options };
    this.failures = 0;
    this.closed = false;
    this.subscriptions = new Set();
  }

  /** The connection that takes calls: the one there is, or a new one; waits longer after each failure. */
  connection() {
    if (this.closed) return Promise.reject(new TidewireError("CANCELLED", "the client is closed", "CANCELLED"));
    const { current } = this;
    if (current && !current.closed && !current.draining) return Promise.resolve(current);
    this.opening ??= this.open().finally(() => (this.opening = undefined));
    return this.opening;
  }

  async open() {
    if (this.failures) {
      const { backoffFirstMs, backoffLastMs } = this.options;
      await sleep(Math.min(backoffLastMs, backoffFirstMs * 2 ** (this.failures - 1)) * (0.8 + 0.4 * Math.random()));
    }
    this.failures += 1;
    const made = await Connection.open(this.url, { ...this.options, codecs: READABLE });
    if (this.closed) made.close();
    this.failures = 0;
    return (this.current = made);
  }

  /** Call a method with one request and one response, both serialized. `options`: timeoutMs, metadata, priority, signal. */
  async unary(method, request, options = {}) {
    const timeoutMs = options.timeoutMs ?? this.options.timeoutMs;
    const call = (await this.connection()).call(method, { ...options, timeoutMs }, request);
    const response = await call.next();
    if (response === undefined) throw new TidewireError("INTERNAL", `${method} ended without a response`, "PROTOCOL_VIOLATION");
    if (!call.over) await call.next();
    return response;
  }

  /** Open a streaming call; see Call. It has no deadline unless `timeoutMs` says so. */
  async stream(method, options = {}) {
    return (await this.connection()).call(method, options);
  }

  /**
   * Publish one event.
   *
   * @param {string} subject
   * @param {Uint8Array|ArrayBuffer|string} payload text is sent as UTF-8
   * @param {{headers?: object, messageId?: string, durability?: "memory"|"os"|"fsync"|"quorum", expectedStream?: string,
   *   expectedLastSequence?: number, timeoutMs?: number, signal?: AbortSignal}} options
   * @returns {Promise<{stream: string, sequence: number, durability: string, duplicates: number, receivers: number}>}
   *   `stream` is "" and `sequence` 0 when no stream keeps the subject
   */
  publish(subject, payload, { headers, messageId, ...options } = {}) {
    return this.publishMany(subject, [payload], { ...options, headers, messageIds: messageId ? [messageId] : [] });
  }

  /** Publish many events of one subject in one batch: bare payloads, or with the same headers for each. */
  async publishMany(subject, payloads, { headers, messageIds = [], durability, expectedStream, expectedLastSequence, ...options } = {}) {
    const payload = payloads.map(bytesOf);
    const header = Object.entries(headers ?? {}).map(([key, value]) => ({ key, value: bytesOf(value) }));
    const body = header.length
      ? encode(MessageList, { message: payload.map((each) => ({ payload: each, header })) })
      : encode(PayloadList, { payload });
    const batch = {
      subject, codec: CODEC_NONE, form: header.length ? FORM_MESSAGES : FORM_PAYLOADS, count: payload.length,
      raw_size: body.length, crc32c: crc32c(body), body, message_ids: messageIds,
    };
    const level = durability === undefined ? 0 : DURABILITY.indexOf(durability);
    if (level < 0) throw new TypeError(`durability is one of ${DURABILITY.slice(1).join(", ")}`);
    const request = encode(PublishRequest, {
      batch, durability: level, expected_stream: expectedStream, expected_last_sequence: expectedLastSequence,
    });
    const answer = decode(PublishResponse, await this.unary(`${EVENTS}Publish`, request, { priority: PRIORITY_EVENTS, ...options }));
    const { stream, stored, duplicates, receivers } = answer;
    return { stream, sequence: stored?.last ?? 0, durability: DURABILITY[answer.durability], duplicates, receivers };
  }

  /** Live events of subjects; `group` shares them among its members. */
  subscribe(subjects, { group = "", ...options } = {}) {
    return new Subscription(this, { live: { subjects: [subjects].flat(), group } }, options);
  }

  /** The share of a durable consumer: settle each message by ack(), retry(), extend() or terminate(). */
  consume(stream, consumer, options = {}) {
    return new Subscription(this, { consumer: { stream, consumer } }, options);
  }

  /** A stream in order, from `start`: {all: true}, {sequence: n}, {last: true} or {next: true}. */
  read(stream, { start = { all: true }, subjects = [], ...options } = {}) {
    return new Subscription(this, { ordered: { stream, start, subjects } }, options);
  }

  /** End subscriptions and the connection. */
  close() {
    this.closed = true;
    for (const each of [...this.subscriptions]) each.close();
    this.current?.drain();
  }
}

/** One event. `ack` and its like are for messages of a consumer; they resolve when the server has settled them. */
export class Message {
  constructor(subscription, fields) {
    this.subscription = subscription;
    Object.assign(this, fields);
  }

  /** The payload as UTF-8. */
  text() {
    return new TextDecoder().decode(this.payload);
  }

  /** The payload as JSON. */
  json() {
    return JSON.parse(this.text());
  }

  ack() {
    return this.subscription.settle(this, DONE);
  }

  /** Deliver again, after `delayMs` or the consumer's own back-off. */
  retry({ delayMs, reason = "" } = {}) {
    return this.subscription.settle(this, RETRY, reason, delayMs);
  }

  /** Still at work: the ack wait starts anew. */
  extend() {
    return this.subscription.settle(this, EXTEND);
  }

  /** Never deliver again. */
  terminate(reason = "") {
    return this.subscription.settle(this, TERMINATE, reason);
  }
}

/**
 * Messages, by `for await`. `ready` resolves when the server has opened it. It opens again when a connection is
 * lost: what is live was missed meanwhile, which `onInterrupted(error)` is told; `onLost(count)` is told
 * what the server dropped because this reader was slow.
 */
export class Subscription {
  constructor(client, source, { onInterrupted = () => {}, onLost = () => {}, creditMessages, creditBytes } = {}) {
    Object.assign(this, { client, source, onInterrupted, onLost });
    this.creditMessages = creditMessages ?? client.options.creditMessages;
    this.creditBytes = creditBytes ?? client.options.creditBytes;
    this.lost = 0;
    this.closed = false;
    this.failure = undefined;
    this.inbox = [];
    this.settling = new Map();
    this.ackId = 0;
    this.ready = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.ready.catch(() => {});
    client.subscriptions.add(this);
    this.run();
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        const batch = this.inbox.shift();
        if (batch) {
          yield* batch.messages;
          this.takeMore(batch);
        } else if (this.failure) throw this.failure;
        else if (this.closed) return;
        else await new Promise((resolve) => (this.waker = resolve));
      }
    } finally {
      this.close();
    }
  }

  /** End the subscription, here and at the server. */
  close(failure = undefined) {
    if (this.closed) return;
    this.closed = true;
    this.failure = failure;
    this.client.subscriptions.delete(this);
    this.call?.cancel();
    this.forgetSettling(failure);
    this.reject(failure ?? new TidewireError("CANCELLED", "the subscription was closed", "CANCELLED"));
    this.waker?.();
  }

  async run() {
    while (!this.closed) {
      try {
        this.call = (await this.client.connection()).call(`${EVENTS}Subscribe`, { priority: PRIORITY_EVENTS });
        this.messages = this.bytes = 0;
        this.granted = { messages_until: this.creditMessages, bytes_until: this.creditBytes };
        await this.send({ open: { ...this.source, client_id: this.client.options.name ?? "", credit: this.granted, codecs: READABLE } });
        for await (const response of this.call) await this.take(decode(SubscribeResponse, response));
        throw new TidewireError("UNAVAILABLE", "the server ended the subscription because it goes", "DRAINING");
      } catch (error) {
        this.forgetSettling(error);
        if (this.closed) return;
        if (error.code !== "UNAVAILABLE" || this.client.closed) return this.close(error);
        this.onInterrupted(error);
        await sleep(this.client.options.backoffFirstMs * Math.random());
      }
    }
  }

  send(request) {
    return this.call.send(encode(SubscribeRequest, request));
  }

  async take({ opened, delivery, ack_result, lost }) {
    if (opened) this.resolve(opened);
    else if (delivery) {
      const messages = await this.unpack(delivery);
      if (this.source.ordered && messages.length) this.source.ordered.start = { sequence: messages.at(-1).sequence + 1 };
      this.inbox.push({ messages, call: this.call, count: messages.length, size: delivery.batch.body.length });
      this.waker?.();
    } else if (ack_result) {
      const waiting = this.settling.get(ack_result.ack_id);
      this.settling.delete(ack_result.ack_id);
      const [failed] = ack_result.failed;
      if (failed) waiting?.reject(TidewireError.of(failed.status));
      else waiting?.resolve(DURABILITY[ack_result.durability]);
    } else if (lost) {
      this.lost = lost.messages_total;
      this.onLost(lost.messages);
    }
  }

  async unpack({ batch, stream, first_sequence, included, attempt, pending }) {
    if (crc32c(batch.body) !== batch.crc32c) throw new TidewireError("DATA_LOSS", `a batch of ${batch.subject} arrived damaged`, "CHECKSUM_MISMATCH");
    const body = await decompress(batch.codec, batch.body, batch.raw_size);
    const all = batch.form === FORM_MESSAGES
      ? decode(MessageList, body).message
      : decode(PayloadList, body).payload.map((payload) => ({ payload, header: [] }));
    const within = (ranges, n) => ranges.length === 0 || ranges.some(({ first, last }) => first <= n && n <= last);
    return all
      .filter((_, index) => within(batch.selected, index))
      .map(({ payload, header }, k) => new Message(this, {
        subject: batch.subject, payload, headers: header.map(({ key, value }) => [key, value]), stream,
        sequence: first_sequence ? first_sequence + k : 0, attempt, pending, call: this.call,
      }))
      .filter(({ sequence }) => within(included, sequence));
  }

  takeMore({ call, count, size }) {
    if (call !== this.call || call.over) return;
    this.messages += count;
    this.bytes += size;
    const next = { messages_until: this.messages + this.creditMessages, bytes_until: this.bytes + this.creditBytes };
    if (next.messages_until - this.granted.messages_until >= this.creditMessages / 2 || next.bytes_until - this.granted.bytes_until >= this.creditBytes / 2) {
      this.granted = next;
      this.send({ credit: next }).catch(() => {});
    }
  }

  settle({ sequence, attempt, call }, settlement, reason = "", delayMs = undefined) {
    if (!attempt) return Promise.reject(new TypeError("only messages of a consumer are settled"));
    if (call !== this.call || call.over) {
      return Promise.reject(new TidewireError("UNAVAILABLE", "the connection is another one; the message will come again", "CONNECTION_LOST"));
    }
    const delay = delayMs === undefined ? undefined : { seconds: Math.floor(delayMs / 1000), nanos: Math.round((delayMs % 1000) * 1e6) };
    const ack_id = ++this.ackId;
    return new Promise((resolve, reject) => {
      this.settling.set(ack_id, { resolve, reject });
      this.send({ ack: { ack_id, items: [{ range: { first: sequence, last: sequence }, settlement, attempt, delay, reason }] } }).catch(reject);
    });
  }

  forgetSettling(error) {
    for (const { reject } of this.settling.values()) reject(error ?? new TidewireError("CANCELLED", "the subscription was closed", "CANCELLED"));
    this.settling.clear();
  }
}
