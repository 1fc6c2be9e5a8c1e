/** The multilayer perceptron: linear layers with an activation between them. */
import { ShapeError } from "../core/errors.ts";
import { dropout as drop, gelu, relu, sigmoid, silu, tanh } from "../nn/functional.ts";
import { type FactoryOptions, Linear, Module, ModuleList } from "../nn/index.ts";
import type { Tensor } from "../tensor/index.ts";

const activations = { relu, tanh, sigmoid, gelu, silu };

export type MlpActivation = keyof typeof activations;

export interface MlpConfig extends FactoryOptions {
  /** Sizes from the input to the output: [784, 128, 10] is one hidden layer of 128. */
  readonly sizes: readonly number[];
  /** After every layer but the last. Default: "relu". */
  readonly activation?: MlpActivation;
  /** In training, after every hidden layer. Default: 0. */
  readonly dropout?: number;
}

/** [batch…, sizes[0]] → [batch…, sizes.at(−1)], without an activation at the end: logits, or values to regress. */
export class MLP extends Module {
  readonly config: MlpConfig;
  layers: ModuleList<Linear>;
  constructor(config: MlpConfig) {
    super();
    const { sizes } = config;
    if (sizes.length < 2)
      throw new ShapeError(`MLP: sizes must name at least an input and an output, got [${sizes.join(", ")}]`);
    this.config = config;
    this.layers = new ModuleList(sizes.slice(1).map((size, i) => new Linear(sizes[i], size, config)));
  }
  forward(x: Tensor): Tensor {
    const { activation = "relu", dropout = 0 } = this.config;
    const last = this.layers.length - 1;
    for (let i = 0; i <= last; i++) {
      x = this.layers[i].forward(x);
      if (i === last) break;
      x = activations[activation](x);
      if (dropout > 0) x = drop(x, { p: dropout, training: this.training });
    }
    return x;
  }
}
