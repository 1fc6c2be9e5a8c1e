/**
 * Gradients of the composites, written with primitives (and the gradient composites), so that a compiler sees the
 * backward pass of a row as one stretch of rows. What has no formula of its own is differentiated through its
 * decomposition; so is every gradient composite, and everything can be differentiated again.
 */
import { normalizeAxis } from "../../core/shape.ts";
import { type GeluAttrs, geluTanh, sigmoid } from "../../graph/composites/activation.ts";
import {
  type AttentionAttrs,
  attentionBackward,
  attentionExtras,
  swapHeads,
} from "../../graph/composites/attention.ts";
import { type BlockLinearAttrs, dequantizeBlocks } from "../../graph/composites/block-linear.ts";
import { attrsOf, wide } from "../../graph/composites/check.ts";
import {
  type ConvAttrs,
  type ConvInputGradientAttrs,
  conv,
  convInputGradient,
  convWeightGradient,
} from "../../graph/composites/conv.ts";
import { type LinearCrossEntropyAttrs, linearCrossEntropyBackward } from "../../graph/composites/linearCrossEntropy.ts";
import {
  type BceAttrs,
  bceExtras,
  crossEntropyGradient,
  type ElementLossAttrs,
  type NllAttrs,
  nllLossGradient,
  type Reduction,
  softplusOfNegative,
} from "../../graph/composites/loss.ts";
import {
  axesBut,
  type BatchNormAttrs,
  channelNormalized,
  lastAxes,
  type NormAttrs,
  normalized,
  perChannel,
  weightAndBias,
} from "../../graph/composites/norm.ts";
import { maxPool2dGradient, type PoolAttrs } from "../../graph/composites/pool.ts";
import { type CellName, carriesOf, recurrentBackward } from "../../graph/composites/recurrent.ts";
import type { AxisAttrs } from "../../graph/composites/softmax.ts";
import { dequantizeStored, type StoredLinearAttrs } from "../../graph/composites/stored-linear.ts";
import type { Node } from "../../graph/node.ts";
import {
  add,
  cast,
  contract,
  div,
  erf,
  exp,
  expandTo,
  le,
  mean,
  mul,
  neg,
  output,
  sub,
  sum,
  tanh,
  where,
} from "../../graph/ops.ts";
import { byDecomposition } from "../backward.ts";
import { needs, type Rule, setGradients, single } from "../table.ts";

// ---- activations ------------------------------------------------------------------------------------------------------

/** g · f(x, y) computed wide and rounded once, for rows with one operand. */
const unary = (f: (g: Node, x: Node, y: Node) => Node): Rule =>
  single((y, g) => [cast(f(wide(g), wide(y.inputs[0]), wide(y)), y.inputs[0].dtype)]);

function geluGradient(g: Node, x: Node, { approximate }: GeluAttrs): Node {
  if (approximate === "none") {
    const density = mul(exp(mul(mul(x, x), -0.5)), 1 / Math.sqrt(2 * Math.PI));
    const cumulative = mul(add(erf(mul(x, Math.SQRT1_2)), 1), 0.5);
    return mul(g, add(cumulative, mul(x, density)));
  }
  const { scale, cubic } = geluTanh;
  const square = mul(x, x);
  const t = tanh(mul(mul(x, add(mul(square, cubic), 1)), scale));
  const inner = mul(add(mul(square, 3 * cubic), 1), scale);
  const slope = mul(mul(x, sub(1, mul(t, t))), inner);
  return mul(g, mul(add(add(t, 1), slope), 0.5));
}

// ---- rows ---------------------------------------------------------------------------------------------------------------

function softmaxGradient(y: Node, g: Node): readonly Node[] {
  const axis = normalizeAxis("softmax", attrsOf<AxisAttrs>(y.attrs).axis, y.shape.length);
  const [p, w] = [wide(y), wide(g)];
  return [cast(mul(p, sub(w, sum(mul(w, p), axis, { keepdim: true }))), y.inputs[0].dtype)];
}

