/**
 * A language model's head and its loss in one: the logits hidden · weightᵀ are made and used a chunk of rows at a
 * time and never exist as a whole, neither forwards nor in the gradient, which makes them again.
 * (The idea: Wijmans et al. 2024, Cut Your Losses.)
 */
import { accumulator, type DType } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { make, type Node, registerOperation, type Spec } from "../node.ts";
import { add, cast, concat, contract, div, expandTo, narrow, outputs, permute, sum, where } from "../ops.ts";
import { attrsOf, expectFloat, expectIndex, expectRank, expectShape, wide } from "./check.ts";
import {
  checkReduction,
  crossEntropyRows,
  crossEntropyRowsGradient,
  type Reduction,
  type Targets,
  targetsOf,
} from "./loss.ts";

export type LinearCrossEntropyAttrs = {
  readonly ignoreIndex: number;
  readonly labelSmoothing: number;
  readonly reduction: Reduction;
  /** Rows whose logits exist at one time. */
  readonly chunk: number;
  /** Whether the loss of 16-bit operands is float32, as it is computed, rather than rounded to their type. */
  readonly wide: boolean;
};

function check(name: string, [hidden, weight, targets]: readonly Node[], a: LinearCrossEntropyAttrs): Spec {
  expectFloat(name, "the hidden states", hidden);
  expectRank(name, "the hidden states", hidden, 2, "[rows, width]");
  expectRank(name, "the weight", weight, 2, "[classes, width]");
  if (weight.dtype !== hidden.dtype)
    throw new DTypeError(`${name}: hidden is ${hidden.dtype}, weight ${weight.dtype}; cast one with .to(dtype)`);
  if (weight.shape[1] !== hidden.shape[1])
    throw new ShapeError(
      `${name}: hidden ${showShape(hidden.shape)} and weight ${showShape(weight.shape)} differ in width: ${hidden.shape[1]} ≠ ${weight.shape[1]}`,
    );
  expectIndex(name, "the targets", targets);
  expectShape(name, "the targets", targets, [hidden.shape[0]], "one class index a row");
  checkReduction(name, a.reduction);
  if (!Number.isInteger(a.chunk) || a.chunk < 1)
    throw new ShapeError(`${name}: chunk must be a whole number of rows ≥ 1, got ${a.chunk}`);
  return { shape: a.reduction === "none" ? [hidden.shape[0]] : [], dtype: lossDType(hidden, a) };
}

const lossDType = ({ dtype }: Node, { wide }: LinearCrossEntropyAttrs): DType => (wide ? accumulator(dtype) : dtype);

interface Chunk {
  readonly hidden: Node;
  readonly logits: Node;
  readonly targets: Targets;
  readonly start: number;
  readonly size: number;
}

function chunksOf(hidden: Node, weight: Node, t: Targets, chunk: number): Chunk[] {
  const rows = hidden.shape[0];
  const turned = permute(weight, [1, 0]);
  const count = Math.ceil(rows / chunk);
  // as equal as whole rows allow: a last chunk of few rows would cost another pass over the weight
  const each = Math.ceil(rows / count);
  return Array.from({ length: Math.ceil(rows / each) }, (_, i) => {
    const start = i * each;
    const size = Math.min(each, rows - start);
    const part = narrow(hidden, 0, start, size);
    const targets = { valid: narrow(t.valid, 0, start, size), index: narrow(t.index, 0, start, size) };
    return { hidden: part, logits: contract(part, turned), targets, start, size };
  });
}

const forwardRow = registerOperation({
  group: "composite",
  name: "linearCrossEntropy",
  infer: (inputs, attrs) => check("linearCrossEntropy", inputs, attrsOf<LinearCrossEntropyAttrs>(attrs)),
  decompose: ([hidden, weight, targets], attrs) => {
    const a = attrsOf<LinearCrossEntropyAttrs>(attrs);
    const t = targetsOf(targets, a.ignoreIndex);
    const parts = chunksOf(hidden, weight, t, a.chunk).map((c) =>
      crossEntropyRows(c.logits, c.targets, null, null, a.labelSmoothing),
    );
    // each chunk's sum by itself: its logits can go then
    const total =
      a.reduction === "none" ? concat(parts, 0) : parts.map((part) => sum(part)).reduce((x, y) => add(x, y));
    return [cast(a.reduction === "mean" ? div(total, sum(cast(t.valid, total.dtype))) : total, lossDType(hidden, a))];
  },
});

