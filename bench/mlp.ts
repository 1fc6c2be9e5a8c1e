/** A training step of the perceptron for MNIST: 784-128-10, batch 128, Adam. */
import { nn, optim, tensor } from "../src/index.ts";
import { MLP } from "../src/models/index.ts";
import { type Benchmark, race } from "./support/benchmark.ts";
import { integers, uniform } from "./support/numbers.ts";
import { floor, ours, tfjs, torch } from "./support/sides.ts";
import { serveTraining } from "./support/training.ts";
import { fill } from "./support/weights.ts";

const steps = 20;

export const benchmark: Benchmark = {
  name: "mlp",
  title: "MLP step: 784-128-10, batch 128, Adam",
  ours: async () => {
    const model = new MLP({ sizes: [784, 128, 10] });
    fill(model);
    const batches = Array.from({ length: 8 }, (_, i) => ({
      images: tensor(uniform(10 + i, 128 * 784), { shape: [128, 784] }),
      labels: tensor(integers(20 + i, 128, 10)),
    }));
    const loss = (i: number) => {
      const { images, labels } = batches[i % 8];
      return nn.functional.crossEntropy(model.forward(images), labels);
    };
    return serveTraining({ model, optimizer: new optim.Adam(model.parameters(), { lr: 1e-3 }), loss, steps });
  },
  run: (options) =>
    race(options, {
      sides: [ours("mlp"), ...torch("mlp.py", String(steps)), floor("cnn.c", ["mlp"], 1000), tfjs("tfjs-mlp.mjs")],
      lines: ["step"],
      seconds: 1,
      tolerance: 1e-3,
      targets: {
        torch: { atLeast: 2 },
        "torch.compile": { atLeast: 2 },
        floor: { atLeast: 1 / 1.4 },
        "tfjs-wasm": { atLeast: 10 },
      },
    }),
};
