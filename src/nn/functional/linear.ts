/** Products with weights, and tables of vectors: linear, embedding, oneHot; and padding, which the tensor has. */
import { isFloat } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { showShape, sizeOf } from "../../core/shape.ts";
import { lowered } from "../../graph/autocast.ts";
import type { Node } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import { Tensor } from "../../tensor/tensor.ts";

export { oneHot } from "../../tensor/indexed.ts";
export { pad } from "../../tensor/movement.ts";

/** x [rows…, in] · matrix [in, out] + bias [out], as one tall product. `described` is the weight as its owner stores it. */
function project(name: string, input: Node, weight: Node, bias: Tensor | null | undefined, described: Node): Node {
  const [x, matrix] = [lowered(input), lowered(weight)];
  const width = x.shape[x.shape.length - 1];
  if (x.shape.length === 0 || width !== matrix.shape[0])
    throw new ShapeError(
      `${name}: the input ${showShape(x.shape)} has ${width ?? "no"} features in its last axis, the weight ${showShape(described.shape)} takes ${matrix.shape[0]}`,
    );
  if (x.dtype !== matrix.dtype)
    throw new DTypeError(
      `${name}: the input is ${x.dtype}, the weight ${matrix.dtype}; cast the input with .to("${matrix.dtype}")`,
    );
  let y = ops.contract(ops.reshape(x, [sizeOf(x.shape) / width || sizeOf(x.shape.slice(0, -1)), width]), matrix);
  if (bias) {
    if (bias.node.shape.length !== 1 || bias.node.shape[0] !== matrix.shape[1])
      throw new ShapeError(
        `${name}: the bias ${showShape(bias.shape)} must be [${matrix.shape[1]}], one a feature that comes out`,
      );
    y = ops.add(y, lowered(bias.node));
  }
  return x.shape.length === 2 ? y : ops.reshape(y, [...x.shape.slice(0, -1), matrix.shape[1]]);
}

/** x · weightᵀ + bias of x [rows…, in], weight [out, in], bias [out] → [rows…, out] (torch.nn.functional.linear). */
export function linear(x: Tensor, weight: Tensor, bias?: Tensor | null): Tensor {
  const w = weight.node;
  if (w.shape.length !== 2) throw new ShapeError(`linear: the weight must be [out, in], got ${showShape(w.shape)}`);
  return new Tensor(project("linear", x.node, ops.permute(w, [1, 0]), bias, w));
}

/** x · weight + bias of x [rows…, in], weight [in, out]: GPT-2's layout (transformers' Conv1D). */
export function conv1D(x: Tensor, weight: Tensor, bias?: Tensor | null): Tensor {
  const w = weight.node;
  if (w.shape.length !== 2) throw new ShapeError(`conv1D: the weight must be [in, out], got ${showShape(w.shape)}`);
  return new Tensor(project("conv1D", x.node, w, bias, w));
}

/**
 * Rows of `weight` [rows, width], one for every integer of `ids` (any shape) → [ids…, width] (torch.nn.functional.embedding).
 * The row `paddingIdx` gets no gradient. IndexError at run time for an id outside 0 … rows−1.
 */
export function embedding(ids: Tensor, weight: Tensor, options: { readonly paddingIdx?: number | null } = {}): Tensor {
  const [i, w] = [ids.node, weight.node];
  if (w.shape.length !== 2)
    throw new ShapeError(`embedding: the weight must be [rows, width], got ${showShape(w.shape)}`);
  if (isFloat(i.dtype) || i.dtype === "bool")
    throw new DTypeError(`embedding: ids must be integers, got ${i.dtype}; cast them with .to("int32")`);
  const rows = ops.take(w, 0, i);
  const padding = options.paddingIdx ?? null;
  if (padding === null) return new Tensor(rows);
  const index = paddingRow(padding, w.shape[0]);
  const isPadding = ops.eq(ops.unsqueeze(ops.cast(i, "int32"), i.shape.length), index);
  return new Tensor(ops.where(isPadding, ops.detach(rows), rows));
}

/** `paddingIdx` as 0 … rows−1; negative ones count from the end. */
export function paddingRow(paddingIdx: number, rows: number): number {
  if (!Number.isInteger(paddingIdx) || paddingIdx < -rows || paddingIdx >= rows)
    throw new ShapeError(`embedding: paddingIdx ${paddingIdx} is no row of a table of ${rows}`);
  return paddingIdx < 0 ? paddingIdx + rows : paddingIdx;
}
