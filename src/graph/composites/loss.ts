/**
 * Losses: crossEntropy, nllLoss, mseLoss, binaryCrossEntropyWithLogits. Class axes are last: the API moves them.
 * A target outside 0 … C−1 (other than `ignoreIndex`) reaches a gather as it is, in the loss and in the gradient
 * alike, and so the program's error word.
 */
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { type Attrs, make, type Node, registerOperation, type Spec } from "../node.ts";
import {
  abs,
  add,
  cast,
  div,
  eq,
  exp,
  expandTo,
  full,
  gather,
  iota,
  log,
  log1p,
  maximum,
  mean,
  mul,
  ne,
  neg,
  operands,
  reduceMax,
  reshape,
  sub,
  sum,
  take,
  toFloat,
  unsqueeze,
  where,
} from "../ops.ts";
import { attrsOf, expectFloat, expectIndex, expectRank, expectShape, wide } from "./check.ts";

export type Reduction = "none" | "mean" | "sum";

export function checkReduction(name: string, reduction: string): asserts reduction is Reduction {
  if (!["none", "mean", "sum"].includes(reduction))
    throw new DTypeError(`${name}: reduction must be "none", "mean" or "sum", got ${JSON.stringify(reduction)}`);
}

// ---- classes ------------------------------------------------------------------------------------------------------------

export type NllAttrs = {
  readonly ignoreIndex: number;
  readonly reduction: Reduction;
  /** Whether a weight a class follows as third input. */
  readonly weight: boolean;
};
export type CrossEntropyAttrs = NllAttrs & { readonly labelSmoothing: number };

/** Which rows count, and where to look; rows that do not count look at class 0. */
export interface Targets {
  readonly valid: Node;
  readonly index: Node;
}

export function targetsOf(targets: Node, ignoreIndex: number): Targets {
  const valid = ne(targets, ignoreIndex);
  return { valid, index: where(valid, targets, 0) };
}

/** One value a row, by class: x [N, C] → [N]. */
const pick = (x: Node, index: Node): Node => reshape(gather(x, 1, unsqueeze(index, 1)), index.shape);

/** Number or weight of the rows that count: what a mean divides by. */
const divisor = (t: Targets, rowWeight: Node | null, like: Node): Node =>
  sum(rowWeight ? where(t.valid, rowWeight, 0) : cast(t.valid, like.dtype));

function reduceRows(rows: Node, reduction: Reduction, by: () => Node): Node {
  if (reduction === "none") return rows;
  return reduction === "sum" ? sum(rows) : div(sum(rows), by());
}

/** What each row's loss is multiplied by on its way to the output, in the gradient: [N]. */
function rowGradient(gradient: Node, t: Targets, reduction: Reduction, by: () => Node): Node {
  const g = reduction === "mean" ? div(gradient, by()) : gradient;
  return where(t.valid, expandTo(g, t.index.shape), 0);
}

function checkClasses(name: string, what: string, inputs: readonly Node[], a: NllAttrs): Spec {
  const [x, targets, weight] = inputs;
  expectFloat(name, what, x);
  expectRank(name, what, x, 2, "[rows, classes]");
  expectIndex(name, "the targets", targets);
  expectShape(name, "the targets", targets, [x.shape[0]], `one class index a row of ${showShape(x.shape)}`);
  if (a.weight) {
    expectFloat(name, "the class weights", weight);
    expectShape(name, "the class weights", weight, [x.shape[1]], "one a class");
  }
  checkReduction(name, a.reduction);
  return { shape: a.reduction === "none" ? [x.shape[0]] : [], dtype: x.dtype };
}

function checkSmoothing(name: string, { labelSmoothing }: { readonly labelSmoothing: number }): void {
  if (!(labelSmoothing >= 0 && labelSmoothing <= 1))
    throw new ShapeError(`${name}: labelSmoothing must lie in 0 … 1, got ${labelSmoothing}`);
}

