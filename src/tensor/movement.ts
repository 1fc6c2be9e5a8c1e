/**
 * Operations that move elements without computing on them: reshaping, permuting, joining, splitting, padding. None of them
 * copies when it is recorded; a view does not share memory that could be written through it.
 */
import { ShapeError } from "../core/errors.ts";
import { normalizeAxes, normalizeAxis, type Shape, showShape, sizeOf } from "../core/shape.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { axisOf, dimOf, expectWhole, sizesOf } from "./operand.ts";
import { Tensor, wrap } from "./tensor.ts";

/** Sizes given as `f(2, 3)` or `f([2, 3])`. */
export type Sizes = readonly (number | readonly number[])[];

/** Replaces one −1 by what is left. */
function inferSizes(operation: string, sizes: readonly number[], x: Node): Shape {
  const unknown = sizes.indexOf(-1);
  if (unknown < 0) return sizes;
  let known = 1;
  for (let i = 0; i < sizes.length; i++) {
    if (i === unknown) continue;
    if (sizes[i] < 0) throw new ShapeError(`${operation}: only one size may be −1, got ${showShape(sizes)}`);
    known *= sizes[i];
  }
  const total = sizeOf(x.shape);
  if (known === 0 || total % known !== 0)
    throw new ShapeError(`${operation}: ${showShape(x.shape)} (${total} elements) can't become ${showShape(sizes)}`);
  return sizes.map((n, i) => (i === unknown ? total / known : n));
}

/** The same elements in row-major order under another shape; one size may be −1. */
export function reshape(x: Tensor, ...sizes: Sizes): Tensor {
  return wrap(x, ops.reshape(x.node, inferSizes("reshape", sizesOf(sizes), x.node)));
}
/** As reshape: every tensor here can be viewed. */
export const view = (x: Tensor, ...sizes: Sizes): Tensor =>
  wrap(x, ops.reshape(x.node, inferSizes("view", sizesOf(sizes), x.node)));

/** Axes startDim … endDim as one. */
export function flatten(x: Tensor, startDim = 0, endDim = -1): Tensor {
  const { node } = x;
  const { shape } = node;
  if (shape.length === 0) return reshape(x, 1);
  const [start, end] = [axisOf("flatten", node, startDim), axisOf("flatten", node, endDim)];
  if (start > end) throw new ShapeError(`flatten: startDim ${startDim} comes after endDim ${endDim}`);
  const size = sizeOf(shape.slice(start, end + 1));
  return wrap(x, ops.reshape(node, [...shape.slice(0, start), size, ...shape.slice(end + 1)]));
}

/** Axis `dim` as several; one size may be −1. */
export function unflatten(x: Tensor, dim: number, sizes: readonly number[]): Tensor {
  const { node } = x;
  const axis = axisOf("unflatten", node, dim);
  const known = sizes.reduce((n, s) => (s === -1 ? n : n * s), 1);
  const inner = sizes.map((s) => (s === -1 ? node.shape[axis] / known : s));
  if (sizeOf(inner) !== node.shape[axis])
    throw new ShapeError(`unflatten: axis ${axis} of ${showShape(node.shape)} can't become ${showShape(sizes)}`);
  return wrap(x, ops.reshape(node, [...node.shape.slice(0, axis), ...inner, ...node.shape.slice(axis + 1)]));
}

/** Without the axes of size 1, or without those of `dim` that have size 1. */
export function squeeze(x: Tensor, dim?: number | readonly number[]): Tensor {
  const { shape } = x;
  const axes = normalizeAxes("squeeze", dim, shape.length);
  return wrap(
    x,
    ops.reshape(
      x.node,
      shape.filter((n, i) => n !== 1 || !axes.includes(i)),
    ),
  );
}
/** With a new axis of size 1 at `dim`. */
export function unsqueeze(x: Tensor, dim: number): Tensor {
  const axis = normalizeAxis("unsqueeze", dim, x.ndim + 1);
  return new Tensor(ops.unsqueeze(x.node, axis));
}

/** Two axes exchanged. */
export const transpose = (x: Tensor, dim0: number, dim1: number): Tensor => wrap(x, ops.transpose(x.node, dim0, dim1));
/** A matrix transposed; vectors and numbers stay as they are. */
export function t(x: Tensor): Tensor {
  if (x.ndim > 2)
    throw new ShapeError(`t: takes at most 2 axes, got ${showShape(x.shape)}; use transpose(dim0, dim1) or mT()`);
  return x.ndim < 2 ? x : transpose(x, 0, 1);
}
/** The last two axes exchanged. */
export function mT(x: Tensor): Tensor {
  if (x.ndim < 2) throw new ShapeError(`mT: takes at least 2 axes, got ${showShape(x.shape)}`);
  return transpose(x, -2, -1);
}