function logSoftmaxGradient(y: Node, g: Node): readonly Node[] {
  const axis = normalizeAxis("logSoftmax", attrsOf<AxisAttrs>(y.attrs).axis, y.shape.length);
  const w = wide(g);
  return [cast(sub(w, mul(exp(wide(y)), sum(w, axis, { keepdim: true }))), y.inputs[0].dtype)];
}

/** layerNorm and rmsNorm: the gradient of (x − mean) · rstd takes the part along x̂ (and along 1) out of g. */
const lastAxesNorm = (centre: boolean): Rule =>
  single((y, g) => {
    const a = attrsOf<NormAttrs>(y.attrs);
    const x = y.inputs[0];
    const { weight, bias } = weightAndBias(y.inputs, 1, a);
    const axes = lastAxes(x, a.dims);
    const rows = x.shape.flatMap((_, i) => (axes.includes(i) ? [] : [i]));
    const { hat, rstd } = normalized(x, axes, a.eps, centre);
    const w = wide(g);
    const flow: (Node | null)[] = [null];
    if (needs(y, 0)) {
      const h = weight ? mul(w, cast(weight, w.dtype)) : w;
      const along = mul(hat, mean(mul(h, hat), axes, { keepdim: true }));
      const inner = centre ? sub(sub(h, mean(h, axes, { keepdim: true })), along) : sub(h, along);
      flow[0] = cast(mul(inner, rstd), x.dtype);
    }
    if (weight) flow.push(weight.requiresGrad ? cast(sum(mul(w, hat), rows), weight.dtype) : null);
    if (bias) flow.push(bias.requiresGrad ? cast(sum(w, rows), bias.dtype) : null);
    return flow;
  });

const batchNormRule: Rule = (y, [g, gMean, gVariance]) => {
  const a = attrsOf<BatchNormAttrs>(y.attrs);
  const x = y.inputs[0];
  const { weight, bias } = weightAndBias(y.inputs, 1, a);
  const axes = axesBut(x, a.axis);
  const count = axes.reduce((n, i) => n * x.shape[i], 1);
  const { centred, rstd, hat } = channelNormalized(x, a);
  const w = g && wide(g);
  let dx: Node | null = null;
  const include = (part: Node): void => {
    dx = dx ? add(dx, part) : part;
  };
  if (needs(y, 0)) {
    const spread = (v: Node): Node => perChannel(v, x, a.axis);
    if (w) {
      const along = mul(hat, spread(mean(mul(w, hat), axes)));
      const scale = weight ? mul(rstd, cast(weight, rstd.dtype)) : rstd;
      include(mul(sub(sub(w, spread(mean(w, axes))), along), spread(scale)));
    }
    if (gMean) include(spread(div(gMean, count)));
    if (gVariance) include(mul(centred, spread(mul(gVariance, 2 / count))));
  }
  const flow: (Node | null)[] = [dx && cast(dx, x.dtype)];
  if (weight) flow.push(w && weight.requiresGrad ? cast(sum(mul(w, hat), axes), weight.dtype) : null);
  if (bias) flow.push(w && bias.requiresGrad ? cast(sum(w, axes), bias.dtype) : null);
  return flow;
};

// ---- convolution ----------------------------------------------------------------------------------------------------------

const spatial = (x: Node): readonly number[] => x.shape.slice(1, -1);
const kernelOf = (weight: Node): readonly number[] => weight.shape.slice(2);

