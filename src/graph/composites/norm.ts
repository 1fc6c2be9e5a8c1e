/**
 * Normalisations: layerNorm, rmsNorm (over the last axes), batchNorm in its training and its evaluation form.
 * Running statistics are state and belong to `nn/`. Statistics are computed in float32 for the 16-bit floats.
 */
import { accumulator } from "../../core/dtype.ts";
import { ShapeError } from "../../core/errors.ts";
import { normalizeAxis, type Shape, showShape } from "../../core/shape.ts";
import { type Attrs, make, type Node, registerOperation } from "../node.ts";
import { add, cast, div, expandTo, mean, mul, outputs, reshape, sqrt, sub } from "../ops.ts";
import { attrsOf, expectFloat, expectShape, wide } from "./check.ts";

// ---- over the last axes: layerNorm, rmsNorm ---------------------------------------------------------------------

/** `dims`: how many trailing axes are normalised; `weight`, `bias`: which of the optional inputs follow. */
export type NormAttrs = {
  readonly dims: number;
  readonly eps: number;
  readonly weight: boolean;
  readonly bias: boolean;
};

export const lastAxes = (x: Node, dims: number): number[] =>
  Array.from({ length: dims }, (_, i) => x.shape.length - dims + i);

/** (x − mean) · rstd and rstd, in the wide dtype; without `centre` the mean is left in (RMS). */
export function normalized(x: Node, axes: readonly number[], eps: number, centre: boolean): { hat: Node; rstd: Node } {
  const y = wide(x);
  const centred = centre ? sub(y, mean(y, axes, { keepdim: true })) : y;
  const variance = mean(mul(centred, centred), axes, { keepdim: true });
  const rstd = div(1, sqrt(add(variance, eps)));
  return { hat: mul(centred, rstd), rstd };
}

/** The optional inputs that follow `first`, by the flags of the attributes. */
export function weightAndBias(
  inputs: readonly Node[],
  first: number,
  { weight, bias }: { readonly weight: boolean; readonly bias: boolean },
): { weight: Node | null; bias: Node | null } {
  return {
    weight: weight ? inputs[first] : null,
    bias: bias ? inputs[first + (weight ? 1 : 0)] : null,
  };
}

function checkAffine(name: string, weight: Node | null, bias: Node | null, shape: Shape, why: string): void {
  for (const [what, w] of [
    ["weight", weight],
    ["bias", bias],
  ] as const)
    if (w) {
      expectFloat(name, what, w);
      expectShape(name, what, w, shape, why);
    }
}

function lastAxesNorm(name: string, centre: boolean) {
  return registerOperation({
    group: "composite",
    name,
    infer: (inputs, attrs: Attrs) => {
      const a = attrsOf<NormAttrs>(attrs);
      const x = inputs[0];
      expectFloat(name, "the input", x);
      if (!Number.isInteger(a.dims) || a.dims < 1 || a.dims > x.shape.length)
        throw new ShapeError(
          `${name}: can't normalise over the last ${a.dims} axes of ${showShape(x.shape)} (expected 1 … ${x.shape.length})`,
        );
      const { weight, bias } = weightAndBias(inputs, 1, a);
      checkAffine(name, weight, bias, x.shape.slice(x.shape.length - a.dims), "the normalised axes");
      return { shape: x.shape, dtype: x.dtype };
    },
    decompose: (inputs, attrs) => {
      const a = attrsOf<NormAttrs>(attrs);
      const x = inputs[0];
      const { weight, bias } = weightAndBias(inputs, 1, a);
      let y = normalized(x, lastAxes(x, a.dims), a.eps, centre).hat;
      if (weight) y = mul(y, cast(weight, y.dtype));
      if (bias) y = add(y, cast(bias, y.dtype));
      return [cast(y, x.dtype)];
    },
  });
}

const layerNormRow = lastAxesNorm("layerNorm", true);
const rmsNormRow = lastAxesNorm("rmsNorm", false);

const present = (...nodes: readonly (Node | null)[]): Node[] => nodes.filter((n) => n !== null);

/** (x − mean) / √(var + eps) · weight + bias over the last `dims` axes (torch.nn.functional.layer_norm). */
export function layerNorm(x: Node, dims: number, weight: Node | null, bias: Node | null, eps = 1e-5): Node {
  return make(layerNormRow, present(x, weight, bias), { dims, eps, weight: weight !== null, bias: bias !== null });
}

/** x / √(mean x² + eps) · weight over the last `dims` axes (torch.nn.functional.rms_norm). */
export function rmsNorm(x: Node, dims: number, weight: Node | null, eps = 1e-6): Node {
  return make(rmsNormRow, present(x, weight), { dims, eps, weight: weight !== null, bias: false });
}

// ---- over everything but the channels: batchNorm ------------------------------------------------------------------

/** `axis` is the channels' axis, so that either layout needs no copy. */
export type BatchNormAttrs = {
  readonly axis: number;
  readonly eps: number;
  readonly weight: boolean;
  readonly bias: boolean;
};

export const axesBut = (x: Node, axis: number): number[] => x.shape.map((_, i) => i).filter((i) => i !== axis);