/** Axes in the order given. */
export function permute(x: Tensor, ...dims: Sizes): Tensor {
  const list = sizesOf(dims);
  if (list.length !== x.ndim)
    throw new ShapeError(
      `permute: ${showShape(list)} must name each of the ${x.ndim} axes of ${showShape(x.shape)} once`,
    );
  normalizeAxes("permute", list, x.ndim); // refuses repeats
  return wrap(
    x,
    ops.permute(
      x.node,
      list.map((d) => axisOf("permute", x.node, d)),
    ),
  );
}
/** Axes `source` moved to `destination`; the others keep their order. */
export function movedim(
  x: Tensor,
  source: number | readonly number[],
  destination: number | readonly number[],
): Tensor {
  const from = (typeof source === "number" ? [source] : source).map((d) => axisOf("movedim", x.node, d));
  const to = (typeof destination === "number" ? [destination] : destination).map((d) => axisOf("movedim", x.node, d));
  if (from.length !== to.length) throw new ShapeError(`movedim: ${from.length} axes can't move to ${to.length} places`);
  const rest = x.shape.map((_, i) => i).filter((i) => !from.includes(i));
  const order = x.shape.map((_, i) => (to.includes(i) ? from[to.indexOf(i)] : (rest.shift() as number)));
  return wrap(x, ops.permute(x.node, order));
}

/** Axes of size 1 grown, new axes in front; −1 keeps a size. Nothing is copied. */
export function expand(x: Tensor, ...sizes: Sizes): Tensor {
  const list = sizesOf(sizes);
  const before = list.length - x.ndim;
  if (before < 0) throw new ShapeError(`expand: ${showShape(list)} has fewer axes than ${showShape(x.shape)}`);
  const shape = list.map((n, i) => (n === -1 && i >= before ? x.shape[i - before] : n));
  return wrap(x, ops.expandTo(x.node, shape));
}
export const expandAs = (x: Tensor, other: Tensor): Tensor => wrap(x, ops.expandTo(x.node, other.shape));
export const broadcastTo = (x: Tensor, shape: Shape): Tensor => wrap(x, ops.expandTo(x.node, shape));
export const viewAs = (x: Tensor, other: Tensor): Tensor => wrap(x, ops.reshape(x.node, other.shape));
/** x itself: memory order is the engine's affair. */
export const contiguous = (x: Tensor): Tensor => x;

/** The positions start … start + length of one axis. */
export function narrow(x: Tensor, dim: number, start: number, length: number): Tensor {
  const { node } = x;
  const axis = axisOf("narrow", node, dim);
  const size = node.shape[axis];
  const from = start < 0 ? start + size : start;
  if (!Number.isInteger(from) || !Number.isInteger(length) || from < 0 || length < 0 || from + length > size)
    throw new ShapeError(`narrow: ${start} … ${start + length} lies outside of axis ${axis} (size ${size})`);
  return wrap(x, ops.narrow(node, axis, from, length));
}
/** Position `index` of one axis, which goes away. */
export function select(x: Tensor, dim: number, index: number): Tensor {
  const { node } = x;
  const axis = axisOf("select", node, dim);
  const size = node.shape[axis] ?? 0;
  if (!Number.isInteger(index) || index < -size || index >= size)
    throw new ShapeError(`select: index ${index} lies outside of axis ${axis} (size ${size})`);
  return new Tensor(ops.squeeze(ops.narrow(node, axis, index < 0 ? index + size : index, 1), axis));
}

// ---- joining and splitting ----------------------------------------------------------------------------------------------

function promoted(operation: string, tensors: readonly Tensor[]): Node[] {
  if (tensors.length === 0) throw new ShapeError(`${operation}: needs at least one tensor`);
  let nodes = tensors.map((x) => x.node);
  let first = nodes[0];
  if (nodes.some((x) => x.dtype !== first.dtype)) {
    // one dtype for all, by pairs: cast what add would
    for (const x of nodes) [first] = ops.operands(operation, ops.full([1], 0, first.dtype), ops.full([1], 0, x.dtype));
    nodes = nodes.map((x) => ops.cast(x, first.dtype));
  }
  return nodes;
}

