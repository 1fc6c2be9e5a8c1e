/**
 * A tensor that lies in a file: its dtype, its shape, and its bytes when they are asked for. What is read from PyTorch's and
 * NumPy's files has this form, whatever order or strides it is stored in. `load-stored.ts` makes Tensors of it.
 */
import type { DType } from "../core/dtype.ts";

/** The dtypes of files: those of tensors here, and integers that tensors here do not have. */
export type StoredDType = DType | "int64" | "uint64" | "int16" | "uint16" | "int8";

export interface StoredTensor {
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  /** Bytes of `read()`: elements times the size of one. */
  readonly byteLength: number;
  /** The elements in row-major order, contiguous, little-endian. Throws FormatError, or FileError where a file can't be read. */
  read(): Promise<Uint8Array>;
  /** The same as they lie in a mapped file, in a buffer of their own; null where they don't. */
  mapped?(): Promise<Uint8Array<ArrayBuffer> | null>;
}

/** Bytes of one element. */
export const storedBytes: Readonly<Record<StoredDType, number>> = {
  float64: 8,
  int64: 8,
  uint64: 8,
  float32: 4,
  int32: 4,
  uint32: 4,
  float16: 2,
  bfloat16: 2,
  int16: 2,
  uint16: 2,
  int8: 1,
  uint8: 1,
  bool: 1,
};

/** Turns the bytes of each element around, in place. */
export function swapBytes(bytes: Uint8Array, each: number): void {
  for (let i = 0; i < bytes.length; i += each) bytes.subarray(i, i + each).reverse();
}

const unsigned = [0, Uint8Array, Uint16Array, 0, Uint32Array, 0, 0, 0, BigUint64Array] as const;

/**
 * Gathers elements that lie `strides` (in elements) apart, from element `start` of `bytes`, into row-major order. All of them
 * must lie inside.
 */
export function gather(
  bytes: Uint8Array,
  each: number,
  start: number,
  shape: readonly number[],
  strides: readonly number[],
): Uint8Array {
  const Elements = unsigned[each] as typeof Uint32Array; // 64 bits are moved the same way
  const aligned = bytes.byteOffset % each === 0 && bytes.byteLength % each === 0 ? bytes : bytes.slice();
  const from = new Elements(aligned.buffer as ArrayBuffer, aligned.byteOffset, Math.floor(aligned.byteLength / each));
  const out = new Elements(shape.reduce((n, d) => n * d, 1));
  const inner = shape.at(-1) ?? 1;
  const step = strides.at(-1) ?? 0;
  const outer = shape.slice(0, -1);
  const index = outer.map(() => 0);
  let at = start;
  for (let o = 0; o < out.length; o += inner) {
    for (let i = 0, f = at; i < inner; i++, f += step) out[o + i] = from[f];
    for (let d = outer.length - 1; d >= 0; d--) {
      at += strides[d];
      if (++index[d] < outer[d]) break;
      at -= strides[d] * outer[d];
      index[d] = 0;
    }
  }
  return new Uint8Array(out.buffer);
}
