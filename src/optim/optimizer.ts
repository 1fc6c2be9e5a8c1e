/**
 * Optimizer: parameter groups, state, and the step. A step records one operation a parameter and the assigns of what it
 * gives, then flushes once; learning rates and bias corrections are runtime scalars, so a schedule never compiles anew.
 * What is computed for a parameter is in the files of the optimisers.
 */
import { accumulator, type DType } from "../core/dtype.ts";
import { NablaError, ShapeError } from "../core/errors.ts";
import { sameShape, showShape } from "../core/shape.ts";
import { assign, enqueue, turn } from "../execution/index.ts";
import { type Node, setGradEnabled } from "../graph/node.ts";
import { cast, detach, scalar } from "../graph/ops.ts";
import { asState, Tensor } from "../tensor/tensor.ts";

/** The options that every optimiser has. */
export interface BaseOptions {
  readonly lr?: number;
  /** Go up the gradient instead of down. Default: false. */
  readonly maximize?: boolean;
}

/** Parameters with options of their own; what is left out is the optimiser's. */
export type ParamGroup<O> = Partial<O> & { readonly params: Iterable<Tensor> };
/** A group as the optimiser holds it: every option is there, and may be changed between steps. */
export type Group<O> = { -readonly [K in keyof O]-?: O[K] } & { readonly params: Tensor[] };

/** Parameters, or groups of them. */
export type Params<O> = Iterable<Tensor> | Iterable<ParamGroup<O>>;

/** What an optimiser remembers of one parameter: tensors and numbers by name. */
export type ParamState = Record<string, Tensor | number>;

/** Everything that is needed to go on as if nothing had happened; parameters are numbered in the order of the groups. */
export interface OptimizerState {
  readonly state: Readonly<Record<number, ParamState>>;
  readonly paramGroups: readonly (Readonly<Record<string, unknown>> & { readonly params: readonly number[] })[];
}

/** What all optimisers share (torch.optim.Optimizer). */
export abstract class Optimizer<O extends BaseOptions = BaseOptions> {
  readonly paramGroups: Group<O>[] = [];
  /** By parameter; filled when a parameter is first updated. */
  readonly state = new Map<Tensor, ParamState>();
  protected readonly defaults: Required<O>;

  constructor(params: Params<O>, defaults: Required<O>) {
    this.defaults = defaults;
    this.check(defaults);
    if (typeof (params as { parameters?: unknown })?.parameters === "function")
      throw new NablaError(`${this.constructor.name}: takes parameters, not a module; pass model.parameters()`);
    if (params === null || typeof params !== "object" || !(Symbol.iterator in params))
      throw new NablaError(`${this.constructor.name}: takes a list of parameters or of groups { params, lr, … }`);
    const list = [...params] as (Tensor | ParamGroup<O>)[];
    if (list.length === 0) throw new NablaError(`${this.constructor.name}: got an empty list of parameters`);
    if (list.every((x) => x instanceof Tensor)) this.addParamGroup({ params: list } as unknown as ParamGroup<O>);
    else for (const group of list) this.addParamGroup(group as ParamGroup<O>);
  }

  /** Throws where an option makes no sense. */
  protected check(options: Readonly<Partial<O>>): void {
    atLeastZero(this, "lr", options.lr);
  }

  /** Adds parameters that are to be updated from now on, as for layers that are unfrozen. */
  addParamGroup(group: ParamGroup<O>): void {
    const name = this.constructor.name;
    if (group === null || typeof group !== "object" || group instanceof Tensor || !("params" in group))
      throw new NablaError(`${name}: a group is { params: […], … }; parameters and groups can't be mixed in one list`);
    const { params, ...options } = group;
    const given = params instanceof Tensor ? [params] : [...params];
    for (const p of given) {
      if (!(p instanceof Tensor)) throw new NablaError(`${name}: a parameter is no tensor but ${typeof p}`);
      if (!p.isLeaf)
        throw new NablaError(`${name}: can't optimise ${String(p)}: it is the result of an operation, not a leaf`);
      if (this.paramGroups.some((g) => g.params.includes(p)))
        throw new NablaError(`${name}: the parameter ${p.name || showShape(p.shape)} is in two groups`);
    }
    if (new Set(given).size !== given.length) throw new NablaError(`${name}: a group names a parameter twice`);
    this.check(options as unknown as Partial<O>);
    this.paramGroups.push({ ...this.defaults, ...options, params: given } as unknown as Group<O>);
  }

  /** Drops the gradients of all parameters. */
  zeroGrad(): void {
    for (const { params } of this.paramGroups) for (let i = 0; i < params.length; i++) params[i].grad = null;
  }

  /**
   * Updates every parameter that has a gradient, and starts the computation. Resolves when there is room for the next step
   * (it does not wait for this one's end; reading a value does). With a closure, which computes the loss again and is called
   * first, it gives the closure's loss. Rejects with what an earlier step failed of; then nothing was written.
   */
  async step(closure?: () => Tensor | Promise<Tensor>): Promise<Tensor | undefined> {
    // without a closure everything is recorded before the first await: what follows the call comes after the step
    const loss = closure === undefined ? undefined : await closure();
    const room = this.record() ?? turn();
    if (room) await room;
    return loss;
  }