/** Tensors one after the other along an axis. */
export function cat(tensors: readonly Tensor[], options: number | { readonly dim?: number } = 0): Tensor {
  const nodes = promoted("cat", tensors).filter(
    (x, _, all) => all.length === 1 || x.shape.length !== 1 || x.shape[0] > 0 || all.every((y) => y.shape.length === 1),
  );
  const axis = axisOf("cat", nodes[0], dimOf(options, 0) as number);
  if (nodes[0].shape.length === 0) throw new ShapeError("cat: tensors without axes can't be joined; use stack");
  return new Tensor(ops.concat(nodes, axis));
}
export const concat = cat;
/** Tensors of one shape along a new axis. */
export function stack(tensors: readonly Tensor[], options: number | { readonly dim?: number } = 0): Tensor {
  const nodes = promoted("stack", tensors);
  for (const x of nodes)
    if (showShape(x.shape) !== showShape(nodes[0].shape))
      throw new ShapeError(`stack: shapes differ: ${showShape(nodes[0].shape)} and ${showShape(x.shape)}`);
  const axis = normalizeAxis("stack", dimOf(options, 0) as number, nodes[0].shape.length + 1);
  return new Tensor(
    ops.concat(
      nodes.map((x) => ops.unsqueeze(x, axis)),
      axis,
    ),
  );
}
/** Pieces along an axis, of the size given (the last may be smaller) or of the sizes given. */
export function split(
  x: Tensor,
  sizes: number | readonly number[],
  options: number | { readonly dim?: number } = 0,
): Tensor[] {
  const { node } = x;
  const axis = axisOf("split", node, dimOf(options, 0) as number);
  const length = node.shape[axis];
  let list: readonly number[];
  if (typeof sizes === "number") {
    expectWhole("split", "the size of a piece", sizes, 1);
    const count = Math.max(1, Math.ceil(length / sizes));
    list = Array.from({ length: count }, (_, i) => Math.min(sizes, length - i * sizes));
  } else {
    list = sizes;
    if (list.reduce((a, b) => a + b, 0) !== length)
      throw new ShapeError(`split: ${showShape(list)} must add up to ${length}, the size of axis ${axis}`);
  }
  let start = 0;
  return list.map((n) => {
    const piece = ops.narrow(node, axis, start, n);
    start += n;
    return wrap(x, piece);
  });
}
/** At most `chunks` pieces of equal size (the last may be smaller) along an axis. */
export function chunk(x: Tensor, chunks: number, options: number | { readonly dim?: number } = 0): Tensor[] {
  expectWhole("chunk", "the number of chunks", chunks, 1);
  const axis = axisOf("chunk", x.node, dimOf(options, 0) as number);
  return split(x, Math.max(1, Math.ceil(x.shape[axis] / chunks)), axis);
}
/** The slices of an axis, which goes away. */
export function unbind(x: Tensor, options: number | { readonly dim?: number } = 0): Tensor[] {
  const axis = axisOf("unbind", x.node, dimOf(options, 0) as number);
  return Array.from({ length: x.shape[axis] }, (_, i) => select(x, axis, i));
}

/** The whole repeated along each axis (torch.tile). */
export function tile(x: Tensor, ...repeats: Sizes): Tensor {
  const given = sizesOf(repeats);
  const list = [...new Array<number>(Math.max(0, x.ndim - given.length)).fill(1), ...given];
  const shape = [...new Array<number>(list.length - x.ndim).fill(1), ...x.shape];
  for (const n of list) expectWhole("tile", "a count", n);
  const apart = shape.flatMap((n) => [1, n]);
  const grown = shape.flatMap((n, i) => [list[i], n]);
  const out = shape.map((n, i) => n * list[i]);
  return wrap(x, ops.reshape(ops.expandTo(ops.reshape(x.node, apart), grown), out));
}
/** The whole repeated along each axis, at least one count an axis (torch.Tensor.repeat). */
export function repeat(x: Tensor, ...repeats: Sizes): Tensor {
  if (sizesOf(repeats).length < x.ndim)
    throw new ShapeError(`repeat: needs a count for each of the ${x.ndim} axes, got ${showShape(sizesOf(repeats))}`);
  return tile(x, ...repeats);
}
/** Every element repeated, along an axis or over all elements. */
export function repeatInterleave(x: Tensor, repeats: number, options?: number | { readonly dim?: number }): Tensor {
  expectWhole("repeatInterleave", "the count", repeats);
  const dim = dimOf(options);
  const node = dim === undefined ? ops.reshape(x.node, [x.size]) : x.node;
  const axis = axisOf("repeatInterleave", node, dim ?? 0);
  const { shape } = node;
  const grown = ops.expandTo(ops.unsqueeze(node, axis + 1), [
    ...shape.slice(0, axis + 1),
    repeats,
    ...shape.slice(axis + 1),
  ]);
  return wrap(x, ops.reshape(grown, [...shape.slice(0, axis), shape[axis] * repeats, ...shape.slice(axis + 1)]));
}