/** x ⋆ w is linear in both, and so is each of its gradients: the three rows are closed under differentiation. */
const convRules: Readonly<Record<string, Rule>> = {
  conv: single((y, g) => {
    const a = attrsOf<ConvAttrs>(y.attrs);
    const [x, w] = y.inputs;
    return [
      needs(y, 0) ? convInputGradient(g, w, { ...a, size: spatial(x) }) : null,
      needs(y, 1) ? convWeightGradient(x, g, { ...a, kernel: kernelOf(w) }) : null,
    ];
  }),
  convInputGradient: single((y, g) => {
    const a = attrsOf<ConvInputGradientAttrs>(y.attrs);
    const [upstream, w] = y.inputs;
    return [
      needs(y, 0) ? conv(g, w, a) : null,
      needs(y, 1) ? convWeightGradient(g, upstream, { ...a, kernel: kernelOf(w) }) : null,
    ];
  }),
  convWeightGradient: single((y, g) => {
    const a = attrsOf<ConvAttrs>(y.attrs);
    const [x, upstream] = y.inputs;
    return [
      needs(y, 0) ? convInputGradient(upstream, g, { ...a, size: spatial(x) }) : null,
      needs(y, 1) ? conv(x, g, a) : null,
    ];
  }),
};

// ---- attention --------------------------------------------------------------------------------------------------------------

const attentionRule: Rule = (node, grads) => {
  const [gradient, gLse] = grads;
  const extras = attentionExtras(node.inputs, 3, node.attrs);
  // a gradient of the log-sum-exp (second derivatives) or of the mask goes the long way
  if (!gradient || gLse || extras.mask?.requiresGrad) return byDecomposition(node, grads);
  const [q, k, v] = node.inputs;
  const saved = { q, k, v, out: node, lse: output(node, 1) };
  const { dq, dk, dv } = attentionBackward(saved, gradient, attrsOf<AttentionAttrs>(node.attrs), extras);
  const flow = [dq, dk, dv].map((d, i) => (needs(node, i) ? swapHeads(d) : null));
  return [...flow, ...node.inputs.slice(3).map(() => null)];
};

// ---- losses -------------------------------------------------------------------------------------------------------------------

/** The formula for the first input; class weights that want a gradient go through the decomposition. */
const classLoss =
  (f: (inputs: readonly Node[], attrs: Node["attrs"], g: Node) => Node): Rule =>
  (y, grads) => {
    const [g] = grads;
    if (!g) return y.inputs.map(() => null);
    if (attrsOf<NllAttrs>(y.attrs).weight && needs(y, 2)) return byDecomposition(y, grads);
    return y.inputs.map((_, i) => (i === 0 ? f(y.inputs, y.attrs, g) : null));
  };

/** A loss gradient at every element, wide. */
function eachElement(g: Node, x: Node, reduction: Reduction): Node {
  const w = wide(g);
  if (reduction === "none") return w;
  const count = x.shape.reduce((n, s) => n * s, 1);
  return expandTo(reduction === "mean" ? div(w, count) : w, x.shape);
}

const mseRule: Rule = single((y, g) => {
  const [x, target] = y.inputs;
  const each = eachElement(g, x, attrsOf<ElementLossAttrs>(y.attrs).reduction);
  const d = mul(mul(sub(wide(x), wide(target)), 2), each);
  return [needs(y, 0) ? cast(d, x.dtype) : null, needs(y, 1) ? cast(neg(d), target.dtype) : null];
});

const bceRule: Rule = (y, grads) => {
  const [g] = grads;
  if (!g || y.inputs[2]?.requiresGrad || y.inputs[3]?.requiresGrad) return byDecomposition(y, grads);
  const a = attrsOf<BceAttrs>(y.attrs);
  const [x, t] = [wide(y.inputs[0]), wide(y.inputs[1])];
  const { weight, posWeight } = bceExtras(y.inputs, a);
  let each = eachElement(g, x, a.reduction);
  if (weight) each = mul(each, weight);
  return [
    needs(y, 0) ? cast(mul(each, bceByInput(x, t, posWeight)), y.inputs[0].dtype) : null,
    needs(y, 1) ? cast(mul(each, bceByTarget(x, posWeight)), y.inputs[1].dtype) : null,
    null,
    null,
  ];
};
// the derivatives of (1 − t) · x + (1 + (p − 1) · t) · log(1 + e^−x)
function bceByInput(x: Node, t: Node, posWeight: Node | null): Node {
  if (!posWeight) return sub(sigmoid(x), t);
  return sub(sub(1, t), mul(sigmoid(neg(x)), add(mul(sub(posWeight, 1), t), 1)));
}
const bceByTarget = (x: Node, posWeight: Node | null): Node =>
  posWeight ? sub(mul(sub(posWeight, 1), softplusOfNegative(x)), x) : neg(x);