/** The loss of every row of logits [N, C], wide; 0 where the row does not count. */
export function crossEntropyRows(
  logits: Node,
  t: Targets,
  weight: Node | null,
  rowWeight: Node | null,
  labelSmoothing: number,
): Node {
  const x = wide(logits);
  const classes = x.shape[1];
  const shifted = sub(x, reduceMax(x, 1, { keepdim: true }));
  const total = log(sum(exp(shifted), 1)); // log Σ e^shifted, [N]
  let rows = sub(total, pick(shifted, t.index));
  if (rowWeight) rows = mul(rows, rowWeight);
  if (labelSmoothing > 0) {
    const smooth = weight
      ? sub(mul(total, sum(weight)), sum(mul(shifted, weight), 1))
      : sub(mul(total, classes), sum(shifted, 1));
    rows = add(mul(rows, 1 - labelSmoothing), mul(smooth, labelSmoothing / classes));
  }
  return where(t.valid, rows, 0);
}

/** The gradient of `crossEntropyRows` for the row gradients `g` [N], wide: one formula over the logits. */
export function crossEntropyRowsGradient(
  logits: Node,
  t: Targets,
  weight: Node | null,
  rowWeight: Node | null,
  labelSmoothing: number,
  g: Node,
): Node {
  const x = wide(logits);
  const classes = x.shape[1];
  const e = exp(sub(x, reduceMax(x, 1, { keepdim: true })));
  const p = div(e, sum(e, 1, { keepdim: true }));
  const here = eq(iota(x.shape, 1), expandTo(unsqueeze(t.index, 1), x.shape));
  // a gradient may be asked for without the loss: this gather is what notices a target out of range
  const seen = rowWeight ?? pick(full(x.shape, 1, x.dtype), t.index);
  let d = mul(where(here, sub(p, 1), p), unsqueeze(mul(mul(g, seen), 1 - labelSmoothing), 1));
  if (labelSmoothing > 0) {
    const smooth = weight ? sub(mul(p, sum(weight)), weight) : sub(mul(p, classes), 1);
    d = add(d, mul(smooth, unsqueeze(mul(g, labelSmoothing / classes), 1)));
  }
  return d;
}

/** The first inputs of `crossEntropy` and of its gradient: logits, targets, and if they are given the weights of classes and rows, wide. */
function classInputs([logits, targets, classWeight]: readonly Node[], a: CrossEntropyAttrs) {
  const t = targetsOf(targets, a.ignoreIndex);
  const weight = a.weight ? cast(classWeight, wide(logits).dtype) : null;
  return { logits, t, weight, rowWeight: weight && take(weight, 0, t.index) };
}

const crossEntropyRow = registerOperation({
  group: "composite",
  name: "crossEntropy",
  infer: (inputs, attrs) => {
    const a = attrsOf<CrossEntropyAttrs>(attrs);
    checkSmoothing("crossEntropy", a);
    return checkClasses("crossEntropy", "the logits", inputs, a);
  },
  decompose: (inputs, attrs) => {
    const a = attrsOf<CrossEntropyAttrs>(attrs);
    const { logits, t, weight, rowWeight } = classInputs(inputs, a);
    const rows = crossEntropyRows(logits, t, weight, rowWeight, a.labelSmoothing);
    return [
      cast(
        reduceRows(rows, a.reduction, () => divisor(t, rowWeight, rows)),
        logits.dtype,
      ),
    ];
  },
});

/** (logits, targets, [class weights], gradient of the loss) → gradient of the logits: one node to record in every step. */
const crossEntropyGradientRow = registerOperation({
  group: "composite",
  name: "crossEntropyGradient",
  infer: (inputs, attrs) => {
    const name = "crossEntropyGradient";
    const a = attrsOf<CrossEntropyAttrs>(attrs);
    checkSmoothing(name, a);
    const loss = checkClasses(name, "the logits", inputs, a);
    expectShape(name, "the loss gradient", inputs[inputs.length - 1], loss.shape, "the loss's shape");
    return inputs[0];
  },
  decompose: (inputs, attrs) => {
    const a = attrsOf<CrossEntropyAttrs>(attrs);
    const { logits, t, weight, rowWeight } = classInputs(inputs, a);
    const gradient = wide(inputs[inputs.length - 1]);
    const g = rowGradient(gradient, t, a.reduction, () => divisor(t, rowWeight, gradient));
    return [cast(crossEntropyRowsGradient(logits, t, weight, rowWeight, a.labelSmoothing, g), logits.dtype)];
  },
});

