/**
 * `loop`: a recurrence that is recorded once, however many steps it has. What a step means is in `graph/loop.ts`; here are the
 * names under which a user has carries, sequences and outputs.
 */
import { NablaError, ShapeError } from "../core/errors.ts";
import { loop as loopNodes } from "../graph/loop.ts";
import { Tensor } from "./tensor.ts";

/** Tensors under names, or in a list. */
export type TensorGroup = readonly Tensor[] | Readonly<Record<string, Tensor>>;

/** As many tensors under the same names. */
type Like<G> = { -readonly [Name in keyof G]: Tensor };

export interface LoopOptions<C extends TensorGroup, S extends TensorGroup> {
  /** What goes from step to step, and its first values. */
  readonly carries: C;
  /** What is read along its first axis, one element a step; all equally long. */
  readonly sequences?: S;
  /** How many steps. May be left out where there is a sequence. */
  readonly count?: number;
  /** From the last element of the sequences to the first; outputs lie where the elements do. */
  readonly reverse?: boolean;
}

export interface LoopResult<C extends TensorGroup, O extends TensorGroup> {
  /** After the last step. */
  readonly carries: Like<C>;
  /** What the steps gave, stacked along a new first axis. */
  readonly outputs: Like<O>;
}

function tensorsOf(what: string, group: TensorGroup | undefined): Tensor[] {
  const entries = Object.entries(group ?? []) as [string, unknown][];
  for (const [name, x] of entries)
    if (!(x instanceof Tensor))
      throw new NablaError(`loop: ${what} "${name}" is no tensor${x instanceof Promise ? ", but a promise" : ""}`);
  return entries.map(([, x]) => x as Tensor);
}

/** The tensors under the names of `like`. */
function regroup<G extends TensorGroup>(like: G, list: readonly Tensor[]): Like<G> {
  if (Array.isArray(like)) return list.slice() as unknown as Like<G>;
  return Object.fromEntries(Object.keys(like).map((name, i) => [name, list[i]])) as Like<G>;
}

/**
 * Runs `body` `count` times: from the carries and one element of each sequence it gives the carries' next values and, if it
 * likes, outputs (jax.lax.scan). It is called once, when the loop is recorded, so it must be a pure function of tensors: what it reads
 * from outside (weights) stays the same in all steps, and is differentiated like any other input; it may not await, draw random
 * numbers, or change state. Carries keep shape and dtype: ShapeError, DTypeError.
 *
 * ```ts
 * const { carries, outputs } = loop(
 *   ({ h }, { x }) => {
 *     const next = h.matmul(w).add(x).tanh();
 *     return { carries: { h: next }, outputs: { h: next } };
 *   },
 *   { carries: { h: zeros([batch, width]) }, sequences: { x: inputs } }, // inputs [time, batch, width]
 * );
 * ```
 */
export function loop<
  const C extends TensorGroup,
  const S extends TensorGroup = readonly [],
  const O extends TensorGroup = readonly [],
>(
  body: (carries: Like<C>, elements: Like<S>) => { readonly carries: Readonly<Like<NoInfer<C>>>; readonly outputs?: O },
  options: LoopOptions<C, S>,
): LoopResult<C, O> {
  const carries = tensorsOf("carry", options.carries);
  const sequences = tensorsOf("sequence", options.sequences);
  const count = options.count ?? sequences[0]?.shape[0];
  if (count === undefined)
    throw new ShapeError("loop: how many steps? Pass { count }, or a sequence with at least one axis");
  let like: TensorGroup = [];
  const wrap = (group: TensorGroup, list: readonly Tensor["node"][]): Like<TensorGroup> =>
    regroup(
      group,
      list.map((node) => new Tensor(node)),
    );
  const made = loopNodes(
    (carried, elements) => {
      const step = body(wrap(options.carries, carried) as Like<C>, wrap(options.sequences ?? [], elements) as Like<S>);
      if ((step as unknown) instanceof Promise)
        throw new NablaError("loop: the body is async; it is recorded, not run, so there is nothing to await in it");
      if (!step?.carries) throw new NablaError("loop: the body must return { carries, outputs? }");
      like = step.outputs ?? [];
      tensorsOf("the body's carry", step.carries as TensorGroup);
      const given = Object.keys(step.carries).sort().join(", ");
      const wanted = Object.keys(options.carries).sort().join(", ");
      if (given !== wanted)
        throw new NablaError(`loop: the body returns the carries { ${given} }, expected { ${wanted} }`);
      // in the order in which they were given, whatever that of the body's answer
      const byName = step.carries as unknown as Readonly<Record<string, Tensor>>;
      return {
        carries: Object.keys(options.carries).map((name) => byName[name].node),
        outputs: tensorsOf("output", like).map((x) => x.node),
      };
    },
    {
      carries: carries.map((x) => x.node),
      sequences: sequences.map((x) => x.node),
      count,
      reverse: options.reverse ?? false,
    },
  );
  return {
    carries: wrap(options.carries, made.carries) as Like<C>,
    outputs: wrap(like, made.outputs) as Like<O>,
  };
}
