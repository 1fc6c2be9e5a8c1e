/** Stochastic gradient descent with momentum, PyTorch's update rule: the learning rate multiplies the velocity. */
import { defineOperation } from "../autograd/index.ts";
import { NablaError } from "../core/errors.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { zerosLike } from "../tensor/create.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { atLeastZero, type BaseOptions, type Group, Optimizer, type Params, put, StepScalars } from "./optimizer.ts";

export interface SGDOptions extends BaseOptions {
  /** Default: 0.001. */
  readonly lr?: number;
  readonly momentum?: number;
  /** What is kept out of the velocity of each new gradient. */
  readonly dampening?: number;
  /** L2 penalty: added to the gradient times the parameter. */
  readonly weightDecay?: number;
  readonly nesterov?: boolean;
}

const wide = (x: Node, like: Node): Node => ops.cast(x, like.dtype);

type SgdAttrs = {
  readonly momentum: boolean;
  readonly nesterov: boolean;
  readonly decay: boolean;
  readonly maximize: boolean;
};

/** (p, g, lr, weightDecay, and with momentum: velocity, momentum, 1 − dampening) → p, and with momentum the velocity. */
const sgd = defineOperation<SgdAttrs>({
  name: "sgd",
  infer: ([p], { momentum }) => {
    const spec = { shape: p.shape, dtype: p.dtype };
    return momentum ? [spec, spec] : spec;
  },
  decompose: ([p, gradient, lr, weightDecay, velocity, momentum, fresh], a) => {
    const x = wide(p, lr);
    let g = wide(gradient, lr);
    if (a.maximize) g = ops.neg(g);
    if (a.decay) g = ops.add(g, ops.mul(x, weightDecay));
    if (!a.momentum) return [ops.cast(ops.sub(x, ops.mul(g, lr)), p.dtype)];
    const v = ops.add(ops.mul(wide(velocity, lr), momentum), ops.mul(g, fresh));
    const direction = a.nesterov ? ops.add(g, ops.mul(v, momentum)) : v;
    return [ops.cast(ops.sub(x, ops.mul(direction, lr)), p.dtype), ops.cast(v, p.dtype)];
  },
  gradient: null,
});

/** torch.optim.SGD. */
export class SGD extends Optimizer<SGDOptions> {
  readonly #scalars = new StepScalars();
  #attrs: SgdAttrs = { momentum: false, nesterov: false, decay: false, maximize: false };

  constructor(params: Params<SGDOptions>, options: SGDOptions = {}) {
    const { lr = 1e-3, momentum = 0, dampening = 0, weightDecay = 0, nesterov = false, maximize = false } = options;
    super(params, { lr, momentum, dampening, weightDecay, nesterov, maximize });
  }

  protected override check(options: Readonly<Partial<SGDOptions>>): void {
    super.check(options);
    atLeastZero(this, "momentum", options.momentum);
    atLeastZero(this, "weightDecay", options.weightDecay);
    const all = { ...this.defaults, ...options };
    if (all.nesterov && (!(all.momentum > 0) || all.dampening !== 0))
      throw new NablaError(
        `SGD: nesterov needs a momentum above 0 and no dampening, got ${all.momentum} and ${all.dampening}`,
      );
  }

  protected override beginGroup({ lr, momentum, dampening, weightDecay, nesterov, maximize }: Group<SGDOptions>): void {
    this.#scalars.set([lr, weightDecay, momentum, 1 - dampening, 1]);
    const [moves, decay] = [momentum !== 0, weightDecay !== 0];
    const a = this.#attrs;
    if (a.momentum !== moves || a.nesterov !== nesterov || a.decay !== decay || a.maximize !== maximize)
      this.#attrs = { momentum: moves, nesterov, decay, maximize };
  }

  protected update(p: Tensor, gradient: Tensor): void {
    const [lr, weightDecay, momentum, fresh, one] = this.#scalars.of(p.dtype);
    if (!this.#attrs.momentum) {
      put(p, sgd([p.node, gradient.node, lr, weightDecay], this.#attrs)[0]);
      return;
    }
    // the first gradient becomes the velocity undampened
    const first = !this.state.has(p);
    const { momentumBuffer: velocity } = this.stateOf(p, () => ({ momentumBuffer: zerosLike(p) }));
    const inputs = [p.node, gradient.node, lr, weightDecay, velocity.node, momentum, first ? one : fresh];
    const [x, v] = sgd(inputs, this.#attrs);
    put(p, x);
    put(velocity, v);
  }
}
