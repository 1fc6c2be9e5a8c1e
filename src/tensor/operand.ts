/**
 * What operations take beside tensors: a user's numbers become runtime scalars, which are no part of a program's key, so
 * that a learning rate or a step count never compiles anew. And the shapes of common arguments.
 */
import { type DType, dtypes, isFloat, scalarResultType } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { normalizeAxis } from "../core/shape.ts";
import type { Node } from "../graph/node.ts";
import { expandTo, scalar } from "../graph/ops.ts";
import { Tensor } from "./tensor.ts";

/** A tensor, or a number that stands for one of that value everywhere. */
export type Operand = Tensor | number | boolean;

/** A number as a node without axes; checks that an integer dtype can hold it. */
export function scalarNode(operation: string, value: number | boolean, dtype: DType): Node {
  const { range } = dtypes[dtype];
  if (range && typeof value === "number" && !(value >= range[0] && value <= range[1]))
    throw new DTypeError(`${operation}: ${value} does not fit ${dtype} (${range[0]} … ${range[1]})`);
  return scalar(Number(value), dtype);
}

/** The node of an operand that stands beside `other`; a number gets the dtype that PyTorch's promotion gives it, and other's shape. */
export function nodeOf(operation: string, x: Operand, other: Node): Node {
  if (typeof x === "object") {
    if (x instanceof Tensor) return x.node;
    throw new DTypeError(
      `${operation}: expected a tensor or a number, got ${Object.prototype.toString.call(x)}; tensor(…) makes one`,
    );
  }
  return expandTo(scalarNode(operation, x, scalarResultType(other.dtype, x)), other.shape);
}

/** Two operands of which at least one is a tensor, as nodes. */
export function pairOf(operation: string, a: Operand, b: Operand): [Node, Node] {
  if (a instanceof Tensor) return [a.node, nodeOf(operation, b, a.node)];
  if (b instanceof Tensor) return [nodeOf(operation, a, b.node), b.node];
  throw new DTypeError(`${operation}: one operand must be a tensor`);
}

/** Any number of operands as nodes of one context: numbers stand beside the first tensor, or are float32. */
export function numberNode(operation: string, x: Operand, dtype: DType = "float32"): Node {
  return x instanceof Tensor ? x.node : scalarNode(operation, x, typeof x === "boolean" ? "bool" : dtype);
}

export interface DimOptions {
  readonly dim?: number;
  readonly keepdim?: boolean;
}

/** One axis, several, or none: all. */
export type Dims = number | readonly number[];

export interface ReduceOptions {
  readonly dim?: Dims;
  readonly keepdim?: boolean;
}

const allDims: ReduceOptions = Object.freeze({});

/** `sum(1)`, `sum([0, 1])` and `sum({ dim: 1, keepdim: true })` are all understood. No axes at all means every axis, as in PyTorch. */
export function reduceOptions(options: Dims | ReduceOptions | undefined): ReduceOptions {
  if (options === undefined) return allDims;
  if (typeof options === "number") return { dim: options };
  if (Array.isArray(options)) return options.length ? { dim: options as readonly number[] } : allDims;
  const given = options as ReduceOptions;
  return Array.isArray(given.dim) && given.dim.length === 0 ? { ...given, dim: undefined } : given;
}

/** The axis of an operation that takes one, as `dim` or `{ dim }`. */
export function dimOf(options: number | DimOptions | undefined, otherwise?: number): number | undefined {
  if (typeof options === "number") return options;
  return options?.dim ?? otherwise;
}

/** A normalised axis of x; axis 0 or −1 of a tensor without axes is allowed, as in PyTorch. */
export const axisOf = (operation: string, x: Node, dim: number): number =>
  normalizeAxis(operation, dim, x.shape.length);

/** `f(2, 3)` and `f([2, 3])`. */
export const sizesOf = (sizes: readonly (number | readonly number[])[]): readonly number[] =>
  sizes.length === 1 && typeof sizes[0] === "object" ? sizes[0] : (sizes as readonly number[]);

export function expectFloating(operation: string, x: Node): void {
  if (!isFloat(x.dtype))
    throw new DTypeError(`${operation}: takes a floating dtype, got ${x.dtype}; cast it with .to("float32")`);
}

export function expectWhole(operation: string, what: string, n: number, least = 0): void {
  if (!Number.isInteger(n) || n < least)
    throw new ShapeError(`${operation}: ${what} must be a whole number ≥ ${least}, got ${n}`);
}
