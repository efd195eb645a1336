/**
 * One connection of the raw wire over a WebSocket: proto/WIRE.md, the client's side.
 *
 * Frames, HELLO, calls with deadlines and cancellation, fragments by priority, credit both ways,
 * keepalive and GOAWAY. Bytes of messages go in and out; what they mean is no business of this file.
 */

import { CallHead, CallHeaders, CallStatus, ErrorInfo, GoAway, Hello, RetryInfo, concat, decode, encode } from "./proto.js";

const HELLO = 1, OPEN = 2, MESSAGE = 3, HEADERS = 4, STATUS = 5, CANCEL = 6, CREDIT = 7, PING = 8, PONG = 9, GOAWAY = 10;
const END = 1, MORE = 2, WITH_MESSAGE = 4, NONE = 8;
const HEADER_BYTES = 12, LENGTH_LEAST = 8, OPEN_PREFIX_BYTES = 12;
const CALL_ID_MAX = 2 ** 32 - 1;
export const SUBPROTOCOL = "tidewire.v1";
export const AGENT = "tidewire-js/0.1.0";

/** What this side takes, and how long it waits. Sizes are bytes, times milliseconds. */
export const LIMITS = {
  frameBytesMax: 262_152,
  messageBytesMax: 10_747_904,
  callCreditBytes: 1_048_576,
  connectionCreditBytes: 16_777_216,
  /** Messages of all calls nobody has taken yet: beyond, the connection gives no credit. */
  unreadBytesMax: 16_777_216,
  fragmentBytes: 65_536,
  /** What may wait in the browser: more urgent frames cannot pass it. */
  bufferedBytesMax: 131_072,
  /** How often it is looked whether the browser has sent: there is no event for that. */
  bufferedPollMs: 4,
  helloTimeoutMs: 10_000,
  keepaliveMs: 30_000,
  pingTimeoutMs: 10_000,
};

const CODES = ["OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
  "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"];

/** Every failure: `code` is gRPC's word, `reason` that of the published registry, or "". */
export class TidewireError extends Error {
  constructor(code, text, reason = "", metadata = {}, retryDelayMs = undefined) {
    super(text);
    this.name = "TidewireError";
    Object.assign(this, { code, reason, metadata, retryDelayMs });
  }

  /** From google.rpc.Status, as a STATUS or GOAWAY frame carries it. */
  static of(status) {
    let reason = "", metadata = {}, retryDelayMs;
    for (const { type_url, value } of status.details) {
      if (type_url.endsWith("/google.rpc.ErrorInfo")) {
        const info = decode(ErrorInfo, value);
        reason = info.reason;
        metadata = Object.fromEntries(info.metadata.map((entry) => [entry.key, entry.value]));
      } else if (type_url.endsWith("/google.rpc.RetryInfo")) {
        const delay = decode(RetryInfo, value).retry_delay;
        if (delay) retryDelayMs = delay.seconds * 1000 + delay.nanos / 1e6;
      }
    }
    return new TidewireError(CODES[status.code] ?? "UNKNOWN", status.message, reason, metadata, retryDelayMs);
  }
}

const unavailable = (text, reason = "CONNECTION_LOST") => new TidewireError("UNAVAILABLE", text, reason);
const violation = (text) => new TidewireError("INTERNAL", text, "PROTOCOL_VIOLATION");

function frame(kind, callId = 0, flags = 0, body = new Uint8Array(0), priority = 0) {
  const out = new Uint8Array(HEADER_BYTES + body.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, LENGTH_LEAST + body.length);
  out[4] = kind;
  out[5] = flags;
  view.setUint16(6, priority);
  view.setUint32(8, callId);
  out.set(body, HEADER_BYTES);
  return out;
}

function total(value) {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, BigInt(value));
  return out;
}

