/**
 * Reading and writing at positions that are themselves tensors: gather, scatter and what is made of them. An index outside of
 * its axis is an IndexError when the work runs; no state is then written.
 */
import { isFloat, type TypedArray } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { contiguousStrides, showShape, sizeOf } from "../core/shape.ts";
import { defaultDevice, leafFrom } from "../execution/index.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { axisOf, numberNode, type Operand } from "./operand.ts";
import { Tensor } from "./tensor.ts";

/** out[…, i, …] = x[…, index[…, i, …], …] along `dim` (torch.gather). `index` is an integer tensor with x's axes. */
export const gather = (x: Tensor, dim: number, index: Tensor): Tensor =>
  new Tensor(ops.gather(x.node, dim, index.node));

/** As gather, but the other axes broadcast; without `dim`, of the flattened tensor (torch.take_along_dim). */
export function takeAlongDim(x: Tensor, indices: Tensor, dim?: number): Tensor {
  if (dim === undefined)
    return new Tensor(ops.gather(ops.reshape(x.node, [x.size]), 0, ops.reshape(indices.node, [indices.size])));
  const axis = axisOf("takeAlongDim", x.node, dim);
  const [a, b] = [x.shape, indices.shape];
  if (a.length !== b.length)
    throw new ShapeError(`takeAlongDim: ${showShape(a)} and ${showShape(b)} must have equally many axes`);
  const common = a.map((n, i) => (i === axis ? 0 : Math.max(n, b[i])));
  const of = (shape: readonly number[]): number[] => common.map((n, i) => (i === axis ? shape[i] : n));
  return new Tensor(ops.gather(ops.expandTo(x.node, of(a)), axis, ops.expandTo(indices.node, of(b))));
}

/** Slices of x along `dim`, one for each element of the vector `index` (torch.index_select). */
export function indexSelect(x: Tensor, dim: number, index: Tensor): Tensor {
  if (index.ndim > 1)
    throw new ShapeError(`indexSelect: the index must be a vector, got ${showShape(index.shape)}; at() takes any`);
  const one = index.ndim === 0 ? ops.reshape(index.node, [1]) : index.node;
  return new Tensor(ops.take(x.node, axisOf("indexSelect", x.node, dim), one));
}

/** Elements of the flattened tensor (torch.take). */
export const take = (x: Tensor, index: Tensor): Tensor =>
  new Tensor(ops.take(ops.reshape(x.node, [x.size]), 0, index.node));

/** Scatters where index may be smaller than x at the other axes: the covered part is written. */
function scatterNode(
  operation: string,
  x: Node,
  dim: number,
  index: Node,
  source: Node,
  mode: "add" | "set" | "max",
): Node {
  const axis = axisOf(operation, x, dim);
  const { shape } = index;
  if (shape.length !== x.shape.length || shape.some((n, i) => i !== axis && n > x.shape[i]))
    throw new ShapeError(
      `${operation}: index ${showShape(shape)} does not fit ${showShape(x.shape)} (as many axes, no larger but at axis ${axis})`,
    );
  if (source.shape.length !== shape.length || shape.some((n, i) => n > source.shape[i]))
    throw new ShapeError(`${operation}: source ${showShape(source.shape)} is smaller than index ${showShape(shape)}`);
  if (x.dtype !== source.dtype)
    throw new DTypeError(
      `${operation}: source is ${source.dtype}, the destination ${x.dtype}; cast one with .to(dtype)`,
    );
  const whole = shape.map((size) => ({ start: 0, size, step: 1 }));
  const src = ops.slice(source, whole);
  const part = ops.slice(
    x,
    x.shape.map((n, i) => ({ start: 0, size: i === axis ? n : shape[i], step: 1 })),
  );
  const bytes = x.dtype === "bool";
  const written = ops.scatter(
    bytes ? ops.cast(part, "uint8") : part,
    axis,
    index,
    bytes ? ops.cast(src, "uint8") : src,
    mode,
  );
  return within(x, bytes ? ops.cast(written, "bool") : written);
}

/** x with its first corner replaced by `part`. */
function within(x: Node, part: Node): Node {
  if (part.shape.every((n, i) => n === x.shape[i])) return part;
  const low = part.shape.map(() => 0);
  const high = part.shape.map((n, i) => x.shape[i] - n);
  const inside = ops.pad(ops.full(part.shape, 1, "bool"), low, high, 0);
  return ops.where(inside, ops.pad(part, low, high, 0), x);
}

const sourceNode = (operation: string, x: Tensor, index: Tensor, source: Operand): Node =>
  source instanceof Tensor ? source.node : ops.expandTo(numberNode(operation, source, x.dtype), index.shape);

/** x with `source` written at `index` along `dim`; of several values for one place the last wins (torch.scatter). */
export const scatter = (x: Tensor, dim: number, index: Tensor, source: Operand): Tensor =>
  new Tensor(scatterNode("scatter", x.node, dim, index.node, sourceNode("scatter", x, index, source), "set"));
