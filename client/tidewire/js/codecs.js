/**
 * Decompressors for what publishers may send: LZ4 frames, Snappy raw, Zstandard frames. Nothing is
 * compressed here. Each writes into a buffer of the size the batch declares and never beyond it: what
 * does not fit exactly is damaged. Checksums of the formats are not read; a batch has its own.
 */

import { zstd } from "./zstd.js";

const NONE = 1, LZ4 = 2, SNAPPY = 3, ZSTD = 4;
const SIZE_MAX = 1 << 30;

/** Codecs this client reads, by their numbers in the contract. */
export const READABLE = [NONE, LZ4, SNAPPY, ZSTD];

/**
 * Return the bytes that `bytes` decompress to.
 *
 * @param {number} codec number in the contract; 0 means none
 * @param {Uint8Array} bytes
 * @param {number} rawSize what must come out
 * @throws {RangeError} the codec is not known, or the bytes are damaged
 */
export function decompress(codec, bytes, rawSize) {
  if (codec === NONE || codec === 0) return bytes;
  const work = { [LZ4]: lz4, [SNAPPY]: snappy, [ZSTD]: zstd }[codec];
  if (!work) throw new RangeError(`codec ${codec} is not known here`);
  if (rawSize > SIZE_MAX) throw new RangeError(`${rawSize} bytes are declared`);
  const out = new Output(rawSize);
  work(bytes, out);
  if (out.at !== rawSize) throw new RangeError(`${out.at} bytes came out; ${rawSize} were declared`);
  return out.bytes;
}

/** A buffer of fixed size that is written once, from literals and from what was written before. */
export class Output {
  constructor(size) {
    this.bytes = new Uint8Array(size);
    this.at = 0;
  }

  put(piece) {
    this.room(piece.length);
    this.bytes.set(piece, this.at);
    this.at += piece.length;
  }

  fill(byte, size) {
    this.room(size);
    this.bytes.fill(byte, this.at, this.at + size);
    this.at += size;
  }

  /** Repeat `size` bytes from `back` bytes before; they may overlap what is being written. */
  copy(back, size) {
    this.room(size);
    const { bytes, at } = this;
    if (back < 1 || back > at) throw new RangeError("a copy from before the beginning");
    if (back >= size) bytes.copyWithin(at, at - back, at - back + size);
    else for (let i = 0; i < size; i++) bytes[at + i] = bytes[at + i - back];
    this.at += size;
  }

  room(size) {
    if (this.at + size > this.bytes.length) throw new RangeError("more comes out than was declared");
  }
}

/** Read bytes one after another; never beyond the end. */
export class Input {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  get left() {
    return this.bytes.length - this.at;
  }

  take(size) {
    if (size > this.left) throw new RangeError("compressed bytes are cut off");
    this.at += size;
    return this.bytes.subarray(this.at - size, this.at);
  }

  byte() {
    return this.take(1)[0];
  }

  /** A little-endian number of up to six bytes. */
  number(size) {
    return this.take(size).reduceRight((value, byte) => value * 256 + byte, 0);
  }
}

/** Snappy raw: google/snappy, format_description.txt. */
function snappy(bytes, out) {
  const input = new Input(bytes);
  while (input.byte() > 127);
  while (input.left) {
    const tag = input.byte();
    const kind = tag & 3;
    if (kind === 0) {
      const size = tag >> 2;
      out.put(input.take(1 + (size < 60 ? size : input.number(size - 59))));
    } else if (kind === 1) {
      out.copy(((tag >> 5) << 8) + input.byte(), 4 + ((tag >> 2) & 7));
    } else {
      out.copy(input.number(kind === 2 ? 2 : 4), 1 + (tag >> 2));
    }
  }
}

/** LZ4 frames, one after another: lz4_Frame_format.md 1.6. */
function lz4(bytes, out) {
  const input = new Input(bytes);
  while (input.left) {
    const magic = input.number(4);
    if (magic >= 0x184d2a50 && magic <= 0x184d2a5f) {
      input.take(input.number(4));
      continue;
    }
    if (magic !== 0x184d2204) throw new RangeError("not an LZ4 frame");
    const flags = input.byte();
    if (flags >> 6 !== 1 || flags & 1) throw new RangeError("an LZ4 frame of another version, or with a dictionary");
    input.take(1 + (flags & 8 ? 8 : 0) + 1);
    for (let size; (size = input.number(4)) !== 0; ) {
      if (size >= 0x80000000) out.put(input.take(size - 0x80000000));
      else lz4Block(new Input(input.take(size)), out);
      if (flags & 16) input.take(4);
    }
    if (flags & 4) input.take(4);
  }
}

function lz4Block(input, out) {
  const more = (size, full) => {
    if (size === full) for (let byte = 255; byte === 255; size += byte) byte = input.byte();
    return size;
  };
  while (input.left) {
    const token = input.byte();
    out.put(input.take(more(token >> 4, 15)));
    if (!input.left) return;
    out.copy(input.number(2), 4 + more(token & 15, 15));
  }
}
