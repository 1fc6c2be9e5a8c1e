/**
 * A tensor that lies in a file: its dtype, its shape, and its bytes when they are asked for. What is read from PyTorch's and
 * NumPy's files has this form, whatever order or strides it is stored in; and how it becomes a Tensor.
 */
import { type DType, dtypes, isDType } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import { fromRaw, type Tensor } from "../tensor/index.ts";

/** The dtypes of files: those of tensors here, and integers that tensors here do not have. */
export type StoredDType = DType | "int64" | "uint64" | "int16" | "uint16" | "int8";

export interface StoredTensor {
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  /** Bytes of `read()`: elements times the size of one. */
  readonly byteLength: number;
  /** The elements in row-major order, contiguous, little-endian. Throws FormatError, or FileError where a file can't be read. */
  read(): Promise<Uint8Array>;
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

/** Copies of bytes that are views of what was given in memory, so that the tensor does not share it. */
const copied = (bytes: Uint8Array): ArrayBuffer => bytes.slice().buffer as ArrayBuffer;

/** int64 elements as int32. Throws DTypeError where one does not fit. */
function narrowed(where: string, bytes: Uint8Array): Int32Array {
  return Int32Array.from(new BigInt64Array(copied(bytes)), (v) => {
    if (v < -2147483648n || v > 2147483647n)
      throw new DTypeError(`${where} holds ${v}, which does not fit int32, the widest integer here`);
    return Number(v);
  });
}

export interface StoredOptions {
  /** The default device by default. */
  readonly device?: string;
}

/**
 * A stored tensor as a Tensor, on `device`; `where` names it in messages. int64 comes as int32, checked. Throws DTypeError for a
 * dtype or a value that tensors here can't hold, and what reading throws.
 */
export async function toTensor(where: string, stored: StoredTensor, options: StoredOptions = {}): Promise<Tensor> {
  const { dtype, shape } = stored;
  const given = { owned: true, ...options };
  if (dtype === "int64") return fromRaw(narrowed(where, await stored.read()), "int32", shape, given);
  if (!isDType(dtype)) throw new DTypeError(`${where} is of ${dtype}, which tensors here can't hold; convert it first`);
  const bytes = await stored.read();
  if (dtype === "bool" && bytes.some((b) => b > 1))
    throw new DTypeError(`${where} is of bool, but holds ${bytes.find((b) => b > 1)}; only 0 and 1 are bool`);
  return fromRaw(new dtypes[dtype].array(copied(bytes)), dtype, shape, given);
}

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