/** The order of the axes' elements reversed. */
export const flip = (x: Tensor, dims: number | readonly number[]): Tensor =>
  wrap(x, ops.flip(x.node, normalizeAxes("flip", dims, x.ndim)));

/** Elements shifted along the axes, those that fall off coming in at the other end; without `dims` over the flattened tensor. */
export function roll(x: Tensor, shifts: number | readonly number[], dims?: number | readonly number[]): Tensor {
  if (dims === undefined) {
    if (typeof shifts !== "number") throw new ShapeError("roll: several shifts need as many dims");
    return reshape(roll(flatten(x), shifts, 0), x.shape);
  }
  const by = typeof shifts === "number" ? [shifts] : shifts;
  const axes = typeof dims === "number" ? [dims] : dims;
  if (by.length !== axes.length) throw new ShapeError(`roll: ${by.length} shifts for ${axes.length} dims`);
  let { node } = x;
  axes.forEach((dim, i) => {
    const axis = axisOf("roll", node, dim);
    const n = node.shape[axis];
    const k = n === 0 ? 0 : ((by[i] % n) + n) % n;
    if (k) node = ops.concat([ops.narrow(node, axis, n - k, k), ops.narrow(node, axis, 0, n - k)], axis);
  });
  return wrap(x, node);
}

// ---- triangles and diagonals ----------------------------------------------------------------------------------------------

function triangle(operation: string, x: Tensor, diagonal: number, lower: boolean): Tensor {
  const { node } = x;
  const n = node.shape.length;
  if (n < 2) throw new ShapeError(`${operation}: takes at least 2 axes, got ${showShape(node.shape)}`);
  const sizes = node.shape.slice(-2);
  const distance = ops.sub(ops.iota(sizes, 1), ops.iota(sizes, 0));
  const inside = lower ? ops.le(distance, diagonal) : ops.ge(distance, diagonal);
  return new Tensor(ops.where(inside, node, ops.full([], 0, node.dtype)));
}
/** The lower triangle of the last two axes, up to `diagonal`; 0 elsewhere. */
export const tril = (x: Tensor, diagonal = 0): Tensor => triangle("tril", x, diagonal, true);
/** The upper triangle of the last two axes, from `diagonal` on; 0 elsewhere. */
export const triu = (x: Tensor, diagonal = 0): Tensor => triangle("triu", x, diagonal, false);

/** The diagonal of two axes, as the last axis of the result (torch.diagonal). */
export function diagonal(
  x: Tensor,
  options: { readonly offset?: number; readonly dim1?: number; readonly dim2?: number } = {},
): Tensor {
  const { offset = 0, dim1 = 0, dim2 = 1 } = options;
  return new Tensor(diagonalNode(x.node, offset, axisOf("diagonal", x.node, dim1), axisOf("diagonal", x.node, dim2)));
}
/** The diagonal as a view: a row of n columns and one more is a step from one diagonal element to the next. */
export function diagonalNode(x: Node, offset: number, dim1: number, dim2: number): Node {
  if (dim1 === dim2 || x.shape.length < 2)
    throw new ShapeError(`diagonal: needs two different axes, got ${dim1}, ${dim2}`);
  const rest = x.shape.map((_, i) => i).filter((i) => i !== dim1 && i !== dim2);
  const moved = ops.permute(x, [...rest, dim1, dim2]);
  const outer = moved.shape.slice(0, -2);
  const [rows, columns] = moved.shape.slice(-2);
  const length = Math.max(0, offset >= 0 ? Math.min(rows, columns - offset) : Math.min(rows + offset, columns));
  const start = length === 0 ? 0 : offset >= 0 ? offset : -offset * columns;
  const flat = ops.reshape(moved, [...outer, rows * columns]);
  return ops.slice(flat, [
    ...outer.map((size) => ({ start: 0, size, step: 1 })),
    { start, size: length, step: columns + 1 },
  ]);
}
/** A vector as a diagonal matrix, or the diagonal of a matrix. */
export function diag(x: Tensor, offset = 0): Tensor {
  if (x.ndim === 2) return diagonal(x, { offset });
  if (x.ndim !== 1) throw new ShapeError(`diag: takes 1 or 2 axes, got ${showShape(x.shape)}`);
  const n = x.shape[0] + Math.abs(offset);
  const low = offset < 0 ? -offset : 0; // first row of the diagonal
  const spread = ops.pad(x.node, [low], [n - x.shape[0] - low]);
  const sizes = [n, n];
  const on = ops.eq(ops.sub(ops.iota(sizes, 1), ops.iota(sizes, 0)), offset);
  return new Tensor(ops.where(on, ops.expandTo(ops.unsqueeze(spread, 1), sizes), ops.full([], 0, x.dtype)));
}
/** The sum of a matrix's diagonal. */
export const trace = (x: Tensor): Tensor => new Tensor(ops.sum(diagonal(x).node));

