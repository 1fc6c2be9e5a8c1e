/**
 * The block types of ggml: how many elements share a block, how its bytes lie, and what they mean as float32. The layouts and
 * constants are those of ggml (ggml-common.h, ggml-quants.c, MIT); the roundings are those of its reference quantisation as the
 * `gguf` Python package computes it, so that bits agree.
 *
 * A block of 32 holds a scale d (half precision), in _1 types a minimum m too, and 32 numbers q of 4, 5 or 8 bits. A block of 256
 * (the K types) holds 8 or 16 parts, each with a small integer as scale (and minimum), to be multiplied by the block's own.
 */
import { fromBfloat16Bits, toBfloat16Bits } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";

/** The types that are read; `encode` is there for those that are written. */
export type GgufType = "f32" | "f16" | "bf16" | "q4_0" | "q4_1" | "q5_0" | "q5_1" | "q8_0" | "q4_k" | "q5_k" | "q6_k";

/** Decodes one block, of which it is told the first byte and the first element; `half` is halfTable(). */
type BlockDecoder = (bytes: Uint8Array, at: number, out: Float32Array, o: number, half: Float32Array) => void;

export interface BlockType {
  /** The number in files (ggml_type). */
  readonly code: number;
  /** Elements in a block, which the last dimension must be a multiple of. */
  readonly elements: number;
  /** Bytes of a block. */
  readonly bytes: number;
  /** Of the types without blocks: all elements. */
  readonly decodeAll?: (bytes: Uint8Array, out: Float32Array) => void;
  readonly decodeBlock?: BlockDecoder;
  /** The reverse; `out` has as many blocks as there are elements for. Infinity and NaN only in the types without scale. */
  readonly encode?: (values: Float32Array, out: Uint8Array) => void;
}

const { fround } = Math;

let halves: Float32Array | undefined;

/** Every half-precision number by its bits: f16 tensors and the scales of blocks are read through it. */
function halfTable(): Float32Array {
  if (halves !== undefined) return halves;
  const table = new Float32Array(1 << 16);
  const bits = new Uint32Array(table.buffer);
  for (let h = 0; h < 1 << 16; h++) {
    const exponent = (h >>> 10) & 31;
    const mantissa = h & 1023;
    if (exponent === 0) table[h] = (h & 0x8000 ? -1 : 1) * mantissa * 2 ** -24;
    else bits[h] = ((h & 0x8000) << 16) | ((exponent === 31 ? 255 : exponent + 112) << 23) | (mantissa << 13);
  }
  halves = table;
  return table;
}

const one = new Float32Array(1);
const oneBits = new Uint32Array(one.buffer);

/**
 * The bits of a float32 number as half precision, to nearest, ties to even; a NaN keeps its sign and first bits, as in NumPy. From a
 * number's bits this is thirty times faster than core's toFloat16Bits, which rounds doubles.
 */
