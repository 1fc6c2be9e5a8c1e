/** The models that `plan` and `graph` can look at by name, each with a batch to feed it and the step that trains it. */
import { ConvNet, GPT2, MLP } from "../models/index.ts";
import * as F from "../nn/functional.ts";
import type { Module } from "../nn/index.ts";
import { AdamW, type Optimizer } from "../optim/index.ts";
import { type Tensor, tensor } from "../tensor/index.ts";
import { gptOptimizer, modelConfig } from "./gpt-run.ts";

export interface ModelFlags {
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly context: number;
  readonly dropout: number;
  readonly batch: number;
  readonly vocab: number;
}

export interface Subject {
  readonly model: Module;
  readonly optimizer: Optimizer<never>;
  /** The outputs of a forward pass. */
  forward(): Tensor;
  /** The loss of a batch. */
  loss(): Tensor;
}

/** Inputs whose values do not matter; data of the host, as a training's, and written, so that its pages are there. */
const labels = (shape: readonly number[]): Tensor =>
  tensor(new Int32Array(shape.reduce((n, d) => n * d, 1)), { shape });
const images = (shape: readonly number[]): Tensor =>
  tensor(new Float32Array(shape.reduce((n, d) => n * d, 1)).fill(0.5), { shape });

const classes = 10;
const side = 28;

export const subjects: Readonly<Record<string, (flags: ModelFlags) => Subject>> = {
  gpt(flags) {
    const model = new GPT2(modelConfig(flags, flags.vocab));
    const ids = () => labels([flags.batch, flags.context]);
    return {
      model,
      optimizer: gptOptimizer(model, { lr: 1e-3, beta2: 0.99, weightDecay: 0.1 }) as unknown as Optimizer<never>,
      forward: () => model.forward(ids()),
      loss: () => model.forward(ids(), ids()),
    };
  },
  convnet({ batch }) {
    return classifier(new ConvNet({ imageSize: [side, side], numClasses: classes }), [batch, 1, side, side]);
  },
  mlp({ batch }) {
    return classifier(new MLP({ sizes: [side * side, 128, classes] }), [batch, side * side]);
  },
};

function classifier(model: Module & { forward(x: Tensor): Tensor }, shape: readonly number[]): Subject {
  return {
    model,
    optimizer: new AdamW(model.parameters(), { lr: 1e-3 }) as unknown as Optimizer<never>,
    forward: () => model.forward(images(shape)),
    loss: () => F.crossEntropy(model.forward(images(shape)), labels([shape[0]])),
  };
}
