/**
 * The walk from outputs back to inputs: applies the rules of the table and adds up what meets at a node.
 * Gradients are recorded as nodes of the same graph; nothing is computed here. The walk goes against the order of
 * recording, so every sum has one order.
 */
import { AutogradError, ShapeError } from "../core/errors.ts";
import { sameShape, showShape, sizeOf } from "../core/shape.ts";
import { type Node, type Spec, setGradEnabled, topologicalOrder } from "../graph/node.ts";
import { onesLike } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { total } from "./accumulate.ts";
import { resetRegions } from "./region.ts";
import { type Rule, ruleOf, savesValues } from "./table.ts";

export interface GradientOptions {
  /** Record the gradient so that it can be differentiated again. */
  readonly createGraph?: boolean;
  /** Give null for an input that the outputs do not depend on, instead of an error. */
  readonly allowUnused?: boolean;
}

/** Where a walk goes no further: data, what a tensor declared its leaf, and nodes of `stop`. */
const endsAt = (node: Node, stop: ReadonlySet<Node> | null): boolean =>
  node.owner !== null || node.operation.group === "leaf" || stop?.has(node) === true;

/** The first input through which a gradient can flow: the earlier version of a state has no part in the later one. */
const firstSource = (node: Node): number =>
  node.operation === p.assign ? 1 : ruleOf(node.operation) === null ? node.inputs.length : 0;

/** Counts walks. Nodes carry the number of the walk that last met them, so that a walk needs no sets. */
let clock = 0;

const byNumber: (Node | null)[] = [];

/** Sorts by the time of recording, in place; without comparisons, as the numbers of one step's nodes lie close together. */
function sortByTime(nodes: Node[]): Node[] {
  const n = nodes.length;
  let low = Infinity;
  let high = 0;
  for (let i = 0; i < n; i++) {
    const { id } = nodes[i];
    if (id < low) low = id;
    if (id > high) high = id;
  }
  if (high - low > 16 * n + 64) return nodes.sort((x, y) => x.id - y.id);
  while (byNumber.length <= high - low) byNumber.push(null);
  for (let i = 0; i < n; i++) byNumber[nodes[i].id - low] = nodes[i];
  for (let i = 0, k = 0; k < n; i++) {
    const node = byNumber[i];
    if (node === null) continue;
    nodes[k++] = node;
    byNumber[i] = null;
  }
  return nodes;
}

/**
 * Nodes that require a gradient and that `roots` depend on, every node behind its sources: first those that gradients end
 * at, then the others, both in the order of recording where that is an order.
 */
export function reachable(roots: readonly Node[], stop: ReadonlySet<Node> | null = null): Node[] {
  const walk = ++clock;
  const ends: Node[] = [];
  const inner: Node[] = [];
  for (let i = 0; i < roots.length; i++) meet(roots[i], walk, stop, ends, inner);
  for (let k = 0; k < inner.length; k++) {
    const node = inner[k];
    const { inputs } = node;
    if (node.released && inputs.length === 0) throw freed(node);
    for (let i = firstSource(node); i < inputs.length; i++) meet(inputs[i], walk, stop, ends, inner);
  }
  sortByTime(ends);
  sortByTime(inner);
  for (let k = 0; k < inner.length; k++) {
    const node = inner[k];
    const { inputs } = node;
    for (let i = firstSource(node); i < inputs.length; i++) {
      const input = inputs[i];
      // execution may have put a younger node with the same value in the place of a source
      if (input.walk === walk && input.place < 0)
        return topologicalOrder(roots, (x) => x.walk !== walk || endsAt(x, stop)).filter((x) => x.walk === walk);
    }
    node.place = 0;
    ends.push(node);
  }
  return ends;
}

function meet(node: Node, walk: number, stop: ReadonlySet<Node> | null, ends: Node[], inner: Node[]): void {
  if (!node.requiresGrad || node.walk === walk) return;
  node.walk = walk;
  if (endsAt(node, stop)) {
    node.place = 0;
    ends.push(node);
  } else {
    node.place = -1;
    inner.push(node);
  }
}

/**
 * The leaves that require a gradient and that `outputs` depend on, in the order of recording. `order`: what `reachable` gives
 * for the outputs, where the caller has it.
 */
export function leavesOf(outputs: readonly Node[], order: readonly Node[] = reachable(outputs)): Node[] {
  const leaves: Node[] = [];
  for (let k = 0; k < order.length; k++) {
    const node = order[k];
    if (endsAt(node, null) || !hasSource(node)) leaves.push(node);
  }
  return sortByTime(leaves);
}

function hasSource(node: Node): boolean {
  for (let i = firstSource(node); i < node.inputs.length; i++) if (node.inputs[i].requiresGrad) return true;
  return false;
}

function freed(node: Node): AutogradError {
  return new AutogradError(
    `the graph behind ${node} was freed by an earlier backward pass; pass { retainGraph: true } to the first one to go through it twice`,
  );
}