/** One call. `for await` gives its messages; it throws a TidewireError unless the call ends with OK. */
export class Call {
  constructor(connection, method, { timeoutMs = 0, metadata = {}, priority = 5, signal } = {}) {
    Object.assign(this, { connection, method, priority, timeoutMs, metadata, signal });
    this.headers = this.trailers = undefined;
    this.outbox = [];
    this.sent = this.received = this.taken = this.partial = 0;
    this.credit = connection.peer.call_credit_bytes;
    this.granted = connection.limits.callCreditBytes;
    this.inbox = [];
    this.parts = [];
    this.over = this.halfClosed = false;
    this.failure = undefined;
    this.wakers = [];
  }

  /** Send a message; resolves when it is handed to the browser, which is how a slow server holds back. */
  send(bytes, { last = false } = {}) {
    if (this.over || this.halfClosed) return Promise.reject(this.failure ?? new TypeError("the call takes no more messages"));
    const tooLarge = this.connection.judge(bytes);
    if (tooLarge) return Promise.reject(tooLarge);
    this.halfClosed = last;
    return new Promise((resolve, reject) => {
      this.outbox.push({ bytes, at: 0, last, resolve, reject });
      this.connection.schedule(this);
    });
  }

  /** Say that no message follows. */
  end() {
    if (!this.over && !this.halfClosed) {
      this.halfClosed = true;
      this.outbox.push({ bytes: null, at: 0, last: true, resolve() {}, reject() {} });
      this.connection.schedule(this);
    }
  }

  /** End the call here and at the server. */
  cancel(error = new TidewireError("CANCELLED", "the call was cancelled here", "CANCELLED")) {
    if (!this.over) {
      this.connection.write(frame(CANCEL, this.id));
      this.finish(error);
    }
  }

  /** The next message, or undefined when the call has ended with OK. */
  async next() {
    while (this.inbox.length === 0) {
      if (this.failure) throw this.failure;
      if (this.over) return undefined;
      await new Promise((resolve) => this.wakers.push(resolve));
    }
    const { bytes, cost } = this.inbox.shift();
    this.taken += cost;
    this.connection.unread -= cost;
    this.grant();
    this.connection.grant();
    return bytes;
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let bytes; (bytes = await this.next()) !== undefined; ) yield bytes;
    } finally {
      this.cancel();
    }
  }

  grant() {
    const until = this.taken + this.connection.limits.callCreditBytes + this.partial;
    if (!this.over && until - this.granted >= this.connection.limits.callCreditBytes / 2) {
      this.granted = until;
      this.connection.write(frame(CREDIT, this.id, 0, total(until)));
    }
  }

  take(flags, body) {
    const cost = HEADER_BYTES + body.length;
    this.received += cost;
    this.partial += cost;
    if (this.received > this.granted + this.connection.limits.frameBytesMax) throw violation("the server passed its credit");
    this.parts.push(body);
    if (this.parts.reduce((sum, part) => sum + part.length, 0) > this.connection.limits.messageBytesMax) {
      return this.cancel(new TidewireError("RESOURCE_EXHAUSTED", "a message is over this client's limit", "MESSAGE_TOO_LARGE"));
    }
    if (!(flags & MORE)) {
      this.inbox.push({ bytes: concat(this.parts), cost: this.partial });
      this.connection.unread += this.partial;
      this.parts = [];
      this.partial = 0;
      this.wake();
    }
    if (flags & END) this.finish();
    else this.grant();
  }

  wake() {
    for (const waker of this.wakers.splice(0)) waker();
  }

  finish(error = undefined) {
    if (this.over) return;
    this.over = true;
    this.failure = error;
    clearTimeout(this.timer);
    this.signal?.removeEventListener("abort", this.onAbort);
    for (const { reject } of this.outbox.splice(0)) reject(error ?? unavailable("the call has ended", ""));
    if (error) {
      this.connection.unread -= this.inbox.reduce((sum, { cost }) => sum + cost, 0);
      this.inbox = [];
    }
    this.connection.forget(this);
    this.wake();
  }
}

/** A connection; `await Connection.open(url)` gives one that is ready for calls. */
export class Connection {
  /**
   * @param {string} url ws:// or wss://, with the path of the server
   * @param {{token?: string, name?: string, codecs?: number[], limits?: object}} options
   */
  static async open(url, options = {}) {
    const connection = new Connection(url, options);
    await connection.ready;
    return connection;
  }

