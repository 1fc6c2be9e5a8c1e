/** Shapes: plain arrays of sizes, and the arithmetic on them. No tensors here. */
import { ShapeError } from "./errors.ts";

export type Shape = readonly number[];

export const showShape = (shape: Shape): string => `[${shape.join(", ")}]`;

/** Number of elements. */
export function sizeOf(shape: Shape): number {
  let n = 1;
  for (let i = 0; i < shape.length; i++) n *= shape[i];
  return n;
}

export function sameShape(a: Shape, b: Shape): boolean {
  if (a === b) return true;
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Row-major strides, in elements. */
export function contiguousStrides(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let s = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = s;
    s *= shape[i];
  }
  return strides;
}

/** The shape that `a` and `b` broadcast to (NumPy's rule). */
export function broadcastShapes(operation: string, a: Shape, b: Shape): Shape {
  if (sameShape(a, b)) return a;
  const n = Math.max(a.length, b.length);
  const out = new Array<number>(n);
  for (let i = 0; i < n; i++) {
    const x = a[a.length - n + i] ?? 1;
    const y = b[b.length - n + i] ?? 1;
    if (x !== y && x !== 1 && y !== 1)
      throw new ShapeError(
        `${operation}: ${showShape(a)} and ${showShape(b)} do not broadcast: ${x} ≠ ${y} at axis ${i - n} (sizes must be equal, or one of them 1)`,
      );
    out[i] = x === 1 ? y : x;
  }
  return out;
}

/** A possibly negative axis as 0 … dims−1. */
export function normalizeAxis(operation: string, axis: number, dims: number): number {
  const range = Math.max(dims, 1);
  if (!Number.isInteger(axis) || axis < -range || axis >= range)
    throw new ShapeError(
      `${operation}: axis ${axis} is outside a tensor of ${dims} dimensions (expected ${-range} … ${range - 1})`,
    );
  return axis < 0 ? axis + range : axis;
}

/** Axes normalised, sorted and checked for repeats; undefined means all. */
export function normalizeAxes(operation: string, axes: number | readonly number[] | undefined, dims: number): number[] {
  if (axes === undefined) {
    const all: number[] = [];
    for (let i = 0; i < dims; i++) all.push(i);
    return all;
  }
  const list = typeof axes === "number" ? [axes] : axes;
  const out: number[] = [];
  let sorted = true;
  for (let i = 0; i < list.length; i++) {
    out.push(normalizeAxis(operation, list[i], dims));
    if (i > 0 && out[i] < out[i - 1]) sorted = false;
  }
  if (!sorted) out.sort((a, b) => a - b);
  for (let i = 1; i < out.length; i++)
    if (out[i] === out[i - 1])
      throw new ShapeError(`${operation}: axis ${out[i]} is named twice in ${showShape(list)}`);
  return out;
}

/** Checks that every size is a whole number ≥ 0. */
export function checkShape(operation: string, shape: Shape): void {
  for (const n of shape)
    if (!Number.isInteger(n) || n < 0)
      throw new ShapeError(`${operation}: a size must be a whole number ≥ 0, got ${n} in ${showShape(shape)}`);
}
