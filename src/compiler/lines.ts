/**
 * A tensor as lines along one axis, [outer, along the axis, inner]: how the templates of scatters, sorts and running sums see
 * their operands, and whether a scatter has to read its base at all. Nodes, shapes and strides only.
 */
import { sizeOf } from "../core/shape.ts";
import type { GNode } from "./lower.ts";

export interface Extent {
  readonly outer: number;
  readonly n: number;
  readonly inner: number;
}

export const extentOf = (shape: readonly number[], axis: number): Extent => ({
  outer: sizeOf(shape.slice(0, axis)),
  n: shape[axis],
  inner: sizeOf(shape.slice(axis + 1)),
});

/** Strides of (outer, axis, inner) if the axes before and after collapse; else null. */
export function collapse(
  shape: readonly number[],
  strides: readonly number[],
  axis: number,
): [number, number, number] | null {
  const merge = (from: number, to: number): number | null => {
    let stride = 0;
    let size = 1;
    for (let i = to - 1; i >= from; i--) {
      if (shape[i] === 1) continue;
      if (size === 1) stride = strides[i];
      else if (strides[i] !== stride * size) return null;
      size *= shape[i];
    }
    return stride;
  };
  const [outer, inner] = [merge(0, axis), merge(axis + 1, shape.length)];
  return outer === null || inner === null ? null : [outer, strides[axis], inner];
}

/** Whether a node is zero everywhere, as the graph says it: what a scatter need not read. */
export const isZero = (n: GNode): boolean =>
  n.op === "const" ? Number(n.attrs["value"]) === 0 : (n.op === "expand" || n.op === "reshape") && isZero(n.inputs[0]);
