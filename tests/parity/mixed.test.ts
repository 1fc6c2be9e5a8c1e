/**
 * Mixed precision against torch.autocast("cpu", torch.bfloat16) (fixtures/mixed.json): the losses of twenty steps of an MLP, a
 * convolutional net, a GPT-2 and a Llama, and how far gradients are from float32's.
 *
 * Where a value is rounded to bfloat16 differs from one right implementation to another (a bias is added before or after, an activation is one
 * operation or several), so that losses can't agree better than rounding moves them: by bfloat16's unit roundoff, 2⁻⁸ of the loss at the start, and
 * by what PyTorch's own losses move along the run when autocast is switched on, once for each of the two. Gradients may be twice as far from
 * float32's as PyTorch's are.
 */
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { fromPretrained } from "../../src/models/index.ts";
import * as nn from "../../src/nn/index.ts";
import { SGD } from "../../src/optim/index.ts";
import { autocast, type Tensor, tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { load } from "../support/calls.ts";
import { readFixture, type Stored, valuesOf } from "../support/fixtures.ts";

const F = nn.functional;

interface Run {
  readonly lr: number;
  readonly mixed: readonly number[];
  readonly float32: readonly number[];
  /** Relative distance of PyTorch's gradients from float32's at the first step. */
  readonly gradients: number;
}
interface Fixture {
  readonly networks: Readonly<
    Record<string, Run & { readonly x: Stored; readonly y: Stored; readonly weights: Readonly<Record<string, Stored>> }>
  >;
  readonly decoders: Readonly<Record<string, Run & { readonly ids: Stored }>>;
}

const fixture = readFixture<Fixture>("mixed");
const pretrained = join(dirname(fileURLToPath(import.meta.url)), "fixtures", "pretrained");
const integers = (stored: Stored): Tensor =>
  tensor(Int32Array.from(valuesOf(stored)), { shape: stored.shape, dtype: "int32" });

/** Pooling is by means: which of a window's values is the largest changes with their last bit, and what is learnt with it. */
const modules: Readonly<Record<string, () => nn.Module & { forward(x: Tensor): Tensor }>> = {
  mlp: () => new nn.Sequential(new nn.Linear(12, 32), new nn.GELU(), new nn.LayerNorm(32), new nn.Linear(32, 5)),
  conv: () =>
    new nn.Sequential(
      new nn.Conv2d(3, 8, 3, { padding: 1 }),
      new nn.BatchNorm2d(8),
      new nn.ReLU(),
      new nn.AvgPool2d(2),
      new nn.Conv2d(8, 12, 3, { padding: 1, stride: 2 }),
      new nn.ReLU(),
      new nn.Flatten(),
      new nn.Linear(48, 5),
    ),
};

interface Trained {
  readonly losses: number[];
  readonly gradients: Float64Array[];
}

async function train(
  model: nn.Module,
  lossOf: () => Tensor,
  options: { readonly lr: number; readonly steps: number; readonly enabled: boolean },
): Promise<Trained> {
  const optimizer = new SGD(model.parameters(), { lr: options.lr, momentum: 0.9 });
  const losses: number[] = [];
  let gradients: Float64Array[] = [];
  for (let step = 0; step < options.steps; step++) {
    const loss = autocast({ enabled: options.enabled }, lossOf);
    assert.equal(loss.dtype, "float32");
    loss.backward();
    if (step === 0) {
      gradients = [];
      for (const p of model.parameters()) {
        assert.equal((p.grad as Tensor).dtype, "float32");
        gradients.push(Float64Array.from((await (p.grad as Tensor).data()) as Float32Array));
      }
    }
    await optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
  }
  return { losses, gradients };
}

const square = (x: Float64Array): number => x.reduce((sum, v) => sum + v * v, 0);

/** Trains with and without autocast, and compares. `make` gives the same model each time. */
async function compare(
  run: Run,
  steps: number,
  make: () => Promise<readonly [nn.Module, () => Tensor]>,
): Promise<void> {
  const [model, lossOf] = await make();
  const mixed = await train(model, lossOf, { lr: run.lr, steps, enabled: true });
  const [twin, twinLossOf] = await make();
  const plain = await train(twin, twinLossOf, { lr: run.lr, steps: Math.min(steps, 2), enabled: false });

  const moved = Math.max(...run.mixed.map((loss, i) => Math.abs(loss - run.float32[i])));
  const limit = 2 * moved + 2 ** -8 * run.float32[0];
  mixed.losses.forEach((loss, i) => {
    assert.ok(
      Math.abs(loss - run.mixed[i]) <= limit,
      `step ${i}: ${loss}, PyTorch ${run.mixed[i]}; at most ${limit} apart (float32: ${run.float32[i]})`,
    );
  });
  plain.losses.forEach((loss, i) => {
    assert.ok(Math.abs(loss - run.float32[i]) <= 1e-4, `float32, step ${i}: ${loss}, PyTorch ${run.float32[i]}`);
  });
  assert.notEqual(mixed.losses[0], plain.losses[0], "autocast changed nothing");

  const apart = plain.gradients.map((g, i) => g.map((v, k) => v - mixed.gradients[i][k]));
  const distance = Math.sqrt(
    apart.reduce((sum, x) => sum + square(x), 0) / plain.gradients.reduce((sum, x) => sum + square(x), 0),
  );
  assert.ok(distance > 0 && distance <= 2 * run.gradients, `gradients ${distance} apart, PyTorch's ${run.gradients}`);
}

for (const backend of await backendsUnderTest()) {
  const steps = isBrief(backend) ? 2 : backend.name === "reference" ? 3 : 20;
  describe(`mixed precision on ${backend.name}`, () => {
    for (const [name, run] of Object.entries(fixture.networks))
      test(`${name}: twenty steps have the losses of torch.autocast`, async () => {
        setDevice(backend.name);
        await compare(run, steps, async () => {
          const model = modules[name]();
          const weights = Object.entries(run.weights).map(([key, x]) => [key, load(x, "float32")] as const);
          model.loadStateDict(Object.fromEntries(weights), { strict: false });
          model.train();
          const [x, y] = [load(run.x, "float32"), integers(run.y)];
          return [model, () => F.crossEntropy(model.forward(x), y)];
        });
      });

    for (const [name, run] of Object.entries(fixture.decoders))
      test(`${name}: twenty steps have the losses of torch.autocast`, async (t) => {
        const all = backend.name === "cpu" || process.env["NABLA_LONG"] === "1";
        if (!all && name !== "gpt2") return t.skip("more under NABLA_LONG=1");
        setDevice(backend.name);
        await compare(run, steps, async () => {
          const model = await fromPretrained(join(pretrained, name), { dtype: "float32" });
          model.eval(); // no dropout
          const ids = integers(run.ids);
          const time = run.ids.shape[1] - 1;
          return [model, () => model.forward(ids.narrow(1, 0, time), ids.narrow(1, 1, time))];
        });
      });
  });
}