function halfBits(value: number): number {
  one[0] = value;
  const bits = oneBits[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7c00 | ((magnitude >>> 13) & 1023 || 1);
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // from 65520, which is half-way to the first that there is not
  if (magnitude < 0x38800000) {
    one[0] = Math.abs(value) + 0.5; // float32 near ½ has steps of 2^-24, which are those of half's subnormals
    return sign | (oneBits[0] - 0x3f000000);
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

const u16At = (bytes: Uint8Array, at: number): number => bytes[at] | (bytes[at + 1] << 8);

function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value & 255;
  bytes[at + 1] = value >>> 8;
}

/** The largest magnitude among 32 values from `i`, with its sign; the first where several are as large. */
function extreme(values: Float32Array, i: number): number {
  let largest = 0;
  let found = values[i];
  for (let j = i; j < i + 32; j++) {
    const a = Math.abs(values[j]);
    if (!(a < Infinity)) throw new DTypeError(`element ${j} is ${values[j]}, which no block with a scale can hold`);
    if (a > largest) {
      largest = a;
      found = values[j];
    }
  }
  return found;
}

/** 1/d in float32, and 0 for 0. */
const inverse = (d: number): number => (d === 0 ? 0 : fround(1 / d));

/** Rounds half away from zero, as C's roundf. */
const roundAway = (x: number): number => Math.trunc(x + (x < 0 ? -0.5 : 0.5));

/** x = d·q, q of 8 bits with sign. */
function encodeQ8_0(values: Float32Array, out: Uint8Array): void {
  for (let i = 0, at = 0; i < values.length; i += 32, at += 34) {
    const d = fround(Math.abs(extreme(values, i)) / 127);
    const id = inverse(d);
    setU16(out, at, halfBits(d));
    for (let j = 0; j < 32; j++) out[at + 2 + j] = roundAway(fround(values[i + j] * id)) & 255;
  }
}

/** x = d·(q - 8); d is such that the value of largest magnitude gets q = 0, whatever its sign. */
function encodeQ4_0(values: Float32Array, out: Uint8Array): void {
  for (let i = 0, at = 0; i < values.length; i += 32, at += 18) {
    const d = fround(extreme(values, i) / -8);
    const id = inverse(d);
    setU16(out, at, halfBits(d));
    const nibble = (j: number): number =>
      Math.min(15, Math.max(0, Math.trunc(fround(fround(values[i + j] * id) + 8.5))));
    for (let j = 0; j < 16; j++) out[at + 2 + j] = nibble(j) | (nibble(j + 16) << 4);
  }
}

const decodeQ8_0: BlockDecoder = (bytes, at, out, o, half) => {
  const d = half[u16At(bytes, at)];
  for (let j = 0; j < 32; j++) out[o + j] = d * ((bytes[at + 2 + j] << 24) >> 24);
};

// the low nibbles are the first 16 elements, the high ones the other 16
const decodeQ4_0: BlockDecoder = (bytes, at, out, o, half) => {
  const d = half[u16At(bytes, at)];
  for (let j = 0; j < 16; j++) {
    const q = bytes[at + 2 + j];
    out[o + j] = d * ((q & 15) - 8);
    out[o + j + 16] = d * ((q >>> 4) - 8);
  }
};

const decodeQ4_1: BlockDecoder = (bytes, at, out, o, half) => {
  const d = half[u16At(bytes, at)];
  const m = half[u16At(bytes, at + 2)];
  for (let j = 0; j < 16; j++) {
    const q = bytes[at + 4 + j];
    out[o + j] = fround(d * (q & 15)) + m;
    out[o + j + 16] = fround(d * (q >>> 4)) + m;
  }
};

// the fifth bits of the 32 elements are a word of their own
const decodeQ5_0: BlockDecoder = (bytes, at, out, o, half) => {
  const d = half[u16At(bytes, at)];
  const high = u16At(bytes, at + 2) | (u16At(bytes, at + 4) << 16);
  for (let j = 0; j < 16; j++) {
    const q = bytes[at + 6 + j];
    out[o + j] = d * (((q & 15) | (((high >>> j) & 1) << 4)) - 16);
    out[o + j + 16] = d * (((q >>> 4) | (((high >>> (j + 16)) & 1) << 4)) - 16);
  }
};

const decodeQ5_1: BlockDecoder = (bytes, at, out, o, half) => {
  const d = half[u16At(bytes, at)];
  const m = half[u16At(bytes, at + 2)];
  for (let j = 0; j < 32; j++) {
    const fifth = (bytes[at + 4 + (j >> 3)] >>> (j & 7)) & 1;
    out[o + j] = fround(d * (((bytes[at + 8 + (j & 15)] >>> (j & 16 ? 4 : 0)) & 15) | (fifth << 4))) + m;
  }
};

/** The scale (part < 8) or minimum (part + 8) of 6 bits, of the 12 bytes in which the 8 of each of a K block lie. */
function sixBits(bytes: Uint8Array, at: number, part: number, minimum: boolean): number {
  const low = minimum ? 4 : 0;
  if (part < 4) return bytes[at + low + part] & 63;
  const rest = bytes[at + part + 4]; // bytes 8 … 11: four bits of a scale, four of a minimum
  return (minimum ? rest >>> 4 : rest & 15) | ((bytes[at + low + part - 4] >>> 6) << 4);
}

/** q4_k and q5_k: x = d·scale·q - dmin·minimum, in 8 parts of 32; q5_k has the fifth bits in 32 bytes before the nibbles. */
function decodeK(fifth: boolean, ...[bytes, at, out, o, half]: Parameters<BlockDecoder>): void {
  const d = half[u16At(bytes, at)];
  const dmin = half[u16At(bytes, at + 2)];
  const high = at + 16;
  const nibbles = fifth ? high + 32 : high;
  for (let part = 0; part < 8; part++) {
    const scale = fround(d * sixBits(bytes, at + 4, part, false));
    const minimum = fround(dmin * sixBits(bytes, at + 4, part, true));
    const from = nibbles + 32 * (part >> 1);
    const shift = part & 1 ? 4 : 0;
    for (let j = 0; j < 32; j++) {
      let q = (bytes[from + j] >>> shift) & 15;
      if (fifth) q |= ((bytes[high + j] >>> part) & 1) << 4;
      out[o + 32 * part + j] = fround(scale * q) - minimum;
    }
  }
}
const decodeQ4K: BlockDecoder = (...block) => decodeK(false, ...block);
const decodeQ5K: BlockDecoder = (...block) => decodeK(true, ...block);

// x = d·scale·(q - 32): 128 bytes of low nibbles, 64 of pairs of high bits, 16 scales of 8 bits for 16 elements each, and d
const decodeQ6K: BlockDecoder = (bytes, at, out, o, half) => {
  const d = half[u16At(bytes, at + 208)];
  for (let part = 0; part < 8; part++) {
    const low = at + 64 * (part >> 2) + 32 * (part & 1);
    const lowShift = part & 2 ? 4 : 0;
    const high = at + 128 + 32 * (part >> 2);
    const highShift = 2 * (part & 3);
    for (let j = 0; j < 32; j++) {
      const scale = fround(d * ((bytes[at + 192 + 2 * part + (j >> 4)] << 24) >> 24));
      const q = ((bytes[low + j] >>> lowShift) & 15) | (((bytes[high + j] >>> highShift) & 3) << 4);
      out[o + 32 * part + j] = scale * (q - 32);
    }
  }
};

function decodeF32(bytes: Uint8Array, out: Float32Array): void {
  new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(bytes);
}

function encodeF32(values: Float32Array, out: Uint8Array): void {
  out.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
}

function decodeF16(bytes: Uint8Array, out: Float32Array): void {
  const half = halfTable();
  for (let i = 0; i < out.length; i++) out[i] = half[u16At(bytes, 2 * i)];
}

function decodeBF16(bytes: Uint8Array, out: Float32Array): void {
  for (let i = 0; i < out.length; i++) out[i] = fromBfloat16Bits(u16At(bytes, 2 * i));
}

function encodeF16(values: Float32Array, out: Uint8Array): void {
  for (let i = 0; i < values.length; i++) setU16(out, 2 * i, halfBits(values[i]));
}

function encodeBF16(values: Float32Array, out: Uint8Array): void {
  for (let i = 0; i < values.length; i++) setU16(out, 2 * i, toBfloat16Bits(values[i]));
}

export const blockTypes: Readonly<Record<GgufType, BlockType>> = {
  f32: { code: 0, elements: 1, bytes: 4, decodeAll: decodeF32, encode: encodeF32 },
  f16: { code: 1, elements: 1, bytes: 2, decodeAll: decodeF16, encode: encodeF16 },
  q4_0: { code: 2, elements: 32, bytes: 18, decodeBlock: decodeQ4_0, encode: encodeQ4_0 },
  q4_1: { code: 3, elements: 32, bytes: 20, decodeBlock: decodeQ4_1 },
  q5_0: { code: 6, elements: 32, bytes: 22, decodeBlock: decodeQ5_0 },
  q5_1: { code: 7, elements: 32, bytes: 24, decodeBlock: decodeQ5_1 },
  q8_0: { code: 8, elements: 32, bytes: 34, decodeBlock: decodeQ8_0, encode: encodeQ8_0 },
  q4_k: { code: 12, elements: 256, bytes: 144, decodeBlock: decodeQ4K },
  q5_k: { code: 13, elements: 256, bytes: 176, decodeBlock: decodeQ5K },
  q6_k: { code: 14, elements: 256, bytes: 210, decodeBlock: decodeQ6K },
  bf16: { code: 30, elements: 1, bytes: 2, decodeAll: decodeBF16, encode: encodeBF16 },
};

/** Types that files may hold and that are not read here, for messages (ggml.h). */
export const otherTypes: Readonly<Record<number, string>> = {
  9: "q8_1",
  10: "q2_k",
  11: "q3_k",
  15: "q8_k",
  16: "iq2_xxs",
  17: "iq2_xs",
  18: "iq3_xxs",
  19: "iq1_s",
  20: "iq4_nl",
  21: "iq3_s",
  22: "iq2_s",
  23: "iq4_xs",
  24: "i8",
  25: "i16",
  26: "i32",
  27: "i64",
  28: "f64",
  29: "iq1_m",
  34: "tq1_0",
  35: "tq2_0",
  39: "mxfp4",
};

/** Blocks as float32. `bytes` must be whole blocks, as many as `elements` fill. */
export function dequantize(type: GgufType, bytes: Uint8Array, elements: number): Float32Array<ArrayBuffer> {
  const out = new Float32Array(elements);
  const { elements: each, bytes: size, decodeAll, decodeBlock } = blockTypes[type];
  decodeAll?.(bytes, out);
  const half = halfTable();
  if (decodeBlock) for (let at = 0, o = 0; o < elements; at += size, o += each) decodeBlock(bytes, at, out, o, half);
  return out;
}

/**
 * float32 values as blocks of `type` (f32, f16, bf16, q8_0, q4_0), rounded as ggml's reference does. Throws DTypeError for other
 * types, for a length that does not fill blocks, and for infinity or NaN in q8_0 and q4_0.
 */
export function quantize(type: GgufType, values: Float32Array): Uint8Array<ArrayBuffer> {
  const { elements, bytes, encode } = blockTypes[type];
  if (encode === undefined)
    throw new DTypeError(`${type} is read but not written; choose f32, f16, bf16, q8_0 or q4_0`);
  if (values.length % elements !== 0)
    throw new DTypeError(`${values.length} values do not fill blocks of ${type}, which hold ${elements} each`);
  const out = new Uint8Array((values.length / elements) * bytes);
  encode(values, out);
  return out;
}

/**
 * Blocks of q8_0 or q4_0 taken apart: the codes of all, 32 or 16 bytes each, and their scales as half-precision bits. Nothing is
 * converted. `room` of as many bytes is written to, if it is given, instead of new memory.
 */
export function splitBlocks(
  type: "q8_0" | "q4_0",
  bytes: Uint8Array,
  room?: ArrayBuffer,
): { codes: Uint8Array<ArrayBuffer>; scales: Uint16Array<ArrayBuffer> } {
  const size = blockTypes[type].bytes;
  const each = size - 2;
  const blocks = bytes.length / size;
  const scales = room ? new Uint16Array(room, 0, blocks) : new Uint16Array(blocks);
  const codes = room ? new Uint8Array(room, 2 * blocks, blocks * each) : new Uint8Array(blocks * each);
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += size, to += each) {
    scales[b] = u16At(bytes, at);
    for (let j = 0; j < each; j++) codes[to + j] = bytes[at + 2 + j];
  }
  return { codes, scales };
}
