/** Zstandard frames: RFC 8878, decoding without dictionaries. See codecs.js for what holds for all codecs. */

import { Input } from "./codecs.js";

const BLOCK_BYTES_MAX = 128 * 1024;
const RAW = 0, RLE = 1, COMPRESSED = 2;
const PREDEFINED = 0, REPEAT = 3;

const range = (size, first = 0) => Array.from({ length: size }, (_, i) => first + i);
const times = (size, value) => Array(size).fill(value);

/** RFC 8878 3.1.1.3.2.1: baselines, extra bits and default distributions of the three kinds of codes. */
const LITERALS = {
  base: [...range(16), 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, ...range(10).map((n) => 128 << n)],
  extra: [...times(16, 0), 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, ...range(10, 7)],
  counts: [4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1],
  log: 6,
  logMax: 9,
};
const OFFSETS = {
  base: range(32).map((n) => 2 ** n),
  extra: range(32),
  counts: [1, 1, 1, 1, 1, 1, 2, 2, 2, ...times(15, 1), -1, -1, -1, -1, -1],
  log: 5,
  logMax: 8,
};
const MATCHES = {
  base: [...range(32, 3), 35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, ...range(10).map((n) => (128 << n) + 3)],
  extra: [...times(32, 0), 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, ...range(10, 7)],
  counts: [1, 4, 3, 2, 2, 2, 2, 2, 2, ...times(37, 1), ...times(7, -1)],
  log: 6,
  logMax: 9,
};

/** Decode all frames of `bytes` into `out`. */
export function zstd(bytes, out) {
  const input = new Input(bytes);
  while (input.left) {
    const magic = input.number(4);
    if (magic >= 0x184d2a50 && magic <= 0x184d2a5f) input.take(input.number(4));
    else if (magic === 0xfd2fb528) frame(input, out);
    else throw new RangeError("not a Zstandard frame");
  }
}

function frame(input, out) {
  const flags = input.byte();
  const single = flags & 32;
  if (flags & 3) throw new RangeError("a Zstandard frame with a dictionary");
  input.take((single ? 0 : 1) + (single && flags < 64 ? 1 : [0, 2, 4, 8][flags >> 6]));
  const state = { recent: [1, 4, 8], huffman: undefined, tables: [] };
  for (let last = 0; !last; ) {
    const header = input.number(3);
    last = header & 1;
    const kind = (header >> 1) & 3, size = header >> 3;
    if (kind === RAW) out.put(input.take(size));
    else if (kind === RLE) out.fill(input.byte(), size);
    else if (kind === COMPRESSED) block(new Input(input.take(size)), out, state);
    else throw new RangeError("a block of a reserved type");
  }
  if (flags & 4) input.take(4);
}

function block(input, out, state) {
  const literals = new Input(readLiterals(input, state));
  let count = input.byte();
  if (count >= 255) count = input.number(2) + 0x7f00;
  else if (count >= 128) count = ((count - 128) << 8) + input.byte();
  if (count) readSequences(input, out, state, literals, count);
  out.put(literals.take(literals.left));
}

// Literals ---------------------------------------------------------------------------------------

function readLiterals(input, state) {
  const first = input.bytes[input.at];
  const kind = first & 3, format = (first >> 2) & 3;
  if (kind < COMPRESSED) {
    const bytes = [1, 2, 1, 3][format];
    const size = Math.floor(input.number(bytes) / (bytes === 1 ? 8 : 16));
    return kind === RAW ? input.take(size) : new Uint8Array(checked(size)).fill(input.byte());
  }
  const bits = [10, 10, 14, 18][format];
  const sizes = Math.floor(input.number([3, 3, 4, 5][format]) / 16);
  const size = checked(sizes % 2 ** bits);
  const packed = new Input(input.take(Math.floor(sizes / 2 ** bits)));
  if (kind === COMPRESSED) state.huffman = readHuffman(packed);
  if (!state.huffman) throw new RangeError("literals use a table that was not sent");
  const out = new Uint8Array(size);
  if (format === 0) unpack(state.huffman, packed.take(packed.left), out);
  else {
    const jumps = [packed.number(2), packed.number(2), packed.number(2)];
    const quarter = (size + 3) >> 2;
    jumps.push(packed.left - jumps[0] - jumps[1] - jumps[2]);
    if (jumps[3] < 1) throw new RangeError("streams of literals overlap");
    jumps.forEach((jump, n) => unpack(state.huffman, packed.take(jump), out.subarray(n * quarter, n < 3 ? (n + 1) * quarter : size)));
  }
  return out;
}

