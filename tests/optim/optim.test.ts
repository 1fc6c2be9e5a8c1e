/**
 * Optimisers against their papers' formulas written out in float64, resuming to the bit, groups, errors, clipping, schedules.
 * Trajectories against PyTorch are in tests/parity.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { programCounts, setDevice } from "../../src/execution/index.ts";
import * as nn from "../../src/nn/index.ts";
import * as optim from "../../src/optim/index.ts";
import { manualSeed, randn, type Tensor, tensor, zerosLike } from "../../src/tensor/index.ts";

setDevice("reference");

const parameter = (values: readonly number[], dtype: "float64" | "float32" | "bfloat16" = "float64"): nn.Parameter =>
  new nn.Parameter(tensor([...values], { dtype }));

function tensorState(state: optim.ParamState | undefined, name: string): Tensor {
  assert.ok(state);
  return state[name] as Tensor;
}

/** Gradients to follow: the same for the optimiser and for the formula. */
const gradients = Array.from({ length: 7 }, (_, t) => [Math.sin(3 * t + 1), Math.cos(5 * t), 0.1 * t - 0.3]);
const start = [0.5, -1.5, 2];

async function follow(make: (p: nn.Parameter) => optim.Optimizer<never>): Promise<number[]> {
  const p = parameter(start);
  const optimizer = make(p);
  for (const g of gradients) {
    p.grad = tensor(g, { dtype: "float64" });
    await optimizer.step();
    optimizer.zeroGrad();
  }
  return [...(await p.data())];
}

function close(got: readonly number[], expected: readonly number[]): void {
  got.forEach((v, i) => {
    assert.ok(Math.abs(v - expected[i]) < 1e-12, `element ${i} is ${v}, expected ${expected[i]}`);
  });
}

test("SGD with momentum, dampening and weight decay follows its formula", async () => {
  const [lr, momentum, dampening, weightDecay] = [0.1, 0.9, 0.2, 0.05];
  const got = await follow((p) => new optim.SGD([p], { lr, momentum, dampening, weightDecay }) as never);
  const x = [...start];
  const v = [0, 0, 0];
  gradients.forEach((g, t) => {
    for (let i = 0; i < 3; i++) {
      const d = g[i] + weightDecay * x[i];
      v[i] = t === 0 ? d : momentum * v[i] + (1 - dampening) * d;
      x[i] -= lr * v[i];
    }
  });
  close(got, x);
});

for (const [make, decoupled] of [
  [optim.Adam, false],
  [optim.AdamW, true],
] as const)
  test(`${make.name} follows its formula`, async () => {
    const [lr, betas, eps, weightDecay] = [0.05, [0.8, 0.95] as const, 1e-3, 0.1];
    const options = { lr, betas, eps, weightDecay };
    const got = await follow((p) => new make([p], options) as never);
    const x = [...start];
    const [m, v] = [
      [0, 0, 0],
      [0, 0, 0],
    ];
    gradients.forEach((gradient, t) => {
      for (let i = 0; i < 3; i++) {
        let g = gradient[i];
        if (decoupled) x[i] -= lr * weightDecay * x[i];
        else g += weightDecay * x[i];
        m[i] = betas[0] * m[i] + (1 - betas[0]) * g;
        v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g;
        const mHat = m[i] / (1 - betas[0] ** (t + 1));
        const vHat = v[i] / (1 - betas[1] ** (t + 1));
        x[i] -= (lr * mHat) / (Math.sqrt(vHat) + eps);
      }
    });
    close(got, x);
  });

test("1000 steps under a schedule, clipped, are one program", async () => {
  manualSeed(1);
  const model = new nn.Sequential(new nn.Linear(3, 4), new nn.Tanh(), new nn.Linear(4, 1));
  const optimizer = new optim.AdamW(model.parameters(), { lr: 0.01 });
  const schedule = optim.warmupCosine(optimizer, { warmupSteps: 100, totalSteps: 1000 });
  const x = randn([8, 3]);
  const y = x.sum(1).unsqueeze(1);
  let made = 0;
  let first = 0;
  let last = 0;
  for (let step = 0; step < 1000; step++) {
    const loss = nn.functional.mseLoss(model.forward(x), y);
    loss.backward();
    optim.clipGradNorm_(model.parameters(), 1);
    await optimizer.step();
    optimizer.zeroGrad();
    schedule.step();
    if (step === 0) {
      made = programCounts("reference").made;
      first = await loss.item();
    }
    last = step === 999 ? await loss.item() : 0;
  }
  assert.equal(programCounts("reference").made, made);
  assert.ok(last < first / 10, `the loss went from ${first} to ${last}`);
});