/** The gradient of `crossEntropy` with respect to the logits, from its inputs and the output's gradient. */
export const crossEntropyGradient = (inputs: readonly Node[], attrs: Attrs, gradient: Node): Node =>
  make(crossEntropyGradientRow, [...inputs, gradient], attrs);

const nllRow = registerOperation({
  group: "composite",
  name: "nllLoss",
  infer: (inputs, attrs) => checkClasses("nllLoss", "the log-probabilities", inputs, attrsOf<NllAttrs>(attrs)),
  decompose: (inputs, attrs) => {
    const a = attrsOf<NllAttrs>(attrs);
    const [x, targets] = inputs;
    const t = targetsOf(targets, a.ignoreIndex);
    let rows = neg(wide(pick(x, t.index)));
    const rowWeight = a.weight ? take(cast(inputs[2], rows.dtype), 0, t.index) : null;
    if (rowWeight) rows = mul(rows, rowWeight);
    rows = where(t.valid, rows, 0);
    return [
      cast(
        reduceRows(rows, a.reduction, () => divisor(t, rowWeight, rows)),
        x.dtype,
      ),
    ];
  },
});

/** The gradient of `nllLoss` with respect to the log-probabilities. */
export function nllLossGradient(inputs: readonly Node[], attrs: Attrs, gradient: Node): Node {
  const a = attrsOf<NllAttrs>(attrs);
  const [x, targets] = inputs;
  const t = targetsOf(targets, a.ignoreIndex);
  const wideGradient = wide(gradient);
  const ones = full(x.shape, 1, wideGradient.dtype);
  const rowWeight = a.weight ? take(cast(inputs[2], wideGradient.dtype), 0, t.index) : null;
  const g = rowGradient(wideGradient, t, a.reduction, () => divisor(t, rowWeight, wideGradient));
  const each = neg(mul(g, rowWeight ?? pick(ones, t.index)));
  const here = eq(iota(x.shape, 1), expandTo(unsqueeze(t.index, 1), x.shape));
  return cast(where(here, expandTo(unsqueeze(each, 1), x.shape), 0), x.dtype);
}

export interface ClassOptions {
  /** One weight a class [C]. */
  readonly weight?: Node | null;
  /** Rows with this target do not count. */
  readonly ignoreIndex?: number;
  readonly reduction?: Reduction;
}

/** Any integer type will do for targets; rows of the table take int32. */
const asTargets = (name: string, targets: Node): Node => {
  if (targets.dtype !== "uint8" && targets.dtype !== "uint32") return targets;
  if (targets.dtype === "uint32") expectIndex(name, "the targets", targets);
  return cast(targets, "int32");
};

/**
 * −log softmax(logits)[target] of logits [N, C] and int32 targets [N]; with `labelSmoothing` s, (1 − s) of it and
 * s / C of the sum over all classes (torch.nn.functional.cross_entropy). IndexError at run time for a target outside
 * 0 … C−1.
 */
export function crossEntropy(
  logits: Node,
  targets: Node,
  options: ClassOptions & { readonly labelSmoothing?: number } = {},
): Node {
  const { weight = null, ignoreIndex = -100, reduction = "mean", labelSmoothing = 0 } = options;
  const inputs = [logits, asTargets("crossEntropy", targets), ...(weight ? [weight] : [])];
  return make(crossEntropyRow, inputs, { ignoreIndex, reduction, labelSmoothing, weight: weight !== null });
}

/** −x[target] of log-probabilities x [N, C] (torch.nn.functional.nll_loss). */
export function nllLoss(x: Node, targets: Node, options: ClassOptions = {}): Node {
  const { weight = null, ignoreIndex = -100, reduction = "mean" } = options;
  const inputs = [x, asTargets("nllLoss", targets), ...(weight ? [weight] : [])];
  return make(nllRow, inputs, { ignoreIndex, reduction, weight: weight !== null });
}