  constructor(url, { token = "", name = "", codecs = [1], limits = {}, WebSocket = globalThis.WebSocket }) {
    if (!WebSocket) throw new TypeError("there is no WebSocket here: a browser, or Node 22 and later");
    if (token && !url.startsWith("wss:")) {
      throw new TidewireError("FAILED_PRECONDITION", `${url} is not encrypted: a token must not be sent over it`, "WIRE_UNSUITABLE");
    }
    this.url = url;
    this.limits = { ...LIMITS, ...limits };
    this.calls = new Map();
    this.queue = [];
    this.lastId = this.sent = this.received = this.unread = this.credit = 0;
    this.granted = this.limits.connectionCreditBytes;
    this.draining = this.closed = false;
    this.reason = undefined;
    this.onend = () => {};
    this.ready = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.ready.catch(() => {});
    this.timer = setTimeout(() => this.close(unavailable(`${url} did not answer in time`)), this.limits.helloTimeoutMs);
    const socket = (this.socket = new WebSocket(url, [SUBPROTOCOL]));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.greet(token, name, codecs);
    socket.onmessage = (event) => this.receive(event.data);
    // Before the connection is there Node 20 says "error" only; afterwards "close" says more.
    socket.onerror = () => this.peer || this.close(unavailable(`no connection to ${url}: nobody listens, or the server refused the upgrade`));
    socket.onclose = (event) =>
      this.close(unavailable(`the connection to ${url} ended: ${event.code} ${event.reason || "(no reason given)"}`));
  }

  greet(token, name, codecs) {
    const { frameBytesMax, messageBytesMax, callCreditBytes, connectionCreditBytes, keepaliveMs } = this.limits;
    const limits = {
      frame_bytes_max: frameBytesMax, message_bytes_max: messageBytesMax, call_credit_bytes: callCreditBytes,
      connection_credit_bytes: connectionCreditBytes,
      keepalive: { seconds: Math.floor(keepaliveMs / 1000), nanos: (keepaliveMs % 1000) * 1e6 },
    };
    this.write(frame(HELLO, 0, 0, encode(Hello, { version_min: 1, version_max: 1, agent: AGENT, codecs, limits, token, node_id: name })));
  }

  /** Open a call; see Call for the options. With `request` it is the first and only message. */
  call(method, options = {}, request = undefined) {
    if (this.closed || this.draining) throw this.reason ?? unavailable("the connection takes no new calls", "DRAINING");
    if (this.calls.size >= this.peer.calls_max) {
      throw new TidewireError("RESOURCE_EXHAUSTED", `${this.calls.size} calls are open`, "TOO_MANY_CALLS");
    }
    options.signal?.throwIfAborted();
    const tooLarge = request && this.judge(request);
    if (tooLarge) throw tooLarge;
    const call = new Call(this, method, options);
    const head = encode(CallHead, { method, metadata: entries(call.metadata) });
    const inline = request && request.length + head.length + OPEN_PREFIX_BYTES <= this.fragmentBytes && this.sent < this.credit;
    const body = new Uint8Array(OPEN_PREFIX_BYTES + head.length + (inline ? request.length : 0));
    const view = new DataView(body.buffer);
    view.setBigUint64(0, BigInt(Math.round(call.timeoutMs * 1000)));
    view.setUint32(8, head.length);
    body.set(head, OPEN_PREFIX_BYTES);
    if (inline) {
      body.set(request, OPEN_PREFIX_BYTES + head.length);
      this.sent += HEADER_BYTES + request.length;
      call.halfClosed = true;
    }
    call.id = ++this.lastId;
    if (call.id === CALL_ID_MAX) this.draining = true;
    this.calls.set(call.id, call);
    this.write(frame(OPEN, call.id, inline ? END | WITH_MESSAGE : 0, body, call.priority));
    if (request && !inline) call.send(request, { last: true }).catch(() => {});
    this.watch(call);
    return call;
  }

  judge({ length }) {
    if (length <= this.peer.message_bytes_max) return undefined;
    const text = `a message of ${length} bytes is over the server's limit of ${this.peer.message_bytes_max}`;
    return new TidewireError("RESOURCE_EXHAUSTED", text, "MESSAGE_TOO_LARGE");
  }

