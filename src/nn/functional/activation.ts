/**
 * Activations as functions of tensors, with PyTorch's values and gradients at the corners. Those with a composite of
 * their own (relu, gelu, silu, sigmoid, softmax) record one node; the others are a few elementwise ones.
 */
import { ShapeError } from "../../core/errors.ts";
import { normalizeAxis, showShape } from "../../core/shape.ts";
import * as composites from "../../graph/composites/index.ts";
import type { Node } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import { nodeOf } from "../../tensor/operand.ts";
import { logSoftmax, softmax } from "../../tensor/reduce.ts";
import { Tensor } from "../../tensor/tensor.ts";

export { relu, sigmoid, tanh } from "../../tensor/elementwise.ts";
export { logSoftmax, softmax };

/** x · Φ(x); `approximate: "tanh"` is GPT-2's form (Hendrycks & Gimpel 2016). */
export function gelu(x: Tensor, options: { readonly approximate?: "none" | "tanh" } = {}): Tensor {
  return new Tensor(composites.gelu(x.node, options.approximate));
}
/** x · sigmoid(x), also called swish. */
export const silu = (x: Tensor): Tensor => new Tensor(composites.silu(x.node));

/** A number of the user's in the shape and dtype of x. */
const number = (value: number, like: Node): Node => nodeOf("activation", value, like);
/** x where it is negative or 0, else 0: keeps e^x of the branch that is not taken finite, in the gradient too. */
const negativePart = (x: Node): Node => ops.where(ops.gt(x, 0), 0, x);

/** x where positive, `negativeSlope` · x elsewhere. */
export function leakyRelu({ node: x }: Tensor, options: { readonly negativeSlope?: number } = {}): Tensor {
  const { negativeSlope = 0.01 } = options;
  return new Tensor(ops.where(ops.gt(x, 0), x, ops.mul(x, number(negativeSlope, x))));
}
/** Leaky ReLU whose slope is learnt: `weight` has one value, or one a channel (axis 1). */
export function prelu({ node: x }: Tensor, weight: Tensor): Tensor {
  const n = weight.size;
  if (n !== 1 && n !== x.shape[1])
    throw new ShapeError(
      `prelu: ${n} slopes for ${showShape(x.shape)}; expected 1, or one for each of ${x.shape[1]} channels (axis 1)`,
    );
  const slope = ops.reshape(
    weight.node,
    x.shape.map((_, i) => (i === 1 ? n : 1)),
  );
  return new Tensor(ops.where(ops.gt(x, 0), x, ops.mul(x, slope)));
}
/** x where positive, alpha · (e^x − 1) elsewhere (Clevert et al. 2016). */
export function elu({ node: x }: Tensor, options: { readonly alpha?: number } = {}): Tensor {
  const { alpha = 1 } = options;
  return new Tensor(ops.where(ops.gt(x, 0), x, ops.mul(ops.expm1(negativePart(x)), number(alpha, x))));
}
/** scale · elu(x, alpha) with the constants of Klambauer et al. 2017, Self-Normalizing Neural Networks. */
export function selu({ node: x }: Tensor): Tensor {
  const [alpha, scale] = [1.6732632423543772, 1.0507009873554805];
  return new Tensor(ops.mul(ops.where(ops.gt(x, 0), x, ops.mul(ops.expm1(negativePart(x)), alpha)), scale));
}
/** x where positive, alpha · (e^(x / alpha) − 1) elsewhere. */
export function celu({ node: x }: Tensor, options: { readonly alpha?: number } = {}): Tensor {
  const alpha = number(options.alpha ?? 1, x);
  return new Tensor(ops.where(ops.gt(x, 0), x, ops.mul(ops.expm1(ops.div(negativePart(x), alpha)), alpha)));
}
const softplusNode = (x: Node, beta: Node | number, threshold: Node | number): Node => {
  const scaled = ops.mul(x, beta);
  const linear = ops.gt(scaled, threshold);
  return ops.where(linear, x, ops.div(ops.log1p(ops.exp(ops.where(linear, 0, scaled))), beta));
};
/** log(1 + e^(beta · x)) / beta; x itself where beta · x > threshold. */
export function softplus(
  { node: x }: Tensor,
  options: { readonly beta?: number; readonly threshold?: number } = {},
): Tensor {
  const { beta = 1, threshold = 20 } = options;
  return new Tensor(softplusNode(x, number(beta, x), number(threshold, x)));
}
/** x · tanh(softplus(x)) (Misra 2019). */
export const mish = ({ node: x }: Tensor): Tensor => new Tensor(ops.mul(x, ops.tanh(softplusNode(x, 1, 20))));
/** log(sigmoid(x)), without overflow. */
export function logsigmoid({ node: x }: Tensor): Tensor {
  return new Tensor(ops.sub(ops.minimum(x, 0), ops.log1p(ops.exp(ops.neg(ops.abs(x))))));
}
/** x / (1 + |x|). */
export const softsign = ({ node: x }: Tensor): Tensor => new Tensor(ops.div(x, ops.add(ops.abs(x), 1)));

const between = (x: Node, low: Node | number, high: Node | number): Node =>
  ops.where(ops.le(x, low), low, ops.where(ops.ge(x, high), high, x));
/** x between `minVal` and `maxVal`; no gradient at or beyond them. */
export function hardtanh(
  { node: x }: Tensor,
  options: { readonly minVal?: number; readonly maxVal?: number } = {},
): Tensor {
  const { minVal = -1, maxVal = 1 } = options;
  return new Tensor(between(x, number(minVal, x), number(maxVal, x)));
}
export const relu6 = ({ node: x }: Tensor): Tensor => new Tensor(between(x, 0, 6));
/** relu6(x + 3) / 6. */
export const hardsigmoid = ({ node: x }: Tensor): Tensor => new Tensor(ops.div(between(ops.add(x, 3), 0, 6), 6));
/** x · relu6(x + 3) / 6. */
export const hardswish = ({ node: x }: Tensor): Tensor =>
  new Tensor(ops.div(ops.mul(x, between(ops.add(x, 3), 0, 6)), 6));
/** x where above `threshold`, else `value`. */
export function threshold({ node: x }: Tensor, level: number, value: number): Tensor {
  return new Tensor(ops.where(ops.gt(x, number(level, x)), x, number(value, x)));
}
/** The first half along `dim` times the sigmoid of the second (Dauphin et al. 2017). */
export function glu({ node: x }: Tensor, options: number | { readonly dim?: number } = {}): Tensor {
  const axis = normalizeAxis("glu", typeof options === "number" ? options : (options.dim ?? -1), x.shape.length);
  const size = x.shape[axis];
  if (size % 2 !== 0)
    throw new ShapeError(`glu: axis ${axis} of ${showShape(x.shape)} has an odd size; it is cut in halves`);
  const half = size / 2;
  return new Tensor(ops.mul(ops.narrow(x, axis, 0, half), composites.sigmoid(ops.narrow(x, axis, half, half))));
}
