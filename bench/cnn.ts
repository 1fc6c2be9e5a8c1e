/** A training step of the convolutional net for MNIST: 1 → 32 → 64 channels, two max-pools, 3136-128-10, batch 64, Adam. */
import { nn, optim, tensor } from "../src/index.ts";
import { ConvNet } from "../src/models/index.ts";
import { type Benchmark, race } from "./support/benchmark.ts";
import { integers, uniform } from "./support/numbers.ts";
import { floor, ours, torch } from "./support/sides.ts";
import { serveTraining } from "./support/training.ts";
import { fill } from "./support/weights.ts";

const steps = 5;

export const benchmark: Benchmark = {
  name: "cnn",
  title: "Convolutional step: 1 → 32 → 64, 3136-128-10, batch 64, Adam",
  ours: async () => {
    const model = new ConvNet();
    fill(model);
    const batches = Array.from({ length: 8 }, (_, i) => ({
      images: tensor(uniform(10 + i, 64 * 784), { shape: [64, 1, 28, 28] }),
      labels: tensor(integers(20 + i, 64, 10)),
    }));
    const loss = (i: number) => {
      const { images, labels } = batches[i % 8];
      return nn.functional.crossEntropy(model.forward(images), labels);
    };
    return serveTraining({ model, optimizer: new optim.Adam(model.parameters(), { lr: 1e-3 }), loss, steps });
  },
  run: (options) =>
    race(options, {
      sides: [ours("cnn"), ...torch("cnn.py", String(steps)), floor("cnn.c", ["cnn"], 60)],
      lines: ["step"],
      seconds: 2,
      tolerance: 1e-3,
      targets: { torch: { atLeast: 2 }, "torch.compile": { atLeast: 2 }, floor: { atLeast: 1 / 1.3 } },
    }),
};
