/**
 * Protobuf for the messages this client needs: proto/tidewire/v1, field by field.
 *
 * A schema is an object of fields by name: [number, type] or [number, type, options]. Types are
 * "uint", "int", "bool", "fixed32", "string", "bytes", or another schema; a list is written as
 * ["type", ...] in `repeated`. Whole numbers are Numbers: beyond 2^53 a RangeError is thrown, never
 * a wrong number. Fields that are not known are skipped, as protobuf wants it.
 */

const VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;
const utf8 = new TextEncoder();
const utf8Strict = new TextDecoder("utf-8", { fatal: true });
const DEFAULTS = { uint: 0, int: 0, bool: false, fixed32: 0, string: "" };

/** Make a schema; `fields` maps names to [number, type, "repeated"?]. */
export function message(fields) {
  const byNumber = new Map();
  for (const [name, [number, type, repeated]] of Object.entries(fields)) {
    byNumber.set(number, { name, number, type, repeated: repeated === "repeated" });
  }
  return { byNumber };
}

/** Return the bytes of `value`, an object with some of the schema's fields. */
export function encode(schema, value) {
  const out = [];
  for (const field of schema.byNumber.values()) {
    const given = value[field.name];
    if (given === undefined || given === null) continue;
    for (const each of field.repeated ? given : [given]) encodeField(out, field, each);
  }
  return concat(out);
}

function encodeField(out, { number, type }, value) {
  if (type === "uint" || type === "int" || type === "bool") {
    out.push(varint(number * 8 + VARINT), varint(Number(value)));
  } else if (type === "fixed32") {
    const raw = new Uint8Array(4);
    new DataView(raw.buffer).setUint32(0, value, true);
    out.push(varint(number * 8 + FIXED32), raw);
  } else {
    const raw = type === "string" ? utf8.encode(value) : type === "bytes" ? value : encode(type, value);
    out.push(varint(number * 8 + BYTES), varint(raw.length), raw);
  }
}

/** Return the object that `bytes` hold; fields that are absent have protobuf's defaults. */
export function decode(schema, bytes) {
  const value = {};
  for (const { name, type, repeated } of schema.byNumber.values()) {
    if (repeated) value[name] = [];
    else if (type in DEFAULTS) value[name] = DEFAULTS[type];
    else if (type === "bytes") value[name] = new Uint8Array(0);
  }
  const reader = { bytes, at: 0 };
  while (reader.at < bytes.length) {
    const key = readVarint(reader);
    const field = schema.byNumber.get(Math.floor(key / 8));
    const raw = readRaw(reader, key % 8);
    if (field === undefined) continue;
    const read = decodeField(field.type, raw, key % 8);
    if (field.repeated) value[field.name].push(...(Array.isArray(read) ? read : [read]));
    else value[field.name] = read;
  }
  return value;
}

function readRaw(reader, wireType) {
  if (wireType === VARINT) return readVarint(reader);
  const size = wireType === BYTES ? readVarint(reader) : { [FIXED64]: 8, [FIXED32]: 4 }[wireType];
  if (size === undefined || reader.at + size > reader.bytes.length) throw new RangeError("not protobuf");
  reader.at += size;
  return reader.bytes.subarray(reader.at - size, reader.at);
}

function decodeField(type, raw, wireType) {
  if (type === "bytes") return raw;
  if (type === "string") return utf8Strict.decode(raw);
  if (type === "bool") return raw !== 0;
  if (type === "fixed32") return new DataView(raw.buffer, raw.byteOffset, 4).getUint32(0, true);
  if (type !== "uint" && type !== "int") return decode(type, raw);
  if (wireType !== BYTES) return safe(raw);
  const packed = [], reader = { bytes: raw, at: 0 };
  while (reader.at < raw.length) packed.push(safe(readVarint(reader)));
  return packed;
}

function safe(value) {
  if (typeof value === "bigint") throw new RangeError(`${value} is beyond 2^53`);
  return value;
}

function varint(value) {
  if (!Number.isSafeInteger(value)) throw new RangeError(`${value} is no whole number below 2^53`);
  let left = value < 0 ? BigInt.asUintN(64, BigInt(value)) : value;
  const out = [];
  if (typeof left === "bigint") {
    for (; left > 127n; left >>= 7n) out.push(Number(left & 127n) | 128);
  } else {
    for (; left > 127; left = Math.floor(left / 128)) out.push((left % 128) | 128);
  }
  out.push(Number(left));
  return Uint8Array.from(out);
}

/** Read a Number; a BigInt when it is too large for one, which matters only where it is used. */
function readVarint(reader) {
  let value = 0n;
  for (let shift = 0n; shift < 70n; shift += 7n) {
    const byte = reader.bytes[reader.at++];
    if (byte === undefined) throw new RangeError("not protobuf: cut off");
    if (shift === 0n && byte < 128) return byte;
    value |= BigInt(byte & 127) << shift;
    if (byte < 128) {
      const signed = BigInt.asIntN(64, value);
      return Number.isSafeInteger(Number(signed)) ? Number(signed) : signed;
    }
  }
  throw new RangeError("not protobuf: a number without end");
}

