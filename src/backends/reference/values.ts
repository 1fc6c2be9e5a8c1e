/**
 * How the reference backend holds numbers while it computes: plain arrays of numbers, never raw 16-bit patterns.
 * Memory (what storages own) is an ArrayBuffer of raw elements; this file goes from one to the other. No operations.
 */
import {
  type DType,
  dtypes,
  encode,
  fromBfloat16Bits,
  fromFloat16Bits,
  isFloat,
  roundTo,
  type TypedArray,
} from "../../core/dtype.ts";
import type { Shape } from "../../core/shape.ts";
import type { Attrs, Spec } from "../../graph/node.ts";

/** Numbers of one value, row-major: Float32Array or Float64Array for floats, the own array for integers and bool. */
export type Values = TypedArray;

/** One primitive to run: everything that a row may know when it plans, and nothing of the graph. */
export interface Step {
  readonly name: string;
  readonly attrs: Attrs;
  readonly inputs: readonly Spec[];
  readonly shape: Shape;
  readonly dtype: DType;
  /** Floats stay float64; nothing is rounded. */
  readonly exact: boolean;
}

/** Fills `out`, every element of it, from the inputs. */
export type Kernel = (out: Values, inputs: readonly Values[]) => void;

/** A row of the reference's table. */
export interface Row {
  readonly plan: (step: Step) => Kernel;
  /** Values are moved, not made: they need no rounding. */
  readonly moves?: boolean;
}

/** The array in which a value of `dtype` is held while computing. */
export type Held = "f32" | "f64" | "i32" | "u32" | "u8";
export function heldAs(dtype: DType, exact: boolean): Held {
  if (isFloat(dtype)) return exact || dtype === "float64" ? "f64" : "f32";
  return dtype === "int32" ? "i32" : dtype === "uint32" ? "u32" : "u8";
}

const arrays = { f32: Float32Array, f64: Float64Array, i32: Int32Array, u32: Uint32Array, u8: Uint8Array };
export const hold = (held: Held, length: number): Values => new arrays[held](length);
export const heldBytes = (held: Held): number => arrays[held].BYTES_PER_ELEMENT;

/** The raw elements of memory. */
export const rawOf = (memory: unknown, dtype: DType, length: number): TypedArray =>
  new dtypes[dtype].array(memory as ArrayBuffer, 0, length);

/** Raw elements as numbers; the array itself where they already are. */
export function fromRaw(raw: TypedArray, dtype: DType, exact: boolean): Values {
  if (!isFloat(dtype) || dtype === "float64") return raw;
  if (dtype === "float32") return exact ? Float64Array.from(raw) : raw;
  const decodeBits = dtype === "float16" ? fromFloat16Bits : fromBfloat16Bits;
  const out = hold(exact ? "f64" : "f32", raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = decodeBits(raw[i]);
  return out;
}

/** Writes numbers into raw elements, rounding to `dtype`. */
export const toRaw = (values: Values, dtype: DType, raw: TypedArray): void => encode(dtype, values, raw);

/** Rounds numbers to a 16-bit float. */
export function roundInto(dtype: DType, from: Values, out: Values): void {
  for (let i = 0; i < out.length; i++) out[i] = roundTo(dtype, from[i]);
}

/** Row-major coordinates of a flat position, for messages. */
export function coordinates(position: number, shape: Shape): string {
  const at = new Array<number>(shape.length);
  for (let i = shape.length - 1; i >= 0; i--) {
    at[i] = position % shape[i];
    position = Math.floor(position / shape[i]);
  }
  return `[${at.join(", ")}]`;
}

/** A shape as [outer, n, inner] around one axis. */
export function aroundAxis(shape: Shape, axis: number): [outer: number, n: number, inner: number] {
  let outer = 1;
  let inner = 1;
  for (let i = 0; i < axis; i++) outer *= shape[i];
  for (let i = axis + 1; i < shape.length; i++) inner *= shape[i];
  return [outer, shape[axis], inner];
}