const linearCrossEntropyRule: Rule = single((y, g) => {
  const { dhidden, dweight } = linearCrossEntropyBackward(y.inputs, g, attrsOf<LinearCrossEntropyAttrs>(y.attrs));
  return [needs(y, 0) ? dhidden : null, needs(y, 1) ? dweight : null, null];
});

/** The weight is not learnt, and made floating again: kept for the gradient it would be as large as one that is not in blocks. */
const blockLinearRule: Rule = (y, grads) => {
  const [g] = grads;
  if (!g || needs(y, 2)) return byDecomposition(y, grads);
  const [x, codes, scales] = y.inputs;
  const weight = dequantizeBlocks(codes, scales, attrsOf<BlockLinearAttrs>(y.attrs));
  return [needs(y, 0) ? contract(g, cast(weight, x.dtype)) : null, null, null];
};

const storedLinearRule: Rule = (y, [g]) => {
  const [x, blocks] = y.inputs;
  if (!g || !needs(y, 0)) return [null, null];
  const weight = dequantizeStored(blocks, attrsOf<StoredLinearAttrs>(y.attrs).format);
  return [contract(g, cast(weight, x.dtype)), null];
};

// ---- recurrent ----------------------------------------------------------------------------------------------------------------

/** From what the steps saved; gradients of that itself (second derivatives) go the long way. */
const recurrentRule =
  (name: CellName): Rule =>
  (node, grads) => {
    const own = 1 + carriesOf(name);
    if (grads.slice(own).some((g) => g)) return byDecomposition(node, grads);
    if (!grads.slice(0, own).some((g) => g)) return node.inputs.map(() => null);
    return recurrentBackward(name, node, grads).map((d, i) => (needs(node, i) ? d : null));
  };

setGradients({
  relu: single((y, g) => [where(le(y.inputs[0], 0), 0, g)]),
  sigmoid: unary((g, _, y) => mul(g, mul(y, sub(1, y)))),
  silu: unary((g, x) => {
    const s = sigmoid(x);
    return mul(g, mul(s, add(mul(x, sub(1, s)), 1)));
  }),
  gelu: single((y, g) => {
    const x = y.inputs[0];
    return [cast(geluGradient(wide(g), wide(x), attrsOf<GeluAttrs>(y.attrs)), x.dtype)];
  }),

  softmax: single(softmaxGradient),
  logSoftmax: single(logSoftmaxGradient),
  layerNorm: lastAxesNorm(true),
  rmsNorm: lastAxesNorm(false),
  batchNorm: batchNormRule,
  batchNormEval: byDecomposition,

  ...convRules,
  maxPool2d: single((y, g) => [maxPool2dGradient(y.inputs[0], g, attrsOf<PoolAttrs>(y.attrs))]),
  maxPool2dGradient: byDecomposition,
  avgPool2d: byDecomposition,

  attention: attentionRule,
  attentionBackward: byDecomposition,

  rnn: recurrentRule("rnn"),
  rnnBackward: byDecomposition,
  lstm: recurrentRule("lstm"),
  lstmBackward: byDecomposition,
  gru: recurrentRule("gru"),
  gruBackward: byDecomposition,

  crossEntropy: classLoss(crossEntropyGradient),
  crossEntropyGradient: byDecomposition,
  nllLoss: classLoss(nllLossGradient),
  mseLoss: mseRule,
  binaryCrossEntropyWithLogits: bceRule,
  blockLinear: blockLinearRule,
  storedLinear: storedLinearRule,
  linearCrossEntropy: linearCrossEntropyRule,
  linearCrossEntropyBackward: byDecomposition,

  dequantize: byDecomposition,
});
