/**
 * Gradients for tensors: `backward()` into `.grad`, `autograd.grad`, the functional forms, and the modes. The walk over the
 * graph is in `autograd/`; here is what belongs to tensors.
 */
import { checkpointed, gradientsOf, leavesOf, reachable, releaseGraph } from "../autograd/index.ts";
import { AutogradError } from "../core/errors.ts";
import { enqueue, keep, stepsOf } from "../execution/index.ts";
import { isGradEnabled, make, type Node, setGradEnabled } from "../graph/node.ts";
import { add } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { under } from "./autocast.ts";
import { Tensor } from "./tensor.ts";

export interface BackwardOptions {
  /** Keep the graph, so that it can be gone through again. Default: the value of createGraph. */
  readonly retainGraph?: boolean;
  /** Record the gradients so that they can be differentiated themselves. Default: false. */
  readonly createGraph?: boolean;
  /** Collect gradients only for these leaves. */
  readonly inputs?: readonly Tensor[];
}

/** Gradients that the last backward passes recorded, and when, so that a read can compute them along. */
let recorded: { device: string; steps: number; tensors: Tensor[] } = { device: "", steps: -1, tensors: [] };
let lastRetained = false;

const pendingOf = (tensors: readonly Tensor[]): Node[] =>
  tensors.flatMap((t) => (t.grad && t.grad.node.storage === null ? [t.grad.node] : []));

/**
 * Gradients recorded but not computed. A read between backward and step computes them along with what it asks for, or the step
 * would go through the whole graph again; not so once a step has moved the state on.
 */
export function pendingGradients(device: string): Node[] {
  if (recorded.tensors.length === 0 || recorded.device !== device) return [];
  const { tensors, steps } = recorded;
  recorded = { device, steps: -1, tensors: [] };
  return steps === stepsOf(device) ? pendingOf(tensors) : [];
}

export function backward(root: Tensor, gradient: Tensor | null, options: BackwardOptions = {}): void {
  const { createGraph = false, retainGraph = createGraph, inputs } = options;
  const { node } = root;
  const roots = [node];
  let order = reachable(roots);
  const leaves = inputs
    ? inputs.map((t) => t.node)
    : leavesOf(roots, order).filter((leaf) => leaf.owner instanceof Tensor);
  const { device } = root;
  if (!lastRetained && leaves.some((leaf) => hasPendingGradient(leaf.owner as Tensor | null))) {
    // the graph of the earlier pass will not be gone through again: compute it now, or steps of accumulation would
    // grow into one program
    const room = enqueue(device, pendingOf(recorded.device === device ? recorded.tensors : []));
    if (room) room.catch(() => {}); // an error is told by the next flush
    order = reachable(roots); // a flush may have put other nodes in the place of some
  }
  const seeds = [gradient ? gradient.node : null];
  const gradients = gradientsOf(roots, seeds, leaves, { createGraph, allowUnused: true }, order);
  const before = setGradEnabled(createGraph);
  const touched: Tensor[] = [];
  try {
    for (let i = 0; i < leaves.length; i++) {
      const found = gradients[i];
      if (!found) continue;
      const owner = inputs ? inputs[i] : (leaves[i].owner as Tensor);
      if (owner.grad) owner.grad.node = add(owner.grad.node, found);
      else owner.grad = new Tensor(found);
      touched.push(owner);
    }
  } finally {
    setGradEnabled(before);
  }
  keep(node);
  if (!retainGraph) releaseGraph(roots, order);
  lastRetained = retainGraph;
  const steps = stepsOf(device);
  if (recorded.device === device && recorded.steps === steps)
    for (const t of recorded.tensors) if (!touched.includes(t)) touched.push(t);
  recorded = { device, steps, tensors: touched };
}

const hasPendingGradient = (owner: Tensor | null): boolean => !!owner?.grad && owner.grad.node.storage === null;

export interface GradOptions {
  /** What flows into each output; may be left out for outputs of one element. */
  readonly gradOutputs?: Tensor | readonly (Tensor | null)[];
  readonly retainGraph?: boolean;
  readonly createGraph?: boolean;
  readonly allowUnused?: boolean;
}

const listOf = <T>(x: T | readonly T[]): readonly T[] => (Array.isArray(x) ? (x as readonly T[]) : [x as T]);

/**
 * The gradients of Σ outputs with respect to `inputs` (torch.autograd.grad), null for unused ones if `allowUnused`. Touches
 * no `.grad`. Throws AutogradError where there is no graph or an input is unused.
 */
