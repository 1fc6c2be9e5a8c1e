/**
 * How values lie in WebGPU memory and how a kernel is given them. Memory holds the same bytes as on the CPU: 16-bit
 * floats two and bool and uint8 four to a 32-bit word, little end first; so a buffer is a whole number of words, and
 * its last word may hold bytes of no element. Stores of narrow elements never race: a kernel writes whole words where it
 * can, and changes single elements by atomics where it can't. No text of kernels here: render.ts.
 */
import { type Lane as AnyLane, laneOf as anyLaneOf } from "../../compiler/kernel.ts";
import { type DType, dtypes, roundTo } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";

/** Storage buffers a kernel may bind, WebGPU's least limit: its own and the failure word together. */
export const MAX_STORAGE_BUFFERS = 8;

/** A kernel that needs more storage buffers than a device binds; it has to be split. */
export class TooManyBindings extends BackendError {
  override name = "TooManyBindings";
  readonly needed: number;
  readonly limit: number;
  constructor(needed: number, limit: number) {
    super(`webgpu: a kernel needs ${needed} storage buffers, the device binds ${limit}; split the kernel`);
    this.needed = needed;
    this.limit = limit;
  }
}

/** Bytes that `length` elements take on the device: those of the CPU, rounded up to a word. */
export const storageBytes = (dtype: DType, length: number): number => Math.ceil((length * dtypes[dtype].bytes) / 4) * 4;

/** How a dtype is computed with: as elsewhere, but for float64, which WGSL lacks. */
export type Lane = Exclude<AnyLane, "d">;
export const typeOf: Readonly<Record<Lane, string>> = { f: "f32", i: "i32", u: "u32", m: "bool" };

export function laneOf(dtype: DType): Lane {
  const lane = anyLaneOf[dtype];
  if (!import.meta.forBrowsers && lane === "d")
    throw new BackendError(
      `webgpu: WGSL has no ${dtype}; cast to float32 first, or compute this on the cpu or reference device`,
    );
  return lane as Lane;
}

/** Elements of a dtype in a word. */
export const perWord = (dtype: DType): number => 4 / dtypes[dtype].bytes;

export type BindingKind = "uniform" | "buffer" | "failure";

/** What a kernel's bind group 0 holds, in order of binding number. */
export interface Binding {
  readonly binding: number;
  readonly kind: BindingKind;
  /** kind buffer: the kernel's buffers that lie there; one, unless the caller said that several share memory. */
  readonly buffers: readonly number[];
}

/** Words of the uniform buffer before the scalars: length, operation of check 0, infinity's bits, unused. */
export const UNIFORM_HEAD = 4;

/** Words of the failure buffer: operation (0: none yet) and the index that was out of range. */
export const FAILURE_BYTES = 8;

/** The uniform buffer of one dispatch. `length` is that of a flat kernel of one row; scalars in the kernel's order. */
export function packUniforms(
  dtypesOfScalars: readonly DType[],
  { length, firstCheck, scalars }: { length: number; firstCheck: number; scalars: ArrayLike<number> },
): Uint32Array {
  const words = new Uint32Array(Math.ceil((UNIFORM_HEAD + dtypesOfScalars.length) / 4) * 4);
  const floats = new Float32Array(words.buffer);
  words.set([length, firstCheck, 0x7f800000]);
  dtypesOfScalars.forEach((dtype, i) => {
    const value = roundTo(dtype, scalars[i]);
    if (laneOf(dtype) === "f") floats[UNIFORM_HEAD + i] = value;
    else words[UNIFORM_HEAD + i] = value;
  });
  return words;
}

/** A word of the uniform buffer as WGSL. */
export const uniformWord = (k: number): string => `p[${k >> 2}].${"xyzw"[k & 3]}`;