/** A value per channel, as an operand for x. */
export const perChannel = (v: Node, x: Node, axis: number): Node =>
  expandTo(
    reshape(
      cast(v, accumulator(x.dtype)),
      x.shape.map((n, i) => (i === axis ? n : 1)),
    ),
    x.shape,
  );

/** mean and biased variance per channel, wide. */
function channelMoments(x: Node, axis: number): { mean: Node; variance: Node; centred: Node } {
  const y = wide(x);
  const m = mean(y, axesBut(x, axis));
  const centred = sub(y, perChannel(m, x, axis));
  return { mean: m, variance: mean(mul(centred, centred), axesBut(x, axis)), centred };
}

export function channelNormalized(
  x: Node,
  { axis, eps }: BatchNormAttrs,
): { mean: Node; variance: Node; centred: Node; rstd: Node; hat: Node } {
  const moments = channelMoments(x, axis);
  const rstd = div(1, sqrt(add(moments.variance, eps)));
  return { ...moments, rstd, hat: mul(moments.centred, perChannel(rstd, x, axis)) };
}

function affine(y: Node, weight: Node | null, bias: Node | null, axis: number): Node {
  const scaled = weight ? mul(y, perChannel(weight, y, axis)) : y;
  return bias ? add(scaled, perChannel(bias, y, axis)) : scaled;
}

function checkBatchNorm(name: string, x: Node, axis: number): void {
  expectFloat(name, "the input", x);
  if (x.shape.length < 2)
    throw new ShapeError(`${name}: the input needs a batch and a channel axis, got ${showShape(x.shape)}`);
  normalizeAxis(name, axis, x.shape.length);
}

const batchNormRow = registerOperation({
  group: "composite",
  name: "batchNorm",
  infer: (inputs, attrs) => {
    const a = attrsOf<BatchNormAttrs>(attrs);
    const x = inputs[0];
    checkBatchNorm("batchNorm", x, a.axis);
    const channels = x.shape[a.axis];
    const count = axesBut(x, a.axis).reduce((n, i) => n * x.shape[i], 1);
    if (count < 2)
      throw new ShapeError(
        `batchNorm: training needs more than one value a channel, got ${showShape(x.shape)} with channels at axis ${a.axis}; use a larger batch or evaluation mode`,
      );
    const { weight, bias } = weightAndBias(inputs, 1, a);
    checkAffine("batchNorm", weight, bias, [channels], "one value a channel");
    const statistic = { shape: [channels], dtype: accumulator(x.dtype) };
    return [{ shape: x.shape, dtype: x.dtype }, statistic, statistic];
  },
  decompose: (inputs, attrs) => {
    const a = attrsOf<BatchNormAttrs>(attrs);
    const x = inputs[0];
    const { weight, bias } = weightAndBias(inputs, 1, a);
    const n = channelNormalized(x, a);
    return [cast(affine(n.hat, weight, bias, a.axis), x.dtype), n.mean, n.variance];
  },
});

const batchNormEvalRow = registerOperation({
  group: "composite",
  name: "batchNormEval",
  infer: (inputs, attrs) => {
    const a = attrsOf<BatchNormAttrs>(attrs);
    const [x, mean, variance] = inputs;
    checkBatchNorm("batchNormEval", x, a.axis);
    const shape = [x.shape[a.axis]];
    expectShape("batchNormEval", "the running mean", mean, shape, "one value a channel");
    expectShape("batchNormEval", "the running variance", variance, shape, "one value a channel");
    const { weight, bias } = weightAndBias(inputs, 3, a);
    checkAffine("batchNormEval", weight, bias, shape, "one value a channel");
    return { shape: x.shape, dtype: x.dtype };
  },
  decompose: (inputs, attrs) => {
    const a = attrsOf<BatchNormAttrs>(attrs);
    const [x, m, v] = inputs;
    const { weight, bias } = weightAndBias(inputs, 3, a);
    const rstd = div(1, sqrt(add(wide(v), a.eps)));
    const y = mul(sub(wide(x), perChannel(m, x, a.axis)), perChannel(rstd, x, a.axis));
    return [cast(affine(y, weight, bias, a.axis), x.dtype)];
  },
});

/**
 * Normalises every channel by the batch's own statistics; gives y, mean [C] and biased variance [C] (both in the
 * accumulation dtype). torch.nn.functional.batch_norm(training=True).
 */
export function batchNorm(
  x: Node,
  weight: Node | null,
  bias: Node | null,
  axis: number,
  eps = 1e-5,
): { y: Node; mean: Node; variance: Node } {
  const a = normalizeAxis("batchNorm", axis, x.shape.length);
  const attrs = { axis: a, eps, weight: weight !== null, bias: bias !== null };
  const [y, m, variance] = outputs(make(batchNormRow, present(x, weight, bias), attrs));
  return { y, mean: m, variance };
}

/** Normalises every channel by given statistics [C] (torch.nn.functional.batch_norm(training=False)). */
export function batchNormEval(
  x: Node,
  runningMean: Node,
  runningVariance: Node,
  weight: Node | null,
  bias: Node | null,
  axis: number,
  eps = 1e-5,
): Node {
  const a = normalizeAxis("batchNormEval", axis, x.shape.length);
  const attrs = { axis: a, eps, weight: weight !== null, bias: bias !== null };
  return make(batchNormEvalRow, present(x, runningMean, runningVariance, weight, bias), attrs);
}