/** A few steps of a small model; with `stop`, state and weights go through a save half-way. */
async function trained(make: (p: Tensor[]) => optim.Optimizer<never>, stop: boolean): Promise<number[]> {
  manualSeed(2);
  let model = new nn.Linear(3, 2);
  let optimizer = make(model.parameters());
  const x = randn([5, 3]);
  for (let step = 0; step < 6; step++) {
    if (stop && step === 3) {
      const fresh = new nn.Linear(3, 2);
      fresh.loadStateDict(model.stateDict());
      const other = make(fresh.parameters());
      other.loadStateDict(optimizer.stateDict());
      [model, optimizer] = [fresh, other];
    }
    model.forward(x).square().sum().backward();
    await optimizer.step();
    optimizer.zeroGrad();
  }
  return [...(await model.weight.data()), ...(await (model.bias as Tensor).data())];
}

for (const [name, make] of Object.entries<(p: Tensor[]) => unknown>({
  SGD: (p) => new optim.SGD(p, { lr: 0.01, momentum: 0.9, dampening: 0.5 }),
  AdamW: (p) => new optim.AdamW(p, { lr: 0.01 }),
  "Adam, amsgrad": (p) => new optim.Adam(p, { lr: 0.01, amsgrad: true }),
  RMSprop: (p) => new optim.RMSprop(p, { centered: true, momentum: 0.5 }),
  Adagrad: (p) => new optim.Adagrad(p, { lrDecay: 0.1 }),
}))
  test(`${name}: a state that was saved and loaded goes on to the same bits`, async () => {
    const whole = await trained(make as never, false);
    assert.deepEqual(await trained(make as never, true), whole);
  });

test("a loaded state is a copy, brings the options, and must fit", async () => {
  const p = parameter([1, 2]);
  const a = new optim.Adam([p], { lr: 0.5 });
  p.grad = tensor([1, 1], { dtype: "float64" });
  await a.step();
  const saved = a.stateDict();
  assert.deepEqual(saved.paramGroups[0].params, [0]);
  assert.equal(saved.state[0]["step"], 1);
  const q = parameter([1, 2]);
  const b = new optim.Adam([q], { lr: 0.1 });
  b.loadStateDict(saved);
  assert.equal(b.paramGroups[0].lr, 0.5);
  q.grad = tensor([1, 1], { dtype: "float64" });
  await b.step();
  const expAvg = tensorState(a.state.get(p), "expAvg");
  assert.ok(Math.abs((await expAvg.data())[0] - 0.1) < 1e-12, "the state that was saved from has not moved");
  assert.throws(
    () => new optim.Adam([parameter([1]), parameter([2])]).loadStateDict(saved),
    /groups of \[1\] parameters, this optimiser \[2\]/,
  );
  assert.throws(
    () => new optim.Adam([parameter([1])]).loadStateDict(saved),
    /expAvg of parameter 0 \(\[1\]\) has shape \[2\], expected \[1\]/,
  );
});

test("groups have options of their own, parameters without a gradient stay, maximize goes up", async () => {
  const [a, b, c] = [parameter([1]), parameter([1]), parameter([1])];
  const optimizer = new optim.SGD([{ params: [a] }, { params: [b, c], lr: 0.5 }], { lr: 0.1 });
  a.grad = tensor([1], { dtype: "float64" });
  b.grad = tensor([1], { dtype: "float64" });
  await optimizer.step();
  assert.deepEqual([await a.item(), await b.item(), await c.item()], [0.9, 0.5, 1]);
  const d = parameter([1]);
  optimizer.addParamGroup({ params: [d], maximize: true });
  d.grad = tensor([1], { dtype: "float64" });
  optimizer.paramGroups[0].lr = 0; // may be changed at any time
  await optimizer.step();
  assert.deepEqual([await a.item(), await d.item()], [0.9, 1.1]);
});

test("a closure is called first and its loss given back", async () => {
  const p = parameter([2]);
  const optimizer = new optim.SGD([p], { lr: 0.25 });
  const loss = await optimizer.step(() => {
    optimizer.zeroGrad();
    const value = p.square().sum();
    value.backward();
    return value;
  });
  assert.equal(await loss?.item(), 4);
  assert.equal(await p.item(), 1);
});

test("16-bit parameters are updated in float32 and rounded once", async () => {
  const p = parameter([1, -3], "bfloat16");
  const optimizer = new optim.AdamW([p], { lr: 0.125, weightDecay: 0 });
  p.grad = tensor([1, -2], { dtype: "bfloat16" });
  await optimizer.step();
  assert.deepEqual([...(await p.data())], [0.875, -2.875]);
  assert.equal(tensorState(optimizer.state.get(p), "expAvg").dtype, "bfloat16");
});