/** x with `source` added at `index` along `dim`, in order: the same bits every time (torch.scatter_add). */
export const scatterAdd = (x: Tensor, dim: number, index: Tensor, source: Operand): Tensor =>
  new Tensor(scatterNode("scatterAdd", x.node, dim, index.node, sourceNode("scatterAdd", x, index, source), "add"));

function alongVector(operation: string, x: Node, dim: number, index: Node, source: Node, mode: "add" | "set"): Node {
  const axis = axisOf(operation, x, dim);
  if (index.shape.length !== 1)
    throw new ShapeError(`${operation}: the index must be a vector, got ${showShape(index.shape)}`);
  const shape = x.shape.map((n, i) => (i === axis ? index.shape[0] : n));
  const wide = ops.reshape(
    index,
    x.shape.map((_, i) => (i === axis ? index.shape[0] : 1)),
  );
  return scatterNode(operation, x, axis, ops.expandTo(wide, shape), ops.expandTo(source, shape), mode);
}
/** x with slices of `source` added at the positions `index` of `dim` (torch.index_add). */
export const indexAdd = (x: Tensor, dim: number, index: Tensor, source: Tensor): Tensor =>
  new Tensor(alongVector("indexAdd", x.node, dim, index.node, source.node, "add"));
/** x with slices of `source` written at the positions `index` of `dim` (torch.index_copy). */
export const indexCopy = (x: Tensor, dim: number, index: Tensor, source: Tensor): Tensor =>
  new Tensor(alongVector("indexCopy", x.node, dim, index.node, source.node, "set"));
/** x with `value` at the positions `index` of `dim` (torch.index_fill). */
export const indexFill = (x: Tensor, dim: number, index: Tensor, value: Operand): Tensor =>
  new Tensor(alongVector("indexFill", x.node, dim, index.node, numberNode("indexFill", value, x.dtype), "set"));

/** One-hot rows of `numClasses` for an integer tensor; int32 (torch.nn.functional.one_hot with the number given). */
export function oneHot(x: Tensor, numClasses: number): Tensor {
  if (isFloat(x.dtype) || x.dtype === "bool") throw new DTypeError(`oneHot: takes integers, got ${x.dtype}`);
  const shape = [...x.shape, numClasses];
  const labels = ops.expandTo(ops.unsqueeze(ops.cast(x.node, "int32"), x.ndim), shape);
  return new Tensor(ops.cast(ops.eq(labels, ops.iota(shape, x.ndim)), "int32"));
}

// ---- results whose size depends on values: computed here and now ------------------------------------------------------------

async function positionsOf(x: Tensor): Promise<Int32Array> {
  const data: TypedArray = await x.data();
  let n = 0;
  for (let i = 0; i < data.length; i++) if (data[i] !== 0) n++;
  const out = new Int32Array(n);
  for (let i = 0, j = 0; i < data.length; i++) if (data[i] !== 0) out[j++] = i;
  return out;
}

/** The indices of elements that are not 0, a row each: int32 [count, axes]. Waits for the values, for the shape depends on them. */
export async function nonzero(x: Tensor): Promise<Tensor> {
  const positions = await positionsOf(x);
  const strides = contiguousStrides(x.shape);
  const out = new Int32Array(positions.length * x.ndim);
  positions.forEach((position, row) => {
    for (let i = 0; i < strides.length; i++)
      out[row * strides.length + i] = Math.floor(position / strides[i]) % x.shape[i];
  });
  return new Tensor(leafFrom(x.device, "int32", [positions.length, x.ndim], out, true));
}

/** The elements where `mask` (broadcast) holds, as a vector. Waits for the mask, for the shape depends on it. */
export async function maskedSelect(x: Tensor, mask: Tensor): Promise<Tensor> {
  if (mask.dtype !== "bool") throw new DTypeError(`maskedSelect: the mask must be bool, got ${mask.dtype}`);
  const zeros = ops.full(x.shape, 0, "bool");
  const [full] = ops.operands("maskedSelect", mask.node, zeros);
  const positions = await positionsOf(new Tensor(full));
  const source = ops.reshape(ops.expandTo(x.node, full.shape), [sizeOf(full.shape)]);
  const index = leafFrom(x.device ?? defaultDevice(), "int32", [positions.length], positions, true);
  return new Tensor(ops.take(source, 0, index));
}

/** The distinct values in ascending order. Waits for the values. */
export async function unique(x: Tensor): Promise<Tensor> {
  const data = await x.data();
  const values = Float64Array.from(new Set(data)).sort();
  const raw = ops.cast(new Tensor(leafFrom(x.device, "float64", [values.length], values, true)).node, x.dtype);
  return new Tensor(raw);
}

/** How often each whole number from 0 on occurs, up to the largest one or `minlength`. Waits for the values. */
export async function bincount(x: Tensor, minlength = 0): Promise<Tensor> {
  const data = await x.data();
  let most = minlength - 1;
  for (const v of data) {
    if (!Number.isInteger(v) || v < 0) throw new DTypeError(`bincount: takes whole numbers ≥ 0, found ${v}`);
    if (v > most) most = v;
  }
  const out = new Int32Array(most + 1);
  for (const v of data) out[v]++;
  return new Tensor(leafFrom(x.device, "int32", [out.length], out, true));
}
