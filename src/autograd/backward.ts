/**
 * The walk from outputs back to inputs: applies the rules of the table and adds up what meets at a node.
 * Gradients are recorded as nodes of the same graph; nothing is computed here. The walk goes against the order of
 * recording, so every sum has one order.
 */
import { AutogradError, ShapeError } from "../core/errors.ts";
import { sameShape, showShape, sizeOf } from "../core/shape.ts";
import { type Node, setGradEnabled, topologicalOrder } from "../graph/node.ts";
import { onesLike } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { total } from "./accumulate.ts";
import { resetRegions } from "./region.ts";
import { gradients, type Rule, savesValues } from "./table.ts";

export interface GradientOptions {
  /** Record the gradient so that it can be differentiated again. */
  readonly createGraph?: boolean;
  /** Give null for an input that the outputs do not depend on, instead of an error. */
  readonly allowUnused?: boolean;
}

/** A node that gradients end at: data, or what a tensor declared its leaf. */
const isAutogradLeaf = (node: Node): boolean => node.operation.group === "leaf" || node.owner !== null;

/** Inputs through which a gradient can flow. */
function sources(node: Node): readonly Node[] {
  if (gradients.get(node.operation.name) === null) return [];
  // the earlier version of a state has no part in the later one
  return node.operation === p.assign ? node.inputs.slice(1) : node.inputs;
}

/**
 * Nodes that require a gradient and that `roots` depend on, every node behind its sources, in the order of recording
 * where that is one. Walks no further than `stop`.
 */
function reachable(roots: readonly Node[], stop: (node: Node) => boolean): Node[] {
  const seen = new Set<Node>();
  const stack: Node[] = [];
  const visit = (node: Node): void => {
    if (!node.requiresGrad || seen.has(node)) return;
    seen.add(node);
    stack.push(node);
  };
  roots.forEach(visit);
  for (let node = stack.pop(); node; node = stack.pop()) {
    if (stop(node)) continue;
    if (node.released && node.inputs.length === 0) throw freed(node);
    sources(node).forEach(visit);
  }
  const order = [...seen].sort((a, b) => a.id - b.id);
  // execution may have put a younger node with the same value in the place of a source
  const placed = new Set<Node>();
  for (const node of order) {
    if (!stop(node) && sources(node).some((x) => x.requiresGrad && !placed.has(x)))
      return topologicalOrder(roots, (x) => !seen.has(x) || stop(x)).filter((x) => seen.has(x));
    placed.add(node);
  }
  return order;
}

/** The leaves that require a gradient and that `outputs` depend on, in the order of recording. */
export function leavesOf(outputs: readonly Node[]): Node[] {
  return reachable(outputs, isAutogradLeaf).filter(
    (node) => isAutogradLeaf(node) || !sources(node).some((input) => input.requiresGrad),
  );
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

/** Applies the rules from `seeds` down to `inputs`; at nodes of `stop` gradients are collected and go no further. */
function walk(
  seeds: readonly { readonly node: Node; readonly gradient: Node }[],
  inputs: readonly Node[],
  stop: ReadonlySet<Node> | null,
): (Node | null)[] {
  const order = reachable(
    seeds.map(({ node }) => node),
    stop ? (node) => stop.has(node) : isAutogradLeaf,
  );
  const asked = new Set(inputs);
  // nodes through which an asked input is reached; all others' rules need not run
  const needed = new Set<Node>();
  for (const node of order)
    if (asked.has(node) || (!stop?.has(node) && !isAutogradLeaf(node) && sources(node).some((x) => needed.has(x))))
      needed.add(node);

  const parts = new Map<Node, Node[][]>(); // by output
  const give = (node: Node, index: number, gradient: Node): void => {
    let slots = parts.get(node);
    if (!slots) parts.set(node, (slots = Array.from({ length: node.outputs?.length ?? 1 }, () => [])));
    slots[index].push(gradient);
  };
  for (const { node, gradient } of seeds) if (needed.has(node)) give(node, 0, gradient);

  const found = new Map<Node, Node>();
  for (let i = order.length - 1; i >= 0; i--) {
    const node = order[i];
    const slots = parts.get(node);
    if (!slots) continue;
    parts.delete(node);
    const totals = slots.map((slot) => (slot.length ? total(slot) : null));
    if (asked.has(node) && totals[0]) found.set(node, totals[0]);
    if (stop?.has(node) || isAutogradLeaf(node) || !sources(node).some((x) => needed.has(x))) continue;
    const rule = gradients.get(node.operation.name);
    if (!rule)
      throw new AutogradError(
        `"${node.operation.name}" has no gradient rule; add one to autograd/rules (null where it has none)`,
      );
    if (node.released && savesValues(node)) throw freed(node);
    const flow = rule(node, totals);
    node.inputs.forEach((input, k) => {
      const gradient = flow[k];
      if (!gradient || !needed.has(input)) return;
      const index = node.operation === p.output ? (node.attrs["index"] as number) : 0;
      const spec = input.outputs?.[index] ?? input;
      if (!sameShape(gradient.shape, spec.shape) || gradient.dtype !== spec.dtype)
        throw new AutogradError(
          `the rule of "${node.operation.name}" gave ${gradient.dtype}${showShape(gradient.shape)} for input ${k}, which is ${spec.dtype}${showShape(spec.shape)}`,
        );
      give(input, index, gradient);
    });
  }
  return inputs.map((input) => found.get(input) ?? null);
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
 * graph that was freed.
 */
export function gradientsOf(
  outputs: readonly Node[],
  seeds: readonly (Node | null)[],
  inputs: readonly Node[],
  { createGraph = false, allowUnused = false }: GradientOptions = {},
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
  return withGrad(createGraph, () => {
    const starts = outputs.map((node, i) => ({ node, gradient: seedOf(node, seeds[i] ?? null) }));
    const out = walk(starts, inputs, null);
    const unused = out.indexOf(null);
    if (unused >= 0 && !allowUnused)
      throw new AutogradError(
        `backward: no gradient reaches the input ${inputs[unused]}: the outputs do not depend on it; pass { allowUnused: true } to get null for it`,
      );
    return out;
  });
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
  const each = walk(starts, [...stop], stop);
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
 */
export function releaseGraph(outputs: readonly Node[]): void {
  for (const node of reachable(outputs, (n) => n.released || isAutogradLeaf(n))) {
    if (isAutogradLeaf(node) || node.released) continue;
    node.released = true;
    if (node.storage) node.inputs = [];
  }
}
