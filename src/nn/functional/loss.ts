/**
 * Losses, with PyTorch's names, defaults and numerics. `reduction` is "mean" (of what counts), "sum" or "none" (one value
 * an element or a row).
 */
import { defineOperation } from "../../autograd/index.ts";
import { isFloat } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { sameShape, showShape, sizeOf } from "../../core/shape.ts";
import { autocastDType, lowered, raised } from "../../graph/autocast.ts";
import type { Reduction } from "../../graph/composites/index.ts";
import * as composites from "../../graph/composites/index.ts";
import type { Node } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import { nodeOf } from "../../tensor/operand.ts";
import { Tensor } from "../../tensor/tensor.ts";

export type { Reduction };

export interface LossOptions {
  readonly reduction?: Reduction;
}
export interface ClassLossOptions extends LossOptions {
  /** One weight a class [classes]. */
  readonly weight?: Tensor | null;
  /** A target that does not count. Default: −100. */
  readonly ignoreIndex?: number;
}

function reduced(name: string, each: Node, reduction: Reduction): Tensor {
  if (reduction === "none") return new Tensor(each);
  if (reduction === "mean") return new Tensor(ops.mean(each));
  if (reduction === "sum") return new Tensor(ops.sum(each));
  throw new DTypeError(`${name}: reduction must be "none", "mean" or "sum", got ${JSON.stringify(reduction)}`);
}

// ---- classes ------------------------------------------------------------------------------------------------------------

/** x [N, C, …] as rows [M, C], with the shape [N, …] of its positions; x [C] is one row. */
function rowsOf(name: string, x: Node): { rows: Node; positions: readonly number[] } {
  const n = x.shape.length;
  if (n === 2) return { rows: x, positions: [x.shape[0]] };
  if (n === 0) throw new ShapeError(`${name}: the input needs an axis of classes, got []`);
  if (n === 1) return { rows: ops.reshape(x, [1, x.shape[0]]), positions: [] };
  const last = ops.permute(x, [0, ...Array.from({ length: n - 2 }, (_, i) => i + 2), 1]);
  const positions = last.shape.slice(0, -1);
  return { rows: ops.reshape(last, [sizeOf(positions), x.shape[1]]), positions };
}

/** Runs a loss over rows on inputs of any number of axes. */
function byClass(name: string, x: Node, target: Node, f: (rows: Node, target: Node) => Node): Tensor {
  const { rows, positions } = rowsOf(name, x);
  if (!sameShape(target.shape, positions))
    throw new ShapeError(
      `${name}: the targets ${showShape(target.shape)} do not fit the input ${showShape(x.shape)}: expected ${showShape(positions)}, one class index for every position`,
    );
  const loss = f(rows, ops.reshape(target, [rows.shape[0]]));
  return new Tensor(loss.shape.length ? ops.reshape(loss, positions) : loss);
}

/**
 * −log softmax(input)[target] of logits [N, C], [N, C, …] or [C] and integer targets [N], [N, …] or []; or, with floating
 * targets of the input's shape, −Σ target · log softmax(input) (torch.nn.functional.cross_entropy). IndexError at run time for
 * a target outside 0 … C−1.
 */
export function crossEntropy(
  input: Tensor,
  target: Tensor,
  options: ClassLossOptions & { readonly labelSmoothing?: number } = {},
): Tensor {
  const { weight = null, labelSmoothing = 0, ignoreIndex, reduction = "mean" } = options;
  const x = raised(input.node);
  if (isFloat(target.dtype)) return softCrossEntropy(x, target.node, weight?.node ?? null, labelSmoothing, reduction);
  return byClass("crossEntropy", x, target.node, (rows, t) =>
    composites.crossEntropy(rows, t, {
      weight: weight?.node ?? null,
      labelSmoothing,
      reduction,
      ...(ignoreIndex === undefined ? {} : { ignoreIndex }),
    }),
  );
}

function softCrossEntropy(x: Node, target: Node, weight: Node | null, smoothing: number, reduction: Reduction): Tensor {
  const name = "crossEntropy";
  if (!sameShape(x.shape, target.shape))
    throw new ShapeError(
      `${name}: floating targets are probabilities and must have the input's shape ${showShape(x.shape)}, got ${showShape(target.shape)}; class indices are integers`,
    );
  const { rows, positions } = rowsOf(name, x);
  const classes = rows.shape[1];
  let t = ops.cast(rowsOf(name, target).rows, rows.dtype);
  if (smoothing > 0) t = ops.add(ops.mul(t, 1 - smoothing), smoothing / classes);
  if (weight) t = ops.mul(t, ops.cast(weight, rows.dtype));
  const each = ops.neg(ops.sum(ops.mul(t, composites.logSoftmax(rows, 1)), 1));
  return reduced(name, ops.reshape(each, positions), reduction);
}

