/**
 * A process whose memory its parent judges: `child.ts KIND SMALL LARGE` trains a perceptron, or (KIND is "shapes") runs programs
 * that all differ, and tells what is resident after SMALL and after LARGE steps.
 */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { manualSeed, nn, optim, randint, randn, setDevice, type Tensor, tensor } from "../../src/index.ts";
import { MLP } from "../../src/models/index.ts";

setDevice("cpu");
manualSeed(1);

/** Bytes, as the kernel counts them. */
function status(field: "VmHWM" | "VmRSS"): number {
  const found = new RegExp(`${field}:\\s+(\\d+)`).exec(readFileSync("/proc/self/status", "utf8"));
  return 1024 * Number(found?.[1]);
}

/** Resident bytes once what is unreachable has gone. */
async function settled(): Promise<number> {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await sleep(20); // finalisers run in tasks of their own
  }
  return status("VmRSS");
}

class Normalised extends nn.Module {
  fc1 = new nn.Linear(784, 128);
  norm = new nn.BatchNorm1d(128);
  fc2 = new nn.Linear(128, 10);
  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.norm.forward(this.fc1.forward(x)).relu());
  }
}

/** Runs matrix products of which each is of another shape, so that each is compiled, and nearly all leave the cache again. */
async function shapes(small: number, large: number): Promise<object> {
  let atSmall = 0;
  for (let i = 1; i <= large; i++) {
    const shape = [8 + (i % 50), 16 + Math.floor(i / 50)];
    const x = tensor(new Float32Array(shape[0] * shape[1]).fill(1), { shape });
    await x.matmul(x.transpose(0, 1)).data();
    if (i === small) atSmall = await settled();
  }
  return { small: atSmall, large: await settled() };
}

async function steps(kind: string, small: number, large: number): Promise<object> {
  if (kind === "shapes") return shapes(small, large);
  const model = kind === "batchnorm" ? new Normalised() : new MLP({ sizes: [784, 128, 10] });
  const optimizer = new optim.Adam(model.parameters(), { lr: 1e-3 });
  let atSmall = 0;
  for (let i = 1; i <= large; i++) {
    const loss = nn.functional.crossEntropy(model.forward(randn([128, 784])), randint(0, 10, [128]));
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    if (kind === "read") await loss.item();
    if (i === small) atSmall = await settled();
  }
  return { small: atSmall, large: await settled() };
}

const [, , kind, small, large] = process.argv;
console.log(JSON.stringify(await steps(kind, Number(small), Number(large))));
process.exit(0);
