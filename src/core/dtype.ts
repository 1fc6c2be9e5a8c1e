/**
 * The element types: sizes, typed arrays, promotion (PyTorch's), and conversion of the 16-bit floats.
 * No tensors here.
 */
import { DTypeError } from "./errors.ts";

export type DType = "float32" | "float64" | "float16" | "bfloat16" | "int32" | "uint32" | "uint8" | "bool";

export type TypedArray = Float32Array | Float64Array | Uint16Array | Int32Array | Uint32Array | Uint8Array;

interface DTypeInfo {
  /** Small number used in cache keys and command tables. */
  readonly code: number;
  readonly bytes: number;
  /** Promotion category: bool < integer < float. */
  readonly category: 0 | 1 | 2;
  /** The array that holds the raw bits. */
  readonly array: new (
    buffer: ArrayBufferLike,
    byteOffset?: number,
    length?: number,
  ) => TypedArray;
  /** Lowest and highest integer, for the integer types. */
  readonly range?: readonly [number, number];
}

/** `uint32` holds random bits; PyTorch's promotion does not cover it, so it mixes with no other type. */
export const dtypes: Readonly<Record<DType, DTypeInfo>> = {
  float32: { code: 0, bytes: 4, category: 2, array: Float32Array },
  float64: { code: 1, bytes: 8, category: 2, array: Float64Array },
  float16: { code: 2, bytes: 2, category: 2, array: Uint16Array },
  bfloat16: { code: 3, bytes: 2, category: 2, array: Uint16Array },
  int32: { code: 4, bytes: 4, category: 1, array: Int32Array, range: [-2147483648, 2147483647] },
  uint32: { code: 5, bytes: 4, category: 1, array: Uint32Array, range: [0, 4294967295] },
  uint8: { code: 6, bytes: 1, category: 1, array: Uint8Array, range: [0, 255] },
  bool: { code: 7, bytes: 1, category: 0, array: Uint8Array, range: [0, 1] },
};

export const isFloat = (dtype: DType): boolean => dtypes[dtype].category === 2;
export const isInteger = (dtype: DType): boolean => dtypes[dtype].category === 1;

export function isDType(name: unknown): name is DType {
  return typeof name === "string" && Object.hasOwn(dtypes, name);
}

/** The type in which sums and products of `dtype` are accumulated: float32 for the 16-bit floats. */
export const accumulator = (dtype: DType): DType => (dtypes[dtype].bytes === 2 ? "float32" : dtype);

/** What two tensors' types promote to, dimensions aside (torch.promote_types). */
export function promoteTypes(a: DType, b: DType): DType {
  if (a === b) return a;
  if (a === "uint32" || b === "uint32") {
    if (a === "bool") return b;
    if (b === "bool") return a;
    if (isFloat(a)) return a;
    if (isFloat(b)) return b;
    throw new DTypeError(`uint32 and ${a === "uint32" ? b : a} have no common type; cast one of them first`);
  }
  const ca = dtypes[a].category;
  const cb = dtypes[b].category;
  if (ca !== cb) return ca > cb ? a : b;
  if (ca === 1) return "int32"; // uint8 with int32
  if (a === "float64" || b === "float64") return "float64";
  return "float32"; // float32 with a 16-bit float, or float16 with bfloat16
}

/**
 * What the operands of one operation promote to (torch.result_type): a tensor with dimensions wins over one without
 * unless the latter is of a higher category.
 */
export function resultType(a: DType, aDims: number, b: DType, bDims: number): DType {
  if (a === b) return a;
  if (aDims > 0 && bDims === 0 && dtypes[b].category <= dtypes[a].category) return a;
  if (bDims > 0 && aDims === 0 && dtypes[a].category <= dtypes[b].category) return b;
  return promoteTypes(a, b);
}

