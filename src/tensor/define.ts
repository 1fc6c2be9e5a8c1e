/**
 * Operations of a user's own, in terms of tensors: a name, a meaning, a gradient. They are rows of the table of composites like
 * ours: recorded whole, decomposed where no backend knows better, differentiable to any order.
 */
import { defineOperation as defineRow, type Kernels } from "../autograd/index.ts";
import { NablaError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import { type Attrs, type Node, noAttrs, type Spec, topologicalOrder } from "../graph/node.ts";
import { constant } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { Tensor } from "./tensor.ts";

/** Tensors as a list, or one alone. */
type Outputs = Tensor | readonly Tensor[];

export interface TensorOperation<A extends Attrs> {
  /** Unique over all operations; a prefix of your own ("acme.swish") keeps it so. */
  readonly name: string;
  /**
   * The meaning, in other operations: a pure function, called for new shapes and when a program is made. Numbers in it are
   * constants of the program; what changes from call to call comes in as an input, and so do random numbers.
   */
  readonly forward: (inputs: readonly Tensor[], attrs: A) => Outputs;
  /**
   * The gradients of the inputs (null: none) from those of the outputs (null: nothing flows in). Left out: the gradient of
   * `forward`. null: no gradient flows through.
   */
  readonly backward?:
    | ((
        call: { readonly inputs: readonly Tensor[]; readonly outputs: readonly Tensor[]; readonly attrs: A },
        gradients: readonly (Tensor | null)[],
      ) => readonly (Tensor | null)[])
    | null;
  /** Kernels of one's own, by backend: see `Kernels`. They have to mean what `forward` means; the other backends use that. */
  readonly kernels?: Kernels<A>;
}

/** Records the operation; gives a list if `forward` gives one. */
export type RecordOperation = <O extends Outputs = Tensor>(inputs: readonly Tensor[], attrs?: Attrs) => O;

const wrap = (node: Node): Tensor => new Tensor(node);

/**
 * Makes what `forward` recorded a decomposition, which may depend on nothing but the operation's inputs: numbers become constants;
 * other tensors and random numbers are errors.
 */
function sealed(name: string, outputs: readonly Node[], inputs: readonly Node[]): void {
  const given = new Set(inputs);
  for (const node of topologicalOrder(outputs, (x) => given.has(x) || x.storage !== null)) {
    if (given.has(node)) continue;
    if (node.storage !== null)
      throw new NablaError(
        `${name}: forward reads a tensor (${node.dtype}${showShape(node.shape)}) that is not among its inputs; pass it as an input`,
      );
    if (node.operation === p.random)
      throw new NablaError(
        `${name}: forward draws random numbers, so it is not pure; draw them outside and pass them as an input`,
      );
    if (node.inputs.some((x) => x.operation === p.scalar && !given.has(x)))
      node.inputs = node.inputs.map((x) =>
        x.operation === p.scalar && !given.has(x) ? constant(x.value, x.dtype) : x,
      );
  }
}

/** Adds an operation and gives the function that records it (torch.autograd.Function). Throws where the name is taken. */
export function defineOperation<A extends Attrs = Attrs>(definition: TensorOperation<A>): RecordOperation {
  const { name, forward, backward, kernels } = definition;
  let many = false;
  const specs = new Map<string, Spec | readonly Spec[]>();
  const run = (inputs: readonly Node[], attrs: A): Node[] => {
    const made = forward(inputs.map(wrap), attrs);
    many = Array.isArray(made);
    const list = (many ? made : [made]) as readonly Tensor[];
    if (list.length === 0 || !list.every((x) => x instanceof Tensor))
      throw new NablaError(`${name}: forward must give a tensor, or a list of at least one`);
    const nodes = list.map((x) => x.node);
    sealed(name, nodes, inputs);
    return nodes;
  };
  /** Shapes and dtypes follow from those of the inputs: found out once for each combination. */
  const infer = (inputs: readonly Node[], attrs: A): Spec | readonly Spec[] => {
    const key = JSON.stringify([inputs.map((x) => [x.dtype, x.shape]), attrs]);
    let known = specs.get(key);
    if (!known) {
      const made = run(inputs, attrs).map(({ shape, dtype }) => ({ shape, dtype }));
      if (specs.size > 1000) specs.clear();
      specs.set(key, (known = many ? made : made[0]));
    }
    return known;
  };
  const record = defineRow<A>({
    name,
    infer,
    decompose: run,
    ...(kernels && { kernels }),
    ...(backward === undefined
      ? {}
      : {
          gradient:
            backward &&
            ((call, gradients) =>
              backward(
                { inputs: call.inputs.map(wrap), outputs: call.outputs.map(wrap), attrs: call.attrs },
                gradients.map((g) => g && wrap(g)),
              ).map((g) => g?.node ?? null)),
        }),
  });
  return <O extends Outputs = Tensor>(inputs: readonly Tensor[], attrs?: Attrs): O => {
    for (const x of inputs) if (!(x instanceof Tensor)) throw new NablaError(`${name}: takes a list of tensors`);
    const outputs = record(
      inputs.map((x) => x.node),
      (attrs ?? noAttrs) as A,
    ).map(wrap);
    return (many ? outputs : outputs[0]) as O;
  };
}