/** −input[target] of log-probabilities, shapes as in crossEntropy (torch.nn.functional.nll_loss). */
export function nllLoss(input: Tensor, target: Tensor, options: ClassLossOptions = {}): Tensor {
  const { weight = null, ignoreIndex, reduction } = options;
  return byClass("nllLoss", raised(input.node), target.node, (rows, t) =>
    composites.nllLoss(rows, t, {
      weight: weight?.node ?? null,
      ...(reduction === undefined ? {} : { reduction }),
      ...(ignoreIndex === undefined ? {} : { ignoreIndex }),
    }),
  );
}

/**
 * crossEntropy(hidden · weightᵀ, target) of hidden [rows…, width], weight [classes, width], integer targets [rows…], without the
 * logits ever existing as a whole: a language model's head and its loss in one.
 */
export function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  target: Tensor,
  options: LossOptions & {
    readonly ignoreIndex?: number;
    readonly labelSmoothing?: number;
    /** Whether the loss of 16-bit operands is float32, as it is computed. Default: under autocast only. */
    readonly wide?: boolean;
  } = {},
): Tensor {
  const h = hidden.node;
  const positions = h.shape.slice(0, -1);
  if (!sameShape(target.shape, positions))
    throw new ShapeError(
      `linearCrossEntropy: targets ${showShape(target.shape)} must be ${showShape(positions)}, one for every row of ${showShape(h.shape)}`,
    );
  const rows = ops.reshape(h, [sizeOf(positions), h.shape[positions.length]]);
  const loss = composites.linearCrossEntropy(
    lowered(rows),
    lowered(weight.node),
    ops.cast(ops.reshape(target.node, [rows.shape[0]]), "int32"),
    { ...options, wide: options.wide ?? autocastDType() !== null },
  );
  return new Tensor(loss.shape.length ? ops.reshape(loss, positions) : loss);
}

// ---- elements ---------------------------------------------------------------------------------------------------------------

const pair = (name: string, a: Tensor, b: Tensor): [Node, Node] => {
  const [x, y] = ops.operands(name, raised(a.node), raised(b.node));
  return [ops.toFloat(x), ops.toFloat(y)];
};

/** (input − target)². */
export const mseLoss = (input: Tensor, target: Tensor, options: LossOptions = {}): Tensor =>
  new Tensor(composites.mseLoss(raised(input.node), raised(target.node), options.reduction));

/** |input − target|. */
export function l1Loss(input: Tensor, target: Tensor, options: LossOptions = {}): Tensor {
  const [x, y] = pair("l1Loss", input, target);
  return reduced("l1Loss", ops.abs(ops.sub(x, y)), options.reduction ?? "mean");
}

/** Half the square of the difference up to `delta`, a straight line of slope delta beyond (Huber 1964). */
export function huberLoss(
  input: Tensor,
  target: Tensor,
  options: LossOptions & { readonly delta?: number } = {},
): Tensor {
  const { delta = 1, reduction = "mean" } = options;
  if (!(delta > 0)) throw new DTypeError(`huberLoss: delta must be above 0, got ${delta}`);
  const [x, y] = pair("huberLoss", input, target);
  const d = ops.abs(ops.sub(x, y));
  const bend = nodeOf("huberLoss", delta, d);
  const beyond = ops.mul(ops.sub(d, ops.mul(bend, 0.5)), bend);
  return reduced("huberLoss", ops.where(ops.lt(d, bend), ops.mul(ops.mul(d, d), 0.5), beyond), reduction);
}

/** As huberLoss divided by its delta: slope 1 beyond `beta` (Girshick 2015). */
export function smoothL1Loss(
  input: Tensor,
  target: Tensor,
  options: LossOptions & { readonly beta?: number } = {},
): Tensor {
  const { beta = 1, reduction = "mean" } = options;
  if (!(beta >= 0)) throw new DTypeError(`smoothL1Loss: beta must not be negative, got ${beta}`);
  if (beta === 0) return l1Loss(input, target, { reduction });
  const [x, y] = pair("smoothL1Loss", input, target);
  const d = ops.abs(ops.sub(x, y));
  const bend = nodeOf("smoothL1Loss", beta, d);
  const within = ops.div(ops.mul(ops.mul(d, d), 0.5), bend);
  return reduced("smoothL1Loss", ops.where(ops.lt(d, bend), within, ops.sub(d, ops.mul(bend, 0.5))), reduction);
}

