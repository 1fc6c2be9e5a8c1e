/** Activations and dropout as layers, for Sequential; each calls the function of the same name. */
import { NablaError } from "../../core/errors.ts";
import { full } from "../../tensor/create.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import * as F from "../functional/activation.ts";
import { dropout } from "../functional/dropout.ts";
import { Module } from "../module.ts";
import { Parameter } from "../parameter.ts";
import { type FactoryOptions, made } from "./linear.ts";

export class ReLU extends Module {
  forward(x: Tensor): Tensor {
    return F.relu(x);
  }
}
export class ReLU6 extends Module {
  forward(x: Tensor): Tensor {
    return F.relu6(x);
  }
}
export class LeakyReLU extends Module {
  readonly negativeSlope: number;
  constructor(negativeSlope = 0.01) {
    super();
    this.negativeSlope = negativeSlope;
  }
  forward(x: Tensor): Tensor {
    return F.leakyRelu(x, { negativeSlope: this.negativeSlope });
  }
}
/** Leaky ReLU with learnt slopes: one, or one a channel. */
export class PReLU extends Module {
  weight: Parameter;
  constructor(numParameters = 1, options: FactoryOptions & { readonly init?: number } = {}) {
    super();
    this.weight = new Parameter(full([numParameters], options.init ?? 0.25, made(options)));
  }
  forward(x: Tensor): Tensor {
    return F.prelu(x, this.weight);
  }
}
export class ELU extends Module {
  readonly alpha: number;
  constructor(alpha = 1) {
    super();
    this.alpha = alpha;
  }
  forward(x: Tensor): Tensor {
    return F.elu(x, { alpha: this.alpha });
  }
}
export class SELU extends Module {
  forward(x: Tensor): Tensor {
    return F.selu(x);
  }
}
export class CELU extends Module {
  readonly alpha: number;
  constructor(alpha = 1) {
    super();
    this.alpha = alpha;
  }
  forward(x: Tensor): Tensor {
    return F.celu(x, { alpha: this.alpha });
  }
}
export class GELU extends Module {
  readonly approximate: "none" | "tanh";
  constructor(options: { readonly approximate?: "none" | "tanh" } = {}) {
    super();
    this.approximate = options.approximate ?? "none";
  }
  forward(x: Tensor): Tensor {
    return F.gelu(x, { approximate: this.approximate });
  }
}
export class SiLU extends Module {
  forward(x: Tensor): Tensor {
    return F.silu(x);
  }
}
export class Mish extends Module {
  forward(x: Tensor): Tensor {
    return F.mish(x);
  }
}
export class Sigmoid extends Module {
  forward(x: Tensor): Tensor {
    return F.sigmoid(x);
  }
}
export class LogSigmoid extends Module {
  forward(x: Tensor): Tensor {
    return F.logsigmoid(x);
  }
}
export class Tanh extends Module {
  forward(x: Tensor): Tensor {
    return F.tanh(x);
  }
}
export class Softplus extends Module {
  readonly options: { readonly beta?: number; readonly threshold?: number };
  constructor(options: { readonly beta?: number; readonly threshold?: number } = {}) {
    super();
    this.options = options;
  }
  forward(x: Tensor): Tensor {
    return F.softplus(x, this.options);
  }
}
export class Softsign extends Module {
  forward(x: Tensor): Tensor {
    return F.softsign(x);
  }
}
export class Hardtanh extends Module {
  readonly options: { readonly minVal?: number; readonly maxVal?: number };
  constructor(options: { readonly minVal?: number; readonly maxVal?: number } = {}) {
    super();
    this.options = options;
  }
  forward(x: Tensor): Tensor {
    return F.hardtanh(x, this.options);
  }
}
export class Hardsigmoid extends Module {
  forward(x: Tensor): Tensor {
    return F.hardsigmoid(x);
  }
}
export class Hardswish extends Module {
  forward(x: Tensor): Tensor {
    return F.hardswish(x);
  }
}
export class Threshold extends Module {
  readonly threshold: number;
  readonly value: number;
  constructor(threshold: number, value: number) {
    super();
    this.threshold = threshold;
    this.value = value;
  }
  forward(x: Tensor): Tensor {
    return F.threshold(x, this.threshold, this.value);
  }
}
export class GLU extends Module {
  readonly dim: number;
  constructor(dim = -1) {
    super();
    this.dim = dim;
  }
  forward(x: Tensor): Tensor {
    return F.glu(x, this.dim);
  }
}
export class Softmax extends Module {
  readonly dim: number;
  constructor(dim = -1) {
    super();
    this.dim = dim;
  }
  forward(x: Tensor): Tensor {
    return F.softmax(x, this.dim);
  }
}
export class LogSoftmax extends Module {
  readonly dim: number;
  constructor(dim = -1) {
    super();
    this.dim = dim;
  }
  forward(x: Tensor): Tensor {
    return F.logSoftmax(x, this.dim);
  }
}

/** In training, each element becomes 0 with probability p and the others are divided by 1 − p (Srivastava et al. 2014). */
export class Dropout extends Module {
  readonly p: number;
  constructor(p = 0.5) {
    super();
    if (!(p >= 0 && p <= 1)) throw new NablaError(`Dropout: p must be between 0 and 1, got ${p}`);
    this.p = p;
  }
  forward(x: Tensor): Tensor {
    return dropout(x, { p: this.p, training: this.training });
  }
  override extraRepr(): string {
    return `p=${this.p}`;
  }
}