const backwardRow = registerOperation({
  group: "composite",
  name: "linearCrossEntropyBackward",
  infer: (inputs, attrs) => {
    const name = "linearCrossEntropyBackward";
    const loss = check(name, inputs, attrsOf<LinearCrossEntropyAttrs>(attrs));
    const [hidden, weight, , gradient] = inputs;
    expectShape(name, "the loss gradient", gradient, loss.shape, "the loss's shape");
    return [
      { shape: hidden.shape, dtype: hidden.dtype },
      { shape: weight.shape, dtype: weight.dtype },
    ];
  },
  decompose: ([hidden, weight, targets, gradient], attrs) => {
    const a = attrsOf<LinearCrossEntropyAttrs>(attrs);
    const t = targetsOf(targets, a.ignoreIndex);
    let g = wide(gradient);
    if (a.reduction === "mean") g = div(g, sum(cast(t.valid, g.dtype)));
    const rows = where(t.valid, expandTo(g, targets.shape), 0);
    const hiddenParts: Node[] = [];
    let weightGradient: Node | null = null;
    for (const c of chunksOf(hidden, weight, t, a.chunk)) {
      const each = narrow(rows, 0, c.start, c.size);
      const d = cast(crossEntropyRowsGradient(c.logits, c.targets, null, null, a.labelSmoothing, each), hidden.dtype);
      hiddenParts.push(contract(d, weight));
      const part = wide(contract(permute(d, [1, 0]), c.hidden));
      weightGradient = weightGradient ? add(weightGradient, part) : part;
    }
    return [concat(hiddenParts, 0), cast(weightGradient as Node, weight.dtype)];
  },
});

/**
 * Logits of about so many elements exist at one time (256 MiB of float32): each chunk reads all of the weight. WebGPU binds 128 MiB at the
 * most unless more is asked for.
 */
const logitsAtOnce = (device: string): number => (device === "webgpu" ? 2 ** 24 : 2 ** 26);

/**
 * crossEntropy(hidden · weightᵀ, targets) of hidden [N, D], weight [V, D], int32 targets [N], without the logits
 * [N, V] ever existing as a whole.
 */
export function linearCrossEntropy(
  hidden: Node,
  weight: Node,
  targets: Node,
  options: {
    readonly ignoreIndex?: number;
    readonly labelSmoothing?: number;
    readonly reduction?: Reduction;
    readonly chunk?: number;
    readonly wide?: boolean;
  } = {},
): Node {
  const { ignoreIndex = -100, labelSmoothing = 0, reduction = "mean", wide = false } = options;
  expectRank("linearCrossEntropy", "the weight", weight, 2, "[classes, width]");
  if (hidden.shape[0] === 0)
    throw new ShapeError(`linearCrossEntropy: there are no rows in ${showShape(hidden.shape)}`);
  const chunk = options.chunk ?? Math.max(64, Math.floor(logitsAtOnce(weight.device) / Math.max(1, weight.shape[0])));
  return make(forwardRow, [hidden, weight, targets], { ignoreIndex, labelSmoothing, reduction, chunk, wide });
}

/** The gradients of `linearCrossEntropy` with respect to the hidden states and the weight. */
export function linearCrossEntropyBackward(
  inputs: readonly Node[],
  gradient: Node,
  attrs: LinearCrossEntropyAttrs,
): { dhidden: Node; dweight: Node } {
  const [dhidden, dweight] = outputs(make(backwardRow, [...inputs.slice(0, 3), gradient], attrs));
  return { dhidden, dweight };
}
