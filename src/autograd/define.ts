/**
 * Operations of a user's own: a composite like ours, with its row in the table and its gradient rule, in one call.
 * Without a decomposition, a backend must have a template or the operation a kernel for it.
 */
import { AutogradError } from "../core/errors.ts";
import {
  type Attrs,
  type KernelRecipe,
  make,
  type Node,
  noAttrs,
  type Operation,
  registerOperation,
  type Spec,
} from "../graph/node.ts";
import { outputs } from "../graph/ops.ts";
import { byDecomposition } from "./backward.ts";
import { type Rule, setGradient } from "./table.ts";

/**
 * Kernels of one's own, by backend. A recipe gets shapes and dtypes of the inputs and outputs, and the attributes, whose
 * values may be written into the text; it is a pure function, asked while a program is compiled. Where it gives null,
 * the operation is decomposed instead.
 *
 * `cpu`: the body is C (gnu11, the statements of a function; no includes, libm as `__builtin_expf`) for rows r0 … r1 − 1,
 * both of `nb_i64`; calls for different rows run at the same time. It sees
 * - `in0`, `in1`, …: const pointers to the inputs, contiguous in row-major order, and `out0`, `out1`, …: the outputs, whose
 *   every element it has to write. Element types: float, double, `nb_i32` (int32), `u32` (uint32), `u8` (uint8; bool as 0
 *   and 1), `u16` (float16 and bfloat16, as bits). No input overlaps an output.
 * - what generated kernels compute with, `L` lanes at a time (16, 8 or 4; half of that where doubles take part): vectors
 *   `vf vd vi vu` of float, double, int32 and uint32, with C's operators. The first letter of a function is its type,
 *   f d i u: `f_load(p)`, `f_loadn(p, n)` (the first n lanes), `f_store(p, x)`, `f_storen(p, x, n)`, `f_splat(s)`,
 *   `f_fma(a, b, c)`, `f_max`, `f_min`, `f_abs`, `f_sqrt`, `f_floor`, `f_exp`, `f_log`, `f_tanh`, `f_erf`, `f_sin`, `f_cos`, `f_pow`,
 *   `f_hsum`, `f_hmax` (over the lanes, a scalar), `f_lt(a, b)` (a mask), `f_sel(mask, a, b)`, `f_from_i(x)`, …; h b c m load and store
 *   float16, bfloat16 and uint8 as vf, vf and vi, and bool as a mask: `h_load(in0 + i)`.
 * Names that end in `_` are taken. The text is compiled once and kept in the kernel cache; what the compiler refuses is a
 * CompilerError that names the operation.
 */
export interface Kernels<A extends Attrs = Attrs> {
  readonly cpu?: KernelRecipe<A>;
}

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
  /** Kernels of your own for some backends; the others decompose. */
  readonly kernels?: Kernels<A>;
}

/** Records the operation; gives one node an output. */
export interface DefinedOperation<A extends Attrs = Attrs> {
  (inputs: readonly Node[], attrs?: A): Node[];
  readonly operation: Operation;
}

/** Adds an operation to the tables and gives the function that records it (torch.autograd.Function). */
export function defineOperation<A extends Attrs = Attrs>(definition: OperationDefinition<A>): DefinedOperation<A> {
  const { name, infer, decompose, gradient, kernels } = definition;
  const operation = registerOperation({
    group: "composite",
    name,
    infer: (inputs, attrs) => infer(inputs, attrs as A),
    ...(decompose && {
      decompose: (inputs: readonly Node[], attrs: Attrs) =>
        checked(name, decompose(inputs, attrs as A), infer(inputs, attrs as A)),
    }),
    ...(kernels && { kernels: kernels as Kernels }),
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