/** Join byte arrays. */
export function concat(parts) {
  if (parts.length === 1) return parts[0];
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const CRC32C = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0x82f63b78 : n >>> 1;
  return n;
});

/** CRC32C (Castagnoli) of bytes, as batches carry it. */
export function crc32c(bytes) {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = (crc >>> 8) ^ CRC32C[(crc ^ bytes[i]) & 255];
  return (crc ^ 0xffffffff) >>> 0;
}

// Shapes, with the names of the .proto files -----------------------------------------------------

const R = "repeated";
export const Duration = message({ seconds: [1, "int"], nanos: [2, "int"] });
export const Any = message({ type_url: [1, "string"], value: [2, "bytes"] });
export const Status = message({ code: [1, "int"], message: [2, "string"], details: [3, Any, R] });
const MapEntry = message({ key: [1, "string"], value: [2, "string"] });
export const ErrorInfo = message({ reason: [1, "string"], domain: [2, "string"], metadata: [3, MapEntry, R] });
export const RetryInfo = message({ retry_delay: [1, Duration] });

export const WireLimits = message({
  frame_bytes_max: [1, "uint"], message_bytes_max: [2, "uint"], call_credit_bytes: [3, "uint"],
  connection_credit_bytes: [4, "uint"], calls_max: [5, "uint"], keepalive: [6, Duration],
});
export const Hello = message({
  version_min: [1, "uint"], version_max: [2, "uint"], agent: [3, "string"], codecs: [4, "uint", R],
  limits: [5, WireLimits], token: [6, "string"], node_id: [7, "string"],
});
const Metadata = message({ key: [1, "string"], value: [2, "bytes"] });
export const CallHead = message({ method: [1, "string"], metadata: [2, Metadata, R] });
export const CallHeaders = message({ metadata: [1, Metadata, R] });
export const CallStatus = message({ status: [1, Status], trailers: [2, Metadata, R] });
export const GoAway = message({ last_call_id: [1, "uint"], reason: [2, Status], grace: [3, Duration] });

const Header = message({ key: [1, "string"], value: [2, "bytes"] });
const Message = message({ payload: [1, "bytes"], header: [2, Header, R] });
export const PayloadList = message({ payload: [1, "bytes", R] });
export const MessageList = message({ message: [1, Message, R] });
const IndexRange = message({ first: [1, "uint"], last: [2, "uint"] });
const SequenceRange = message({ first: [1, "uint"], last: [2, "uint"] });
export const Batch = message({
  subject: [1, "string"], codec: [2, "uint"], form: [3, "uint"], count: [4, "uint"], raw_size: [5, "uint"],
  crc32c: [6, "fixed32"], body: [7, "bytes"], message_ids: [11, "string", R], selected: [14, IndexRange, R],
});
export const PublishRequest = message({
  batch: [1, Batch], durability: [2, "uint"], expected_stream: [3, "string"], expected_last_sequence: [4, "uint"],
});
export const PublishResponse = message({
  stream: [1, "string"], stored: [2, SequenceRange], durability: [3, "uint"], duplicates: [4, "uint"], receivers: [5, "uint"],
});

const Credit = message({ messages_until: [1, "uint"], bytes_until: [2, "uint"] });
const LiveSource = message({ subjects: [1, "string", R], group: [2, "string"] });
const StartPosition = message({ next: [1, "bool"], all: [2, "bool"], sequence: [3, "uint"], last: [5, "bool"] });
const OrderedSource = message({ stream: [1, "string"], start: [2, StartPosition], subjects: [3, "string", R] });
const ConsumerSource = message({ stream: [1, "string"], consumer: [2, "string"] });
const SubscribeOpen = message({
  client_id: [1, "string"], node_id: [2, "string"], live: [3, LiveSource], ordered: [4, OrderedSource],
  consumer: [5, ConsumerSource], credit: [6, Credit], codecs: [7, "uint", R],
});
const AckItem = message({
  range: [1, SequenceRange], settlement: [2, "uint"], attempt: [3, "uint"], delay: [4, Duration], reason: [5, "string"],
});
const Ack = message({ ack_id: [1, "uint"], items: [2, AckItem, R] });
export const SubscribeRequest = message({ open: [1, SubscribeOpen], credit: [2, Credit], ack: [3, Ack] });
const Delivery = message({
  batch: [1, Batch], stream: [2, "string"], first_sequence: [3, "uint"], included: [4, SequenceRange, R],
  attempt: [5, "uint"], pending: [7, "uint"],
});
const ItemResult = message({ index: [1, "uint"], status: [2, Status] });
const AckResult = message({ ack_id: [1, "uint"], failed: [2, ItemResult, R], durability: [3, "uint"] });
const Bookmark = message({ sequence: [1, "uint"], epoch: [2, "uint"] });
const Lost = message({ messages: [1, "uint"], messages_total: [2, "uint"] });
const Opened = message({ node_id: [1, "string"], epoch: [2, "uint"] });
const Draining = message({ grace: [1, Duration] });
export const SubscribeResponse = message({
  opened: [1, Opened], delivery: [2, Delivery], ack_result: [3, AckResult], bookmark: [4, Bookmark],
  lost: [5, Lost], draining: [6, Draining],
});
