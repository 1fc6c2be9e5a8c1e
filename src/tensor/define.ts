/**
 * Operations of a user's own, in terms of tensors: a name, a meaning, a gradient. They are rows of the table of composites like
 * ours: recorded whole, decomposed where no backend knows better, differentiable to any order.
 */
import { defineOperation as defineRow } from "../autograd/index.ts";
import { NablaError } from "../core/errors.ts";
import { type Attrs, type Node, noAttrs, type Spec } from "../graph/node.ts";
import { Tensor } from "./tensor.ts";

/** Tensors as a list, or one alone. */
type Outputs = Tensor | readonly Tensor[];

export interface TensorOperation<A extends Attrs> {
  /** Unique over all operations; a prefix of your own ("acme.swish") keeps it so. */
  readonly name: string;
  /** The meaning, in other operations. Called when something is recorded for new shapes, and when a program is made; pure. */
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
}

/** Records the operation; gives a list if `forward` gives one. */
export type RecordOperation = <O extends Outputs = Tensor>(inputs: readonly Tensor[], attrs?: Attrs) => O;

const wrap = (node: Node): Tensor => new Tensor(node);

/** Adds an operation and gives the function that records it (torch.autograd.Function). Throws where the name is taken. */
export function defineOperation<A extends Attrs = Attrs>(definition: TensorOperation<A>): RecordOperation {
  const { name, forward, backward } = definition;
  let many = false;
  const specs = new Map<string, Spec | readonly Spec[]>();
  const run = (inputs: readonly Node[], attrs: A): Node[] => {
    const made = forward(inputs.map(wrap), attrs);
    many = Array.isArray(made);
    const list = (many ? made : [made]) as readonly Tensor[];
    if (list.length === 0 || !list.every((x) => x instanceof Tensor))
      throw new NablaError(`${name}: forward must give a tensor, or a list of at least one`);
    return list.map((x) => x.node);
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