test("mistakes are named", () => {
  const p = parameter([1]);
  assert.throws(() => new optim.SGD(new nn.Linear(1, 1) as never), /pass model\.parameters\(\)/);
  assert.throws(() => new optim.SGD([]), /empty list of parameters/);
  assert.throws(() => new optim.SGD([p.mul(2)]), /the result of an operation, not a leaf/);
  assert.throws(() => new optim.SGD([p, p]), /names a parameter twice/);
  assert.throws(() => new optim.SGD([{ params: [p] }, { params: [p] }]), /in two groups/);
  assert.throws(() => new optim.SGD([p], { lr: -1 }), /SGD: lr must not be negative, got -1/);
  assert.throws(() => new optim.SGD([p], { nesterov: true }), /nesterov needs a momentum/);
  assert.throws(() => new optim.Adam([p], { betas: [0.9, 1] }), /Adam: betas must be two numbers in \[0, 1\)/);
  assert.throws(() => new optim.SGD([p, { params: [] }] as never), /can't be mixed/);
  // @ts-expect-error misspelt options are caught by types
  new optim.AdamW([p], { learningRate: 1 });
});

test("clipping scales all gradients together and gives the norm before, readable after the step", async () => {
  const [p, q] = [parameter([0, 0]), parameter([0])];
  p.grad = tensor([3, 0], { dtype: "float64" });
  q.grad = tensor([4], { dtype: "float64" });
  const norm = optim.clipGradNorm_([p, q], 1);
  await new optim.SGD([p, q], { lr: 1 }).step();
  assert.equal(await norm.item(), 5);
  assert.ok(Math.abs((await p.data())[0] + 0.6) < 1e-6 && Math.abs((await q.item()) + 0.8) < 1e-6);
  p.grad = tensor([3, -0.1], { dtype: "float64" });
  optim.clipGradValue_([p], 0.5);
  assert.deepEqual([...(await p.grad.data())], [0.5, -0.1]);
  assert.equal(await optim.clipGradNorm_([parameter([1])], 1).item(), 0);
  assert.throws(() => optim.clipGradNorm_([p], -1), /must not be negative/);
});

test("schedules: warm-up then cosine, in sequence, saved and loaded", () => {
  const make = (): { optimizer: optim.SGD; schedule: optim.SequentialLR } => {
    const optimizer = new optim.SGD([parameter([1])], { lr: 1 });
    const warmup = new optim.LinearLR(optimizer, { startFactor: 0.25, totalIters: 3 });
    const cosine = new optim.CosineAnnealingLR(optimizer, { tMax: 4 });
    return {
      optimizer,
      schedule: new optim.SequentialLR(optimizer, { schedulers: [warmup, cosine], milestones: [3] }),
    };
  };
  const { optimizer, schedule } = make();
  const rates: number[] = [];
  for (let i = 0; i < 8; i++) {
    rates.push(optimizer.paramGroups[0].lr);
    schedule.step();
  }
  const expected = [0.25, 0.5, 0.75, 1, (1 + Math.SQRT1_2) / 2, 0.5, (1 - Math.SQRT1_2) / 2, 0];
  close(rates, expected);
  const other = make();
  for (let i = 0; i < 2; i++) schedule.step();
  other.schedule.loadStateDict(schedule.stateDict());
  assert.deepEqual(other.schedule.getLastLr(), schedule.getLastLr());

  const warm = new optim.SGD([parameter([1])], { lr: 1 });
  const s = optim.warmupCosine(warm, { warmupSteps: 4, totalSteps: 14, minRatio: 0.2 });
  const seen: number[] = [];
  for (let i = 0; i < 20; i++) {
    seen.push(warm.paramGroups[0].lr);
    s.step();
  }
  close([seen[0], seen[3], seen[4], seen[9], seen[14], seen[19]], [0.2, 0.8, 1, 0.6, 0.2, 0.2]);
  assert.throws(() => new optim.StepLR(warm, { stepSize: 0 }), /StepLR: stepSize/);
  assert.throws(() => new optim.SequentialLR(warm, { schedulers: [s], milestones: [1] }), /need 0 milestones/);
});

test("an optimiser of one's own is an update of one parameter in tensors", async () => {
  class SignSGD extends optim.Optimizer<{ lr?: number; maximize?: boolean; beta?: number }> {
    constructor(params: Iterable<Tensor>) {
      super(params, { lr: 0.5, maximize: false, beta: 0.5 });
    }
    protected update(p: Tensor, gradient: Tensor, { lr, beta }: optim.Group<{ lr?: number; beta?: number }>): void {
      const { mean } = this.stateOf(p, () => ({ mean: zerosLike(p) }));
      mean.lerp_(gradient, 1 - beta);
      p.sub_(mean.sign().mul(lr));
    }
  }
  const p = parameter([3]);
  const optimizer = new SignSGD([p]);
  for (let i = 0; i < 4; i++) {
    p.square().sum().backward();
    await optimizer.step();
    optimizer.zeroGrad();
  }
  assert.equal(await p.item(), 1);
  assert.ok(Math.abs((await tensorState(optimizer.state.get(p), "mean").item()) - 3.5) < 1e-12);
});
