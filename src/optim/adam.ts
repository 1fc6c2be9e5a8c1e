/**
 * Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019) with PyTorch's numerics: the bias corrections are numbers
 * of the step, and eps is added to the corrected root. One operation a parameter; its two moments are state.
 */
import { defineOperation } from "../autograd/index.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { zerosLike } from "../tensor/create.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  atLeastZero,
  type BaseOptions,
  checkBetas,
  type Group,
  Optimizer,
  type ParamState,
  type Params,
  put,
  StepScalars,
} from "./optimizer.ts";

export interface AdamOptions extends BaseOptions {
  /** Default: 0.001. */
  readonly lr?: number;
  /** How much of the first and second moment is kept each step. Default: [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  /** Default: 1e-8. */
  readonly eps?: number;
  /** Adam: L2 penalty, added to the gradient; default 0. AdamW: taken off the parameter itself; default 0.01. */
  readonly weightDecay?: number;
  /** Divide by the largest second moment so far (Reddi et al. 2018). */
  readonly amsgrad?: boolean;
}

type AdamAttrs = { readonly amsgrad: boolean; readonly l2: boolean; readonly maximize: boolean };

/**
 * (p, g, m, v, [largest v], stepSize, correction, eps, decay, 1 − β₁, β₂, 1 − β₂) → p, m, v, [largest v], where stepSize is
 * lr / (1 − β₁ᵗ), correction 1 / √(1 − β₂ᵗ), and decay the L2 penalty or the factor 1 − lr · weightDecay.
 */
const adam = defineOperation<AdamAttrs>({
  name: "adam",
  infer: ([p], { amsgrad }) => {
    const spec = { shape: p.shape, dtype: p.dtype };
    return amsgrad ? [spec, spec, spec, spec] : [spec, spec, spec];
  },
  decompose: (inputs, a) => {
    const scalars = inputs.slice(a.amsgrad ? 5 : 4);
    const [stepSize, correction, eps, decay, fresh1, beta2, fresh2] = scalars;
    const wide = (x: Node): Node => ops.cast(x, stepSize.dtype);
    const [p, , m, v] = inputs.map(wide);
    let g = wide(inputs[1]);
    if (a.maximize) g = ops.neg(g);
    if (a.l2) g = ops.add(g, ops.mul(p, decay));
    const first = ops.add(m, ops.mul(ops.sub(g, m), fresh1));
    const second = ops.add(ops.mul(v, beta2), ops.mul(ops.mul(g, g), fresh2));
    const largest = a.amsgrad ? ops.maximum(wide(inputs[4]), second) : second;
    const root = ops.add(ops.mul(ops.sqrt(largest), correction), eps);
    const decayed = a.l2 ? p : ops.mul(p, decay);
    const next = ops.sub(decayed, ops.mul(ops.div(first, root), stepSize));
    const outputs = [next, first, second, ...(a.amsgrad ? [largest] : [])];
    return outputs.map((x) => ops.cast(x, inputs[0].dtype));
  },
  gradient: null,
});

interface AdamState extends ParamState {
  step: number;
  expAvg: Tensor;
  expAvgSq: Tensor;
}

/** The common body; `l2` tells the two apart. */
abstract class AdamBase extends Optimizer<AdamOptions> {
  readonly #l2: boolean;
  #attrs: AdamAttrs;
  /** Scalars by the step that parameters are at: nearly always one step for all of them. */
  readonly #scalars = new Map<number, StepScalars>();

  constructor(params: Params<AdamOptions>, options: AdamOptions, l2: boolean) {
    const { lr = 1e-3, betas = [0.9, 0.999], eps = 1e-8, amsgrad = false, maximize = false } = options;
    super(params, { lr, betas, eps, weightDecay: options.weightDecay ?? (l2 ? 0 : 0.01), amsgrad, maximize });
    this.#l2 = l2;
    this.#attrs = { amsgrad, l2, maximize };
  }

  protected override check(options: Readonly<Partial<AdamOptions>>): void {
    super.check(options);
    atLeastZero(this, "eps", options.eps);
    atLeastZero(this, "weightDecay", options.weightDecay);
    checkBetas(this, options.betas);
  }

  protected override beginGroup({ amsgrad, weightDecay, maximize }: Group<AdamOptions>): void {
    this.#scalars.clear();
    const l2 = this.#l2 && weightDecay !== 0;
    const { amsgrad: a, l2: b, maximize: c } = this.#attrs;
    if (a !== amsgrad || b !== l2 || c !== maximize) this.#attrs = { amsgrad, l2, maximize };
  }

  #scalarsAt(step: number, { lr, betas, eps, weightDecay }: Group<AdamOptions>): StepScalars {
    let scalars = this.#scalars.get(step);
    if (!scalars) {
      const [beta1, beta2] = betas;
      this.#scalars.set(step, (scalars = new StepScalars()));
      scalars.set([
        lr / (1 - beta1 ** step),
        1 / Math.sqrt(1 - beta2 ** step),
        eps,
        // without a penalty Adam leaves p as it is: times 1
        this.#l2 ? weightDecay || 1 : 1 - lr * weightDecay,
        1 - beta1,
        beta2,
        1 - beta2,
      ]);
    }
    return scalars;
  }

  #begin(p: Tensor, amsgrad: boolean): AdamState {
    return this.stateOf<AdamState>(p, () => ({
      step: 0,
      expAvg: zerosLike(p),
      expAvgSq: zerosLike(p),
      ...(amsgrad ? { maxExpAvgSq: zerosLike(p) } : {}),
    }));
  }

  protected update(p: Tensor, gradient: Tensor, group: Group<AdamOptions>): void {
    const state = (this.state.get(p) as AdamState | undefined) ?? this.#begin(p, group.amsgrad);
    state.step++;
    const { expAvg, expAvgSq } = state;
    const largest = group.amsgrad ? (state["maxExpAvgSq"] as Tensor) : null;
    const moments = largest ? [expAvg.node, expAvgSq.node, largest.node] : [expAvg.node, expAvgSq.node];
    const scalars = this.#scalarsAt(state.step, group).of(p.dtype);
    const next = adam([p.node, gradient.node, ...moments, ...scalars], this.#attrs);
    put(p, next[0]);
    put(expAvg, next[1]);
    put(expAvgSq, next[2]);
    if (largest) put(largest, next[3]);
  }
}

/** torch.optim.Adam; its weightDecay is an L2 penalty. */
export class Adam extends AdamBase {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super(params, options, true);
  }
}

/** torch.optim.AdamW: Adam whose weightDecay shrinks the parameters themselves, apart from the gradient. */
export class AdamW extends AdamBase {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super(params, options, false);
  }
}
