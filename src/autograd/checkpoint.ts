/**
 * Checkpoints: a stretch of graph whose intermediate values are not kept for the gradient but computed again there
 * (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost; torch.utils.checkpoint). What is recorded again
 * is the graph, not the function: random keys and the versions of states read are the first pass's own, and side
 * effects do not happen twice.
 */
import { AutogradError } from "../core/errors.ts";
import {
  type Attrs,
  isGradEnabled,
  make,
  type Node,
  type Operation,
  registerOperation,
  topologicalOrder,
} from "../graph/node.ts";
import { constant, outputs } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { gradientsWithin, withGrad } from "./backward.ts";
import { inNewRegion } from "./region.ts";
import { type Rule, setGradient } from "./table.ts";

/** What a recorded step reads: an earlier step, an input of the checkpoint's node, or a leaf made inside. */
type Source = { readonly step: number } | { readonly input: number } | { readonly leaf: Node };

interface Step {
  readonly operation: Operation;
  readonly attrs: Attrs;
  readonly sources: readonly Source[];
  /** Whether gradients flow through: not so behind a detach or under noGrad(). */
  readonly grad: boolean;
  /** A checkpoint within the checkpoint. */
  readonly recipe: Recipe | null;
}

interface Recipe {
  readonly steps: readonly Step[];
  readonly results: readonly Source[];
}

const recipes = new WeakMap<Node, Recipe>();

/** Inputs: the values, then everything outside that they were made from. Outputs: the values. */
const row = registerOperation({
  group: "composite",
  name: "checkpoint",
  infer: (inputs, { count }) => inputs.slice(0, count as number).map(({ shape, dtype }) => ({ shape, dtype })),
  decompose: (inputs, { count }) => inputs.slice(0, count as number),
});

/** Records a recipe's steps anew over `inputs`, those of the checkpoint's node. */
function replay(recipe: Recipe, inputs: readonly Node[]): Node[] {
  const made: Node[] = [];
  const resolve = (source: Source): Node =>
    "step" in source ? made[source.step] : "input" in source ? inputs[source.input] : source.leaf;
  for (const { operation, attrs, sources, grad, recipe: inner } of recipe.steps) {
    const node = make(operation, sources.map(resolve), attrs);
    if (!grad) node.requiresGrad = false;
    if (inner) recipes.set(node, inner);
    made.push(node);
  }
  return recipe.results.map(resolve);
}

const rule: Rule = (node, grads) => {
  const recipe = recipes.get(node);
  if (!recipe)
    throw new AutogradError(`${node}: checkpoint nodes are made by checkpointed(), which knows what to redo`);
  const count = node.attrs["count"] as number;
  const outside = node.inputs.slice(count);
  const flow = inNewRegion(() => {
    const values = withGrad(true, () => replay(recipe, node.inputs));
    return gradientsWithin(values, grads, outside);
  });
  return [...node.inputs.slice(0, count).map(() => null), ...flow];
};
setGradient("checkpoint", rule);

/**
 * The nodes that `fn` gives for `inputs`, without keeping what lies between for the gradient. `fn` runs once; what it
 * reads from outside (parameters, say) gets its gradient too.
 */
export function checkpointed(fn: (inputs: readonly Node[]) => readonly Node[], inputs: readonly Node[]): Node[] {
  if (!isGradEnabled()) return [...fn(inputs)];
  const first = constant(0, "float32").id; // ids grow: everything that fn makes comes after this one
  const values = fn(inputs);
  const isOutside = (node: Node): boolean => node.id < first || node.operation === p.assign;
  const order = topologicalOrder(values, (node) => isOutside(node) || node.operation.group === "leaf");

  const outside: Node[] = [];
  const steps: Step[] = [];
  const sourceOf = new Map<Node, Source>();
  const source = (node: Node): Source => sourceOf.get(node) as Source;
  for (const node of order) {
    if (isOutside(node)) sourceOf.set(node, { input: values.length + outside.push(node) - 1 });
    else if (node.operation.group === "leaf") sourceOf.set(node, { leaf: node });
    else {
      const { operation, attrs, requiresGrad } = node;
      const step = { operation, attrs, sources: node.inputs.map(source), grad: requiresGrad };
      sourceOf.set(node, { step: steps.push({ ...step, recipe: recipes.get(node) ?? null }) - 1 });
    }
  }
  if (!values.some((node) => node.requiresGrad)) return [...values];
  const recipe = { steps, results: values.map(source) };
  // the first pass is now plain work: nothing of it is kept for a gradient
  for (const node of order) {
    if (isOutside(node) || node.operation.group === "leaf") continue;
    node.requiresGrad = false;
    if (node.storage) node.inputs = [];
  }
  const node = make(row, [...values, ...outside], { count: values.length });
  recipes.set(node, recipe);
  return outputs(node);
}