/** What a JavaScript number beside a tensor promotes to: only its category counts. */
export function scalarResultType(dtype: DType, value: number | boolean): DType {
  if (typeof value === "boolean") return dtype;
  const category = Number.isInteger(value) ? 1 : 2;
  if (category <= dtypes[dtype].category) return dtype;
  return category === 2 ? "float32" : "int32";
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** The bits of `value` as bfloat16, rounded to nearest, ties to even. */
export function toBfloat16Bits(value: number): number {
  f32[0] = value;
  const bits = u32[0];
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40; // a NaN stays one
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

export function fromBfloat16Bits(bits: number): number {
  u32[0] = bits << 16;
  return f32[0];
}

/** The bits of `value` as IEEE half precision, rounded to nearest, ties to even. */
export function toFloat16Bits(value: number): number {
  // Rounding a double to float32 first could round twice; a half's neighbours are far apart, so scale exactly instead.
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const a = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (a >= 65520) return sign | 0x7c00;
  if (a < 2 ** -14) return sign | roundHalfEven(a * 2 ** 24); // subnormal: multiples of 2^-24
  let exponent = Math.floor(Math.log2(a));
  if (2 ** exponent > a) exponent--;
  else if (2 ** (exponent + 1) <= a) exponent++;
  const mantissa = roundHalfEven(a * 2 ** (10 - exponent)); // 1024 … 2048
  return sign + ((exponent + 14) << 10) + mantissa; // a mantissa of 2048 carries into the exponent
}

export function fromFloat16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? (1 + mantissa / 1024) * 2 ** (exponent - 15) : mantissa * 2 ** -24);
}

/** Rounds to the nearest integer, ties to even. */
export function roundHalfEven(x: number): number {
  const r = Math.round(x);
  return r - x === 0.5 && r % 2 !== 0 ? r - 1 : r;
}

/** What storing `value` as `dtype` and reading it again gives: floats round, integers wrap, bool is 0 or 1. */
export function roundTo(dtype: DType, value: number): number {
  switch (dtype) {
    case "float64":
      return value;
    case "float32":
      return Math.fround(value);
    case "float16":
      return fromFloat16Bits(toFloat16Bits(value));
    case "bfloat16":
      return fromBfloat16Bits(toBfloat16Bits(value));
    case "int32":
      return value | 0;
    case "uint32":
      return value >>> 0;
    case "uint8":
      return value & 255;
    case "bool":
      return value !== 0 ? 1 : 0;
  }
}

/** A zeroed raw array for `length` elements. */
export function allocateRaw(dtype: DType, length: number): TypedArray {
  return new dtypes[dtype].array(new ArrayBuffer(length * dtypes[dtype].bytes));
}

/** Writes numbers into a raw array of `dtype` (the 16-bit floats are encoded). Values must already fit. */
export function encode(dtype: DType, values: ArrayLike<number>, out: TypedArray): void {
  if (dtype === "float16") for (let i = 0; i < values.length; i++) out[i] = toFloat16Bits(values[i]);
  else if (dtype === "bfloat16") for (let i = 0; i < values.length; i++) out[i] = toBfloat16Bits(values[i]);
  else out.set(values as ArrayLike<number>);
}

/** What a user reads: the 16-bit floats as Float32Array, everything else as its own array. */
export function decode(dtype: DType, raw: TypedArray): TypedArray {
  if (dtype !== "float16" && dtype !== "bfloat16") return raw;
  // a loop over bits: Float32Array.from calls back for each element, a hundred times as long
  const out = new Float32Array(raw.length);
  const bits = new Uint32Array(out.buffer);
  if (dtype === "bfloat16") for (let i = 0; i < bits.length; i++) bits[i] = raw[i] << 16;
  else
    for (let i = 0; i < bits.length; i++) {
      const half = raw[i];
      const exponent = half & 0x7c00;
      if (exponent === 0 || exponent === 0x7c00) out[i] = fromFloat16Bits(half);
      else bits[i] = ((half & 0x8000) << 16) | (((half & 0x7fff) + 0x1c000) << 13);
    }
  return out;
}