// ---- windows and padding --------------------------------------------------------------------------------------------------

/** Windows of `size` positions every `step` along an axis, as a new last axis (torch.Tensor.unfold). */
export function unfold(x: Tensor, dim: number, size: number, step: number): Tensor {
  const axis = axisOf("unfold", x.node, dim);
  expectWhole("unfold", "size", size);
  expectWhole("unfold", "step", step, 1);
  if (size > x.shape[axis])
    throw new ShapeError(`unfold: a window of ${size} is larger than axis ${axis} (size ${x.shape[axis]})`);
  return new Tensor(ops.window(x.node, [axis], [size], [step], [1]));
}

export interface PadOptions {
  readonly mode?: "constant" | "reflect" | "replicate" | "circular";
  /** What "constant" fills in. Part of the program, like a shape. */
  readonly value?: number;
}

/**
 * Positions added around, from the last axis to the first: [before, after, before, after, …] (torch.nn.functional.pad);
 * negative counts crop.
 */
export function pad(x: Tensor, counts: readonly number[], options: PadOptions = {}): Tensor {
  const { mode = "constant", value = 0 } = options;
  const { node } = x;
  const n = node.shape.length;
  if (counts.length % 2 !== 0 || counts.length > 2 * n)
    throw new ShapeError(
      `pad: needs pairs [before, after] for at most ${n} axes, from the last to the first, got ${showShape(counts)}`,
    );
  const low = new Array<number>(n).fill(0);
  const high = new Array<number>(n).fill(0);
  for (let i = 0; i < counts.length / 2; i++) {
    low[n - 1 - i] = counts[2 * i];
    high[n - 1 - i] = counts[2 * i + 1];
  }
  const cropped = ops.slice(
    node,
    node.shape.map((size, i) => ({
      start: Math.max(0, -low[i]),
      size: size + Math.min(0, low[i]) + Math.min(0, high[i]),
      step: 1,
    })),
  );
  const [before, after] = [low.map((k) => Math.max(0, k)), high.map((k) => Math.max(0, k))];
  if (mode === "constant") return wrap(x, ops.pad(cropped, before, after, value));
  let out = cropped;
  for (let axis = 0; axis < n; axis++)
    if (before[axis] || after[axis]) out = padAxis(out, axis, before[axis], after[axis], mode);
  return wrap(x, out);
}

function padAxis(
  x: Node,
  axis: number,
  before: number,
  after: number,
  mode: "reflect" | "replicate" | "circular",
): Node {
  const n = x.shape[axis];
  const most = mode === "reflect" ? n - 1 : mode === "circular" ? n : Number.POSITIVE_INFINITY;
  if (before > most || after > most || n === 0)
    throw new ShapeError(
      `pad: ${mode} can add at most ${most} positions to axis ${axis} (size ${n}), got ${before} and ${after}`,
    );
  const edge = (at: number, count: number): Node =>
    ops.expandTo(
      ops.narrow(x, axis, at, 1),
      x.shape.map((s, i) => (i === axis ? count : s)),
    );
  const parts: Node[] = [];
  if (before)
    parts.push(
      mode === "reflect"
        ? ops.flip(ops.narrow(x, axis, 1, before), [axis])
        : mode === "circular"
          ? ops.narrow(x, axis, n - before, before)
          : edge(0, before),
    );
  parts.push(x);
  if (after)
    parts.push(
      mode === "reflect"
        ? ops.flip(ops.narrow(x, axis, n - 1 - after, after), [axis])
        : mode === "circular"
          ? ops.narrow(x, axis, 0, after)
          : edge(n - 1, after),
    );
  return ops.concat(parts, axis);
}
