/**
 * Recurrent layers over a whole sequence: rnn, lstm and gru, one layer in one direction each, and their gradients. The
 * products with the inputs are one product before the loop, the gradients of the weights are products behind it; only
 * h · Whhᵀ is inside. Several layers and directions are put together in `nn/`.
 */
import { accumulator, type DType } from "../../core/dtype.ts";
import { ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { loop } from "../loop.ts";
import { type Attrs, make, type Node, type Operation, registerOperation, type Spec } from "../node.ts";
import {
  add,
  cast,
  concat,
  contract,
  full,
  le,
  maximum,
  mul,
  narrow,
  outputs,
  permute,
  reshape,
  sub,
  sum,
  tanh,
  unsqueeze,
  where,
} from "../ops.ts";
import { sigmoid } from "./activation.ts";
import { attrsOf, expectDType, expectFloat, expectRank, expectShape, wide } from "./check.ts";

export type CellName = "rnn" | "lstm" | "gru";

export type RecurrentAttrs = {
  /** Whether the inputs end in two biases. */
  readonly bias: boolean;
  /** From the last step to the first. */
  readonly reverse: boolean;
  /** rnn only. */
  readonly nonlinearity: "tanh" | "relu";
};

/** Gradients of one step. */
interface StepGradient {
  /** Of the gates, as the inputs' product and as the state's product gave them. */
  readonly input: readonly Node[];
  readonly inner: readonly Node[];
  /** Of the state before, as far as it does not go through the product; null: nothing. */
  readonly state: Node | null;
  /** Of the cell before. */
  readonly cell: readonly Node[];
}

interface Cell {
  readonly gates: number;
  /** h, and for the lstm c. */
  readonly carries: number;
  /** Whether the second bias belongs to the product with h. */
  readonly innerBias: boolean;
  /** How many values [batch, hidden] of each step the gradient needs. */
  readonly saved: number;
  readonly step: (
    x: readonly Node[],
    h: readonly Node[],
    carries: readonly Node[],
    a: RecurrentAttrs,
  ) => { readonly carries: readonly Node[]; readonly saved: readonly Node[] };
  /** `flow`: gradients of h and c behind the step. `before`: h and c before it. */
  readonly back: (
    flow: readonly Node[],
    y: Node,
    saved: readonly Node[],
    before: readonly Node[],
    a: RecurrentAttrs,
  ) => StepGradient;
}

/** x · (1 − x), and 1 − x². */
const sigmoidSlope = (s: Node): Node => mul(s, sub(1, s));
const tanhSlope = (t: Node): Node => sub(1, mul(t, t));

/** The gates are in PyTorch's order: i f g o of the lstm (Hochreiter & Schmidhuber 1997), r z n of the gru (Cho et al. 2014). */
const cells: Readonly<Record<CellName, Cell>> = {
  rnn: {
    gates: 1,
    carries: 1,
    innerBias: false,
    saved: 0,
    step: ([x], [h], _, { nonlinearity }) => {
      const sum = add(x, h);
      return { carries: [nonlinearity === "relu" ? maximum(sum, 0) : tanh(sum)], saved: [] };
    },
    back: ([dh], y, _saved, _before, { nonlinearity }) => {
      const d = nonlinearity === "relu" ? where(le(y, 0), 0, dh) : mul(dh, tanhSlope(y));
      return { input: [d], inner: [d], state: null, cell: [] };
    },
  },
  lstm: {
    gates: 4,
    carries: 2,
    innerBias: false,
    saved: 5,
    step: (x, h, [, before]) => {
      const [i, f, g, o] = x.map((part, k) => (k === 2 ? tanh : sigmoid)(add(part, h[k])));
      const c = add(mul(f, before), mul(i, g));
      return { carries: [mul(o, tanh(c)), c], saved: [i, f, g, o, c] };
    },
    back: ([dh, dcBehind], _, [i, f, g, o, c], [, before]) => {
      const t = tanh(c);
      const dc = add(dcBehind, mul(mul(dh, o), tanhSlope(t)));
      const gates = [
        mul(mul(dc, g), sigmoidSlope(i)),
        mul(mul(dc, before), sigmoidSlope(f)),
        mul(mul(dc, i), tanhSlope(g)),
        mul(mul(dh, t), sigmoidSlope(o)),
      ];
      return { input: gates, inner: gates, state: null, cell: [mul(dc, f)] };
    },
  },
  gru: {
    gates: 3,
    carries: 1,
    innerBias: true,
    saved: 4,
    step: (x, h, [before]) => {
      const [r, z] = [sigmoid(add(x[0], h[0])), sigmoid(add(x[1], h[1]))];
      const n = tanh(add(x[2], mul(r, h[2])));
      return { carries: [add(n, mul(z, sub(before, n)))], saved: [r, z, n, h[2]] };
    },
    back: ([dh], _, [r, z, n, inner], [before]) => {
      const dn = mul(mul(dh, sub(1, z)), tanhSlope(n));
      const dz = mul(mul(dh, sub(before, n)), sigmoidSlope(z));
      const dr = mul(mul(dn, inner), sigmoidSlope(r));
      return { input: [dr, dz, dn], inner: [dr, dz, mul(dn, r)], state: mul(dh, z), cell: [] };
    },
  },
};

export const gatesOf = (name: CellName): number => cells[name].gates;
export const carriesOf = (name: CellName): number => cells[name].carries;

/** How many inputs the forward operation has: the sequence, the first states, two weights, the biases. */
const inputsOf = (name: CellName, { bias }: RecurrentAttrs): number => 3 + carriesOf(name) + (bias ? 2 : 0);

/** [batch, parts · width] as its parts. */
const split = (x: Node, parts: number): Node[] => {
  const width = x.shape[1] / parts;
  return Array.from({ length: parts }, (_, i) => narrow(x, 1, i * width, width));
};

interface Sizes {
  readonly time: number;
  readonly batch: number;
  readonly width: number;
  readonly hidden: number;
}

/** Inputs: x [time, batch, width], h and c [batch, hidden], Wih [gates · hidden, width], Whh [gates · hidden, hidden], biases. */
function check(name: CellName, inputs: readonly Node[], { bias }: RecurrentAttrs): Sizes {
  const { carries, gates } = cells[name];
  const [x] = inputs;
  const [wih, whh] = inputs.slice(1 + carries);
  expectFloat(name, "the input", x);
  expectRank(name, "the input", x, 3, "[time, batch, width]");
  expectRank(name, "the weight of the input", wih, 2, "[gates · hidden, width]");
  const [time, batch, width] = x.shape;
  const hidden = wih.shape[0] / gates;
  if (wih.shape[1] !== width)
    throw new ShapeError(
      `${name}: the input ${showShape(x.shape)} has ${width} features in its last axis, the weight ${showShape(wih.shape)} takes ${wih.shape[1]}`,
    );
  for (const h of inputs.slice(1, 1 + carries))
    expectShape(name, "the first state", h, [batch, hidden], "[batch, hidden]");
  expectShape(name, "the weight of the state", whh, [gates * hidden, hidden], "[gates · hidden, hidden]");
  if (bias)
    for (const b of inputs.slice(3 + carries))
      expectShape(name, "a bias", b, [gates * hidden], "one a feature of a gate");
  for (const other of inputs.slice(1)) expectDType(name, "a state or a weight", other, x.dtype, "the input");
  return { time, batch, width, hidden };
}

const same = (x: Node): Spec => ({ shape: x.shape, dtype: x.dtype });

/** Outputs: y [time, batch, hidden], the last h (and c), then what the gradient needs of each step, [time, batch, hidden] each. */
function inferForward(name: CellName, inputs: readonly Node[], attrs: Attrs): Spec[] {
  const { carries, saved } = cells[name];
  const { time, batch, hidden } = check(name, inputs, attrsOf<RecurrentAttrs>(attrs));
  const { dtype } = inputs[0];
  const step = [time, batch, hidden];
  return [
    { shape: step, dtype },
    ...inputs.slice(1, 1 + carries).map(same),
    ...Array.from({ length: saved }, () => ({ shape: step, dtype: accumulator(dtype) as DType })),
  ];
}

/** [time, batch, n] as [time · batch, n]. */
const tall = (x: Node): Node => reshape(x, [x.shape[0] * x.shape[1], x.shape[2]]);
const turned = (w: Node): Node => permute(w, [1, 0]);

function decomposeForward(name: CellName, inputs: readonly Node[], attrs: Attrs): Node[] {
  const cell = cells[name];
  const a = attrsOf<RecurrentAttrs>(attrs);
  const { time, batch, hidden } = check(name, inputs, a);
  const { dtype } = inputs[0];
  const [x, ...others] = inputs.map(wide);
  const states = others.slice(0, cell.carries);
  const [wih, whh, bih, bhh] = others.slice(cell.carries);
  let projected = contract(tall(x), turned(wih));
  if (a.bias) projected = add(projected, cell.innerBias ? bih : add(bih, bhh));
  const { carries, outputs: steps } = loop(
    (before, [each]) => {
      const product = contract(before[0], turned(whh));
      const inner = a.bias && cell.innerBias ? add(product, bhh) : product;
      const made = cell.step(split(each, cell.gates), split(inner, cell.gates), before, a);
      return { carries: made.carries, outputs: [made.carries[0], ...made.saved] };
    },
    {
      carries: states,
      sequences: [reshape(projected, [time, batch, cell.gates * hidden])],
      count: time,
      reverse: a.reverse,
    },
  );
  const [y, ...saved] = steps;
  return [cast(y, dtype), ...carries.map((h) => cast(h, dtype)), ...saved];
}

/** `y`, `h`, `c`: whether a gradient of the sequence, of the last h, of the last c comes in. */
export type RecurrentBackwardAttrs = RecurrentAttrs & {
  readonly y: boolean;
  readonly h: boolean;
  readonly c: boolean;
};

/** Inputs: the forward's, y and what was saved, the gradients that there are. Outputs: a gradient for each of the forward's. */
function decomposeBackward(name: CellName, all: readonly Node[], attrs: Attrs): Node[] {
  const cell = cells[name];
  const a = attrsOf<RecurrentBackwardAttrs>(attrs);
  const numInputs = inputsOf(name, a);
  const inputs = all.slice(0, numInputs);
  const { time, batch, hidden } = check(name, inputs, a);
  const { dtype } = inputs[0];
  const wides = all.map(wide);
  const x = wides[0];
  const states = wides.slice(1, 1 + cell.carries);
  const [wih, whh] = wides.slice(1 + cell.carries);
  const y = wides[numInputs];
  const saved = wides.slice(numInputs + 1, numInputs + 1 + cell.saved);
  const grads = wides.slice(numInputs + 1 + cell.saved);
  const gy = a.y ? grads.shift() : undefined;
  const none = full([batch, hidden], 0, x.dtype);
  const flow = [a.h, a.c].slice(0, cell.carries).map((given) => (given ? (grads.shift() as Node) : none));
  /** What each step found: the values behind the step before, and the first ones. */
  const before = [y, ...saved.slice(-1)].slice(0, cell.carries).map((steps, i) => {
    const first = unsqueeze(states[i], 0);
    if (time === 0) return steps;
    return a.reverse
      ? concat([narrow(steps, 0, 1, time - 1), first], 0)
      : concat([first, narrow(steps, 0, 0, time - 1)], 0);
  });
  const separate = cell.innerBias;
  const result = loop(
    (behind, elements) => {
      const [yEach, ...rest] = elements;
      const savedEach = rest.slice(0, cell.saved);
      const beforeEach = rest.slice(cell.saved, cell.saved + cell.carries);
      const gEach = rest[cell.saved + cell.carries];
      const dh = gEach ? add(behind[0], gEach) : behind[0];
      const d = cell.back([dh, ...behind.slice(1)], yEach, savedEach, beforeEach, a);
      const inner = concat(d.inner, 1);
      const through = contract(inner, whh);
      return {
        carries: [d.state ? add(d.state, through) : through, ...d.cell],
        outputs: separate ? [concat(d.input, 1), inner] : [inner],
      };
    },
    {
      carries: flow,
      sequences: [y, ...saved, ...before, ...(gy ? [gy] : [])],
      count: time,
      reverse: !a.reverse,
    },
  );
  const dInput = tall(result.outputs[0]);
  const dInner = tall(result.outputs[separate ? 1 : 0]);
  const out = [
    reshape(contract(dInput, wih), x.shape),
    ...result.carries,
    contract(turned(dInput), tall(x)),
    contract(turned(dInner), tall(before[0])),
  ];
  if (a.bias) out.push(sum(dInput, 0), sum(dInner, 0));
  return out.map((d) => cast(d, dtype));
}

const forwardRow = (name: CellName): Operation =>
  registerOperation({
    group: "composite",
    name,
    infer: (inputs, attrs) => inferForward(name, inputs, attrs),
    decompose: (inputs, attrs) => decomposeForward(name, inputs, attrs),
  });

const backwardRow = (name: CellName): Operation =>
  registerOperation({
    group: "composite",
    name: `${name}Backward`,
    infer: (all, attrs) => all.slice(0, inputsOf(name, attrsOf<RecurrentAttrs>(attrs))).map(same),
    decompose: (all, attrs) => decomposeBackward(name, all, attrs),
  });

const rows: Readonly<Record<CellName, Operation>> = {
  rnn: forwardRow("rnn"),
  lstm: forwardRow("lstm"),
  gru: forwardRow("gru"),
};
const backwardRows: Readonly<Record<CellName, Operation>> = {
  rnn: backwardRow("rnn"),
  lstm: backwardRow("lstm"),
  gru: backwardRow("gru"),
};

export interface RecurrentInputs {
  /** [time, batch, width] */
  readonly x: Node;
  /** h, and for the lstm c: [batch, hidden] each. */
  readonly states: readonly Node[];
  /** [gates · hidden, width] and [gates · hidden, hidden]. */
  readonly weights: readonly [Node, Node];
  /** [gates · hidden] each. */
  readonly biases?: readonly [Node, Node] | null | undefined;
  readonly reverse?: boolean | undefined;
  readonly nonlinearity?: "tanh" | "relu" | undefined;
}

/** One recurrent layer in one direction: y [time, batch, hidden] and the last states, [batch, hidden] each. */
export function recurrent(name: CellName, inputs: RecurrentInputs): { y: Node; states: Node[] } {
  const { x, states, weights, biases, reverse = false, nonlinearity = "tanh" } = inputs;
  const attrs: RecurrentAttrs = { bias: Boolean(biases), reverse, nonlinearity };
  const [y, ...rest] = outputs(make(rows[name], [x, ...states, ...weights, ...(biases ?? [])], attrs));
  return { y, states: rest.slice(0, cells[name].carries) };
}

/** A gradient for each input of a row of that name, from those of y, h and c; null where there is none. */
export function recurrentBackward(name: CellName, node: Node, gradients: readonly (Node | null)[]): Node[] {
  const { carries } = cells[name];
  const [y, h, c = null] = gradients.slice(0, 1 + carries);
  const [made, ...rest] = outputs(node);
  const attrs: RecurrentBackwardAttrs = {
    ...attrsOf<RecurrentAttrs>(node.attrs),
    y: y !== null,
    h: h !== null,
    c: c !== null,
  };
  const given = [y, h, c].filter((g) => g !== null);
  return outputs(make(backwardRows[name], [...node.inputs, made, ...rest.slice(carries), ...given], attrs));
}