  watch(call) {
    if (call.timeoutMs) {
      const late = new TidewireError("DEADLINE_EXCEEDED", `${call.method} did not end within ${call.timeoutMs} ms`, "DEADLINE_EXPIRED");
      call.timer = setTimeout(() => call.cancel(late), call.timeoutMs);
    }
    call.onAbort = () => call.cancel(new TidewireError("CANCELLED", "the call was aborted here", "CANCELLED"));
    call.signal?.addEventListener("abort", call.onAbort);
  }

  /** Say goodbye: calls in flight go on, then the connection closes. */
  drain() {
    this.draining = true;
    if (this.calls.size === 0) this.close(unavailable("the connection is closed here", "DRAINING"));
  }

  /** End the connection and its calls at once. */
  close(error = unavailable("the connection is closed here")) {
    if (this.closed) return;
    this.closed = true;
    error = this.reason ?? error;
    this.reason = error;
    clearTimeout(this.timer);
    clearTimeout(this.poll);
    if (this.socket.readyState < 2) this.socket.close(1000);
    for (const call of [...this.calls.values()]) call.finish(error);
    this.reject(error);
    this.onend(error);
  }

  forget(call) {
    this.calls.delete(call.id);
    if (this.draining && this.calls.size === 0) this.close(unavailable("the connection has drained", "DRAINING"));
  }

  write(bytes) {
    if (this.socket.readyState === 1) this.socket.send(bytes);
  }

  // Sending messages: the most urgent call first, calls of one priority in turn, a fragment each.

  schedule(call) {
    if (!this.queue.includes(call)) this.queue.push(call);
    this.pump();
  }

  pump() {
    clearTimeout(this.poll);
    while (!this.closed && this.socket.bufferedAmount < this.limits.bufferedBytesMax) {
      const ready = this.queue.filter((call) => call.outbox.length && this.maySend(call));
      if (ready.length === 0) break;
      const call = ready.reduce((first, each) => (each.priority < first.priority ? each : first));
      this.queue.splice(this.queue.indexOf(call), 1);
      this.emit(call);
      if (call.outbox.length) this.queue.push(call);
    }
    this.queue = this.queue.filter((call) => call.outbox.length);
    if (this.queue.length && this.socket.bufferedAmount >= this.limits.bufferedBytesMax) {
      this.poll = setTimeout(() => this.pump(), this.limits.bufferedPollMs);
    }
  }

  maySend(call) {
    return call.outbox[0].bytes === null || (call.sent < call.credit && this.sent < this.credit);
  }

  emit(call) {
    const item = call.outbox[0];
    if (item.bytes === null) {
      call.outbox.shift();
      return this.write(frame(MESSAGE, call.id, END | NONE));
    }
    const piece = item.bytes.subarray(item.at, item.at + this.fragmentBytes);
    item.at += piece.length;
    const whole = item.at >= item.bytes.length;
    call.sent += HEADER_BYTES + piece.length;
    this.sent += HEADER_BYTES + piece.length;
    this.write(frame(MESSAGE, call.id, whole ? (item.last ? END : 0) : MORE, piece));
    if (whole) {
      call.outbox.shift();
      item.resolve();
    }
  }

  // Receiving ------------------------------------------------------------------------------------

  receive(data) {
    if (this.closed) return;
    this.heardAt = performance.now();
    try {
      const view = data instanceof ArrayBuffer ? new DataView(data) : undefined;
      if (!view || data.byteLength < HEADER_BYTES || view.getUint32(0) !== data.byteLength - 4) throw violation("a message was not one frame");
      this.handle(view.getUint8(4), view.getUint8(5), view.getUint32(8), new Uint8Array(data, HEADER_BYTES));
    } catch (error) {
      this.close(error instanceof TidewireError ? error : violation(`a frame cannot be read: ${error.message}`));
    }
  }