/** The gradient to start from: what was given, or 1 for an output of one element. */
function seedOf(output: Node, seed: Node | null): Node {
  if (!seed) {
    if (sizeOf(output.shape) !== 1)
      throw new AutogradError(
        `backward: a gradient is created implicitly only for an output of one element, got ${showShape(output.shape)}; reduce it (sum, mean) or pass a gradient of its shape`,
      );
    return onesLike(output);
  }
  if (!sameShape(seed.shape, output.shape))
    throw new ShapeError(
      `backward: the gradient ${showShape(seed.shape)} of an output ${showShape(output.shape)} must have its shape`,
    );
  if (seed.dtype !== output.dtype)
    throw new AutogradError(`backward: the gradient of a ${output.dtype} output is ${seed.dtype}; cast it`);
  return seed;
}

/** The gradients that meet at one node: of its outputs, each a list that `total` adds up. */
type Parts = Node[][];

function give(parts: (Parts | null)[], node: Node, index: number, gradient: Node): void {
  const { place } = node;
  let slots = parts[place];
  if (slots === null) {
    slots = [];
    const n = node.outputs === null ? 1 : node.outputs.length;
    for (let i = 0; i < n; i++) slots.push([]);
    parts[place] = slots;
  }
  slots[index].push(gradient);
}

/** Gives the nodes their places in a walk of its own number. */
function mark(nodes: readonly Node[]): number {
  const walk = ++clock;
  for (let i = 0; i < nodes.length; i++) {
    nodes[i].walk = walk;
    nodes[i].place = i;
  }
  return walk;
}

/** The nodes of `order` that are `inputs` or through which an input is reached; all others' rules need not run. */
function needed(order: readonly Node[], inputs: readonly Node[], stop: ReadonlySet<Node> | null): Node[] {
  const present = mark(order);
  for (let i = 0; i < inputs.length; i++) if (inputs[i].walk === present) inputs[i].place = -1;
  const kept = ++clock;
  const nodes: Node[] = [];
  for (let k = 0; k < order.length; k++) {
    const node = order[k];
    if (node.place >= 0 && (endsAt(node, stop) || !reaches(node, kept))) continue;
    node.walk = kept;
    nodes.push(node);
  }
  return nodes;
}

/** Whether a gradient of the node has a source to go to in that walk. */
function reaches(node: Node, walk: number): boolean {
  const { inputs } = node;
  for (let i = firstSource(node); i < inputs.length; i++) if (inputs[i].walk === walk) return true;
  return false;
}

interface Seed {
  readonly node: Node;
  readonly gradient: Node;
}

/** Applies the rules from `seeds` down to `inputs`; at nodes of `stop` gradients are collected and go no further. */
function walkBack(
  seeds: readonly Seed[],
  inputs: readonly Node[],
  stop: ReadonlySet<Node> | null,
  order: readonly Node[],
): (Node | null)[] {
  const nodes = needed(order, inputs, stop);
  let walk = mark(nodes);
  const parts: (Parts | null)[] = new Array<Parts | null>(nodes.length).fill(null);
  /** The gradient of each node's first output. */
  const found: (Node | null)[] = new Array<Node | null>(nodes.length).fill(null);
  for (let i = 0; i < seeds.length; i++) {
    const { node, gradient } = seeds[i];
    if (node.walk === walk) give(parts, node, 0, gradient);
  }
  for (let k = nodes.length - 1; k >= 0; k--) {
    const slots = parts[k];
    if (slots === null) continue;
    parts[k] = null;
    const node = nodes[k];
    const totals: (Node | null)[] = [];
    for (let i = 0; i < slots.length; i++) totals.push(slots[i].length === 0 ? null : total(slots[i]));
    found[k] = totals[0];
    if (endsAt(node, stop) || !reaches(node, walk)) continue;
    const flow = applyRule(node, totals);
    if (clock !== walk) walk = mark(nodes); // the rule has walked itself
    const sources = node.inputs;
    const index = node.operation === p.output ? (node.attrs["index"] as number) : 0;
    for (let i = 0; i < sources.length; i++) {
      const gradient = flow[i];
      if (gradient === null || gradient === undefined || sources[i].walk !== walk) continue;
      check(node, i, index, gradient);
      give(parts, sources[i], index, gradient);
    }
  }
  const out: (Node | null)[] = [];
  for (let i = 0; i < inputs.length; i++) out.push(inputs[i].walk === walk ? found[inputs[i].place] : null);
  return out;
}

function applyRule(node: Node, totals: readonly (Node | null)[]): readonly (Node | null)[] {
  const rule = ruleOf(node.operation);
  if (!rule)
    throw new AutogradError(
      `"${node.operation.name}" has no gradient rule; add one to autograd/rules (null where it has none)`,
    );
  if (node.released && savesValues(node)) throw freed(node);
  return rule(node, totals);
}