function checked(size) {
  if (size > BLOCK_BYTES_MAX) throw new RangeError("a block is too large");
  return size;
}

function readHuffman(input) {
  const header = input.byte();
  let weights;
  if (header > 127) {
    const raw = input.take((header - 126) >> 1);
    weights = range(header - 127).map((n) => (n & 1 ? raw[n >> 1] & 15 : raw[n >> 1] >> 4));
  } else {
    weights = readWeights(new Input(input.take(header)));
  }
  const sum = weights.reduce((total, weight) => total + (weight && 1 << (weight - 1)), 0);
  const log = 32 - Math.clz32(sum);
  const rest = (1 << log) - sum;
  if (!sum || log > 11 || rest & (rest - 1)) throw new RangeError("damaged Huffman weights");
  weights.push(32 - Math.clz32(rest));
  const symbols = new Uint8Array(1 << log), bits = new Uint8Array(1 << log);
  let at = 0;
  for (let weight = 1; weight <= log; weight++) {
    weights.forEach((each, symbol) => {
      if (each !== weight) return;
      const span = 1 << (weight - 1);
      symbols.fill(symbol, at, at + span);
      bits.fill(log + 1 - weight, at, at + span);
      at += span;
    });
  }
  return { log, symbols, bits };
}

function readWeights(input) {
  const table = readTable(input, 6, 255);
  const bits = new BackwardBits(input.take(input.left));
  const states = [bits.read(table.log), bits.read(table.log)];
  const weights = [];
  for (let turn = 0; weights.length < 255; turn ^= 1) {
    weights.push(table.symbols[states[turn]]);
    states[turn] = table.next[states[turn]] + bits.read(table.bits[states[turn]]);
    if (bits.at < 0) {
      weights.push(table.symbols[states[turn ^ 1]]);
      return weights;
    }
  }
  throw new RangeError("Huffman weights without end");
}

function unpack({ log, symbols, bits }, bytes, out) {
  const stream = new BackwardBits(bytes);
  for (let i = 0; i < out.length; i++) {
    const index = stream.peek(log);
    out[i] = symbols[index];
    stream.at -= bits[index];
  }
  if (stream.at !== 0) throw new RangeError("damaged literals");
}

// Sequences --------------------------------------------------------------------------------------

function readSequences(input, out, state, literals, count) {
  const modes = input.byte();
  const kinds = [LITERALS, OFFSETS, MATCHES];
  state.tables = kinds.map((kind, n) => chooseTable(input, kind, (modes >> (6 - 2 * n)) & 3, state.tables[n]));
  const [literalTable, offsetTable, matchTable] = state.tables;
  const bits = new BackwardBits(input.take(input.left));
  let l = bits.read(literalTable.log), o = bits.read(offsetTable.log), m = bits.read(matchTable.log);
  for (let left = count; left; left--) {
    const lCode = literalTable.symbols[l], oCode = offsetTable.symbols[o], mCode = matchTable.symbols[m];
    if (lCode > 35 || mCode > 52 || oCode > 31) throw new RangeError("a damaged sequence");
    const value = OFFSETS.base[oCode] + bits.read(oCode);
    const size = MATCHES.base[mCode] + bits.read(MATCHES.extra[mCode]);
    const before = LITERALS.base[lCode] + bits.read(LITERALS.extra[lCode]);
    out.put(literals.take(before));
    out.copy(offsetOf(state.recent, value, before), size);
    if (left > 1) {
      l = literalTable.next[l] + bits.read(literalTable.bits[l]);
      m = matchTable.next[m] + bits.read(matchTable.bits[m]);
      o = offsetTable.next[o] + bits.read(offsetTable.bits[o]);
    }
  }
  if (bits.at !== 0) throw new RangeError("damaged sequences");
}

