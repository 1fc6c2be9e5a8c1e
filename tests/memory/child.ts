/**
 * A training process whose memory its parent judges: `child.ts steps KIND SMALL LARGE` trains a perceptron and tells what is
 * resident after SMALL and after LARGE steps; `child.ts peak NAME FLAGS` trains a model of `nabla plan` and tells its peak.
 */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { type ModelFlags, subjects } from "../../src/cli/models.ts";
import { manualSeed, nn, optim, randint, randn, setDevice, type Tensor } from "../../src/index.ts";
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

async function steps(kind: string, small: number, large: number): Promise<object> {
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

async function train(name: string, flags: ModelFlags, count: number): Promise<void> {
  const { model, optimizer, loss } = subjects[name](flags);
  for (let i = 0; i < count; i++) {
    const value = loss();
    value.backward();
    if (name === "gpt") optim.clipGradNorm_(model.parameters(), 1);
    await optimizer.step();
    optimizer.zeroGrad();
    await value.item();
  }
}

/** The most that was resident while training, less what a process that trains a tiny model of the kind holds. */
async function peak(name: string, flags: ModelFlags): Promise<object> {
  await train(name, { ...flags, layers: 1, heads: 1, width: 16, context: 8, batch: 2 }, 3);
  const before = await settled();
  await train(name, flags, 10);
  return { peak: status("VmHWM") - before };
}

const [, , what, ...args] = process.argv;
const answer =
  what === "steps"
    ? await steps(args[0], Number(args[1]), Number(args[2]))
    : await peak(args[0], JSON.parse(args[1]) as ModelFlags);
console.log(JSON.stringify(answer));
process.exit(0);