/** A rule's gradient has the shape and dtype of what it is the gradient of. */
function check(node: Node, i: number, index: number, gradient: Node): void {
  const input = node.inputs[i];
  const spec = index === 0 ? input : (input.outputs as readonly Spec[])[index];
  if (gradient.dtype !== spec.dtype || !sameShape(gradient.shape, spec.shape))
    throw new AutogradError(
      `the rule of "${node.operation.name}" gave ${gradient.dtype}${showShape(gradient.shape)} for input ${i}, which is ${spec.dtype}${showShape(spec.shape)}`,
    );
}

/** Runs `record` with or without recording for differentiation, and puts the mode back. */
export function withGrad<T>(enabled: boolean, record: () => T): T {
  const before = setGradEnabled(enabled);
  try {
    return record();
  } finally {
    setGradEnabled(before);
  }
}

/**
 * The gradients of Σ seed · output with respect to each of `inputs` (torch.autograd.grad); a null seed is 1 for an
 * output of one element. AutogradError for an output without a graph, an unused input (unless `allowUnused`), and a
 * graph that was freed. `order`: what `reachable` gives for the outputs, where the caller has it.
 */
export function gradientsOf(
  outputs: readonly Node[],
  seeds: readonly (Node | null)[],
  inputs: readonly Node[],
  { createGraph = false, allowUnused = false }: GradientOptions = {},
  order: readonly Node[] | null = null,
): (Node | null)[] {
  for (const output of outputs)
    if (!output.requiresGrad)
      throw new AutogradError(
        `backward: ${output} does not require a gradient and has no graph; set requiresGrad on what it is made from, and check that it was not made under noGrad()`,
      );
  for (const input of inputs)
    if (!input.requiresGrad)
      throw new AutogradError(`backward: the input ${input} does not require a gradient; set its requiresGrad`);
  resetRegions();
  const before = setGradEnabled(createGraph);
  try {
    const starts: Seed[] = [];
    for (let i = 0; i < outputs.length; i++)
      starts.push({ node: outputs[i], gradient: seedOf(outputs[i], seeds[i] ?? null) });
    const out = walkBack(starts, inputs, null, order ?? reachable(outputs));
    const unused = out.indexOf(null);
    if (unused >= 0 && !allowUnused)
      throw new AutogradError(
        `backward: no gradient reaches the input ${inputs[unused]}: the outputs do not depend on it; pass { allowUnused: true } to get null for it`,
      );
    return out;
  } finally {
    setGradEnabled(before);
  }
}

/**
 * Partial derivatives of a stretch of graph: `inputs` count as independent of each other, whatever lies behind them.
 * For rules; records in the present mode.
 */
export function gradientsWithin(
  outputs: readonly Node[],
  seeds: readonly (Node | null)[],
  inputs: readonly Node[],
): (Node | null)[] {
  const starts = outputs.flatMap((node, i) => {
    const gradient = seeds[i];
    return gradient && node.requiresGrad ? [{ node, gradient }] : [];
  });
  const stop = new Set(inputs);
  const order = reachable(
    starts.map(({ node }) => node),
    stop,
  );
  const each = walkBack(starts, [...stop], stop, order);
  const left = new Map([...stop].map((node, i) => [node, each[i]]));
  return inputs.map((node) => {
    const gradient = left.get(node) ?? null;
    left.delete(node); // an input given twice gets its gradient once
    return gradient;
  });
}

/** The rule of a composite that has no better one: the gradient of its decomposition. */
export const byDecomposition: Rule = (node, grads) => {
  const { decompose, name } = node.operation;
  if (!decompose)
    throw new AutogradError(`"${name}" has neither a gradient nor a decomposition; give defineOperation one of them`);
  const outputs = withGrad(true, () => decompose(node.inputs, node.attrs));
  return gradientsWithin(outputs, grads, node.inputs);
};

/**
 * Gives up the graph behind `outputs`: going through it again is an error (as PyTorch's after a backward pass without
 * retain_graph), and values that are already there let go of their sources. Work still to be computed is not touched.
 * `order`: what `reachable` gives for the outputs, where the caller has it.
 */
export function releaseGraph(outputs: readonly Node[], order: readonly Node[] = unreleased(outputs)): void {
  for (let k = 0; k < order.length; k++) {
    const node = order[k];
    if (node.released || endsAt(node, null)) continue;
    node.released = true;
    if (node.storage !== null) node.inputs = none;
  }
}

const none: readonly Node[] = [];

/** Nodes that were not given up before; what lies behind one that was, was given up with it. */
function unreleased(outputs: readonly Node[]): Node[] {
  const walk = ++clock;
  const nodes: Node[] = [];
  const add = (node: Node): void => {
    if (!node.requiresGrad || node.walk === walk || node.released || endsAt(node, null)) return;
    node.walk = walk;
    nodes.push(node);
  };
  outputs.forEach(add);
  for (let k = 0; k < nodes.length; k++) nodes[k].inputs.slice(firstSource(nodes[k])).forEach(add);
  return nodes;
}