// ---- elementwise ----------------------------------------------------------------------------------------------------------

export type ElementLossAttrs = { readonly reduction: Reduction };
export type BceAttrs = ElementLossAttrs & { readonly weight: boolean; readonly posWeight: boolean };

function checkElements(name: string, inputs: readonly Node[], reduction: Reduction): Spec {
  const x = inputs[0];
  expectFloat(name, "the input", x);
  for (const other of inputs.slice(1)) {
    expectShape(name, "the target (or weight)", other, x.shape, "the input's shape");
    if (other.dtype !== x.dtype)
      throw new DTypeError(
        `${name}: operands differ in dtype: ${x.dtype} and ${other.dtype}; cast one with .to(dtype)`,
      );
  }
  checkReduction(name, reduction);
  return { shape: reduction === "none" ? x.shape : [], dtype: x.dtype };
}

const reduceElements = (x: Node, reduction: Reduction): Node =>
  reduction === "none" ? x : reduction === "sum" ? sum(x) : mean(x);

const mseRow = registerOperation({
  group: "composite",
  name: "mseLoss",
  infer: (inputs, attrs) => checkElements("mseLoss", inputs, attrsOf<ElementLossAttrs>(attrs).reduction),
  decompose: ([x, target], attrs) => {
    const d = sub(wide(x), wide(target));
    return [cast(reduceElements(mul(d, d), attrsOf<ElementLossAttrs>(attrs).reduction), x.dtype)];
  },
});

/** The optional operands of the binary cross-entropy. */
export function bceExtras(inputs: readonly Node[], a: BceAttrs): { weight: Node | null; posWeight: Node | null } {
  return {
    weight: a.weight ? wide(inputs[2]) : null,
    posWeight: a.posWeight ? wide(inputs[a.weight ? 3 : 2]) : null,
  };
}

/** log(1 + e^−x), without overflow. */
export const softplusOfNegative = (x: Node): Node => add(log1p(exp(neg(abs(x)))), maximum(neg(x), 0));

const bceRow = registerOperation({
  group: "composite",
  name: "binaryCrossEntropyWithLogits",
  infer: (inputs, attrs) => checkElements("binaryCrossEntropyWithLogits", inputs, attrsOf<BceAttrs>(attrs).reduction),
  decompose: (inputs, attrs) => {
    const a = attrsOf<BceAttrs>(attrs);
    const [x, t] = [wide(inputs[0]), wide(inputs[1])];
    const { weight, posWeight } = bceExtras(inputs, a);
    let s = softplusOfNegative(x);
    if (posWeight) s = mul(s, add(mul(sub(posWeight, 1), t), 1));
    let loss = add(mul(sub(1, t), x), s);
    if (weight) loss = mul(loss, weight);
    return [cast(reduceElements(loss, a.reduction), inputs[0].dtype)];
  },
});

/** (x − target)² (torch.nn.functional.mse_loss). */
export function mseLoss(x: Node, target: Node, reduction: Reduction = "mean"): Node {
  const [a, b] = operands("mseLoss", x, target);
  return make(mseRow, [toFloat(a), toFloat(b)], { reduction });
}

/**
 * −[p·t·log σ(x) + (1 − t)·log(1 − σ(x))] · weight, without overflow; `weight` and `posWeight` grow to x's shape
 * (torch.nn.functional.binary_cross_entropy_with_logits).
 */
export function binaryCrossEntropyWithLogits(
  x: Node,
  target: Node,
  options: { readonly weight?: Node | null; readonly posWeight?: Node | null; readonly reduction?: Reduction } = {},
): Node {
  const { weight = null, posWeight = null, reduction = "mean" } = options;
  const extras = [weight, posWeight].filter((n) => n !== null).map((n) => expandTo(cast(n, x.dtype), x.shape));
  return make(bceRow, [x, cast(target, x.dtype), ...extras], {
    reduction,
    weight: weight !== null,
    posWeight: posWeight !== null,
  });
}