export function gradientsOfTensors(
  outputs: Tensor | readonly Tensor[],
  inputs: Tensor | readonly Tensor[],
  options: GradOptions & { readonly allowUnused: true },
): (Tensor | null)[];
export function gradientsOfTensors(
  outputs: Tensor | readonly Tensor[],
  inputs: Tensor | readonly Tensor[],
  options?: GradOptions,
): Tensor[];
export function gradientsOfTensors(
  outputs: Tensor | readonly Tensor[],
  inputs: Tensor | readonly Tensor[],
  options: GradOptions = {},
): (Tensor | null)[] {
  const { gradOutputs = [], createGraph = false, retainGraph = createGraph, allowUnused = false } = options;
  const roots = listOf(outputs).map((t) => t.node);
  const seeds = listOf<Tensor | null>(gradOutputs);
  if (seeds.length > roots.length)
    throw new AutogradError(`grad: ${seeds.length} gradOutputs were given for ${roots.length} outputs`);
  const gradients = gradientsOf(
    roots,
    roots.map((_, i) => seeds[i]?.node ?? null),
    listOf(inputs).map((t) => t.node),
    { createGraph, allowUnused },
  );
  if (!retainGraph) releaseGraph(roots);
  return gradients.map((g) => g && new Tensor(g));
}

/** The value as an operation's result that a gradient can be asked for, whatever lies behind it. */
function variable(x: Tensor): Tensor {
  const node = make(p.reshape, [x.node], { shape: x.shape });
  node.requiresGrad = true;
  return new Tensor(node);
}

/**
 * The function that gives f's value and its gradients with respect to the arguments at `argnums` (default: the first), as
 * jax.value_and_grad. `f` returns one element. Nests: the gradient of a gradient is recorded as needed.
 */
export function valueAndGrad<A extends readonly Tensor[]>(
  f: (...args: A) => Tensor,
  argnums: number,
): (...args: A) => [Tensor, Tensor];
export function valueAndGrad<A extends readonly Tensor[]>(
  f: (...args: A) => Tensor,
  argnums: readonly number[],
): (...args: A) => [Tensor, Tensor[]];
export function valueAndGrad<A extends readonly Tensor[]>(f: (...args: A) => Tensor): (...args: A) => [Tensor, Tensor];
export function valueAndGrad<A extends readonly Tensor[]>(
  f: (...args: A) => Tensor,
  argnums: number | readonly number[] = 0,
): (...args: A) => [Tensor, Tensor | Tensor[]] {
  return (...args) => {
    const outer = setGradEnabled(true);
    try {
      const asked = listOf(argnums);
      const variables = args.map((x, i) => (asked.includes(i) ? variable(x) : x)) as unknown as A;
      const inputs = asked.map((i) => variables[i].node);
      const value = f(...variables);
      if (!(value instanceof Tensor)) throw new AutogradError("grad: the function must return a tensor of one element");
      const createGraph = outer && leavesOf([value.node]).some((leaf) => !inputs.includes(leaf));
      const gradients = gradientsOf([value.node], [null], inputs, { createGraph, allowUnused: true }).map((g, i) =>
        g ? new Tensor(g) : variables[asked[i]].mul(0).detach(),
      );
      const out = createGraph ? value : value.detach();
      return [out, typeof argnums === "number" ? gradients[0] : gradients];
    } finally {
      setGradEnabled(outer);
    }
  };
}

/** The function that gives f's gradient with respect to its first argument, or those at `argnums` (jax.grad, torch.func.grad). */
export function grad<A extends readonly Tensor[]>(
  f: (...args: A) => Tensor,
  argnums: readonly number[],
): (...args: A) => Tensor[];
export function grad<A extends readonly Tensor[]>(f: (...args: A) => Tensor, argnums?: number): (...args: A) => Tensor;
export function grad<A extends readonly Tensor[]>(
  f: (...args: A) => Tensor,
  argnums: number | readonly number[] = 0,
): (...args: A) => Tensor | Tensor[] {
  if (typeof argnums === "number") {
    const both = valueAndGrad(f, argnums);
    return (...args) => both(...args)[1];
  }
  const both = valueAndGrad(f, argnums);
  return (...args) => both(...args)[1];
}

/**
 * Runs `fn` without recording for differentiation (torch.no_grad), and returns what it returns. If that is a promise, the mode
 * lasts until it settles; what is recorded meanwhile elsewhere is under it too.
 */
export const noGrad = <T>(fn: () => T): T => under(setGradEnabled, false, fn);
/** Runs `fn` with recording for differentiation, inside noGrad (torch.enable_grad). */
export const enableGrad = <T>(fn: () => T): T => under(setGradEnabled, true, fn);

/**
 * Runs `fn` on tensors so that what it computes on the way is not kept for the backward pass but computed again
 * (torch.utils.checkpoint). `fn` must be pure.
 */
export function checkpoint<A extends readonly Tensor[]>(fn: (...args: A) => Tensor, ...tensors: A): Tensor {
  const record = (inputs: readonly Node[]): Node[] => [
    fn(...(inputs.map((node, i) => (node === tensors[i].node ? tensors[i] : new Tensor(node))) as unknown as A)).node,
  ];
  return new Tensor(
    checkpointed(
      record,
      tensors.map((t) => t.node),
    )[0],
  );
}

export { isGradEnabled };

/** PyTorch's namespace. */
export const autograd = { grad: gradientsOfTensors, noGrad, enableGrad, isGradEnabled };