/** Small values name one of the last three offsets; which one hangs on whether literals came before. */
function offsetOf(recent, value, before) {
  const index = value > 3 ? 3 : value - 1 + (before ? 0 : 1);
  const offset = value > 3 ? value - 3 : index < 3 ? recent[index] : recent[0] - 1;
  if (index > 1) recent[2] = recent[1];
  if (index > 0) recent[1] = recent[0];
  recent[0] = offset;
  return offset;
}

function chooseTable(input, kind, mode, before) {
  if (mode === PREDEFINED) return (kind.table ??= makeTable(kind.counts, kind.log));
  if (mode === RLE) return { log: 0, symbols: [input.byte()], bits: [0], next: [0] };
  if (mode !== REPEAT) return readTable(input, kind.logMax, kind.base.length);
  if (!before) throw new RangeError("sequences use a table that was not sent");
  return before;
}

// FSE --------------------------------------------------------------------------------------------

/** RFC 8878 4.1.1: the distribution, then the table of it. */
function readTable(input, logMax, symbolsMax) {
  const stream = { bytes: input.bytes, at: input.at * 8 };
  const read = (count) => {
    stream.at += count;
    return bitsAt(stream.bytes, stream.at - count, count);
  };
  const log = 5 + read(4);
  if (log > logMax) throw new RangeError("a table is too large");
  const counts = [];
  let left = 1 << log;
  while (left > 0 && counts.length < symbolsMax) {
    const width = 32 - Math.clz32(left + 1);
    const low = (1 << (width - 1)) - 1;
    const small = (1 << width) - 1 - (left + 1);
    let value = read(width);
    if ((value & low) < small) {
      stream.at -= 1;
      value &= low;
    } else if (value > low) value -= small;
    counts.push(value - 1);
    left -= Math.abs(value - 1);
    if (value === 1) for (let zeros = 3; zeros === 3; ) counts.push(...times((zeros = read(2)), 0));
  }
  if (left !== 0 || counts.length > symbolsMax) throw new RangeError("a damaged distribution");
  input.take(Math.ceil(stream.at / 8) - input.at);
  return makeTable(counts, log);
}

function makeTable(counts, log) {
  const size = 1 << log, step = (size >> 1) + (size >> 3) + 3;
  const symbols = new Uint8Array(size), bits = new Uint8Array(size), next = new Int32Array(size);
  const states = counts.map((count) => Math.abs(count));
  let top = size, at = 0;
  counts.forEach((count, symbol) => {
    if (count === -1) symbols[--top] = symbol;
  });
  counts.forEach((count, symbol) => {
    for (let i = 0; i < count; i++) {
      symbols[at] = symbol;
      do at = (at + step) & (size - 1);
      while (at >= top);
    }
  });
  for (let i = 0; i < size; i++) {
    const state = states[symbols[i]]++;
    bits[i] = log - (31 - Math.clz32(state));
    next[i] = (state << bits[i]) - size;
  }
  return { log, symbols, bits, next };
}

/** A stream of bits that is read from its end; before its beginning there are zeros. */
class BackwardBits {
  constructor(bytes) {
    const last = bytes[bytes.length - 1];
    if (!last) throw new RangeError("a stream of bits without its end");
    this.bytes = bytes;
    this.at = bytes.length * 8 - 8 + (31 - Math.clz32(last));
  }

  read(count) {
    this.at -= count;
    return bitsAt(this.bytes, this.at, count);
  }

  peek(count) {
    return bitsAt(this.bytes, this.at - count, count);
  }
}

function bitsAt(bytes, at, count) {
  if (count === 0) return 0;
  if (at < 0) return at + count > 0 ? bitsAt(bytes, 0, at + count) * 2 ** -at : 0;
  let index = at >> 3, have = 8 - (at & 7);
  let value = (bytes[index] ?? 0) >> (at & 7);
  for (; have < count; have += 8) value += (bytes[++index] ?? 0) * 2 ** have;
  return value % 2 ** count;
}