  handle(kind, flags, callId, body) {
    if (!this.peer && kind !== HELLO && kind !== GOAWAY) throw violation("the first frame was not HELLO");
    const call = this.calls.get(callId);
    if (kind === MESSAGE) {
      this.received += HEADER_BYTES + body.length;
      call?.take(flags, body);
      this.grant();
    } else if (kind === STATUS) this.end(call, decode(CallStatus, body));
    else if (kind === HEADERS && call) call.headers = plain(decode(CallHeaders, body).metadata);
    else if (kind === CREDIT) this.takeCredit(callId, call, body);
    else if (kind === PING) this.write(frame(PONG, 0, 0, body));
    else if (kind === GOAWAY) this.leave(decode(GoAway, body));
    else if (kind === HELLO && !this.peer) this.welcome(decode(Hello, body));
    else if (kind !== PONG && kind !== HEADERS) throw violation(`frame type ${kind} is not for a client`);
  }

  welcome(hello) {
    if (hello.version_max !== 1) throw violation(`the server answers with version ${hello.version_max}`);
    const said = hello.limits ?? {};
    this.peer = {
      frame_bytes_max: said.frame_bytes_max || LIMITS.frameBytesMax, message_bytes_max: said.message_bytes_max || LIMITS.messageBytesMax,
      call_credit_bytes: said.call_credit_bytes || LIMITS.callCreditBytes, calls_max: said.calls_max || 1024,
    };
    this.credit = said.connection_credit_bytes || LIMITS.connectionCreditBytes;
    this.fragmentBytes = Math.min(this.limits.fragmentBytes, this.peer.frame_bytes_max - LENGTH_LEAST);
    this.hello = hello;
    this.watchSilence();
    this.resolve();
  }

  end(call, { status, trailers }) {
    if (!call) return;
    call.trailers = plain(trailers);
    call.finish(status?.code ? TidewireError.of(status) : undefined);
  }

  takeCredit(callId, call, body) {
    const until = Number(new DataView(body.buffer, body.byteOffset, 8).getBigUint64(0));
    if (callId === 0) this.credit = Math.max(this.credit, until);
    else if (call) call.credit = Math.max(call.credit, until);
    this.pump();
  }

  grant() {
    const window = this.limits.connectionCreditBytes;
    if (this.received + window - this.granted >= window / 2 && this.unread <= this.limits.unreadBytesMax) {
      this.granted = this.received + window;
      this.write(frame(CREDIT, 0, 0, total(this.granted)));
    }
  }

  leave({ last_call_id, reason }) {
    if (reason?.code) {
      const said = TidewireError.of(reason);
      this.reason = this.peer ? unavailable(`the server ended the connection: ${said.message}`) : said;
      this.reason.cause = said;
    }
    this.draining = true;
    if (!this.peer) return this.close(this.reason);
    this.onend(this.reason);
    const unseen = this.reason ?? unavailable("the server goes and did not look at the call; it may be sent again", "DRAINING");
    for (const call of [...this.calls.values()]) if (call.id > last_call_id) call.finish(unseen);
    if (this.calls.size === 0) this.drain();
  }

  /** Ask when nothing came for long; end when nothing comes after that either. */
  watchSilence() {
    clearTimeout(this.timer);
    const leftMs = this.heardAt + this.limits.keepaliveMs - performance.now();
    this.timer = setTimeout(() => {
      if (performance.now() < this.heardAt + this.limits.keepaliveMs) return this.watchSilence();
      const askedAt = performance.now();
      this.write(frame(PING, 0, 0, new Uint8Array(8)));
      this.timer = setTimeout(() => {
        if (this.heardAt > askedAt) this.watchSilence();
        else this.close(unavailable(`nothing came within ${this.limits.pingTimeoutMs} ms of a PING`, "PEER_VANISHED"));
      }, this.limits.pingTimeoutMs);
    }, Math.max(1, leftMs));
  }
}

const utf8 = new TextEncoder();

function entries(metadata) {
  return Object.entries(metadata).map(([key, value]) => ({ key, value: typeof value === "string" ? utf8.encode(value) : value }));
}

function plain(metadata) {
  return metadata.map(({ key, value }) => [key, key.endsWith("-bin") ? value : new TextDecoder().decode(value)]);
}
