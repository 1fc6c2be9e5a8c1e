/** A perceptron so small that only overhead counts: 2-16-1, tanh, batch 32, SGD; the loss is read every 100 steps. */
import { nn, optim, tensor } from "../src/index.ts";
import { MLP } from "../src/models/index.ts";
import { type Benchmark, race } from "./support/benchmark.ts";
import { integers, uniform } from "./support/numbers.ts";
import { ours, torch } from "./support/sides.ts";
import { serveTraining } from "./support/training.ts";
import { fill } from "./support/weights.ts";

const steps = 100;

export const benchmark: Benchmark = {
  name: "tiny",
  title: "Tiny step: 2-16-1 with tanh, batch 32, binary cross-entropy, SGD",
  ours: async () => {
    const model = new MLP({ sizes: [2, 16, 1], activation: "tanh" });
    fill(model);
    const batches = Array.from({ length: 8 }, (_, i) => ({
      points: tensor(uniform(10 + i, 64), { shape: [32, 2] }),
      labels: tensor(Float32Array.from(integers(20 + i, 32, 2)), { shape: [32, 1] }),
    }));
    const loss = (i: number) => {
      const { points, labels } = batches[i % 8];
      return nn.functional.binaryCrossEntropyWithLogits(model.forward(points), labels);
    };
    return serveTraining({ model, optimizer: new optim.SGD(model.parameters(), { lr: 0.1 }), loss, steps });
  },
  run: (options) =>
    race(options, {
      sides: [ours("tiny"), ...torch("tiny.py", String(steps))],
      lines: ["step"],
      seconds: 1,
      tolerance: 1e-4,
      targets: { torch: { atLeast: 3 }, "torch.compile": { atLeast: 3 } },
    }),
};
