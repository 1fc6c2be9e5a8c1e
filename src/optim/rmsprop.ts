/** RMSprop (Tieleman & Hinton 2012) and Adagrad (Duchi et al. 2011), with PyTorch's numerics. */
import { defineOperation } from "../autograd/index.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { fullLike, zerosLike } from "../tensor/create.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  atLeastZero,
  type BaseOptions,
  type Group,
  Optimizer,
  type ParamState,
  type Params,
  put,
  StepScalars,
} from "./optimizer.ts";

export interface RMSpropOptions extends BaseOptions {
  /** Default: 0.01. */
  readonly lr?: number;
  /** How much of the mean square is kept each step. Default: 0.99. */
  readonly alpha?: number;
  readonly eps?: number;
  readonly weightDecay?: number;
  readonly momentum?: number;
  /** Divide by the standard deviation instead of the root mean square. */
  readonly centered?: boolean;
}

type RmsAttrs = { readonly momentum: boolean; readonly centered: boolean; readonly maximize: boolean };

/** (p, g, square, [mean], [velocity], lr, α, 1 − α, eps, weightDecay, momentum) → p and the states given. */
const rmsprop = defineOperation<RmsAttrs>({
  name: "rmsprop",
  infer: ([p], { momentum, centered }) => {
    const spec = { shape: p.shape, dtype: p.dtype };
    return new Array(2 + Number(momentum) + Number(centered)).fill(spec);
  },
  decompose: (inputs, a) => {
    const states = inputs.slice(2, 3 + Number(a.centered) + Number(a.momentum));
    const [lr, alpha, fresh, eps, weightDecay, momentum] = inputs.slice(2 + states.length);
    const wide = (x: Node): Node => ops.cast(x, lr.dtype);
    const p = wide(inputs[0]);
    let g = wide(inputs[1]);
    if (a.maximize) g = ops.neg(g);
    g = ops.add(g, ops.mul(p, weightDecay));
    const square = ops.add(ops.mul(wide(states[0]), alpha), ops.mul(ops.mul(g, g), fresh));
    const out: Node[] = [square];
    let variance = square;
    if (a.centered) {
      const before = wide(states[1]);
      const mean = ops.add(before, ops.mul(ops.sub(g, before), fresh));
      out.push(mean);
      variance = ops.sub(square, ops.mul(mean, mean));
    }
    let direction = ops.div(g, ops.add(ops.sqrt(variance), eps));
    if (a.momentum) {
      direction = ops.add(ops.mul(wide(states[states.length - 1]), momentum), direction);
      out.push(direction);
    }
    return [ops.sub(p, ops.mul(direction, lr)), ...out].map((x) => ops.cast(x, inputs[0].dtype));
  },
  gradient: null,
});

/** torch.optim.RMSprop. */
export class RMSprop extends Optimizer<RMSpropOptions> {
  readonly #scalars = new StepScalars();

  constructor(params: Params<RMSpropOptions>, options: RMSpropOptions = {}) {
    const { lr = 0.01, alpha = 0.99, eps = 1e-8, weightDecay = 0, momentum = 0 } = options;
    const { centered = false, maximize = false } = options;
    super(params, { lr, alpha, eps, weightDecay, momentum, centered, maximize });
  }
  protected override check(options: Readonly<Partial<RMSpropOptions>>): void {
    super.check(options);
    for (const what of ["alpha", "eps", "weightDecay", "momentum"] as const) atLeastZero(this, what, options[what]);
  }
  protected override beginGroup({ lr, alpha, eps, weightDecay, momentum }: Group<RMSpropOptions>): void {
    this.#scalars.set([lr, alpha, 1 - alpha, eps, weightDecay, momentum]);
  }
  protected update(p: Tensor, gradient: Tensor, { momentum, centered, maximize }: Group<RMSpropOptions>): void {
    const state = this.stateOf<ParamState>(p, () => ({
      squareAvg: zerosLike(p),
      ...(centered ? { gradAvg: zerosLike(p) } : {}),
      ...(momentum !== 0 ? { momentumBuffer: zerosLike(p) } : {}),
    }));
    const states = Object.values(state) as Tensor[];
    const inputs = [p.node, gradient.node, ...states.map((s) => s.node), ...this.#scalars.of(p.dtype)];
    const next = rmsprop(inputs, { momentum: momentum !== 0, centered, maximize });
    put(p, next[0]);
    for (const [i, s] of states.entries()) put(s, next[i + 1]);
  }
}

export interface AdagradOptions extends BaseOptions {
  /** Default: 0.01. */
  readonly lr?: number;
  readonly lrDecay?: number;
  readonly weightDecay?: number;
  readonly initialAccumulatorValue?: number;
  readonly eps?: number;
}

/** (p, g, sum of squares, rate, eps, weightDecay) → p, the sum. */
const adagrad = defineOperation<{ readonly maximize: boolean }>({
  name: "adagrad",
  infer: ([p]) => new Array(2).fill({ shape: p.shape, dtype: p.dtype }),
  decompose: ([parameter, gradient, sum, rate, eps, weightDecay], { maximize }) => {
    const wide = (x: Node): Node => ops.cast(x, rate.dtype);
    const p = wide(parameter);
    const signed = maximize ? ops.neg(wide(gradient)) : wide(gradient);
    const g = ops.add(signed, ops.mul(p, weightDecay));
    const total = ops.add(wide(sum), ops.mul(g, g));
    const next = ops.sub(p, ops.mul(ops.div(g, ops.add(ops.sqrt(total), eps)), rate));
    return [ops.cast(next, parameter.dtype), ops.cast(total, parameter.dtype)];
  },
  gradient: null,
});

/** torch.optim.Adagrad. */
export class Adagrad extends Optimizer<AdagradOptions> {
  readonly #scalars = new Map<number, StepScalars>();

  constructor(params: Params<AdagradOptions>, options: AdagradOptions = {}) {
    const { lr = 0.01, lrDecay = 0, weightDecay = 0, eps = 1e-10, maximize = false } = options;
    const { initialAccumulatorValue = 0 } = options;
    super(params, { lr, lrDecay, weightDecay, initialAccumulatorValue, eps, maximize });
  }
  protected override check(options: Readonly<Partial<AdagradOptions>>): void {
    super.check(options);
    for (const what of ["lrDecay", "weightDecay", "initialAccumulatorValue", "eps"] as const)
      atLeastZero(this, what, options[what]);
  }
  protected override beginGroup(): void {
    this.#scalars.clear();
  }
  protected update(p: Tensor, gradient: Tensor, group: Group<AdagradOptions>): void {
    const { lr, lrDecay, eps, weightDecay, initialAccumulatorValue, maximize } = group;
    const state = this.stateOf(p, () => ({ step: 0, sum: fullLike(p, initialAccumulatorValue) }));
    state.step++;
    let scalars = this.#scalars.get(state.step);
    if (!scalars) {
      this.#scalars.set(state.step, (scalars = new StepScalars()));
      scalars.set([lr / (1 + (state.step - 1) * lrDecay), eps, weightDecay]);
    }
    const [x, sum] = adagrad([p.node, gradient.node, state.sum.node, ...scalars.of(p.dtype)], { maximize });
    put(p, x);
    put(state.sum, sum);
  }
}
