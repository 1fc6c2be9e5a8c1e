/**
 * Reductions, scans and sorting: functions of tensors, each also a method. `dim` may be given alone or in an object; with
 * `keepdim` the axes stay, with size 1.
 */
import { accumulator, isFloat } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { normalizeAxes, sizeOf } from "../core/shape.ts";
import { raised } from "../graph/autocast.ts";
import { logSoftmax as logSoftmaxNode, softmax as softmaxNode } from "../graph/composites/index.ts";
import { isGradEnabled, type Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import {
  axisOf,
  type DimOptions,
  type Dims,
  dimOf,
  expectFloating,
  type ReduceOptions,
  reduceOptions,
} from "./operand.ts";
import { Tensor } from "./tensor.ts";

type Reduction = (x: Tensor, options?: Dims | ReduceOptions) => Tensor;

export interface ValuesAndIndices {
  readonly values: Tensor;
  /** int32 positions along the axis. */
  readonly indices: Tensor;
}

const reduction =
  (f: (x: Node, dim: Dims | undefined, options: ReduceOptions) => Node): Reduction =>
  (x, options) => {
    const o = reduceOptions(options);
    const node = f(x.node, o.dim, o);
    return node === x.node ? x : new Tensor(node);
  };

/** Σ x. Integers and bool are summed as int32. */
export const sum: Reduction = reduction(ops.sum);
/** The mean, accumulated in float32 for the 16-bit floats. */
export const mean: Reduction = reduction(ops.mean);
/** The largest element over the axes; equal ones share the gradient. */
export const amax: Reduction = reduction(ops.reduceMax);
/** The smallest element over the axes; equal ones share the gradient. */
export const amin: Reduction = reduction(ops.reduceMin);
/** Π x. */
export const prod: Reduction = reduction((x, dim, o) => ops.prod(raised(x), dim, o));
const truth = (x: Node): Node => (x.dtype === "bool" ? x : ops.ne(x, 0));
/** Whether any element is not 0. */
export const any: Reduction = reduction((x, dim, o) =>
  emptyOver(x, dim) ? filled(x, dim, o, 0) : ops.reduceMax(truth(x), dim, o),
);
/** Whether all elements are not 0. */
export const all: Reduction = reduction((x, dim, o) =>
  emptyOver(x, dim) ? filled(x, dim, o, 1) : ops.reduceMin(truth(x), dim, o),
);
/** How many elements are not 0 (torch.count_nonzero). */
export const countNonzero: Reduction = reduction((x, dim, o) => ops.sum(truth(x), dim, o));

const emptyOver = (x: Node, dim: Dims | undefined): boolean =>
  normalizeAxes("all", dim, x.shape.length).some((a) => x.shape[a] === 0);
const filled = (x: Node, dim: Dims | undefined, o: ReduceOptions, value: number): Node =>
  ops.cast(ops.full(ops.sum(truth(x), dim, o).shape, value, "int32"), "bool");

function withIndices(name: string, x: Tensor, dim: number, keepdim: boolean, largest: boolean): ValuesAndIndices {
  const { node } = x;
  const axis = axisOf(name, node, dim);
  const find = largest ? ops.argmax : ops.argmin;
  if (node.shape.length === 0) return { values: x, indices: new Tensor(find(node, 0)) };
  const indices = find(node, axis, true);
  // the gradient goes to the element that was found, not to all equal ones
  const values =
    node.requiresGrad && isGradEnabled()
      ? ops.gather(node, axis, indices)
      : (largest ? ops.reduceMax : ops.reduceMin)(node, axis, { keepdim: true });
  if (keepdim) return { values: new Tensor(values), indices: new Tensor(indices) };
  return { values: new Tensor(ops.squeeze(values, axis)), indices: new Tensor(ops.squeeze(indices, axis)) };
}

/** The largest element of all, or along `dim` with its (first) index. */
export function max(x: Tensor): Tensor;
export function max(x: Tensor, options: number | (DimOptions & { readonly dim: number })): ValuesAndIndices;
export function max(x: Tensor, options?: number | DimOptions): Tensor | ValuesAndIndices {
  const dim = dimOf(options);
  if (dim === undefined) return new Tensor(ops.reduceMax(x.node));
  return withIndices("max", x, dim, typeof options === "object" && (options.keepdim ?? false), true);
}
/** The smallest element of all, or along `dim` with its (first) index. */
export function min(x: Tensor): Tensor;
export function min(x: Tensor, options: number | (DimOptions & { readonly dim: number })): ValuesAndIndices;
export function min(x: Tensor, options?: number | DimOptions): Tensor | ValuesAndIndices {
  const dim = dimOf(options);
  if (dim === undefined) return new Tensor(ops.reduceMin(x.node));
  return withIndices("min", x, dim, typeof options === "object" && (options.keepdim ?? false), false);
}

/** The first index of the largest element, over all elements or along `dim`; int32. */
export function argmax(x: Tensor, options?: number | DimOptions): Tensor {
  return new Tensor(ops.argmax(x.node, dimOf(options), typeof options === "object" && options.keepdim));
}
/** The first index of the smallest element, over all elements or along `dim`; int32. */
export function argmin(x: Tensor, options?: number | DimOptions): Tensor {
  return new Tensor(ops.argmin(x.node, dimOf(options), typeof options === "object" && options.keepdim));
}

export interface VarianceOptions extends ReduceOptions {
  /** Subtracted from the number of elements. Default 1 (Bessel's correction). */
  readonly correction?: number;
}

function varianceNode(name: string, x: Node, options: Dims | VarianceOptions | undefined): Node {
  expectFloating(name, x);
  const o = reduceOptions(options) as VarianceOptions;
  const { correction = 1 } = o;
  const axes = normalizeAxes(name, o.dim, x.shape.length).filter((a) => a < x.shape.length);
  const n = axes.reduce((k, a) => k * x.shape[a], 1);
  const wide = ops.cast(x, accumulator(x.dtype));
  const centred = ops.sub(wide, ops.mean(wide, axes, { keepdim: true }));
  const squares = ops.sum(ops.mul(centred, centred), axes, { keepdim: o.keepdim });
  return ops.div(squares, ops.full(squares.shape, Math.max(0, n - correction), squares.dtype));
}
/** The variance (torch.var): squared distances from the mean over n − correction. */
export const variance = (x: Tensor, options?: Dims | VarianceOptions): Tensor =>
  new Tensor(ops.cast(varianceNode("var", x.node, options), x.dtype));
/** The standard deviation (torch.std). */
export const std = (x: Tensor, options?: Dims | VarianceOptions): Tensor =>
  new Tensor(ops.cast(ops.sqrt(varianceNode("std", x.node, options)), x.dtype));

export interface NormOptions extends ReduceOptions {
  /** The order: 1, 2 (default), any other number, Infinity or -Infinity, 0 (how many are not 0); "fro" is 2. */
  readonly p?: number | "fro";
}

/** The vector norm over all axes or `dim` (torch.norm, torch.linalg.vector_norm). Its gradient at 0 is 0. */
export function norm(x: Tensor, options: number | NormOptions = {}): Tensor {
  const o: NormOptions = typeof options === "number" ? { p: options } : options;
  const p = o.p === undefined || o.p === "fro" ? 2 : o.p;
  const { node } = x;
  expectFloating("norm", node);
  const { dim, keepdim } = reduceOptions(o);
  const how = { keepdim };
  const magnitude = ops.abs(ops.cast(node, accumulator(node.dtype)));
  const root = (s: Node, f: (s: Node) => Node): Node => {
    const zero = ops.eq(s, 0);
    return ops.where(zero, 0, f(ops.where(zero, 1, s)));
  };
  let out: Node;
  if (p === Number.POSITIVE_INFINITY) out = ops.reduceMax(magnitude, dim, how);
  else if (p === Number.NEGATIVE_INFINITY) out = ops.reduceMin(magnitude, dim, how);
  else if (p === 0) out = ops.sum(ops.cast(ops.ne(magnitude, 0), magnitude.dtype), dim, how);
  else if (p === 1) out = ops.sum(magnitude, dim, how);
  else if (p === 2) out = root(ops.sum(ops.mul(magnitude, magnitude), dim, how), ops.sqrt);
  else out = root(ops.sum(ops.pow(magnitude, p), dim, how), (s) => ops.pow(s, 1 / p));
  return new Tensor(ops.cast(out, node.dtype));
}

/** ln Σ eˣ over the axes, without overflow. */
export const logsumexp: Reduction = reduction((input, dim, o) => {
  const x = ops.toFloat(input);
  const highest = ops.detach(ops.reduceMax(x, dim, { keepdim: true }));
  const finite = ops.lt(ops.abs(highest), Number.POSITIVE_INFINITY);
  const shift = ops.where(ops.or(finite, ops.isNan(highest)), highest, 0);
  const total = ops.add(ops.log(ops.sum(ops.exp(ops.sub(x, shift)), dim, { keepdim: true })), shift);
  return o.keepdim ? total : ops.reshape(total, ops.sum(x, dim).shape);
});

/** eˣ / Σ eˣ along `dim`. */
export function softmax(x: Tensor, options: number | { readonly dim: number }): Tensor {
  return new Tensor(softmaxNode(raised(x.node), axisOf("softmax", x.node, dimOf(options, -1) as number)));
}
/** x − ln Σ eˣ along `dim`. */
export function logSoftmax(x: Tensor, options: number | { readonly dim: number }): Tensor {
  return new Tensor(logSoftmaxNode(raised(x.node), axisOf("logSoftmax", x.node, dimOf(options, -1) as number)));
}

// ---- scans ------------------------------------------------------------------------------------------------------------------

type Scan = (x: Tensor, options: number | { readonly dim: number }) => Tensor;
const scan =
  (f: (x: Node, axis: number) => Node): Scan =>
  (x, options) =>
    new Tensor(f(x.node, dimOf(options, 0) as number));
/** Running sums along `dim`. */
export const cumsum: Scan = scan(ops.cumsum);
/** Running products along `dim`. */
export const cumprod: Scan = scan(ops.cumprod);

/** Running maxima along `dim`, with the index of the (last) element that reached each. */
export function cummax(x: Tensor, options: number | { readonly dim: number }): ValuesAndIndices {
  const { node } = x;
  const axis = axisOf("cummax", node, dimOf(options, 0) as number);
  if (node.shape.length === 0) return { values: x, indices: new Tensor(ops.full([], 0, "int32")) };
  const highest = ops.cummax(ops.detach(node), axis);
  const reached = ops.or(ops.eq(node, highest), ops.isNan(node));
  const indices = ops.cummax(ops.where(reached, ops.iota(node.shape, axis), 0), axis);
  const values = node.requiresGrad && isGradEnabled() ? ops.gather(node, axis, indices) : highest;
  return { values: new Tensor(values), indices: new Tensor(indices) };
}

/** Differences of neighbours along `dim` (default: last), n times. */
export function diff(x: Tensor, options: { readonly n?: number; readonly dim?: number } = {}): Tensor {
  const { n = 1, dim = -1 } = options;
  const axis = axisOf("diff", x.node, dim);
  let { node } = x;
  for (let k = 0; k < n; k++) {
    const length = node.shape[axis];
    const [later, earlier] = [ops.narrow(node, axis, 1, length - 1), ops.narrow(node, axis, 0, length - 1)];
    node = node.dtype === "bool" ? ops.xor(later, earlier) : ops.sub(later, earlier);
  }
  return new Tensor(node);
}

// ---- order ------------------------------------------------------------------------------------------------------------------

export interface SortOptions {
  /** Default: the last axis. */
  readonly dim?: number;
  readonly descending?: boolean;
}

/** The stable order of an axis as int32 indices; NaN counts as larger than everything. */
export function argsort(x: Tensor, options: number | SortOptions = {}): Tensor {
  const o = typeof options === "number" ? { dim: options } : options;
  return new Tensor(ops.argsort(x.node, o.dim ?? -1, o.descending));
}

function pick(x: Node, axis: number, indices: Node): ValuesAndIndices {
  const values = x.shape.length === 0 ? x : ops.gather(x, axis, indices);
  return { values: new Tensor(values), indices: new Tensor(indices) };
}

/** The elements of an axis in stable order, and where they stood. */
export function sort(x: Tensor, options: number | SortOptions = {}): ValuesAndIndices {
  const o = typeof options === "number" ? { dim: options } : options;
  const axis = axisOf("sort", x.node, o.dim ?? -1);
  return pick(x.node, axis, ops.argsort(x.node, axis, o.descending));
}

/** The k largest (or smallest) elements of an axis in order, and where they stood. */
export function topk(
  x: Tensor,
  k: number,
  options: { readonly dim?: number; readonly largest?: boolean } = {},
): ValuesAndIndices {
  const { dim = -1, largest = true } = options;
  const { node } = x;
  const axis = axisOf("topk", node, dim);
  const length = node.shape[axis] ?? 1;
  if (!Number.isInteger(k) || k < 0 || k > length)
    throw new ShapeError(`topk: k = ${k} is outside 0 … ${length}, the size of axis ${axis}`);
  if (node.shape.length === 0) return { values: x, indices: new Tensor(ops.full([], 0, "int32")) };
  return pick(node, axis, ops.narrow(ops.argsort(node, axis, largest), axis, 0, k));
}

/** The median (the lower one of two) of all elements, or along `dim` with its index. */
export function median(x: Tensor): Tensor;
export function median(x: Tensor, options: number | (DimOptions & { readonly dim: number })): ValuesAndIndices;
export function median(x: Tensor, options?: number | DimOptions): Tensor | ValuesAndIndices {
  const dim = dimOf(options);
  const { node } = x;
  if (sizeOf(node.shape) === 0) throw new ShapeError("median: a tensor without elements has none");
  if (dim === undefined) return median(new Tensor(ops.reshape(node, [sizeOf(node.shape)])), 0).values;
  const axis = axisOf("median", node, dim);
  if (node.shape.length === 0) return { values: x, indices: new Tensor(ops.full([], 0, "int32")) };
  if (node.dtype === "bool") throw new DTypeError("median: does not take bool");
  const n = node.shape[axis];
  const middle = (n - 1) >> 1;
  let at = ops.narrow(ops.argsort(node, axis), axis, middle, 1);
  if (isFloat(node.dtype)) {
    // NaN sorts last; where there is one, it is the median
    const nan = ops.isNan(node);
    at = ops.where(ops.reduceMax(nan, axis, { keepdim: true }), ops.argmax(nan, axis, true), at);
  }
  const values = ops.gather(node, axis, at);
  if (typeof options === "object" && options.keepdim) return { values: new Tensor(values), indices: new Tensor(at) };
  return { values: new Tensor(ops.squeeze(values, axis)), indices: new Tensor(ops.squeeze(at, axis)) };
}
