/** Normalisations: over the last axes, over channels, over groups. Running statistics are the caller's state. */

import { defineOperation } from "../../autograd/index.ts";
import { ShapeError } from "../../core/errors.ts";
import { sameShape, showShape, sizeOf } from "../../core/shape.ts";
import * as composites from "../../graph/composites/index.ts";
import { type Node, setGradEnabled } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import { Tensor, write } from "../../tensor/tensor.ts";

type Affine = { readonly weight?: Tensor | null; readonly bias?: Tensor | null; readonly eps?: number };

const epsilonOf = { float32: 2 ** -23, float64: 2 ** -52, float16: 2 ** -10, bfloat16: 2 ** -7 } as const;

/** How many trailing axes of x `normalizedShape` covers. */
function trailing(name: string, x: Node, normalizedShape: number | readonly number[]): number {
  const shape = typeof normalizedShape === "number" ? [normalizedShape] : normalizedShape;
  if (shape.length === 0 || !sameShape(x.shape.slice(-shape.length), shape))
    throw new ShapeError(`${name}: the input ${showShape(x.shape)} must end in ${showShape(shape)}`);
  return shape.length;
}

/** (x − mean) / √(var + eps) · weight + bias over the axes of `normalizedShape`, x's last (torch.nn.functional.layer_norm). */
export function layerNorm(x: Tensor, normalizedShape: number | readonly number[], options: Affine = {}): Tensor {
  const { weight, bias, eps } = options;
  const dims = trailing("layerNorm", x.node, normalizedShape);
  return new Tensor(composites.layerNorm(x.node, dims, weight?.node ?? null, bias?.node ?? null, eps));
}

/** x / √(mean x² + eps) · weight; eps defaults to the dtype's machine epsilon, as in torch.nn.functional.rms_norm. */
export function rmsNorm(
  x: Tensor,
  normalizedShape: number | readonly number[],
  options: { readonly weight?: Tensor | null; readonly eps?: number | null } = {},
): Tensor {
  const { weight, eps } = options;
  const dims = trailing("rmsNorm", x.node, normalizedShape);
  const least = eps ?? epsilonOf[x.dtype as keyof typeof epsilonOf];
  return new Tensor(composites.rmsNorm(x.node, dims, weight?.node ?? null, least));
}

/** (1 − rate) · old + rate · correction · fresh: how running statistics follow a batch's. */
const follow = defineOperation({
  name: "runningStatistic",
  infer: ([old]) => ({ shape: old.shape, dtype: old.dtype }),
  decompose: ([old, fresh, rate], { correction }) => {
    const step = ops.mul(ops.sub(ops.mul(fresh, correction as number), ops.cast(old, fresh.dtype)), rate);
    return [ops.cast(ops.add(old, step), old.dtype)];
  },
  gradient: null,
});

export interface BatchNormOptions extends Affine {
  /** Normalise by the batch and move the running statistics. Default: false. */
  readonly training?: boolean;
  /** How far the running statistics move towards the batch's; a tensor of one element will do. Default: 0.1. */
  readonly momentum?: number | Tensor;
}

/**
 * Normalises each channel of x [N, C, …]: by the batch's statistics in training (the running ones, if given, then move
 * towards them, the variance unbiased), else by the running ones (torch.nn.functional.batch_norm).
 */
export function batchNorm(
  x: Tensor,
  runningMean: Tensor | null,
  runningVar: Tensor | null,
  options: BatchNormOptions = {},
): Tensor {
  const { weight, bias, eps, training = false, momentum = 0.1 } = options;
  const [w, b] = [weight?.node ?? null, bias?.node ?? null];
  if (!training) {
    if (!runningMean || !runningVar)
      throw new ShapeError("batchNorm: without training it needs running statistics, and there are none");
    return new Tensor(composites.batchNormEval(x.node, runningMean.node, runningVar.node, w, b, 1, eps));
  }
  const { y, mean, variance } = composites.batchNorm(x.node, w, b, 1, eps);
  if (runningMean && runningVar) {
    const before = setGradEnabled(false);
    try {
      const rate =
        typeof momentum === "number" ? ops.scalar(momentum, mean.dtype) : ops.cast(momentum.node, mean.dtype);
      const count = sizeOf(x.shape) / x.shape[1];
      write("batchNorm", runningMean, follow([runningMean.node, mean, rate], { correction: 1 })[0]);
      write("batchNorm", runningVar, follow([runningVar.node, variance, rate], { correction: count / (count - 1) })[0]);
    } finally {
      setGradEnabled(before);
    }
  }
  return new Tensor(y);
}

/** Normalises x [N, C, …] over `numGroups` groups of channels of each sample (torch.nn.functional.group_norm). */
export function groupNorm({ node: x }: Tensor, numGroups: number, options: Affine = {}): Tensor {
  const { weight, bias, eps } = options;
  const [batch, channels] = x.shape;
  if (x.shape.length < 2 || channels % numGroups !== 0)
    throw new ShapeError(
      `groupNorm: ${channels} channels of ${showShape(x.shape)} do not divide into ${numGroups} groups`,
    );
  const rows = ops.reshape(x, [batch, numGroups, sizeOf(x.shape) / (batch * numGroups)]);
  let y = ops.reshape(composites.layerNorm(rows, 1, null, null, eps), x.shape);
  const perChannel = (v: Tensor): Node =>
    ops.reshape(
      v.node,
      x.shape.map((n, i) => (i === 1 ? n : 1)),
    );
  if (weight) y = ops.mul(y, perChannel(weight));
  if (bias) y = ops.add(y, perChannel(bias));
  return new Tensor(y);
}

/** Normalises every channel of every sample by itself (torch.nn.functional.instance_norm without running statistics). */
export const instanceNorm = (x: Tensor, options: Affine = {}): Tensor => groupNorm(x, x.shape[1], options);

/** x / max(‖x‖ₚ, eps) along `dim` (torch.nn.functional.normalize). */
export function normalize(
  x: Tensor,
  options: { readonly p?: number; readonly dim?: number; readonly eps?: number } = {},
): Tensor {
  const { p = 2, dim = 1, eps = 1e-12 } = options;
  return x.div(x.norm({ p, dim, keepdim: true }).clamp(eps));
}
