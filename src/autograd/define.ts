/**
 * Operations of a user's own: a composite like ours, with its row in the table and its gradient rule, in one call.
 * Without a decomposition, a backend must have a template for it.
 */
import { AutogradError } from "../core/errors.ts";
import { type Attrs, make, type Node, noAttrs, type Operation, registerOperation, type Spec } from "../graph/node.ts";
import { outputs } from "../graph/ops.ts";
import { byDecomposition } from "./backward.ts";
import { type Rule, setGradient } from "./table.ts";

export interface OperationDefinition<A extends Attrs = Attrs> {
  /** Unique over all operations; a prefix of your own ("acme.swish") keeps it so. */
  readonly name: string;
  /** Shapes and dtypes of the outputs; throws ShapeError or DTypeError where the inputs do not fit. */
  readonly infer: (inputs: readonly Node[], attrs: A) => Spec | readonly Spec[];
  /** The meaning in other operations, one node an output. */
  readonly decompose?: (inputs: readonly Node[], attrs: A) => readonly Node[];
  /**
   * From the gradients of the outputs (null: nothing flows in) to those of the inputs (null: none). null instead of a
   * function: no gradient flows through. Left out: the gradient of the decomposition.
   */
  readonly gradient?:
    | ((
        call: { readonly inputs: readonly Node[]; readonly outputs: readonly Node[]; readonly attrs: A },
        gradients: readonly (Node | null)[],
      ) => readonly (Node | null)[])
    | null;
}

/** Records the operation; gives one node an output. */
export interface DefinedOperation<A extends Attrs = Attrs> {
  (inputs: readonly Node[], attrs?: A): Node[];
  readonly operation: Operation;
}

/** Adds an operation to the tables and gives the function that records it (torch.autograd.Function). */
export function defineOperation<A extends Attrs = Attrs>(definition: OperationDefinition<A>): DefinedOperation<A> {
  const { name, infer, decompose, gradient } = definition;
  const operation = registerOperation({
    group: "composite",
    name,
    infer: (inputs, attrs) => infer(inputs, attrs as A),
    ...(decompose && {
      decompose: (inputs: readonly Node[], attrs: Attrs) =>
        checked(name, decompose(inputs, attrs as A), infer(inputs, attrs as A)),
    }),
  });
  setGradient(name, ruleOf(gradient));
  const record = (inputs: readonly Node[], attrs?: A): Node[] => outputs(make(operation, inputs, attrs ?? noAttrs));
  return Object.assign(record, { operation });
}

function ruleOf<A extends Attrs>(gradient: OperationDefinition<A>["gradient"]): Rule | null {
  if (gradient === null) return null;
  if (gradient === undefined) return byDecomposition;
  return (node, gradients) => {
    const flow = gradient({ inputs: node.inputs, outputs: outputs(node), attrs: node.attrs as A }, gradients);
    if (flow.length !== node.inputs.length)
      throw new AutogradError(
        `${node.operation.name}: its gradient gave ${flow.length} values for ${node.inputs.length} inputs; give one each, null where there is none`,
      );
    return flow;
  };
}

/** A decomposition that does not mean what `infer` promised would go wrong far from here. */
function checked(name: string, nodes: readonly Node[], promised: Spec | readonly Spec[]): readonly Node[] {
  const specs = Array.isArray(promised) ? (promised as readonly Spec[]) : [promised as Spec];
  const show = (list: readonly Spec[]): string => list.map((s) => `${s.dtype}[${s.shape.join(", ")}]`).join(" and ");
  if (show(nodes) !== show(specs))
    throw new AutogradError(`${name}: the decomposition gives ${show(nodes)}, infer promised ${show(specs)}`);
  return nodes;
}