/**
 * −t log x − (1 − t) log(1 − x), each logarithm no less than −100, and the gradient (x − t) / max(x (1 − x), 10⁻¹²): finite
 * at x = 0 and 1, as PyTorch's.
 */
const binaryCrossEntropyOf = defineOperation({
  name: "binaryCrossEntropy",
  infer: ([x, t]) => {
    if (!isFloat(x.dtype) || t.dtype !== x.dtype)
      throw new DTypeError(
        `binaryCrossEntropy: probabilities and targets must be of one floating dtype, got ${x.dtype} and ${t.dtype}`,
      );
    if (!sameShape(x.shape, t.shape))
      throw new ShapeError(
        `binaryCrossEntropy: the target must have the input's shape ${showShape(x.shape)}, got ${showShape(t.shape)}`,
      );
    return { shape: x.shape, dtype: x.dtype };
  },
  decompose: ([x, t]) => {
    const [hit, miss] = [ops.maximum(ops.log(x), -100), ops.maximum(ops.log1p(ops.neg(x)), -100)];
    return [ops.neg(ops.add(ops.mul(t, hit), ops.mul(ops.sub(1, t), miss)))];
  },
  gradient: ({ inputs: [x, t] }, [g]) => {
    if (!g) return [null, null];
    const slope = ops.div(ops.sub(x, t), ops.maximum(ops.mul(x, ops.sub(1, x)), 1e-12));
    const odds = ops.sub(ops.maximum(ops.log1p(ops.neg(x)), -100), ops.maximum(ops.log(x), -100));
    return [x.requiresGrad ? ops.mul(g, slope) : null, t.requiresGrad ? ops.mul(g, odds) : null];
  },
});

/** Binary cross-entropy of probabilities in [0, 1] (torch.nn.functional.binary_cross_entropy). From logits, use the form with logits. */
export function binaryCrossEntropy(
  input: Tensor,
  target: Tensor,
  options: LossOptions & { readonly weight?: Tensor | null } = {},
): Tensor {
  const { weight, reduction = "mean" } = options;
  const x = raised(input.node);
  let each = binaryCrossEntropyOf([x, ops.cast(target.node, x.dtype)])[0];
  if (weight) each = ops.mul(each, weight.node);
  return reduced("binaryCrossEntropy", each, reduction);
}

/** Binary cross-entropy of sigmoid(input), computed from the logits without overflow; `posWeight` weighs the positive targets. */
export function binaryCrossEntropyWithLogits(
  input: Tensor,
  target: Tensor,
  options: LossOptions & { readonly weight?: Tensor | null; readonly posWeight?: Tensor | null } = {},
): Tensor {
  const { weight, posWeight, reduction } = options;
  return new Tensor(
    composites.binaryCrossEntropyWithLogits(raised(input.node), raised(target.node), {
      weight: weight?.node ?? null,
      posWeight: posWeight?.node ?? null,
      ...(reduction === undefined ? {} : { reduction }),
    }),
  );
}

/**
 * target · (log target − input), input being log-probabilities; with `logTarget` the target is in logarithms too
 * (torch.nn.functional.kl_div). "batchmean" divides the sum by the first axis, which makes it the divergence.
 */
export function klDiv(
  input: Tensor,
  target: Tensor,
  options: { readonly reduction?: Reduction | "batchmean"; readonly logTarget?: boolean } = {},
): Tensor {
  const { reduction = "mean", logTarget = false } = options;
  const [x, t] = pair("klDiv", input, target);
  // 0 · log 0 counts as 0
  const positive = ops.gt(t, 0);
  const entropy = (): Node => ops.where(positive, ops.mul(t, ops.log(ops.where(positive, t, 1))), 0);
  const each = logTarget ? ops.mul(ops.exp(t), ops.sub(t, x)) : ops.sub(entropy(), ops.mul(t, x));
  if (reduction === "batchmean") return new Tensor(ops.div(ops.sum(each), x.shape[0] ?? 1));
  return reduced("klDiv", each, reduction);
}

/** e^input − target · input, input being the logarithm of a Poisson rate (torch.nn.functional.poisson_nll_loss). */
export function poissonNllLoss(
  input: Tensor,
  target: Tensor,
  options: LossOptions & { readonly logInput?: boolean; readonly eps?: number } = {},
): Tensor {
  const { logInput = true, eps = 1e-8, reduction = "mean" } = options;
  const [x, t] = pair("poissonNllLoss", input, target);
  const each = logInput ? ops.sub(ops.exp(x), ops.mul(t, x)) : ops.sub(x, ops.mul(t, ops.log(ops.add(x, eps))));
  return reduced("poissonNllLoss", each, reduction);
}