  /** Records the step and hands it to the devices. */
  private record(): Promise<unknown> | undefined {
    const before = setGradEnabled(false);
    const devices: string[] = [];
    try {
      for (const group of this.paramGroups) {
        const { params } = group;
        this.beginGroup(group);
        for (let i = 0; i < params.length; i++) {
          const p = params[i];
          if (p.grad === null) continue;
          if (!devices.includes(p.device)) devices.push(p.device);
          this.update(p, p.grad, group);
        }
      }
    } finally {
      setGradEnabled(before);
    }
    const waits: Promise<unknown>[] = [];
    for (const device of devices) {
      const room = enqueue(device);
      if (room) waits.push(room);
    }
    return waits.length ? Promise.all(waits) : undefined;
  }

  /** Called before the parameters of a group are updated in a step. */
  protected beginGroup(_group: Group<O>): void {}

  /**
   * Records the update of one parameter by its gradient, nothing being recorded for differentiation: in-place operations on p
   * and on tensors of `stateOf(p, …)`.
   */
  protected abstract update(p: Tensor, gradient: Tensor, group: Group<O>): void;

  // ---- for the optimisers -------------------------------------------------------------------------------------------

  /** What is remembered of p; made by `init` the first time. Its tensors become state, which in-place operations write. */
  protected stateOf<S extends ParamState>(p: Tensor, init: (p: Tensor) => S): S {
    let state = this.state.get(p);
    if (!state) {
      state = init(p);
      for (const value of Object.values(state)) if (value instanceof Tensor) asState(value);
      this.state.set(p, state);
    }
    return state as S;
  }

  // ---- saving ---------------------------------------------------------------------------------------------------------

  /** The state and the options. Its tensors are the optimiser's own: they change with the next step. */
  stateDict(): OptimizerState {
    const numbers = new Map<Tensor, number>();
    for (const { params } of this.paramGroups) for (const p of params) numbers.set(p, numbers.size);
    const state: Record<number, ParamState> = {};
    for (const [p, n] of numbers) {
      const own = this.state.get(p);
      if (own) state[n] = { ...own };
    }
    const paramGroups = this.paramGroups.map((group) => ({
      ...(group as Record<string, unknown>),
      params: group.params.map((p) => numbers.get(p) as number),
    }));
    return { state, paramGroups };
  }

  /** Takes over a state of the same parameters in the same groups; its tensors are copied. Throws where it does not fit. */
  loadStateDict(saved: OptimizerState): void {
    const name = `${this.constructor.name}.loadStateDict`;
    const { paramGroups } = saved;
    const all = this.paramGroups.flatMap((g) => g.params);
    const shape = (groups: readonly { readonly params: readonly unknown[] }[]): string =>
      showShape(groups.map((g) => g.params.length));
    if (shape(paramGroups) !== shape(this.paramGroups))
      throw new NablaError(
        `${name}: the saved state has groups of ${shape(paramGroups)} parameters, this optimiser ${shape(this.paramGroups)}`,
      );
    const order = paramGroups.flatMap((g) => g.params);
    const loaded = new Map<Tensor, ParamState>();
    for (const [i, p] of all.entries()) {
      const own = saved.state[order[i]];
      if (own === undefined) continue;
      const copy: ParamState = {};
      for (const [key, value] of Object.entries(own)) {
        if (!(value instanceof Tensor)) copy[key] = value;
        else if (!sameShape(value.shape, p.shape))
          throw new ShapeError(
            `${name}: ${key} of parameter ${i} (${p.name || showShape(p.shape)}) has shape ${showShape(value.shape)}, expected ${showShape(p.shape)}`,
          );
        else copy[key] = asState(new Tensor(detach(onDeviceOf(p, value))));
      }
      loaded.set(p, copy);
    }
    this.state.clear();
    for (const [p, own] of loaded) this.state.set(p, own);
    this.paramGroups.forEach((group, i) => {
      const { params: _, ...options } = paramGroups[i];
      Object.assign(group, options);
    });
  }
}

const onDeviceOf = (p: Tensor, value: Tensor): Node =>
  cast(value.device === p.device ? value.node : value.detach().to(p.device).node, p.dtype);

/** Makes the state x mean `value` from the next flush on. */
export function put(x: Tensor, value: Node): void {
  x.node = assign(x.node, value);
}

/** Runtime scalars of one step, by dtype: made when first asked for, shared by all parameters of a group. */
export class StepScalars {
  #values: readonly number[] = [];
  #nodes = new Map<DType, Node[]>();
  /** Starts a new step. */
  set(values: readonly number[]): void {
    this.#values = values;
    this.#nodes.clear();
  }
  /** The scalars in the dtype that a parameter of `dtype` is computed in. */
  of(dtype: DType): readonly Node[] {
    const wide = accumulator(dtype);
    let nodes = this.#nodes.get(wide);
    if (!nodes) {
      nodes = this.#values.map((value) => scalar(value, wide));
      this.#nodes.set(wide, nodes);
    }
    return nodes;
  }
}

export function atLeastZero(of: object, what: string, value: number | undefined): void {
  if (value !== undefined && !(value >= 0))
    throw new NablaError(`${of.constructor.name}: ${what} must not be negative, got ${value}`);
}

/** Two numbers in [0, 1). */
export function checkBetas(of: object, betas: readonly number[] | undefined): void {
  if (betas !== undefined && !(betas.length === 2 && betas.every((b) => b >= 0 && b < 1)))
    throw new NablaError(`${of.constructor.name}: betas must be two numbers in [0, 1), got ${JSON.stringify(betas)}`);
}
